//! gRPC through the edge: how the edge recognises a call, and refuses it with a status of gRPC.

use http::{HeaderMap, StatusCode, header};
use pingora_core::{Result, protocols::http::v2::server::HttpSession};
use pingora_http::ResponseHeader;

use crate::{answer::Answer, cors::Cors, stamp::Stamp};

/// The service that regions serve (regional-stack/gateway/proto).
pub const VOICE: &str = "/meridian.voice.v1.Voice/";

/// Whether a request is gRPC: its type begins with `application/grpc`; the rest names the encoding of messages.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// The status a client gets for an answer of the edge
/// (grpc/grpc doc/http-grpc-status-mapping.md, where it has one).
fn code(status: StatusCode) -> u8 {
    match status {
        StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => 3, // INVALID_ARGUMENT
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => 4,             // DEADLINE_EXCEEDED
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => 8,         // RESOURCE_EXHAUSTED
        StatusCode::NOT_FOUND | StatusCode::UPGRADE_REQUIRED => 12,                 // UNIMPLEMENTED
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => 14,            // UNAVAILABLE
        _ => 2,                                                                     // UNKNOWN
    }
}

/// Answers a call with headers alone, which are its trailers too.
pub fn refuse(http2: &mut HttpSession, answer: &Answer, stamp: &Stamp, cors: &Cors) -> Result<()> {
    let mut head = ResponseHeader::build(StatusCode::OK, Some(8))?;
    stamp.insert(cors, &mut head)?;
    head.insert_header("Content-Type", "application/grpc")?;
    head.insert_header("Grpc-Status", code(answer.status).to_string())?;
    head.insert_header("Grpc-Message", escaped(&answer.message))?;
    for (name, value) in &answer.headers {
        if *name == "Retry-After" {
            head.insert_header(*name, value)?;
        }
    }
    // Not by pingora, which would end the stream with an empty body: clients do not take such headers for trailers.
    http2.write_response_header(Box::new(head), true)
}

/// Percent-encodes a message, as gRPC requires. Written by hand: it is one byte class, and gRPC's differs from that of URLs.
fn escaped(message: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_escaped() {
        assert_eq!(escaped("100 % 😀\n"), "100 %25 %F0%9F%98%80%0A");
    }
}
