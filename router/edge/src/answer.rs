//! Answers the edge gives itself: errors in the form of the OpenAI API, so that its clients understand them.

use bytes::Bytes;

use crate::{cors::Cors, http1::upgrade::UpgradeError, stamp::Stamp};

/// `Retry-After` between `seconds` and three times as much: devices that are refused at the same moment come back at different
/// ones.
fn retry_after(seconds: u64) -> (&'static str, String) {
    let seconds = rand::random_range(seconds..=3 * seconds.max(1));
    ("Retry-After", seconds.to_string())
}

/// An answer of the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: http::StatusCode,
    /// The party at fault, in the words of the OpenAI API.
    pub kind: &'static str,
    pub code: &'static str,
    /// The event and the remedy, for people.
    pub message: String,
    /// Headers besides the usual ones.
    pub headers: Vec<(&'static str, String)>,
}

/// The paths that an answer to an unknown path names.
pub const PATHS: &str = "/v1/realtime (WebSocket), /v1/audio/transcriptions, /v1/audio/speech, /v1/models, /api/v1/voice/*, /health, and \
     gRPC meridian.voice.v1.Voice";

impl Answer {
    fn client(status: http::StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: "invalid_request_error",
            code,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    /// 400: the bytes are not a request.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::client(http::StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 400: the body is not framed as it says.
    pub fn malformed_body() -> Self {
        Self::bad_request("the chunks of the body are malformed")
    }

    /// 401: the device shows no credential that counts here (RFC 6750 §3).
    pub fn unauthorized(message: impl Into<String>) -> Self {
        let mut answer = Self::client(http::StatusCode::UNAUTHORIZED, "invalid_api_key", message);
        answer.headers.push(("WWW-Authenticate", "Bearer".to_owned()));
        answer
    }

    /// 403: pages of this origin may not call.
    pub fn origin_not_allowed(origin: &str) -> Self {
        // As much of it as an origin has.
        let origin: String = origin.chars().filter(|it| !it.is_control()).take(100).collect();
        let message = format!(
            "pages of {origin} may not call this service; its operator names those that may in [cors] of the edge"
        );
        Self::client(http::StatusCode::FORBIDDEN, "origin_not_allowed", message)
    }

    /// 404: nothing is there; the message names the paths that exist.
    pub fn not_found(path: &str) -> Self {
        // The echo is bounded: a path may be as long as a header.
        let path: String = path.chars().take(100).collect();
        let message = format!("nothing is served at {path}; there is {PATHS}");
        Self::client(http::StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 408: the header took too long.
    pub fn too_slow() -> Self {
        Self::client(
            http::StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "the request header took too long to arrive",
        )
    }

    /// 408: the body took too long.
    pub fn body_too_slow() -> Self {
        Self::client(
            http::StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "the request body took too long to arrive",
        )
    }

    /// 431: the header is too large.
    pub fn header_too_large(bytes_max: usize) -> Self {
        Self::client(
            http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "header_too_large",
            format!(
                "request headers are limited to {bytes_max} bytes and {} lines",
                crate::http1::head::LINES_MAX
            ),
        )
    }

    /// 426: the Realtime API is a WebSocket (RFC 6455 §4.2.2, version negotiation included).
    pub fn upgrade_required() -> Self {
        let mut answer = Self::client(
            http::StatusCode::UPGRADE_REQUIRED,
            "upgrade_required",
            "/v1/realtime speaks WebSocket version 13; connect with wss:// or send the upgrade headers",
        );
        answer.headers.push(("Upgrade", "websocket".to_owned()));
        answer.headers.push(("Sec-WebSocket-Version", "13".to_owned()));
        answer
    }

    /// 413: the body is too large.
    pub fn body_too_large(bytes_max: u64) -> Self {
        let message = format!("request bodies are limited to {bytes_max} bytes");
        Self::client(http::StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// 429: this client takes too much (RFC 6585 §4); come back in about `retry_after_s` seconds.
    pub fn too_many(code: &'static str, message: impl Into<String>, retry_after_s: u64) -> Self {
        let mut answer = Self::client(http::StatusCode::TOO_MANY_REQUESTS, code, message);
        answer.kind = "rate_limit_error";
        answer.headers.push(retry_after(retry_after_s));
        answer
    }

    /// 503: not here and now; come back in about `retry_after_s` seconds.
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after_s: u64) -> Self {
        Self {
            status: http::StatusCode::SERVICE_UNAVAILABLE,
            kind: "server_error",
            code,
            message: message.into(),
            headers: vec![retry_after(retry_after_s)],
        }
    }

    /// 503: the edge itself has no room; the regions may be well.
    pub fn edge_full() -> Self {
        Self::unavailable("edge_full", "this edge has no room; connect again to reach another", 1)
    }

    /// 502 or 504: a region failed in the middle of a request that cannot be repeated safely.
    pub fn region_failed(status: http::StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: "server_error",
            code: "region_failed",
            message: message.into(),
            headers: Vec::new(),
        }
    }

    pub fn body(&self) -> Bytes {
        let error = serde_json::json!({
            "error": { "message": self.message, "type": self.kind, "code": self.code }
        });
        Bytes::from(error.to_string())
    }

    /// The whole answer as HTTP/1.1, after which the connection is closed.
    pub fn bytes(&self, stamp: &Stamp, cors: &Cors) -> Vec<u8> {
        let mut bytes = self.head(stamp, cors);
        bytes.extend_from_slice(&self.body());
        bytes
    }

    pub fn head(&self, stamp: &Stamp, cors: &Cors) -> Vec<u8> {
        use std::io::Write as _;
        let mut head = format!("HTTP/1.1 {}\r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        stamp.write(cors, &mut head);
        let length = self.body().len();
        let _ = write!(
            head,
            "Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        head
    }
}

impl From<UpgradeError> for Answer {
    fn from(error: UpgradeError) -> Self {
        match error {
            UpgradeError::Malformed(what) => Self::bad_request(what),
            UpgradeError::Version => Self::upgrade_required(),
        }
    }
}
