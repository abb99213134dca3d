//! The description of a stack: the engines that Home Assistant may choose.

use serde_json::{Value, json};

/// The data of an `info` event. `model` is the name of the recognition model; empty for an engine without one.
pub(super) fn info(model: &str) -> Value {
    let model = if model.is_empty() { "meridian-asr" } else { model };
    json!({
        "asr": [program(json!({
            "models": [part(model, "Recognises English")],
            // The recognizer answers whole utterances, and Home Assistant finds out where they end.
            "supports_transcript_streaming": false,
            "requires_external_vad": true,
        }))],
        "tts": [program(json!({
            "voices": [part("meridian", "Speaks English")],
            "supports_synthesize_streaming": true,
        }))],
        "intent": [program(json!({ "models": [part("meridian", "Understands questions and commands")] }))],
        "handle": [program(json!({
            "models": [part("meridian", "Answers questions")],
            "supports_handled_streaming": false,
            "supports_home_control": false,
        }))],
        "wake": [], "mic": [], "snd": [],
    })
}

/// A service of this stack.
fn program(own: Value) -> Value {
    let mut program = artifact("meridian", "The Meridian voice stack");
    if let (Value::Object(fields), Value::Object(own)) = (&mut program, own) {
        fields.extend(own);
    }
    program
}

/// A model or a voice of a service.
fn part(name: &str, description: &str) -> Value {
    let mut part = artifact(name, description);
    part["languages"] = json!(["en"]);
    part
}

fn artifact(name: &str, description: &str) -> Value {
    json!({
        "name": name,
        "description": description,
        "attribution": { "name": "Meridian", "url": "" },
        "installed": true,
        "version": env!("CARGO_PKG_VERSION"),
    })
}
