//! The end of a message's body (RFC 9112 §6 and §7).

use bytes::{Buf as _, Bytes, BytesMut};

/// Longest extensions and trailers of a chunked body, which the edge ignores.
const CHUNK_LINES_BYTES_MAX: usize = 8 << 10;

/// A region sent bytes that are not an answer, or an answer that the edge cannot pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not HTTP/1.1: {0}")]
pub struct Broken(pub(super) &'static str);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The body ends after this many further bytes.
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Body {
    /// Takes bytes that arrived. Returns how many of them belong to the body.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        match self {
            Self::Length(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunks) => chunks.take(bytes),
            Self::UntilClose => Ok(bytes.len()),
        }
    }

    /// Takes the body's part out of `bytes`, without the framing of chunks.
    pub fn data(&mut self, bytes: &mut BytesMut) -> Result<Bytes, Broken> {
        if let Self::Chunked(chunks) = self {
            let mut data = Vec::new();
            let taken = chunks.walk(bytes, |part| data.extend_from_slice(part))?;
            bytes.advance(taken);
            return Ok(data.into());
        }
        let taken = self.take(bytes)?;
        Ok(bytes.split_to(taken).freeze())
    }

    /// Whether all of the body arrived. Always false for a body that ends with the connection.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::UntilClose => false,
        }
    }
}

/// Finds the end of a chunked body (RFC 9112 §7.1). The edge passes the bytes on unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunks {
    at: At,
    /// Bytes of the chunk that are still to come; its size, as far as it is read, before that.
    left: u64,
    /// Bytes of ignored lines.
    ignored: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the first digit of a size.
    #[default]
    Size,
    Digits,
    /// Behind the size, in an extension.
    Extension,
    /// Behind the carriage return after a size.
    SizeEnd,
    Data,
    /// Behind a chunk's last byte.
    DataEnd,
    /// Behind the carriage return after it.
    DataLineEnd,
    /// At the beginning of a line behind the last chunk.
    Trailer,
    InTrailer,
    /// Behind the carriage return of an empty line: what follows ends the body.
    LastLineEnd,
    End,
}

impl Chunks {
    /// Takes bytes that arrived. Returns how many of them belong to the body.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        self.walk(bytes, |_| ())
    }

    /// Whether all of the body arrived.
    pub fn is_done(&self) -> bool {
        self.at == At::End
    }

    fn walk(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, Broken> {
        let mut taken = 0;
        while taken < bytes.len() && self.at != At::End {
            if self.at == At::Data {
                let count = (bytes.len() - taken).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= count as u64;
                data(&bytes[taken..taken + count]);
                taken += count;
                if self.left == 0 {
                    self.at = At::DataEnd;
                }
                continue;
            }
            self.at = self.step(bytes[taken])?;
            taken += 1;
        }
        Ok(taken)
    }

    fn step(&mut self, byte: u8) -> Result<At, Broken> {
        if matches!(self.at, At::Extension | At::Trailer | At::InTrailer) {
            self.ignored += 1;
            if self.ignored > CHUNK_LINES_BYTES_MAX {
                return Err(Broken("its chunks say too much"));
            }
        }
        let digit = char::from(byte).to_digit(16);
        match (self.at, byte) {
            (At::Size | At::Digits, _) if let Some(digit) = digit => {
                let shifted = self.left.checked_mul(16).ok_or(Broken("the size of a chunk"))?;
                self.left = shifted | u64::from(digit);
                Ok(At::Digits)
            }
            (At::Digits, b';' | b' ' | b'\t') => Ok(At::Extension),
            (At::Digits | At::Extension, b'\r') => Ok(At::SizeEnd),
            (At::Extension, byte) if byte != b'\n' => Ok(At::Extension),
            (At::SizeEnd, b'\n') if self.left == 0 => Ok(At::Trailer),
            (At::SizeEnd, b'\n') => Ok(At::Data),
            (At::DataEnd, b'\r') => Ok(At::DataLineEnd),
            (At::DataLineEnd, b'\n') => Ok(At::Size),
            (At::Trailer, b'\r') => Ok(At::LastLineEnd),
            (At::InTrailer, b'\n') => Ok(At::Trailer),
            (At::InTrailer, _) => Ok(At::InTrailer),
            (At::Trailer, byte) if byte != b'\n' => Ok(At::InTrailer),
            (At::LastLineEnd, b'\n') => Ok(At::End),
            _ => Err(Broken("its chunks")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    #[test]
    fn chunks_that_are_none_are_refused() {
        for text in [
            "x\r\n",
            "\r\n",
            "1\n",
            "1\r\nab",
            "11111111111111111\r\n",
            "0\r\n\n",
            "1 ;\n",
        ] {
            assert!(Chunks::default().take(text.as_bytes()).is_err(), "{text:?}");
        }
        let endless = format!("1;{}\r\n", "x".repeat(CHUNK_LINES_BYTES_MAX + 1));
        assert!(Chunks::default().take(endless.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn a_chunked_body_ends_where_it_ends_however_it_arrives(
            chunks in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 1..50), any::<bool>()), 0..6),
            has_trailers in any::<bool>(),
            cuts in proptest::collection::vec(1..40_usize, 0..40),
        ) {
            let mut bytes = Vec::new();
            for (data, is_extended) in &chunks {
                let extension = if *is_extended { ";name=\"va lue\"" } else { "" };
                write!(bytes, "{:x}{extension}\r\n", data.len()).unwrap();
                bytes.extend_from_slice(data);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n");
            if has_trailers {
                bytes.extend_from_slice(b"Digest: a\r\nOther: b\r\n");
            }
            bytes.extend_from_slice(b"\r\n");
            let length = bytes.len();
            bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            let (mut body, mut at) = (Body::Chunked(Chunks::default()), 0);
            for cut in cuts.into_iter().chain([bytes.len()]) {
                let part = &bytes[at..bytes.len().min(at + cut)];
                at += body.take(part).unwrap();
                prop_assert_eq!(body.is_done(), at == length);
            }
            prop_assert_eq!(at, length);
        }
    }
}
