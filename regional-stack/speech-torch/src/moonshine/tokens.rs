//! The tokens of Moonshine, from numbers to text.

use std::path::Path;

use crate::sidecar::ModelError;

/// The bytes of each token.
#[derive(Debug)]
pub(super) struct Tokens(Vec<Vec<u8>>);

/// Stands for the space before a word.
const SPACE: char = '▁';

impl Tokens {
    /// Reads the list at `path`, which must have `count` tokens.
    pub(super) fn load(path: &Path, count: usize) -> Result<Self, ModelError> {
        let unfit = |what: String| ModelError::Unfit {
            path: path.display().to_string(),
            what,
        };
        let text = std::fs::read_to_string(path).map_err(|source| ModelError::Read {
            path: path.display().to_string(),
            source,
        })?;
        let tokens: Result<Vec<_>, _> = text.lines().map(hex::decode).collect();
        let tokens = tokens.map_err(|error| unfit(format!("a line is no hexadecimal ({error})")))?;
        if tokens.len() != count {
            return Err(unfit(format!(
                "it has {} tokens, and the network {count}",
                tokens.len()
            )));
        }
        Ok(Self(tokens))
    }

    /// The text of a row of tokens. Marks such as the beginning of a text have no text.
    pub(super) fn text(&self, tokens: &[i64]) -> String {
        let bytes = |token: &i64| usize::try_from(*token).ok().and_then(|token| self.0.get(token));
        let is_mark = |bytes: &&Vec<u8>| bytes.starts_with(b"<") && bytes.ends_with(b">") && bytes.len() > 2;
        let row: Vec<u8> = tokens
            .iter()
            .filter_map(bytes)
            .filter(|token| !is_mark(token))
            .flatten()
            .copied()
            .collect();
        let text = String::from_utf8_lossy(&row).replace(SPACE, " ");
        text.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn tokens_become_text_and_letters_may_be_split_between_them() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for token in ["<s>", "▁go", "▁for", "ward"] {
            writeln!(file, "{}", hex::encode(token)).unwrap();
        }
        // The two bytes of "é".
        writeln!(file, "c3\na9").unwrap();
        let tokens = Tokens::load(file.path(), 6).unwrap();
        assert_eq!(tokens.text(&[0, 1, 2, 3]), "go forward");
        assert_eq!(tokens.text(&[1, 4, 5]), "goé");
        assert_eq!(tokens.text(&[4, -1, 99]), "\u{fffd}");
        let error = Tokens::load(file.path(), 7).unwrap_err().to_string();
        assert!(error.contains("it has 6 tokens, and the network 7"), "{error}");
    }
}
