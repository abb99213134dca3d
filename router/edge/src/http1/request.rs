//! The head of a request. Two hops that understand a head differently see two requests (RFC 9112 §11.2), so a head with two
//! meanings is an error here.

use std::{io::Write as _, net::Ipv6Addr};

use crate::{
    http1::{
        body::{Body, Chunks},
        head::LINES_MAX,
        headers::{Provenance, forward_headers, names},
    },
    request_id::REQUEST_ID,
};

/// The head of a request that has only one meaning.
pub struct Request<'h, 'l> {
    pub method: &'h str,
    pub target: &'h str,
    /// Its headers, as the device sent them.
    pub lines: &'l [httparse::Header<'h>],
    /// The length of its body, if the head has one.
    content_length: Option<usize>,
    /// Whether its body is chunked.
    pub is_chunked: bool,
    /// Whether `Connection` names other headers.
    names_headers: bool,
    /// Whether it is the last request on its connection.
    pub is_last: bool,
    /// Whether it is of HTTP/1.1 and has neither `Expect` nor `Upgrade`.
    pub is_plain: bool,
    is_http11: bool,
    /// The id that the device gave it.
    pub id: Option<&'h [u8]>,
    /// The origin of the page that sends it, if a page does.
    pub origin: Option<&'h [u8]>,
}

impl<'h, 'l> Request<'h, 'l> {
    /// Reads a whole head. Every request of HTTP/1 passes here, also upgrades and requests that pingora serves.
    ///
    /// # Errors
    ///
    /// The fault of a head that another hop could understand in another way.
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
            id: None,
            origin: None,
        };
        let (mut host, mut hosts) = (None, 0);
        for line in this.lines {
            let is = |name: &str| line.name.eq_ignore_ascii_case(name);
            // The comparison looks at the lengths first, and those of these names differ from nearly all others.
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
            } else if is(REQUEST_ID) {
                this.id.get_or_insert(line.value);
            } else if is("origin") {
                this.origin.get_or_insert(line.value);
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

    pub fn path(&self) -> &'h str {
        path_of(self.target)
    }

    /// Whether it is gRPC, which needs HTTP/2.
    pub fn is_grpc(&self) -> bool {
        self.header("content-type")
            .is_some_and(|it| it.starts_with("application/grpc"))
    }

    /// The length of its body; 0 without `Content-Length`.
    pub fn body_bytes(&self) -> usize {
        self.content_length.unwrap_or(0)
    }

    /// The length of its body by `Content-Length`.
    pub fn content_length(&self) -> Option<u64> {
        self.content_length.map(|length| length as u64)
    }

    /// The body that follows its head.
    pub fn body(&self) -> Body {
        match self.is_chunked {
            true => Body::Chunked(Chunks::default()),
            false => Body::Length(self.body_bytes() as u64),
        }
    }

    /// Whether a body follows its head.
    pub fn has_body(&self) -> bool {
        self.is_chunked || self.body_bytes() > 0
    }

    /// Whether it is of HTTP/1.1.
    pub fn is_http11(&self) -> bool {
        self.is_http11
    }

    /// Whether it asks only for the head of an answer.
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

    /// Its head for a region, up to the lines about its body.
    pub fn forwarded_lines(&self, provenance: &Provenance<'_>) -> Vec<u8> {
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
        forward_headers(&mut bytes, lines, &named, provenance);
        bytes
    }

    /// Its whole head for a region. Only for a request that is not chunked.
    pub fn forwarded(&self, provenance: &Provenance<'_>) -> Vec<u8> {
        let mut bytes = self.forwarded_lines(provenance);
        if let Some(length) = self.content_length {
            let _ = write!(bytes, "Content-Length: {length}\r\n");
        }
        let _ = write!(bytes, "{}: {}\r\n\r\n", wire::LOAD_HEADER, wire::VERSION);
        bytes
    }
}

/// The message for a path with dot segments.
pub const DOT_SEGMENTS: &str = "the path has segments of dots";

/// Whether a path has a segment `.` or `..`, also in an encoding that a server may decode: such a path would leave the prefix by
/// which the edge chose its route.
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

/// Checks that a request names one host: by the authority of its target (`:authority` in HTTP/2), by its `hosts` lines of `Host`,
/// of which `host` is the last, or the same in both.
///
/// # Errors
///
/// The fault.
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

/// Whether this is a host with or without a port (RFC 9112 §3.2). It allows only the characters that hosts use.
pub fn is_host(value: &[u8]) -> bool {
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
    let is_port = port.is_empty()
        || port.iter().all(u8::is_ascii_digit)
            && std::str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok());
    is_port && (is_name(host) || is_literal().is_some())
}

/// A number of bytes: digits alone (RFC 9110 §8.6).
pub(super) fn length(value: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(value).ok()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// The header with the user of a device.
pub const USER: &str = "meridian-user";

/// The path of a request target.
pub fn path_of(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// A parameter of a request target's query, as it is written.
pub fn query<'t>(target: &'t str, name: &str) -> Option<&'t str> {
    let (_, query) = target.split_once('?')?;
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(known, value)| (known == name && !value.is_empty()).then_some(value))
}

/// The names of the parameters of a request target's query, as they are written.
pub fn names_of_parameters(target: &str) -> impl Iterator<Item = &str> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter_map(|pair| pair.split('=').next())
}

#[cfg(test)]
mod tests {
    use topology::EdgeId;

    use super::*;
    use crate::{http1::Peer, request_id::RequestId};

    fn forwarded(text: &str) -> Result<Option<String>, &'static str> {
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let request = Request::parse(text.as_bytes(), &mut lines)?;
        let device = Peer {
            address: "[::ffff:1.2.3.4]:5".parse().unwrap(),
            has_tls: true,
        };
        let bytes = request.forwarded(&Provenance {
            device,
            edge: &EdgeId::new("edge-dub").unwrap(),
            id: &RequestId::of(request.id.or(Some(b"id"))),
            tenant: None,
            keeps_credentials: false,
        });
        Ok((request.is_plain && !request.is_chunked).then(|| String::from_utf8(bytes).unwrap()))
    }

    #[test]
    fn a_forwarded_request_names_the_address_that_the_edge_saw() {
        let text = "POST /v1/audio/speech?a=b HTTP/1.1\r\nHost: voice\r\nConnection: keep-alive\r\nTE: trailers\r\n\
                    X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nMeridian-Load: 1\r\ncontent-length: 5\r\n\
                    X-Forwarded-Proto: gopher\r\nX-Forwarded-Host: h\r\nX-Real-IP: 6.6.6.6\r\nMeridian-Turns: 1\r\n\
                    Meridian-Continuity: 1\r\nMeridian-Resume: 1\r\nX-Request-ID: mine\r\nAccept: */*\r\n\r\n";
        assert_eq!(
            forwarded(text).unwrap().unwrap(),
            "POST /v1/audio/speech?a=b HTTP/1.1\r\nHost: voice\r\nAccept: */*\r\n\
             X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Request-Id: mine\r\nMeridian-Edge: edge-dub\r\n\
             Content-Length: 5\r\n\
             meridian-load: 1\r\n\r\n"
        );
    }

    #[test]
    fn headers_named_in_connection_stay_on_this_hop() {
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
            "v:65535",
        ] {
            assert!(is_host(host.as_bytes()), "{host:?}");
        }
        for host in [
            "", ":80", "v w", "a, b", "a,b", "v:port", "v:65536", "v:99999", "v:123456", "user@v", "[::1", "::1",
            "[v]", "v/w", "[::1]x", "v\u{e9}",
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
    fn a_head_with_two_meanings_is_refused() {
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
    fn only_a_plain_request_takes_the_fast_path() {
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
}
