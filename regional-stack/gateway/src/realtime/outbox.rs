//! Events waiting to be sent to a client. What belongs to a response can be taken back, which is what makes an interrupted
//! assistant fall silent at once.

use std::collections::VecDeque;

use serde_json::{Value, json};

/// An event ready to be sent.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) text: String,
    /// The response it is a part of, by number.
    response: Option<u64>,
    /// The response that is over once this is sent.
    pub(super) ends_response: Option<u64>,
}

/// Events in the order they will be sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Frame>,
    bytes: usize,
    numbered: u64,
}

/// More waiting than this is for a client that asks and never listens. A minute of reply audio is 4 MiB.
const BYTES_MAX: usize = 8 << 20;

impl Outbox {
    /// Adds an event.
    pub(super) fn push(&mut self, event: Value) {
        self.add(event, None, None);
    }

    /// Adds an event that is taken back when the response is cancelled.
    pub(super) fn push_part(&mut self, event: Value, response: u64) {
        self.add(event, Some(response), None);
    }

    /// Adds the last event of a response.
    pub(super) fn push_end(&mut self, event: Value, response: u64) {
        self.add(event, Some(response), Some(response));
    }

    fn add(&mut self, mut event: Value, response: Option<u64>, ends_response: Option<u64>) {
        self.numbered += 1;
        event["event_id"] = json!(format!("event_{:06}", self.numbered));
        let text = event.to_string();
        self.bytes += text.len();
        self.frames.push_back(Frame {
            text,
            response,
            ends_response,
        });
    }

    /// Takes back what is not sent yet of a response.
    pub(super) fn take_back(&mut self, response: u64) {
        self.frames.retain(|frame| frame.response != Some(response));
        self.bytes = self.frames.iter().map(|frame| frame.text.len()).sum();
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.text.len();
        Some(frame)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn is_overfull(&self) -> bool {
        self.bytes > BYTES_MAX
    }
}
