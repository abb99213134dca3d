//! Connections to control planes: their settings, and the waits between attempts.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use identity::Identity;
use tokio::net::TcpStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::texts;

/// Deadline for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of pings on a connection, so that a dead control plane is noticed although nothing is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Waits between attempts double from the first to the last value. The last is half a tick, so that the first report to
/// a control plane that returned is not late.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LAST: Duration = Duration::from_secs(5);

/// The scheme of a URL at which both ends prove who they are.
const SECURE: &str = "https://";

/// True if a text is the URL of a control plane: `https://address:port`, or `http://address:port` without TLS.
pub fn is_url(url: &str) -> bool {
    let plain = url.replacen(SECURE, "http://", 1);
    let host = plain.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    plain.starts_with("http://") && host.is_some_and(|host| !host.is_empty())
}

/// The problem of a control plane's URL in a configuration, if there is one; `has_identity` tells whether it has `[identity]`.
pub fn url_problem(url: &str, has_identity: bool) -> Option<String> {
    if !is_url(url) {
        return Some(texts::not_a_control_plane_url(url));
    }
    (url.starts_with(SECURE) && !has_identity).then(|| texts::needs_identity(url))
}

/// Opens a connection to a control plane that nodes keep.
pub async fn connect(endpoint: &str, identity: Option<&Arc<Identity>>) -> Result<Channel, Status> {
    let settings = |endpoint: Endpoint| {
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
    };
    let connected = open(endpoint, identity, settings).await;
    connected.map_err(|why| Status::unavailable(texts::at(endpoint, why)))
}

/// Opens a connection with the caller's settings: with mutual TLS to an `https://` URL, in plain text to an `http://` one.
///
/// # Errors
///
/// The reason as text, in the words of its innermost cause.
pub async fn open(
    url: &str,
    identity: Option<&Arc<Identity>>,
    settings: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, String> {
    // TLS is a matter of the connector. tonic would start its own for this scheme.
    let plain = url.replacen(SECURE, "http://", 1);
    let endpoint = Endpoint::from_shared(plain).map_err(|error| texts::at(url, error))?;
    let endpoint = settings(endpoint);
    if !url.starts_with(SECURE) {
        return endpoint.connect().await.map_err(|error| root_cause(&error));
    }
    let identity = identity.ok_or_else(|| texts::NO_CERTIFICATE.to_owned())?;
    let identity = identity.clone();
    let connector = tower::service_fn(move |uri: Uri| {
        let identity = identity.clone();
        async move {
            let address = format!(
                "{}:{}",
                uri.host().unwrap_or_default(),
                uri.port_u16().unwrap_or(DEFAULT_PORT)
            );
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            // Not as a source of the error below: the reader wants the reason and not the whole chain.
            let tls = identity.connect(tcp).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(tls))
        }
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| root_cause(&error))
}

/// Port of a URL that names none.
const DEFAULT_PORT: u16 = 443;

/// The innermost cause: "connection refused" instead of "transport error".
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let innermost = std::iter::successors(Some(error), |error| error.source()).last();
    innermost.unwrap_or(error).to_string()
}

/// Waits between attempts, spread by the name of the waiting party so that a fleet does not reconnect at once. Written by
/// hand: backon spreads by chance, and a node that is restarted must keep its place in the fleet.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    spread: f64,
}

impl Backoff {
    /// The waits for a node or endpoint with this name.
    pub fn of(name: &str) -> Self {
        // FNV-1a: names that differ in one digit must not wait nearly the same time.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            next: BACKOFF_FIRST,
            spread: 1.0 + (hash % 1_000) as f64 / 2_000.0,
        }
    }

    /// Starts over with the first wait, after an answer.
    pub fn reset(&mut self) {
        self.next = BACKOFF_FIRST;
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(self.spread);
        self.next = (self.next * 2).min(BACKOFF_LAST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_differ_between_nodes() {
        let waits = |name| {
            let mut backoff = Backoff::of(name);
            std::array::from_fn::<_, 8, _>(|_| backoff.wait())
        };
        let (iad, dub) = (waits("edge-iad"), waits("edge-dub"));
        assert_ne!(iad, dub);
        for wait in iad.into_iter().chain(dub) {
            assert!(wait >= BACKOFF_FIRST && wait <= BACKOFF_LAST.mul_f64(1.5), "{wait:?}");
        }
        assert!(iad[7] == iad[6] && iad[1] > iad[0]);
        let mut backoff = Backoff::of("edge-iad");
        backoff.wait();
        backoff.reset();
        assert_eq!(backoff.wait(), iad[0]);
    }
}
