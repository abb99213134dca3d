use super::*;

fn noise(ms: usize, level: f32, seed: &mut u32) -> Vec<f32> {
    (0..ms * 16)
        .map(|_| {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((*seed >> 8) as f32 / 8_388_608.0 - 1.0) * level
        })
        .collect()
}

fn voice(ms: usize) -> Vec<f32> {
    (0..ms * 16).map(|i| 0.2 * (i as f32 * 0.07).sin()).collect()
}

fn check(audio: &[f32], config: EndpointConfig, want: &[(u64, u64)]) {
    let events = Endpointer::new(config).feed_all(audio);
    assert_eq!(events.len(), want.len() * 2, "{events:?}");
    for (pair, (start, stop)) in events.chunks(2).zip(want) {
        let [
            EndpointEvent::SpeechStarted { at_ms: a },
            EndpointEvent::SpeechStopped { at_ms: b },
        ] = pair
        else {
            panic!("{pair:?}")
        };
        assert!(
            a.abs_diff(*start) <= 30 && b.abs_diff(*stop) <= 30,
            "{a}..{b}, wanted {start}..{stop}"
        );
    }
}

#[test]
fn an_utterance_has_its_padding_and_its_silence() {
    let mut seed = 1;
    let audio = [
        noise(1_000, 0.001, &mut seed),
        voice(800),
        noise(1_000, 0.001, &mut seed),
    ]
    .concat();
    check(&audio, EndpointConfig::default(), &[(700, 2_300)]);
}

#[test]
fn a_pause_shorter_than_the_limit_does_not_split() {
    let audio = [voice(400), vec![0.0; 300 * 16], voice(400), vec![0.0; 700 * 16]].concat();
    check(&audio, EndpointConfig::default(), &[(0, 1_600)]);
    let hasty = EndpointConfig {
        silence_duration_ms: 200,
        ..EndpointConfig::default()
    };
    // The padding of the second utterance stops at the end of the first.
    check(&audio, hasty, &[(0, 600), (600, 1_300)]);
}

#[test]
fn silence_hum_and_clicks_are_not_speech() {
    let mut seed = 2;
    check(&vec![0.0; 16_000], EndpointConfig::default(), &[]);
    check(&vec![0.3; 16_000], EndpointConfig::default(), &[]);
    check(&noise(3_000, 0.003, &mut seed), EndpointConfig::default(), &[]);
    let mut click = vec![0.0; 16_000];
    click[8_000..8_100].fill(0.9);
    check(&click, EndpointConfig::default(), &[]);
    check(&[f32::NAN; 16_000], EndpointConfig::default(), &[]);
}

#[test]
fn a_loud_room_becomes_the_background() {
    let mut seed = 3;
    let mut ear = Endpointer::new(EndpointConfig::default());
    ear.feed_all(&noise(8_000, 0.02, &mut seed));
    assert!(!ear.is_speaking());
    assert!(matches!(
        ear.feed_all(&voice(300)).as_slice(),
        [EndpointEvent::SpeechStarted { .. }]
    ));
}
