//! One item of a conversation: an utterance, a text, or a call of a function.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{audio_input, refusal::Refusal, texts};

/// An item of the conversation. Stacks of the previous release read it too, so fields are added, and given defaults.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) role: Role,
    pub(super) content: Content,
    /// The words that were said or written; unknown until the recognizer has them.
    pub(super) text: Option<String>,
    /// Whether a response answers it, or did.
    pub(super) answered: bool,
    /// Time at which the user finished it.
    #[serde(skip, default = "Instant::now")]
    pub(super) at: Instant,
    pub(super) asr: Option<Duration>,
    #[serde(default)]
    pub(super) audio_ms: u64,
    /// Whether an interruption ended it early.
    #[serde(default)]
    pub(super) incomplete: bool,
    /// Set for a call of a function and its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) function: Option<Function>,
    /// The recognizer's confidence in `text`, in 0..=1; none for written text.
    #[serde(default, rename = "surety")]
    pub(super) asr_confidence: Option<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Role {
    User,
    Assistant,
    System,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    Audio,
    Text,
}

/// The two halves of a function call.
#[derive(Clone, Serialize, Deserialize)]
pub(super) enum Function {
    Call {
        call_id: String,
        name: String,
        arguments: String,
    },
    /// The client's result of the call, which is the item's text.
    Output { call_id: String },
}

impl Item {
    fn new(id: String, role: Role, content: Content, text: Option<String>) -> Self {
        Self {
            id,
            role,
            content,
            text,
            answered: role != Role::User,
            at: Instant::now(),
            asr: None,
            asr_confidence: None,
            audio_ms: 0,
            incomplete: false,
            function: None,
        }
    }

    /// An utterance of the user whose words are not known yet.
    pub(super) fn heard(id: String, samples: &[f32]) -> Self {
        Self {
            audio_ms: (audio_input::seconds(samples) * 1000.0) as u64,
            ..Self::new(id, Role::User, Content::Audio, None)
        }
    }

    pub(super) fn written(id: String, role: Role, text: String) -> Self {
        Self::new(id, role, Content::Text, Some(text))
    }

    /// A reply of the assistant.
    pub(super) fn said(id: String, content: Content, text: String, audio_ms: u64) -> Self {
        Self {
            audio_ms,
            ..Self::new(id, Role::Assistant, content, Some(text))
        }
    }

    pub(super) fn call(id: String, call_id: String, name: String, arguments: String) -> Self {
        Self {
            function: Some(Function::Call {
                call_id,
                name,
                arguments,
            }),
            ..Self::new(id, Role::Assistant, Content::Text, None)
        }
    }

    /// The output of a call. The assistant answers it like a text of the user.
    pub(super) fn output(id: String, call_id: String, output: String) -> Self {
        Self {
            function: Some(Function::Output { call_id }),
            ..Self::new(id, Role::User, Content::Text, Some(output))
        }
    }

    pub(super) fn is_output(&self) -> bool {
        matches!(self.function, Some(Function::Output { .. }))
    }

    /// Cuts a reply of the assistant to the part that the user heard.
    pub(super) fn truncate(&mut self, content_index: u64, audio_end_ms: u64) -> Result<(), Refusal> {
        if self.role != Role::Assistant || self.content != Content::Audio || self.function.is_some() {
            let message = texts::NOT_TRUNCATABLE;
            return Err(Refusal::invalid("invalid_value", "item_id", message));
        }
        if content_index != 0 {
            let message = texts::ONE_PART;
            return Err(Refusal::invalid("invalid_value", "content_index", message));
        }
        if audio_end_ms > self.audio_ms {
            let message = texts::truncated_too_late(self.audio_ms);
            return Err(Refusal::invalid("invalid_value", "audio_end_ms", message));
        }
        // Nobody knows the words that the user heard, so the protocol drops the text.
        self.text = None;
        self.audio_ms = audio_end_ms;
        Ok(())
    }

    /// Bytes of its words.
    pub(super) fn bytes(&self) -> usize {
        let arguments = match &self.function {
            Some(Function::Call { arguments, .. }) => arguments.len(),
            _ => 0,
        };
        self.text.as_ref().map_or(0, String::len) + arguments
    }

    pub(super) fn describe(&self) -> Value {
        let status = if self.incomplete { "incomplete" } else { "completed" };
        match &self.function {
            None => {}
            Some(Function::Call {
                call_id,
                name,
                arguments,
            }) => {
                return json!({
                    "id": self.id, "object": "realtime.item", "type": "function_call", "status": status,
                    "call_id": call_id, "name": name, "arguments": arguments,
                });
            }
            Some(Function::Output { call_id }) => {
                return json!({
                    "id": self.id, "object": "realtime.item", "type": "function_call_output", "status": status,
                    "call_id": call_id, "output": self.text,
                });
            }
        }
        let (role, direction) = match self.role {
            Role::User => ("user", "input"),
            Role::Assistant => ("assistant", "output"),
            Role::System => ("system", "input"),
        };
        let part = match self.content {
            Content::Audio => json!({ "type": format!("{direction}_audio"), "transcript": self.text }),
            Content::Text => json!({ "type": format!("{direction}_text"), "text": self.text }),
        };
        json!({
            "id": self.id, "object": "realtime.item", "type": "message", "status": status, "role": role, "content": [part],
        })
    }
}

/// Refuses long texts. Texts are understood and spoken, so they have the limit of speech over HTTP.
pub(super) fn check_length(text: &str, chars_max: usize) -> Result<(), Refusal> {
    if text.chars().count() > chars_max {
        return Err(Refusal::invalid(
            "string_above_max_length",
            "item.content",
            texts::TEXT_TOO_LONG,
        ));
    }
    Ok(())
}
