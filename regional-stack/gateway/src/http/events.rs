//! Server-sent events: an answer that comes in parts.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};

use crate::error::ApiError;

/// The end of a stream, as the OpenAI API has it.
pub(super) const DONE: &str = "data: [DONE]\n\n";

/// One event.
pub(super) fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// The event of an error in the middle of a stream, which is also its end. Clients raise it.
pub(super) fn failed(error: &ApiError) -> String {
    error.log();
    event(&json!({ "type": "error", "error": {
        "message": error.message, "type": error.kind(), "code": error.code, "param": error.param,
    }}))
}

/// An answer of events.
pub(super) fn answer<S, E>(events: S) -> Response
where
    S: Stream<Item = Result<String, E>> + Send + 'static,
    E: Into<axum::BoxError> + 'static,
{
    use futures_util::TryStreamExt as _;

    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(events.map_ok(Bytes::from))).into_response()
}
