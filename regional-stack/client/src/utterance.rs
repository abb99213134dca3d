//! Spoken sentences as audio of the Realtime protocol.

use std::{sync::LazyLock, time::Duration};

use speech::{SAMPLE_RATE, pcm, resample::resample, wav};

/// Samples per second of the Realtime protocol's `audio/pcm`: 16-bit little-endian mono.
pub const RATE: u32 = 24_000;
/// Bytes per second at [`RATE`].
const BYTES_PER_SECOND: usize = 2 * RATE as usize;
/// Longest utterance, in seconds: the limit of a stack for one turn.
const SECONDS_MAX: f32 = 25.0;

/// The probes' recording of "what time is it".
const WHAT_TIME_IS_IT: &[u8] = include_bytes!("../data/what-time-is-it.wav");
/// The transcript that a working recognizer returns for the recording, letter by letter.
pub const PROBE_TRANSCRIPT: &str = "what time is it";
/// The intent that a working stack finds in the recording.
pub const PROBE_INTENT: &str = "time.query";

/// One spoken sentence: 16-bit little-endian mono at [`RATE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utterance {
    pcm: Vec<u8>,
}

impl Utterance {
    /// Reads a WAV file of at most 25 s: mono or stereo, 8 to 48 kHz.
    pub fn from_wav(bytes: &[u8]) -> Result<Self, wav::WavError> {
        Ok(Self::from_16k(&wav::decode(bytes, SECONDS_MAX)?))
    }

    /// Takes samples in -1..=1 at 16 kHz, the rate of the speech engines.
    pub fn from_16k(samples: &[f32]) -> Self {
        let samples = resample(samples, SAMPLE_RATE, RATE).expect("both rates are ones the resampler takes");
        Self::from_24k(&samples)
    }

    /// Takes samples in -1..=1 at 24 kHz.
    pub fn from_24k(samples: &[f32]) -> Self {
        Self {
            pcm: pcm::to_s16le(samples),
        }
    }

    /// The sentence that probes speak.
    pub fn probe() -> &'static Self {
        static PROBE: LazyLock<Utterance> =
            LazyLock::new(|| Utterance::from_wav(WHAT_TIME_IS_IT).expect("the recording in this crate is a WAV file"));
        &PROBE
    }

    /// The time that speaking the sentence takes.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.pcm.len() as f64 / BYTES_PER_SECOND as f64)
    }

    /// Pieces of this length, as a microphone delivers them. The last may be shorter.
    pub(crate) fn chunks(&self, length: Duration) -> impl Iterator<Item = &[u8]> {
        self.pcm.chunks(bytes_of(length))
    }
}

/// The time that so many samples at [`RATE`] take.
pub(crate) fn length(samples: usize) -> Duration {
    Duration::from_secs(samples as u64) / RATE
}

/// Silence of this length, as 16-bit samples at [`RATE`].
pub(crate) fn silence(length: Duration) -> Vec<u8> {
    vec![0; bytes_of(length)]
}

fn bytes_of(length: Duration) -> usize {
    // Whole samples, and at least one: with empty pieces the caller's loop would never end.
    ((length.as_secs_f64() * f64::from(RATE)) as usize * 2).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_phrase_lasts_a_moment_and_comes_in_whole_samples() {
        let phrase = Utterance::probe();
        let seconds = phrase.duration().as_secs_f64();
        assert!((1.0..2.5).contains(&seconds), "{seconds}");
        let chunks: Vec<_> = phrase.chunks(Duration::from_millis(40)).collect();
        assert!(chunks.iter().all(|chunk| chunk.len() % 2 == 0));
        assert_eq!(chunks[0].len(), 1920);
        assert_eq!(silence(Duration::from_millis(40)).len(), 1920);
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        assert!(Utterance::from_wav(b"not a recording").is_err());
    }
}
