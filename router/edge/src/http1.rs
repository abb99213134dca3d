//! HTTP/1.1 messages (RFC 9112) as far as a proxy must understand them to pass them on: which headers belong to this hop,
//! and where a body ends. Nothing here waits for a socket.
//!
//! Only messages without surprises are read here. What could be understood in two ways is left to others, or is an error:
//! a request that two hops understand differently is two requests (RFC 9112 §11.2).

use std::{
    io::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use bytes::{Buf as _, Bytes, BytesMut};
use topology::{
    EdgeId,
    words::{self, Load},
};

use crate::head::{LINES_MAX, path_of};

/// Headers that the edge writes itself, or that concern one hop only (RFC 9110 §7.6.1), or that it declines: without
/// `Sec-WebSocket-Extensions` no compression is negotiated, so frames can be relayed verbatim and their bits checked.
/// `Expect` is answered by the edge, which reads bodies before it asks a region.
pub const NOT_FORWARDED: [&str; 16] = [
    "connection",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "content-length",
    "expect",
    "sec-websocket-extensions",
    "meridian-edge",
    words::HEADER,
    words::RESUME_HEADER,
    words::LOAD_HEADER,
    words::TURNS_HEADER,
];
/// What a device says about where it comes from is no evidence; the edge writes `X-Forwarded-For` and `X-Forwarded-Proto`
/// anew.
pub const HEARSAY: [&str; 5] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-real-ip",
    "forwarded",
];
/// Headers of an answer that the device gets from the edge or not at all.
const NOT_RETURNED: [&str; 9] = [
    "content-length",
    "connection",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "meridian-region",
    "meridian-affinity",
    "meridian-edge",
    words::LOAD_HEADER,
];
/// Extensions and trailers of a chunked body that nobody reads may be this long.
const CHUNK_LINES_BYTES_MAX: usize = 8 << 10;

/// The device at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub has_tls: bool,
}

impl Peer {
    /// Its address as everybody writes it: a socket for both families calls 192.0.2.1 `::ffff:192.0.2.1`.
    pub fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }

    /// As `X-Forwarded-Proto` has it.
    pub fn scheme(&self) -> &'static str {
        if self.has_tls { "https" } else { "http" }
    }
}

/// Writes the headers of a request that concern the region, each on a line, and what the edge says about the device. `named`
/// are the values of its `Connection` headers: what they name concerns this hop only.
pub fn forward_headers<'h>(
    bytes: &mut Vec<u8>,
    headers: impl Iterator<Item = (&'h str, &'h [u8])>,
    named: &[&[u8]],
    device: Peer,
    edge: &EdgeId,
) {
    for (name, value) in headers {
        if is_forwarded(name, named) {
            write_line(bytes, name, value);
        }
    }
    let _ = write!(
        bytes,
        "X-Forwarded-For: {}\r\nX-Forwarded-Proto: {}\r\nMeridian-Edge: {edge}\r\n",
        device.ip(),
        device.scheme(),
    );
}

/// Whether a header of a request concerns the region.
pub fn is_forwarded(name: &str, named: &[&[u8]]) -> bool {
    let mut not_forwarded = NOT_FORWARDED.iter().chain(&HEARSAY);
    !not_forwarded.any(|not| name.eq_ignore_ascii_case(not)) && !named.iter().any(|value| names(value, name))
}

fn write_line(bytes: &mut Vec<u8>, name: &str, value: &[u8]) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(b"\r\n");
}

/// The head of a request that nobody can understand in two ways.
pub struct Request<'h, 'l> {
    /// As in `GET`.
    pub method: &'h str,
    /// Path and query.
    pub target: &'h str,
    /// Its headers, as they came.
    pub lines: &'l [httparse::Header<'h>],
    /// Length of its body, if it says that it has one.
    content_length: Option<usize>,
    /// Whether its body is chunked.
    pub is_chunked: bool,
    /// Whether `Connection` names other headers.
    names_headers: bool,
    /// Whether the device asks nothing more on this connection.
    pub is_last: bool,
    /// Whether it is of HTTP/1.1 and neither waits to be told to go on nor asks for another protocol.
    pub is_plain: bool,
    is_http11: bool,
}

impl<'h, 'l> Request<'h, 'l> {
    /// Reads a whole head. Every request of HTTP/1 passes here, also those that become sessions or are pingora's.
    ///
    /// # Errors
    ///
    /// What is wrong with it, where others could understand it in another way.
    pub fn parse(head: &'h [u8], lines: &'l mut [httparse::Header<'h>; LINES_MAX]) -> Result<Self, &'static str> {
        let mut request = httparse::Request::new(lines);
        let parsed = request.parse(head);
        let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) = (parsed, request.method, request.path)
        else {
            return Err("not a request of HTTP/1.1");
        };
        let is_http11 = request.version == Some(1);
        let (authority, target) = split_target(target)?;
        if method == "CONNECT" {
            return Err("CONNECT is not served");
        }
        let mut this = Self {
            method,
            target,
            lines: request.headers,
            content_length: None,
            is_chunked: false,
            names_headers: false,
            is_last: false,
            is_plain: is_http11,
            is_http11,
        };
        let (mut host, mut hosts) = (None, 0);
        for line in this.lines {
            let is = |name: &str| line.name.eq_ignore_ascii_case(name);
            // The lengths of these names tell nearly all others apart without a look at a letter.
            if is("host") {
                host = Some(line.value);
                hosts += 1;
            } else if is("content-length") {
                let length = length(line.value).ok_or("Content-Length is not a number of bytes")?;
                if this.content_length.replace(length).is_some() {
                    return Err("a request has one Content-Length");
                }
            } else if is("connection") {
                this.is_last |= names(line.value, "close");
                for token in line.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    let is = |name: &str| token.eq_ignore_ascii_case(name.as_bytes());
                    if is("host") || is("content-length") || is("transfer-encoding") {
                        return Err("Connection names a header that every hop needs");
                    }
                    this.names_headers |= !is("close") && !is("keep-alive");
                }
            } else if is("transfer-encoding") {
                if this.is_chunked || !line.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err("the only Transfer-Encoding of a request is chunked");
                }
                this.is_chunked = true;
            } else if is("expect") || is("upgrade") {
                this.is_plain = false;
            }
        }
        // HTTP/1.0 knows no Host.
        if hosts > 0 || is_http11 || authority.is_some() {
            check_host(authority.map(str::as_bytes), host, hosts)?;
            if host.is_none() {
                return Err(ONE_HOST);
            }
        }
        if this.is_chunked && this.content_length.is_some() {
            return Err("a request has a Content-Length or a Transfer-Encoding");
        }
        if this.is_chunked && !is_http11 {
            return Err("HTTP/1.0 knows no Transfer-Encoding");
        }
        if has_dot_segments(this.path()) {
            return Err(DOT_SEGMENTS);
        }
        Ok(this)
    }

    /// Where it asks.
    pub fn path(&self) -> &'h str {
        path_of(self.target)
    }

    /// Whether it is gRPC, which is not spoken over HTTP/1.1.
    pub fn is_grpc(&self) -> bool {
        self.header("content-type")
            .is_some_and(|it| it.starts_with("application/grpc"))
    }

    /// Length of its body, if it says it.
    pub fn body_bytes(&self) -> usize {
        self.content_length.unwrap_or(0)
    }

    /// Whether a body follows its head.
    pub fn has_body(&self) -> bool {
        self.is_chunked || self.body_bytes() > 0
    }

    /// Whether it is of HTTP/1.1.
    pub fn is_http11(&self) -> bool {
        self.is_http11
    }

    /// Whether it asks for nothing but the head of an answer.
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether it only reads, so that doing it twice is like doing it once.
    pub fn only_reads(&self) -> bool {
        matches!(self.method, "GET" | "HEAD")
    }

    /// The first header of that name, if it is text.
    pub fn header(&self, name: &str) -> Option<&'h str> {
        let line = self.lines.iter().find(|line| line.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(line.value).ok()
    }

    /// Its head as a region gets it.
    pub fn forwarded(&self, device: Peer, edge: &EdgeId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        for part in [self.method, " ", self.target, " HTTP/1.1\r\n"] {
            bytes.extend_from_slice(part.as_bytes());
        }
        // Nearly always there are none, and then nothing is allocated.
        let connection = self
            .lines
            .iter()
            .filter(|line| line.name.eq_ignore_ascii_case("connection"));
        let named: Vec<&[u8]> = connection
            .filter(|_| self.names_headers)
            .map(|line| line.value)
            .collect();
        let lines = self.lines.iter().map(|line| (line.name, line.value));
        forward_headers(&mut bytes, lines, &named, device, edge);
        if let Some(length) = self.content_length {
            let _ = write!(bytes, "Content-Length: {length}\r\n");
        }
        let _ = write!(bytes, "{}: {}\r\n\r\n", words::LOAD_HEADER, words::VERSION);
        bytes
    }
}

/// What a path with dot segments is told.
pub const DOT_SEGMENTS: &str = "the path has segments of dots";

/// Whether a path has a segment `.` or `..`, also in an encoding that a server behind may undo: it would leave the prefix
/// under which it was let through.
pub fn has_dot_segments(path: &str) -> bool {
    // Most paths have neither.
    if !path.bytes().any(|byte| matches!(byte, b'.' | b'%')) {
        return false;
    }
    let decoded = path.to_ascii_lowercase().replace("%2e", ".");
    let decoded = decoded.replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    decoded.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// The authority of a request target in absolute form (RFC 9112 §3.2.2), and the target without it.
fn split_target(target: &str) -> Result<(Option<&str>, &str), &'static str> {
    if target.starts_with('/') {
        return Ok((None, target));
    }
    let scheme = |scheme: &str| {
        let known = target.get(..scheme.len())?;
        known.eq_ignore_ascii_case(scheme).then(|| &target[scheme.len()..])
    };
    let rest = scheme("http://").or_else(|| scheme("https://"));
    let rest = rest.ok_or("a request asks for a path, as in /v1/models")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    match path {
        "" => Ok((Some(authority), "/")),
        path if path.starts_with('?') => Err("a request asks for a path, as in /v1/models"),
        path => Ok((Some(authority), path)),
    }
}

const ONE_HOST: &str = "a request has one Host";

/// Whether a request says in one way which host it is for: by the authority of its target (`:authority` in HTTP/2), by its
/// `hosts` lines of `Host`, of which `host` is the last, or by both alike.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_host(authority: Option<&[u8]>, host: Option<&[u8]>, hosts: usize) -> Result<(), &'static str> {
    if hosts > 1 || host.or(authority).is_none() {
        return Err(ONE_HOST);
    }
    if !host.into_iter().chain(authority).all(is_host) {
        return Err("Host is not a name with or without a port");
    }
    match (authority, host) {
        (Some(authority), Some(host)) if !host.eq_ignore_ascii_case(authority) => {
            Err("the request names one host in its first line and another in Host")
        }
        _ => Ok(()),
    }
}

/// Whether this is a host with or without a port (RFC 9112 §3.2), in the letters that hosts really have.
fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value.iter().rposition(|byte| *byte == b':') {
        // The colons of an IPv6 address are within brackets.
        Some(at) if !value[at..].contains(&b']') => (&value[..at], &value[at + 1..]),
        _ => (value, &b""[..]),
    };
    let is_name = |host: &[u8]| {
        let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(byte);
        !host.is_empty() && host.iter().all(is_letter)
    };
    let is_literal = || {
        let inner = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]"));
        inner.and_then(|inner| std::str::from_utf8(inner).ok()?.parse::<Ipv6Addr>().ok())
    };
    port.iter().all(u8::is_ascii_digit) && port.len() <= 5 && (is_name(host) || is_literal().is_some())
}

/// Whether a list of names has this one.
fn names(list: &[u8], name: &str) -> bool {
    let mut tokens = list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tokens.any(|known| known.eq_ignore_ascii_case(name.as_bytes()))
}

fn has_token(line: &httparse::Header<'_>, token: &str) -> bool {
    names(line.value, token)
}

/// A number of bytes: digits alone (RFC 9110 §8.6).
fn length(value: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(value).ok()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// What a region sent is no answer, or none that can be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not HTTP/1.1: {0}")]
pub struct Broken(&'static str);

/// The head of a region's answer.
#[derive(Debug)]
pub struct Response {
    /// As in 200.
    pub status: u16,
    /// Length of the head as the region sent it.
    pub len: usize,
    /// The head as the device gets it, without its last, empty line.
    pub returned: Vec<u8>,
    /// Where its body ends.
    pub body: Body,
    /// Whether the connection takes another request after it.
    pub keeps: bool,
    /// What the region says of its load.
    pub load: Option<Load>,
    /// Whether its body is coded for the hop in a way that only HTTP/1.1 can pass on: not just in chunks.
    pub is_coded: bool,
}

impl Response {
    /// Reads the head of an answer to a request; `None` while it is not all there.
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
            } else if is(words::LOAD_HEADER) {
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
            if !is_named && !NOT_RETURNED.iter().any(|not| line.name.eq_ignore_ascii_case(not)) {
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

/// Where a body ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// After so many bytes more.
    Length(u64),
    /// Its chunks say.
    Chunked(Chunks),
    /// With the connection.
    UntilClose,
}

impl Body {
    /// Takes bytes that came; how many of them are the body's.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        match self {
            Self::Length(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunks) => chunks.take(bytes),
            Self::UntilClose => Ok(bytes.len()),
        }
    }

    /// Takes what came of it out of `bytes`, without the framing of chunks.
    pub fn data(&mut self, bytes: &mut BytesMut) -> Result<Bytes, Broken> {
        if let Self::Chunked(chunks) = self {
            let mut data = Vec::new();
            let taken = chunks.walk(bytes, |part| data.extend_from_slice(part))?;
            bytes.advance(taken);
            return Ok(data.into());
        }
        let taken = self.take(bytes)?;
        Ok(bytes.split_to(taken).freeze())
    }

    /// Whether all of it came. One that ends with the connection never tells.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::UntilClose => false,
        }
    }
}

/// Finds the end of a chunked body (RFC 9112 §7.1), which is passed on as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    at: At,
    /// Of the chunk, still to come; its size while that is read.
    left: u64,
    /// Bytes of lines that nobody reads.
    ignored: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the first digit of a size.
    #[default]
    Size,
    /// Behind a digit.
    Digits,
    /// Behind the size, in what an extension says.
    Extension,
    /// Behind the carriage return after a size.
    SizeEnd,
    Data,
    /// Behind a chunk's last byte.
    DataEnd,
    /// Behind the carriage return after it.
    DataLineEnd,
    /// At the beginning of a line behind the last chunk.
    Trailer,
    InTrailer,
    /// Behind the carriage return of an empty line: what follows ends the body.
    LastLineEnd,
    End,
}

impl Chunks {
    /// Takes bytes that came; how many of them are the body's.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        self.walk(bytes, |_| ())
    }

    /// Whether all of it came.
    pub fn is_done(&self) -> bool {
        self.at == At::End
    }

    fn walk(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, Broken> {
        let mut taken = 0;
        while taken < bytes.len() && self.at != At::End {
            if self.at == At::Data {
                let count = (bytes.len() - taken).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= count as u64;
                data(&bytes[taken..taken + count]);
                taken += count;
                if self.left == 0 {
                    self.at = At::DataEnd;
                }
                continue;
            }
            self.at = self.step(bytes[taken])?;
            taken += 1;
        }
        Ok(taken)
    }

    fn step(&mut self, byte: u8) -> Result<At, Broken> {
        if matches!(self.at, At::Extension | At::Trailer | At::InTrailer) {
            self.ignored += 1;
            if self.ignored > CHUNK_LINES_BYTES_MAX {
                return Err(Broken("its chunks say too much"));
            }
        }
        let digit = char::from(byte).to_digit(16);
        match (self.at, byte) {
            (At::Size | At::Digits, _) if let Some(digit) = digit => {
                let shifted = self.left.checked_mul(16).ok_or(Broken("the size of a chunk"))?;
                self.left = shifted | u64::from(digit);
                Ok(At::Digits)
            }
            (At::Digits, b';' | b' ' | b'\t') => Ok(At::Extension),
            (At::Digits | At::Extension, b'\r') => Ok(At::SizeEnd),
            (At::Extension, byte) if byte != b'\n' => Ok(At::Extension),
            (At::SizeEnd, b'\n') if self.left == 0 => Ok(At::Trailer),
            (At::SizeEnd, b'\n') => Ok(At::Data),
            (At::DataEnd, b'\r') => Ok(At::DataLineEnd),
            (At::DataLineEnd, b'\n') => Ok(At::Size),
            (At::Trailer, b'\r') => Ok(At::LastLineEnd),
            (At::InTrailer, b'\n') => Ok(At::Trailer),
            (At::InTrailer, _) => Ok(At::InTrailer),
            (At::Trailer, byte) if byte != b'\n' => Ok(At::InTrailer),
            (At::LastLineEnd, b'\n') => Ok(At::End),
            _ => Err(Broken("its chunks")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn forwarded(text: &str) -> Result<Option<String>, &'static str> {
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let request = Request::parse(text.as_bytes(), &mut lines)?;
        let device = Peer {
            address: "[::ffff:1.2.3.4]:5".parse().unwrap(),
            has_tls: true,
        };
        let bytes = request.forwarded(device, &EdgeId::new("edge-dub").unwrap());
        Ok((request.is_plain && !request.is_chunked).then(|| String::from_utf8(bytes).unwrap()))
    }

    #[test]
    fn a_request_is_forwarded_with_our_word_on_the_client() {
        let text = "POST /v1/audio/speech?a=b HTTP/1.1\r\nHost: voice\r\nConnection: keep-alive\r\nTE: trailers\r\n\
                    X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nMeridian-Load: 1\r\ncontent-length: 5\r\n\
                    X-Forwarded-Proto: gopher\r\nX-Forwarded-Host: h\r\nX-Real-IP: 6.6.6.6\r\nMeridian-Turns: 1\r\n\
                    Meridian-Continuity: 1\r\nMeridian-Resume: 1\r\nAccept: */*\r\n\r\n";
        assert_eq!(
            forwarded(text).unwrap().unwrap(),
            "POST /v1/audio/speech?a=b HTTP/1.1\r\nHost: voice\r\nAccept: */*\r\n\
             X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nMeridian-Edge: edge-dub\r\nContent-Length: 5\r\n\
             meridian-load: 1\r\n\r\n"
        );
    }

    #[test]
    fn what_connection_names_concerns_this_hop_only() {
        let text = "GET /health HTTP/1.1\r\nHost: v\r\nX-Hop: 1\r\nConnection: keep-alive, x-hop\r\n\
                    Connection: Authorization\r\nAuthorization: Bearer secret\r\nX-Stays: 1\r\n\r\n";
        let forwarded = forwarded(text).unwrap().unwrap();
        assert!(
            forwarded.starts_with("GET /health HTTP/1.1\r\nHost: v\r\nX-Stays: 1\r\nX-Forwarded-For"),
            "{forwarded}"
        );
    }

    #[test]
    fn a_host_is_a_name_with_or_without_a_port() {
        for host in [
            "v",
            "voice.example",
            "voice.example:8080",
            "192.0.2.1:1",
            "[2001:db8::1]",
            "[::1]:8080",
            "v:",
        ] {
            assert!(is_host(host.as_bytes()), "{host:?}");
        }
        for host in [
            "", ":80", "v w", "a, b", "a,b", "v:port", "v:123456", "user@v", "[::1", "::1", "[v]", "v/w", "[::1]x",
            "v\u{e9}",
        ] {
            assert!(!is_host(host.as_bytes()), "{host:?}");
        }
    }

    #[test]
    fn dots_do_not_lead_out_of_a_path() {
        for path in [
            "/skills/../secret",
            "/skills/%2e%2e/secret",
            "/skills/.%2E/secret",
            "/skills/..%2fsecret",
            "/skills/..%5csecret",
            "/skills/..\\secret",
            "/skills/./x",
            "/skills/..",
        ] {
            assert!(has_dot_segments(path), "{path}");
            assert!(
                forwarded(&format!("GET {path}?q HTTP/1.1\r\nHost: v\r\n\r\n")).is_err(),
                "{path}"
            );
        }
        for path in [
            "/v1/models/whisper-1.5",
            "/skills/..x",
            "/skills/...",
            "/.well-known/x",
            "/a%20b",
        ] {
            assert!(!has_dot_segments(path), "{path}");
        }
    }

    #[test]
    fn the_host_of_an_absolute_target_is_that_of_the_request() {
        let ask = |target: &str, host: &str| {
            let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            forwarded(&text).map(|it| it.unwrap_or_default().lines().next().unwrap_or("").to_owned())
        };
        assert_eq!(
            ask("http://voice/v1/models?a=b", "Voice").unwrap(),
            "GET /v1/models?a=b HTTP/1.1"
        );
        assert_eq!(ask("HTTPS://voice:1", "voice:1").unwrap(), "GET / HTTP/1.1");
        for (target, host) in [
            ("http://other/v1/models", "voice"),
            ("http://voice@other/", "voice"),
            ("http://voice?x", "voice"),
            ("ftp://voice/", "voice"),
            ("voice:80", "voice:80"),
            ("*", "voice"),
        ] {
            assert!(ask(target, host).is_err(), "{target}");
        }
    }

    fn with(line: &str) -> Result<bool, &'static str> {
        forwarded(&format!("POST / HTTP/1.1\r\nHost: voice\r\n{line}\r\n")).map(|it| it.is_some())
    }

    #[test]
    fn what_others_could_understand_in_another_way_is_refused() {
        for line in [
            "Host: other\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Connection: close, Host\r\n",
            "Connection: content-length\r\nContent-Length: 1\r\n",
        ] {
            assert!(with(line).is_err(), "{line:?}");
        }
        assert!(forwarded("GET / HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn what_is_not_as_simple_as_it_could_be_is_for_others() {
        for line in [
            "",
            "Content-Length: 0\r\n",
            "Connection: Keep-Alive, close\r\n",
            "Connection: X-Hop\r\nX-Hop: 1\r\n",
        ] {
            assert_eq!(with(line), Ok(true), "{line:?}");
        }
        for line in [
            "Transfer-Encoding: chunked\r\n",
            "Expect: 100-continue\r\n",
            "Connection: upgrade\r\nUpgrade: h2c\r\n",
        ] {
            assert_eq!(with(line), Ok(false), "{line:?}");
        }
        assert_eq!(forwarded("GET / HTTP/1.0\r\n\r\n"), Ok(None));
        assert!(forwarded("CONNECT / HTTP/1.1\r\nHost: voice\r\n\r\n").is_err());
    }

    fn response(text: &str) -> Result<Option<Response>, Broken> {
        Response::parse(text.as_bytes(), false)
    }

    #[test]
    fn an_answer_is_returned_without_what_was_meant_for_the_edge() {
        let text = "HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nConnection: X-Hop\r\nX-Hop: 1\r\nMeridian-Load: 1/10 0/4\r\n\
                    Meridian-Edge: forged\r\nContent-Length: 3\r\n\r\nabc";
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
        let nothing = response("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n");
        assert_eq!(nothing.unwrap().unwrap().body, Body::Length(0));
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

    #[test]
    fn chunks_that_are_none_are_refused() {
        for text in [
            "x\r\n",
            "\r\n",
            "1\n",
            "1\r\nab",
            "11111111111111111\r\n",
            "0\r\n\n",
            "1 ;\n",
        ] {
            assert!(Chunks::default().take(text.as_bytes()).is_err(), "{text:?}");
        }
        let endless = format!("1;{}\r\n", "x".repeat(CHUNK_LINES_BYTES_MAX + 1));
        assert!(Chunks::default().take(endless.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn a_chunked_body_ends_where_it_ends_however_it_arrives(
            chunks in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 1..50), any::<bool>()), 0..6),
            has_trailers in any::<bool>(),
            cuts in proptest::collection::vec(1..40_usize, 0..40),
        ) {
            let mut bytes = Vec::new();
            for (data, is_extended) in &chunks {
                let extension = if *is_extended { ";name=\"va lue\"" } else { "" };
                write!(bytes, "{:x}{extension}\r\n", data.len()).unwrap();
                bytes.extend_from_slice(data);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n");
            if has_trailers {
                bytes.extend_from_slice(b"Digest: a\r\nOther: b\r\n");
            }
            bytes.extend_from_slice(b"\r\n");
            let length = bytes.len();
            bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            let (mut body, mut at) = (Body::Chunked(Chunks::default()), 0);
            for cut in cuts.into_iter().chain([bytes.len()]) {
                let part = &bytes[at..bytes.len().min(at + cut)];
                at += body.take(part).unwrap();
                prop_assert_eq!(body.is_done(), at == length);
            }
            prop_assert_eq!(at, length);
        }
    }
}
