//! The Realtime WebSocket, `GET /v1/realtime`: the part of the OpenAI protocol (general-availability names) that a voice
//! assistant needs. Events named `meridian.*` are not part of it; they go only to clients that ask for them, because others take an
//! unknown event for an error.
//!
//! [`session`] holds the state of a conversation and takes its events; it knows no socket. [`connection`] moves messages between
//! session and socket, and closes the socket with a reason.

mod answering;
mod audio_input;
mod beginning;
mod checkpoint;
mod client;
mod closing;
mod connection;
mod conversation;
pub(crate) mod copies;
mod device;
mod edge_reports;
mod events;
mod fields;
mod format;
mod fuzzing;
mod hearing;
mod held;
mod input;
mod items;
mod opening;
mod outbox;
mod recognising;
mod refusal;
mod reports;
mod response;
mod responses;
mod rest;
#[cfg(test)]
mod restarts;
mod ringing;
mod sending;
mod session;
mod settings;
mod snapshot;
mod sound;
mod texts;
mod tools;
mod turns;

use std::sync::Arc;

use axum::{
    Extension,
    extract::{
        Query, State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, HeaderValue, StatusCode},
    response::Response,
};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tracing::Instrument as _;
use wire::Resumes;

use self::{beginning::Begin, edge_reports::AskedReports, opening::ClientOptions, session::MODEL_CHARS_MAX};
pub(crate) use self::{
    checkpoint::restore_and_write,
    fuzzing::{converse, reopen},
};
use crate::{caller::class_of, error::ApiError, place::Place, queue::Class, stack::Stack};

/// Parameters in the address.
#[derive(Debug, Deserialize)]
pub(crate) struct Parameters {
    model: Option<String>,
    /// Id of an earlier session to resume.
    resume: Option<String>,
    /// The time zone of the device, for clients that cannot set headers.
    zone: Option<String>,
    /// `1` asks for the events named `meridian.*`.
    meridian: Option<String>,
    /// The purpose of the session, in the protocol's words.
    intent: Option<String>,
}

/// Asks for the events named `meridian.*`, like `meridian=1` in the address.
const EVENTS_HEADER: &str = "meridian-events";

/// First size of a socket's read buffer, which grows with the messages that come. The default of 128 KiB would be several times the
/// memory of an idle session.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// The name of the model, if the client names none.
const MODEL: &str = "meridian-realtime";

/// `GET /v1/realtime?model=…[&resume=SESSION][&zone=ZONE][&meridian=1]`
pub(crate) async fn upgrade(
    State(stack): State<Arc<Stack>>,
    Extension(place): Extension<Place>,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|rejection| {
        let message = texts::no_upgrade(&rejection.body_text().to_lowercase());
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "websocket_required", message)
    })?;
    let unavailable = |code, message: &str| Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message));
    if stack.draining.is_cancelled() {
        return unavailable("region_draining", texts::DRAINING);
    }
    if stack.sessions.len() >= stack.config.limits.sessions_max {
        return unavailable("session_limit_exceeded", texts::TOO_MANY_SESSIONS);
    }
    let only_transcribes = match parameters.intent.as_deref() {
        None | Some("conversation") => false,
        Some("transcription") => true,
        Some(_) => return Err(ApiError::bad_request("invalid_value", "intent", texts::UNKNOWN_INTENT)),
    };
    let options = ClientOptions {
        ours: parameters.meridian.is_some_and(|value| value == "1")
            || headers.get(EVENTS_HEADER).is_some_and(|value| value == "1"),
        beta: headers
            .get("openai-beta")
            .is_some_and(|value| value.as_bytes().starts_with(b"realtime")),
        only_transcribes,
    };
    let model = parameters
        .model
        .unwrap_or_else(|| MODEL.to_owned())
        .chars()
        .take(MODEL_CHARS_MAX)
        .collect();
    // The session refuses messages above the limit with an error. The protocol layer stops a little above it, and can then read no
    // further.
    let read_max = stack.config.limits.frame_read_max();
    let zone = opening::zone(&headers, parameters.zone.as_deref())?;
    // The token counts the session from here on, so that a burst of upgrades cannot pass the limit, and a drain waits for sessions
    // whose upgrade is still under way.
    let counted = stack.sessions.token();
    let continuity = stack.config.checkpoint_key.is_some()
        && headers
            .get(wire::HEADER)
            .is_some_and(|version| version == wire::VERSION);
    let asked = AskedReports {
        load: continuity && wire::wants_load(headers.get(wire::LOAD_HEADER).map(HeaderValue::as_bytes)),
        turns: continuity && headers.contains_key(wire::TURNS_HEADER),
    };
    let rule = headers.get(wire::RESUMES_HEADER);
    let takes_state = continuity && rule.and_then(|rule| Resumes::parse(rule.as_bytes())) == Some(Resumes::State);
    let begin = if continuity && headers.contains_key(wire::RESUME_HEADER) {
        Begin::Carried {
            zone,
            id: opening::given_id(&headers).map(str::to_owned),
        }
    } else {
        let resume = parameters.resume.as_deref();
        let opening = Box::new(opening::prepare(&stack, &headers, resume, zone, options, model).await?);
        match takes_state {
            true => Begin::Reopened { opening },
            false => Begin::Here { opening, continuity },
        }
    };
    let class = class_of(&headers, Class::Live);
    // Log lines of a session name the request that began it.
    let span = tracing::Span::current();
    let mut response = upgrade
        .protocols(["realtime"])
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_frame_size(read_max)
        .max_message_size(read_max)
        .on_upgrade(move |socket| {
            // axum's task keeps the memory of the largest state that it ever had. The split puts the socket behind a pointer, and the
            // session's future is boxed, so that the task is small while a device is silent for hours.
            let (sink, stream) = socket.split();
            let session = async move {
                place.meter.begin();
                connection::run(&stack, sink, stream, &place, begin, asked).await;
                drop((counted, place));
            };
            Box::pin(class.scope(session).instrument(span))
        });
    if continuity {
        let version = HeaderValue::from_static(wire::VERSION);
        response.headers_mut().insert(wire::HEADER, version);
    }
    if takes_state {
        let agreed = HeaderValue::from_str(&Resumes::State.to_string()).expect("it is one word");
        response.headers_mut().insert(wire::RESUMES_HEADER, agreed);
    }
    Ok(response)
}
