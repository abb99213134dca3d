//! What clients send. Unknown fields are ignored, as the protocol asks; unknown events are errors that end nothing.

use serde::Deserialize;
use serde_json::Value;

/// One event of a client.
#[derive(Debug)]
pub(super) struct ClientEvent {
    /// The client's own id of the event, repeated in errors about it.
    pub(super) event_id: Option<String>,
    pub(super) body: Body,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
pub(super) enum Body {
    #[serde(rename = "session.update")]
    SessionUpdate { session: Value },
    #[serde(rename = "input_audio_buffer.append")]
    Append { audio: String },
    #[serde(rename = "input_audio_buffer.commit")]
    Commit,
    #[serde(rename = "input_audio_buffer.clear")]
    Clear,
    #[serde(rename = "conversation.item.create")]
    ItemCreate { item: NewItem },
    #[serde(rename = "conversation.item.delete")]
    ItemDelete { item_id: String },
    #[serde(rename = "conversation.item.retrieve")]
    ItemRetrieve { item_id: String },
    #[serde(rename = "conversation.item.truncate")]
    ItemTruncate {
        item_id: String,
        #[serde(default)]
        content_index: u32,
        audio_end_ms: u64,
    },
    #[serde(rename = "response.create")]
    ResponseCreate {
        #[serde(default)]
        response: Option<NewResponse>,
    },
    #[serde(rename = "response.cancel")]
    ResponseCancel {
        #[serde(default)]
        response_id: Option<String>,
    },
    /// Ours: how playing the reply went. `underruns` are the times the device ran out of audio since it last said so.
    #[serde(rename = "meridian.playback")]
    Playback { underruns: u32 },
}

/// The item of a `conversation.item.create`.
#[derive(Debug, Deserialize)]
pub(super) struct NewItem {
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(rename = "type", default)]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) role: Option<String>,
    #[serde(default)]
    pub(super) content: Vec<NewContent>,
}

/// A part of a new item.
#[derive(Debug, Deserialize)]
pub(super) struct NewContent {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) text: Option<String>,
    #[serde(default)]
    pub(super) audio: Option<String>,
}

/// The options of a `response.create` that change anything here.
#[derive(Debug, Default, Deserialize)]
pub(super) struct NewResponse {
    #[serde(default)]
    pub(super) output_modalities: Option<Vec<String>>,
    /// Items to answer instead of the conversation's last one.
    #[serde(default)]
    pub(super) input: Option<Vec<NewItem>>,
}

/// Why a message is not an event.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct EventError {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
    pub(super) event_id: Option<String>,
}

/// Event types known here, for telling a wrong field from a wrong type.
const KNOWN: [&str; 11] = [
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.create",
    "conversation.item.delete",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "response.create",
    "response.cancel",
    "meridian.playback",
];
/// Ids of clients are repeated to them, up to this length.
const ID_CHARS_MAX: usize = 128;

impl ClientEvent {
    pub(super) fn parse(text: &str) -> Result<Self, EventError> {
        let value: Value = serde_json::from_str(text).map_err(|error| EventError {
            code: "invalid_json",
            message: format!("the message is not JSON: {error}; send one JSON object per message"),
            param: None,
            event_id: None,
        })?;
        let text_of = |key: &str| value.get(key).and_then(Value::as_str);
        let event_id = text_of("event_id").map(|id| id.chars().take(ID_CHARS_MAX).collect());
        let Some(kind) = text_of("type") else {
            return Err(EventError {
                code: "missing_required_parameter",
                message: "the event has no \"type\"; add one".to_owned(),
                param: Some("type"),
                event_id,
            });
        };
        if !KNOWN.contains(&kind) {
            let kind: String = kind.chars().take(ID_CHARS_MAX).collect();
            return Err(EventError {
                code: "invalid_value",
                message: format!("unknown event type {kind:?}; known are {}", KNOWN.join(", ")),
                param: Some("type"),
                event_id,
            });
        }
        match Body::deserialize(value) {
            Ok(body) => Ok(Self { event_id, body }),
            Err(error) => {
                let message = error.to_string();
                Err(EventError {
                    code: "invalid_event",
                    message,
                    param: None,
                    event_id,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_type_parses_with_its_fields() {
        for kind in KNOWN {
            let event = format!(
                r#"{{"type":"{kind}","event_id":"e1","audio":"","session":{{}},"item":{{}},"item_id":"i","audio_end_ms":1,"underruns":1,"new":1}}"#
            );
            assert_eq!(
                ClientEvent::parse(&event).unwrap().event_id.as_deref(),
                Some("e1"),
                "{kind}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, code, says) in [
            ("{", "invalid_json", "not JSON"),
            ("[]", "missing_required_parameter", "type"),
            (r#"{"type":"session.begin"}"#, "invalid_value", "session.begin"),
            (r#"{"type":"input_audio_buffer.append"}"#, "invalid_event", "audio"),
            (
                r#"{"type":"conversation.item.truncate","item_id":"a","audio_end_ms":-1}"#,
                "invalid_event",
                "-1",
            ),
        ] {
            let error = ClientEvent::parse(text).unwrap_err();
            assert_eq!(error.code, code, "{text}");
            assert!(error.message.contains(says), "{}", error.message);
        }
    }
}
