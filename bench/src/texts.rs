//! The sentences of benches that cannot measure, for the developer who started one. The sentences of a measurement that contradicts
//! itself stand beside its code: they name a fault of the program that is measured, and there is nothing to type.

use std::path::Path;

use anyhow::{Error, anyhow};

// The command line.

/// `options` are those that the bench takes, as in "[--runs N]".
pub fn usage(bench: &str, options: &str) -> Error {
    anyhow!("an option is unknown or lacks its value; type: {bench} {options}")
}

/// `option` is "--runs" or "--seconds".
pub fn not_a_number(option: &str) -> String {
    format!("the value of {option} is no whole number; write one, such as {option} 3")
}

/// `options` are one or several, joined by "and".
pub fn not_positive(options: &str) -> Error {
    anyhow!("{options} must be at least 1; write a larger number")
}

/// `parts` are those of the bench.
pub fn no_such_part(part: &str, parts: &str) -> Error {
    anyhow!("there is no part \"{part}\"; there are {parts}")
}

// The machine.

/// `program` is one that `tools/setup bench` installs.
pub fn cannot_start(program: &str) -> String {
    format!("cannot start {program}; `tools/setup bench` installs it")
}

/// The programs of this workspace that a bench starts are built apart from it.
pub fn no_program(program: &Path) -> Error {
    anyhow!(
        "cannot find {}; build all programs first: make build",
        program.display()
    )
}

/// `what` is a file or folder of the repository.
pub fn not_found(what: &str) -> String {
    format!("cannot find {what} around this program; start it from target/ in the repository")
}

/// Recordings of people are no part of the repository.
pub fn no_recording(file: &Path) -> String {
    format!("cannot read {}; tools/fetch-people gets the recordings", file.display())
}

/// `path` is a folder.
pub fn cannot_make(path: &Path) -> String {
    format!(
        "cannot make {}; check the space and the rights of the folder",
        path.display()
    )
}

/// `path` is a file.
pub fn cannot_write(path: &Path) -> String {
    format!(
        "cannot write {}; check the space and the rights of the folder",
        path.display()
    )
}

/// `file` is below docs/benchmarks and holds the figures of all parts of a bench.
pub fn not_figures(file: &Path) -> String {
    format!(
        "{} does not hold the figures of a bench; restore it: git checkout {}",
        file.display(),
        file.display()
    )
}

/// The cause in [`not_figures`] for JSON that is no object.
pub const NO_OBJECT: &str = "it is no JSON object";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_to_do() {
        let path = Path::new("target/bench");
        for text in [
            usage("bench-dns", "[--runs N] [--seconds N]").to_string(),
            not_a_number("--runs"),
            not_positive("--runs and --seconds").to_string(),
            no_such_part("x", "http, frames").to_string(),
            cannot_start("wrk"),
            no_program(path).to_string(),
            not_found("docs/"),
            no_recording(path),
            cannot_make(path),
            cannot_write(path),
            not_figures(path),
        ] {
            assert_eq!(text.split("; ").count(), 2, "not two parts: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 160, "{text}");
        }
        assert!(!NO_OBJECT.contains("; "), "{NO_OBJECT}");
    }
}
