//! The little of the FlatBuffers format that an ONNX Runtime graph needs: tables, vectors and texts, read where they lie.
//!
//! Hand-written: the library of that name reads with code generated from a schema, and that of ONNX Runtime has hundreds of tables, of
//! which a conversion needs a handful of fields.
//!
//! Every offset is checked: the bytes come from outside, although a hash vouches for them.

use crate::texts;

/// The bytes are no FlatBuffer of the expected form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::malformed_graph(*.0))]
pub(crate) struct Malformed(pub(crate) usize);

type Result<T> = std::result::Result<T, Malformed>;

/// A table at an offset of the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Table<'a> {
    /// The table that the file begins with.
    pub(crate) fn root(data: &'a [u8]) -> Result<Self> {
        let at = follow(data, 0)?;
        Ok(Self { data, at })
    }

    /// The number of field `index`; `otherwise` when the table leaves it out.
    pub(crate) fn number(&self, index: usize, otherwise: i32) -> Result<i32> {
        match self.field(index)? {
            Some(at) => Ok(i32::from_le_bytes(bytes(self.data, at)?)),
            None => Ok(otherwise),
        }
    }

    /// The table of field `index`.
    pub(crate) fn table(&self, index: usize) -> Result<Option<Self>> {
        let Some(at) = self.field(index)? else { return Ok(None) };
        let at = follow(self.data, at)?;
        Ok(Some(Self { data: self.data, at }))
    }

    /// The text of field `index`; empty when the table leaves it out.
    pub(crate) fn text(&self, index: usize) -> Result<&'a str> {
        match self.field(index)? {
            Some(at) => text_at(self.data, at),
            None => Ok(""),
        }
    }

    /// The bytes of the vector of field `index`, whose items have `width` bytes; none when the table leaves it out.
    pub(crate) fn items(&self, index: usize, width: usize) -> Result<&'a [u8]> {
        match self.field(index)? {
            Some(at) => vector_at(self.data, at, width),
            None => Ok(&[]),
        }
    }

    /// The tables of field `index`.
    pub(crate) fn tables(&self, index: usize) -> Result<Vec<Self>> {
        let offsets = self.offsets(index)?;
        let table = |at| {
            Ok(Self {
                data: self.data,
                at: follow(self.data, at)?,
            })
        };
        offsets.map(table).collect()
    }

    /// The texts of field `index`.
    pub(crate) fn texts(&self, index: usize) -> Result<Vec<&'a str>> {
        self.offsets(index)?.map(|at| text_at(self.data, at)).collect()
    }

    /// The place of the offsets of a vector of tables or texts.
    fn offsets(&self, index: usize) -> Result<impl Iterator<Item = usize> + use<'a>> {
        let (start, count) = match self.field(index)? {
            Some(at) => (follow(self.data, at)? + 4, vector_at(self.data, at, 4)?.len() / 4),
            None => (0, 0),
        };
        Ok((0..count).map(move |item| start + 4 * item))
    }

    /// The position of field `index`, if the table has it.
    fn field(&self, index: usize) -> Result<Option<usize>> {
        let malformed = Malformed(self.at);
        let back = i32::from_le_bytes(bytes(self.data, self.at)?);
        let at = i64::try_from(self.at).map_err(|_| malformed)? - i64::from(back);
        let names = usize::try_from(at).map_err(|_| malformed)?;
        let size = usize::from(u16::from_le_bytes(bytes(self.data, names)?));
        let entry = 4 + 2 * index;
        if entry + 2 > size {
            return Ok(None);
        }
        let offset = u16::from_le_bytes(bytes(self.data, names + entry)?);
        Ok((offset != 0).then(|| self.at + usize::from(offset)))
    }
}

fn bytes<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N]> {
    let end = at.checked_add(N).ok_or(Malformed(at))?;
    let slice = data.get(at..end).ok_or(Malformed(at))?;
    slice.try_into().map_err(|_| Malformed(at))
}

/// The position that the offset at `at` points to.
fn follow(data: &[u8], at: usize) -> Result<usize> {
    let offset = u32::from_le_bytes(bytes(data, at)?);
    at.checked_add(offset as usize)
        .filter(|to| *to < data.len())
        .ok_or(Malformed(at))
}

fn vector_at(data: &[u8], at: usize, width: usize) -> Result<&[u8]> {
    let start = follow(data, at)?;
    let count = u32::from_le_bytes(bytes(data, start)?) as usize;
    let length = count.checked_mul(width).ok_or(Malformed(start))?;
    let end = (start + 4).checked_add(length).ok_or(Malformed(start))?;
    data.get(start + 4..end).ok_or(Malformed(start))
}

fn text_at(data: &[u8], at: usize) -> Result<&str> {
    std::str::from_utf8(vector_at(data, at, 1)?).map_err(|_| Malformed(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_graph_are_refused_and_end_nothing() {
        assert!(Table::root(&[]).is_err());
        assert!(Table::root(&[255; 16]).is_err());
        for size in 0..64u8 {
            for seed in 0..=255u8 {
                let data: Vec<u8> = (0..size)
                    .map(|at| at.wrapping_mul(seed).wrapping_add(seed >> 3))
                    .collect();
                let Ok(root) = Table::root(&data) else { continue };
                for index in 0..12 {
                    let _ = (root.text(index), root.items(index, 8), root.number(index, 0));
                    let tables = root.tables(index).unwrap_or_default();
                    let _ = tables.into_iter().map(|table| table.texts(index)).collect::<Vec<_>>();
                }
            }
        }
    }
}
