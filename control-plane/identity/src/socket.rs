//! The socket of a connection, in plain text or with TLS.

use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

pub(crate) use tokio_util::either::Either::{Left as Plain, Right as Tls};

/// Reads and writes as either of the two.
pub(crate) type Socket = Either<TcpStream, Box<TlsStream<TcpStream>>>;
