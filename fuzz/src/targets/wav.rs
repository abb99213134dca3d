//! A WAV file as devices upload them.

use speech::{SAMPLE_RATE, wav};

/// Short, so that the fuzzer soon reaches the limit.
const SECONDS_MAX: f32 = 0.5;

pub(crate) fn decode(file: &[u8]) {
    let samples = match wav::decode(file, SECONDS_MAX) {
        Ok(samples) => samples,
        Err(error) => {
            assert!(error.to_string().len() < 300, "what is said of a bad file is short");
            return;
        }
    };
    // Resampling rounds the length up.
    let samples_max = (SECONDS_MAX * SAMPLE_RATE as f32) as usize + 1;
    assert!((1..=samples_max).contains(&samples.len()), "{} samples", samples.len());
    assert!(
        samples.iter().all(|sample| sample.abs() <= 1.0),
        "samples are numbers in range"
    );
    let written = wav::encode(&samples, SAMPLE_RATE);
    let read = wav::decode(&written, SECONDS_MAX + 0.01).expect("what we write we read");
    assert_eq!(read.len(), samples.len());
    // Its header claims one sample more than there is.
    match wav::decode(&written[..written.len() - 2], SECONDS_MAX + 0.01) {
        Ok(short) => assert_eq!(short[..], read[..read.len() - 1]),
        Err(error) => assert_eq!(read.len(), 1, "{error}"),
    }
}
