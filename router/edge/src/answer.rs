//! The answers that the edge gives itself: errors in the form of the OpenAI API, so that its clients understand them. Their
//! sentences are in `texts.rs`.

use std::fmt::Display;

use bytes::Bytes;

use crate::{
    cors::Cors,
    http1::{head::LINES_MAX, upgrade::UpgradeError},
    stamp::Stamp,
    texts,
};

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
    /// The fault and the remedy, for people.
    pub message: String,
    /// Headers besides the usual ones.
    pub headers: Vec<(&'static str, String)>,
}

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

    /// 400: the chunks of the body are malformed.
    pub fn malformed_body() -> Self {
        Self::bad_request(texts::BODY_MALFORMED)
    }

    /// 401: the device shows no credential that is valid here (RFC 6750 §3).
    pub fn unauthorized(message: impl Into<String>) -> Self {
        let mut answer = Self::client(http::StatusCode::UNAUTHORIZED, "invalid_api_key", message);
        answer.headers.push(("WWW-Authenticate", "Bearer".to_owned()));
        answer
    }

    /// 403: pages of this origin may not call.
    pub fn origin_not_allowed(origin: &str) -> Self {
        // The echo is bounded: no origin is longer.
        let origin: String = origin.chars().filter(|it| !it.is_control()).take(100).collect();
        let message = texts::origin_not_allowed(&origin);
        Self::client(http::StatusCode::FORBIDDEN, "origin_not_allowed", message)
    }

    /// 404: no region and no operator serves the path; the message names the paths that exist.
    pub fn not_found(path: &str) -> Self {
        // The echo is bounded: a path may be as long as a header.
        let path: String = path.chars().take(100).collect();
        Self::client(http::StatusCode::NOT_FOUND, "not_found", texts::not_found(&path))
    }

    /// 408: the header took too long.
    pub fn too_slow() -> Self {
        Self::client(
            http::StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            texts::HEADER_TOO_SLOW,
        )
    }

    /// 408: the body took too long.
    pub fn body_too_slow() -> Self {
        Self::client(
            http::StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            texts::BODY_TOO_SLOW,
        )
    }

    /// 431: the header is too large.
    pub fn header_too_large(bytes_max: usize) -> Self {
        Self::client(
            http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "header_too_large",
            texts::header_too_large(bytes_max, LINES_MAX),
        )
    }

    /// 426: the Realtime API is a WebSocket (RFC 6455 §4.2.2, version negotiation included).
    pub fn upgrade_required() -> Self {
        let mut answer = Self::client(
            http::StatusCode::UPGRADE_REQUIRED,
            "upgrade_required",
            texts::WEBSOCKET_ONLY,
        );
        answer.headers.push(("Upgrade", "websocket".to_owned()));
        answer.headers.push(("Sec-WebSocket-Version", "13".to_owned()));
        answer
    }

    /// 413: the body is too large.
    pub fn body_too_large(bytes_max: u64) -> Self {
        let message = texts::body_too_large(bytes_max);
        Self::client(http::StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// 429: the client uses too much (RFC 6585 §4), and may come back in about `retry_after_s` seconds.
    pub fn too_many(code: &'static str, message: impl Into<String>, retry_after_s: u64) -> Self {
        let mut answer = Self::client(http::StatusCode::TOO_MANY_REQUESTS, code, message);
        answer.kind = "rate_limit_error";
        answer.headers.push(retry_after(retry_after_s));
        answer
    }

    /// 503: the edge cannot serve the device now; it may come back in about `retry_after_s` seconds.
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
        Self::unavailable("edge_full", texts::EDGE_FULL, 1)
    }

    /// 502 or 504: `whose` region or server failed a request that the edge may not repeat.
    pub fn failed_while_answering(whose: impl Display, is_timeout: bool) -> Self {
        let status = match is_timeout {
            true => http::StatusCode::GATEWAY_TIMEOUT,
            false => http::StatusCode::BAD_GATEWAY,
        };
        Self::region_failed(status, texts::failed_while_answering(whose, is_timeout))
    }

    /// 502 or 504: a region failed in the middle of a request that the edge may not repeat.
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
