//! The settings of a session, which a client changes with `session.update`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use speech::endpoint::EndpointConfig;

use super::{
    fields::{FieldError, flag, given, only, refuse, text},
    format::AudioFormat,
    texts,
    tools::{self, Tool, ToolChoice},
};
use crate::form;

/// The settings in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Settings {
    pub(super) instructions: String,
    pub(super) modality: Modality,
    /// `None` is manual: the client commits.
    pub(super) turn_detection: Option<TurnDetection>,
    /// Always [`VOICE`]. A stack of the previous release that resumes the session reads it.
    pub(super) voice: String,
    /// 0.25..=1.5, as in the protocol.
    pub(super) speed: f32,
    /// Whether the client wants transcripts of the user's speech.
    pub(super) transcribes: bool,
    /// Whether the client wants the events `meridian.*`. Sessions of a release that sent them to everybody keep them.
    #[serde(default = "yes")]
    pub(super) ours: bool,
    pub(super) tools: Vec<Tool>,
    pub(super) tool_choice: ToolChoice,
    /// Whether a response may call several functions. None does; the session shows the client's value.
    pub(super) parallel_tool_calls: bool,
    /// Older releases know one format, and must not take over a session that has another.
    #[serde(skip_serializing_if = "AudioFormat::is_pcm")]
    pub(super) input_format: AudioFormat,
    #[serde(skip_serializing_if = "AudioFormat::is_pcm")]
    pub(super) output_format: AudioFormat,
    /// Whether the session is of the type that hears and never answers.
    #[serde(skip_serializing_if = "is_no")]
    pub(super) only_transcribes: bool,
}

fn is_no(flag: &bool) -> bool {
    !flag
}

fn yes() -> bool {
    true
}

/// The form of replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Modality {
    /// Audio and its transcript.
    Audio,
    Text,
}

impl Modality {
    /// The modality of a list of names.
    pub(super) fn of(names: &Value, place: &str) -> Result<Self, FieldError> {
        let names: Option<Vec<&str>> = names
            .as_array()
            .and_then(|names| names.iter().map(Value::as_str).collect());
        match names.as_deref() {
            Some(["text"]) => Ok(Self::Text),
            Some(["audio"] | ["audio", "text"] | ["text", "audio"]) => Ok(Self::Audio),
            _ => refuse(place, texts::UNKNOWN_MODALITY),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Text => "text",
        }
    }
}

/// Server-side voice activity detection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TurnDetection {
    pub(super) endpoint: EndpointConfig,
    /// Whether each utterance gets an answer without a request.
    pub(super) create_response: bool,
    /// Whether the assistant falls silent when the user begins to speak.
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
            voice: VOICE.to_owned(),
            speed: 1.0,
            transcribes: true,
            ours: false,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: false,
            input_format: AudioFormat::Pcm,
            output_format: AudioFormat::Pcm,
            only_transcribes: false,
        }
    }
}

/// The name of the only voice.
pub(super) const VOICE: &str = "meridian";
/// The voice and the recognizer that `openai-agents` and `@openai/agents-realtime` name by default.
const AGENTS_VOICE: &str = "ash";
const AGENTS_RECOGNIZER: &str = "gpt-4o-mini-transcribe";
const RECOGNIZER: &str = "meridian-asr";
/// The value in `session.include` that asks for the events `meridian.*`.
pub(super) const OURS: &str = "meridian.turn";

/// Longest instructions. The session only repeats them to the client, and is no place for a library.
const INSTRUCTIONS_CHARS_MAX: usize = 16_384;
/// Longest silence before an answer: a longer one would help no user, and keep audio in memory.
const VAD_MS_MAX: u64 = 10_000;

/// All fields of a session. A client may send back those that the server describes.
const SESSION: &[&str] = &[
    "type",
    "object",
    "id",
    "expires_at",
    "model",
    "instructions",
    "output_modalities",
    "audio",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_output_tokens",
    "tracing",
    "truncation",
    "include",
    "prompt",
    "reasoning",
    // The device's zone is no setting: see `opening::zone_in`.
    "meridian",
];

/// The fields of a session that only transcribes: those about answers would have no effect.
const TRANSCRIPTION_SESSION: &[&str] = &[
    "type",
    "object",
    "id",
    "expires_at",
    "model",
    "audio",
    "include",
    "meridian",
];

impl Settings {
    /// The least form of a checkpoint that a stack must know to go on with such a session.
    pub(super) fn form_needed(&self) -> u32 {
        match self.input_format.is_pcm() && self.output_format.is_pcm() && !self.only_transcribes {
            true => form::NEEDED,
            false => form::WITH_FORMATS,
        }
    }

    /// These settings with the changes that a client asks for: all of them, or none and the reason. Other fields stay. The server refuses
    /// values that it does not have, except the few that agents name by default.
    pub(super) fn updated(&self, change: &Value) -> Result<Self, FieldError> {
        let mut new = self.clone();
        let session = only(change, "session", SESSION)?;
        match text(session, "session", "type")? {
            None => {}
            Some("realtime") => new.only_transcribes = false,
            Some("transcription") => new.only_transcribes = true,
            Some(_) => return refuse("session.type", texts::UNKNOWN_SESSION_TYPE),
        }
        if new.only_transcribes {
            only(change, "session", TRANSCRIPTION_SESSION)?;
            if let Some(audio) = given(session, "audio") {
                only(audio, "session.audio", &["input"])?;
            }
        }
        text(session, "session", "model")?;
        if let Some(instructions) = session.get("instructions") {
            new.instructions = instructions_of(instructions, "session.instructions")?;
        }
        if let Some(modalities) = given(session, "output_modalities") {
            new.modality = Modality::of(modalities, "session.output_modalities")?;
        }
        if let Some(audio) = given(session, "audio") {
            new.audio(audio)?;
        }
        if let Some(tools) = given(session, "tools") {
            new.tools = tools::parse(tools, "session.tools")?;
        }
        if let Some(choice) = session.get("tool_choice") {
            new.tool_choice = tools::parse_choice(choice, &new.tools, "session.tool_choice")?;
        } else if matches!(&new.tool_choice, ToolChoice::Function(name) if new.tools.iter().all(|tool| tool.name != *name))
        {
            new.tool_choice = ToolChoice::Auto;
        }
        if let Some(parallel) = flag(session, "session", "parallel_tool_calls")? {
            new.parallel_tool_calls = parallel;
        }
        check_unused(session)?;
        if given(session, "prompt").is_some() {
            return refuse("session.prompt", texts::NO_PROMPTS);
        }
        if let Some(tokens) = given(session, "max_output_tokens") {
            output_tokens(tokens, "session.max_output_tokens")?;
        }
        if given(session, "truncation").is_some_and(|truncation| truncation != "auto") {
            return refuse("session.truncation", texts::UNKNOWN_TRUNCATION);
        }
        if let Some(include) = given(session, "include") {
            let names: Option<Vec<&str>> = include
                .as_array()
                .and_then(|names| names.iter().map(Value::as_str).collect());
            let Some(names) = names.filter(|names| names.iter().all(|name| *name == OURS)) else {
                return refuse("session.include", texts::unknown_include(OURS));
            };
            new.ours = !names.is_empty();
        }
        Ok(new)
    }

    fn audio(&mut self, audio: &Value) -> Result<(), FieldError> {
        let audio = only(audio, "session.audio", &["input", "output"])?;
        if let Some(input) = given(audio, "input") {
            const PLACE: &str = "session.audio.input";
            let input = only(
                input,
                PLACE,
                &["format", "transcription", "noise_reduction", "turn_detection"],
            )?;
            if let Some(format) = format_of(input, "session.audio.input.format")? {
                self.input_format = format;
            }
            if given(input, "noise_reduction").is_some() {
                return refuse("session.audio.input.noise_reduction", texts::NO_NOISE_REDUCTION);
            }
            match input.get("transcription") {
                None => {}
                Some(Value::Null) => self.transcribes = false,
                Some(transcription) => {
                    check_transcription(transcription)?;
                    self.transcribes = true;
                }
            }
            match input.get("turn_detection") {
                None => {}
                Some(Value::Null) => self.turn_detection = None,
                Some(detection) => {
                    let current = self.turn_detection.unwrap_or_default();
                    self.turn_detection = Some(turn_detection(current, detection)?);
                }
            }
        }
        if let Some(output) = given(audio, "output") {
            let output = only(output, "session.audio.output", &["format", "voice", "speed"])?;
            if let Some(format) = format_of(output, "session.audio.output.format")? {
                self.output_format = format;
            }
            check_voice(output, "session.audio.output.voice")?;
            if let Some(speed) = given(output, "speed") {
                match speed.as_f64() {
                    Some(speed) if (0.25..=1.5).contains(&speed) => self.speed = speed as f32,
                    _ => return refuse("session.audio.output.speed", texts::SPEED),
                }
            }
        }
        Ok(())
    }

    /// The session object of `session.created` and `session.updated`: the settings in force.
    pub(super) fn describe(&self, id: &str, model: &str) -> Value {
        let turn_detection = self.turn_detection.map(|detection| {
            json!({
                "type": "server_vad",
                // By way of text: 0.3_f32 as a JSON number would be 0.30000001192092896.
                "threshold": rounded(detection.endpoint.threshold),
                "prefix_padding_ms": detection.endpoint.prefix_padding_ms,
                "silence_duration_ms": detection.endpoint.silence_duration_ms,
                "create_response": detection.create_response,
                "interrupt_response": detection.interrupt_response,
                "idle_timeout_ms": null,
            })
        });
        let transcription = self
            .transcribes
            .then(|| json!({ "model": RECOGNIZER, "language": "en" }));
        let input = json!({
            "format": self.input_format.describe(),
            "transcription": transcription,
            "noise_reduction": null,
            "turn_detection": turn_detection,
        });
        if self.only_transcribes {
            return json!({
                "type": "transcription",
                "object": "realtime.transcription_session",
                "id": id,
                "include": null,
                "expires_at": null,
                "audio": { "input": input },
            });
        }
        json!({
            "type": "realtime",
            "object": "realtime.session",
            "id": id,
            "model": model,
            "output_modalities": [self.modality.name()],
            "instructions": self.instructions,
            "tools": self.tools.iter().map(Tool::describe).collect::<Vec<_>>(),
            "tool_choice": self.tool_choice.describe(),
            "parallel_tool_calls": self.parallel_tool_calls,
            "max_output_tokens": "inf",
            "truncation": "auto",
            "tracing": null,
            "reasoning": null,
            "prompt": null,
            "include": null,
            // An open session has no fixed end.
            "expires_at": null,
            "audio": {
                "input": input,
                "output": { "format": self.output_format.describe(), "voice": VOICE, "speed": rounded(self.speed) },
            },
        })
    }
}

fn rounded(value: f32) -> f64 {
    (f64::from(value) * 1000.0).round() / 1000.0
}

/// The instructions of a session or a response; null removes them.
pub(super) fn instructions_of(value: &Value, place: &str) -> Result<String, FieldError> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) if text.chars().count() <= INSTRUCTIONS_CHARS_MAX => Ok(text.clone()),
        Value::String(_) => refuse(place, texts::too_many_characters(INSTRUCTIONS_CHARS_MAX)),
        _ => refuse(place, texts::INSTRUCTIONS_ARE_NO_TEXT),
    }
}

/// The format of audio that a client names, if it names one. The recognizer would hear another than the one in force as noise.
pub(super) fn format_of(parent: &Map<String, Value>, place: &str) -> Result<Option<AudioFormat>, FieldError> {
    let Some(format) = given(parent, "format") else {
        return Ok(None);
    };
    let format = only(format, place, &["type", "rate"])?;
    match AudioFormat::named(format.get("type").and_then(Value::as_str), given(format, "rate")) {
        Some(format) => Ok(Some(format)),
        None => refuse(place, texts::UNKNOWN_FORMAT),
    }
}

/// Checks the voice. There is one; the default of `openai-agents`, which its users did not choose, passes for it, and others are refused.
pub(super) fn check_voice(output: &Map<String, Value>, place: &str) -> Result<(), FieldError> {
    let named = match given(output, "voice") {
        None => return Ok(()),
        Some(voice @ Value::Object(_)) => text(only(voice, place, &["id"])?, place, "id")?,
        Some(voice) => voice.as_str(),
    };
    match named {
        Some(VOICE | AGENTS_VOICE) => Ok(()),
        _ => refuse(place, texts::unknown_voice(VOICE)),
    }
}

/// Refuses fields that would change a session which has them. Null asks for nothing, and agents send `"tracing": "auto"` by default,
/// which leaves the choice to the server.
fn check_unused(session: &Map<String, Value>) -> Result<(), FieldError> {
    if given(session, "tracing").is_some_and(|tracing| tracing != "auto") {
        return refuse("session.tracing", texts::NO_TRACING);
    }
    check_reasoning(session, "session.reasoning")
}

/// Checks the effort of reasoning: no language model here could reason.
pub(super) fn check_reasoning(fields: &Map<String, Value>, place: &str) -> Result<(), FieldError> {
    match given(fields, "reasoning") {
        None => Ok(()),
        Some(_) => refuse(place, texts::NO_REASONING),
    }
}

/// Checks a limit of tokens: the server cuts no reply, because no model here counts tokens.
pub(super) fn output_tokens(value: &Value, place: &str) -> Result<(), FieldError> {
    match value == "inf" {
        true => Ok(()),
        false => refuse(place, texts::NO_TOKEN_LIMIT),
    }
}

fn check_transcription(change: &Value) -> Result<(), FieldError> {
    const PLACE: &str = "session.audio.input.transcription";
    const KNOWN: &[&str] = &["model", "language", "languages", "prompt", "delay", "keywords"];
    let fields = only(change, PLACE, KNOWN)?;
    // The words and the speed of the recognizer are fixed.
    for name in ["prompt", "keywords", "delay"] {
        let is_empty = |value: &Value| value == "" || value.as_array().is_some_and(Vec::is_empty);
        if given(fields, name).is_some_and(|value| !is_empty(value)) {
            return refuse(format!("{PLACE}.{name}"), texts::without_effect(name));
        }
    }
    if !matches!(
        text(fields, PLACE, "model")?,
        None | Some(RECOGNIZER | AGENTS_RECOGNIZER)
    ) {
        return refuse(format!("{PLACE}.model"), texts::unknown_recognizer(RECOGNIZER));
    }
    let is_english = |language: &str| language == "en" || language.starts_with("en-");
    if text(fields, PLACE, "language")?.is_some_and(|language| !is_english(language)) {
        return refuse(format!("{PLACE}.language"), texts::ONLY_ENGLISH);
    }
    if let Some(languages) = given(fields, "languages") {
        let is_list = |list: &Vec<Value>| list.iter().all(|language| language.as_str().is_some_and(is_english));
        if !languages.as_array().is_some_and(is_list) {
            return refuse(format!("{PLACE}.languages"), texts::ONLY_ENGLISH_LIST);
        }
    }
    Ok(())
}

fn turn_detection(current: TurnDetection, change: &Value) -> Result<TurnDetection, FieldError> {
    const PLACE: &str = "session.audio.input.turn_detection";
    let mut new = current;
    let fields = only(
        change,
        PLACE,
        &[
            "type",
            "threshold",
            "prefix_padding_ms",
            "silence_duration_ms",
            "create_response",
            "interrupt_response",
            "idle_timeout_ms",
            "eagerness",
        ],
    )?;
    match text(fields, PLACE, "type")? {
        None | Some("server_vad") => {
            if given(fields, "eagerness").is_some() {
                return refuse(format!("{PLACE}.eagerness"), texts::EAGERNESS_ELSEWHERE);
            }
        }
        // Turns end with silence here, so eagerness becomes the length of that silence.
        Some("semantic_vad") => {
            new.endpoint.silence_duration_ms = match text(fields, PLACE, "eagerness")? {
                Some("low") => 800,
                None | Some("auto" | "medium") => 500,
                Some("high") => 300,
                Some(_) => return refuse(format!("{PLACE}.eagerness"), texts::UNKNOWN_EAGERNESS),
            };
        }
        Some(_) => {
            return refuse(format!("{PLACE}.type"), texts::UNKNOWN_TURN_DETECTION);
        }
    }
    if let Some(threshold) = given(fields, "threshold") {
        match threshold.as_f64() {
            Some(threshold) if (0.0..=1.0).contains(&threshold) => new.endpoint.threshold = threshold as f32,
            _ => return refuse(format!("{PLACE}.threshold"), texts::THRESHOLD),
        }
    }
    if given(fields, "idle_timeout_ms").is_some() {
        return refuse(format!("{PLACE}.idle_timeout_ms"), texts::NO_IDLE_TIMEOUT);
    }
    for (key, target) in [
        ("prefix_padding_ms", &mut new.endpoint.prefix_padding_ms),
        ("silence_duration_ms", &mut new.endpoint.silence_duration_ms),
    ] {
        if let Some(value) = given(fields, key) {
            match value.as_u64() {
                Some(ms) if ms <= VAD_MS_MAX => *target = ms,
                _ => {
                    return refuse(format!("{PLACE}.{key}"), texts::milliseconds(key, VAD_MS_MAX));
                }
            }
        }
    }
    for (key, target) in [
        ("create_response", &mut new.create_response),
        ("interrupt_response", &mut new.interrupt_response),
    ] {
        if let Some(value) = flag(fields, PLACE, key)? {
            *target = value;
        }
    }
    Ok(new)
}

#[cfg(test)]
mod tests;
