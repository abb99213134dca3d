//! The house has walls: pure crates stay pure, and each heavy library is linked by one crate only. The graph is asked from
//! cargo, so a dependency that sneaks in through another crate is found too.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// Crates that hold ideas: no runtime, no sockets, no files, no clock, no ambient randomness.
const PURE: [&str; 8] = [
    "topology",
    "verdict",
    "planning",
    "steering",
    "routing",
    "speech",
    "dialogue",
    "simulator",
];

/// What a pure crate must not reach, directly or through others.
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

/// Library → the crates that may name it in their manifests.
const LINKED_BY: [(&str, &[&str]); 7] = [
    ("tch", &["speech-torch"]),
    ("torch-sys", &["speech-torch"]),
    ("redb", &["server"]),
    ("etcd-client", &["server"]),
    ("pingora-core", &["edge"]),
    ("pingora-proxy", &["edge"]),
    ("hickory-proto", &["dns", "fuzz"]),
];

/// Pairs that never see each other: (who, must not reach).
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

/// Package name → names of what it needs to run; build and test dependencies do not count.
fn graph() -> BTreeMap<String, BTreeSet<String>> {
    // Of this platform only: what others need was never downloaded.
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

/// How `from` reaches `to`, if it does.
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
    let graph = graph();
    for pure in PURE {
        assert!(graph.contains_key(pure), "{pure} is gone; change this test with it");
        for impure in IMPURE {
            assert_eq!(path(&graph, pure, impure), None, "{pure} must stay pure");
        }
    }
}

#[test]
fn heavy_libraries_are_linked_by_one_crate() {
    let graph = graph();
    for (library, allowed) in LINKED_BY {
        for (name, needs) in graph.iter().filter(|(name, _)| !is_third_party(name)) {
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
    let graph = graph();
    for (who, whom) in APART {
        assert_eq!(path(&graph, who, whom), None, "{who} must not know {whom}");
    }
}

/// tch is built on torch-sys, pingora-proxy on pingora-core, hickory-resolver on hickory-proto: the walls are between our own crates.
fn is_third_party(name: &str) -> bool {
    ["tch", "pingora", "hickory"]
        .iter()
        .any(|family| name.starts_with(family))
}
