//! Text to speech over HTTP: `POST /v1/audio/speech` (OpenAI) and `POST /api/v1/voice/synthesize`.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;
use speech::{SAMPLE_RATE, pcm, resample, wav};

use super::body;
use crate::{error::ApiError, spoken, stack::Stack};

/// What the OpenAI API means by `pcm` and what its `wav` files have: 24 kHz, 16 bit, mono.
const RATE: u32 = 24_000;

#[derive(Deserialize)]
struct SpeechRequest {
    input: String,
    response_format: Option<String>,
    speed: Option<f32>,
    stream_format: Option<String>,
}

#[derive(Deserialize)]
struct PlainRequest {
    text: String,
    speed: Option<f32>,
}

/// `POST /v1/audio/speech`
pub(super) async fn openai(State(stack): State<Arc<Stack>>, request: Request) -> Result<Response, ApiError> {
    let upload = body::read(&stack, request.into_body()).await?;
    let request: SpeechRequest = parse(&upload.bytes)?;
    // mp3 is the API's default, and answering another format under its name would be noise in a player.
    let format = match request.response_format.as_deref().unwrap_or("mp3") {
        "wav" => Format::Wav,
        "pcm" => Format::Pcm,
        other => {
            let message = format!(
                "response_format {other:?} is not available; set response_format to \"wav\" or \"pcm\" (24 kHz, 16-bit, mono)"
            );
            return Err(ApiError::bad_request("unsupported_value", "response_format", message));
        }
    };
    if request.stream_format.as_deref().is_some_and(|format| format != "audio") {
        let message = "stream_format must be \"audio\"; for events while speaking use /v1/realtime";
        return Err(ApiError::bad_request("unsupported_value", "stream_format", message));
    }
    let mut script = Script::read(&stack, "input", &request.input, request.speed)?;
    match format {
        Format::Wav => {
            let mut samples = Vec::new();
            while let Some(spoken) = script.speak_next(&stack, RATE).await? {
                samples.extend(spoken);
            }
            Ok(audio("audio/wav", wav::encode(&samples, RATE)))
        }
        // Has no header with a length, so a long text can be heard while the rest of it is spoken. The first sentence is
        // waited for: what goes wrong by then still has a status code.
        Format::Pcm => {
            let first = script.speak_next(&stack, RATE).await?.unwrap_or_default();
            let rest = stream::try_unfold((script, stack), async |(mut script, stack)| {
                let spoken = script.speak_next(&stack, RATE).await.map_err(|error| error.message)?;
                Ok::<_, String>(spoken.map(|samples| (pcm::to_s16le(&samples), (script, stack))))
            });
            let pieces = stream::once(async move { Ok(pcm::to_s16le(&first)) }).chain(rest);
            Ok(audio("audio/pcm", Body::from_stream(pieces)))
        }
    }
}

/// `POST /api/v1/voice/synthesize`: `{"text": …, "speed": …}` to a WAV file at the engine's own rate.
pub(super) async fn plain(State(stack): State<Arc<Stack>>, request: Request) -> Result<Response, ApiError> {
    let upload = body::read(&stack, request.into_body()).await?;
    let request: PlainRequest = parse(&upload.bytes)?;
    let mut script = Script::read(&stack, "text", &request.text, request.speed)?;
    let mut samples = Vec::new();
    while let Some(spoken) = script.speak_next(&stack, SAMPLE_RATE).await? {
        samples.extend(spoken);
    }
    Ok(audio("audio/wav", wav::encode(&samples, SAMPLE_RATE)))
}

enum Format {
    Wav,
    Pcm,
}

fn audio(kind: &'static str, bytes: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], bytes.into()).into_response()
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let message = format!("the body is not the JSON expected here: {error}");
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    })
}

/// What is left to be spoken of a text, sentence by sentence: a long text takes one place in the queue, not all of them.
pub(crate) struct Script {
    sentences: VecDeque<String>,
    speed: f32,
}

impl Script {
    /// Checks a text; `param` is the client's name for it.
    pub(crate) fn read(stack: &Stack, param: &'static str, text: &str, speed: Option<f32>) -> Result<Self, ApiError> {
        let chars_max = stack.config.limits.speech_chars_max;
        let chars = text.chars().count();
        if chars > chars_max {
            let message = format!("{param} has {chars} characters, the limit is {chars_max}; send it in parts");
            return Err(ApiError::bad_request("string_above_max_length", param, message));
        }
        let speed = speed.unwrap_or(1.0);
        if !(0.25..=4.0).contains(&speed) {
            let message = "speed must be between 0.25 and 4.0";
            return Err(ApiError::bad_request("invalid_value", "speed", message));
        }
        let sentences = VecDeque::from(spoken::sentences(text));
        if sentences.is_empty() {
            let message = format!("{param} has nothing to speak; send English words");
            return Err(ApiError::bad_request("empty_string", param, message));
        }
        Ok(Self { sentences, speed })
    }

    /// The next sentence as samples at `rate`; `None` after the last.
    pub(crate) async fn speak_next(&mut self, stack: &Stack, rate: u32) -> Result<Option<Vec<f32>>, ApiError> {
        let Some(sentence) = self.sentences.pop_front() else {
            return Ok(None);
        };
        let samples = stack.speak(sentence, self.speed)?.result().await?.output;
        let samples = resample::resample(&samples, SAMPLE_RATE, rate)
            .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", error.to_string()))?;
        Ok(Some(samples))
    }
}
