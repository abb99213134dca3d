//! Tests that this program takes every command that a text tells an operator to type, with all its required options, `--reason`
//! above all. They read texts in the sources, and as printed in the transcripts.

use std::{fs, path::Path};

use clap::Parser as _;

use crate::options::Options;

/// The folders with texts for operators.
const SOURCES: [&str; 9] = [
    "health/verdict/src",
    "control-plane/planning/src",
    "control-plane/server/src",
    "control-plane/api/src",
    "control-plane/identity/src",
    "topology/src",
    "router/auth/src",
    "router/edge/src",
    "cli/src",
];
/// Values for the blanks of a command: a path, a role, a time or an id, and for any other blank a word that may be a region, an action
/// or a stack.
const BLANKS: [(&str, &str); 8] = [
    ("{kind}", "topology"),
    ("FILE", "file.toml"),
    ("ROLE", "viewer"),
    ("KIND/NAME", "edge/edge-dub"),
    ("TIME", "1h"),
    ("IP", "127.0.0.1"),
    ("ADDRESS", "127.0.0.1:9000"),
    ("ADDRESS:PORT", "127.0.0.1:9000"),
];
const ANYTHING: &str = "127.0.0.1:9000";

/// The commands between backquotes.
fn commands(text: &str) -> Vec<String> {
    let spans = text.split('`').skip(1).step_by(2);
    spans
        .filter(|span| span.starts_with("meridian "))
        .map(str::to_owned)
        .collect()
}

/// The text of a source as it is printed: without comments and unit tests, and with lines joined where a string goes on in the next
/// one.
fn printed(source: &str) -> String {
    let mut joined = String::new();
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = source.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    for line in lines {
        match line.strip_suffix('\\') {
            Some(goes_on) => joined += goes_on,
            None => joined = joined + line + "\n",
        }
    }
    joined
}

/// The command with something in place of each blank.
fn filled(command: &str) -> Vec<String> {
    let fill = |word: &str| match BLANKS.iter().find(|(blank, _)| *blank == word) {
        Some((_, value)) => (*value).to_owned(),
        None if word.starts_with('{') => ANYTHING.to_owned(),
        None => word.to_owned(),
    };
    command.split_whitespace().map(fill).collect()
}

/// Every file of a folder and of those in it.
fn files(folder: &Path, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|it| it == extension) {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path.display().to_string(), text));
        }
    }
    found
}

#[test]
fn a_command_in_a_text_can_be_typed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let transcripts = files(&root.join("chaos/scenarios"), "transcript");
    let sources = SOURCES.iter().flat_map(|folder| files(&root.join(folder), "rs"));
    // This file has commands that are wrong on purpose.
    let sources = sources.filter(|(file, _)| !file.ends_with("src/printed.rs"));
    let sources = sources.map(|(file, source)| (file, printed(&source)));
    let (mut tried, mut wrong) = (0, Vec::new());
    for (file, text) in transcripts.into_iter().chain(sources) {
        // Each line for itself: an odd backquote in one must not hide the commands of the next.
        for command in text.lines().flat_map(commands) {
            tried += 1;
            if let Err(error) = Options::try_parse_from(filled(&command)) {
                let error = error.to_string();
                wrong.push(format!(
                    "{file}: {command}: {}",
                    error.lines().next().unwrap_or_default()
                ));
            }
        }
    }
    assert!(
        tried > 150,
        "only {tried} commands were found; are they still written that way?"
    );
    wrong.dedup();
    assert!(wrong.is_empty(), "cannot be typed:\n{}", wrong.join("\n"));
}

#[test]
fn a_command_without_what_it_needs_is_found() {
    let source = "// `meridian comment`\nlet text = format!(\n    \"it waits; `meridian failover \\\n     {region}` moves it\"\n);\n";
    let found: Vec<String> = printed(source).lines().flat_map(commands).collect();
    assert_eq!(found, ["meridian failover {region}"]);
    assert!(
        Options::try_parse_from(filled(&found[0])).is_err(),
        "a failover needs a reason"
    );
    assert!(Options::try_parse_from(filled("meridian failover {region} --reason WHY")).is_ok());
}
