//! The sockets (UDP and TCP on every address), and the loop that compiles new plans.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
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
    Metrics, Reply, Responder, Transport,
    datagram::Datagrams,
    metrics::{QueryLabels, TransportLabel},
    slots::{Slot, Slots},
    texts,
};

/// Largest question over UDP, in bytes. A longer one is cut, and a cut question is malformed. Real questions have fewer
/// than 300 bytes.
const UDP_QUESTION_BYTES_MAX: usize = 4096;
/// Most tasks per UDP socket. With more, the kernel is the limit.
const UDP_TASKS_MAX: usize = 4;
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

/// A UDP socket and a TCP listener on the same address.
#[derive(Debug)]
pub struct Sockets {
    udp: Datagrams,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds both sockets. With port 0, both get the same free port.
    pub async fn bind(listen: SocketAddr) -> anyhow::Result<Self> {
        let mut last = None;
        for _ in 0..PORT_ATTEMPTS {
            let udp = Datagrams::bind(listen)
                .await
                .with_context(|| texts::cannot_listen(listen, "UDP"))?;
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
    pub async fn serve(self, responder: Arc<Responder>, metrics: Metrics, stop: CancellationToken) {
        let tasks = std::thread::available_parallelism().map_or(1, usize::from);
        let udp = Arc::new(self.udp);
        let mut serving = JoinSet::new();
        for _ in 0..tasks.min(UDP_TASKS_MAX) {
            serving.spawn(serve_udp(udp.clone(), responder.clone(), metrics.clone()));
        }
        serving.spawn(serve_tcp(self.tcp, responder, metrics));
        // No serving task ends by itself. If one panicked, its socket would no longer be read, so the process ends and
        // its supervisor restarts it.
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = serving.join_next() => tracing::error!(?ended, "{}", texts::TASK_ENDED),
        }
    }
}

/// Compiles every newer snapshot, until the sender of snapshots is gone.
pub async fn keep_current(
    responder: Arc<Responder>,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    metrics: Metrics,
) {
    loop {
        let newest = snapshots.borrow_and_update().clone();
        if let Some(snapshot) = newest {
            responder.set(steering::Answers::compile(&snapshot));
            metrics.plan_generation.set(snapshot.plan.generation.cast_signed());
            metrics
                .plan_created
                .set(snapshot.plan.created_at.0.cast_signed() / 1000);
            metrics
                .answers_compiled
                .set(daemon::clock::now().0.cast_signed() / 1000);
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

async fn serve_udp(socket: Arc<Datagrams>, responder: Arc<Responder>, metrics: Metrics) {
    let mut buffer = [0; UDP_QUESTION_BYTES_MAX];
    loop {
        let question = match socket.receive(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "{}", texts::CANNOT_RECEIVE);
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let client = question.client;
        // No datagram can be sent to port 0.
        if client.port() == 0 {
            metrics.dropped.inc();
            continue;
        }
        let Some(reply) = responder.reply(&buffer[..question.length], client.ip(), Transport::Udp) else {
            metrics.dropped.inc();
            continue;
        };
        count(&metrics, &reply, TransportLabel::Udp);
        if let Err(error) = socket.reply(&reply.bytes, &question).await {
            // The client asks again. Nothing else helps against a fault of its network.
            tracing::debug!(%client, %error, "cannot send over UDP");
        }
    }
}

async fn serve_tcp(listener: TcpListener, responder: Arc<Responder>, metrics: Metrics) {
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
        let (responder, metrics) = (responder.clone(), metrics.clone());
        connections.spawn(async move {
            metrics.tcp_connections.inc();
            tokio::select! {
                biased;
                () = slot.evicted() => {}
                result = serve_connection(stream, client, &slot, &responder, &metrics) => {
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
    slot: &Slot,
    responder: &Responder,
    metrics: &Metrics,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    converse(stream, client, slot, responder, metrics).await
}

/// Serves one connection: questions and replies in order, each preceded by its length (RFC 1035 §4.2.2).
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    client: SocketAddr,
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
        let Some(reply) = responder.reply(&question, client.ip(), Transport::Tcp) else {
            // A client whose message deserves no reply has lost the framing.
            metrics.dropped.inc();
            return Ok(());
        };
        count(metrics, &reply, TransportLabel::Tcp);
        let Ok(length) = u16::try_from(reply.bytes.len()) else {
            return Err(io::Error::other("the reply is longer than 65535 bytes"));
        };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(reply.bytes);
        timeout(TCP_MESSAGE, stream.write_all(&framed)).await??;
        slot.replied();
    }
}

fn count(metrics: &Metrics, reply: &Reply, transport: TransportLabel) {
    let labels = QueryLabels {
        qtype: reply.qtype,
        rcode: reply.rcode,
        transport,
    };
    metrics.queries.get_or_create(&labels).inc();
    if reply.truncated {
        metrics.truncated.inc();
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::DuplexStream, time::Instant};
    use topology::{NodeId, fixtures::three_primaries};

    use super::*;

    /// The client's side of a connection. Time is virtual: it passes only while every task waits.
    fn connect() -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let node = NodeId::new("dns-1").unwrap();
            let answers = steering::Answers::compile(&three_primaries());
            let responder = Responder::new(answers, crate::Networks::default(), &node, [0; 32]);
            let client: SocketAddr = "198.51.100.7:5353".parse().unwrap();
            let (slot, _) = Slots::new(1).take(client.ip());
            converse(theirs, client, &slot, &responder, &Metrics::default()).await
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
        let began = Instant::now();
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
        let began = Instant::now();
        while deaf.write_all(QUESTION).await.is_ok() {}
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }
}
