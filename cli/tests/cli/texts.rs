//! The sentences for operators stand in the tables of their crates, where a reviewer reads them side by side: `src/texts.rs` or
//! `src/texts/`. Each table tests the shape of its own sentences; this test finds a sentence that no table has, and a sentence that no
//! test reads.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Folders with tests alone, whose sentences nobody reads but their authors.
const TESTS: [&str; 2] = ["e2e", "fuzz"];

/// Lines that are no sentence: a name and the error of a process; and the sentences of a binary, which cannot see its library's table.
const NO_SENTENCE: [&str; 2] = ["daemon/src/process.rs", "regional-stack/gateway/src/recognition.rs"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Adds the source files below a folder, by their paths from the root.
fn walk(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = folder.join(&name);
        let shown = path.to_str().unwrap().to_owned();
        if TESTS.contains(&shown.as_str()) {
            continue;
        }
        if root().join(&path).is_dir() {
            if !name.starts_with('.') && !["target", "tests", "benches", "node_modules"].contains(&name.as_str()) {
                walk(&path, found);
            }
        } else if name.ends_with(".rs") {
            found.insert(shown, fs::read_to_string(root().join(&path)).unwrap());
        }
    }
}

/// Every source file of the crates, by its path from the root.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(Path::new(""), &mut found);
    assert!(found.len() > 300, "only {} files were found", found.len());
    found
}

/// The folders of the crates with a library.
pub(crate) fn crates() -> Vec<String> {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = text
        .split_once("members = [")
        .and_then(|(_, rest)| rest.split_once(']'));
    let members = members
        .expect("the workspace names its members")
        .0
        .split('"')
        .skip(1)
        .step_by(2);
    let has_library = |folder: &&str| root().join(folder).join("src/lib.rs").exists();
    members.filter(has_library).map(str::to_owned).collect()
}

/// The texts of the source files of a crate.
pub(crate) fn sources_in(crate_folder: &str) -> Vec<String> {
    let mut found = BTreeMap::new();
    walk(&Path::new(crate_folder).join("src"), &mut found);
    found.into_values().collect()
}

fn is_table(path: &str) -> bool {
    path.ends_with("/texts.rs") || path.contains("/src/texts/")
}

/// The tables, by their paths. `every_command_is_one` reads the commands in them.
pub(crate) fn tables() -> BTreeMap<PathBuf, String> {
    let tables = sources().into_iter().filter(|(path, _)| is_table(path));
    tables.map(|(path, text)| (path.into(), text)).collect()
}

/// The arguments of a macro, from behind its bracket to the bracket that closes it.
fn arguments(source: &str) -> &str {
    let (mut depth, mut is_quoted, mut is_escaped) = (1, false, false);
    for (at, letter) in source.char_indices() {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            '(' if !is_quoted => depth += 1,
            ')' if !is_quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &source[..at];
        }
    }
    source
}

/// True if one of the arguments is a text with a blank between two words.
fn has_sentence(arguments: &str) -> bool {
    let quoted = arguments.split('"').skip(1).step_by(2);
    quoted.into_iter().any(|text| text.trim().contains(' '))
}

/// The only file of the command that writes to the terminal, because it escapes hidden letters; and a script for a shell, which has none.
const PRINT: [&str; 2] = ["cli/src/output.rs", "cli/src/manual.rs"];

#[test]
fn the_command_prints_through_one_door() {
    let mut elsewhere = Vec::new();
    for (path, text) in sources() {
        if !path.starts_with("cli/src/") || PRINT.contains(&path.as_str()) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap();
        let ways = ["println!(", "print!(", "io::stdout", "io::stderr", "dbg!("];
        elsewhere.extend(
            ways.iter()
                .filter(|way| code.contains(*way))
                .map(|way| format!("{path}: {way}")),
        );
    }
    assert!(
        elsewhere.is_empty(),
        "print with output::print or output::complain, which show hidden letters instead of obeying them:\n{}",
        elsewhere.join("\n")
    );
}

#[test]
fn every_warning_of_a_log_stands_in_a_table() {
    let mut elsewhere = Vec::new();
    for (path, text) in sources() {
        if is_table(&path) || NO_SENTENCE.contains(&path.as_str()) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap();
        for level in ["tracing::warn!(", "tracing::error!("] {
            let logged = code.split(level).skip(1).map(arguments);
            elsewhere.extend(logged.filter(|it| has_sentence(it)).map(|it| format!("{path}: {it}")));
        }
    }
    assert!(
        elsewhere.is_empty(),
        "put these sentences into src/texts.rs of their crates:\n{}",
        elsewhere.join("\n")
    );
}

/// Where a crate has a table, its errors have their sentences there. These files have others: faults of bytes and of protocols, which
/// stand behind a sentence of the table as its cause.
const CAUSES: [&str; 12] = [
    "cli/src/audit/verify.rs",
    "control-plane/planning/src/audit.rs",
    "control-plane/server/src/store/mirror.rs",
    "control-plane/server/src/store/watch.rs",
    "regional-stack/gateway/src/form.rs",
    "regional-stack/gateway/src/realtime/beginning.rs",
    "regional-stack/gateway/src/realtime/checkpoint.rs",
    "regional-stack/gateway/src/seal.rs",
    "regional-stack/gateway/src/store/folder.rs",
    "router/edge/src/accept/tls.rs",
    "router/edge/src/session/ask.rs",
    "router/edge/src/session/frames.rs",
];

/// The library of HTTP/1.1 of the edge has causes only.
const CAUSES_IN: &str = "router/edge/src/http1/";

#[test]
fn every_error_of_a_crate_with_a_table_has_its_sentence_there() {
    let sources = sources();
    let crates: Vec<&str> = sources
        .keys()
        .filter(|path| is_table(path))
        .filter_map(|path| path.split_once("/src/").map(|(name, _)| name))
        .collect();
    let mut elsewhere = Vec::new();
    for (path, text) in &sources {
        let is_watched = path.split_once("/src/").is_some_and(|(name, _)| crates.contains(&name));
        if !is_watched || is_table(path) || CAUSES.contains(&path.as_str()) || path.starts_with(CAUSES_IN) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap();
        let errors = code.split("#[error(").skip(1).map(arguments);
        // Such as `"{}", texts::not_ready(name)`: a text in the arguments of a table's function is a part of a sentence.
        let errors = errors.filter(|it| has_sentence(it) && !it.contains("texts::"));
        elsewhere.extend(errors.map(|it| format!("{path}: {it}")));
    }
    assert!(
        elsewhere.is_empty(),
        "put these sentences into src/texts.rs of their crates:\n{}",
        elsewhere.join("\n")
    );
}

/// A sentence with a remedy: an error of anyhow with a semicolon, behind which an operator reads what to do or to type. Configurations
/// have theirs beside their keys, in lists of problems.
#[test]
fn every_remedy_stands_in_a_table() {
    let mut elsewhere = Vec::new();
    for (path, text) in sources() {
        if is_table(&path) || NO_SENTENCE.contains(&path.as_str()) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap();
        for made in ["anyhow!(", "bail!(", "ensure!(", "context("] {
            let errors = code.split(made).skip(1).map(arguments);
            let errors = errors.filter(|it| has_remedy(it) && !it.contains("texts::"));
            elsewhere.extend(errors.map(|it| format!("{path}: {it}")));
        }
    }
    assert!(
        elsewhere.is_empty(),
        "put these sentences into src/texts.rs of their crates:\n{}",
        elsewhere.join("\n")
    );
}

/// True if one of the arguments is a text in which a semicolon parts two phrases.
fn has_remedy(arguments: &str) -> bool {
    let quoted = arguments.split('"').skip(1).step_by(2);
    quoted.into_iter().any(|text| text.contains("; "))
}

/// The name of the function or constant that a line of a table defines.
fn defined(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub "))?;
    let line = line.strip_prefix("const fn ").unwrap_or(line);
    let name = line.strip_prefix("fn ").or_else(|| line.strip_prefix("const "))?;
    name.split(['(', '<', ':']).next()
}

#[test]
fn every_sentence_of_a_table_is_read_by_its_test() {
    let mut unread = Vec::new();
    for (path, text) in tables() {
        let (table, test) = text.split_once("#[cfg(test)]\nmod tests {").unwrap_or((&text, ""));
        // The planner's table has its test in a file of its own, which finds unread sentences itself.
        if test.is_empty() && path.starts_with("control-plane/planning") {
            continue;
        }
        let words: Vec<&str> = test
            .split(|letter: char| !letter.is_alphanumeric() && letter != '_')
            .collect();
        let names = table.lines().filter_map(defined);
        unread.extend(
            names
                .filter(|name| !words.contains(name))
                .map(|name| format!("{}: {name}", path.display())),
        );
    }
    assert!(
        unread.is_empty(),
        "add these to the samples of the test in the same file:\n{}",
        unread.join("\n")
    );
}
