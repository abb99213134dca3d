//! Accepts connections of peers, with or without TLS, and tells services who called.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use serde::Deserialize;
use strum::{Display, EnumString};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, TlsStream, rustls, server};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use crate::{Connection, Identity, Link, Role, handshake, join, refusal, shown::Shown, texts, tls_socket::TlsSocket};

/// First byte of a TLS connection: a record that carries a handshake (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Deadline of a handshake. One takes a millisecond.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Most connections that have proven nothing yet, of one address and together. The listener closes further ones at once, so that an
/// address that opens many and stays silent keeps no other out.
const UNPROVEN_OF_ONE_MAX: usize = 512;
const UNPROVEN_MAX: usize = 4_096;
/// Processes and people that join or log in at the same time, of one address and together: each is one request, and its connection lasts for
/// seconds.
const JOINING_OF_ONE_MAX: usize = 8;
const JOINING_MAX: usize = 128;
/// Pause when the process has no descriptor left for another connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// Refused connections are logged no more often than this.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Whether this process and the stacks that it calls prove their ids to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Display, EnumString)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum ToStacks {
    /// Plain text: for the time in which stacks get their certificates.
    Off,
    /// TLS, and only stacks of the region that was meant.
    #[default]
    Required,
}

/// The peers that a listener lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Display, EnumString)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Mode {
    /// Every peer, in plain text; names in calls are claims.
    Off,
    /// Peers with a certificate, and all others as with `off`: for the time in which a fleet gets its certificates.
    Permissive,
    /// Peers with a certificate only.
    #[default]
    Required,
}

/// An event at a listener, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A peer without TLS was let in.
    Plain,
    /// A peer proved its id.
    Proven,
    /// A connection was refused; the reason is one of a few.
    Refused(&'static str),
    /// An open connection ended because its peer is no longer believed.
    Ended,
}

/// The accepted connections, as tonic takes them.
pub struct Incoming(mpsc::Receiver<Connection>);

impl Stream for Incoming {
    type Item = Result<Connection, io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

/// As [`listen`], and lets in processes without a certificate that want to join: their connections are the second part, so that no
/// other service ever sees one.
pub fn listen_with_joining(
    listener: TcpListener,
    identity: (Arc<Identity>, Mode),
    stop: CancellationToken,
    count: impl Fn(Event) + Send + Sync + 'static,
) -> (Incoming, Incoming) {
    let (accepted, incoming) = mpsc::channel(16);
    let (joining, newcomers) = mpsc::channel(JOINING_MAX);
    let way_in = Joining {
        settings: parking_lot::Mutex::new(join::Settings::of(&identity.0)),
        connections: joining,
        places: Places::new(JOINING_OF_ONE_MAX, JOINING_MAX),
    };
    let acceptor = Acceptor {
        joining: Some(way_in),
        ..Acceptor::new(Some(identity), count)
    };
    tokio::spawn(async move {
        stop.run_until_cancelled(Arc::new(acceptor).accept(&listener, &accepted))
            .await;
    });
    (Incoming(incoming), Incoming(newcomers))
}

/// Accepts connections until `stop`. `identity` is `None` for plain text. `count` is called for every event.
pub fn listen(
    listener: TcpListener,
    identity: Option<(Arc<Identity>, Mode)>,
    stop: CancellationToken,
    count: impl Fn(Event) + Send + Sync + 'static,
) -> Incoming {
    // tonic takes each at once; the queue only decouples the tasks.
    let (accepted, incoming) = mpsc::channel(16);
    let acceptor = Arc::new(Acceptor::new(identity, count));
    tokio::spawn(async move {
        stop.run_until_cancelled(acceptor.accept(&listener, &accepted)).await;
    });
    Incoming(incoming)
}

/// Places for connections that have proven nothing yet: so many of one address, and so many together.
#[derive(Debug)]
struct Places {
    of_one_max: usize,
    together_max: usize,
    taken: parking_lot::Mutex<HashMap<IpAddr, usize>>,
}

/// The place of one of them; free again when it is dropped.
struct Place(Arc<Places>, IpAddr);

impl Places {
    fn new(of_one_max: usize, together_max: usize) -> Arc<Self> {
        Arc::new(Self {
            of_one_max,
            together_max,
            taken: parking_lot::Mutex::default(),
        })
    }

    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = network_of(address);
        let mut places = self.taken.lock();
        let together: usize = places.values().sum();
        let of_one = places.get(&address).copied().unwrap_or_default();
        if together >= self.together_max || of_one >= self.of_one_max {
            return None;
        }
        places.insert(address, of_one + 1);
        Some(Place(self.clone(), address))
    }
}

/// The address, or for IPv6 its network of 64 bits: one host has all addresses in it.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(it) => IpAddr::V6(Ipv6Addr::from_bits(it.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.0.taken.lock();
        let left = places.get(&self.1).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            places.remove(&self.1);
        } else {
            places.insert(self.1, left);
        }
    }
}

/// Decides who comes in at a listener: lets each caller prove its id, within limits, and counts and logs whom it refuses.
pub struct Acceptor {
    identity: Option<(Arc<Identity>, Mode)>,
    unproven: Arc<Places>,
    count: Arc<dyn Fn(Event) + Send + Sync>,
    /// Time of the last line about a refused connection, and how many had none since.
    logged: parking_lot::Mutex<(Option<Instant>, u64)>,
    /// `None` where nobody joins.
    joining: Option<Joining>,
}

/// The way in for processes that want to join.
struct Joining {
    settings: parking_lot::Mutex<join::Settings>,
    connections: mpsc::Sender<Connection>,
    places: Arc<Places>,
}

/// A caller that was let in.
enum Admitted {
    Plain(TcpStream),
    Proven(Box<TlsStream<TcpStream>>, Arc<Shown>, Arc<Identity>),
    /// The caller of a stack.
    ToStack(Box<TlsSocket>, Arc<Shown>, Arc<Identity>),
    /// A process without a certificate, with its place.
    Joining(Box<TlsStream<TcpStream>>, Place),
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Acceptor {
    /// `identity` is `None` for plain text. `count` is called for every event.
    pub fn new(identity: Option<(Arc<Identity>, Mode)>, count: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self {
            identity,
            unproven: Places::new(UNPROVEN_OF_ONE_MAX, UNPROVEN_MAX),
            count: Arc::new(count),
            logged: parking_lot::Mutex::new((None, 0)),
            joining: None,
        }
    }

    /// Lets the caller of a stack in; `None` if it is refused.
    pub async fn admit_to_stack(&self, tcp: TcpStream, source: SocketAddr) -> Option<Link> {
        let seen = self.identity.as_ref().map_or(0, |(identity, _)| identity.generation());
        let admitted = self.admit(tcp, source).await?;
        Some(match admitted {
            Admitted::Plain(tcp) => Link::plain(tcp),
            Admitted::ToStack(tls, shown, identity) => Link::known(&identity, tls, shown, seen),
            // The identity is not that of a stack, whose callers are let in in another way.
            Admitted::Proven(..) | Admitted::Joining(..) => return None,
        })
    }

    async fn accept(self: Arc<Self>, listener: &TcpListener, accepted: &mpsc::Sender<Connection>) {
        loop {
            match listener.accept().await {
                Ok((tcp, source)) => {
                    // Small answers must not wait for the acknowledgement of the one before.
                    let _ = tcp.set_nodelay(true);
                    let (acceptor, accepted) = (self.clone(), accepted.clone());
                    tokio::spawn(async move {
                        let connection = match acceptor.admit(tcp, source).await {
                            None => return,
                            Some(Admitted::Plain(tcp)) => Connection::plain(tcp, source),
                            Some(Admitted::Proven(tls, shown, identity)) => {
                                let count = acceptor.count.clone();
                                Connection::watched(identity, *tls, shown, source, move || count(Event::Ended))
                            }
                            // A stack takes its callers by `admit_to_stack`.
                            Some(Admitted::ToStack(..)) => return,
                            Some(Admitted::Joining(tls, place)) => {
                                let connection = Connection::joining(*tls, source, Box::new(place));
                                if let Some(joining) = &acceptor.joining {
                                    // Fails when the process stops.
                                    let _ = joining.connections.send(connection).await;
                                }
                                return;
                            }
                        };
                        // Fails when the process stops.
                        let _ = accepted.send(connection).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "{}", texts::CANNOT_ACCEPT);
                    sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    async fn admit(&self, tcp: TcpStream, source: SocketAddr) -> Option<Admitted> {
        let plain = |tcp| {
            (self.count)(Event::Plain);
            Some(Admitted::Plain(tcp))
        };
        let Some((identity, mode)) = self.identity.as_ref().filter(|(_, mode)| *mode != Mode::Off) else {
            return plain(tcp);
        };
        let Some(_place) = self.unproven.take(source.ip()) else {
            self.refuse(source, "too-many", &texts::TOO_MANY_HANDSHAKES);
            return None;
        };
        let admitted = timeout(HANDSHAKE_MAX, async {
            let mut first = [0; 3];
            match tcp.peek(&mut first).await {
                Ok(1..) if first[0] == HANDSHAKE_RECORD => match self.shake_hands(identity, tcp, source).await {
                    Ok(Some(admitted)) => {
                        if matches!(admitted, Admitted::Proven(..) | Admitted::ToStack(..)) {
                            (self.count)(Event::Proven);
                        }
                        return Some(admitted);
                    }
                    Ok(None) => {
                        self.refuse(source, "too-many", &texts::TOO_MANY_JOIN);
                    }
                    Err((error, tcp)) => {
                        self.refuse(source, handshake::reason(&error), &error);
                        if let Some(tcp) = tcp {
                            refusal::close(tcp).await;
                        }
                    }
                },
                Ok(1..) if *mode == Mode::Permissive => return plain(tcp),
                Ok(1..) => {
                    self.refuse(source, "plain-text", &texts::SPEAKS_PLAIN_TEXT);
                    refusal::of_plain_text(tcp, first.starts_with(b"PR")).await;
                }
                Ok(_) | Err(_) => {}
            }
            None
        });
        admitted.await.unwrap_or_else(|_| {
            self.refuse(source, "too-slow", &texts::HANDSHAKE_TOO_SLOW);
            None
        })
    }

    /// Lets the peer prove its id, or takes it as one that wants to join; `None` if there is no place for it.
    async fn shake_hands(
        &self,
        identity: &Arc<Identity>,
        tcp: TcpStream,
        source: SocketAddr,
    ) -> Result<Option<Admitted>, (io::Error, Option<TcpStream>)> {
        let proven = |(tls, shown): (server::TlsStream<TcpStream>, Arc<Shown>)| {
            Some(Admitted::Proven(Box::new(tls.into()), shown, identity.clone()))
        };
        if matches!(identity.own().id.role, Role::Stack { .. }) {
            let (tls, shown) = identity.accept_at_stack(tcp).await?;
            return Ok(Some(Admitted::ToStack(Box::new(tls), shown, identity.clone())));
        }
        let Some(joining) = &self.joining else {
            return identity.accept(tcp).await.map(proven);
        };
        let mut hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
        let begun = match (&mut hello).await {
            Ok(begun) => begun,
            Err(error) => return Err((error, hello.take_io())),
        };
        if !join::is_wanted(&begun.client_hello()) {
            return identity.accept_begun(begun).await.map(proven);
        }
        let Some(place) = joining.places.take(source.ip()) else {
            return Ok(None);
        };
        let config = joining.settings.lock().newest(identity);
        let config = config.map_err(|error| (io::Error::other(error), None))?;
        let accepting = begun.into_stream(config).into_fallible();
        let tls = accepting.await.map_err(|(error, tcp)| (error, Some(tcp)))?;
        Ok(Some(Admitted::Joining(Box::new(tls.into()), place)))
    }

    fn refuse(&self, source: SocketAddr, reason: &'static str, error: &dyn std::fmt::Display) {
        (self.count)(Event::Refused(reason));
        let mut logged = self.logged.lock();
        match logged.0 {
            Some(at) if at.elapsed() < LOG_EVERY => logged.1 += 1,
            _ => {
                let before = std::mem::take(&mut logged.1);
                logged.0 = Some(Instant::now());
                tracing::warn!(%source, reason, %error, refused_before = before, "{}", texts::CONNECTION_REFUSED);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fills_the_places_of_an_address_keeps_no_other_address_out() {
        let places = Places::new(2, 3);
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let taken: Vec<_> = (0..5).filter_map(|_| places.take(address(1))).collect();
        assert_eq!(taken.len(), 2);
        let other = places.take(address(2));
        assert!(other.is_some() && places.take(address(3)).is_none(), "all together");
        drop(taken);
        assert!(places.take(address(1)).is_some());
        drop(other);
        assert!(places.taken.lock().is_empty(), "nothing is kept of those who left");

        let of_one_host = |last: &str| format!("2001:db8:1:1::{last}").parse().unwrap();
        let taken: Vec<_> = ["1", "2", "3"]
            .map(|last| places.take(of_one_host(last)))
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(taken.len(), 2, "a host has all addresses of its network");
        let mapped: Vec<_> = ["::ffff:10.0.0.1", "10.0.0.1"]
            .map(|it| network_of(it.parse().unwrap()))
            .into();
        assert_eq!(mapped, [address(1); 2]);
    }
}
