//! The Realtime WebSocket, `GET /v1/realtime`: the part of the OpenAI protocol (general-availability names) that a voice
//! assistant needs. Differences are events named `meridian.*`, which clients of that protocol ignore.
//!
//! [`session`] is the protocol and knows no socket; [`connection`] is the socket and knows no protocol.

mod checkpoint;
mod client;
mod connection;
mod ear;
mod events;
mod outbox;
mod session;
mod settings;
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
use serde::Deserialize;
use topology::words;

use self::connection::Begin;
use crate::{error::ApiError, serve::Place, stack::Stack};

/// What a client may say in the address.
#[derive(Debug, Deserialize)]
pub(crate) struct Parameters {
    model: Option<String>,
    /// Id of an earlier session whose memory (timers, alarms, lights) goes on here.
    resume: Option<String>,
}

/// What is reported as the model when the client names none.
const MODEL: &str = "meridian-realtime";
/// Names are echoed in events; longer ones are cut.
const MODEL_CHARS_MAX: usize = 64;

/// `GET /v1/realtime?model=…[&resume=SESSION]`
pub(crate) async fn upgrade(
    State(stack): State<Arc<Stack>>,
    Extension(place): Extension<Place>,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|rejection| {
        let message = format!(
            "{}; connect to /v1/realtime with a WebSocket client",
            rejection.body_text().to_lowercase()
        );
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "websocket_required", message)
    })?;
    let unavailable = |code, message: &str| Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message));
    if stack.draining.is_cancelled() {
        return unavailable(
            "region_draining",
            "this region takes no new sessions; connect again to reach another",
        );
    }
    if stack.sessions.len() >= stack.config.limits.sessions_max {
        return unavailable(
            "session_limit_exceeded",
            "this region has no room for another session; retry in a moment",
        );
    }
    let model = parameters
        .model
        .unwrap_or_else(|| MODEL.to_owned())
        .chars()
        .take(MODEL_CHARS_MAX)
        .collect();
    // The session refuses messages above the limit with a clean Close. The protocol layer stops at a multiple of it, after
    // which it could read no further and the client would see a reset instead.
    let read_max = stack.config.limits.frame_bytes_max.saturating_mul(16);
    // The token counts the session from here on, so that a burst of upgrades cannot overrun the limit, and a drain waits
    // for those whose upgrade is still under way.
    let counted = stack.sessions.token();
    let continuity = stack.config.checkpoint_key.is_some()
        && headers
            .get(words::HEADER)
            .is_some_and(|version| version == words::VERSION);
    let tells_load = continuity && words::asks_load(headers.get(words::LOAD_HEADER).map(HeaderValue::as_bytes));
    let begin = if continuity && headers.contains_key(words::RESUME_HEADER) {
        Begin::Carried
    } else {
        Begin::Here {
            model,
            remembered: parameters.resume,
            continuity,
        }
    };
    let tells_turns = continuity && headers.contains_key(words::TURNS_HEADER);
    let mut response = upgrade
        .protocols(["realtime"])
        .max_frame_size(read_max)
        .max_message_size(read_max)
        .on_upgrade(async move |socket| {
            connection::run(&stack, socket, begin, tells_load, tells_turns).await;
            drop((counted, place));
        });
    if continuity {
        let version = HeaderValue::from_static(words::VERSION);
        response.headers_mut().insert(words::HEADER, version);
    }
    Ok(response)
}
