//! Writes the safetensors format with the tensors in the order of their names, so that the same tensors give the same bytes
//! and their hash can be pinned. The library of that name writes its table in the random order of a hash map.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

/// A tensor of 32-bit floats, in rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

/// Writes `tensors`: the length of the table, the table as JSON, the values in little-endian order.
pub(crate) fn write(tensors: &BTreeMap<String, Tensor>, out: &mut impl Write) -> io::Result<()> {
    let mut at = 0;
    let mut table = BTreeMap::new();
    for (name, tensor) in tensors {
        let end = at + 4 * tensor.values.len();
        let entry = Entry {
            dtype: "F32",
            shape: &tensor.shape,
            data_offsets: [at, end],
        };
        table.insert(name, entry);
        at = end;
    }
    let mut text = serde_json::to_vec(&table)?;
    // The values begin at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)?;
    for tensor in tensors.values() {
        let bytes: Vec<u8> = tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        out.write_all(&bytes)?;
    }
    out.flush()
}
