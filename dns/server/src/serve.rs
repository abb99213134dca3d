//! The sockets (UDP and TCP on every address), and the loop that compiles new plans.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Deserialize;
use steering::{Geography, Memory, Steering};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use topology::Snapshot;

use crate::{
    Metrics, Responder, Transport,
    limit::Limiter,
    measure::Measured,
    metrics::{QueryLabels, TransportLabel},
    reply::{AMPLIFICATION, Received},
    slots::{Slot, Slots},
    texts,
    tls::Tls,
    udp,
};

/// Most TCP connections per address; one more evicts the longest idle one. TCP is the exception here, and connections
/// are brief.
const TCP_CONNECTIONS_MAX: usize = 256;
/// Longest silence of a TCP client between questions (RFC 7766 §6.2.3 asks for seconds).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Longest time in which a TCP client must send one question, or receive one reply.
const TCP_MESSAGE: Duration = Duration::from_secs(5);
/// Pause after a socket error, so that a lasting error, such as no free file descriptor, does not become a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Most attempts to find a port that is free for both UDP and TCP.
const PORT_ATTEMPTS: usize = 16;
/// Shortest time between two compilations of one plan. A step of time is never more urgent than this.
const RECOMPILE_PAUSE: Duration = Duration::from_millis(100);

/// The limit on replies over UDP to clients without a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Replies a second for each network of clients, /24 or /56. 0: no limit.
    pub per_s: u32,
    /// Of so many limited replies one is sent, cut, so that an honest client uses TCP. 0: none.
    pub slip: u32,
    /// A reply is at most this many times as long as its question.
    pub amplification: usize,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            // Several large resolvers that share a network ask less than this for one zone whose answers they cache.
            per_s: 2000,
            slip: 2,
            amplification: AMPLIFICATION,
        }
    }
}

/// The UDP sockets and the TCP listener of one address.
#[derive(Debug)]
pub struct Sockets {
    udp: udp::Sockets,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds all sockets. With port 0, all get the same free port.
    pub async fn bind(listen: SocketAddr) -> anyhow::Result<Self> {
        let mut last = None;
        for _ in 0..PORT_ATTEMPTS {
            let udp = udp::Sockets::bind(listen).with_context(|| texts::cannot_listen(listen, "UDP"))?;
            match daemon::listen(udp.address()?) {
                Ok(tcp) => return Ok(Self { udp, tcp }),
                // With a fixed port there is no other port to try.
                Err(error) if listen.port() == 0 => last = Some(error),
                Err(error) => return Err(error).with_context(|| texts::cannot_listen(listen, "TCP")),
            }
        }
        let last = last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
        Err(last).with_context(|| texts::no_common_port(listen.ip()))
    }

    /// The bound address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.address()
    }

    /// Answers questions until `stop`.
    pub async fn serve(self, responder: Arc<Responder>, limit: RateLimit, metrics: Metrics, stop: CancellationToken) {
        let limiter = Arc::new(Limiter::new(limit.per_s, limit.slip, rand::random()));
        let shared = udp::Shared {
            responder: responder.clone(),
            limiter,
            metrics: metrics.clone(),
        };
        let mut threads = match self.udp.serve(shared) {
            Ok(threads) => threads,
            Err(error) => {
                tracing::error!(%error, "{}", texts::CANNOT_START_THREADS);
                return;
            }
        };
        let mut serving = JoinSet::new();
        serving.spawn(serve_tcp(self.tcp, None, responder, metrics));
        // No serving task ends by itself. If one panicked, its socket would no longer be read, so the process ends and
        // its supervisor restarts it.
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = serving.join_next() => tracing::error!(?ended, "{}", texts::TASK_ENDED),
            () = threads.ended() => tracing::error!("{}", texts::THREAD_ENDED),
        }
        serving.shutdown().await;
        threads.stop().await;
    }
}

/// The input of the compilation of answers, and the memory that they leave.
#[derive(Debug)]
pub struct Feeds {
    /// The plans.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The time to each edge.
    pub measurements: watch::Receiver<Measured>,
    /// The places of clients.
    pub places: watch::Receiver<Arc<Geography>>,
    /// The state that has to outlive a restart.
    pub memory: watch::Sender<Memory>,
}

impl Feeds {
    /// Plans alone: nothing is measured, no place is known, and nothing is remembered.
    pub fn of(snapshots: watch::Receiver<Option<Arc<Snapshot>>>, places: Arc<Geography>) -> Self {
        Self {
            snapshots,
            measurements: watch::channel(Measured::new()).1,
            places: watch::channel(places).1,
            memory: watch::channel(Memory::default()).0,
        }
    }
}

/// Compiles every newer snapshot, and the newest one again when time, a measurement or a new place changes its answers, until the
/// sender of snapshots is gone.
pub async fn keep_current(responder: Arc<Responder>, mut steering: Steering, feeds: Feeds, metrics: Metrics) {
    let Feeds {
        mut snapshots,
        mut measurements,
        mut places,
        memory,
    } = feeds;
    loop {
        steering.measured(measurements.borrow_and_update().clone());
        let newest_places = places.borrow_and_update().clone();
        steering.know_places(newest_places);
        let newest = snapshots.borrow_and_update().clone();
        let mut again = None;
        if let Some(snapshot) = newest {
            let now = daemon::clock::now();
            let compiling = Instant::now();
            let answers = compile(&mut steering, &snapshot, now);
            metrics.compile_time.set(compiling.elapsed().as_secs_f64());
            metrics.ttl.set(answers.ttl().high_s.into());
            again = answers.holds_until().map(|until| until.since(now).max(RECOMPILE_PAUSE));
            responder.set(answers);
            let newest = steering.memory();
            memory.send_if_modified(|known| {
                let is_new = *known != newest;
                *known = newest;
                is_new
            });
            metrics.plan_generation.set(snapshot.plan.generation.cast_signed());
            metrics
                .plan_created
                .set(snapshot.plan.created_at.0.cast_signed() / 1000);
            metrics
                .answers_compiled
                .set(daemon::clock::now().0.cast_signed() / 1000);
        }
        let later = async {
            match again {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            // Without measurements and without a database the senders are gone.
            Ok(()) = measurements.changed() => {}
            Ok(()) = places.changed() => {}
            () = later => {}
        }
    }
}

/// Compiles without holding up other tasks: a map of half a million networks takes a while.
fn compile(steering: &mut Steering, snapshot: &Snapshot, now: topology::Moment) -> steering::Answers {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(|| steering.compile(snapshot, now)),
        _ => steering.compile(snapshot, now),
    }
}

/// Answers questions over TLS (RFC 7858) until `stop`.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<Tls>,
    responder: Arc<Responder>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let serving = tokio::spawn(serve_tcp(listener, Some(tls), responder, metrics));
    let aborting = serving.abort_handle();
    tokio::select! {
        () = stop.cancelled() => aborting.abort(),
        ended = serving => tracing::error!(?ended, "{}", texts::TASK_ENDED),
    }
}

async fn serve_tcp(listener: TcpListener, tls: Option<Arc<Tls>>, responder: Arc<Responder>, metrics: Metrics) {
    let slots = Slots::new(TCP_CONNECTIONS_MAX);
    let mut connections = JoinSet::new();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "{}", texts::CANNOT_ACCEPT);
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (slot, has_evicted) = slots.take(client.ip());
        if has_evicted {
            metrics.tcp_evicted.inc();
        }
        let (tls, responder, metrics) = (tls.clone(), responder.clone(), metrics.clone());
        connections.spawn(async move {
            metrics.tcp_connections.inc();
            tokio::select! {
                biased;
                () = slot.evicted() => {}
                result = serve_connection(stream, client, tls.as_deref(), &slot, &responder, &metrics) => {
                    if let Err(error) = result {
                        tracing::debug!(%client, %error, "a TCP connection ended");
                    }
                }
            }
            metrics.tcp_connections.dec();
        });
    }
}

async fn serve_connection(
    stream: TcpStream,
    client: SocketAddr,
    tls: Option<&Tls>,
    slot: &Slot,
    responder: &Responder,
    metrics: &Metrics,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        None => converse(stream, client, TransportLabel::Tcp, slot, responder, metrics).await,
        Some(tls) => {
            let stream = timeout(TCP_MESSAGE, tls.accept(stream)).await??;
            converse(stream, client, TransportLabel::Tls, slot, responder, metrics).await
        }
    }
}

/// Serves one stream: questions and replies in order, each preceded by its length (RFC 1035 §4.2.2).
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    client: SocketAddr,
    transport: TransportLabel,
    slot: &Slot,
    responder: &Responder,
    metrics: &Metrics,
) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        match timeout(TCP_IDLE, stream.read_exact(&mut length)).await? {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        timeout(TCP_MESSAGE, stream.read_exact(&mut question)).await??;
        let taken = Instant::now();
        let received = Received {
            message: &question,
            client: client.ip(),
            transport: Transport::Tcp,
            now: daemon::clock::now(),
        };
        let Some(reply) = responder.reply(&received) else {
            // A client whose message deserves no reply has lost the framing.
            metrics.dropped.inc();
            return Ok(());
        };
        let Ok(length) = u16::try_from(reply.bytes.len()) else {
            return Err(io::Error::other("the reply is longer than 65535 bytes"));
        };
        let (qtype, rcode) = (reply.qtype, reply.rcode);
        if reply.truncated {
            metrics.truncated.inc();
        }
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(reply.bytes);
        // TLS keeps what it wrote until it is flushed.
        timeout(TCP_MESSAGE, async {
            stream.write_all(&framed).await?;
            stream.flush().await
        })
        .await??;
        slot.replied();
        let labels = QueryLabels {
            qtype,
            rcode,
            transport,
        };
        metrics.count(labels, taken.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;
    use topology::{NodeId, fixtures::three_primaries};

    use super::*;

    /// The client's side of a connection. Time is virtual: it passes only while every task waits.
    fn connect() -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let node = NodeId::new("dns-1").unwrap();
            let answers = steering::Answers::compile(&three_primaries(), topology::Moment(0));
            let responder = Responder::new(answers, &node, [0; 16]);
            let client: SocketAddr = "198.51.100.7:5353".parse().unwrap();
            let (slot, _) = Slots::new(1).take(client.ip());
            converse(
                theirs,
                client,
                TransportLabel::Tcp,
                &slot,
                &responder,
                &Metrics::default(),
            )
            .await
        });
        ours
    }

    /// A question for the root zone, which is refused: 17 bytes.
    const QUESTION: &[u8] = b"\0\x11\x12\x67\0\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01";

    async fn ask(stream: &mut DuplexStream) {
        stream.write_all(QUESTION).await.unwrap();
        let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[..2], QUESTION[2..4]);
    }

    /// The time after which the server closes the connection.
    async fn until_closed(stream: &mut DuplexStream) -> Duration {
        let began = tokio::time::Instant::now();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed_after_ten_seconds_and_an_active_one_is_not() {
        let mut silent = connect();
        assert_eq!(until_closed(&mut silent).await, Duration::from_secs(10));

        let mut active = connect();
        for _ in 0..10 {
            ask(&mut active).await;
            sleep(Duration::from_secs(9)).await;
        }
        ask(&mut active).await;
        assert_eq!(until_closed(&mut active).await, Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_question_is_waited_for_five_seconds() {
        let mut slow = connect();
        slow.write_all(&QUESTION[..10]).await.unwrap();
        assert_eq!(until_closed(&mut slow).await, Duration::from_secs(5));
    }

    /// It would hold its slot, and the replies, for as long as it likes.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_no_replies_is_left_after_five_seconds() {
        let mut deaf = connect();
        let began = tokio::time::Instant::now();
        while deaf.write_all(QUESTION).await.is_ok() {}
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }
}
