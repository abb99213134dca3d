//! The sentences about models that cannot be fetched or chosen. Each says what is wrong, what became of the model where that is in doubt,
//! and after a semicolon what to type. The problems of a manifest stand beside its rules.

use std::{fmt::Display, path::Path};

// A fetch.

pub(crate) fn ships(name: &str, folder: &str) -> String {
    format!("{name} ships with Meridian and is not fetched; get {folder} from the release or the repository again")
}

pub(crate) fn disk(path: &str, why: &dyn Display) -> String {
    format!("cannot use {path}: {why}; check the space (`df`) and the rights of the folder (`ls -l`)")
}

pub(crate) fn busy(folder: &str) -> String {
    format!("another process is fetching models into {folder}; wait for it, and run the command again")
}

pub(crate) fn network(what: &str, why: &str) -> String {
    format!(
        "cannot get {what}: {why}; check the network and the address of the index (--index, PIP_INDEX_URL), and run the command again: it \
         goes on where it stopped"
    )
}

pub(crate) fn no_index(address: &str) -> String {
    format!("{address} is no index of Python packages; give its address with --index or PIP_INDEX_URL")
}

pub(crate) fn missing(file: &str, index: &str) -> String {
    format!("{index} has no {file}; name another index with --index, or a copy of the file with --from")
}

pub(crate) fn cut(what: &str, have: u64, bytes: u64) -> String {
    format!("{what} was cut after {have} of {bytes} bytes; run the command again: it goes on there")
}

pub(crate) fn too_long(what: &str, bytes: u64) -> String {
    format!("{what} is longer than the {bytes} bytes that it should have; the download was stopped. Use another index")
}

pub(crate) fn other_hash(what: &str, found: &str, wanted: &str) -> String {
    format!(
        "{what} has the hash {found} and should have {wanted}; it was not installed. Fetch it again, or from another index"
    )
}

pub(crate) fn bad_archive(package: &str, what: &str) -> String {
    format!("{package}: {what}; use the file that the manifest names")
}

pub(crate) fn cannot_convert(package: &str, why: &dyn Display) -> String {
    format!(
        "cannot convert {package}: {why}; the model that was there stays. Name a package of the manifest's kind, or update Meridian"
    )
}

// The causes in [`cannot_convert`].

/// `part` is one of the graphs of the model.
pub(crate) fn unfit(part: &str, why: &dyn Display) -> String {
    format!("{part}: {why}")
}

pub(crate) fn malformed_graph(byte: usize) -> String {
    format!("the graph is malformed at byte {byte}")
}

pub(crate) fn cut_tokenizer(byte: usize) -> String {
    format!("the tokenizer is cut at byte {byte}")
}

// The choice of a model.

pub(crate) fn no_manifest(path: &Path) -> String {
    format!(
        "cannot read the manifest {}; give another with --manifest",
        path.display()
    )
}

pub(crate) fn no_such_model(name: &str, known: &[&str]) -> String {
    format!("no model is called \"{name}\"; there are {}", known.join(", "))
}

pub(crate) fn not_a_recognizer(model: &str) -> String {
    format!(
        "{model} does not recognise speech, and other models cannot be chosen yet; `meridian models list` shows those that do"
    )
}

pub(crate) fn not_here(model: &str) -> String {
    format!("{model} is not here; run `meridian models fetch {model}` first")
}

pub(crate) fn damaged(model: &str, what: &str) -> String {
    format!("{model} is damaged ({what}); run `meridian models fetch {model}` first")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_says_what_is_wrong_and_what_to_type() {
        let (name, url, file) = ("moonshine-tiny-en", "https://index.example/", "a.whl");
        for text in [
            ships(name, "models/asr"),
            disk("models", &"no space"),
            busy("models"),
            network(url, "no route"),
            no_index(url),
            missing(file, url),
            cut(url, 1, 2),
            too_long(url, 2),
            other_hash(file, "00", "11"),
            bad_archive(file, "it is no archive"),
            cannot_convert(file, &cut_tokenizer(7)),
            cannot_convert(file, &unfit("encoder", &malformed_graph(7))),
            no_manifest(Path::new("models.toml")),
            no_such_model("moonshin", &[name]),
            not_a_recognizer("tts"),
            not_here(name),
            damaged(name, "no weights"),
        ] {
            assert_eq!(text.split("; ").count(), 2, "not two parts: {text}");
            assert!(!text.ends_with(['.', ';', ':']), "{text}");
        }
    }
}
