//! Makes plain tensors and a list of tokens of Moonshine's ONNX Runtime files.
//!
//! Products of matrices and the table of tokens have 8-bit weights, with one scale and one zero point for each tensor:
//! weight = (q - zero) * scale. The nodes of products are named after their layers
//! (`/layers.3/self_attn/k_proj/MatMul_quant`), so nothing depends on the order of nodes.

use std::collections::BTreeMap;

use crate::{
    flatbuffer::{Malformed, Table},
    safetensors::Tensor,
    texts,
};

/// The files hold no Moonshine that this version knows.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A graph cannot be read.
    #[error("{}", texts::unfit(part, source))]
    Graph {
        /// The graph.
        part: &'static str,
        /// The place of the fault.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tensor is missing or has another form.
    #[error("{}", texts::unfit(part, what))]
    Unfit {
        /// The graph.
        part: &'static str,
        /// The difference.
        what: String,
    },
    /// The list of tokens ends in the middle of a token.
    #[error("{}", texts::cut_tokenizer(*.0))]
    Tokens(usize),
}

/// Deepest nesting of subgraphs: the decoder's two branches. A deeper one is a fault of the file.
const DEPTH_MAX: usize = 8;

/// Indexes of fields in ONNX Runtime's schema (`onnxruntime/core/flatbuffers/schema/ort.fbs`).
mod field {
    pub(super) const SESSION_MODEL: usize = 1;
    pub(super) const MODEL_GRAPH: usize = 7;
    pub(super) const GRAPH_INITIALIZERS: usize = 0;
    pub(super) const GRAPH_NODES: usize = 2;
    pub(super) const NODE_NAME: usize = 0;
    pub(super) const NODE_OPERATOR: usize = 5;
    pub(super) const NODE_INPUTS: usize = 8;
    pub(super) const NODE_ATTRIBUTES: usize = 10;
    pub(super) const ATTRIBUTE_GRAPH: usize = 7;
    pub(super) const TENSOR_NAME: usize = 0;
    pub(super) const TENSOR_SHAPE: usize = 2;
    pub(super) const TENSOR_TYPE: usize = 3;
    pub(super) const TENSOR_DATA: usize = 4;
}

/// The types of values that a Moonshine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    U8,
    I8,
}

#[derive(Debug, Clone)]
struct Value<'a> {
    kind: Kind,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

struct Graph<'a> {
    part: &'static str,
    values: BTreeMap<&'a str, Value<'a>>,
    /// Name of each product's node, and of its weights.
    products: BTreeMap<&'a str, &'a str>,
}

/// The tensors of both graphs, named as Moonshine's layers are: `encoder.layers.0.self_attn.q_proj.weight` and so on.
/// Weights of linear layers are outputs × inputs.
pub(crate) fn tensors(encoder: &[u8], decoder: &[u8]) -> Result<BTreeMap<String, Tensor>, ConvertError> {
    let mut out = BTreeMap::new();
    for (part, data) in [("encoder", encoder), ("decoder", decoder)] {
        let graph = Graph::read(part, data)?;
        graph.add_to(&mut out)?;
    }
    // One table serves both ends of the decoder.
    let head = out.remove("decoder.proj_out.weight");
    if head.is_none() || head.as_ref() != out.get("decoder.embed_tokens.weight") {
        let what = "the head is not the table of tokens".to_owned();
        return Err(ConvertError::Unfit { part: "decoder", what });
    }
    Ok(out)
}

/// The bytes of each token, from the tokenizer's list: a length of one byte, or of two from 128 on, and then the bytes.
pub(crate) fn tokens(data: &[u8]) -> Result<Vec<&[u8]>, ConvertError> {
    let (mut at, mut tokens) = (0, Vec::new());
    let byte = |at: usize| data.get(at).copied().map(usize::from).ok_or(ConvertError::Tokens(at));
    while at < data.len() {
        let mut size = byte(at)?;
        at += 1;
        if size >= 128 {
            size = size - 128 + 128 * byte(at)?;
            at += 1;
        }
        tokens.push(data.get(at..at + size).ok_or(ConvertError::Tokens(at))?);
        at += size;
    }
    Ok(tokens)
}

impl<'a> Graph<'a> {
    fn read(part: &'static str, data: &'a [u8]) -> Result<Self, ConvertError> {
        let mut graph = Self {
            part,
            values: BTreeMap::new(),
            products: BTreeMap::new(),
        };
        let read = || -> Result<Option<Table<'a>>, Malformed> {
            let Some(model) = Table::root(data)?.table(field::SESSION_MODEL)? else {
                return Ok(None);
            };
            model.table(field::MODEL_GRAPH)
        };
        let broken = |source: Malformed| ConvertError::Graph {
            part,
            source: Box::new(source),
        };
        let main = read()
            .map_err(broken)?
            .ok_or_else(|| graph.unfit("there is no graph"))?;
        graph.take(main, 0).map_err(broken)?;
        Ok(graph)
    }

    fn take(&mut self, graph: Table<'a>, depth: usize) -> Result<(), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed(0));
        }
        for tensor in graph.tables(field::GRAPH_INITIALIZERS)? {
            // ONNX's numbers of the types.
            let (kind, width) = match tensor.number(field::TENSOR_TYPE, 0)? {
                1 => (Kind::F32, 4),
                2 => (Kind::U8, 1),
                3 => (Kind::I8, 1),
                _ => continue,
            };
            let sides = tensor.items(field::TENSOR_SHAPE, 8)?.chunks_exact(8);
            let side = |bytes: &[u8]| usize::try_from(i64::from_le_bytes(bytes.try_into().ok()?)).ok();
            let shape: Option<Vec<usize>> = sides.map(side).collect();
            let bytes = tensor.items(field::TENSOR_DATA, 1)?;
            let count = shape
                .as_ref()
                .and_then(|shape| shape.iter().try_fold(1usize, |count, side| count.checked_mul(*side)));
            let Some((shape, count)) = shape.zip(count) else {
                return Err(Malformed(0));
            };
            if count.checked_mul(width) != Some(bytes.len()) {
                return Err(Malformed(0));
            }
            self.values
                .insert(tensor.text(field::TENSOR_NAME)?, Value { kind, shape, bytes });
        }
        for node in graph.tables(field::GRAPH_NODES)? {
            let operator = node.text(field::NODE_OPERATOR)?;
            if matches!(operator, "MatMulIntegerToFloat" | "DynamicQuantizeMatMul")
                && let Some(weights) = node.texts(field::NODE_INPUTS)?.get(1)
            {
                self.products.insert(node.text(field::NODE_NAME)?, weights);
            }
            for attribute in node.tables(field::NODE_ATTRIBUTES)? {
                if let Some(inner) = attribute.table(field::ATTRIBUTE_GRAPH)? {
                    self.take(inner, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    fn add_to(&self, out: &mut BTreeMap<String, Tensor>) -> Result<(), ConvertError> {
        let part = self.part;
        for (name, value) in &self.values {
            if value.kind == Kind::F32 && is_parameter(name) {
                out.insert(format!("{part}.{}", layer_of_value(name)), floats(value));
            }
            // The exporter gave the norm of the first convolution numbers for names.
            let norm = match *name {
                "onnx::Mul_2080" => "weight",
                "onnx::Add_2081" => "bias",
                _ => continue,
            };
            let mut tensor = floats(value);
            tensor.shape = vec![tensor.values.len()];
            out.insert(format!("{part}.groupnorm.{norm}"), tensor);
        }
        for (node, weights) in &self.products {
            out.insert(
                format!("{part}.{}.weight", layer_of_node(node)),
                transposed(&self.plain(weights)?)?,
            );
        }
        for name in self
            .values
            .keys()
            .filter(|name| name.contains("embed_tokens") && name.ends_with(QUANTISED))
        {
            out.insert("decoder.embed_tokens.weight".to_owned(), self.plain(name)?);
        }
        Ok(())
    }

    /// The floats of 8-bit weights.
    fn plain(&self, name: &str) -> Result<Tensor, ConvertError> {
        let find = |name: &str| {
            self.values
                .get(name)
                .ok_or_else(|| self.unfit(&format!("{name} is missing")))
        };
        let stem = name
            .strip_suffix(QUANTISED)
            .ok_or_else(|| self.unfit(&format!("{name} is not quantised")))?;
        let (weights, zero, scale) = (
            find(name)?,
            find(&format!("{stem}_zero_point"))?,
            find(&format!("{stem}_scale"))?,
        );
        let one = |value: &Value<'_>, what: &str| match floats(value).values.as_slice() {
            [value] => Ok(*value),
            _ => Err(self.unfit(&format!("{stem} has not one {what}"))),
        };
        let (zero, scale) = (one(zero, "zero point")?, one(scale, "scale")?);
        let mut tensor = floats(weights);
        for value in &mut tensor.values {
            *value = (*value - zero) * scale;
        }
        Ok(tensor)
    }

    fn unfit(&self, what: &str) -> ConvertError {
        ConvertError::Unfit {
            part: self.part,
            what: what.to_owned(),
        }
    }
}

const QUANTISED: &str = "_quantized";

fn floats(value: &Value<'_>) -> Tensor {
    let values = match value.kind {
        Kind::F32 => value
            .bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect(),
        Kind::U8 => value.bytes.iter().map(|byte| f32::from(*byte)).collect(),
        Kind::I8 => value.bytes.iter().map(|byte| f32::from(byte.cast_signed())).collect(),
    };
    Tensor {
        shape: value.shape.clone(),
        values,
    }
}

fn transposed(tensor: &Tensor) -> Result<Tensor, ConvertError> {
    let [rows, columns] = tensor.shape.as_slice() else {
        let what = format!("a product has weights of the shape {:?}", tensor.shape);
        return Err(ConvertError::Unfit { part: "graph", what });
    };
    let column = |column: usize| tensor.values.iter().skip(column).step_by(*columns).copied();
    Ok(Tensor {
        shape: vec![*columns, *rows],
        values: (0..*columns).flat_map(column).collect(),
    })
}

/// Whether a value is a weight or bias of its own, and not part of a quantised one.
fn is_parameter(name: &str) -> bool {
    let ends = |kind: &str| {
        name.split(kind)
            .skip(1)
            .any(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    (ends(".weight") || ends(".bias")) && !["quantized", "scale", "zero"].iter().any(|part| name.contains(part))
}

/// `model.decoder.layers.0.mlp.fc1.bias_merged_0` without the additions of the exporter.
fn layer_of_value(name: &str) -> &str {
    let unmarked = |name| {
        let name: &str = name;
        name.strip_suffix("_merged_0")
            .or_else(|| name.strip_suffix("_add_tensor"))
            .unwrap_or(name)
    };
    let name = unmarked(unmarked(name));
    name.strip_prefix("model.decoder.").unwrap_or(name)
}

/// `/model/decoder/layers.0/self_attn/q_proj/MatMul_quant` as the name of a layer.
fn layer_of_node(name: &str) -> String {
    let name = name.strip_prefix('/').unwrap_or(name);
    let name = name.strip_prefix("model/decoder/").unwrap_or(name);
    name.strip_suffix("/MatMul_quant").unwrap_or(name).replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_exporter_become_names_of_layers() {
        for (name, layer) in [
            ("model.decoder.layers.0.mlp.fc1.bias_merged_0", "layers.0.mlp.fc1.bias"),
            ("conv1.weight", "conv1.weight"),
            ("layers.2.mlp.fc2.bias_add_tensor", "layers.2.mlp.fc2.bias"),
            ("model.decoder.norm.weight", "norm.weight"),
        ] {
            assert!(is_parameter(name), "{name}");
            assert_eq!(layer_of_value(name), layer);
        }
        assert!(!is_parameter("layers.0.self_attn.q_proj.weight_scale"));
        assert_eq!(
            layer_of_node("/model/decoder/layers.5/self_attn/q_proj/MatMul_quant"),
            "layers.5.self_attn.q_proj"
        );
        assert_eq!(layer_of_node("/layers.0/mlp/fc1/MatMul_quant"), "layers.0.mlp.fc1");
    }

    #[test]
    fn a_cut_tokenizer_is_no_list() {
        let long = [vec![0x80, 2], vec![b'x'; 256], vec![1, b'y']].concat();
        assert_eq!(
            tokens(&long)
                .unwrap()
                .iter()
                .map(|token| token.len())
                .collect::<Vec<_>>(),
            [256, 1]
        );
        assert!(matches!(tokens(&long[..100]), Err(ConvertError::Tokens(2))));
        assert!(matches!(tokens(&[0x80]), Err(ConvertError::Tokens(1))));
    }

    #[test]
    fn a_graph_of_something_else_says_so() {
        let error = tensors(&[0; 64], &[0; 64]).unwrap_err().to_string();
        assert!(error.starts_with("encoder: "), "{error}");
    }

    #[test]
    fn rows_become_columns() {
        let tensor = Tensor {
            shape: vec![2, 3],
            values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        };
        let turned = transposed(&tensor).unwrap();
        assert_eq!(
            (turned.shape, turned.values),
            (vec![3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0])
        );
    }
}
