//! The bytes of one direction that the edge read and has not written yet.

use bytes::BytesMut;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::session::frames::{Scanner, Sender};

/// The bytes for one reader, and the frames to which they belong.
pub struct Outgoing {
    pub(super) scanner: Scanner,
    /// Only the first `ready` of these bytes may be written. The others belong to a message that is not whole, whose last frame begins
    /// `frame` bytes into it.
    pub(super) pending: BytesMut,
    pub(super) ready: usize,
    pub(super) frame: usize,
}

impl Outgoing {
    pub(super) fn new(scanner: Scanner) -> Self {
        Self {
            scanner,
            pending: BytesMut::new(),
            ready: 0,
            frame: 0,
        }
    }

    /// The number of bytes of a message that is not whole yet.
    pub(super) fn held(&self) -> usize {
        self.pending.len().saturating_sub(self.ready)
    }

    pub(super) fn last_frame(&self) -> &[u8] {
        self.pending.get(self.ready + self.frame..).unwrap_or_default()
    }

    pub(super) fn drop_frame(&mut self) {
        self.pending.truncate(self.ready + self.frame);
    }

    /// Lets the message be written, because it is whole.
    pub(super) fn release(&mut self) {
        self.ready = self.pending.len();
        self.frame = 0;
    }

    /// Ends a control frame. Between the fragments of a message it stays between them.
    pub(super) fn control_ends(&mut self) {
        if self.frame == 0 {
            self.release();
        } else {
            self.fragment_ends();
        }
    }

    pub(super) fn fragment_ends(&mut self) {
        self.frame = self.held();
    }

    /// Whether the message that is not written yet is text, by the opcode of its first frame.
    pub(super) fn is_text(&self) -> bool {
        self.pending
            .get(self.ready)
            .is_some_and(|first| OpCode::from(first & 0x0f) == OpCode::Data(Data::Text))
    }

    /// Drops the unfinished message of a region that is lost, and follows the frames of the next region.
    pub(super) fn begin_anew(&mut self, frame_bytes_max: u64) {
        self.pending.truncate(self.ready);
        self.frame = 0;
        self.scanner = Scanner::new(Sender::Region, frame_bytes_max);
    }

    /// Appends a frame of the edge behind the last whole message.
    pub(super) fn say(&mut self, frame: &[u8]) {
        debug_assert_eq!(self.held(), 0, "nothing is held when a session begins in a region");
        self.pending.extend_from_slice(frame);
        self.release();
    }
}
