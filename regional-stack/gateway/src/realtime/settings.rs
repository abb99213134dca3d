//! The settings of a session that a client may change, with `session.update`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use speech::endpoint::EndpointConfig;

/// Settings as they are in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) instructions: String,
    pub(super) modality: Modality,
    /// `None` is manual: the client commits.
    pub(super) turn_detection: Option<TurnDetection>,
    pub(super) voice: String,
    /// 0.25..=1.5, as in the protocol.
    pub(super) speed: f32,
}

/// What replies are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Modality {
    /// Audio and its transcript.
    Audio,
    Text,
}

impl Modality {
    pub(super) fn parse(names: &[&str]) -> Option<Self> {
        match names {
            ["text"] => Some(Self::Text),
            ["audio"] | ["audio", "text"] | ["text", "audio"] => Some(Self::Audio),
            _ => None,
        }
    }
}

/// Server-side voice activity detection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct TurnDetection {
    pub(super) endpoint: EndpointConfig,
    /// Answer each utterance without being asked.
    pub(super) create_response: bool,
    /// Stop speaking when the user begins.
    pub(super) interrupt_response: bool,
}

impl Default for TurnDetection {
    fn default() -> Self {
        Self {
            endpoint: EndpointConfig::default(),
            create_response: true,
            interrupt_response: true,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            instructions: String::new(),
            modality: Modality::Audio,
            turn_detection: Some(TurnDetection::default()),
            voice: "meridian".to_owned(),
            speed: 1.0,
        }
    }
}

/// A value that cannot be taken.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct SettingsError {
    pub(super) param: &'static str,
    pub(super) message: String,
}

fn refuse<T>(param: &'static str, message: impl Into<String>) -> Result<T, SettingsError> {
    Err(SettingsError {
        param,
        message: message.into(),
    })
}

/// Instructions are kept to be repeated to the client, no more; a client may not store a library here.
const INSTRUCTIONS_CHARS_MAX: usize = 16_384;
const VOICE_CHARS_MAX: usize = 64;
/// Longer would keep the user waiting past any purpose, and the audio in memory.
const VAD_MS_MAX: u64 = 10_000;

impl Settings {
    /// These settings with the changes a client asks for: all of them, or none and the reason. What is not mentioned
    /// stays; what has no effect here (tools, noise reduction, transcription model) is not refused and not repeated back.
    pub(super) fn updated(&self, change: &Value) -> Result<Self, SettingsError> {
        let mut new = self.clone();
        if !change.is_object() {
            return refuse("session", "session must be an object");
        }
        match change.get("type").and_then(Value::as_str) {
            None | Some("realtime") => {}
            Some(_) => return refuse("session.type", "only sessions of type \"realtime\" exist here"),
        }
        if let Some(text) = change.get("instructions").and_then(Value::as_str) {
            if text.chars().count() > INSTRUCTIONS_CHARS_MAX {
                return refuse(
                    "session.instructions",
                    format!("use at most {INSTRUCTIONS_CHARS_MAX} characters"),
                );
            }
            text.clone_into(&mut new.instructions);
        }
        if let Some(modalities) = change.get("output_modalities") {
            let names: Vec<&str> = modalities
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let Some(modality) = Modality::parse(&names) else {
                return refuse("session.output_modalities", "use [\"audio\"] or [\"text\"]");
            };
            new.modality = modality;
        }
        for (pointer, param) in [
            ("/audio/input/format", "session.audio.input.format"),
            ("/audio/output/format", "session.audio.output.format"),
        ] {
            if let Some(format) = change.pointer(pointer).filter(|format| !format.is_null()) {
                let kind = format.get("type").and_then(Value::as_str);
                let rate = format.get("rate").and_then(Value::as_u64).unwrap_or(24_000);
                if kind != Some("audio/pcm") || rate != 24_000 {
                    return refuse(
                        param,
                        "use {\"type\": \"audio/pcm\", \"rate\": 24000}: 16-bit little-endian, mono",
                    );
                }
            }
        }
        if let Some(voice) = change.pointer("/audio/output/voice").and_then(Value::as_str) {
            new.voice = voice.chars().take(VOICE_CHARS_MAX).collect();
        }
        if let Some(speed) = change.pointer("/audio/output/speed").filter(|speed| !speed.is_null()) {
            match speed.as_f64() {
                Some(speed) if (0.25..=1.5).contains(&speed) => new.speed = speed as f32,
                _ => return refuse("session.audio.output.speed", "use a speed between 0.25 and 1.5"),
            }
        }
        match change.pointer("/audio/input/turn_detection") {
            None => {}
            Some(Value::Null) => new.turn_detection = None,
            Some(detection) => {
                let current = new.turn_detection.unwrap_or_default();
                new.turn_detection = Some(turn_detection(current, detection)?);
            }
        }
        Ok(new)
    }

    /// The session object of `session.created` and `session.updated`.
    pub(super) fn describe(&self, id: &str, model: &str) -> Value {
        let turn_detection = self.turn_detection.map(|detection| {
            json!({
                "type": "server_vad",
                // Through text, because 0.3_f32 as a JSON number would be 0.30000001192092896.
                "threshold": rounded(detection.endpoint.threshold),
                "prefix_padding_ms": detection.endpoint.prefix_padding_ms,
                "silence_duration_ms": detection.endpoint.silence_duration_ms,
                "create_response": detection.create_response,
                "interrupt_response": detection.interrupt_response,
                "idle_timeout_ms": null,
            })
        });
        let modality = match self.modality {
            Modality::Audio => "audio",
            Modality::Text => "text",
        };
        let format = json!({ "type": "audio/pcm", "rate": 24_000 });
        json!({
            "type": "realtime",
            "object": "realtime.session",
            "id": id,
            "model": model,
            "output_modalities": [modality],
            "instructions": self.instructions,
            "tools": [],
            "tool_choice": "none",
            "audio": {
                "input": {
                    "format": format,
                    "transcription": { "model": "meridian-asr", "language": "en" },
                    "noise_reduction": null,
                    "turn_detection": turn_detection,
                },
                "output": { "format": format, "voice": self.voice, "speed": rounded(self.speed) },
            },
        })
    }
}

fn rounded(value: f32) -> f64 {
    (f64::from(value) * 1000.0).round() / 1000.0
}

fn turn_detection(current: TurnDetection, change: &Value) -> Result<TurnDetection, SettingsError> {
    const PARAM: &str = "session.audio.input.turn_detection";
    let mut new = current;
    match change.get("type").and_then(Value::as_str) {
        None | Some("server_vad") => {}
        Some(_) => {
            return refuse(
                PARAM,
                "use {\"type\": \"server_vad\"}, or null to commit audio yourself",
            );
        }
    }
    if let Some(threshold) = change.get("threshold").filter(|value| !value.is_null()) {
        match threshold.as_f64() {
            Some(threshold) if (0.0..=1.0).contains(&threshold) => new.endpoint.threshold = threshold as f32,
            _ => return refuse(PARAM, "use a threshold between 0 and 1"),
        }
    }
    for (key, target) in [
        ("prefix_padding_ms", &mut new.endpoint.prefix_padding_ms),
        ("silence_duration_ms", &mut new.endpoint.silence_duration_ms),
    ] {
        if let Some(value) = change.get(key).filter(|value| !value.is_null()) {
            match value.as_u64() {
                Some(ms) if ms <= VAD_MS_MAX => *target = ms,
                _ => return refuse(PARAM, format!("use a {key} between 0 and {VAD_MS_MAX}")),
            }
        }
    }
    for (key, target) in [
        ("create_response", &mut new.create_response),
        ("interrupt_response", &mut new.interrupt_response),
    ] {
        if let Some(value) = change.get(key).filter(|value| !value.is_null()) {
            match value.as_bool() {
                Some(value) => *target = value,
                None => return refuse(PARAM, format!("{key} must be true or false")),
            }
        }
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_what_it_mentions() {
        let settings = Settings::default();
        let change = json!({ "type": "realtime", "output_modalities": ["text"], "tools": [{}], "audio": {
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

    #[test]
    fn what_cannot_be_done_is_refused_with_the_field() {
        for (change, param) in [
            (json!({ "type": "transcription" }), "session.type"),
            (json!({ "output_modalities": ["video"] }), "session.output_modalities"),
            (
                json!({ "audio": { "input": { "format": { "type": "audio/pcmu" } } } }),
                "session.audio.input.format",
            ),
            (
                json!({ "audio": { "output": { "speed": 9 } } }),
                "session.audio.output.speed",
            ),
            (
                json!({ "audio": { "input": { "turn_detection": { "type": "semantic_vad" } } } }),
                "session.audio.input.turn_detection",
            ),
            (
                json!({ "audio": { "input": { "turn_detection": { "threshold": "high" } } } }),
                "session.audio.input.turn_detection",
            ),
            (json!(7), "session"),
        ] {
            assert_eq!(
                Settings::default().updated(&change).unwrap_err().param,
                param,
                "{change}"
            );
        }
    }
}
