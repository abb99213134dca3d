//! Turns the speech of a whole file into text, for HTTP and for gRPC.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use speech::SAMPLE_RATE;

use crate::{error::ApiError, queue::Class, recording::Recording, stack::Stack};

/// A file that is being recognised, one piece after the other: a long file takes one place in the queue, not all of them.
pub(crate) struct Transcribing {
    class: Class,
    samples: Vec<f32>,
    pieces: VecDeque<Range<usize>>,
    /// Whether the queue accepted a piece: from then on further ones wait for room and are never refused.
    begun: bool,
}

impl Transcribing {
    /// Decodes a file and cuts it into pieces.
    pub(crate) async fn begin(stack: &Stack, class: Class, file: Bytes) -> Result<Self, ApiError> {
        let Recording { samples, pieces } = stack.decode(class, file).await??;
        Ok(Self {
            class,
            samples,
            pieces: pieces.into(),
            begun: false,
        })
    }

    /// Recognises the next piece; `None` after the last.
    pub(crate) async fn next(&mut self, stack: &Stack) -> Result<Option<Segment>, ApiError> {
        let Some(piece) = self.pieces.pop_front() else {
            return Ok(None);
        };
        let sound = self.samples[piece.clone()].to_vec();
        let mut ticket = if self.begun {
            stack.hear_on(self.class, sound).await?
        } else {
            stack.hear_for(self.class, sound)?
        };
        self.begun = true;
        let heard = ticket.result().await?.output;
        Ok(Some(Segment {
            start_s: piece.start as f32 / SAMPLE_RATE as f32,
            end_s: piece.end as f32 / SAMPLE_RATE as f32,
            text: heard.text,
            confidence: heard.confidence,
        }))
    }

    /// Length of the recording.
    fn seconds(&self) -> f32 {
        self.samples.len() as f32 / SAMPLE_RATE as f32
    }
}

/// Recognises a file to its end.
pub(crate) async fn transcribe(stack: &Stack, class: Class, file: Bytes) -> Result<Transcription, ApiError> {
    let mut transcribing = Transcribing::begin(stack, class, file).await?;
    let mut segments = Vec::new();
    while let Some(segment) = transcribing.next(stack).await? {
        segments.push(segment);
    }
    Ok(Transcription {
        seconds: transcribing.seconds(),
        segments,
    })
}
pub(crate) struct Transcription {
    pub(crate) seconds: f32,
    pub(crate) segments: Vec<Segment>,
}

pub(crate) struct Segment {
    pub(crate) start_s: f32,
    pub(crate) end_s: f32,
    pub(crate) text: String,
    pub(crate) confidence: f32,
}

impl Transcription {
    pub(crate) fn text(&self) -> String {
        let texts: Vec<&str> = self
            .segments
            .iter()
            .map(|segment| segment.text.as_str())
            .filter(|text| !text.is_empty())
            .collect();
        texts.join(" ")
    }

    /// The confidence of the least sure piece; none if no words were heard.
    pub(crate) fn confidence(&self) -> f32 {
        let heard = self.segments.iter().filter(|segment| !segment.text.is_empty());
        heard.map(|segment| segment.confidence).reduce(f32::min).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sure_of_what_was_not_said() {
        let segment = |text: &str, confidence| Segment {
            start_s: 0.0,
            end_s: 1.0,
            text: text.to_owned(),
            confidence,
        };
        for (segments, confidence) in [
            (vec![], 0.0),
            (vec![segment("", 0.9)], 0.0),
            (vec![segment("stop", 0.9), segment("", 0.0), segment("stop", 0.7)], 0.7),
        ] {
            assert_eq!(Transcription { seconds: 3.0, segments }.confidence(), confidence);
        }
    }
}
