//! The dependency fence: pure crates stay pure, and each heavy library is linked by one crate only. The test asks cargo
//! for the graph, so it also finds a dependency that comes in through another crate.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;

/// Pure crates: no runtime, no sockets, no files, no clock, no ambient randomness.
const PURE: [&str; 9] = [
    "topology",
    "wire",
    "verdict",
    "planning",
    "steering",
    "routing",
    "speech",
    "dialogue",
    "simulator",
];

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
    for pure in PURE {
        assert!(GRAPH.contains_key(pure), "{pure} is gone; change this test with it");
        for impure in IMPURE {
            assert_eq!(path(&GRAPH, pure, impure), None, "{pure} must stay pure");
        }
    }
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
