use super::*;

#[test]
fn an_update_changes_what_it_mentions() {
    let settings = Settings::default();
    let change = json!({ "type": "realtime", "output_modalities": ["text"], "audio": {
        "input": { "format": { "type": "audio/pcm", "rate": 24000 }, "turn_detection": { "silence_duration_ms": 200 } },
        "output": { "speed": 1.2 },
    }});
    let new = settings.updated(&change).unwrap();
    assert_eq!(new.modality, Modality::Text);
    assert_eq!(new.turn_detection.unwrap().endpoint.silence_duration_ms, 200);
    assert_eq!(new.turn_detection.unwrap().endpoint.prefix_padding_ms, 300);
    assert_eq!(new.describe("s", "m")["audio"]["output"]["speed"], 1.2);

    let manual = new
        .updated(&json!({ "audio": { "input": { "turn_detection": null } } }))
        .unwrap();
    assert_eq!(manual.turn_detection, None);
    assert_eq!(manual.modality, Modality::Text);
}

/// The whole of what the two agents packages send when nobody configures anything.
#[test]
fn what_agents_ask_for_by_default_is_taken_and_what_is_in_force_is_described() {
    let change = json!({
        "type": "realtime", "model": "gpt-realtime", "instructions": "be kind", "output_modalities": ["audio"],
        "audio": {
            "input": {
                "format": { "type": "audio/pcm", "rate": 24000 }, "noise_reduction": null,
                "transcription": { "model": "gpt-4o-mini-transcribe" },
                "turn_detection": { "type": "semantic_vad", "interrupt_response": true },
            },
            "output": { "format": { "type": "audio/pcm", "rate": 24000 }, "voice": "ash", "speed": 1 },
        },
        "tools": [{ "type": "function", "name": "order_pizza", "description": "", "parameters": { "type": "object" } }],
        "tool_choice": "auto", "tracing": "auto", "parallel_tool_calls": true,
    });
    let new = Settings::default().updated(&change).unwrap();
    let described = new.describe("s", "m");
    assert_eq!(described["parallel_tool_calls"], true, "they may be, and never are");
    assert_eq!(described["instructions"], "be kind");
    assert_eq!(described["tools"][0]["name"], "order_pizza");
    assert_eq!(described["tool_choice"], "auto");
    assert_eq!(described["tracing"], Value::Null);
    let detection = &described["audio"]["input"]["turn_detection"];
    assert_eq!(detection["type"], "server_vad");
    assert_eq!(detection["silence_duration_ms"], 500);
    // A client may send back what it was told.
    assert_eq!(new.updated(&described).unwrap(), new);
}

/// A client that asks for nothing in so many words, or for what there is.
#[test]
fn what_is_in_force_anyway_may_be_asked_for() {
    for change in [
        json!({ "tracing": null, "reasoning": null, "include": [], "max_output_tokens": "inf" }),
        json!({ "include": null, "max_output_tokens": null, "parallel_tool_calls": false }),
        json!({ "audio": { "output": { "voice": "meridian" } } }),
        json!({ "audio": { "input": { "transcription": { "model": "meridian-asr", "language": "en" } } } }),
        json!({ "audio": { "input": { "turn_detection": { "type": "server_vad", "idle_timeout_ms": null } } } }),
    ] {
        assert_eq!(
            Settings::default().updated(&change).unwrap(),
            Settings::default(),
            "{change}"
        );
    }
}

#[test]
fn eagerness_is_a_length_of_silence() {
    for (eagerness, ms) in [("low", 800), ("medium", 500), ("auto", 500), ("high", 300)] {
        let detection = json!({ "type": "semantic_vad", "eagerness": eagerness });
        let change = json!({ "audio": { "input": { "turn_detection": detection } } });
        let new = Settings::default().updated(&change).unwrap();
        assert_eq!(new.turn_detection.unwrap().endpoint.silence_duration_ms, ms);
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_the_field() {
    let input = |field: &str, value: Value| json!({ "audio": { "input": { field: value } } });
    for (change, param) in [
        (json!({ "type": "translation" }), "session.type"),
        (
            json!({ "type": "transcription", "instructions": "be brief" }),
            "session.instructions",
        ),
        (
            json!({ "type": "transcription", "audio": { "output": { "speed": 1 } } }),
            "session.audio.output",
        ),
        (json!({ "instructions": 5 }), "session.instructions"),
        (json!({ "output_modalities": ["video"] }), "session.output_modalities"),
        (json!({ "output_modalities": "text" }), "session.output_modalities"),
        (
            input("format", json!({ "type": "audio/pcmu", "rate": 24_000 })),
            "session.audio.input.format",
        ),
        (input("format", json!("pcm16")), "session.audio.input.format"),
        (
            input("format", json!({ "type": "audio/pcm", "rate": 24000, "channels": 2 })),
            "session.audio.input.format.channels",
        ),
        (
            input("format", json!({ "type": "audio/pcm", "encoding": "f32" })),
            "session.audio.input.format.encoding",
        ),
        (
            json!({ "audio": { "output": { "format": { "type": "audio/pcm", "bits": 8 } } } }),
            "session.audio.output.format.bits",
        ),
        (
            input("noise_reduction", json!({ "type": "far_field", "strength": 1 })),
            "session.audio.input.noise_reduction",
        ),
        (input("colour", json!("blue")), "session.audio.input.colour"),
        (
            input("transcription", json!({ "language": "de" })),
            "session.audio.input.transcription.language",
        ),
        (
            input("transcription", json!({ "languages": "de" })),
            "session.audio.input.transcription.languages",
        ),
        (
            input("transcription", json!({ "languages": ["en", "de"] })),
            "session.audio.input.transcription.languages",
        ),
        (
            input("transcription", json!({ "languages": ["en", 5] })),
            "session.audio.input.transcription.languages",
        ),
        (
            input("transcription", json!({ "model": 5 })),
            "session.audio.input.transcription.model",
        ),
        (
            input("turn_detection", json!({ "idle_timeout_ms": "soon" })),
            "session.audio.input.turn_detection.idle_timeout_ms",
        ),
        (
            input("turn_detection", json!({ "type": "none" })),
            "session.audio.input.turn_detection.type",
        ),
        (
            input("turn_detection", json!({ "threshold": "high" })),
            "session.audio.input.turn_detection.threshold",
        ),
        (
            input("turn_detection", json!({ "type": "semantic_vad", "eagerness": "very" })),
            "session.audio.input.turn_detection.eagerness",
        ),
        (
            json!({ "audio": { "output": { "speed": 9 } } }),
            "session.audio.output.speed",
        ),
        (
            json!({ "audio": { "output": { "voice": 9 } } }),
            "session.audio.output.voice",
        ),
        (
            json!({ "audio": { "output": { "voice": { "id": "a", "foo": 1 } } } }),
            "session.audio.output.voice.foo",
        ),
        (
            json!({ "audio": { "output": { "voice": { "id": 9 } } } }),
            "session.audio.output.voice.id",
        ),
        (json!({ "tracing": 7 }), "session.tracing"),
        (
            json!({ "tracing": { "workflow_name": "night shift" } }),
            "session.tracing",
        ),
        (json!({ "reasoning": { "effort": "low" } }), "session.reasoning"),
        (json!({ "reasoning": 3 }), "session.reasoning"),
        (json!({ "max_output_tokens": 500 }), "session.max_output_tokens"),
        (json!({ "max_output_tokens": "many" }), "session.max_output_tokens"),
        (
            json!({ "include": ["item.input_audio_transcription.logprobs"] }),
            "session.include",
        ),
        (json!({ "include": "meridian.turn" }), "session.include"),
        (json!({ "parallel_tool_calls": "yes" }), "session.parallel_tool_calls"),
        (
            input("noise_reduction", json!({ "type": "near_field" })),
            "session.audio.input.noise_reduction",
        ),
        (
            input("transcription", json!({ "model": "whisper-1" })),
            "session.audio.input.transcription.model",
        ),
        (
            input(
                "turn_detection",
                json!({ "type": "server_vad", "idle_timeout_ms": 6000 }),
            ),
            "session.audio.input.turn_detection.idle_timeout_ms",
        ),
        (
            json!({ "audio": { "output": { "voice": "marin" } } }),
            "session.audio.output.voice",
        ),
        (
            json!({ "audio": { "output": { "voice": { "id": "voice_1234" } } } }),
            "session.audio.output.voice",
        ),
        (
            input("transcription", json!({ "prompt": "expect lamps" })),
            "session.audio.input.transcription.prompt",
        ),
        (
            input("transcription", json!({ "keywords": ["lamp"] })),
            "session.audio.input.transcription.keywords",
        ),
        (
            input("transcription", json!({ "delay": "low" })),
            "session.audio.input.transcription.delay",
        ),
        (
            json!({ "truncation": { "type": "retention_ratio", "retention_ratio": 0.8 } }),
            "session.truncation",
        ),
        (json!({ "truncation": "disabled" }), "session.truncation"),
        (
            json!({ "input_audio_transcription": null }),
            "session.input_audio_transcription",
        ),
        (json!({ "max_output_tokens": 0 }), "session.max_output_tokens"),
        (json!({ "prompt": { "id": "p" } }), "session.prompt"),
        (json!({ "tool_choice": "fly" }), "session.tool_choice"),
        // The beta protocol's flat fields.
        (json!({ "modalities": ["text"] }), "session.modalities"),
        (
            json!({ "input_audio_format": "g711_ulaw" }),
            "session.input_audio_format",
        ),
        (json!({ "turn_detection": null }), "session.turn_detection"),
        (json!({ "voice": "ash" }), "session.voice"),
        (json!({ "temperature": 0.8 }), "session.temperature"),
        (json!(7), "session"),
    ] {
        assert_eq!(
            Settings::default().updated(&change).unwrap_err().param,
            param,
            "{change}"
        );
    }
}
