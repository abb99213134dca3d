//! The rest of the audio of a long message. The session listens to it one second at a time.

use super::audio_input::WIRE_RATE;

/// Audio of one message that the session takes at once. A message may bring minutes of it, and other sessions need the thread.
const PIECE_BYTES: usize = 2 * WIRE_RATE as usize;
/// Utterances that may end in a second: a word of 120 ms and a pause of as much as any client asks for take half of it.
pub(super) const PIECE_UTTERANCES: usize = 2;

/// The rest of the audio of a message.
pub(super) struct Rest {
    audio: Vec<u8>,
    at: usize,
    /// The client's id of the message.
    about: Option<String>,
}

impl Rest {
    /// Whether so much audio is too long to be taken at once.
    pub(super) fn is_long(audio: &[u8]) -> bool {
        audio.len() > PIECE_BYTES
    }

    pub(super) fn new(audio: Vec<u8>, about: Option<String>) -> Self {
        Self { audio, at: 0, about }
    }

    /// Takes the next second.
    pub(super) fn take_piece(&mut self) -> &[u8] {
        let from = self.at;
        self.at = self.audio.len().min(from + PIECE_BYTES);
        &self.audio[from..self.at]
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
