//! The sentences about models that cannot be used: the stack does not start with one, and the sentence says what to do. The programs
//! of developers in `bin` have their own.

use std::fmt::Display;

pub(crate) fn cannot_read(path: &str, why: impl Display, files: [&str; 2]) -> String {
    let [weights, sidecar] = files;
    format!("cannot read {path}: {why}; point the model setting at a folder with {weights} and {sidecar}")
}

pub(crate) fn not_a_sidecar(path: &str, why: impl Display) -> String {
    format!("{path} is not a model sidecar ({why}); use the one that ships with the weights")
}

pub(crate) fn other_hash(path: &str) -> String {
    format!("{path} does not have the hash that its sidecar names; fetch the model again, both files together")
}

pub(crate) fn other_kind(path: &str, found: &str, wanted: &str) -> String {
    format!("{path} describes a {found}, and a {wanted} is needed; put the model of a {wanted} there")
}

pub(crate) fn unfit(path: &str, what: &str) -> String {
    format!("{path} does not fit this version of meridian: {what}; use the model that ships with it")
}

pub(crate) fn torch_refuses(path: &str, why: impl Display) -> String {
    format!("libtorch cannot load {path}: {why}; fetch the model again: `meridian models fetch`")
}

pub(crate) fn bad_lexicon(line: usize) -> String {
    format!(
        "line {line} of the lexicon is not a word, a tab and phones; make it again with tools/synthesise-speech lexicon"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_to_do() {
        for text in [
            cannot_read("asr", "no such file", ["model.safetensors", "model.json"]),
            not_a_sidecar("model.json", "no kind"),
            other_hash("model.safetensors"),
            other_kind("model.json", "voice", "recognizer"),
            unfit("model.json", "40 bands"),
            torch_refuses("model.safetensors", "no header"),
            bad_lexicon(3),
        ] {
            assert!(text.contains("; ") && !text.ends_with(['.', ';', ':']), "{text}");
        }
    }
}
