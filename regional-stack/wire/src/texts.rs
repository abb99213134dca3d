//! The sentences about malformed messages between edge and stack. Each is a cause: it stands behind a sentence of the edge or of the
//! stack, which says what that process does and what to type.

use crate::{Load, STATE_BYTES_MAX};

pub(crate) fn not_a_load() -> String {
    format!("not a load; one is written {}", Load::default())
}

pub(crate) const FOREIGN: &str = "not a message of session continuity";
pub(crate) const SHORT: &str = "the message of session continuity ends too early";
pub(crate) const CONTRADICTION: &str = "the fields of the message of session continuity contradict each other";

pub(crate) fn unknown_kind(kind: u8) -> String {
    format!("this version has no message of session continuity of kind {kind}")
}

pub(crate) fn state_too_long(bytes: usize) -> String {
    format!("the state has {bytes} bytes; the limit is {STATE_BYTES_MAX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_one_line_that_fits_behind_a_sentence() {
        for text in [
            not_a_load(),
            FOREIGN.to_owned(),
            SHORT.to_owned(),
            CONTRADICTION.to_owned(),
            unknown_kind(9),
            state_too_long(20_000),
        ] {
            let begins_small = text.starts_with(|letter: char| letter.is_ascii_lowercase());
            assert!(
                begins_small && !text.ends_with(['.', ';', ':']) && text.len() < 120,
                "{text}"
            );
        }
    }
}
