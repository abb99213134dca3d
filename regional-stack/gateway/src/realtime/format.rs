//! The format of audio on the wire: 24 kHz PCM, or G.711 as telephones have it.
//!
//! A session counts in samples of 24 kHz, whatever its format: three for each byte of G.711. So offsets and lengths mean the same in each, also
//! in checkpoints.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use speech::{SAMPLE_RATE, g711, pcm, resample::resample};

use super::audio_input::WIRE_RATE;

/// The rate of G.711.
const G711_RATE: u32 = 8_000;
/// Samples of PCM for one of G.711.
const TIMES: usize = (WIRE_RATE / G711_RATE) as usize;
/// Bytes of PCM for one of G.711.
const PCM_BYTES: usize = 2 * TIMES;
/// Samples mirrored at either end of a message before its rate is converted: as many as the filter looks at.
const MIRRORED: usize = 48;

/// A format of audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AudioFormat {
    #[default]
    Pcm,
    MuLaw,
    ALaw,
}

impl AudioFormat {
    /// The format of this name and rate in the protocol.
    pub(super) fn named(kind: Option<&str>, rate: Option<&Value>) -> Option<Self> {
        let is = |hertz: u32| rate.is_none_or(|rate| rate.as_u64() == Some(u64::from(hertz)));
        match kind? {
            "audio/pcm" if is(WIRE_RATE) => Some(Self::Pcm),
            "audio/pcmu" if is(G711_RATE) => Some(Self::MuLaw),
            "audio/pcma" if is(G711_RATE) => Some(Self::ALaw),
            _ => None,
        }
    }

    pub(super) fn describe(self) -> Value {
        match self {
            Self::Pcm => json!({ "type": "audio/pcm", "rate": WIRE_RATE }),
            Self::MuLaw => json!({ "type": "audio/pcmu" }),
            Self::ALaw => json!({ "type": "audio/pcma" }),
        }
    }

    pub(super) fn is_pcm(&self) -> bool {
        *self == Self::Pcm
    }

    /// Bytes of a second of audio.
    pub(super) fn bytes_per_second(self) -> usize {
        match self {
            Self::Pcm => 2 * WIRE_RATE as usize,
            Self::MuLaw | Self::ALaw => G711_RATE as usize,
        }
    }

    /// Bytes of PCM for so many bytes of this format.
    pub(super) fn pcm_bytes(self, bytes: usize) -> usize {
        match self {
            Self::Pcm => bytes,
            Self::MuLaw | Self::ALaw => bytes.saturating_mul(PCM_BYTES),
        }
    }

    /// Audio of the client as PCM. Each second of a message is converted by itself, so a message that is taken second by second and one
    /// that is taken at once become the same.
    pub(super) fn to_pcm(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        let decode = match self {
            Self::Pcm => return Cow::Borrowed(bytes),
            Self::MuLaw => g711::mu_law,
            Self::ALaw => g711::a_law,
        };
        let mut audio = Vec::with_capacity(bytes.len() * PCM_BYTES);
        for second in bytes.chunks(self.bytes_per_second()) {
            let narrow: Vec<f32> = second.iter().map(|code| f32::from(decode(*code)) / 32_768.0).collect();
            audio.extend(pcm::to_s16le(&widened(&narrow)));
        }
        Cow::Owned(audio)
    }

    /// Speech of the engine at [`WIRE_RATE`]. For G.711 three samples are one of telephones.
    pub(super) fn of_engine(self, samples: &[f32]) -> Result<Vec<f32>, speech::resample::ResampleError> {
        match self {
            Self::Pcm => resample(samples, SAMPLE_RATE, WIRE_RATE),
            Self::MuLaw | Self::ALaw => {
                let narrow = resample(samples, SAMPLE_RATE, G711_RATE)?;
                Ok(narrow.into_iter().flat_map(|sample| [sample; TIMES]).collect())
            }
        }
    }

    /// The bytes of a part of such speech, which begins with a whole sample of telephones.
    pub(super) fn to_bytes(self, samples: &[f32]) -> Vec<u8> {
        let encode = match self {
            Self::Pcm => return pcm::to_s16le(samples),
            Self::MuLaw => g711::to_mu_law,
            Self::ALaw => g711::to_a_law,
        };
        let narrow: Vec<f32> = samples.iter().copied().step_by(TIMES).collect();
        let bytes = pcm::to_s16le(&narrow);
        bytes
            .chunks_exact(2)
            .map(|pair| encode(i16::from_le_bytes([pair[0], pair[1]])))
            .collect()
    }
}

/// Telephone audio at [`WIRE_RATE`]: exactly [`TIMES`] samples for each. Its ends are mirrored, so that the filter finds no silence there and
/// messages join without a click.
fn widened(narrow: &[f32]) -> Vec<f32> {
    let around = MIRRORED.min(narrow.len());
    let before = narrow[..around].iter().rev();
    let after = narrow[narrow.len() - around..].iter().rev();
    let mirrored: Vec<f32> = before.chain(narrow).chain(after).copied().collect();
    let wide =
        resample(&mirrored, G711_RATE, WIRE_RATE).expect("both rates are constants within the resampler's range");
    let from = around * TIMES;
    wide[from..from + narrow.len() * TIMES].to_vec()
}

#[cfg(test)]
mod tests {
    use speech::scripted::{sound_of, text_in};

    use super::*;

    const G711: [AudioFormat; 2] = [AudioFormat::MuLaw, AudioFormat::ALaw];

    #[test]
    fn each_byte_of_a_telephone_is_three_samples_wherever_its_message_ends() {
        for format in G711 {
            for length in [0, 1, 7, 160, 8_000, 8_001, 20_000] {
                let bytes: Vec<u8> = (0..length).map(|at| (at * 7 % 256) as u8).collect();
                let audio = format.to_pcm(&bytes);
                assert_eq!(audio.len(), format.pcm_bytes(length), "{length} bytes");
                let by_seconds: Vec<u8> = bytes
                    .chunks(8_000)
                    .flat_map(|second| format.to_pcm(second).into_owned())
                    .collect();
                assert!(audio == by_seconds, "{length} bytes");
            }
        }
    }

    #[test]
    fn words_survive_the_telephone_in_both_directions_and_in_small_messages() {
        let said = "turn on the kitchen lights";
        for format in G711 {
            let speech = format.of_engine(&sound_of(said)).unwrap();
            let bytes = format.to_bytes(&speech);
            assert_eq!(bytes.len() * TIMES, speech.len());
            let audio: Vec<u8> = bytes
                .chunks(160)
                .flat_map(|message| format.to_pcm(message).into_owned())
                .collect();
            let heard = resample(&pcm::from_s16le(&audio), WIRE_RATE, SAMPLE_RATE).unwrap();
            assert_eq!(text_in(&heard).as_deref(), Some(said), "{format:?}");
        }
    }

    #[test]
    fn messages_join_without_a_click() {
        let tone: Vec<f32> = (0..800).map(|at| 0.5 * (at as f32 * 0.2).sin()).collect();
        let joined: Vec<f32> = tone.chunks(160).flat_map(widened).collect();
        let whole = widened(&tone);
        let apart = joined
            .iter()
            .zip(&whole)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(apart < 0.06, "{apart}");
    }

    #[test]
    fn names_are_those_of_the_protocol() {
        for (kind, rate, expected) in [
            ("audio/pcm", None, Some(AudioFormat::Pcm)),
            ("audio/pcm", Some(json!(24_000)), Some(AudioFormat::Pcm)),
            ("audio/pcm", Some(json!(8_000)), None),
            ("audio/pcmu", None, Some(AudioFormat::MuLaw)),
            ("audio/pcma", Some(json!(8_000)), Some(AudioFormat::ALaw)),
            ("audio/pcmu", Some(json!(24_000)), None),
            ("audio/opus", None, None),
        ] {
            assert_eq!(
                AudioFormat::named(Some(kind), rate.as_ref()),
                expected,
                "{kind} {rate:?}"
            );
            if let Some(format) = expected {
                assert_eq!(format.describe()["type"], kind);
            }
        }
    }
}
