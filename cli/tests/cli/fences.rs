//! The dependency fence: pure crates stay pure, and each heavy library is linked by one crate only. The test asks cargo
//! for the graph, so it also finds a dependency that comes in through another crate.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;

use crate::texts;

/// Crates that a pure crate must not reach, directly or through others.
const IMPURE: [&str; 12] = [
    "tokio",
    "mio",
    "socket2",
    "hyper",
    "axum",
    "tonic",
    "reqwest",
    "redb",
    "tch",
    "getrandom",
    "tracing",
    "daemon",
];

/// Pairs (pure, library): the pure crate may link the library, although that reaches an impure crate.
///
/// `ring` and `jsonwebtoken` verify the signatures of tokens, and reach getrandom because they can sign too. Only the fixtures of `auth`
/// sign; `auth_draws_no_random_numbers` sees to that.
const MAY_LINK: [(&str, &str); 2] = [("auth", "ring"), ("auth", "jsonwebtoken")];

/// A heavy library, and the crates whose manifests may name it.
const LINKED_BY: [(&str, &[&str]); 7] = [
    ("tch", &["speech-torch"]),
    ("torch-sys", &["speech-torch"]),
    ("redb", &["server"]),
    ("etcd-client", &["server"]),
    ("pingora-core", &["edge"]),
    ("pingora-proxy", &["edge"]),
    ("hickory-proto", &["dns", "fuzz"]),
];

/// Pairs (from, to): `from` must not reach `to`.
const APART: [(&str, &str); 8] = [
    ("planning", "routing"),
    ("routing", "planning"),
    ("steering", "verdict"),
    ("edge", "planning"),
    ("edge", "server"),
    ("dns", "planning"),
    ("dns", "server"),
    ("gateway", "server"),
];

/// Package name → names of its run-time dependencies, without those for builds and tests. Cargo is asked once.
static GRAPH: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(graph);

fn graph() -> BTreeMap<String, BTreeSet<String>> {
    // Of this platform only: cargo works offline here, and other platforms' packages were never downloaded.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--filter-platform",
            &platform,
            "--manifest-path",
        ])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .output()
        .expect("cargo runs, since it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let array = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let names: BTreeMap<String, String> = array(&metadata, "packages")
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in array(&metadata["resolve"], "nodes") {
        let needs = graph.entry(names[&text(&node["id"])].clone()).or_default();
        for dependency in array(&node, "deps") {
            if array(&dependency, "dep_kinds")
                .iter()
                .any(|kind| kind["kind"].is_null())
            {
                needs.insert(names[&text(&dependency["pkg"])].clone());
            }
        }
    }
    graph
}

/// The crates in the column "pure" of the table of ARCHITECTURE.md: no runtime, no sockets, no files, no clock, no ambient randomness.
fn pure_crates() -> BTreeSet<String> {
    let page = std::fs::read_to_string(texts::root().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = page
        .split_once("| folder | pure | I/O |")
        .expect("the page has its table of parts");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let columns = rows.filter_map(|row| row.split('|').nth(2));
    let quoted = columns.flat_map(|column| column.split('`').skip(1).step_by(2));
    // A call, as in `plan(input, now)`, or a folder is no crate.
    let is_name = |name: &&str| name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-');
    quoted.filter(is_name).map(str::to_owned).collect()
}

/// The path from `from` to `to` in the graph, if there is one.
fn path(graph: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> Option<String> {
    let mut paths = vec![vec![from.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(path) = paths.pop() {
        let last = path.last().expect("a path has a beginning").clone();
        if last == to {
            return Some(path.join(" → "));
        }
        if seen.insert(last.clone()) {
            for next in graph.get(&last).into_iter().flatten() {
                paths.push([path.clone(), vec![next.clone()]].concat());
            }
        }
    }
    None
}

#[test]
fn pure_crates_stay_pure() {
    let pure_crates = pure_crates();
    assert!(pure_crates.len() >= 10, "ARCHITECTURE.md names only {pure_crates:?}");
    for pure in &pure_crates {
        let mut graph = GRAPH.clone();
        let needs = graph.get_mut(pure);
        let needs =
            needs.unwrap_or_else(|| panic!("ARCHITECTURE.md names the pure crate {pure}, which does not exist"));
        needs.retain(|need| !MAY_LINK.contains(&(pure, need)));
        for impure in IMPURE {
            assert_eq!(path(&graph, pure, impure), None, "{pure} must stay pure");
        }
    }
}

#[test]
fn auth_draws_no_random_numbers() {
    for (pure, library) in MAY_LINK {
        assert!(
            GRAPH[pure].contains(library),
            "{pure} does not link {library}; take the exception back"
        );
    }
    let mut drawing = Vec::new();
    for file in std::fs::read_dir(texts::root().join("router/auth/src")).unwrap() {
        let file = file.unwrap().path();
        if std::fs::read_to_string(&file).unwrap().contains("rand::") {
            drawing.push(file.file_name().unwrap().to_owned());
        }
    }
    assert_eq!(
        drawing,
        ["fixtures.rs"],
        "these files of auth draw random numbers; take them as arguments"
    );
}

#[test]
fn heavy_libraries_are_linked_by_one_crate() {
    for (library, allowed) in LINKED_BY {
        for (name, needs) in GRAPH.iter().filter(|(name, _)| !is_third_party(name)) {
            let links = needs.contains(library);
            assert!(
                !links || allowed.contains(&name.as_str()),
                "{name} must not link {library}; only {allowed:?} may"
            );
        }
    }
}

#[test]
fn parts_that_must_not_know_each_other_do_not() {
    for (who, whom) in APART {
        assert_eq!(path(&GRAPH, who, whom), None, "{who} must not know {whom}");
    }
}

/// Third-party families link each other (tch → torch-sys, pingora-proxy → pingora-core, hickory-resolver →
/// hickory-proto). The fence is for this workspace's crates.
fn is_third_party(name: &str) -> bool {
    ["tch", "pingora", "hickory"]
        .iter()
        .any(|family| name.starts_with(family))
}
