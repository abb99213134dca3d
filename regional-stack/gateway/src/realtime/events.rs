//! Events of the server: one function per event of the protocol.

use serde_json::{Value, json};

/// An error about an event of the client, or about work for it.
pub(super) fn error(kind: &str, code: &str, message: &str, param: Option<&str>, about: Option<&str>) -> Value {
    json!({ "type": "error", "error": {
        "type": kind, "code": code, "message": message, "param": param, "event_id": about,
    }})
}

pub(super) fn session_created(session: &Value) -> Value {
    json!({ "type": "session.created", "session": session })
}

pub(super) fn session_updated(session: &Value) -> Value {
    json!({ "type": "session.updated", "session": session })
}

pub(super) fn speech_started(item: &str, audio_start_ms: u64) -> Value {
    json!({ "type": "input_audio_buffer.speech_started", "item_id": item, "audio_start_ms": audio_start_ms })
}

pub(super) fn speech_stopped(item: &str, audio_end_ms: u64) -> Value {
    json!({ "type": "input_audio_buffer.speech_stopped", "item_id": item, "audio_end_ms": audio_end_ms })
}

pub(super) fn committed(item: &str, previous: Option<&str>) -> Value {
    json!({ "type": "input_audio_buffer.committed", "item_id": item, "previous_item_id": previous })
}

pub(super) fn cleared() -> Value {
    json!({ "type": "input_audio_buffer.cleared" })
}

pub(super) fn item_added(item: &Value, previous: Option<&str>) -> Value {
    json!({ "type": "conversation.item.added", "item": item, "previous_item_id": previous })
}

pub(super) fn item_done(item: &Value, previous: Option<&str>) -> Value {
    json!({ "type": "conversation.item.done", "item": item, "previous_item_id": previous })
}

pub(super) fn item_retrieved(item: &Value) -> Value {
    json!({ "type": "conversation.item.retrieved", "item": item })
}

pub(super) fn item_deleted(item: &str) -> Value {
    json!({ "type": "conversation.item.deleted", "item_id": item })
}

pub(super) fn item_truncated(item: &str, content_index: u64, audio_end_ms: u64) -> Value {
    json!({
        "type": "conversation.item.truncated",
        "item_id": item, "content_index": content_index, "audio_end_ms": audio_end_ms,
    })
}

pub(super) fn transcription_delta(item: &str, delta: &str) -> Value {
    json!({
        "type": "conversation.item.input_audio_transcription.delta",
        "item_id": item, "content_index": 0, "delta": delta,
    })
}

pub(super) fn transcription_completed(item: &str, transcript: &str, seconds: f64) -> Value {
    json!({
        "type": "conversation.item.input_audio_transcription.completed",
        "item_id": item, "content_index": 0, "transcript": transcript,
        "usage": { "type": "duration", "seconds": (seconds * 1000.0).round() / 1000.0 },
    })
}

pub(super) fn transcription_failed(item: &str, code: &str, message: &str) -> Value {
    json!({
        "type": "conversation.item.input_audio_transcription.failed",
        "item_id": item, "content_index": 0, "error": { "type": "server_error", "code": code, "message": message },
    })
}

pub(super) fn response_created(response: &Value) -> Value {
    json!({ "type": "response.created", "response": response })
}

/// The number of further utterances that the session may have at the recognizer at once. A stack has no other limit: edges enforce those
/// of users.
pub(super) fn rate_limits_updated(limit: usize, remaining: usize) -> Value {
    json!({ "type": "rate_limits.updated", "rate_limits": [
        { "name": "requests", "limit": limit, "remaining": remaining, "reset_seconds": 0.0 },
    ]})
}

pub(super) fn response_done(response: &Value) -> Value {
    json!({ "type": "response.done", "response": response })
}

pub(super) fn output_item_added(response: &str, item: &Value) -> Value {
    json!({ "type": "response.output_item.added", "response_id": response, "output_index": 0, "item": item })
}

pub(super) fn output_item_done(response: &str, item: &Value) -> Value {
    json!({ "type": "response.output_item.done", "response_id": response, "output_index": 0, "item": item })
}

/// The place of content in a response; the protocol repeats it in every event about content.
pub(super) struct Place<'a> {
    pub(super) response: &'a str,
    pub(super) item: &'a str,
}

impl Place<'_> {
    fn event(&self, kind: &str, key: &str, value: Value) -> Value {
        let mut event = json!({
            "type": kind,
            "response_id": self.response, "item_id": self.item, "output_index": 0, "content_index": 0,
        });
        // Moved in: `json!` would copy it, and most outgoing bytes are audio.
        event[key] = value;
        event
    }

    pub(super) fn content_part_added(&self, part: Value) -> Value {
        self.event("response.content_part.added", "part", part)
    }

    pub(super) fn content_part_done(&self, part: Value) -> Value {
        self.event("response.content_part.done", "part", part)
    }

    pub(super) fn audio_transcript_delta(&self, delta: &str) -> Value {
        self.event("response.output_audio_transcript.delta", "delta", json!(delta))
    }

    pub(super) fn audio_transcript_done(&self, transcript: &str) -> Value {
        self.event("response.output_audio_transcript.done", "transcript", json!(transcript))
    }

    pub(super) fn audio_delta(&self, base64: String) -> Value {
        self.event("response.output_audio.delta", "delta", Value::String(base64))
    }

    pub(super) fn audio_done(&self) -> Value {
        json!({
            "type": "response.output_audio.done",
            "response_id": self.response, "item_id": self.item, "output_index": 0, "content_index": 0,
        })
    }

    /// The arguments of a function: no content, and so without an index of content.
    pub(super) fn arguments_delta(&self, call: &str, delta: &str) -> Value {
        json!({
            "type": "response.function_call_arguments.delta",
            "response_id": self.response, "item_id": self.item, "output_index": 0, "call_id": call, "delta": delta,
        })
    }

    pub(super) fn arguments_done(&self, call: &str, name: &str, arguments: &str) -> Value {
        json!({
            "type": "response.function_call_arguments.done",
            "response_id": self.response, "item_id": self.item, "output_index": 0, "call_id": call, "name": name,
            "arguments": arguments,
        })
    }

    pub(super) fn text_delta(&self, delta: &str) -> Value {
        self.event("response.output_text.delta", "delta", json!(delta))
    }

    pub(super) fn text_done(&self, text: &str) -> Value {
        self.event("response.output_text.done", "text", json!(text))
    }
}
