//! Every file in chaos/scenarios has its recorded transcript beside it. A change in behaviour is a change in a transcript;
//! `UPDATE_TRANSCRIPTS=1 cargo test -p simulator` records anew.

use std::path::Path;

use simulator::{Scenario, play};
use topology::{Policy, fixtures::three_primaries};

#[test]
fn scenarios_play_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let (topology, policy) = (three_primaries().topology, Policy::default());
    let mut played = 0;
    let mut differing = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "scenario") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let scenario = Scenario::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let transcript = play(&scenario, &topology, &policy);
        assert_eq!(
            transcript,
            play(&scenario, &topology, &policy),
            "{} is not repeatable",
            file.display()
        );
        assert!(
            !transcript.contains("INVARIANT BROKEN"),
            "{}:\n{transcript}",
            file.display()
        );
        let recorded = file.with_extension("transcript");
        if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
            std::fs::write(&recorded, &transcript).unwrap();
        } else if std::fs::read_to_string(&recorded).unwrap_or_default() != transcript {
            differing.push(format!("{}:\n{transcript}", file.display()));
        }
        played += 1;
    }
    assert!(
        played >= 8,
        "only {played} scenarios were found in {}",
        folder.display()
    );
    assert!(
        differing.is_empty(),
        "these differ from their transcripts:\n{}",
        differing.join("\n")
    );
}
