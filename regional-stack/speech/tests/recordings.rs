//! Endpointing and features on the recordings that are kept with the code.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::path::Path;

use speech::{
    SAMPLE_RATE,
    endpoint::{EndpointConfig, EndpointEvent, Endpointer},
    features::{MelSpectrum, RECOGNITION, SYNTHESIS, normalise_for_recognition},
    griffin_lim::Vocoder,
    wav,
};

fn calls() -> Vec<(String, Vec<f32>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/calls");
    let table = std::fs::read_to_string(folder.join("calls.tsv")).unwrap();
    let names = table.lines().map(|line| line.split('\t').next().unwrap().to_owned());
    names
        .map(|name| {
            (
                name.clone(),
                wav::decode(&std::fs::read(folder.join(&name)).unwrap(), 10.0).unwrap(),
            )
        })
        .collect()
}

/// What a quiet room sounds like.
fn room(ms: usize) -> Vec<f32> {
    let mut seed = 7u32;
    let step = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((seed >> 8) as f32 / 8_388_608.0 - 1.0) * 0.0006
    };
    std::iter::repeat_with(step)
        .take(ms * SAMPLE_RATE as usize / 1_000)
        .collect()
}

#[test]
fn every_call_is_one_utterance() {
    let calls = calls();
    assert!(calls.len() >= 12);
    for (name, call) in calls {
        let call_ms = (call.len() / 16) as u64;
        let mut ear = Endpointer::new(EndpointConfig::default());
        let events = ear.feed_all(&[room(1_000), call, room(1_200)].concat());
        let [
            EndpointEvent::SpeechStarted { at_ms: start },
            EndpointEvent::SpeechStopped { at_ms: stop },
        ] = events[..]
        else {
            panic!("{name}: {events:?}")
        };
        // All of the call is inside, and the end is known soon after it.
        assert!((600..=1_150).contains(&start), "{name} starts at {start} ms");
        assert!(
            (call_ms + 900..=call_ms + 1_700).contains(&stop),
            "{name} of {call_ms} ms stops at {stop} ms"
        );
    }
}

#[test]
fn a_call_sounds_alike_after_analysis_and_synthesis() {
    let (name, call) = calls().swap_remove(3);
    let again = Vocoder::new(SYNTHESIS).sound(&MelSpectrum::new(SYNTHESIS).log_power(&call));
    assert!(again.len().abs_diff(call.len()) < SYNTHESIS.hop);
    let spectrum = MelSpectrum::new(RECOGNITION);
    let (mut a, mut b) = (
        spectrum.log_power(&call),
        spectrum.log_power(&again[..call.len().min(again.len())]),
    );
    normalise_for_recognition(&mut a);
    normalise_for_recognition(&mut b);
    let (mut difference, mut count) = (0.0, 0u32);
    for (x, y) in a.values.iter().zip(&b.values) {
        difference += (x - y).abs();
        count += 1;
    }
    // The values have about unit spread; a recording against itself shifted by a word differs by more than 1.
    let mean = difference / count as f32;
    assert!(mean < 0.35, "{name}: mean difference {mean}");
}
