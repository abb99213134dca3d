//! The sounds that no recognizer is asked about: too long ones, too short ones, and silence.

use speech::{SAMPLE_RATE, SpeechError, features};

/// Longest utterance in seconds. The cost of attention grows with its square, and nobody talks to a kitchen light for
/// half a minute.
const UTTERANCE_MAX_S: f32 = 30.0;

/// An utterance whose loudest 10 ms are quieter than this contains no speech. Whispers at arm's length have about -45
/// dB.
const SILENCE_DB: f32 = -58.0;

/// Confidence in a word that sounds like a bang, as a share of what the network says. No command is carried out at half.
pub(crate) const BANG_SHARE: f32 = 0.5;

/// Fails for an utterance that is too long.
pub(crate) fn check_length(samples: &[f32]) -> Result<(), SpeechError> {
    let seconds = samples.len() as f32 / SAMPLE_RATE as f32;
    if seconds > UTTERANCE_MAX_S {
        return Err(SpeechError::TooLong {
            seconds,
            limit_s: UTTERANCE_MAX_S,
        });
    }
    Ok(())
}

/// Whether there is a sound to recognise: at least one window of features, and louder than silence. False for samples that are no
/// numbers.
pub(crate) fn has_sound(samples: &[f32]) -> bool {
    samples.len() >= features::RECOGNITION.window && loudest_frame_db(samples) >= SILENCE_DB
}

fn loudest_frame_db(samples: &[f32]) -> f32 {
    let frames = samples.chunks(SAMPLE_RATE as usize / 100);
    let power = |frame: &[f32]| frame.iter().map(|s| s * s).sum::<f32>() / frame.len() as f32;
    10.0 * frames.map(power).fold(1e-10, f32::max).log10()
}
