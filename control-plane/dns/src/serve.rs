//! The sockets: UDP and TCP on every address, and the loop that keeps the answers new.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use topology::Snapshot;

use crate::{
    Metrics, Reply, Responder, Transport,
    metrics::{QueryLabels, TransportLabel},
};

/// Largest question taken over UDP; longer ones are cut, and a cut question is malformed. Real ones have under 300 bytes.
const UDP_QUESTION_BYTES_MAX: usize = 4096;
/// Tasks that share a UDP socket, at most: past that the kernel is the limit.
const UDP_TASKS_MAX: usize = 4;
/// TCP connections per address; more wait in the kernel's backlog. TCP is the exception here, and connections are brief.
const TCP_CONNECTIONS_MAX: usize = 256;
/// How long a TCP client may stay silent between questions (RFC 7766 §6.2.3 asks for seconds).
const TCP_IDLE: Duration = Duration::from_secs(10);
/// How long a TCP client may take to send one question, or to take one reply.
const TCP_MESSAGE: Duration = Duration::from_secs(5);
/// Wait after a socket error, so that a lasting one, such as no free file descriptor, does not become a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Attempts to find a port that is free for UDP and TCP alike.
const PORT_ATTEMPTS: usize = 16;

/// A UDP socket and a TCP listener on the same address.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds both; with port 0, to the same free port.
    pub async fn bind(listen: SocketAddr) -> anyhow::Result<Self> {
        let mut last = None;
        for _ in 0..PORT_ATTEMPTS {
            let udp = UdpSocket::bind(listen)
                .await
                .with_context(|| format!("cannot listen on {listen} (UDP)"))?;
            match daemon::listen(udp.local_addr()?) {
                Ok(tcp) => return Ok(Self { udp, tcp }),
                // With a fixed port there is nothing else to try.
                Err(error) if listen.port() == 0 => last = Some(error),
                Err(error) => return Err(error).with_context(|| format!("cannot listen on {listen} (TCP)")),
            }
        }
        let last = last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
        Err(last).with_context(|| format!("found no port on {} that is free for UDP and TCP", listen.ip()))
    }

    /// Where they listen.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Answers until `stop`.
    pub async fn serve(self, responder: Arc<Responder>, metrics: Metrics, stop: CancellationToken) {
        let tasks = std::thread::available_parallelism().map_or(1, usize::from);
        let udp = Arc::new(self.udp);
        let mut serving = JoinSet::new();
        for _ in 0..tasks.min(UDP_TASKS_MAX) {
            serving.spawn(serve_udp(udp.clone(), responder.clone(), metrics.clone()));
        }
        serving.spawn(serve_tcp(self.tcp, responder, metrics));
        // None of them ends by itself. One that panicked would leave its socket deaf, so the process ends instead and its
        // supervisor starts it anew.
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = serving.join_next() => tracing::error!(?ended, "a serving task ended"),
        }
    }
}

/// Compiles every newer snapshot until no more can come.
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

async fn serve_udp(socket: Arc<UdpSocket>, responder: Arc<Responder>, metrics: Metrics) {
    let mut question = [0; UDP_QUESTION_BYTES_MAX];
    loop {
        let (length, client) = match socket.recv_from(&mut question).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "cannot receive over UDP");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        // Port 0 cannot be sent to.
        if client.port() == 0 {
            metrics.dropped.inc();
            continue;
        }
        let Some(reply) = responder.reply(&question[..length], client.ip(), Transport::Udp) else {
            metrics.dropped.inc();
            continue;
        };
        count(&metrics, &reply, TransportLabel::udp);
        if let Err(error) = socket.send_to(&reply.bytes, client).await {
            // The client asks again; nothing else can be done about its network.
            tracing::debug!(%client, %error, "cannot send over UDP");
        }
    }
}

async fn serve_tcp(listener: TcpListener, responder: Arc<Responder>, metrics: Metrics) {
    let room = Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept over TCP");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (responder, metrics) = (responder.clone(), metrics.clone());
        connections.spawn(async move {
            metrics.tcp_connections.inc();
            if let Err(error) = converse(stream, client, &responder, &metrics).await {
                tracing::debug!(%client, %error, "a TCP connection ended");
            }
            metrics.tcp_connections.dec();
            drop(place);
        });
    }
}

/// Questions and replies over one connection, in order, each with its length before it (RFC 1035 §4.2.2).
async fn converse(
    mut stream: TcpStream,
    client: SocketAddr,
    responder: &Responder,
    metrics: &Metrics,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
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
            // Who sends what deserves no reply has lost the thread.
            metrics.dropped.inc();
            return Ok(());
        };
        count(metrics, &reply, TransportLabel::tcp);
        let Ok(length) = u16::try_from(reply.bytes.len()) else {
            return Err(io::Error::other("the reply is longer than a message can be"));
        };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(reply.bytes);
        timeout(TCP_MESSAGE, stream.write_all(&framed)).await??;
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
