//! Speech as a file: the formats of `/v1/audio/speech`.
//!
//! mp3 and aac are not among them: no encoder under a licence that this project takes is kept up well enough.

mod flac;
mod opus;

use speech::{pcm, wav};

use self::opus::OggOpus;
use crate::texts;

/// The rate of every format: 24 kHz, 16 bit, mono, as in the OpenAI API.
pub(crate) const RATE: u32 = 24_000;

/// A format of speech.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Wav,
    Pcm,
    Flac,
    Opus,
}

/// The names of the formats.
pub(crate) const NAMES: &str = "\"wav\", \"flac\", \"opus\" or \"pcm\" (24 kHz, 16-bit, mono)";

/// An encoder that fails on samples that it must take.
#[derive(Debug, thiserror::Error)]
#[error("{}", texts::cannot_encode(.0))]
pub(crate) struct EncodeError(String);

impl Format {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "wav" => Self::Wav,
            "pcm" => Self::Pcm,
            "flac" => Self::Flac,
            "opus" => Self::Opus,
            _ => return None,
        })
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Wav => "audio/wav",
            Self::Pcm => "audio/pcm",
            Self::Flac => "audio/flac",
            Self::Opus => "audio/ogg; codecs=opus",
        }
    }

    /// Whether its beginning can be sent before the end is known. The other formats begin with a length.
    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Pcm | Self::Opus)
    }
}

/// Speech on its way into a file.
pub(crate) enum Encoder {
    Pcm,
    Opus(Box<OggOpus>),
    /// These formats are written when all samples are there.
    Whole(Format, Vec<f32>),
}

impl Encoder {
    pub(crate) fn new(format: Format) -> Result<Self, EncodeError> {
        Ok(match format {
            Format::Pcm => Self::Pcm,
            Format::Opus => Self::Opus(Box::new(OggOpus::begin()?)),
            Format::Wav | Format::Flac => Self::Whole(format, Vec::new()),
        })
    }

    /// Adds samples at [`RATE`]. Returns the bytes that are ready.
    pub(crate) fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, EncodeError> {
        match self {
            Self::Pcm => Ok(pcm::to_s16le(samples)),
            Self::Opus(opus) => opus.push(samples),
            Self::Whole(_, all) => {
                all.extend_from_slice(samples);
                Ok(Vec::new())
            }
        }
    }

    /// The rest of the bytes.
    pub(crate) fn finish(self) -> Result<Vec<u8>, EncodeError> {
        match self {
            Self::Pcm => Ok(Vec::new()),
            Self::Opus(opus) => opus.finish(),
            Self::Whole(Format::Flac, all) => flac::encode(&all),
            Self::Whole(_, all) => Ok(wav::encode(&all, RATE)),
        }
    }
}
