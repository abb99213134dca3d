//! Accepts connections of peers, with or without TLS, and tells services who called.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use serde::Deserialize;
use strum::{Display, EnumString};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::{
    Identity, Peer,
    tls::{self, Shown},
};

/// First byte of a TLS connection: a record that carries a handshake (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Deadline of a handshake. One takes a millisecond.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Handshakes at once. More wait in the kernel: a fleet that returns must not make itself slow.
const HANDSHAKES_MAX: usize = 256;
/// Pause when the process has no descriptor left for another connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// Refused connections are logged no more often than this.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Whom a listener lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Display, EnumString)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Mode {
    /// Everybody, in plain text; names in calls are claims.
    Off,
    /// Peers with a certificate, and everybody else as with `off`: for the time in which a fleet gets its certificates.
    Permissive,
    /// Peers with a certificate only.
    #[default]
    Required,
}

/// Who made a call: a request extension of tonic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its address.
    pub source: SocketAddr,
    /// The id that it proved; `None` without TLS.
    pub peer: Option<Peer>,
}

/// A connection of a peer.
pub struct Connection {
    io: Socket,
    caller: Caller,
    /// Ready when the peer is no longer believed.
    ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Ends the watch over this connection with it.
    _watched: Option<tokio_util::sync::DropGuard>,
}

enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What happened at a listener, for metrics.
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

/// Accepts connections until `stop`. `identity` is `None` for plain text. `count` is called for every event.
pub fn listen(
    listener: TcpListener,
    identity: Option<(Arc<Identity>, Mode)>,
    stop: CancellationToken,
    count: impl Fn(Event) + Send + Sync + 'static,
) -> Incoming {
    // tonic takes each at once; the queue only decouples the tasks.
    let (accepted, incoming) = mpsc::channel(16);
    let gate = Arc::new(Gate {
        identity,
        handshakes: Semaphore::new(HANDSHAKES_MAX),
        accepted,
        count: Arc::new(count),
        logged: parking_lot::Mutex::new((None, 0)),
    });
    tokio::spawn(async move {
        stop.run_until_cancelled(gate.accept(&listener)).await;
    });
    Incoming(incoming)
}

struct Gate {
    identity: Option<(Arc<Identity>, Mode)>,
    handshakes: Semaphore,
    accepted: mpsc::Sender<Connection>,
    count: Arc<dyn Fn(Event) + Send + Sync>,
    /// Time of the last line about a refused connection, and how many had none since.
    logged: parking_lot::Mutex<(Option<Instant>, u64)>,
}

impl Gate {
    async fn accept(self: Arc<Self>, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((tcp, source)) => {
                    // Small answers must not wait for the acknowledgement of the one before.
                    let _ = tcp.set_nodelay(true);
                    let gate = self.clone();
                    tokio::spawn(async move { gate.admit(tcp, source).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    async fn admit(&self, tcp: TcpStream, source: SocketAddr) {
        let Some((identity, mode)) = self.identity.as_ref().filter(|(_, mode)| *mode != Mode::Off) else {
            return self.pass(Connection::plain(tcp, source), Event::Plain).await;
        };
        let admitted = timeout(HANDSHAKE_MAX, async {
            let _place = self.handshakes.acquire().await;
            let mut first = [0];
            match tcp.peek(&mut first).await {
                Ok(1) if first[0] == HANDSHAKE_RECORD => Some(identity.accept(tcp).await),
                Ok(1) if *mode == Mode::Permissive => {
                    self.pass(Connection::plain(tcp, source), Event::Plain).await;
                    None
                }
                Ok(1) => {
                    say_no(tcp).await;
                    self.refuse(
                        source,
                        "plain-text",
                        &"the peer speaks plain text; give it a certificate and an https:// URL",
                    );
                    None
                }
                Ok(_) | Err(_) => None,
            }
        });
        match admitted.await {
            Ok(Some(Ok((tls, shown)))) => {
                let connection = self.watched(identity.clone(), tls, shown, source);
                self.pass(connection, Event::Proven).await;
            }
            Ok(Some(Err(error))) => self.refuse(source, tls::reason(&error), &error),
            Ok(None) => {}
            Err(_) => self.refuse(source, "too-slow", &"the handshake was not done in 5 s"),
        }
    }

    async fn pass(&self, connection: Connection, event: Event) {
        (self.count)(event);
        // Fails when the process stops.
        let _ = self.accepted.send(connection).await;
    }

    fn refuse(&self, source: SocketAddr, reason: &'static str, error: &dyn std::fmt::Display) {
        (self.count)(Event::Refused(reason));
        let mut logged = self.logged.lock();
        match logged.0 {
            Some(at) if at.elapsed() < LOG_EVERY => logged.1 += 1,
            _ => {
                let before = std::mem::take(&mut logged.1);
                logged.0 = Some(Instant::now());
                tracing::warn!(%source, reason, %error, refused_before = before, "a connection was refused");
            }
        }
    }

    /// A connection that ends when its peer's certificate does, or when its root is no longer trusted.
    fn watched(
        &self,
        identity: Arc<Identity>,
        tls: TlsStream<TcpStream>,
        shown: Shown,
        source: SocketAddr,
    ) -> Connection {
        let (ended, gone) = (CancellationToken::new(), CancellationToken::new());
        let connection = Connection {
            io: Socket::Tls(Box::new(tls)),
            caller: Caller {
                source,
                peer: Some(shown.peer.clone()),
            },
            ended: Some(Box::pin(ended.clone().cancelled_owned())),
            _watched: Some(gone.clone().drop_guard()),
        };
        let count = self.count.clone();
        tokio::spawn(async move {
            let lost = gone.run_until_cancelled(until_lost(&identity, &shown)).await;
            if let Some(why) = lost {
                tracing::warn!(id = %shown.peer.id, %source, "a connection ends: {why}; the peer connects again with a new certificate");
                ended.cancel();
                count(Event::Ended);
            }
        });
        connection
    }
}

/// Tells an HTTP/2 client in plain text why it is not let in: empty settings, and a GOAWAY with INADEQUATE_SECURITY (RFC 9113 §6.8
/// and §7).
async fn say_no(mut tcp: TcpStream) {
    const WHY: &[u8] = b"this control plane wants to know who calls: use https:// and a certificate";
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const INADEQUATE_SECURITY: u32 = 0xc;
    let length = u8::try_from(8 + WHY.len()).unwrap_or_default();
    let mut bytes = SETTINGS.to_vec();
    bytes.extend([0, 0, length, 7, 0, 0, 0, 0, 0]);
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend(INADEQUATE_SECURITY.to_be_bytes());
    bytes.extend(WHY);
    // It may be gone already. What it sent is read, so that closing does not reset the connection before it has read this.
    let _ = tcp.write_all(&bytes).await;
    let _ = tcp.shutdown().await;
    let mut rest = [0; 1024];
    while matches!(tcp.read(&mut rest).await, Ok(1..)) {}
}

/// Returns, with the reason, when a peer is no longer believed.
async fn until_lost(identity: &Identity, shown: &Shown) -> &'static str {
    let mut changes = identity.changes();
    let mut expired = pin!(sleep(identity.until(shown)));
    loop {
        tokio::select! {
            () = &mut expired => return "its certificate has expired",
            changed = changes.changed() => {
                if changed.is_err() || !identity.still_trusts(shown) {
                    return "its root is no longer trusted";
                }
            }
        }
    }
}

impl Connection {
    fn plain(tcp: TcpStream, source: SocketAddr) -> Self {
        Self {
            io: Socket::Plain(tcp),
            caller: Caller { source, peer: None },
            ended: None,
            _watched: None,
        }
    }

    /// Whether small packets leave at once.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn nodelay(&self) -> io::Result<bool> {
        match &self.io {
            Socket::Plain(io) => io.nodelay(),
            Socket::Tls(io) => io.get_ref().0.nodelay(),
        }
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let ended = self
            .ended
            .as_mut()
            .is_some_and(|ended| ended.as_mut().poll(cx).is_ready());
        if ended {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            Ok(())
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_ended(cx)?;
        match &mut self.io {
            Socket::Plain(io) => Pin::new(io).poll_read(cx, buffer),
            Socket::Tls(io) => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Socket::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Socket::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Socket::Plain(io) => Pin::new(io).poll_flush(cx),
            Socket::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Socket::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Socket::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
