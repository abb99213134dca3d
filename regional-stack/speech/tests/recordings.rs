//! Endpointing and features, tested on the recordings in the repository.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::path::Path;

use speech::{
    SAMPLE_RATE,
    endpoint::{EndpointConfig, EndpointEvent, Endpointer},
    features::{MelSpectrum, RECOGNITION, SYNTHESIS, normalise_for_recognition},
    fixtures::{at_db, check_heard, hiss, mixed},
    griffin_lim::Vocoder,
    wav,
};

const PER_MS: usize = SAMPLE_RATE as usize / 1_000;

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

/// The sound of a quiet room.
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
        // The utterance contains the whole call, and ends soon after it.
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
    // The values have about unit spread. A recording compared with itself, shifted by one word, differs by more than 1.
    let mean = difference / count as f32;
    assert!(mean < 0.35, "{name}: mean difference {mean}");
}

/// Chords that are struck twice a second and fade by 10 dB in between.
fn music(ms: usize, db: f32) -> Vec<f32> {
    const CHORDS: [[f32; 3]; 4] = [
        [220.0, 277.2, 329.6],
        [196.0, 246.9, 293.7],
        [174.6, 220.0, 261.6],
        [164.8, 207.7, 246.9],
    ];
    let sound = (0..ms * PER_MS).map(|at| {
        let seconds = at as f32 / SAMPLE_RATE as f32;
        let chord = CHORDS[(seconds / 2.0) as usize % CHORDS.len()];
        let fade = 0.3 + 0.7 * (-6.0 * (seconds % 0.5)).exp();
        let tones = chord
            .iter()
            .flat_map(|hz| [1.0, 2.0, 3.0].map(|partial| (hz * partial, 1.0 / partial)));
        fade * tones
            .map(|(hz, level)| level * (seconds * hz * std::f32::consts::TAU).sin())
            .sum::<f32>()
    });
    at_db(sound.collect(), db)
}

#[test]
fn a_loud_room_is_not_taken_for_speech_when_a_call_begins() {
    for db in [-60.0, -50.0, -45.0, -40.0, -35.0, -30.0, -25.0, -20.0] {
        for zeros_ms in [0, 50, 150] {
            let noticed = heard_in(&[vec![0.0; zeros_ms * PER_MS], hiss(4_000, db)].concat());
            assert_eq!(noticed, [], "{db} dB behind {zeros_ms} ms of a microphone that starts");
        }
    }
}

#[test]
fn whoever_speaks_first_is_heard_from_the_first_word() {
    for (name, room_db) in [
        ("weather-london", -60.0),
        ("kitchen-lights-on", -45.0),
        ("time-in-tokyo", -40.0),
    ] {
        let said = at_db(call(name), -20.0);
        let to = said.len() / PER_MS;
        let noticed = heard_in(&mixed(hiss(to + 2_000, room_db), &said, 0));
        check_heard(name, &utterances(&noticed), 0, to);
    }
}

#[test]
fn a_command_in_loud_noise_is_one_utterance_and_ends_with_it() {
    let said = at_db(call("weather-london"), -12.0);
    let length = said.len() / PER_MS;
    for db in [-40.0, -30.0, -25.0, -20.0] {
        let noticed = heard_in(&mixed(hiss(20_000, db), &said, 12_000));
        check_heard(
            &format!("noise of {db} dB"),
            &utterances(&noticed),
            12_000,
            12_000 + length,
        );
    }
}

#[test]
fn a_fan_that_starts_is_the_background_after_some_seconds() {
    let said = at_db(call("weather-london"), -12.0);
    let noise = [hiss(2_000, -65.0), hiss(18_000, -22.0)].concat();
    let noticed = heard_in(&mixed(noise, &said, 12_000));
    let heard = utterances(&noticed);
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0].1 < 8_000, "{heard:?}");
    let (from, to) = heard[1];
    assert!(
        (11_500..12_100).contains(&from) && to < 13_000 + said.len() as u64 / 16,
        "{heard:?}"
    );
}

#[test]
fn a_command_over_music_is_heard_and_the_music_is_not_answered_for_ever() {
    let said = at_db(call("weather-london"), -12.0);
    for quiet_ms in [0, 2_000] {
        for db in [-40.0, -30.0] {
            let song = [hiss(quiet_ms, -65.0), music(60_000 - quiet_ms, db)].concat();
            let noticed = heard_in(&mixed(song, &said, 40_000));
            let heard = utterances(&noticed);
            let at = heard.iter().position(|(from, to)| *from < 40_500 && *to > 41_000);
            let (from, to) = heard[at.unwrap_or_else(|| panic!("{db} dB: {heard:?}"))];
            assert!(
                from > 38_500 && to < 40_000 + said.len() as u64 / 16 + 1_500,
                "{db} dB: {heard:?}"
            );
            assert!(heard.len() <= 3, "{db} dB, {quiet_ms} ms of quiet before: {heard:?}");
        }
    }
}

#[test]
fn clicks_and_typing_are_nobody_and_a_short_word_is_somebody() {
    let room = |ms| hiss(ms, -60.0);
    for click_ms in [10, 30, 60, 100] {
        let click = at_db(hiss(click_ms, -10.0), -12.0);
        let noticed = heard_in(&[room(1_500), click, room(1_500)].concat());
        assert_eq!(noticed, [], "a click of {click_ms} ms");
    }
    let tap = [hiss(35, -26.0), room(145)].concat();
    let noticed = heard_in(&[room(1_000), tap.repeat(60), room(1_500)].concat());
    assert_eq!(noticed, [], "typing");
    // Typing that goes on behind a command does not hold the microphone open.
    let said = at_db(call("weather-london"), -15.0);
    let end = 5_000 + said.len() / PER_MS;
    for (tap_ms, tap_db) in [(20, -26.0), (35, -26.0), (35, -15.0), (50, -20.0)] {
        // Denser taps may be words.
        let is_typing = |every_ms: &usize| 3 * (tap_ms + 10) < *every_ms;
        for every_ms in [120, 150, 200, 300, 450]
            .into_iter()
            .filter(|every_ms| is_typing(every_ms))
        {
            let tap = [hiss(tap_ms, tap_db), room(every_ms - tap_ms)].concat();
            let typing = [room(1_000), tap.repeat(30_000 / every_ms), room(1_500)].concat();
            let heard = utterances(&heard_in(&mixed(typing, &said, 5_000)));
            let what = format!("taps of {tap_ms} ms at {tap_db} dB every {every_ms} ms: {heard:?}");
            let [(from, to)] = heard[..] else { panic!("{what}") };
            assert!(from <= 5_150 && (to as usize) < end + 1_000, "{what}, said until {end}");
        }
    }
    for name in ["stop", "what-can-you-do"] {
        let said = at_db(call(name), -22.0);
        let length = said.len() / PER_MS;
        let noticed = heard_in(&mixed(room(4_000), &said, 1_000));
        let [(from, to)] = utterances(&noticed)[..] else {
            panic!("{name}: {noticed:?}")
        };
        assert!(from < 1_100 && to as usize > 1_000 + length / 2, "{name}: {from}..{to}");
    }
}

/// Somebody speaks slowly: each gap within a call is longer by a pause.
#[test]
fn a_slow_speaker_is_not_cut_between_words() {
    let mut gaps = 0;
    for (name, said) in calls() {
        let said = at_db(said, -20.0);
        let frames: Vec<&[f32]> = said.chunks(10 * PER_MS).collect();
        let is_quiet = |frame: &&[f32]| frame.iter().all(|s| s.abs() < 0.003);
        let first = frames.iter().position(|frame| !is_quiet(frame)).unwrap();
        let last = frames.iter().rposition(|frame| !is_quiet(frame)).unwrap();
        for pause_ms in [200, 300, 350] {
            let mut slow = room(1_000);
            let mut quiet = 0;
            for frame in &frames[first..=last] {
                quiet = if is_quiet(frame) { quiet + 1 } else { 0 };
                if quiet == 2 {
                    slow.extend(room(pause_ms));
                    gaps += 1;
                }
                slow.extend(*frame);
            }
            slow.extend(room(1_500));
            let heard = utterances(&heard_in(&slow));
            assert_eq!(heard.len(), 1, "{name} with pauses of {pause_ms} ms: {heard:?}");
        }
    }
    assert!(gaps >= 30, "{gaps} pauses");
}

fn call(name: &str) -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/calls/{name}.wav"));
    wav::decode(&std::fs::read(path).unwrap(), 30.0).unwrap()
}

fn heard_in(samples: &[f32]) -> Vec<EndpointEvent> {
    Endpointer::new(EndpointConfig::default()).feed_all(samples)
}

/// Start and end of each utterance, in milliseconds.
fn utterances(events: &[EndpointEvent]) -> Vec<(u64, u64)> {
    let mut utterances = Vec::new();
    for pair in events.chunks(2) {
        if let [
            EndpointEvent::SpeechStarted { at_ms: from },
            EndpointEvent::SpeechStopped { at_ms: to },
        ] = pair
        {
            utterances.push((*from, *to));
        }
    }
    utterances
}

#[test]
fn the_room_behind_a_word_is_no_speech() {
    let zeros = |ms: usize| vec![0.0; ms * PER_MS];
    for rest_db in [-60.0, -50.0, -41.0] {
        let heard = heard_in(&[zeros(200), call("stop"), zeros(900), hiss(500, rest_db), zeros(600)].concat());
        assert_eq!(utterances(&heard).len(), 1, "{rest_db} dB: {heard:?}");
    }
}
