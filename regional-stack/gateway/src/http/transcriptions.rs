//! Speech to text over HTTP: `POST /v1/audio/transcriptions` (multipart, OpenAI) and `POST /api/v1/voice/transcribe` (a
//! WAV file as the body).

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{FromRequest as _, Multipart, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use serde_json::json;

use super::{body, events, subtitles};
use crate::{
    caller::class_of,
    error::ApiError,
    queue::Class,
    stack::Stack,
    texts,
    transcribing::{Segment, Transcribing, transcribe},
};

/// `POST /v1/audio/transcriptions`
pub(super) async fn openai(State(stack): State<Arc<Stack>>, request: Request) -> Result<Response, ApiError> {
    let class = class_of(request.headers(), Class::Bulk);
    let form = Form::read(&stack, request).await?;
    let format = match form.response_format.as_deref() {
        None | Some("json") => Format::Json,
        Some("text") => Format::Text,
        Some("verbose_json") => Format::VerboseJson,
        Some("srt") => Format::Subtitles(subtitles::Kind::Srt),
        Some("vtt") => Format::Subtitles(subtitles::Kind::Vtt),
        Some(other) => {
            let message = texts::unknown_transcription_format(other);
            return Err(ApiError::bad_request("unsupported_value", "response_format", message));
        }
    };
    if form.stream && !matches!(format, Format::Json | Format::Text) {
        let message = texts::NO_STREAMED_FORMAT;
        return Err(ApiError::bad_request("unsupported_value", "stream", message));
    }
    if form.segments && !matches!(format, Format::VerboseJson) {
        let message = texts::TIMES_WITHOUT_VERBOSE;
        return Err(ApiError::bad_request(
            "unsupported_value",
            "timestamp_granularities",
            message,
        ));
    }
    let Some(file) = form.file else {
        let message = texts::FORM_WITHOUT_FILE;
        return Err(ApiError::bad_request("missing_required_parameter", "file", message));
    };
    if form.stream {
        let mut transcribing = Transcribing::begin(&stack, class, file).await?;
        // The answer waits for the first words: an error until then still has a status code.
        let first = transcribing.next(&stack).await?;
        return Ok(events::answer(
            Streaming::new(transcribing, stack, form.upload).into_events(first),
        ));
    }
    let transcription = transcribe(&stack, class, file).await?;
    let text = transcription.text();
    let seconds = transcription.seconds;
    Ok(match format {
        Format::Subtitles(kind) => {
            let kind_of_text = [(header::CONTENT_TYPE, HeaderValue::from_static(kind.content_type()))];
            (kind_of_text, kind.write(&transcription.segments)).into_response()
        }
        Format::Text => format!("{text}\n").into_response(),
        Format::Json => {
            Json(json!({ "text": text, "usage": { "type": "duration", "seconds": seconds.ceil() } })).into_response()
        }
        Format::VerboseJson => {
            let segments: Vec<_> = transcription
                .segments
                .iter()
                .enumerate()
                .map(|(id, segment)| {
                    json!({
                        "id": id, "seek": 0, "start": rounded(segment.start_s), "end": rounded(segment.end_s), "text": segment.text,
                        "tokens": [], "temperature": 0.0, "compression_ratio": 1.0,
                        "avg_logprob": rounded(segment.confidence.max(1e-6).ln()),
                        "no_speech_prob": if segment.text.is_empty() { 1.0 } else { 0.0 },
                    })
                })
                .collect();
            Json(json!({
                "task": "transcribe", "language": "english", "duration": rounded(seconds), "text": text, "segments": segments,
                "usage": { "type": "duration", "seconds": seconds.ceil() },
            }))
            .into_response()
        }
    })
}

/// `POST /api/v1/voice/transcribe`
pub(super) async fn plain(
    State(stack): State<Arc<Stack>>,
    request: Request,
) -> Result<Json<serde_json::Value>, ApiError> {
    let class = class_of(request.headers(), Class::Bulk);
    let (parts, body) = request.into_parts();
    let upload = body::read(&stack, &parts.headers, body).await?;
    let transcription = transcribe(&stack, class, upload.bytes.clone()).await?;
    Ok(Json(json!({
        "text": transcription.text(),
        "confidence": rounded(transcription.confidence()),
        "duration_s": rounded(transcription.seconds),
        "region": stack.config.region,
    })))
}

/// Rounds to three decimals: a 32-bit float as JSON shows digits that mean nothing.
fn rounded(value: f32) -> f64 {
    (f64::from(value) * 1000.0).round() / 1000.0
}

enum Format {
    Json,
    Text,
    VerboseJson,
    Subtitles(subtitles::Kind),
}

/// A transcription that is sent while it is made.
struct Streaming {
    transcribing: Transcribing,
    stack: Arc<Stack>,
    /// The share of `uploads_max`, held until the last event is made.
    _upload: body::Upload,
    /// The words so far.
    text: String,
}

impl Streaming {
    fn new(transcribing: Transcribing, stack: Arc<Stack>, upload: body::Upload) -> Self {
        Self {
            transcribing,
            stack,
            _upload: upload,
            text: String::new(),
        }
    }

    /// The words as events, those of the first segment at once.
    fn into_events(self, first: Option<Segment>) -> impl Stream<Item = Result<String, Infallible>> {
        let state = (Some(self), Some(first));
        stream::unfold(state, async |(streaming, first)| {
            let mut streaming = streaming?;
            let next = match first {
                Some(first) => Ok(first),
                None => streaming.transcribing.next(&streaming.stack).await,
            };
            let (event, streaming) = match next {
                Ok(Some(segment)) => (streaming.delta(&segment.text), Some(streaming)),
                Ok(None) => {
                    let done = json!({ "type": "transcript.text.done", "text": streaming.text });
                    (events::event(&done) + events::DONE, None)
                }
                Err(error) => (events::failed(&error), None),
            };
            Some((Ok(event), (streaming, None)))
        })
    }

    /// The event of further words. All deltas together are the whole text.
    fn delta(&mut self, words: &str) -> String {
        if words.is_empty() {
            return String::new();
        }
        let blank = if self.text.is_empty() { "" } else { " " };
        let delta = format!("{blank}{words}");
        self.text.push_str(&delta);
        events::event(&json!({ "type": "transcript.text.delta", "delta": delta }))
    }
}

struct Form {
    /// The share of `uploads_max`, held until the answer is made: it counts the memory in use.
    upload: body::Upload,
    file: Option<Bytes>,
    response_format: Option<String>,
    stream: bool,
    /// Whether the caller asks for the times of segments by name.
    segments: bool,
}

/// The fields of a form. The one model serves any model name, so that clients need no change. It cannot use a prompt, which is a
/// hint.
const KNOWN: &str = "file, model, language, languages, prompt, response_format, temperature, stream, include, \
                     timestamp_granularities, chunking_strategy";

impl Form {
    async fn read(stack: &Stack, request: Request) -> Result<Self, ApiError> {
        let (parts, stream) = request.into_parts();
        let is_form = parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| {
                kind.trim_start()
                    .to_ascii_lowercase()
                    .starts_with("multipart/form-data")
            });
        let upload = body::read(stack, &parts.headers, stream).await?;
        if !is_form {
            let message = texts::NO_FORM;
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_content_type", message));
        }
        let broken = |what: String| {
            let message = texts::bad_form(&what);
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_multipart", message)
        };
        let request = Request::from_parts(parts, Body::from(upload.bytes.clone()));
        let mut multipart = Multipart::from_request(request, &())
            .await
            .map_err(|error| broken(error.body_text()))?;
        let mut form = Self {
            upload,
            file: None,
            response_format: None,
            stream: false,
            segments: false,
        };
        while let Some(field) = multipart
            .next_field()
            .await
            .map_err(|error| broken(error.body_text()))?
        {
            let name = field.name().unwrap_or_default().to_owned();
            let value = field.bytes().await.map_err(|error| broken(error.body_text()))?;
            // Clients write lists as fields of one name with brackets.
            match name.strip_suffix("[]").unwrap_or(&name) {
                "file" if form.file.is_some() => {
                    let message = texts::SECOND_FILE;
                    return Err(ApiError::bad_request("invalid_value", "file", message));
                }
                "file" => form.file = Some(value),
                "response_format" => form.response_format = Some(String::from_utf8_lossy(&value).into_owned()),
                "stream" => form.stream = is_true("stream", &value)?,
                "language" => check_language("language", &value)?,
                "languages" => check_language("languages", &value)?,
                "temperature" => check_temperature(&value)?,
                "timestamp_granularities" => form.segments |= one_of("timestamp_granularities", &value, "segment")?,
                // The stack always cuts long files at their pauses.
                "chunking_strategy" => {
                    one_of("chunking_strategy", &value, "auto")?;
                }
                "include" if value.is_empty() => {}
                "include" => {
                    let message = texts::NO_INCLUDE;
                    return Err(ApiError::bad_request("unsupported_value", "include", message));
                }
                "model" | "prompt" => {}
                _ => return Err(ApiError::unknown(&name, KNOWN)),
            }
        }
        Ok(form)
    }
}

/// Reads a flag. A form has text only, and each language has its own words for yes and no: Python writes `True`, browsers write `on`.
fn is_true(param: &'static str, value: &[u8]) -> Result<bool, ApiError> {
    match value.trim_ascii().to_ascii_lowercase().as_slice() {
        b"true" | b"1" | b"yes" | b"on" => Ok(true),
        b"false" | b"0" | b"no" | b"off" | b"" | b"null" | b"none" => Ok(false),
        _ => {
            let message = texts::no_flag(param);
            Err(ApiError::bad_request("invalid_value", param, message))
        }
    }
}

/// Whether a field has the one value that is available; it may also be empty.
fn one_of(param: &'static str, value: &[u8], known: &str) -> Result<bool, ApiError> {
    match value.trim_ascii() {
        b"" => Ok(false),
        value if value == known.as_bytes() => Ok(true),
        _ => {
            let message = texts::one_value(param, known);
            Err(ApiError::bad_request("unsupported_value", param, message))
        }
    }
}

/// Checks a temperature. The models have none: every value that the API allows gives the same text.
fn check_temperature(value: &[u8]) -> Result<(), ApiError> {
    let value = String::from_utf8_lossy(value.trim_ascii());
    let is_valid = value.is_empty() || value.parse().is_ok_and(|value: f32| (0.0..=1.0).contains(&value));
    if is_valid {
        return Ok(());
    }
    let message = texts::TEMPERATURE;
    Err(ApiError::bad_request("invalid_value", "temperature", message))
}

/// Refuses languages other than English: English letters for German speech would look like an answer.
fn check_language(param: &'static str, value: &[u8]) -> Result<(), ApiError> {
    let language = value.trim_ascii().to_ascii_lowercase();
    let primary = language
        .split(|byte| matches!(byte, b'-' | b'_'))
        .next()
        .unwrap_or_default();
    if matches!(primary, b"" | b"en" | b"eng" | b"english") {
        return Ok(());
    }
    // The text comes from a stranger, so the echo is bounded.
    let shown: String = String::from_utf8_lossy(&language).chars().take(20).collect();
    let message = texts::unknown_language(&shown);
    Err(ApiError::bad_request("unsupported_value", param, message))
}
