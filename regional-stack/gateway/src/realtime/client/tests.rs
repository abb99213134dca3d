use serde_json::json;

use super::*;

#[test]
fn every_known_type_parses_with_its_fields() {
    for (kind, fields) in [
        ("session.update", json!({ "session": {} })),
        ("input_audio_buffer.append", json!({ "audio": "" })),
        ("input_audio_buffer.commit", json!({})),
        ("input_audio_buffer.clear", json!({})),
        (
            "conversation.item.create",
            json!({ "item": { "role": "user", "content": [] }, "previous_item_id": "root" }),
        ),
        ("conversation.item.delete", json!({ "item_id": "i" })),
        ("conversation.item.retrieve", json!({ "item_id": "i" })),
        (
            "conversation.item.truncate",
            json!({ "item_id": "i", "content_index": 0, "audio_end_ms": 1 }),
        ),
        ("response.create", json!({ "response": null })),
        ("response.cancel", json!({})),
        ("meridian.playback", json!({ "underruns": 1 })),
    ] {
        let mut event = fields;
        event["type"] = json!(kind);
        event["event_id"] = json!("e1");
        let parsed = ClientEvent::parse(&event.to_string()).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(parsed.event_id.as_deref(), Some("e1"), "{kind}");
        assert!(KNOWN.contains(&kind));
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (text, code, param) in [
        ("{", "invalid_json", None),
        ("[]", "missing_required_parameter", Some("type")),
        (r#"{"type":"session.begin"}"#, "invalid_value", Some("type")),
        (
            r#"{"type":"input_audio_buffer.append"}"#,
            "missing_required_parameter",
            Some("audio"),
        ),
        (
            r#"{"type":"input_audio_buffer.append","audio":5}"#,
            "invalid_value",
            Some("audio"),
        ),
        (
            r#"{"type":"input_audio_buffer.commit","force":true}"#,
            "unknown_parameter",
            Some("force"),
        ),
        (
            r#"{"type":"conversation.item.truncate","item_id":"a","content_index":0,"audio_end_ms":-1}"#,
            "invalid_value",
            Some("audio_end_ms"),
        ),
        (
            r#"{"type":"conversation.item.create","item":{"type":"mcp_call"}}"#,
            "invalid_value",
            Some("item.type"),
        ),
        (
            r#"{"type":"conversation.item.create","item":{"content":[{"type":"input_text"}]}}"#,
            "missing_required_parameter",
            Some("item.content[0].text"),
        ),
        (
            r#"{"type":"conversation.item.create","item":{"content":[{"type":"input_image","image_url":"x"}]}}"#,
            "invalid_value",
            Some("item.content[0].type"),
        ),
        (
            r#"{"type":"conversation.item.create","item":{"type":"function_call_output","output":""}}"#,
            "missing_required_parameter",
            Some("item.call_id"),
        ),
        (
            r#"{"type":"response.create","response":{"modalities":["text"]}}"#,
            "unknown_parameter",
            Some("response.modalities"),
        ),
        (
            r#"{"type":"response.create","response":{"conversation":"main"}}"#,
            "invalid_value",
            Some("response.conversation"),
        ),
        (
            r#"{"type":"response.create","response":{"metadata":{"a":1}}}"#,
            "invalid_value",
            Some("response.metadata"),
        ),
    ] {
        let error = ClientEvent::parse(text).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (code, param), "{text}: {error}");
    }
}
