//! The socket of a connection, in plain text or with TLS.
//!
//! [`Link`](crate::Link) and [`Connection`](crate::Connection) forward their polls to it, each on its own. Each asks whether its
//! peer still counts at other polls (a link may flush its last words; a connection ends there too), only a link turns a failed read into
//! an error of trust, and only a link writes in pieces. A common wrapper would take these four as parameters and be longer than the two.

use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

pub(crate) use tokio_util::either::Either::{Left as Plain, Right as Tls};

/// Reads and writes as either of the two.
pub(crate) type Socket = Either<TcpStream, Box<TlsStream<TcpStream>>>;
