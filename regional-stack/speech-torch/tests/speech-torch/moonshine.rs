//! Moonshine and its traps: silence, sounds without words, cut sentences, and threads.

use std::sync::LazyLock;

use speech::{Recognizer, SAMPLE_RATE, people, wav};
use speech_torch::Moonshine;
use tch::Device;

static MOONSHINE: LazyLock<Option<Moonshine>> = LazyLock::new(crate::fetched_moonshine);

/// A recording of somebody who says "go forward ten meters"; `None` on a machine that could not fetch it.
fn go_forward() -> Option<Vec<f32>> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.people/ps-goforward.wav");
    let Ok(bytes) = std::fs::read(&path) else {
        crate::say_once("SKIPPED: sentences of people, because they are not fetched; type `tools/fetch-people`");
        return None;
    };
    assert!(people::rows().iter().any(|row| row.file == "ps-goforward.wav"));
    Some(wav::decode(&bytes, 30.0).unwrap())
}

fn seconds(seconds: f32) -> usize {
    (seconds * SAMPLE_RATE as f32) as usize
}

#[test]
fn figures_come_as_words() {
    let (Some(moonshine), Some(sound)) = (MOONSHINE.as_ref(), go_forward()) else {
        return;
    };
    // The network writes "Go forward 10 meters."
    let heard = moonshine.recognize(&sound).unwrap();
    assert_eq!(heard.text, "go forward ten meters");
    assert!(heard.confidence > 0.8, "{heard:?}");
}

#[test]
fn the_silence_around_a_sentence_changes_nothing() {
    let (Some(moonshine), Some(sound)) = (MOONSHINE.as_ref(), go_forward()) else {
        return;
    };
    for (before, after) in [(0.0, 0.5), (0.3, 0.0), (1.0, 1.5)] {
        let padded = [vec![0.0; seconds(before)], sound.clone(), vec![0.0; seconds(after)]].concat();
        let heard = moonshine.recognize(&padded).unwrap();
        assert_eq!(
            heard.text, "go forward ten meters",
            "{before} s before, {after} s after"
        );
    }
}

#[test]
fn sounds_without_words_are_no_words() {
    let Some(moonshine) = MOONSHINE.as_ref() else { return };
    let tone = |hz: f32| -> Vec<f32> {
        (0..seconds(1.0))
            .map(|at| 0.3 * (at as f32 * hz * std::f32::consts::TAU / SAMPLE_RATE as f32).sin())
            .collect()
    };
    for (name, samples) in [
        ("nothing", vec![]),
        ("one sample", vec![0.5]),
        ("silence", vec![0.0; seconds(2.0)]),
        ("a hum", tone(50.0)),
        ("a beep", tone(1000.0)),
        ("no numbers", vec![f32::NAN; seconds(1.0)]),
        ("no number at all", vec![f32::INFINITY; seconds(1.0)]),
    ] {
        let heard = moonshine.recognize(&samples).unwrap();
        assert!((0.0..=1.0).contains(&heard.confidence), "{name}: {heard:?}");
        assert!(heard.text.is_empty() || heard.confidence < 0.6, "{name}: {heard:?}");
    }
    let error = moonshine.recognize(&vec![0.1; seconds(31.0)]).unwrap_err().to_string();
    assert!(error.contains("30 s limit"), "{error}");
}

#[test]
fn a_sentence_that_is_cut_anywhere_makes_no_loop() {
    let (Some(moonshine), Some(sound)) = (MOONSHINE.as_ref(), go_forward()) else {
        return;
    };
    for end in [0.3, 0.7, 1.1, 1.6, 2.2] {
        let heard = moonshine.recognize(&sound[..seconds(end)]).unwrap();
        // Nobody says more than six words in a second; a loop does.
        let words = heard.text.split_whitespace().count();
        assert!(words <= 2 + (6.0 * end) as usize, "cut at {end} s: {heard:?}");
    }
}

#[test]
fn threads_hear_the_same_at_the_same_time() {
    let (Some(moonshine), Some(sound)) = (MOONSHINE.as_ref(), go_forward()) else {
        return;
    };
    let alone = moonshine.recognize(&sound).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                assert_eq!(moonshine.recognize(&sound).unwrap(), alone);
                // One thread for each network: a second one waits more than it computes.
                assert_eq!(tch::get_num_threads(), 1);
            });
        }
    });
}

#[test]
fn a_model_that_was_cut_or_changed_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |folder: &std::path::Path| Moonshine::load(folder, Device::Cpu, 1).unwrap_err().to_string();
    assert!(refused(folder.path()).contains("cannot read"));
    std::fs::write(folder.path().join("model.safetensors"), b"cut").unwrap();
    std::fs::write(folder.path().join("tokens.txt"), b"00\n").unwrap();
    let sidecar =
        r#"{"kind": "moonshine", "version": "1", "sample_rate": 16000, "weights_sha256": "00", "tokens_sha256": "00"}"#;
    std::fs::write(folder.path().join("model.json"), sidecar).unwrap();
    assert!(refused(folder.path()).contains("does not have the hash that its sidecar names"));
    let other = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/asr");
    assert!(refused(&other).contains("a moonshine is needed"));
}
