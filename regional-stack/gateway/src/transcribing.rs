//! Turns the speech of a whole file into text, for HTTP and for gRPC.

use bytes::Bytes;
use speech::SAMPLE_RATE;

use crate::{error::ApiError, queue::Class, recording::Recording, stack::Stack};

/// Recognises a file, one piece after the other: a long file takes one place in the queue, not all of them.
pub(crate) async fn transcribe(stack: &Stack, class: Class, file: Bytes) -> Result<Transcription, ApiError> {
    let Recording { samples, pieces } = stack.decode(class, file).await??;
    let mut segments = Vec::new();
    for piece in pieces {
        let sound = samples[piece.clone()].to_vec();
        let mut ticket = if segments.is_empty() {
            stack.hear_for(class, sound)?
        } else {
            stack.hear_on(class, sound).await?
        };
        let done = ticket.result().await?;
        segments.push(Segment {
            start_s: piece.start as f32 / SAMPLE_RATE as f32,
            end_s: piece.end as f32 / SAMPLE_RATE as f32,
            text: done.output.text,
            confidence: done.output.confidence,
        });
    }
    Ok(Transcription {
        seconds: samples.len() as f32 / SAMPLE_RATE as f32,
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
