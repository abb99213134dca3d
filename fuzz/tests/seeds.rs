//! Plays every seed to its target. Inputs that once failed stay among the seeds.

use std::{collections::BTreeSet, path::Path};

#[test]
fn every_target_has_seeds_and_holds_against_them() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let folders: BTreeSet<String> = std::fs::read_dir(&corpus)
        .unwrap()
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect();
    let targets: BTreeSet<String> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, targets, "a folder of seeds for every target, and no other");
    for (name, target) in fuzz::TARGETS {
        let mut seeds = 0;
        for seed in std::fs::read_dir(corpus.join(name)).unwrap() {
            let path = seed.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| target(&bytes));
            assert!(outcome.is_ok(), "{name} fails on {}", path.display());
            seeds += 1;
        }
        assert!(seeds > 0, "{name} has no seed");
        target(b"");
    }
}
