//! The bill of materials (tools/sbom) and the check of known vulnerabilities (tools/deny).

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Each package of Cargo.lock as (name, version), with its checksum if it comes from a registry.
fn locked() -> BTreeMap<(String, String), Option<String>> {
    let text = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let packages = text.split("[[package]]\n").skip(1).map(|package| {
        let value = |key: &str| {
            let line = package
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{key} = \"")));
            line.map(|line| line.trim_end_matches('"').to_owned())
        };
        ((value("name").unwrap(), value("version").unwrap()), value("checksum"))
    });
    packages.collect()
}

fn bill(file: &Path) -> Value {
    let made = Command::new(root().join("tools/sbom"))
        .arg(file)
        .env("CARGO_NET_OFFLINE", "true")
        .output()
        .expect("python3 runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn the_bill_of_materials_names_every_crate_of_the_lock_file() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.json"), folder.path().join("second.json"));
    let bill_of_materials = bill(&first);
    bill(&second);
    assert_eq!(
        std::fs::read(first).unwrap(),
        std::fs::read(second).unwrap(),
        "the same lock file gives the same bytes"
    );
    assert_eq!(bill_of_materials["bomFormat"], "CycloneDX");

    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let components = bill_of_materials["components"].as_array().unwrap();
    let crates = components
        .iter()
        .filter(|it| text(&it["purl"]).starts_with("pkg:cargo/"));
    let named: BTreeMap<_, _> = crates
        .map(|it| {
            let checksum = it["hashes"][0]["content"].as_str().map(str::to_owned);
            ((text(&it["name"]), text(&it["version"])), checksum)
        })
        .collect();
    let locked = locked();
    assert!(locked.len() > 400, "{} packages are read from Cargo.lock", locked.len());
    assert_eq!(named, locked);

    let scope = |name: &str| {
        let of_name: BTreeSet<String> = components
            .iter()
            .filter(|it| it["name"] == name)
            .map(|it| text(&it["scope"]))
            .collect();
        of_name.into_iter().collect::<Vec<_>>().join(" ")
    };
    for (name, expected) in [
        ("rustls", "required"),
        ("topology", "required"),
        ("torch", "required"),
        ("proptest", "excluded"),
        ("libfuzzer-sys", "excluded"),
    ] {
        assert_eq!(scope(name), expected, "{name}");
    }
    for component in components
        .iter()
        .filter(|it| it["scope"] == "required" && text(&it["purl"]).starts_with("pkg:cargo/"))
    {
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
    }
    let refs: BTreeSet<String> = components.iter().map(|it| text(&it["bom-ref"])).collect();
    assert_eq!(refs.len(), components.len(), "each has a name of its own");
    for dependency in bill_of_materials["dependencies"].as_array().unwrap() {
        for needed in dependency["dependsOn"].as_array().unwrap() {
            assert!(refs.contains(needed.as_str().unwrap()), "{dependency}");
        }
    }
}

/// tools/deny with a cargo-deny that writes its arguments down and finds no fault.
struct Deny(tempfile::TempDir);

impl Deny {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("cargo-deny");
        std::fs::write(
            &program,
            format!("#!/bin/sh\necho \"$@\" >>{}/calls\n", folder.path().display()),
        )
        .unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        Self(folder)
    }

    fn run(&self, database: Option<&Path>) -> (Output, String) {
        let mut deny = Command::new(root().join("tools/deny"));
        deny.env("CARGO_DENY", self.0.path().join("cargo-deny"))
            .env("DENY_WORK", self.0.path().join("work"))
            .env_remove("MERIDIAN_ADVISORY_DB");
        if let Some(database) = database {
            deny.env("MERIDIAN_ADVISORY_DB", database);
        }
        let output = deny.output().unwrap();
        let calls = std::fs::read_to_string(self.0.path().join("calls")).unwrap_or_default();
        (output, calls)
    }
}

#[test]
fn known_vulnerabilities_are_checked_against_a_copy_of_the_database() {
    let deny = Deny::new();
    let database = deny.0.path().join("copy");
    let advisories = database.join("crates/ring");
    std::fs::create_dir_all(&advisories).unwrap();
    std::fs::write(advisories.join("RUSTSEC-2099-0001.md"), "an advisory").unwrap();
    let (output, calls) = deny.run(Some(&database));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let work = deny.0.path().join("work");
    let last = calls.lines().last().unwrap();
    assert!(last.contains("--offline") && last.ends_with("advisories"), "{calls}");
    let config = std::fs::read_to_string(work.join("deny.toml")).unwrap();
    assert!(
        config.contains(&format!("[advisories]\ndb-path = \"{}\"", work.display())),
        "{config}"
    );
    // The name by which cargo-deny looks for https://github.com/rustsec/advisory-db.
    let copy = work.join("advisory-db-3157b0e258782691");
    assert!(copy.join(".git").exists() && copy.join("crates/ring/RUSTSEC-2099-0001.md").exists());
}

#[test]
fn without_a_copy_a_loud_line_says_that_vulnerabilities_are_not_checked() {
    if root().join("tools/advisory-db/crates").exists() {
        return;
    }
    let deny = Deny::new();
    let (output, calls) = deny.run(None);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("KNOWN VULNERABILITIES ARE NOT CHECKED"),
        "{said}"
    );
    assert!(
        said.contains("MERIDIAN_ADVISORY_DB=DIR"),
        "the line says what to do: {said}"
    );
    assert!(
        calls.contains("bans licenses sources") && !calls.contains("advisories"),
        "{calls}"
    );

    let (output, _) = deny.run(Some(&deny.0.path().join("nowhere")));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("there is no"),
        "a wrong name is no missing copy: {said}"
    );
}
