//! Events that wait to be sent to a client. The session takes those of a response back when the user interrupts it, so that the
//! assistant falls silent at once.

use std::{collections::VecDeque, ops::Range};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An event ready to be sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Frame {
    /// Empty while an engine has to speak its audio again.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) text: String,
    /// The response it is a part of, by number.
    response: Option<u64>,
    /// The response that ends when this event is sent.
    pub(super) ends_response: Option<u64>,
    /// Set for a piece of spoken reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audio: Option<Audio>,
}

/// A piece of spoken reply, as it travels between regions: the other stack speaks it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Audio {
    /// The event's own number.
    number: u64,
    samples: Range<usize>,
}

impl Frame {
    /// The end of its piece of this response's audio, in samples.
    pub(super) fn audio_end(&self, response: u64) -> Option<usize> {
        let audio = self.audio.as_ref().filter(|_| self.response == Some(response))?;
        Some(audio.samples.end)
    }

    /// The type of the event; none for a piece of audio.
    fn kind(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "type")]
            kind: String,
        }
        if self.audio.is_some() {
            return None;
        }
        serde_json::from_str::<Kind>(&self.text).ok().map(|event| event.kind)
    }
}

/// Events in the order they will be sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Frame>,
    bytes: usize,
    numbered: u64,
    /// Whether an event was added or taken back since the last checkpoint.
    changed: bool,
}

/// An outbox, as it travels between regions.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CarriedOutbox {
    frames: VecDeque<Frame>,
    numbered: u64,
}

impl CarriedOutbox {
    /// The number of events so far.
    pub(super) fn numbered(&self) -> u64 {
        self.numbered
    }
}

/// Only for a client that asks and never reads do more bytes wait. A minute of reply audio is 4 MiB.
const BYTES_MAX: usize = 8 << 20;

impl Outbox {
    pub(super) fn push(&mut self, event: Value) {
        self.add(event, None, None, None);
    }

    /// Adds an event of a response, which [`Outbox::take_back`] removes when the response is cancelled.
    pub(super) fn push_part(&mut self, event: Value, response: u64) {
        self.add(event, Some(response), None, None);
    }

    /// Adds a piece of the response's audio, `samples` of it.
    pub(super) fn push_audio(&mut self, event: Value, response: u64, samples: Range<usize>) {
        self.add(event, Some(response), None, Some(samples));
    }

    /// Adds the last event of a response.
    pub(super) fn push_end(&mut self, event: Value, response: u64) {
        self.add(event, Some(response), Some(response), None);
    }

    fn add(&mut self, event: Value, response: Option<u64>, ends_response: Option<u64>, audio: Option<Range<usize>>) {
        self.numbered += 1;
        let number = self.numbered;
        let text = numbered(event, number);
        self.bytes += text.len();
        self.frames.push_back(Frame {
            text,
            response,
            ends_response,
            audio: audio.map(|samples| Audio { number, samples }),
        });
        self.changed = true;
    }

    /// Removes the unsent events of a response. Returns their types, except those of pieces of audio.
    pub(super) fn take_back(&mut self, response: u64) -> Vec<String> {
        let (of_response, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.frames)
            .into_iter()
            .partition(|frame| frame.response == Some(response));
        self.frames = others;
        self.bytes = self.frames.iter().map(|frame| frame.text.len()).sum();
        self.changed = true;
        of_response.iter().filter_map(Frame::kind).collect()
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.text.len();
        Some(frame)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether the next event can be sent.
    pub(super) fn is_ready(&self) -> bool {
        self.frames.front().is_some_and(|frame| !frame.text.is_empty())
    }

    pub(super) fn is_overfull(&self) -> bool {
        self.bytes > BYTES_MAX
    }

    /// Whether a checkpoint must go before the next event.
    pub(super) fn has_changed(&self) -> bool {
        self.changed
    }

    /// Notes that a checkpoint with these events goes next.
    pub(super) fn note_checkpoint(&mut self) {
        self.changed = false;
    }

    /// The events as they travel to another region: without audio, which the other stack speaks again.
    pub(super) fn carry(&self) -> CarriedOutbox {
        let carried = |frame: &Frame| match &frame.audio {
            None => frame.clone(),
            Some(audio) => Frame {
                text: String::new(),
                audio: Some(audio.clone()),
                ..*frame
            },
        };
        CarriedOutbox {
            frames: self.frames.iter().map(carried).collect(),
            numbered: self.numbered,
        }
    }

    pub(super) fn restore(carried: CarriedOutbox) -> Self {
        Self {
            bytes: carried.frames.iter().map(|frame| frame.text.len()).sum(),
            frames: carried.frames,
            numbered: carried.numbered,
            changed: true,
        }
    }

    /// Whether an engine has to speak audio again that did not travel.
    pub(super) fn lacks_audio(&self) -> bool {
        self.frames.iter().any(|frame| frame.text.is_empty())
    }

    /// Puts the audio back into the events that lack it; `event` makes an event of a range of samples.
    pub(super) fn fill(&mut self, event: impl Fn(Range<usize>) -> Value) {
        for frame in self.frames.iter_mut().filter(|frame| frame.text.is_empty()) {
            if let Some(audio) = &frame.audio {
                frame.text = numbered(event(audio.samples.clone()), audio.number);
                self.bytes += frame.text.len();
            }
        }
    }
}

fn numbered(mut event: Value, number: u64) -> String {
    event["event_id"] = json!(format!("event_{number:06}"));
    event.to_string()
}
