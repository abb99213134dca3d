//! The network of Moonshine tiny: samples straight into three convolutions, six encoder blocks, six decoder blocks.
//!
//! Blocks norm first, and neither norms nor attention have a bias. Positions are rotations of the first 32 of a head's 36
//! numbers, in neighbouring pairs, in self-attention alone.

use std::path::Path;

use tch::{Device, Kind, TchError, Tensor};

use super::decoded::Decoded;
use crate::sidecar::ModelError;

const WIDTH: i64 = 288;
const HEADS: i64 = 8;
const HEAD: i64 = WIDTH / HEADS;
const ROTARY: i64 = 32;
const ROTARY_BASE: f64 = 10_000.0;
const BLOCKS: usize = 6;
const HIDDEN: i64 = 1152;
const TOKENS: i64 = 32_768;
/// First token of every transcript, and the one after its last.
const START: i64 = 1;
const END: i64 = 2;
/// Positions for 31 s of sound, 41.7 frames each; a transcript has fewer.
const POSITIONS: i64 = 1_400;
const EPSILON: f64 = 1e-5;

/// The weights on one device, and handles to them for one thread.
#[derive(Debug)]
pub(super) struct Network {
    device: Device,
    sound: [Convolution; 3],
    sound_norm: [Tensor; 2],
    encoder: Vec<EncoderBlock>,
    encoder_norm: Tensor,
    decoder: Vec<DecoderBlock>,
    decoder_norm: Tensor,
    /// Both ends of the decoder: tokens to numbers, numbers to tokens.
    tokens: Tensor,
    /// Cosines and sines of each position.
    rotation: [Tensor; 2],
}

#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
}

#[derive(Debug)]
struct EncoderBlock {
    attention_norm: Tensor,
    attention: Attention,
    mlp_norm: Tensor,
    mlp: [Linear; 2],
}

#[derive(Debug)]
struct DecoderBlock {
    attention_norm: Tensor,
    attention: Attention,
    sound_norm: Tensor,
    sound: Attention,
    mlp_norm: Tensor,
    mlp: [Linear; 2],
}

#[derive(Debug)]
struct Attention {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
}

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

/// Keys and values of one block, `[1, heads, positions, head]`.
type Memory = (Tensor, Tensor);

impl Network {
    /// Loads the tensors at `path`. Every one must be there, in its shape, and no other.
    pub(super) fn load(path: &Path, device: Device) -> Result<Self, ModelError> {
        let torch = |source| ModelError::Torch {
            path: path.display().to_string(),
            source,
        };
        tch::no_grad(|| {
            let tensors = Tensor::read_safetensors(path).map_err(torch)?;
            let mut stock = Stock {
                path,
                device,
                tensors: tensors.into_iter().collect(),
            };
            let network = Self::assemble(&mut stock)?;
            match stock.tensors.keys().next() {
                None => Ok(network),
                Some(name) => Err(stock.unfit(format!("{name} is none of this network's tensors"))),
            }
        })
    }

    fn assemble(stock: &mut Stock<'_>) -> Result<Self, ModelError> {
        let convolution = |stock: &mut Stock<'_>, name: &str, shape: [i64; 3], stride, has_bias: bool| {
            Ok::<_, ModelError>(Convolution {
                weight: stock.take(&format!("encoder.{name}.weight"), &shape)?,
                bias: match has_bias {
                    true => Some(stock.take(&format!("encoder.{name}.bias"), &shape[..1])?),
                    false => None,
                },
                stride,
            })
        };
        let sound = [
            convolution(stock, "conv1", [WIDTH, 1, 127], 64, false)?,
            convolution(stock, "conv2", [2 * WIDTH, WIDTH, 7], 3, true)?,
            convolution(stock, "conv3", [WIDTH, 2 * WIDTH, 3], 2, true)?,
        ];
        let sound_norm = [
            stock.take("encoder.groupnorm.weight", &[WIDTH])?,
            stock.take("encoder.groupnorm.bias", &[WIDTH])?,
        ];
        let encoder = (0..BLOCKS).map(|at| {
            let name = format!("encoder.layers.{at}");
            Ok(EncoderBlock {
                attention_norm: stock.norm(&format!("{name}.input_layernorm"))?,
                attention: stock.attention(&format!("{name}.self_attn"))?,
                mlp_norm: stock.norm(&format!("{name}.post_attention_layernorm"))?,
                mlp: stock.mlp(&format!("{name}.mlp"), HIDDEN)?,
            })
        });
        let encoder = encoder.collect::<Result<Vec<_>, ModelError>>()?;
        let decoder = (0..BLOCKS).map(|at| {
            let name = format!("decoder.layers.{at}");
            Ok(DecoderBlock {
                attention_norm: stock.norm(&format!("{name}.input_layernorm"))?,
                attention: stock.attention(&format!("{name}.self_attn"))?,
                sound_norm: stock.norm(&format!("{name}.post_attention_layernorm"))?,
                sound: stock.attention(&format!("{name}.encoder_attn"))?,
                mlp_norm: stock.norm(&format!("{name}.final_layernorm"))?,
                // Half of it is the gate of the other half.
                mlp: stock.mlp(&format!("{name}.mlp"), 2 * HIDDEN)?,
            })
        });
        let decoder = decoder.collect::<Result<Vec<_>, ModelError>>()?;
        Ok(Self {
            device: stock.device,
            sound,
            sound_norm,
            encoder,
            encoder_norm: stock.norm("encoder.layer_norm")?,
            decoder,
            decoder_norm: stock.norm("decoder.norm")?,
            tokens: stock.take("decoder.embed_tokens.weight", &[TOKENS, WIDTH])?,
            rotation: rotation(stock.device),
        })
    }

    /// Number of tokens.
    pub(super) fn vocabulary(&self) -> usize {
        TOKENS as usize
    }

    /// Handles for another thread, to the same weights.
    pub(super) fn share(&self) -> Self {
        let linear = |linear: &Linear| Linear {
            weight: linear.weight.shallow_clone(),
            bias: linear.bias.shallow_clone(),
        };
        let attention = |attention: &Attention| Attention {
            q: attention.q.shallow_clone(),
            k: attention.k.shallow_clone(),
            v: attention.v.shallow_clone(),
            out: attention.out.shallow_clone(),
        };
        Self {
            device: self.device,
            sound: self.sound.each_ref().map(|convolution| Convolution {
                weight: convolution.weight.shallow_clone(),
                bias: convolution.bias.as_ref().map(Tensor::shallow_clone),
                stride: convolution.stride,
            }),
            sound_norm: self.sound_norm.each_ref().map(Tensor::shallow_clone),
            encoder: (self.encoder.iter())
                .map(|block| EncoderBlock {
                    attention_norm: block.attention_norm.shallow_clone(),
                    attention: attention(&block.attention),
                    mlp_norm: block.mlp_norm.shallow_clone(),
                    mlp: block.mlp.each_ref().map(linear),
                })
                .collect(),
            encoder_norm: self.encoder_norm.shallow_clone(),
            decoder: (self.decoder.iter())
                .map(|block| DecoderBlock {
                    attention_norm: block.attention_norm.shallow_clone(),
                    attention: attention(&block.attention),
                    sound_norm: block.sound_norm.shallow_clone(),
                    sound: attention(&block.sound),
                    mlp_norm: block.mlp_norm.shallow_clone(),
                    mlp: block.mlp.each_ref().map(linear),
                })
                .collect(),
            decoder_norm: self.decoder_norm.shallow_clone(),
            tokens: self.tokens.shallow_clone(),
            rotation: self.rotation.each_ref().map(Tensor::shallow_clone),
        }
    }

    /// Decodes `sound` with the likeliest token at every step, and at most `tokens_max` of them.
    pub(super) fn transcribe(&self, sound: &[f32], tokens_max: usize) -> Result<Decoded, TchError> {
        tch::no_grad(|| {
            let mut decoder = self.begin(sound)?;
            let mut decoded = Decoded {
                tokens: Vec::new(),
                log_probabilities: Vec::new(),
                ended: false,
            };
            let mut token = START;
            while decoded.tokens.len() < tokens_max {
                let logits = self.step(&mut decoder, token)?;
                let (best, at) = logits.f_log_softmax(0, Kind::Float)?.f_max_dim(0, false)?;
                token = at.f_int64_value(&[])?;
                decoded.log_probabilities.push(best.f_double_value(&[])? as f32);
                if token == END {
                    decoded.ended = true;
                    break;
                }
                decoded.tokens.push(token);
            }
            Ok(decoded)
        })
    }

    fn begin(&self, sound: &[f32]) -> Result<Decoder, TchError> {
        let encoded = self.encode(sound)?;
        let sound = self.decoder.iter().map(|block| {
            let Attention { k, v, .. } = &block.sound;
            Ok((heads(&project(&encoded, k)?)?, heads(&project(&encoded, v)?)?))
        });
        Ok(Decoder {
            sound: sound.collect::<Result<_, TchError>>()?,
            said: Vec::new(),
            position: 0,
        })
    }

    /// `[1, frames, WIDTH]`.
    fn encode(&self, sound: &[f32]) -> Result<Tensor, TchError> {
        let sound = Tensor::from_slice(sound).f_view([1, 1, -1])?.f_to_device(self.device)?;
        let [first, second, third] = &self.sound;
        let [weight, bias] = &self.sound_norm;
        let x = first.forward(&sound)?.f_tanh()?;
        let x = x.f_group_norm(1, Some(weight), Some(bias), EPSILON, true)?;
        let x = second.forward(&x)?.f_gelu("none")?;
        let mut x = third.forward(&x)?.f_gelu("none")?.f_transpose(1, 2)?;
        for block in &self.encoder {
            let y = norm(&x, &block.attention_norm)?;
            let Attention { q, k, v, out } = &block.attention;
            let q = self.rotated(&heads(&project(&y, q)?)?, 0)?;
            let k = self.rotated(&heads(&project(&y, k)?)?, 0)?;
            x = x.f_add(&project(&attend(&q, &k, &heads(&project(&y, v)?)?)?, out)?)?;
            let [up, down] = &block.mlp;
            let y = up.forward(&norm(&x, &block.mlp_norm)?)?.f_gelu("none")?;
            x = x.f_add(&down.forward(&y)?)?;
        }
        norm(&x, &self.encoder_norm)
    }

    /// The logit of every token that may follow `token`.
    fn step(&self, decoder: &mut Decoder, token: i64) -> Result<Tensor, TchError> {
        let token = Tensor::from_slice(&[token]).f_view([1, 1])?.f_to_device(self.device)?;
        let mut x = Tensor::f_embedding(&self.tokens, &token, -1, false, false)?;
        let is_first = decoder.said.is_empty();
        for (at, block) in self.decoder.iter().enumerate() {
            let y = norm(&x, &block.attention_norm)?;
            let Attention { q, k, v, out } = &block.attention;
            let q = self.rotated(&heads(&project(&y, q)?)?, decoder.position)?;
            let mut k = self.rotated(&heads(&project(&y, k)?)?, decoder.position)?;
            let mut v = heads(&project(&y, v)?)?;
            if !is_first {
                let (before_k, before_v) = &decoder.said[at];
                k = Tensor::f_cat(&[before_k, &k], 2)?;
                v = Tensor::f_cat(&[before_v, &v], 2)?;
            }
            x = x.f_add(&project(&attend(&q, &k, &v)?, out)?)?;
            if is_first {
                decoder.said.push((k, v));
            } else {
                decoder.said[at] = (k, v);
            }
            let Attention { q, out, .. } = &block.sound;
            let q = heads(&project(&norm(&x, &block.sound_norm)?, q)?)?;
            let (k, v) = &decoder.sound[at];
            x = x.f_add(&project(&attend(&q, k, v)?, out)?)?;
            let [up, down] = &block.mlp;
            let halves = up.forward(&norm(&x, &block.mlp_norm)?)?.f_chunk(2, -1)?;
            let gated = halves[1].f_silu()?.f_mul(&halves[0])?;
            x = x.f_add(&down.forward(&gated)?)?;
        }
        decoder.position += 1;
        project(&norm(&x, &self.decoder_norm)?, &self.tokens)?
            .f_to_device(Device::Cpu)?
            .f_view([-1])
    }

    /// Turns the first numbers of each head by its position; the first row has position `from`.
    fn rotated(&self, x: &Tensor, from: i64) -> Result<Tensor, TchError> {
        let rows = x.size()[2];
        let [cosines, sines] = self.rotation.each_ref();
        let (cosines, sines) = (cosines.f_narrow(0, from, rows)?, sines.f_narrow(0, from, rows)?);
        let (turned, rest) = (x.f_narrow(3, 0, ROTARY)?, x.f_narrow(3, ROTARY, HEAD - ROTARY)?);
        let pairs = turned.f_unflatten(3, [ROTARY / 2, 2])?;
        let crossed = Tensor::f_stack(&[pairs.f_select(4, 1)?.f_neg()?, pairs.f_select(4, 0)?], -1)?.f_flatten(3, 4)?;
        let turned = turned.f_mul(&cosines)?.f_add(&crossed.f_mul(&sines)?)?;
        Tensor::f_cat(&[turned, rest], -1)
    }
}

/// One utterance while it is written down.
struct Decoder {
    /// Of each block, what it looks up in the sound.
    sound: Vec<Memory>,
    /// Of each block, what it looks up in the tokens so far.
    said: Vec<Memory>,
    position: i64,
}

impl Convolution {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_conv1d(&self.weight, self.bias.as_ref(), self.stride, 0, 1, 1)
    }
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_linear(&self.weight, Some(&self.bias))
    }
}

fn project(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    x.f_linear(weight, None::<&Tensor>)
}

fn norm(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    x.f_layer_norm([WIDTH], Some(weight), None::<&Tensor>, EPSILON, true)
}

/// `[1, rows, WIDTH]` as `[1, HEADS, rows, HEAD]`.
fn heads(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_unflatten(2, [HEADS, HEAD])?.f_transpose(1, 2)
}

fn attend(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, TchError> {
    let seen = Tensor::f_scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, false, None, false)?;
    seen.f_transpose(1, 2)?.f_flatten(2, 3)
}

/// Cosines and sines of each position, `[POSITIONS, ROTARY]`; both numbers of a pair turn alike.
fn rotation(device: Device) -> [Tensor; 2] {
    let angle = |position: i64, at: i64| {
        let pair = (at / 2) as f64;
        position as f64 * ROTARY_BASE.powf(-2.0 * pair / ROTARY as f64)
    };
    let table = |turn: fn(f64) -> f64| {
        let rows = (0..POSITIONS).flat_map(|position| (0..ROTARY).map(move |at| (position, at)));
        let values: Vec<f32> = rows.map(|(position, at)| turn(angle(position, at)) as f32).collect();
        Tensor::from_slice(&values).view([POSITIONS, ROTARY]).to_device(device)
    };
    [table(f64::cos), table(f64::sin)]
}

/// The tensors of a file that are not in place yet.
struct Stock<'a> {
    path: &'a Path,
    device: Device,
    tensors: std::collections::BTreeMap<String, Tensor>,
}

impl Stock<'_> {
    fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let tensor = self
            .tensors
            .remove(name)
            .ok_or_else(|| self.unfit(format!("{name} is missing")))?;
        if tensor.size() != shape {
            return Err(self.unfit(format!(
                "{name} has the shape {:?} and should have {shape:?}",
                tensor.size()
            )));
        }
        Ok(tensor.to_kind(Kind::Float).to_device(self.device))
    }

    fn norm(&mut self, name: &str) -> Result<Tensor, ModelError> {
        self.take(&format!("{name}.weight"), &[WIDTH])
    }

    fn attention(&mut self, name: &str) -> Result<Attention, ModelError> {
        let mut project = |kind: char| self.take(&format!("{name}.{kind}_proj.weight"), &[WIDTH, WIDTH]);
        Ok(Attention {
            q: project('q')?,
            k: project('k')?,
            v: project('v')?,
            out: project('o')?,
        })
    }

    /// Two layers with `hidden` numbers in between, of which the second takes [`HIDDEN`].
    fn mlp(&mut self, name: &str, hidden: i64) -> Result<[Linear; 2], ModelError> {
        let mut linear = |layer: &str, from: i64, to: i64| {
            Ok::<_, ModelError>(Linear {
                weight: self.take(&format!("{name}.{layer}.weight"), &[to, from])?,
                bias: self.take(&format!("{name}.{layer}.bias"), &[to])?,
            })
        };
        Ok([linear("fc1", WIDTH, hidden)?, linear("fc2", HIDDEN, WIDTH)?])
    }

    fn unfit(&self, what: String) -> ModelError {
        ModelError::Unfit {
            path: self.path.display().to_string(),
            what,
        }
    }
}

#[cfg(test)]
mod tests;
