//! Secrets in the configuration of a process.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use daemon::{
    config::{self, Problems, Rules, parse},
    secrets::Secrets,
};
use serde::Deserialize;

/// The files in configs/ that hold a key.
const EXAMPLES: [&str; 2] = [
    include_str!("../../configs/edge.toml"),
    include_str!("../../configs/stack.toml"),
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    key: Secrets,
    #[serde(default)]
    certificate: PathBuf,
}

impl Rules for Keys {
    fn problems(&self) -> Problems {
        Problems::default()
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.certificate]
    }
}

/// A configuration of a process, with files of keys beside it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn key_file(&self, name: &str, text: &str, mode: u32) {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn load(&self, text: &str) -> Result<Keys, String> {
        let file = self.0.path().join("edge.toml");
        fs::write(&file, text).unwrap();
        config::load(&file).map_err(|error| format!("{error:#}"))
    }
}

#[test]
fn a_key_is_one_secret_or_the_new_and_the_old_one_and_never_shows() {
    let key = |text: &str| parse::<Keys>("edge.toml", &format!("key = {text}")).map(|it| it.key);
    let one = key("\"00ff\"").unwrap();
    assert_eq!((&one.signs[..], &one.also_accepted), (&[0, 255][..], &None));
    let two = key("[\"01\", \"02\"]").unwrap();
    assert_eq!((&two.signs[..], &two.also_accepted), (&[1][..], &Some(vec![2])));
    assert_eq!(key("[\"01\"]").unwrap().also_accepted, None);
    assert_eq!(format!("{two:?}"), "Secrets(hidden)");
    for bad in [
        "7",
        "[]",
        "[\"01\", \"02\", \"03\"]",
        "\"secret\"",
        "[\"01\", \"secret\"]",
        "{ fiel = \"secret\" }",
    ] {
        let error = key(bad).unwrap_err().to_string();
        assert!(
            error.starts_with("edge.toml:1: ") && !error.contains("secret"),
            "{error}"
        );
    }
}

#[test]
fn a_key_file_lies_beside_the_configuration_and_holds_one_key_or_two() {
    let place = Place::new();
    place.key_file("a.key", "# made on Monday\n00ff\n\n", 0o600);
    let one = place.load("key = { file = \"a.key\" }").unwrap().key;
    assert_eq!((&one.signs[..], &one.also_accepted), (&[0, 255][..], &None));
    place.key_file("a.key", "01\n02\n", 0o400);
    let two = place.load("key = { file = \"a.key\" }").unwrap().key;
    assert_eq!((&two.signs[..], &two.also_accepted), (&[1][..], &Some(vec![2])));
}

#[test]
fn a_key_file_that_others_can_read_or_that_is_no_key_is_refused_with_the_line_and_the_remedy() {
    let place = Place::new();
    for (text, mode, remedy) in [
        (
            "c0ffee",
            0o644,
            "can be read by others (mode 0644); make a new key, and chmod 600",
        ),
        ("c0ffee", 0o640, "(mode 0640)"),
        ("", 0o600, "is empty; make a key: (umask 077; openssl rand -hex 32 >"),
        ("c0ffee\nc0ffee\nc0ffee\n", 0o600, "not a key"),
        (
            "c0ffee!",
            0o600,
            "a.key: the key is not hexadecimal; make one with `openssl rand -hex 32`",
        ),
        (&"c0ffee".repeat(1_000), 0o600, "has 6000 bytes and holds no key"),
    ] {
        let _ = fs::remove_file(place.0.path().join("a.key"));
        place.key_file("a.key", text, mode);
        let error = place.load("key = { file = \"a.key\" }").unwrap_err();
        assert!(
            error.contains("edge.toml:1: key: ") && error.contains(remedy),
            "{error}"
        );
        assert!(!error.contains("c0ffee"), "{error}");
    }
    let error = place.load("key = { file = \"b.key\" }").unwrap_err();
    assert!(
        error.contains("there is no file") && error.contains("openssl rand -hex 32 >"),
        "{error}"
    );
    // Nothing here sets the variable: tests share their environment.
    let error = place
        .load("key = { file = \"$CREDENTIALS_DIRECTORY/affinity\" }")
        .unwrap_err();
    assert!(
        error.contains("CREDENTIALS_DIRECTORY is not set") && error.contains("LoadCredential="),
        "{error}"
    );
    let error = place
        .load("key = \"00\"\ncertificate = \"$CREDENTIALS_DIRECTORY/x\"")
        .unwrap_err();
    assert!(error.contains("CREDENTIALS_DIRECTORY is not set"), "{error}");
}

/// The key that an example shows.
fn published(text: &str) -> &str {
    let mut keys = text
        .lines()
        .filter_map(|line| line.split_once("_key = \"")?.1.strip_suffix('"'));
    keys.find(|key| key.len() == 64).expect("the example shows a key")
}

#[test]
fn a_published_example_is_no_key_of_a_process() {
    let place = Place::new();
    for example in EXAMPLES.map(published) {
        let both = format!("key = [\"{}\", \"{}\"]", "5a".repeat(32), example.to_uppercase());
        for text in [format!("key = \"{example}\""), both] {
            let error = place.load(&text).unwrap_err();
            assert!(
                error.contains("edge.toml:1: key: this key is the published example"),
                "{error}"
            );
            assert!(
                error.contains("`openssl rand -hex 32`") && !error.contains(example),
                "{error}"
            );
            parse::<Keys>("configs/edge.toml", &text).expect("the example itself is good");
        }
        place.key_file("a.key", example, 0o600);
        let error = place.load("key = { file = \"a.key\" }").unwrap_err();
        assert!(error.contains("published example"), "{error}");
    }
    place.load(&format!("key = \"{}\"", "5a".repeat(32))).unwrap();
}
