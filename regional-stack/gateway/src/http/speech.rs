//! Text to speech over HTTP: `POST /v1/audio/speech` (OpenAI) and `POST /api/v1/voice/synthesize`.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, Stream},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use speech::{SAMPLE_RATE, wav};
use tokio::sync::OwnedSemaphorePermit;

use super::{body, events};
use crate::{
    caller::class_of,
    encoding::{self, Encoder, Format},
    error::ApiError,
    queue::Class,
    script::Script,
    stack::Stack,
    texts,
};

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
    let name = request.response_format.as_deref().unwrap_or("mp3");
    let Some(format) = Format::named(name) else {
        let message = texts::unknown_speech_format(name, encoding::NAMES);
        return Err(ApiError::bad_request("unsupported_value", "response_format", message));
    };
    let as_events = match request.stream_format.as_deref() {
        None | Some("audio") => false,
        Some("sse") => true,
        Some(_) => {
            let message = texts::UNKNOWN_STREAM_FORMAT;
            return Err(ApiError::bad_request("unsupported_value", "stream_format", message));
        }
    };
    let mut speaking = Speaking {
        script: Script::read(&stack, class, "input", &request.input, request.speed)?,
        encoder: Some(Encoder::new(format)?),
        words: request.input.split_whitespace().count(),
        samples: 0,
        stack,
        _place: upload.place,
    };
    if !format.is_stream() && !as_events {
        let mut file = Vec::new();
        while let Some(bytes) = speaking.next().await? {
            file.extend_from_slice(&bytes);
        }
        return Ok(audio(format.content_type(), file));
    }
    // The caller hears a long text while an engine speaks the rest. The answer waits for the first sentence: an error until then still
    // has a status code.
    let first = speaking.next().await?.unwrap_or_default();
    if as_events {
        return Ok(events::answer(speaking.into_events(first)));
    }
    let rest = speaking.into_stream().map_err(|error| {
        error.log();
        error.message
    });
    let pieces = stream::once(async move { Ok(first) }).chain(rest);
    Ok(audio(format.content_type(), Body::from_stream(pieces)))
}

/// A text on its way into a file. It holds the place of the upload until its last byte is sent.
struct Speaking {
    script: Script,
    /// None after the end.
    encoder: Option<Encoder>,
    words: usize,
    samples: usize,
    stack: Arc<Stack>,
    _place: OwnedSemaphorePermit,
}

/// The protocol's tokens for a second of speech.
const TOKENS_PER_SECOND: usize = 20;

impl Speaking {
    /// The bytes of the next sentence, and of the end behind the last one; `None` after the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let Some(mut encoder) = self.encoder.take() else {
            return Ok(None);
        };
        let spoken = self.script.speak_next(&self.stack, encoding::RATE).await?;
        self.samples += spoken.as_ref().map_or(0, Vec::len);
        // The encoding of a long file takes a second, which no other caller must wait for.
        let encoded = tokio::task::spawn_blocking(move || match spoken {
            Some(samples) => encoder.push(&samples).map(|bytes| (bytes, Some(encoder))),
            None => encoder.finish().map(|bytes| (bytes, None)),
        });
        let encoded = encoded.await.map_err(|error| ApiError::engine_failed(&error))?;
        let (bytes, encoder) = encoded?;
        self.encoder = encoder;
        Ok(Some(bytes.into()))
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, ApiError>> {
        stream::try_unfold(self, async |mut speaking| {
            let bytes = speaking.next().await?;
            Ok(bytes.map(|bytes| (bytes, speaking)))
        })
    }

    /// The audio as events, `first` before the rest.
    fn into_events(self, first: Bytes) -> impl Stream<Item = Result<String, Infallible>> {
        let state = (Some(self), Some(first));
        stream::unfold(state, async |(speaking, first)| {
            let mut speaking = speaking?;
            let bytes = match first {
                Some(first) => Ok(Some(first)),
                None => speaking.next().await,
            };
            let (event, speaking) = match bytes {
                Ok(Some(bytes)) if bytes.is_empty() => (String::new(), Some(speaking)),
                Ok(Some(bytes)) => {
                    let audio = BASE64_STANDARD.encode(&bytes);
                    let delta = json!({ "type": "speech.audio.delta", "audio": audio });
                    (events::event(&delta), Some(speaking))
                }
                Ok(None) => {
                    let spoken = speaking.samples * TOKENS_PER_SECOND / encoding::RATE as usize;
                    let done = json!({ "type": "speech.audio.done", "usage": {
                        "input_tokens": speaking.words, "output_tokens": spoken, "total_tokens": speaking.words + spoken,
                    }});
                    (events::event(&done) + events::DONE, None)
                }
                Err(error) => (events::failed(&error), None),
            };
            Some((Ok(event), (speaking, None)))
        })
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

fn audio(kind: &'static str, bytes: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], bytes.into()).into_response()
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let message = texts::bad_json(&error);
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    })
}
