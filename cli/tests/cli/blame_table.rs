//! The table of docs/edge.md, "Who is blamed": each row names the tests that fail when it is not true, and they exist. The rows that
//! name `load.rs` are those that it plays under load, no more and no fewer.

use std::{collections::BTreeSet, fs};

use crate::texts::root;

const PAGE: &str = "docs/edge.md";
/// The folder of the tests that the table names without one.
const EDGE_TESTS: &str = "router/edge/tests/edge";
const LOAD: &str = "load.rs";

/// A test that a row names: its file, and its name or the beginning of that.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    file: String,
    name: String,
}

/// The rows of the table, each with its first and its last cell.
fn rows(page: &str) -> Vec<(&str, &str)> {
    let part = page.split("\n## Who is blamed\n").nth(1).unwrap();
    let part = part.split("\n## ").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| "));
    let cells = rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    // Without the row of the headings.
    let cells = cells.skip(1);
    cells.map(|cells| (cells[0], cells[cells.len() - 1])).collect()
}

/// The tests of a cell: `file.rs` name, name…; `other.rs` name. An error if it names a file alone.
fn named(cell: &str) -> Result<Vec<Named>, String> {
    let mut found = Vec::new();
    for part in cell.split("; ") {
        let Some((file, names)) = part.strip_prefix('`').and_then(|rest| rest.split_once("` ")) else {
            return Err(format!("\"{part}\" names no test"));
        };
        let file = match file.contains('/') {
            true => file.to_owned(),
            false => format!("{EDGE_TESTS}/{file}"),
        };
        for name in names.split(", ") {
            let (file, name) = (file.clone(), name.to_owned());
            found.push(Named { file, name });
        }
    }
    Ok(found)
}

/// The tests of a source file.
fn tests(source: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("#[test") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("async fn ").or(line.strip_prefix("fn ")) {
            found.extend(rest.split('(').next().filter(|_| is_test));
            is_test = false;
        }
    }
    found
}

/// The stories that `load.rs` plays: the names between the brackets of its lists.
fn played(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for list in ["const WRONGS: ", "const STACKS: ", "const STORIES: "] {
        let list = source.split(list).nth(1).unwrap().split("];").next().unwrap();
        for kind in ["Wrong::", "Stack::", "Fate::", "Badly::", "Story::"] {
            let names = list.split(kind).skip(1).map(|rest| {
                let end = rest.find(|letter: char| !letter.is_alphanumeric());
                rest[..end.unwrap_or(rest.len())].to_owned()
            });
            found.extend(names.filter(|name| !["Serves", "ServesBadly"].contains(&name.as_str())));
        }
    }
    found
}

#[test]
fn every_row_of_the_blame_names_tests_that_exist() {
    let page = fs::read_to_string(root().join(PAGE)).unwrap();
    let rows = rows(&page);
    assert!(rows.len() > 50, "only {} rows were found", rows.len());
    let load = fs::read_to_string(root().join(EDGE_TESTS).join(LOAD)).unwrap();
    let mut unplayed = played(&load);
    let all_played = unplayed.clone();
    let mut wrong = Vec::new();
    for (what, cell) in rows {
        let named = match named(cell) {
            Ok(named) => named,
            Err(why) => {
                wrong.push(format!("{what}: {why}"));
                continue;
            }
        };
        for Named { file, name } in named {
            let is_there = if file.ends_with(LOAD) {
                unplayed.remove(&name);
                all_played.contains(&name)
            } else {
                let source = fs::read_to_string(root().join(&file)).unwrap_or_default();
                match name.strip_suffix('…') {
                    Some(begins) => tests(&source).iter().any(|test| test.starts_with(begins)),
                    None => tests(&source).contains(&name.as_str()),
                }
            };
            if !is_there {
                wrong.push(format!("{what}: {file} has no test {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "in the table of {PAGE}:\n{}", wrong.join("\n"));
    assert!(
        unplayed.is_empty(),
        "{LOAD} plays these, and no row of {PAGE} names them: {unplayed:?}"
    );
}

#[test]
fn a_cell_that_names_a_file_alone_is_found() {
    let of = |file: &str, name: &str| Named {
        file: file.to_owned(),
        name: name.to_owned(),
    };
    let cell = "`load.rs` Hangs; `health/probe/src/run.rs` a_probe…, another";
    let run = "health/probe/src/run.rs";
    let expected = vec![
        of("router/edge/tests/edge/load.rs", "Hangs"),
        of(run, "a_probe…"),
        of(run, "another"),
    ];
    assert_eq!(named(cell), Ok(expected));
    for alone in ["`fault.rs`", "`blame.rs` a_device…; `lag.rs`", ""] {
        assert!(named(alone).is_err(), "{alone}");
    }
    let source =
        "#[test]\nfn one() {}\nfn helper() {}\n    #[tokio::test(start_paused = true)]\n    async fn two() {}\n";
    assert_eq!(tests(source), ["one", "two"]);
}
