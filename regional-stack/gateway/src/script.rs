//! A text that an engine speaks sentence by sentence for a caller over HTTP or gRPC.

use std::collections::VecDeque;

use speech::{SAMPLE_RATE, resample};

use crate::{error::ApiError, queue::Class, spoken, stack::Stack, texts};

/// The sentences of a text that are not spoken yet. A long text takes one slot of the queue, not all of them.
pub(crate) struct Script {
    class: Class,
    sentences: VecDeque<String>,
    speed: f32,
    /// Whether the queue accepted a sentence: from then on further ones wait for room and are never refused.
    begun: bool,
}

impl Script {
    /// Checks a text; `param` is the client's name for it.
    pub(crate) fn read(
        stack: &Stack,
        class: Class,
        param: &'static str,
        text: &str,
        speed: Option<f32>,
    ) -> Result<Self, ApiError> {
        let chars_max = stack.config.limits.speech_chars_max;
        let chars = text.chars().count();
        if chars > chars_max {
            let message = texts::too_many_characters(param, chars, chars_max);
            return Err(ApiError::bad_request("string_above_max_length", param, message));
        }
        let speed = speed.unwrap_or(1.0);
        if !(0.25..=4.0).contains(&speed) {
            let message = texts::SPEED;
            return Err(ApiError::bad_request("invalid_value", "speed", message));
        }
        let sentences = VecDeque::from(spoken::sentences(text));
        if sentences.is_empty() {
            let message = texts::nothing_to_speak(param);
            return Err(ApiError::bad_request("empty_string", param, message));
        }
        let seconds: f32 = sentences.iter().map(|sentence| spoken::seconds(sentence, speed)).sum();
        let seconds_max = stack.config.limits.speech_max.0.as_secs_f32();
        if seconds > seconds_max {
            let message = texts::too_long_to_say(param, seconds, speed, seconds_max);
            return Err(ApiError::bad_request("string_above_max_length", param, message));
        }
        Ok(Self {
            class,
            sentences,
            speed,
            begun: false,
        })
    }

    /// Makes this text the continuation of one whose beginning the caller already hears: it waits for room, and yields to callers who hear
    /// nothing yet.
    pub(crate) fn follow_another(&mut self) {
        self.begun = true;
        self.class = self.class.after_the_first();
    }

    /// The next sentence as samples at `rate`; `None` after the last.
    pub(crate) async fn speak_next(&mut self, stack: &Stack, rate: u32) -> Result<Option<Vec<f32>>, ApiError> {
        let Some(sentence) = self.sentences.pop_front() else {
            return Ok(None);
        };
        let mut ticket = if self.begun {
            stack.speak_on(self.class, sentence, self.speed).await?
        } else {
            stack.speak_for(self.class, sentence, self.speed)?
        };
        self.begun = true;
        // A caller listens to the first sentence while the engine makes the next, so the rest of a long text yields to other callers.
        self.class = self.class.after_the_first();
        let samples = ticket.result().await?.output;
        let samples =
            resample::resample(&samples, SAMPLE_RATE, rate).map_err(|error| ApiError::engine_failed(&error))?;
        Ok(Some(samples))
    }
}
