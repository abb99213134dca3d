//! Sounds, and a check of what was heard in them, for tests.

use crate::SAMPLE_RATE;

const SAMPLES_PER_MS: usize = SAMPLE_RATE as usize / 1_000;

/// The samples at this loudness, in decibels below full scale (root of the mean square).
pub fn at_db(samples: Vec<f32>, db: f32) -> Vec<f32> {
    let power = samples.iter().map(|s| s * s).sum::<f32>() / samples.len() as f32;
    let gain = (10f32.powf(db / 10.0) / power).sqrt();
    samples.into_iter().map(|s| (s * gain).clamp(-1.0, 1.0)).collect()
}

/// The sound of a fan or an engine.
pub fn hiss(ms: usize, db: f32) -> Vec<f32> {
    let mut seed = 7u32;
    let noise = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / 8_388_608.0 - 1.0
    });
    at_db(noise.take(ms * SAMPLES_PER_MS).collect(), db)
}

/// The background with the speech in it from `at_ms` on.
pub fn mixed(mut background: Vec<f32>, speech: &[f32], at_ms: usize) -> Vec<f32> {
    for (slot, s) in background[at_ms * SAMPLES_PER_MS..].iter_mut().zip(speech) {
        *slot += s;
    }
    background
}

/// Checks that `utterances`, each from and to a millisecond, are one that contains the speech from `from_ms` to `to_ms`
/// and ends soon after it. `what` names the sound.
///
/// # Panics
///
/// If they are not.
pub fn check_heard(what: &str, utterances: &[(u64, u64)], from_ms: usize, to_ms: usize) {
    let [(from, to)] = *utterances else {
        panic!("{what}: {utterances:?}")
    };
    let (said_from, said_to) = (from_ms as u64, to_ms as u64);
    assert!(
        from <= said_from + LATE_MS_MAX && from + 700 >= said_from,
        "{what}: begins at {from}, was said from {said_from}"
    );
    assert!(
        (said_to - 200..said_to + 900).contains(&to),
        "{what}: ends at {to}, was said until {said_to}"
    );
}

/// Recordings begin with so much quiet before the first sound of a word, at most.
const LATE_MS_MAX: u64 = 60;
