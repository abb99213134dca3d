//! Sound in messages of the client: base64 of audio in the format of the session.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use speech::{SAMPLE_RATE, pcm, resample::resample};

use super::{audio_input::WIRE_RATE, format::AudioFormat, refusal::Refusal, texts};

/// Shortest utterance: a shorter one holds no word. The protocol has the same limit.
pub(super) const COMMIT_MS_MIN: u64 = 100;

/// The sound in a message of the client, at the engine's rate.
pub(super) fn sound_of(audio: &str, format: AudioFormat, turn_max: Duration) -> Result<Vec<f32>, Refusal> {
    let bytes = decode(audio)?;
    let ms = (bytes.len() * 1000 / format.bytes_per_second()) as u64;
    if u128::from(ms) > turn_max.as_millis() {
        let seconds_max = turn_max.as_secs_f32();
        let message = texts::audio_too_long(ms, seconds_max);
        return Err(Refusal::invalid("invalid_value", "item.content", message));
    }
    if ms < COMMIT_MS_MIN {
        let message = texts::audio_too_short(COMMIT_MS_MIN);
        return Err(Refusal::invalid("invalid_value", "item.content", message));
    }
    resample(&pcm::from_s16le(&format.to_pcm(&bytes)), WIRE_RATE, SAMPLE_RATE)
        .map_err(|error| Refusal::invalid("invalid_value", "item.content", error.to_string()))
}

/// The bytes of audio in a message of the client.
pub(super) fn decode(audio: &str) -> Result<Vec<u8>, Refusal> {
    BASE64_STANDARD
        .decode(audio)
        .map_err(|error| Refusal::invalid("invalid_value", "audio", texts::not_base64(&error)))
}
