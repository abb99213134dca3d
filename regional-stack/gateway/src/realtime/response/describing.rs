//! A response, as events show it.

use std::time::Duration;

use serde_json::{Value, json};
use topology::Component;

use super::{Response, Turn};
use crate::realtime::{
    audio_input::WIRE_RATE,
    settings::{Modality, VOICE},
};

impl Response {
    pub(in crate::realtime) fn describe(&self, status: &str, details: &Value, conversation: &str) -> Value {
        let is_over = status != "in_progress";
        let output = if self.added && is_over {
            vec![self.describe_item(if status == "completed" {
                "completed"
            } else {
                "incomplete"
            })]
        } else {
            Vec::new()
        };
        json!({
            "object": "realtime.response", "id": self.id, "status": status, "status_details": details,
            "output": output, "output_modalities": [self.modality.name()],
            "conversation_id": (!self.options.aside).then_some(conversation),
            "metadata": self.options.metadata,
            "max_output_tokens": "inf",
            "audio": { "output": { "format": self.format().describe(), "voice": VOICE } },
            "usage": is_over.then(|| self.usage()),
        })
    }

    /// The usage. No model here counts tokens, so a word counts as one, and audio as in the protocol: 10 a second of the user's, 20 a second
    /// of the assistant's.
    pub(super) fn usage(&self) -> Value {
        let words = |text: &str| text.split_whitespace().count() as u64;
        let (text_in, audio_in) = match self.turn.heard_ms {
            Some(ms) => (0, ms.div_ceil(100)),
            None => (words(&self.turn.transcript), 0),
        };
        let audio_out = (self.spoken_samples() as u64 * 20).div_ceil(u64::from(WIRE_RATE));
        let text_out = match &self.call {
            Some(call) => words(&call.name) + words(&call.arguments),
            None => words(self.said()),
        };
        json!({
            "total_tokens": text_in + audio_in + text_out + audio_out,
            "input_tokens": text_in + audio_in,
            "output_tokens": text_out + audio_out,
            "input_token_details": {
                "text_tokens": text_in, "audio_tokens": audio_in, "image_tokens": 0, "cached_tokens": 0,
                "cached_tokens_details": { "text_tokens": 0, "audio_tokens": 0, "image_tokens": 0 },
            },
            "output_token_details": { "text_tokens": text_out, "audio_tokens": audio_out },
        })
    }

    /// Its item, without content while the response is in progress.
    pub(super) fn describe_item(&self, status: &str) -> Value {
        let is_over = status != "in_progress";
        if let Some(call) = &self.call {
            return json!({
                "id": self.item, "object": "realtime.item", "type": "function_call", "status": status,
                "call_id": call.call_id, "name": call.name,
                "arguments": if is_over { call.arguments.as_str() } else { "" },
            });
        }
        let content = match self.modality {
            _ if !is_over => json!([]),
            Modality::Audio => json!([{ "type": "output_audio", "transcript": self.said() }]),
            Modality::Text => json!([{ "type": "output_text", "text": self.said() }]),
        };
        json!({
            "id": self.item, "object": "realtime.item", "type": "message", "status": status, "role": "assistant",
            "content": content,
        })
    }

    /// A part of content. Its types are `audio` and `text`, where an item has `output_audio` and `output_text`.
    pub(super) fn describe_part(&self, text: &str) -> Value {
        match self.modality {
            Modality::Audio => json!({ "type": "audio", "transcript": text }),
            Modality::Text => json!({ "type": "text", "text": text }),
        }
    }

    /// The `meridian.turn` event.
    pub(in crate::realtime) fn report(&self, status: &str, region: &str) -> Value {
        let Turn {
            number,
            transcript,
            intent,
            acted,
            slots,
            reply,
            asr,
            nlu,
            skill,
            tts,
            first_audio,
            ..
        } = &self.turn;
        // Hundredths of a millisecond: pattern matching takes less than one.
        let ms = |took: &Option<Duration>| took.map(|took| (took.as_secs_f64() * 100_000.0).round() / 100.0);
        json!({
            "type": "meridian.turn",
            "turn": number, "response_id": self.id, "status": status, "region": region,
            "transcript": transcript, "intent": intent, "action": acted.then_some(intent), "slots": slots, "reply": reply,
            "timings_ms": {
                "asr": ms(asr), "nlu": ms(nlu), "skill": ms(skill), "tts": ms(tts), "first_audio": ms(first_audio),
            },
        })
    }
}

impl Turn {
    /// The report for the edge. A stage of less than a millisecond counts as one, because zero means that it did not run.
    pub(in crate::realtime) fn for_edge(&self, failed: Option<Component>) -> wire::Turn {
        let ms = |took: Duration| u32::try_from(took.as_millis()).unwrap_or(u32::MAX).max(1);
        wire::Turn {
            recognised_ms: self.asr.map(ms),
            first_audio_ms: self.first_audio.map(ms),
            failed,
        }
    }
}
