//! Reading the head of an HTTP/1.1 message (RFC 9112 §2): as many bytes as it takes, within limits of size and time.

use std::{net::SocketAddr, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::Instant,
};

use routing::user;

use crate::{
    answer::Answer,
    http1::{self, Peer, Request},
    patience::Patience,
};

/// Header lines accepted. Browsers send about 20.
pub const LINES_MAX: usize = 64;
/// How a connection of HTTP/2 begins (RFC 9113 §3.4), up to what looks like the end of a head.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// Room for a read: most heads fit.
pub const READ_BYTES: usize = 2048;

/// The head of a message, and what came with it.
#[derive(Debug)]
pub struct Head {
    /// Everything that was read: the head and, behind it, the first bytes of what follows.
    pub bytes: BytesMut,
    /// Length of the head, its final empty line included.
    pub len: usize,
}

impl Head {
    /// Whether it is not a head but the beginning of HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.bytes.starts_with(HTTP2_PREFACE)
    }
}

/// Why there is no head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The peer left without sending anything: no error between requests.
    #[error("the peer closed the connection")]
    Gone,
    /// The peer sent nothing in time: no error between requests.
    #[error("nothing came in time")]
    Quiet,
    /// It began and did not end in time.
    #[error("the header took too long")]
    TooSlow,
    /// More bytes or lines than allowed.
    #[error("the header is too large")]
    TooLarge,
    /// Not HTTP/1.1.
    #[error("not HTTP/1.1: {0}")]
    Malformed(String),
}

/// Which side sends the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A device asks.
    Request,
    /// A region answers.
    Response,
}

/// How long a head may take, and how large it may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Until its first byte.
    pub first: Duration,
    /// From its first byte until it is complete.
    pub rest: Duration,
    /// Its size.
    pub bytes_max: usize,
}

/// Reads one head. A peer that sends a byte now and then does not extend its time.
pub async fn read<R>(io: &mut R, kind: Kind, bounds: Bounds) -> Result<Head, HeadError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    read_on(io, kind, bounds, &mut Patience::default(), BytesMut::new()).await
}

/// The same for one of which `bytes` were read already, with a timer that is used again.
pub async fn read_on<R>(
    io: &mut R,
    kind: Kind,
    bounds: Bounds,
    patience: &mut Patience,
    mut bytes: BytesMut,
) -> Result<Head, HeadError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    let mut deadline = Instant::now() + bounds.first;
    let mut is_read = !bytes.is_empty();
    loop {
        let before = if is_read { 0 } else { bytes.len() };
        if !std::mem::take(&mut is_read) {
            bytes.reserve(READ_BYTES);
            match patience.until(deadline, io.read_buf(&mut bytes)).await {
                None if before == 0 => return Err(HeadError::Quiet),
                None => return Err(HeadError::TooSlow),
                Some(Err(_) | Ok(0)) => return Err(HeadError::Gone),
                Some(Ok(_)) => {}
            }
        }
        if before == 0 {
            deadline = Instant::now() + bounds.rest;
        }
        if kind == Kind::Request && bytes.starts_with(&HTTP2_PREFACE[..HTTP2_PREFACE.len().min(bytes.len())]) {
            if bytes.len() < HTTP2_PREFACE.len() {
                continue;
            }
            let len = HTTP2_PREFACE.len();
            return Ok(Head { bytes, len });
        }
        // Parsing starts over each time, so a head that trickles in is parsed at its first bytes, where most nonsense
        // shows, and at its end.
        let worth_parsing = before == 0 || has_empty_line(&bytes[before.saturating_sub(3)..]);
        if worth_parsing && let Some(len) = parse(&bytes, kind)? {
            return if len > bounds.bytes_max {
                Err(HeadError::TooLarge)
            } else {
                Ok(Head { bytes, len })
            };
        }
        if bytes.len() > bounds.bytes_max {
            return Err(HeadError::TooLarge);
        }
    }
}

/// httparse accepts a bare line feed as the end of a line, so this does too.
fn has_empty_line(bytes: &[u8]) -> bool {
    bytes
        .windows(3)
        .any(|window| window == b"\n\r\n" || window[..2] == *b"\n\n")
        || bytes.ends_with(b"\n\n")
}

fn parse(bytes: &[u8], kind: Kind) -> Result<Option<usize>, HeadError> {
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
    let parsed = match kind {
        Kind::Request => httparse::Request::new(&mut lines).parse(bytes),
        Kind::Response => httparse::Response::new(&mut lines).parse(bytes),
    };
    match parsed {
        Ok(httparse::Status::Complete(len)) => Ok(Some(len)),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(HeadError::TooLarge),
        Err(error) => Err(HeadError::Malformed(error.to_string())),
    }
}

/// A device's request to open a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    device: Peer,
}

/// The path of the Realtime API.
pub const REALTIME: &str = "/v1/realtime";
impl Upgrade {
    /// Reads a request as an upgrade to the Realtime WebSocket (RFC 6455 §4.2.1). `Ok(None)` when it is anything else; an
    /// answer when it should have been one and is not well formed.
    pub fn parse(head: &Head, device: Peer) -> Result<Option<Self>, Answer> {
        // Most requests are told apart by their target alone.
        let words = head.bytes[..head.len].split(|byte| byte.is_ascii_whitespace());
        // Empty lines may come before it (RFC 9112 §2.2).
        let target = words.filter(|word| !word.is_empty()).nth(1);
        let may_be = |target: &[u8]| !target.starts_with(b"/") || target.starts_with(REALTIME.as_bytes());
        if !target.is_some_and(may_be) {
            return Ok(None);
        }
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let request = Request::parse(&head.bytes[..head.len], &mut lines).map_err(Answer::bad_request)?;
        if path_of(request.target) != REALTIME {
            return Ok(None);
        }
        let upgrade = Self {
            target: request.target.to_owned(),
            headers: request
                .lines
                .iter()
                .map(|line| (line.name.to_owned(), line.value.to_vec()))
                .collect(),
            device,
        };
        let asks = upgrade.has_token("upgrade", "websocket") && upgrade.has_token("connection", "upgrade");
        if !asks || request.method != "GET" || !request.is_http11() {
            return Ok(None);
        }
        if upgrade.header("sec-websocket-version") != Some("13") {
            return Err(Answer::upgrade_required());
        }
        if upgrade.all("sec-websocket-key").count() != 1 {
            return Err(Answer::bad_request("an upgrade has one Sec-WebSocket-Key (RFC 6455)"));
        }
        if request.has_body() {
            // Where a body ends and frames begin would be a matter of opinion between us and the stack.
            return Err(Answer::bad_request("an upgrade has no body"));
        }
        Ok(Some(upgrade))
    }

    /// The first header of that name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// A parameter of the query, as it is written: ids and tokens need no percent-encoding.
    pub fn query(&self, name: &str) -> Option<&str> {
        query(&self.target, name)
    }

    /// Who the user is, as far as a rollout goes.
    pub fn user(&self, client: SocketAddr) -> String {
        let given = self.header(USER).or_else(|| self.query("user"));
        let token = self.header("authorization").and_then(bearer);
        user::name(given, token, client.ip())
    }

    /// All headers of that name.
    fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let headers = self.headers.iter();
        headers
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice())
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    }

    /// The request as a region gets it. `Sec-WebSocket-Key` stays, so the region's answer satisfies the device. `ours` are
    /// further lines.
    pub fn forwarded(&self, edge: &topology::EdgeId, ours: &str) -> Vec<u8> {
        let mut bytes = format!("GET {} HTTP/1.1\r\n", self.target).into_bytes();
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        let named: Vec<&[u8]> = self.all("connection").collect();
        http1::forward_headers(&mut bytes, headers, &named, self.device, edge);
        bytes.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        bytes.extend_from_slice(ours.as_bytes());
        bytes.extend_from_slice(b"\r\n");
        bytes
    }
}

/// The header in which a device says who its user is.
pub const USER: &str = "meridian-user";

/// The token of an `Authorization` header (RFC 6750 §2.1).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use topology::EdgeId;

    const BOUNDS: Bounds = Bounds {
        first: Duration::from_secs(5),
        rest: Duration::from_secs(5),
        bytes_max: 1024,
    };

    async fn read_text(text: &str) -> Result<Head, HeadError> {
        read(&mut text.as_bytes(), Kind::Request, BOUNDS).await
    }

    #[tokio::test]
    async fn a_head_ends_at_its_empty_line_and_keeps_what_follows() {
        let head = read_text("GET / HTTP/1.1\r\nHost: x\r\n\r\nrest").await.unwrap();
        assert_eq!(&head.bytes[head.len..], b"rest");
        assert_eq!(read_text("").await.unwrap_err(), HeadError::Gone);
        assert_eq!(read_text("GET / HTTP/1.1\r\nHost").await.unwrap_err(), HeadError::Gone);
        assert!(matches!(
            read_text("\x16\x03\x01 hello").await,
            Err(HeadError::Malformed(_))
        ));
        let http2 = read_text("PRI * HTTP/2.0\r\n\r\nSM").await.unwrap();
        assert!(http2.is_http2() && !head.is_http2());
        assert_eq!(read_text("PRI * HTTP/2").await.unwrap_err(), HeadError::Gone);
        assert!(matches!(
            read_text("PRI * HTTP/3.0\r\n\r\n").await,
            Err(HeadError::Malformed(_))
        ));
        let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(1024));
        assert_eq!(read_text(&long).await.unwrap_err(), HeadError::TooLarge);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a:b\r\n".repeat(LINES_MAX + 1));
        assert_eq!(read_text(&many).await.unwrap_err(), HeadError::TooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_does_not_buy_time() {
        let (mut device, mut edge) = tokio::io::duplex(64);
        let began = Instant::now();
        let trickle = async {
            use tokio::io::AsyncWriteExt as _;
            for byte in b"GET / HTTP/1.1\r\nHost: example\r\n".iter().cycle() {
                if device.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let head = tokio::select! {
            () = trickle => unreachable!("the device never tires"),
            head = read(&mut edge, Kind::Request, BOUNDS) => head,
        };
        assert_eq!(head.unwrap_err(), HeadError::TooSlow);
        assert!(began.elapsed() <= Duration::from_secs(6));
    }

    async fn upgrade(target: &str, lines: &str) -> Result<Option<Upgrade>, Answer> {
        let text = format!(
            "GET {target} HTTP/1.1\r\nHost: v\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n{lines}\r\n"
        );
        Upgrade::parse(&read_text(&text).await.unwrap(), DEVICE)
    }

    const DEVICE: Peer = Peer {
        address: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4)), 5),
        has_tls: false,
    };

    const WELL: &str = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: abc\r\n";

    #[tokio::test]
    async fn an_upgrade_is_forwarded_without_compression_and_with_our_word_on_the_client() {
        let lines = format!(
            "{WELL}Sec-WebSocket-Extensions: permessage-deflate\r\nX-Forwarded-For: 6.6.6.6\r\nMeridian-Resume: 1\r\nX-Forwarded-Proto: x\r\nX-Hop: 1\r\nConnection: X-Hop\r\nAuthorization: Bearer k\r\n"
        );
        let upgrade = upgrade("/v1/realtime?model=m&affinity=t", &lines)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(upgrade.query("affinity"), Some("t"));
        assert_eq!(upgrade.query("nothing"), None);
        let bytes = upgrade.forwarded(&EdgeId::new("edge-dub").unwrap(), "A: b\r\n");
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(
            text,
            "GET /v1/realtime?model=m&affinity=t HTTP/1.1\r\nHost: v\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: abc\r\nAuthorization: Bearer k\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\n\
             Meridian-Edge: edge-dub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nA: b\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn an_empty_line_before_an_upgrade_is_nothing() {
        let text = format!(
            "\r\nGET {REALTIME} HTTP/1.1\r\nHost: v\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{WELL}\r\n"
        );
        let head = read_text(&text).await.unwrap();
        assert!(Upgrade::parse(&head, DEVICE).unwrap().is_some());
    }

    #[tokio::test]
    async fn what_is_no_proper_upgrade_is_told_why() {
        assert_eq!(upgrade("/v1/audio/speech", WELL).await, Ok(None));
        let status = |answer: Result<Option<Upgrade>, Answer>| answer.unwrap_err().status.as_u16();
        assert_eq!(status(upgrade(REALTIME, "Sec-WebSocket-Version: 8\r\n").await), 426);
        assert_eq!(status(upgrade(REALTIME, "Sec-WebSocket-Version: 13\r\n").await), 400);
        for more in [
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Sec-WebSocket-Key: another\r\n",
            "Host: another\r\n",
            "Connection: Host\r\n",
        ] {
            assert_eq!(
                status(upgrade(REALTIME, &format!("{WELL}{more}")).await),
                400,
                "{more:?}"
            );
        }
        let hostless = format!("GET {REALTIME} HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{WELL}\r\n");
        let head = read_text(&hostless).await.unwrap();
        assert_eq!(status(Upgrade::parse(&head, DEVICE)), 400);
    }
}
