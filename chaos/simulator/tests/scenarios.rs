//! Every file in chaos/scenarios has its recorded transcript beside it, and what it expects comes true. A change in
//! behaviour is a change in a transcript; `UPDATE_TRANSCRIPTS=1 cargo test -p simulator` records anew.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use simulator::{Record, Scenario, play};
use topology::{Policy, fixtures::three_primaries};

fn scenarios() -> Vec<(PathBuf, Scenario)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|file| file.extension().is_some_and(|it| it == "scenario"))
        .collect();
    files.sort();
    let read = |file: PathBuf| {
        let scenario = Scenario::parse(&std::fs::read_to_string(&file).unwrap());
        let scenario = scenario.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        (file, scenario)
    };
    files.into_iter().map(read).collect()
}

fn play_here(file: &Path, scenario: &Scenario) -> Record {
    let topology = three_primaries().topology;
    play(scenario, &topology, &Policy::default()).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[test]
fn scenarios_play_as_recorded_and_as_expected() {
    let mut wrong = Vec::new();
    let scenarios = scenarios();
    assert!(scenarios.len() >= 10, "only {} scenarios were found", scenarios.len());
    for (file, scenario) in scenarios {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let record = play_here(&file, &scenario);
        assert_eq!(record, play_here(&file, &scenario), "{name} is not repeatable");
        let Record { transcript, broken, .. } = &record;
        for broken in broken {
            wrong.push(format!("{name}: INVARIANT BROKEN: {broken}\n{transcript}"));
        }
        for expectation in &scenario.expectations {
            if let Err(instead) = expectation.judge(&record) {
                let (line, text) = (expectation.line, &expectation.text);
                wrong.push(format!("{name}:{line}: expected {text}, but {instead}\n{transcript}"));
            }
        }
        let recorded = file.with_extension("transcript");
        if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
            std::fs::write(&recorded, transcript).unwrap();
        } else if std::fs::read_to_string(&recorded).unwrap_or_default() != *transcript {
            wrong.push(format!("{name} differs from its transcript:\n{transcript}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn incidents_say_what_they_expect() {
    for (file, scenario) in scenarios() {
        let incident = file.file_name().unwrap().to_string_lossy().starts_with("incident-");
        assert!(
            !incident || scenario.expectations.len() >= 2,
            "{} expects nothing that could be untrue",
            file.display()
        );
    }
}
