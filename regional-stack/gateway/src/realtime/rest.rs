//! The rest of the audio of a long message. The session listens to it one second at a time.

use std::borrow::Cow;

use super::format::AudioFormat;

/// Utterances that may end in a second: a word of 120 ms and a pause of as much as any client asks for take half of it.
pub(super) const PIECE_UTTERANCES: usize = 2;

/// The rest of the audio of a message. The session takes a second of it at once: a message may bring minutes, and other sessions need the
/// thread.
pub(super) struct Rest {
    /// As the client sent it: PCM would take six times the room of G.711.
    audio: Vec<u8>,
    format: AudioFormat,
    at: usize,
    /// The client's id of the message.
    about: Option<String>,
}

impl Rest {
    /// Whether so much audio is too long to be taken at once.
    pub(super) fn is_long(audio: &[u8], format: AudioFormat) -> bool {
        audio.len() > format.bytes_per_second()
    }

    pub(super) fn new(audio: Vec<u8>, format: AudioFormat, about: Option<String>) -> Self {
        Self {
            audio,
            format,
            at: 0,
            about,
        }
    }

    /// Takes the next second, as PCM.
    pub(super) fn take_piece(&mut self) -> Cow<'_, [u8]> {
        let from = self.at;
        self.at = self.audio.len().min(from + self.format.bytes_per_second());
        self.format.to_pcm(&self.audio[from..self.at])
    }

    /// Whether there is more.
    pub(super) fn has_more(&self) -> bool {
        self.at < self.audio.len()
    }

    /// The client's id of the message.
    pub(super) fn about(&self) -> Option<&str> {
        self.about.as_deref()
    }
}
