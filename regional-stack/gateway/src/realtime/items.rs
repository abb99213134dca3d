//! One item of a conversation: an utterance, a text, or a call of a function.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    client::{After, NewItem, NewKind},
    ear, events,
    ids::new_id,
    recognising::Source,
    refusal::Refusal,
    session::Session,
    sound::sound_of,
};

/// An item of the conversation. Stacks of the previous release read it too, so fields are added, and given defaults.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) role: Role,
    pub(super) content: Content,
    /// The words that were said or written; unknown while they are recognised.
    pub(super) text: Option<String>,
    /// Whether a response was already given to it.
    pub(super) answered: bool,
    /// When the user had finished it.
    #[serde(skip, default = "Instant::now")]
    pub(super) at: Instant,
    pub(super) asr: Option<Duration>,
    #[serde(default)]
    pub(super) audio_ms: u64,
    /// Whether it was interrupted.
    #[serde(default)]
    pub(super) incomplete: bool,
    /// Set when it is no message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) function: Option<Function>,
    /// How sure the recognizer is of `text`, in 0..=1; none for text that nobody had to recognise.
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
    /// The client's result of the call: the item's text.
    Output { call_id: String },
}

impl Session {
    pub(super) fn create_item(&mut self, new: NewItem, after: &After) -> Result<(), Refusal> {
        let id = new.id.unwrap_or_else(|| new_id("item"));
        if self.items.has(&id) {
            return Err(Refusal::invalid(
                "invalid_value",
                "item.id",
                "there is an item with this id; choose another",
            ));
        }
        let at = match after {
            After::Everything => self.items.len(),
            After::Nothing => 0,
            After::Item(id) => {
                let found = self.items.position(id);
                found.map(|at| at + 1).ok_or_else(|| {
                    let message =
                        "there is no item with this id; leave it out to append, or use \"root\" to begin with it";
                    Refusal::invalid("item_not_found", "previous_item_id", message)
                })?
            }
        };
        match new.kind {
            NewKind::Audio(audio) => {
                let samples = sound_of(&audio, self.stack.config.limits.turn_max.0)?;
                self.recognise(id, samples, Source::Message(self.consumed), at)?;
            }
            NewKind::Text { role, text } => {
                if text.is_empty() && role != Role::Assistant {
                    let message = "the item has no content; add {\"type\": \"input_text\", \"text\": …}";
                    return Err(Refusal::invalid("missing_required_parameter", "item.content", message));
                }
                self.check_length(&text)?;
                let item = Item::written(id, role, text);
                self.add_item(item, at);
            }
            NewKind::Call {
                call_id,
                name,
                arguments,
            } => self.add_item(Item::call(id, call_id, name, arguments), at),
            NewKind::Output { call_id, output } => {
                if !self.items.has_call(&call_id) {
                    let message = "there is no call with this id; it is in response.function_call_arguments.done";
                    return Err(Refusal::invalid("item_not_found", "item.call_id", message));
                }
                self.add_item(Item::output(id, call_id, output), at);
            }
            NewKind::Reference => {
                let message = "only the input of a response refers to other items";
                return Err(Refusal::invalid("invalid_value", "item.type", message));
            }
        }
        Ok(())
    }

    /// Refuses long texts. Texts are understood and spoken, so they have the limit of speech over HTTP.
    pub(super) fn check_length(&self, text: &str) -> Result<(), Refusal> {
        if text.chars().count() > self.stack.config.limits.speech_chars_max {
            return Err(Refusal::invalid(
                "string_above_max_length",
                "item.content",
                "the text is too long; shorten it",
            ));
        }
        Ok(())
    }

    /// Adds an item at a position of the conversation, and tells the client.
    pub(super) fn add_item(&mut self, item: Item, at: usize) {
        let previous = self.items.before(at);
        let described = item.describe();
        self.outbox.push(events::item_added(&described, previous));
        self.outbox.push(events::item_done(&described, previous));
        self.items.insert(item, at);
    }

    pub(super) fn delete_item(&mut self, id: &str) -> Result<(), Refusal> {
        if !self.items.remove(id) {
            return Err(no_such_item());
        }
        self.outbox.push(events::item_deleted(id));
        Ok(())
    }

    pub(super) fn retrieve_item(&mut self, id: &str) -> Result<(), Refusal> {
        let item = self.items.get(id).ok_or_else(no_such_item)?;
        self.outbox.push(events::item_retrieved(&item.describe()));
        Ok(())
    }

    /// Cuts a reply of the assistant to the part that the user heard.
    pub(super) fn truncate(&mut self, id: &str, content_index: u64, audio_end_ms: u64) -> Result<(), Refusal> {
        let item = self.items.get_mut(id).ok_or_else(no_such_item)?;
        if item.role != Role::Assistant || item.content != Content::Audio || item.function.is_some() {
            let message = "only items of the assistant that have audio can be truncated";
            return Err(Refusal::invalid("invalid_value", "item_id", message));
        }
        if content_index != 0 {
            let message = "the item has one part of content; use content_index 0";
            return Err(Refusal::invalid("invalid_value", "content_index", message));
        }
        if audio_end_ms > item.audio_ms {
            let message = format!("the item has {} ms of audio", item.audio_ms);
            return Err(Refusal::invalid("invalid_value", "audio_end_ms", message));
        }
        // Nobody knows which words the user heard. The protocol drops the text, and so do we.
        item.text = None;
        item.audio_ms = audio_end_ms;
        self.outbox
            .push(events::item_truncated(id, content_index, audio_end_ms));
        Ok(())
    }
}

fn no_such_item() -> Refusal {
    Refusal::invalid(
        "item_not_found",
        "item_id",
        "there is no item with this id; it may have been forgotten",
    )
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
            audio_ms: (ear::seconds(samples) * 1000.0) as u64,
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
    fn output(id: String, call_id: String, output: String) -> Self {
        Self {
            function: Some(Function::Output { call_id }),
            ..Self::new(id, Role::User, Content::Text, Some(output))
        }
    }

    pub(super) fn is_output(&self) -> bool {
        matches!(self.function, Some(Function::Output { .. }))
    }

    /// Memory of its words.
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
