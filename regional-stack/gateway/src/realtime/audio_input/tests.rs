use speech::{
    fixtures::{at_db, check_heard, hiss, mixed},
    resample::resample,
};

use super::*;

fn wire(samples: &[f32]) -> Vec<u8> {
    pcm::to_s16le(&resample(samples, SAMPLE_RATE, WIRE_RATE).unwrap())
}

fn tone(ms: usize) -> Vec<f32> {
    (0..ms * SAMPLES_PER_MS)
        .map(|at| 0.2 * (at as f32 * 0.07).sin())
        .collect()
}

fn silence(ms: usize) -> Vec<f32> {
    vec![0.0; ms * SAMPLES_PER_MS]
}

#[test]
fn utterances_are_cut_out_of_a_stream_of_odd_pieces() {
    let stream = wire(&[silence(1000), tone(800), silence(1500), tone(600), silence(900)].concat());
    let mut audio_input = AudioInput::new(Some(&TurnDetection::default()), Duration::from_secs(60));
    let mut noticed = Vec::new();
    for piece in stream.chunks(997) {
        noticed.extend(audio_input.append(piece).unwrap());
    }
    let [
        Noticed::Started { at_ms: first, .. },
        Noticed::Stopped { utterance: one, .. },
        Noticed::Started { .. },
        Noticed::Stopped {
            utterance: two,
            at_ms: last,
        },
    ] = &noticed[..]
    else {
        panic!("{noticed:?}");
    };
    let (one, two) = (&one.samples, &two.samples);
    assert!(first.abs_diff(700) <= 30, "{first}");
    assert!((one.len() / SAMPLES_PER_MS).abs_diff(1600) <= 60, "{}", one.len());
    assert!((two.len() / SAMPLES_PER_MS).abs_diff(1400) <= 60, "{}", two.len());
    assert!(last.abs_diff(4400) <= 60, "{last}");
    assert!(audio_input.buffer.len() < 500 * SAMPLES_PER_MS, "silence is not kept");
}

#[test]
fn an_endless_utterance_is_cut_and_memory_stays_bounded() {
    let mut audio_input = AudioInput::new(Some(&TurnDetection::default()), Duration::from_secs(2));
    // Words without a pause that would end them.
    let words = [tone(400), silence(100)].concat().repeat(14);
    let stream = wire(&[silence(300), words].concat());
    let mut stops = 0;
    for piece in stream.chunks(4800) {
        stops += audio_input
            .append(piece)
            .unwrap()
            .iter()
            .filter(|noticed| matches!(noticed, Noticed::Stopped { .. }))
            .count();
        assert!(audio_input.buffer.len() <= 3 * SAMPLE_RATE as usize);
    }
    assert!(stops >= 3, "{stops}");
}

#[test]
fn a_client_that_never_commits_is_stopped() {
    let mut audio_input = AudioInput::new(None, Duration::from_secs(2));
    let second = wire(&tone(1000));
    // A last piece may pass the limit; the one after it does not.
    let accepted = (0..5).filter(|_| audio_input.append(&second).is_ok()).count();
    assert!((2..=3).contains(&accepted), "{accepted}");
    assert!((seconds(&audio_input.commit().samples) - accepted as f64).abs() < 0.01);
    assert!(audio_input.append(&second).is_ok());
    audio_input.clear();
    assert!(audio_input.commit().samples.is_empty());
}

/// Hears a stream in pieces of a size, up to piece `cut`, and rebuilds the audio input from the latest piece that suffices.
fn check_rebuilt(size: usize, commit_every: usize, detection: Option<&TurnDetection>) {
    let stream = wire(&[silence(700), tone(900), silence(900), tone(400)].concat());
    let pieces: Vec<&[u8]> = stream.chunks(size).collect();
    for cut in (1..pieces.len()).step_by(pieces.len().div_ceil(40)) {
        let mut audio_input = AudioInput::new(detection, Duration::from_secs(60));
        let mut offsets = Vec::new();
        for (at, piece) in pieces[..cut].iter().enumerate() {
            offsets.push(audio_input.offset());
            audio_input.append(piece).unwrap();
            if at % commit_every == commit_every - 1 {
                audio_input.commit();
            }
        }
        let from = offsets
            .iter()
            .rposition(|offset| offset.exact_from() <= audio_input.begin());
        let from = from.expect("the first piece always suffices");
        let mut rebuild = Rebuild::at(offsets[from]);
        for (at, piece) in pieces[..cut].iter().enumerate().skip(from) {
            rebuild.append(piece);
            if at % commit_every == commit_every - 1 {
                rebuild.finish();
            }
        }
        let mut rebuilt = rebuild
            .into_audio_input(audio_input.carry(), detection, Duration::from_secs(60))
            .expect("it is the same ear");
        assert_eq!(rebuilt.buffer, audio_input.buffer, "pieces of {size}, {cut} of them");
        for piece in &pieces[cut..] {
            assert_eq!(rebuilt.append(piece), audio_input.append(piece));
        }
        assert_eq!(rebuilt.commit(), audio_input.commit());
    }
}

#[test]
fn the_input_is_rebuilt_to_the_sample_from_its_last_pieces() {
    for size in [9_600, 1_920, 480, 997, 1_003, 331] {
        for commit_every in [usize::MAX, 7, 3, 1] {
            check_rebuilt(size, commit_every, Some(&TurnDetection::default()));
            check_rebuilt(size, commit_every, None);
        }
    }
}

fn recording(name: &str) -> Vec<f32> {
    let path = format!("{}/../speech/testdata/calls/{name}.wav", env!("CARGO_MANIFEST_DIR"));
    speech::wav::decode(&std::fs::read(path).unwrap(), 30.0).unwrap()
}

fn listen(audio_input: &mut AudioInput, samples: &[f32]) -> Vec<Noticed> {
    let stream = wire(samples);
    stream
        .chunks(4_800)
        .flat_map(|piece| audio_input.append(piece).unwrap())
        .collect()
}

fn audio_input() -> AudioInput {
    AudioInput::new(Some(&TurnDetection::default()), Duration::from_secs(25))
}

/// Where each utterance lies, in milliseconds.
fn utterances(noticed: &[Noticed]) -> Vec<(u64, u64)> {
    noticed
        .iter()
        .filter_map(|noticed| match noticed {
            Noticed::Stopped { utterance, .. } => {
                Some((millis(utterance.from), millis(utterance.from + utterance.samples.len())))
            }
            Noticed::Started { .. } => None,
        })
        .collect()
}

#[test]
fn the_room_is_still_known_after_a_commit_a_clear_and_a_change_of_settings() {
    let mut audio_input = audio_input();
    let detection = TurnDetection::default();
    listen(&mut audio_input, &hiss(1_500, -30.0));
    assert!(audio_input.commit().samples.is_empty(), "a room is no utterance");
    assert_eq!(listen(&mut audio_input, &hiss(1_500, -30.0)), []);
    audio_input.clear();
    assert_eq!(listen(&mut audio_input, &hiss(1_500, -30.0)), []);
    audio_input.detect(None);
    listen(&mut audio_input, &hiss(500, -30.0));
    audio_input.clear();
    audio_input.detect(Some(&detection));
    assert_eq!(listen(&mut audio_input, &hiss(1_500, -30.0)), []);
    // Half a second of it would not be enough to learn it anew.
    audio_input.clear();
    let said = at_db(recording("weather-london"), -14.0);
    let (from, to) = (500, 500 + said.len() / SAMPLES_PER_MS);
    let begin = millis(audio_input.begin()) as usize;
    let noticed = listen(&mut audio_input, &mixed(hiss(5_000, -30.0), &said, 500));
    check_heard("after all that", &utterances(&noticed), begin + from, begin + to);
}

#[test]
fn running_speech_is_cut_between_words_goes_on_and_loses_nothing() {
    let mut story = hiss(1_000, -65.0);
    let mut gaps = Vec::new();
    for name in [
        "weather-london",
        "rain-paris",
        "timer-ten-minutes",
        "kitchen-lights-on",
        "time-left",
        "wake-me",
    ]
    .repeat(6)
    {
        // The recordings themselves begin and end in silence; running speech does not.
        let said = recording(name);
        let loud = |s: &f32| s.abs() > 0.01;
        let (from, to) = (
            said.iter().position(loud).unwrap(),
            said.iter().rposition(loud).unwrap(),
        );
        story.extend(&said[from..to]);
        gaps.push(story.len());
        story.extend(hiss(100, -60.0));
    }
    let end_ms = story.len() / SAMPLES_PER_MS;
    assert!(end_ms > 52_000, "{end_ms}");
    story.extend(hiss(1_500, -65.0));
    let noticed = listen(&mut audio_input(), &story);
    let heard = utterances(&noticed);
    assert!(heard.len() >= 3, "{heard:?}");
    for (one, next) in heard.iter().zip(&heard[1..]) {
        assert!(next.0 < one.1, "{heard:?}: something is left out");
        assert!(one.1 - one.0 <= 25_000, "{heard:?}");
        let cut = (one.1 + next.0) as usize / 2 * SAMPLES_PER_MS;
        let level = |at: usize| story[at - 400..at + 400].iter().map(|s| s * s).sum::<f32>();
        let loud = at_db(recording("wake-me"), -20.0)
            .iter()
            .take(800)
            .map(|s| s * s)
            .sum::<f32>();
        assert!(
            level(cut) < 800.0 * 1e-4 || level(cut) < loud / 10.0,
            "cut in a word at {cut}"
        );
    }
    assert!(heard[0].0 <= 1_000 && heard.last().unwrap().1 as usize >= end_ms);
    // Somebody began to speak once; what follows a cut interrupts nobody.
    let interrupting = noticed
        .iter()
        .filter(|noticed| matches!(noticed, Noticed::Started { interrupts: true, .. }));
    assert_eq!(interrupting.count(), 1);
}

#[test]
fn what_is_committed_behind_an_utterance_is_nothing() {
    for rest_db in [-200.0, -50.0, -41.0] {
        let mut audio_input = audio_input();
        let noticed = listen(
            &mut audio_input,
            &[silence(200), recording("stop"), silence(900), hiss(500, rest_db)].concat(),
        );
        assert_eq!(utterances(&noticed).len(), 1);
        assert!(audio_input.commit().samples.is_empty());
    }
    // A word that is not sure yet is committed with the rest.
    let mut audio_input = audio_input();
    listen(&mut audio_input, &[silence(1_000), tone(150)].concat());
    assert!(seconds(&audio_input.commit().samples) > 0.3);
}
