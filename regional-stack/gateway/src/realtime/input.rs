//! The speech that comes in: the input audio buffer, the item that its utterance becomes, and the audio of a long message that waits
//! to be listened to.

use super::{audio_input::AudioInput, rest::Rest};
use crate::ids::new_id;

pub(super) struct Input {
    pub(super) buffer: AudioInput,
    /// Id of the item that the utterance in progress will become; clients are told it when speech starts.
    pub(super) item: Option<String>,
    /// The rest of the audio of the message in hand.
    pub(super) rest: Option<Rest>,
}

impl Input {
    pub(super) fn new(buffer: AudioInput, item: Option<String>) -> Self {
        Self {
            buffer,
            item,
            rest: None,
        }
    }

    /// Takes the id of the item that the utterance becomes.
    pub(super) fn take_item(&mut self) -> String {
        self.item.take().unwrap_or_else(|| new_id("item"))
    }

    /// Drops the speech so far.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.item = None;
    }
}
