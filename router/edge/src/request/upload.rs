//! The deadline of a body that pingora passes on as it comes: of a call (gRPC), or of an upload to an operator's server.
//!
//! pingora starts its read timeout with the head of a request and cannot be told that the body is still coming: an upload that
//! takes longer than `timeouts.answer` would fail although device and server keep pace. Such a request therefore has a
//! connection of its own to its server, without that timeout. The connection fails when the deadline of the request has passed,
//! and the deadline moves with the body: first the device must send, then the server must take it and answer. Only this
//! connection sees when the server takes nothing, and that time is not the device's.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use identity::{Identity, Link, Speaks};
use parking_lot::{Mutex, MutexGuard};
use pingora_core::{
    Error, ErrorType, Result,
    connectors::L4Connect,
    protocols::l4::{
        self,
        stream::Stream,
        virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream},
    },
    upstreams::peer::HttpPeer,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout},
};
use topology::RegionId;

use crate::deadline::Deadline;

/// The side that must act next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The device has to send its body.
    Device,
    /// The server has to take the body, or to answer.
    Server,
}

/// The deadline of one attempt at a request.
#[derive(Debug)]
pub struct BodyClock {
    /// Longest time for the server to take a part of the body, or to answer after its end.
    answer: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    awaited: Awaited,
    since: Instant,
    within: Duration,
    /// Bytes of the body that pingora got to pass on, and bytes that the socket took. Framing makes the second number larger, unless
    /// the server does not read: then the device is not late.
    given: u64,
    taken: u64,
    expired: Option<Awaited>,
    is_over: bool,
}

impl BodyClock {
    /// A clock by which the device has `device` for its next bytes.
    pub fn new(device: Duration, answer: Duration) -> Self {
        let state = State {
            awaited: Awaited::Device,
            since: Instant::now(),
            within: device,
            given: 0,
            taken: 0,
            expired: None,
            is_over: false,
        };
        Self {
            answer,
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The time for which the edge has waited for the device. It does not count while the server has bytes to take.
    pub fn waited_for_device(&self) -> Duration {
        let state = self.lock();
        match state.taken < state.given {
            true => Duration::ZERO,
            false => state.since.elapsed(),
        }
    }

    /// A part of the body goes to the server, and the device has this long for the next one.
    pub fn given(&self, bytes: usize, device: Duration) {
        let mut state = self.lock();
        state.given += bytes as u64;
        state.await_from_now(Awaited::Device, device);
    }

    /// The end of the body goes to the server, or a part of the answer came after it: the server must say more.
    pub fn await_server(&self) {
        self.lock().await_from_now(Awaited::Server, self.answer);
    }

    /// The server began to answer. Before the end of the body the device still has to send.
    pub fn answering(&self) {
        let mut state = self.lock();
        if state.awaited == Awaited::Server {
            state.await_from_now(Awaited::Server, self.answer);
        }
    }

    /// The answer is complete. The connection closes: pingora would keep it for a peer that never comes.
    pub fn finish(&self) {
        self.lock().is_over = true;
    }

    /// The side whose deadline passed, if one did.
    pub fn expired(&self) -> Option<Awaited> {
        self.lock().expired
    }

    /// The socket of the server took bytes. The device's time begins when it has taken all given bytes.
    fn taken(&self, bytes: usize) {
        let mut state = self.lock();
        let was_behind = state.taken < state.given;
        state.taken += bytes as u64;
        if was_behind && state.taken >= state.given && state.awaited == Awaited::Device {
            state.since = Instant::now();
        }
    }

    /// The deadline in force. The server's time begins when the edge reads from it: before, the edge may have waited for the device
    /// to take the bytes of the server.
    fn due(&self, reads_since: Instant) -> (Awaited, Instant) {
        let state = self.lock();
        match state.awaited {
            Awaited::Device if state.taken < state.given => (Awaited::Server, state.since + self.answer),
            Awaited::Device => (Awaited::Device, state.since + state.within),
            Awaited::Server => (Awaited::Server, state.since.max(reads_since) + state.within),
        }
    }
}

impl State {
    fn await_from_now(&mut self, awaited: Awaited, within: Duration) {
        (self.awaited, self.since, self.within) = (awaited, Instant::now(), within);
    }
}

/// Marks the keys of connections to stacks that proved their region; see [`watch`].
pub const OF_REGIONS: u64 = 1 << 63;

/// Gives a request a connection of its own that keeps the deadline of this clock.
pub fn watch(peer: &mut HttpPeer, clock: &Arc<BodyClock>, proof: Option<Proof>) {
    /// Two requests with the same key would share a connection, and one could end the other. Other peers have 0, or
    /// [`OF_REGIONS`] and more.
    static KEYS: AtomicU64 = AtomicU64::new(1);
    peer.group_key = KEYS.fetch_add(1, Ordering::Relaxed);
    let options = &mut peer.options;
    options.read_timeout = None;
    options.max_h2_streams = 1;
    // No other request can use it.
    options.idle_timeout = Some(Duration::from_secs(1));
    options.custom_l4 = Some(Arc::new(Connector {
        limit: options.connection_timeout.unwrap_or(clock.answer),
        clock: Some(clock.clone()),
        proof,
    }));
}

/// The proof of both ends of a connection to a stack. Only gRPC comes here.
#[derive(Debug, Clone)]
pub struct Proof {
    pub(crate) identity: Arc<Identity>,
    pub(crate) region: RegionId,
}

/// Opens connections for pingora, which knows nothing of deadlines that move or of identities.
#[derive(Debug)]
pub struct Connector {
    limit: Duration,
    clock: Option<Arc<BodyClock>>,
    proof: Option<Proof>,
}

impl Connector {
    /// Opens connections whose ends prove who they are.
    pub fn proving(limit: Duration, proof: Proof) -> Self {
        Self {
            limit,
            clock: None,
            proof: Some(proof),
        }
    }

    async fn open(&self, address: SocketAddr) -> io::Result<Link> {
        match &self.proof {
            Some(Proof { identity, region }) => identity::dial(Some(identity), region, address, Speaks::Http2).await,
            None => {
                let tcp = TcpStream::connect(address).await?;
                let _ = tcp.set_nodelay(true);
                Ok(Link::plain(tcp))
            }
        }
    }
}

#[async_trait]
impl L4Connect for Connector {
    async fn connect(&self, address: &l4::socket::SocketAddr) -> Result<Stream> {
        let address = address
            .as_inet()
            .ok_or_else(|| Error::explain(ErrorType::ConnectError, "servers have IP addresses"))?;
        let link = match timeout(self.limit, self.open(*address)).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return Err(Error::because(ErrorType::ConnectError, "connecting", error)),
            Err(_) => return Err(Error::explain(ErrorType::ConnectTimedout, "connecting")),
        };
        let watched = Watched {
            link,
            clock: self.clock.clone(),
            timer: Deadline::default(),
            reads_since: None,
        };
        Ok(VirtualSocketStream::new(Box::new(watched)).into())
    }
}

/// The connection of one request, or, without a clock, of many.
#[derive(Debug)]
struct Watched {
    link: Link,
    clock: Option<Arc<BodyClock>>,
    timer: Deadline,
    /// The start of the read that no byte has answered yet.
    reads_since: Option<Instant>,
}

impl VirtualSocket for Watched {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        // Small packets leave at once already, and the deadline, or pings, end a dead connection sooner than keep-alive probes would.
        Ok(())
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(read) = Pin::new(&mut this.link).poll_read(cx, buf) {
            this.reads_since = None;
            return Poll::Ready(read);
        }
        let Some(clock) = &this.clock else { return Poll::Pending };
        if clock.lock().is_over {
            return Poll::Ready(Ok(()));
        }
        let reads_since = *this.reads_since.get_or_insert_with(Instant::now);
        let (awaited, due_at) = clock.due(reads_since);
        ready!(this.timer.poll(due_at, cx));
        clock.lock().expired = Some(awaited);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.link).poll_write(cx, bytes))?;
        if let Some(clock) = &this.clock {
            clock.taken(written);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().link).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().link).poll_shutdown(cx)
    }
}
