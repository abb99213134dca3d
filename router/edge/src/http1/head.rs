//! Reading the head of an HTTP/1.1 message (RFC 9112 §2), within limits of size and time.

use std::time::Duration;

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::Instant,
};

use crate::deadline::Deadline;

/// Most header lines of a message. Browsers send about 20.
pub const LINES_MAX: usize = 64;
/// The beginning of a connection of HTTP/2 (RFC 9113 §3.4), up to the first empty line.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// Room for one read: most heads fit.
pub const READ_BYTES: usize = 2048;

/// The head of a message, and the bytes that came with it.
#[derive(Debug)]
pub struct Head {
    /// All bytes read: the head and, behind it, the first bytes of the body or of the next message.
    pub bytes: BytesMut,
    /// Length of the head, its final empty line included.
    pub len: usize,
}

impl Head {
    /// The first values of these headers, if it is the head of a request.
    pub fn values<const N: usize>(&self, names: [&str; N]) -> Option<[Option<&[u8]>; N]> {
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let mut request = httparse::Request::new(&mut lines);
        request.parse(&self.bytes[..self.len]).ok()?;
        let value = |name: &str| {
            let mut lines = request.headers.iter();
            lines
                .find(|line| line.name.eq_ignore_ascii_case(name))
                .map(|line| line.value)
        };
        Some(names.map(value))
    }

    /// Whether it is not a head but the beginning of a connection of HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.bytes.starts_with(HTTP2_PREFACE)
    }
}

/// The reason for which there is no head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The peer left without sending anything: no error between requests.
    #[error("the peer closed the connection")]
    Gone,
    /// The peer sent nothing in time: no error between requests.
    #[error("nothing came in time")]
    Quiet,
    /// The head began and did not end in time.
    #[error("the header took too long")]
    TooSlow,
    /// The head has more bytes or lines than the limit.
    #[error("the header is too large")]
    TooLarge,
    /// The bytes are not HTTP/1.1.
    #[error("not HTTP/1.1: {0}")]
    Malformed(String),
}

/// The side that sends the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Response,
}

/// The longest time and the largest size of a head.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub first: Duration,
    /// Longest time from the first byte of the head until it is complete.
    pub rest: Duration,
    pub bytes_max: usize,
}

/// Reads one head. A peer that sends a byte now and then does not extend the deadline.
pub async fn read<R>(io: &mut R, kind: Kind, bounds: Bounds) -> Result<Head, HeadError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    read_on(io, kind, bounds, &mut Deadline::default(), BytesMut::new()).await
}

/// The same for a head of which `bytes` were read already, with a timer that the caller uses again.
pub async fn read_on<R>(
    io: &mut R,
    kind: Kind,
    bounds: Bounds,
    timer: &mut Deadline,
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
            match timer.until(deadline, io.read_buf(&mut bytes)).await {
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

/// httparse accepts a bare line feed as the end of a line, so this function does too.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
