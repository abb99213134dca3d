//! The gates with the cascade. The sample runs in every build and in `make soak`; all sounds of a list are heard when they are asked for: half
//! an hour of one core together.

use std::sync::atomic::{AtomicUsize, Ordering};

use speech::{FirstPass as _, Recognizer as _};

use super::{
    CALLERS, CONFORMER, Source, TALKERS, Tested, bangs, cascade, commands, folder, lines, negated_and_asked,
    noise_and_ordinary_sentences, noises, recordings, spoken,
};

#[test]
fn a_sample_of_all_sounds() {
    // The step is prime, so that a sample has every voice.
    if let Some(tested) = cascade(17) {
        noise_and_ordinary_sentences(tested);
        bangs(tested);
        commands(tested);
        negated_and_asked(tested);
    }
}

/// The cascade on every sound.
fn whole() -> Tested {
    cascade(1).expect("type `tools/fetch-models` first: this test needs the large recognizer")
}

#[test]
#[ignore = "ten minutes of one core: every burst of noise and every ordinary sentence"]
fn all_noise_and_ordinary_sentences() {
    noise_and_ordinary_sentences(whole());
}

#[test]
#[ignore = "minutes of one core: every bang and single word"]
fn all_bangs() {
    bangs(whole());
}

#[test]
#[ignore = "minutes of one core: every command"]
fn all_commands() {
    commands(whole());
}

#[test]
#[ignore = "minutes of one core: every negated command and question"]
fn all_that_is_negated_or_asked() {
    negated_and_asked(whole());
}

/// Prints a line for each sound: its list, its words, the transcript and confidence of each recognizer, and the letters that the small
/// one found in the sound.
#[test]
#[ignore = "prints what the bounds of the cascade were chosen by: ten minutes of one core"]
fn calibration_of_the_cascade() {
    let moonshine =
        crate::fetched_moonshine().expect("type `tools/fetch-models` first: this test needs the large recognizer");
    let traps = |kind: &str| -> Vec<Source> {
        let rows = lines("../dialogue/testdata/traps.tsv");
        let texts = rows.into_iter().filter(|row| row[0] == kind && !row[1].ends_with('?'));
        let each = texts.flat_map(|row| {
            CALLERS.iter().map(move |&(voice, speed)| Source::Spoken {
                text: row[1].clone(),
                voice,
                speed,
            })
        });
        each.step_by(3).collect()
    };
    let people = || -> Vec<Source> {
        let rows = speech::people::rows().into_iter().filter(|row| row.part == "dev");
        let source = |row: speech::people::Row| Source::Recording {
            path: folder("../../.people").join(row.file),
            text: row.transcript,
        };
        rows.map(source).collect()
    };
    for (list, sources) in [
        ("recordings", recordings()),
        ("commands", spoken("../dialogue/testdata/commands.tsv", &CALLERS)),
        ("changes", spoken("../dialogue/testdata/changes.tsv", &CALLERS)),
        ("negated", traps("negated")),
        ("question", traps("question")),
        ("people", people()),
        ("ordinary", spoken("../dialogue/testdata/ordinary.txt", &TALKERS)),
        ("noise", noises(false)),
        ("bangs", noises(true)),
    ] {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let samples = source.samples();
                        let (small, spelled) = CONFORMER.recognize_closely(&samples).unwrap();
                        let large = moonshine.recognize(&samples).unwrap();
                        let said = match source {
                            Source::Noise(_) => "",
                            Source::Spoken { text, .. } | Source::Recording { text, .. } => text,
                        };
                        println!(
                            "ROW\t{list}\t{said}\t{}\t{:.3}\t{spelled}\t{}\t{:.3}",
                            small.text, small.confidence, large.text, large.confidence
                        );
                    }
                });
            }
        });
    }
}
