//! The recognizers hear people, on recordings that `tools/fetch-people` gets, after `tools/setup test`.

use std::path::PathBuf;

use speech::{Cascade, Recognizer, people, score::Score, wav};
use speech_torch::TorchRecognizer;
use tch::Device;

/// The samples of a recording; `None`, with a loud line, on a machine that has not fetched them.
fn recording(file: &str) -> Option<Vec<f32>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../.people")
        .join(file);
    match std::fs::read(&path) {
        Ok(bytes) => Some(wav::decode(&bytes, 60.0).unwrap()),
        Err(_) => {
            crate::say_once("SKIPPED: recordings of people, because they are not fetched; type `tools/fetch-people`");
            None
        }
    }
}

/// The score of a recognizer on the sentences of a part. The bench scores single words: they tell least and are most.
fn sentences(part: &str, recognizer: &dyn Recognizer) -> Option<Score> {
    let mut score = Score::default();
    for row in people::rows()
        .into_iter()
        .filter(|row| row.part == part && row.kind != "word")
    {
        let heard = recognizer.recognize(&recording(&row.file)?).unwrap().text;
        let (said, heard) = (people::comparable(&row.transcript), people::comparable(&heard));
        if said != heard {
            println!("{}: {said:?} was heard as {heard:?}", row.file);
        }
        score.add(&said, &heard);
    }
    Some(score)
}

#[test]
fn people_are_heard() {
    let Some(moonshine) = crate::fetched_moonshine() else {
        return;
    };
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/asr");
    let conformer = TorchRecognizer::load(&models, Device::Cpu).unwrap();
    let small = sentences("dev", &conformer);
    let cascade = Cascade::new(conformer, moonshine, crate::ACCEPTED_FROM);
    for (part, wrong_percent_max, exact_percent_min) in [("dev", 4.0, 85.0), ("kept", 10.0, 70.0)] {
        let Some(score) = sentences(part, &cascade) else { return };
        println!(
            "{part}: {:.1} % of words wrong, {} of {} sentences exact",
            score.word_error_percent(),
            score.exact,
            score.utterances
        );
        assert!(score.utterances >= 20);
        assert!(score.word_error_percent() <= wrong_percent_max);
        assert!(score.exact_percent() >= exact_percent_min);
    }
    // The small recognizer alone understands hardly any person: the reason for the cascade.
    if let Some(small) = small {
        println!(
            "the small recognizer alone: {:.1} % of words wrong",
            small.word_error_percent()
        );
        assert!(small.word_error_percent() > 80.0);
    }
}
