//! Speech to text over HTTP: `POST /v1/audio/transcriptions` (multipart, OpenAI) and `POST /api/v1/voice/transcribe` (a
//! WAV file as the body).

use std::{ops::Range, sync::Arc};

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
    endpoint::{self, EndpointConfig, EndpointEvent, Endpointer, FRAME_SAMPLES},
    wav::{self, WavError},
};

use super::body;
use crate::{caller::class_of, error::ApiError, queue::Class, stack::Stack};

/// `POST /v1/audio/transcriptions`
pub(super) async fn openai(State(stack): State<Arc<Stack>>, request: Request) -> Result<Response, ApiError> {
    let class = class_of(request.headers(), Class::bulk);
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
    if form.segments && !matches!(format, Format::VerboseJson) {
        let message =
            "only verbose_json has timestamps; set response_format to it, or leave out timestamp_granularities";
        return Err(ApiError::bad_request(
            "unsupported_value",
            "timestamp_granularities",
            message,
        ));
    }
    let Some(file) = form.file else {
        let message = "the form has no file; send the audio as the multipart field \"file\"";
        return Err(ApiError::bad_request("missing_required_parameter", "file", message));
    };
    let transcription = transcribe(&stack, class, file).await?;
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
    let class = class_of(request.headers(), Class::bulk);
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
    /// Whether the times of segments are asked for by name.
    segments: bool,
}

/// The fields of a form. Any model name is served by the one model there is, so that clients need no change. A prompt is a
/// hint that it cannot use.
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
                    let message = "send one file in a request";
                    return Err(ApiError::bad_request("invalid_value", "file", message));
                }
                "file" => form.file = Some(value),
                "response_format" => form.response_format = Some(String::from_utf8_lossy(&value).into_owned()),
                "stream" => form.stream = is_true("stream", &value)?,
                "language" => check_language("language", &value)?,
                "languages" => check_language("languages", &value)?,
                "temperature" => check_temperature(&value)?,
                "timestamp_granularities" => form.segments |= one_of("timestamp_granularities", &value, "segment")?,
                // Long files are always cut at their pauses.
                "chunking_strategy" => {
                    one_of("chunking_strategy", &value, "auto")?;
                }
                "include" if value.is_empty() => {}
                "include" => {
                    let message = "there is nothing to include here; leave out include";
                    return Err(ApiError::bad_request("unsupported_value", "include", message));
                }
                "model" | "prompt" => {}
                _ => return Err(ApiError::unknown(&name, KNOWN)),
            }
        }
        Ok(form)
    }
}

/// A form has text only, and each language writes its own for yes and no: Python says `True`, browsers say `on`.
fn is_true(param: &'static str, value: &[u8]) -> Result<bool, ApiError> {
    match value.trim_ascii().to_ascii_lowercase().as_slice() {
        b"true" | b"1" | b"yes" | b"on" => Ok(true),
        b"false" | b"0" | b"no" | b"off" | b"" | b"null" | b"none" => Ok(false),
        _ => {
            let message = format!("{param} must be true or false");
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
            let message = format!("{param} can only be {known:?} here; use that, or leave it out");
            Err(ApiError::bad_request("unsupported_value", param, message))
        }
    }
}

/// The models have no temperature: any that the API allows gives the same text.
fn check_temperature(value: &[u8]) -> Result<(), ApiError> {
    let value = String::from_utf8_lossy(value.trim_ascii());
    let is_valid = value.is_empty() || value.parse().is_ok_and(|value: f32| (0.0..=1.0).contains(&value));
    if is_valid {
        return Ok(());
    }
    let message = "temperature must be between 0 and 1";
    Err(ApiError::bad_request("invalid_value", "temperature", message))
}

/// English letters for German speech would look like an answer and be none.
fn check_language(param: &'static str, value: &[u8]) -> Result<(), ApiError> {
    let language = value.trim_ascii().to_ascii_lowercase();
    let primary = language
        .split(|byte| matches!(byte, b'-' | b'_'))
        .next()
        .unwrap_or_default();
    if matches!(primary, b"" | b"en" | b"eng" | b"english") {
        return Ok(());
    }
    // A stranger sent this text, so the echo is bounded.
    let shown: String = String::from_utf8_lossy(&language).chars().take(20).collect();
    let message = format!("language {shown:?} is not available; this region understands English, \"en\"");
    Err(ApiError::bad_request("unsupported_value", param, message))
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

    /// The least sure part decides; nobody is sure of words where none were heard.
    pub(crate) fn confidence(&self) -> f32 {
        let heard = self.segments.iter().filter(|segment| !segment.text.is_empty());
        heard.map(|segment| segment.confidence).reduce(f32::min).unwrap_or(0.0)
    }
}

/// Hears a file. One piece after the other: a long file takes one place in the queue, not all of them.
pub(crate) async fn transcribe(stack: &Stack, class: Class, file: Bytes) -> Result<Transcription, ApiError> {
    let Recording { samples, pieces } = stack.decode(class, file).await??;
    let mut segments = Vec::new();
    for piece in pieces {
        let sound = samples[piece.clone()].to_vec();
        let mut ticket = if segments.is_empty() {
            stack.hear_for(class, sound)?
        } else {
            stack.hear_on(class, sound).await?
        };
        let done = ticket.result().await?;
        segments.push(Segment {
            start_s: piece.start as f32 / SAMPLE_RATE as f32,
            end_s: piece.end as f32 / SAMPLE_RATE as f32,
            text: done.output.text,
            confidence: done.output.confidence,
        });
    }
    Ok(Transcription {
        seconds: samples.len() as f32 / SAMPLE_RATE as f32,
        segments,
    })
}

/// An uploaded file, decoded and cut.
#[derive(Debug)]
pub(crate) struct Recording {
    samples: Vec<f32>,
    pieces: Vec<Range<usize>>,
}

impl Recording {
    pub(crate) fn read(file: &[u8], seconds_max: f32) -> Result<Self, WavError> {
        let samples = wav::decode(file, seconds_max)?;
        let pieces = pieces(&samples);
        Ok(Self { samples, pieces })
    }
}

/// Longest audio recognised in one go. The models are trained on single utterances, and attention over much more costs
/// memory that grows with the square of it.
const PIECE_SAMPLES_MAX: usize = 20 * SAMPLE_RATE as usize;
/// Where there is no pause, a piece ends at the quietest moment of so much before that.
const CUT_SEARCH_SAMPLES: usize = 5 * SAMPLE_RATE as usize;
/// Both pieces contain this much audio around the cut, so that a word there is whole in one of them.
const CUT_OVERLAP_SAMPLES: usize = SAMPLE_RATE as usize / 10;

/// Splits a recording at its pauses into pieces of bounded length.
fn pieces(samples: &[f32]) -> Vec<Range<usize>> {
    if samples.len() <= PIECE_SAMPLES_MAX {
        return std::iter::once(0..samples.len()).collect();
    }
    let per_ms = SAMPLE_RATE as usize / 1000;
    // The background of a whole file is measured beforehand and stays: no part of the file passes for a fan that started.
    let mut ear = Endpointer::with_floor(EndpointConfig::default(), endpoint::floor_of(samples));
    let mut speech = Vec::new();
    let mut start = None;
    let frames = samples.chunks(FRAME_SAMPLES).map(|frame| ear.feed(frame));
    for event in frames.flatten() {
        match (event, start) {
            (EndpointEvent::SpeechStarted { at_ms }, _) => start = Some(at_ms as usize * per_ms),
            (EndpointEvent::SpeechStopped { at_ms }, Some(from)) => {
                speech.push(from..(at_ms as usize * per_ms).min(samples.len()));
                start = None;
            }
            (EndpointEvent::SpeechStopped { .. }, None) => {}
        }
    }
    // The last words may be too short to be sure of before the file ends.
    let earliest = || ear.earliest_ms() as usize * per_ms;
    let last = start.or_else(|| ear.is_unsure().then(earliest));
    speech.extend(
        last.filter(|from| *from < samples.len())
            .map(|from| from..samples.len()),
    );
    speech.into_iter().flat_map(|range| cut(samples, range)).collect()
}

/// Cuts what goes on for too long where it is quietest.
fn cut(samples: &[f32], mut range: Range<usize>) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    while range.len() > PIECE_SAMPLES_MAX {
        let search_to = range.start + PIECE_SAMPLES_MAX - CUT_OVERLAP_SAMPLES;
        let at = endpoint::quietest(samples, search_to - CUT_SEARCH_SAMPLES..search_to);
        pieces.push(range.start..at + CUT_OVERLAP_SAMPLES);
        range.start = at - CUT_OVERLAP_SAMPLES;
    }
    pieces.push(range);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(seconds: f32) -> Vec<f32> {
        (0..(seconds * SAMPLE_RATE as f32) as usize)
            .map(|at| 0.2 * (at as f32 * 0.07).sin())
            .collect()
    }

    fn silence(seconds: f32) -> Vec<f32> {
        vec![0.0; (seconds * SAMPLE_RATE as f32) as usize]
    }

    #[test]
    fn nobody_is_sure_of_what_was_not_said() {
        let segment = |text: &str, confidence| Segment {
            start_s: 0.0,
            end_s: 1.0,
            text: text.to_owned(),
            confidence,
        };
        for (segments, confidence) in [
            (vec![], 0.0),
            (vec![segment("", 0.9)], 0.0),
            (vec![segment("stop", 0.9), segment("", 0.0), segment("stop", 0.7)], 0.7),
        ] {
            assert_eq!(Transcription { seconds: 3.0, segments }.confidence(), confidence);
        }
    }

    #[test]
    fn a_long_recording_is_split_at_its_pauses_and_nowhere_else_if_it_can_be() {
        let recording = [silence(1.0), tone(5.0), silence(2.0), tone(12.0), silence(3.0)].concat();
        assert_eq!(pieces(&recording).len(), 2);
        assert_eq!(pieces(&tone(45.0)).len(), 3);
        assert_eq!(pieces(&tone(5.0)).len(), 1);
        assert!(pieces(&silence(40.0)).is_empty());
    }

    #[test]
    fn what_has_no_pause_is_split_between_words_and_nothing_is_lost() {
        // Words of 0.9 s with gaps of 0.1 s.
        let word = [tone(0.9), silence(0.1)].concat();
        let recording = word.repeat(50);
        let pieces = pieces(&recording);
        assert!(pieces.len() >= 3, "{pieces:?}");
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_SAMPLES_MAX));
        for (one, next) in pieces.iter().zip(&pieces[1..]) {
            assert!(next.start <= one.end, "{one:?} and {next:?} leave something out");
            let cut = (one.end + next.start) / 2;
            let in_second = cut % SAMPLE_RATE as usize;
            assert!(
                in_second > SAMPLE_RATE as usize * 9 / 10,
                "cut {} ms into a word",
                in_second / 16
            );
        }
        assert!(pieces[0].start == 0 && pieces.last().unwrap().end >= recording.len() - 3_200);
    }

    #[test]
    fn a_short_word_at_the_very_end_is_heard() {
        let recording = [silence(1.0), tone(5.0), silence(15.0), tone(0.2)].concat();
        let pieces = pieces(&recording);
        assert_eq!(pieces.last().unwrap().end, recording.len(), "{pieces:?}");
        assert_eq!(pieces.len(), 2);
    }
}
