//! Reads the events of a server, reduced to those that a caller needs. An unknown event is not an error, because
//! servers gain new events.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::Value;

use crate::texts;

/// One event of the server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    SessionCreated {
        session: Option<String>,
    },
    /// The server detected the end of the utterance.
    SpeechEnded,
    Transcribed {
        text: String,
        heard: Option<Duration>,
    },
    TranscriptionFailed(String),
    ResponseCreated,
    /// Audio of the reply, 16-bit little-endian at 24 kHz.
    Audio(Vec<u8>),
    ReplyText(String),
    ResponseDone {
        status: String,
        detail: String,
    },
    TurnReport(TurnReport),
    Notice(Notice),
    Error(ServerError),
    Other,
}

/// The content of `meridian.turn`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct TurnReport {
    pub(crate) transcript: Option<String>,
    pub(crate) intent: String,
    pub(crate) reply: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) timings: Timings,
}

/// The content of `error`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ServerError {
    pub(crate) kind: String,
    pub(crate) code: String,
    pub(crate) message: String,
}

/// The durations of a turn's stages in milliseconds, as the server measured them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timings {
    /// Speech to text, from the end of the speech.
    pub asr_ms: Option<f64>,
    /// Text to intent.
    pub nlu_ms: Option<f64>,
    /// Intent to reply.
    pub skill_ms: Option<f64>,
    /// Reply text to the first audio.
    pub tts_ms: Option<f64>,
    /// All stages, from the end of the speech to the first audio.
    pub first_audio_ms: Option<f64>,
}

/// A `meridian.notice`: a message that may interest the user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notice {
    /// The kind of the notice.
    pub code: String,
    /// The message as text, such as "Connecting to backup".
    pub message: String,
    /// The new region, if the session moved.
    pub to: Option<String>,
    /// The affinity token that leads a later call to the new region.
    pub affinity: Option<String>,
}

/// Longest text of an error, in characters. Logs and reports include the text.
const ERROR_LENGTH_MAX: usize = 300;

pub(crate) fn bounded(text: &str) -> String {
    text.chars().take(ERROR_LENGTH_MAX).collect()
}

/// Reads an event. The error says what is wrong with the text.
pub(crate) fn read(text: &str) -> Result<Event, String> {
    let event: Value = serde_json::from_str(text).map_err(|error| texts::not_json(&error))?;
    let Some(kind) = event.get("type").and_then(Value::as_str) else {
        return Err(texts::NO_TYPE.to_owned());
    };
    Ok(match kind {
        "session.created" => Event::SessionCreated {
            session: text_at(&event, "/session/id"),
        },
        "input_audio_buffer.speech_stopped" | "input_audio_buffer.committed" => Event::SpeechEnded,
        "conversation.item.input_audio_transcription.completed" => Event::Transcribed {
            text: text_at(&event, "/transcript").unwrap_or_default(),
            heard: number_at(&event, "/usage/seconds").and_then(|s| Duration::try_from_secs_f64(s).ok()),
        },
        "conversation.item.input_audio_transcription.failed" => {
            Event::TranscriptionFailed(bounded(&text_at(&event, "/error/message").unwrap_or_default()))
        }
        "response.created" => Event::ResponseCreated,
        // Servers of the beta protocol use the older name.
        "response.output_audio.delta" | "response.audio.delta" => {
            let delta = event.get("delta").and_then(Value::as_str).unwrap_or_default();
            Event::Audio(BASE64.decode(delta).map_err(|error| texts::not_base64(&error))?)
        }
        "response.output_audio_transcript.done" | "response.audio_transcript.done" => {
            Event::ReplyText(text_at(&event, "/transcript").unwrap_or_default())
        }
        "response.done" => Event::ResponseDone {
            status: text_at(&event, "/response/status").unwrap_or_else(|| "completed".to_owned()),
            detail: bounded(
                &text_at(&event, "/response/status_details/error/message")
                    .or_else(|| text_at(&event, "/response/status_details/reason"))
                    .unwrap_or_default(),
            ),
        },
        "meridian.turn" => Event::TurnReport(TurnReport {
            transcript: text_at(&event, "/transcript"),
            intent: text_at(&event, "/intent").unwrap_or_default(),
            reply: text_at(&event, "/reply"),
            region: text_at(&event, "/region"),
            timings: Timings {
                asr_ms: number_at(&event, "/timings_ms/asr"),
                nlu_ms: number_at(&event, "/timings_ms/nlu"),
                skill_ms: number_at(&event, "/timings_ms/skill"),
                tts_ms: number_at(&event, "/timings_ms/tts"),
                first_audio_ms: number_at(&event, "/timings_ms/first_audio"),
            },
        }),
        "meridian.notice" => Event::Notice(Notice {
            code: bounded(&text_at(&event, "/code").unwrap_or_default()),
            message: bounded(
                &text_at(&event, "/message")
                    .or_else(|| text_at(&event, "/text"))
                    .unwrap_or_default(),
            ),
            to: text_at(&event, "/to").map(|region| bounded(&region)),
            affinity: text_at(&event, "/affinity").map(|token| bounded(&token)),
        }),
        "error" => Event::Error(ServerError {
            kind: bounded(&text_at(&event, "/error/type").unwrap_or_default()),
            code: bounded(&text_at(&event, "/error/code").unwrap_or_default()),
            message: bounded(&text_at(&event, "/error/message").unwrap_or_default()),
        }),
        _ => Event::Other,
    })
}

fn text_at(event: &Value, pointer: &str) -> Option<String> {
    event.pointer(pointer)?.as_str().map(str::to_owned)
}

fn number_at(event: &Value, pointer: &str) -> Option<f64> {
    event.pointer(pointer)?.as_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_unknown_ones_are_let_pass_and_nonsense_is_named() {
        for (text, expected) in [
            (
                r#"{"type":"session.created","session":{"id":"s1"}}"#,
                Ok(Event::SessionCreated {
                    session: Some("s1".into()),
                }),
            ),
            (
                r#"{"type":"conversation.item.input_audio_transcription.completed","transcript":"stop",
                    "usage":{"type":"duration","seconds":1.25}}"#,
                Ok(Event::Transcribed {
                    text: "stop".into(),
                    heard: Some(Duration::from_millis(1_250)),
                }),
            ),
            (
                r#"{"type":"response.output_audio.delta","delta":"AQI="}"#,
                Ok(Event::Audio(vec![1, 2])),
            ),
            (
                r#"{"type":"response.done","response":{"status":"failed","status_details":{"error":{"message":"tts"}}}}"#,
                Ok(Event::ResponseDone {
                    status: "failed".into(),
                    detail: "tts".into(),
                }),
            ),
            (
                r#"{"type":"meridian.turn","intent":"stop","timings_ms":{"asr":1.5}}"#,
                Ok(Event::TurnReport(TurnReport {
                    intent: "stop".into(),
                    timings: Timings {
                        asr_ms: Some(1.5),
                        ..Timings::default()
                    },
                    ..TurnReport::default()
                })),
            ),
            (r#"{"type":"tomorrow.invented","x":[1]}"#, Ok(Event::Other)),
            (r#"{"kind":"x"}"#, Err("an event has no type")),
            (
                r#"{"type":"response.output_audio.delta","delta":"*"}"#,
                Err("audio is not base64"),
            ),
            ("[", Err("an event is not JSON")),
        ] {
            match (read(text), expected) {
                (Ok(event), Ok(expected)) => assert_eq!(event, expected),
                (Err(error), Err(expected)) => assert!(error.starts_with(expected), "{error}"),
                (got, expected) => panic!("{text}: {got:?}, expected {expected:?}"),
            }
        }
    }
}
