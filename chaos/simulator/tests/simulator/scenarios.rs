//! Every file in chaos/scenarios has its recorded transcript beside it, and meets its expectations. A change in
//! behaviour is a change in a transcript; `UPDATE_TRANSCRIPTS=1 cargo test -p simulator` records them again.

use std::path::{Path, PathBuf};

use simulator::{
    Record, Scenario, play, why,
    why::{COLUMNS_MAX, LINES_MAX, NoAnswer},
};
use topology::{Policy, RegionId, fixtures::three_primaries};

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
    assert!(scenarios.len() >= 30, "only {} scenarios were found", scenarios.len());
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

#[test]
fn every_question_is_answered_on_one_screen() {
    let topology = three_primaries().topology;
    let regions = topology.regions.keys().cycle();
    // Each region in some scenarios; all regions in all scenarios would take long.
    for ((file, scenario), region) in scenarios().into_iter().zip(regions) {
        let screen = why(&scenario, &topology, &Policy::default(), region, None)
            .unwrap()
            .to_string();
        let widest = screen.lines().map(|line| line.chars().count()).max().unwrap();
        let (lines, file) = (screen.lines().count(), file.display());
        assert!(
            lines <= LINES_MAX && widest <= COLUMNS_MAX,
            "{file}: {lines} x {widest}\n{screen}"
        );
    }
}

#[test]
fn a_region_explains_itself_in_the_middle_of_an_incident() {
    let topology = three_primaries().topology;
    let (_, github) = scenarios()
        .into_iter()
        .find(|(file, _)| file.ends_with("incident-github-2018.scenario"))
        .unwrap();
    let ask = |region: &str, at: Option<u64>| {
        let region = RegionId::new(region).unwrap();
        let at = at.map(std::time::Duration::from_secs);
        why(&github, &topology, &Policy::default(), &region, at)
    };
    let screen = ask("us-east", Some(75)).unwrap().to_string();
    for said in [
        "us-east (primary, backups us-west, eu-central) at 75.0 s, plan 2@1",
        "evacuated since 00:00:50.000",
        "go to us-west 100 %",
        "down: gateway connection success below 95 % for 2 ticks",
        "a2: failover by alice, awaiting-approval: writes are failing",
        "device-registry: 7230 s behind, its RPO is 3600 s",
    ] {
        let flat = screen.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(said), "{said}\nnot in\n{screen}");
    }
    assert!(
        ask("us-west", Some(75))
            .unwrap()
            .to_string()
            .contains("sessions of us-east 100 %")
    );
    assert!(matches!(ask("us-eats", None), Err(NoAnswer::NoRegion(_))));
}
