//! The head of a region's answer.

use std::io::Write as _;

use wire::Load;

use crate::http1::{
    body::{Body, Broken, Chunks},
    head::LINES_MAX,
    headers::{has_token, is_returned, write_line},
    request::length,
};

/// The head of a region's answer.
#[derive(Debug)]
pub struct Response {
    /// The status code, such as 200.
    pub status: u16,
    /// Length of the head as the region sent it.
    pub len: usize,
    /// The head as the device gets it, without its last, empty line.
    pub returned: Vec<u8>,
    pub body: Body,
    /// Whether the connection takes another request after it.
    pub keeps: bool,
    /// The load that the region reports.
    pub load: Option<Load>,
    /// Whether its `Transfer-Encoding` has more than chunks, which only HTTP/1.1 can pass on.
    pub is_coded: bool,
    /// Whether the stack refuses plain text: it wants TLS and a certificate, whatever is asked.
    pub wants_proof: bool,
}

impl Response {
    /// Reads the head of an answer to a request; `None` while a part of it is missing.
    pub fn parse(bytes: &[u8], to_head: bool) -> Result<Option<Self>, Broken> {
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let mut response = httparse::Response::new(&mut lines);
        let len = match response.parse(bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(Broken("too many headers")),
            Err(_) => return Err(Broken("its head")),
        };
        let (Some(version), Some(status)) = (response.version, response.code) else {
            return Err(Broken("its first line"));
        };
        // Three digits, of which the first is no zero (RFC 9110 §15).
        if status < 100 {
            return Err(Broken("its status"));
        }
        let mut this = Self {
            status,
            len,
            returned: Vec::with_capacity(bytes.len().min(len) + 256),
            body: Body::UntilClose,
            keeps: version == 1,
            load: None,
            is_coded: false,
            wants_proof: false,
        };
        let _ = write!(this.returned, "HTTP/1.1 {status} {}\r\n", response.reason.unwrap_or(""));
        let (mut content_length, mut chunked, mut is_of_hop) = (None, None, false);
        for line in response.headers.iter() {
            let is = |name: &str| line.name.eq_ignore_ascii_case(name);
            let text = || std::str::from_utf8(line.value).map_err(|_| Broken("a header that is not text"));
            if is("content-length") {
                let length = length(line.value).ok_or(Broken("Content-Length"))? as u64;
                if content_length.replace(length).is_some_and(|other| other != length) {
                    return Err(Broken("two lengths"));
                }
            } else if is("transfer-encoding") {
                this.is_coded |= !text()?.trim().eq_ignore_ascii_case("chunked");
                let last = text()?.rsplit(',').next().unwrap_or("").trim();
                chunked = Some(last.eq_ignore_ascii_case("chunked"));
            } else if is("connection") {
                is_of_hop = true;
                this.keeps &= !has_token(line, "close");
            } else if is("upgrade") {
                // RFC 9110 §15.5.22: it names what it wants. Other answers of this kind are about WebSockets.
                this.wants_proof = status == 426 && text()?.trim().starts_with("TLS/");
            } else if is(wire::LOAD_HEADER) {
                this.load = text()?.parse().ok();
            }
        }
        let connection = || {
            response
                .headers
                .iter()
                .filter(|line| line.name.eq_ignore_ascii_case("connection"))
        };
        let is_framed_by_hop = |name| connection().any(|connection| has_token(connection, name));
        if is_of_hop && (is_framed_by_hop("content-length") || is_framed_by_hop("transfer-encoding")) {
            return Err(Broken("Connection"));
        }
        if chunked.is_some() && version == 0 {
            return Err(Broken("HTTP/1.0 knows no Transfer-Encoding"));
        }
        for line in response.headers.iter() {
            let is_named = is_of_hop && connection().any(|connection| has_token(connection, line.name));
            if !is_named && is_returned(line.name) {
                write_line(&mut this.returned, line.name, line.value);
            }
        }
        if let Some(length) = content_length {
            let _ = write!(this.returned, "Content-Length: {length}\r\n");
        }
        // RFC 9112 §6.3, in its order.
        this.body = match (chunked, content_length) {
            _ if to_head || matches!(status, 100..200 | 204 | 304) => Body::Length(0),
            (Some(_), Some(_)) => return Err(Broken("a length beside Transfer-Encoding")),
            (Some(true), None) => Body::Chunked(Chunks::default()),
            (None, Some(length)) => Body::Length(length),
            (Some(false) | None, None) => Body::UntilClose,
        };
        this.keeps &= !matches!(this.body, Body::UntilClose);
        Ok(Some(this))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(text: &str) -> Result<Option<Response>, Broken> {
        Response::parse(text.as_bytes(), false)
    }

    #[test]
    fn an_answer_is_returned_without_what_was_meant_for_the_edge() {
        let text = "HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nConnection: X-Hop\r\nX-Hop: 1\r\nMeridian-Load: 1/10 0/4\r\n\
                    Meridian-Edge: forged\r\nX-Request-Id: forged\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 3\r\n\r\nabc";
        let answer = response(text).unwrap().unwrap();
        assert_eq!(&text[answer.len..], "abc");
        assert_eq!(
            String::from_utf8(answer.returned).unwrap(),
            "HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nContent-Length: 3\r\n"
        );
        assert_eq!((answer.body, answer.keeps), (Body::Length(3), true));
        assert!(response(&text[..40]).unwrap().is_none());
    }

    #[test]
    fn a_stack_that_wants_a_certificate_is_told_from_one_that_wants_a_websocket() {
        let wants = |text: &str| response(text).unwrap().unwrap().wants_proof;
        assert!(wants(
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3\r\nContent-Length: 0\r\n\r\n"
        ));
        assert!(!wants(
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n"
        ));
        assert!(!wants("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"));
        assert!(!wants(
            "HTTP/1.1 200 OK\r\nUpgrade: TLS/1.3\r\nContent-Length: 0\r\n\r\n"
        ));
    }

    #[test]
    fn where_a_body_ends() {
        let body = |lines: &str| response(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).map(|it| it.unwrap());
        assert_eq!(body("").unwrap().body, Body::UntilClose);
        assert!(!body("").unwrap().keeps);
        assert!(
            !body("Connection: keep-alive, Close\r\nContent-Length: 1\r\n")
                .unwrap()
                .keeps
        );
        assert_eq!(
            body("Content-Length: 7\r\nContent-Length: 7\r\n").unwrap().body,
            Body::Length(7)
        );
        assert!(matches!(
            body("Transfer-Encoding: gzip, chunked\r\n").unwrap().body,
            Body::Chunked(_)
        ));
        assert_eq!(body("Transfer-Encoding: gzip\r\n").unwrap().body, Body::UntilClose);
        for lines in [
            "Content-Length: 7\r\nContent-Length: 8\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n",
            "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
            "Connection: content-length\r\nContent-Length: 7\r\n",
        ] {
            assert!(body(lines).is_err(), "{lines:?}");
        }
        assert!(response("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        let twice = body("Content-Length: 7\r\nContent-Length: 7\r\n").unwrap().returned;
        assert_eq!(
            String::from_utf8(twice).unwrap().matches("Content-Length: 7").count(),
            1
        );
        // Their Content-Length is ignored: an edge that took the next answer for their body would give it to the wrong device.
        for status in ["304 Not Modified", "204 No Content"] {
            let nothing = response(&format!("HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\n"));
            assert_eq!(nothing.unwrap().unwrap().body, Body::Length(0), "{status}");
        }
        let head = Response::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", true);
        assert_eq!(head.unwrap().unwrap().body, Body::Length(0));
        assert!(
            !response("HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n")
                .unwrap()
                .unwrap()
                .keeps
        );
        assert!(response("nonsense\r\n\r\n").is_err());
    }
}
