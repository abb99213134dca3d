//! Speech to text over HTTP: `POST /v1/audio/transcriptions` (multipart, OpenAI) and `POST /api/v1/voice/transcribe` (a
//! WAV file as the body).

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{FromRequest as _, Multipart, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::json;
use speech::{
    SAMPLE_RATE,
    endpoint::{EndpointConfig, EndpointEvent, Endpointer, FRAME_SAMPLES},
    wav,
};

use super::body;
use crate::{error::ApiError, stack::Stack};

/// `POST /v1/audio/transcriptions`
pub(super) async fn openai(State(stack): State<Arc<Stack>>, request: Request) -> Result<Response, ApiError> {
    let form = Form::read(&stack, request).await?;
    let format = match form.response_format.as_deref() {
        None | Some("json") => Format::Json,
        Some("text") => Format::Text,
        Some("verbose_json") => Format::VerboseJson,
        Some(other) => {
            let message = format!("response_format {other:?} is not available; use json, text or verbose_json");
            return Err(ApiError::bad_request("unsupported_value", "response_format", message));
        }
    };
    if form.stream {
        let message = "streamed transcriptions are not available here; leave out stream, or use /v1/realtime";
        return Err(ApiError::bad_request("unsupported_value", "stream", message));
    }
    let Some(file) = form.file else {
        let message = "the form has no file; send the audio as the multipart field \"file\"";
        return Err(ApiError::bad_request("missing_required_parameter", "file", message));
    };
    let transcription = transcribe(&stack, file).await?;
    let text = transcription.text();
    let seconds = transcription.seconds;
    Ok(match format {
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
    let upload = body::read(&stack, request.into_body()).await?;
    let transcription = transcribe(&stack, upload.bytes.clone()).await?;
    Ok(Json(json!({
        "text": transcription.text(),
        "confidence": rounded(transcription.confidence()),
        "duration_s": rounded(transcription.seconds),
        "region": stack.config.region,
    })))
}

/// Three decimals; a 32-bit float as JSON would show digits that mean nothing.
fn rounded(value: f32) -> f64 {
    (f64::from(value) * 1000.0).round() / 1000.0
}

enum Format {
    Json,
    Text,
    VerboseJson,
}

struct Form {
    /// Kept until the answer is made: it counts the memory in use.
    _upload: body::Upload,
    file: Option<Bytes>,
    response_format: Option<String>,
    stream: bool,
}

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
        let upload = body::read(stack, stream).await?;
        if !is_form {
            let message =
                "send multipart/form-data with the fields file and model; a bare WAV goes to /api/v1/voice/transcribe";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_content_type", message));
        }
        let broken = |what: String| {
            let message = format!("the multipart form cannot be read: {what}");
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_multipart", message)
        };
        let request = Request::from_parts(parts, Body::from(upload.bytes.clone()));
        let mut multipart = Multipart::from_request(request, &())
            .await
            .map_err(|error| broken(error.body_text()))?;
        let mut form = Self {
            _upload: upload,
            file: None,
            response_format: None,
            stream: false,
        };
        while let Some(field) = multipart
            .next_field()
            .await
            .map_err(|error| broken(error.body_text()))?
        {
            let name = field.name().unwrap_or_default().to_owned();
            let value = field.bytes().await.map_err(|error| broken(error.body_text()))?;
            match name.as_str() {
                "file" => form.file = Some(value),
                "response_format" => form.response_format = Some(String::from_utf8_lossy(&value).into_owned()),
                "stream" => form.stream = &value[..] == b"true",
                // Any model name is served by the one model there is, so that clients need no change; language, prompt
                // and the like are hints that it cannot use.
                _ => {}
            }
        }
        Ok(form)
    }
}

pub(crate) struct Transcription {
    pub(crate) seconds: f32,
    pub(crate) segments: Vec<Segment>,
}

pub(crate) struct Segment {
    pub(crate) start_s: f32,
    pub(crate) end_s: f32,
    pub(crate) text: String,
    pub(crate) confidence: f32,
}

impl Transcription {
    pub(crate) fn text(&self) -> String {
        let texts: Vec<&str> = self
            .segments
            .iter()
            .map(|segment| segment.text.as_str())
            .filter(|text| !text.is_empty())
            .collect();
        texts.join(" ")
    }

    /// The least sure part decides.
    pub(crate) fn confidence(&self) -> f32 {
        self.segments
            .iter()
            .map(|segment| segment.confidence)
            .fold(1.0, f32::min)
    }
}

pub(crate) async fn transcribe(stack: &Stack, file: Bytes) -> Result<Transcription, ApiError> {
    let limit_s = stack.config.limits.transcription_seconds_max as f32;
    // Minutes of audio take long enough to decode that other sessions would hear it.
    let decoded = tokio::task::spawn_blocking(move || {
        let samples = wav::decode(&file, limit_s)?;
        let pieces = pieces(&samples);
        Ok::<_, wav::WavError>((samples, pieces))
    });
    let (samples, pieces) = decoded.await.map_err(|_| {
        let message = "the audio cannot be decoded; send 16-bit mono PCM";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "decoder_failed", message)
    })??;
    let seconds = samples.len() as f32 / SAMPLE_RATE as f32;
    let mut segments = Vec::new();
    // One after the other: a long file takes one place in the queue, not all of them.
    for piece in pieces {
        let done = stack.hear(samples[piece.clone()].to_vec())?.result().await?;
        segments.push(Segment {
            start_s: piece.start as f32 / SAMPLE_RATE as f32,
            end_s: piece.end as f32 / SAMPLE_RATE as f32,
            text: done.output.text,
            confidence: done.output.confidence,
        });
    }
    Ok(Transcription { seconds, segments })
}

/// Longest audio recognised in one go. The models are trained on single utterances, and attention over much more costs
/// memory that grows with the square of it.
const PIECE_SAMPLES_MAX: usize = 20 * SAMPLE_RATE as usize;

/// Splits a recording at its pauses into pieces of bounded length.
fn pieces(samples: &[f32]) -> Vec<std::ops::Range<usize>> {
    if samples.len() <= PIECE_SAMPLES_MAX {
        return std::iter::once(0..samples.len()).collect();
    }
    let per_ms = SAMPLE_RATE as usize / 1000;
    let mut ear = Endpointer::new(EndpointConfig::default());
    let mut speech = Vec::new();
    let mut start = None;
    for event in samples.chunks(FRAME_SAMPLES).filter_map(|frame| ear.feed(frame)) {
        match (event, start) {
            (EndpointEvent::SpeechStarted { at_ms }, _) => start = Some(at_ms as usize * per_ms),
            (EndpointEvent::SpeechStopped { at_ms }, Some(from)) => {
                speech.push(from..(at_ms as usize * per_ms).min(samples.len()));
                start = None;
            }
            (EndpointEvent::SpeechStopped { .. }, None) => {}
        }
    }
    speech.extend(start.map(|from| from..samples.len()));
    speech
        .into_iter()
        .flat_map(|range| {
            let end = range.end;
            range
                .step_by(PIECE_SAMPLES_MAX)
                .map(move |from| from..(from + PIECE_SAMPLES_MAX).min(end))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_recording_is_split_at_its_pauses_and_nowhere_else_if_it_can_be() {
        let tone = |seconds: usize| -> Vec<f32> {
            (0..seconds * SAMPLE_RATE as usize)
                .map(|at| 0.2 * (at as f32 * 0.07).sin())
                .collect()
        };
        let silence = |seconds: usize| vec![0.0; seconds * SAMPLE_RATE as usize];
        let recording = [silence(1), tone(5), silence(2), tone(12), silence(3)].concat();
        assert_eq!(pieces(&recording).len(), 2);
        assert_eq!(pieces(&tone(45)).len(), 3);
        assert_eq!(pieces(&tone(5)).len(), 1);
        assert!(pieces(&silence(40)).is_empty());
    }
}
