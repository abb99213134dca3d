//! Makes the protocol layer give back the memory of long messages.

use bytes::Bytes;

use crate::room::{self, Share};

/// Largest message whose memory a session may keep: a second of audio.
const LONG_MESSAGE_BYTES: usize = room::UNIT_BYTES;

/// A message whose buffer the protocol layer must not reuse. The protocol layer reads a message into its buffer and hands out a part
/// of it. Once nobody else has a part, it fills the same buffer again, so it would keep the memory of one long message for the
/// session's life, and no setting prevents this. While the session holds a part, the protocol layer takes a new small buffer when the
/// old one is full.
pub(super) struct Held {
    message: Bytes,
    share: Option<Share>,
}

impl Held {
    /// The message to hold after another one.
    pub(super) fn next(held: Option<Self>, message: Bytes, share: Option<Share>) -> Option<Self> {
        let is_long = |message: &Bytes| message.len() > LONG_MESSAGE_BYTES;
        let size = |share: &Option<Share>| share.as_ref().map_or(0, Share::num_permits);
        match held {
            None => is_long(&message).then_some(Self { message, share }),
            // The protocol layer still reads into that memory.
            Some(held) if !is_long(&message) && !held.message.is_unique() => Some(held),
            // The protocol layer joins the fragments of a long message in another buffer, which the next message shares.
            Some(held) if is_long(&message) || is_long(&held.message) => Some(Self {
                message,
                share: std::cmp::max_by_key(held.share, share, size),
            }),
            Some(_) => None,
        }
    }
}
