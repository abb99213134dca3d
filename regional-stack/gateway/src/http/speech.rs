//! Text to speech over HTTP: `POST /v1/audio/speech` (OpenAI) and `POST /api/v1/voice/synthesize`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;
use serde_json::{Map, Value};
use speech::{SAMPLE_RATE, pcm, wav};

use super::body;
use crate::{caller::class_of, error::ApiError, queue::Class, script::Script, stack::Stack, texts};

/// The rate of `pcm` and `wav` in the OpenAI API: 24 kHz, 16 bit, mono.
const RATE: u32 = 24_000;

#[derive(Deserialize)]
struct SpeechRequest {
    input: String,
    response_format: Option<String>,
    speed: Option<f32>,
    stream_format: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct PlainRequest {
    text: String,
    speed: Option<f32>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Refuses fields that do not exist. Fields in `unused` exist and change nothing: there is one voice.
fn refuse_others(others: &Map<String, Value>, unused: &[&str], known: &str) -> Result<(), ApiError> {
    let is_strange = |(name, value): &(&String, &Value)| !unused.contains(&name.as_str()) && !value.is_null();
    match others.iter().find(is_strange) {
        Some((name, _)) => Err(ApiError::unknown(name, known)),
        None => Ok(()),
    }
}

/// `POST /v1/audio/speech`
pub(super) async fn openai(State(stack): State<Arc<Stack>>, request: Request) -> Result<Response, ApiError> {
    let class = class_of(request.headers(), Class::Bulk);
    let (parts, body) = request.into_parts();
    let upload = body::read(&stack, &parts.headers, body).await?;
    let request: SpeechRequest = parse(&upload.bytes)?;
    let known = "input, model, voice, instructions, response_format, speed, stream_format";
    refuse_others(&request.others, &["model", "voice", "instructions"], known)?;
    // mp3 is the API's default, and answering another format under its name would be noise in a player.
    let format = match request.response_format.as_deref().unwrap_or("mp3") {
        "wav" => Format::Wav,
        "pcm" => Format::Pcm,
        other => {
            let message = texts::unknown_speech_format(other);
            return Err(ApiError::bad_request("unsupported_value", "response_format", message));
        }
    };
    if request.stream_format.as_deref().is_some_and(|format| format != "audio") {
        let message = texts::UNKNOWN_STREAM_FORMAT;
        return Err(ApiError::bad_request("unsupported_value", "stream_format", message));
    }
    let mut script = Script::read(&stack, class, "input", &request.input, request.speed)?;
    match format {
        Format::Wav => {
            let mut samples = Vec::new();
            while let Some(spoken) = script.speak_next(&stack, RATE).await? {
                samples.extend(spoken);
            }
            Ok(audio("audio/wav", wav::encode(&samples, RATE)))
        }
        // This format has no header with a length, so the caller hears a long text while an engine speaks the rest. The answer waits
        // for the first sentence: an error until then still has a status code.
        Format::Pcm => {
            let first = script.speak_next(&stack, RATE).await?.unwrap_or_default();
            // The stream holds the place of the upload until its last byte is sent.
            let rest = stream::try_unfold((script, stack, upload.place), async |(mut script, stack, place)| {
                let spoken = script.speak_next(&stack, RATE).await.map_err(|error| error.message)?;
                Ok::<_, String>(spoken.map(|samples| (pcm::to_s16le(&samples), (script, stack, place))))
            });
            let pieces = stream::once(async move { Ok(pcm::to_s16le(&first)) }).chain(rest);
            Ok(audio("audio/pcm", Body::from_stream(pieces)))
        }
    }
}

/// `POST /api/v1/voice/synthesize`: `{"text": …, "speed": …}` to a WAV file at the engine's own rate.
pub(super) async fn plain(State(stack): State<Arc<Stack>>, request: Request) -> Result<Response, ApiError> {
    let class = class_of(request.headers(), Class::Bulk);
    let (parts, body) = request.into_parts();
    let upload = body::read(&stack, &parts.headers, body).await?;
    let request: PlainRequest = parse(&upload.bytes)?;
    refuse_others(&request.others, &[], "text, speed")?;
    let mut script = Script::read(&stack, class, "text", &request.text, request.speed)?;
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
        let message = texts::bad_json(&error);
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    })
}
