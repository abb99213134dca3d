//! The two protocols inside the connections of this crate, and their names in TLS (RFC 7301).

pub(crate) const HTTP2: &[u8] = b"h2";
pub(crate) const HTTP1: &[u8] = b"http/1.1";

/// The protocol that a caller speaks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1, and WebSocket after it.
    Http1,
    /// HTTP/2, as gRPC does.
    Http2,
}

impl Speaks {
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => HTTP1,
            Self::Http2 => HTTP2,
        }
    }
}
