//! One UDP socket and one thread for each core. The kernel spreads questions over sockets of the same port
//! (SO_REUSEPORT), so threads share nothing but the answers, which they take once for each batch.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
use tokio::sync::mpsc;

use crate::{
    Metrics, Responder, Transport,
    batch::{BATCH, Batch},
    fast,
    limit::{Limiter, Verdict},
    metrics::Tally,
    reply::{InForce, Received, UDP_BYTES_MAX, seconds},
    texts,
};

/// Most threads of one address. More cores than this are better used by several name servers.
const THREADS_MAX: usize = 64;
/// Time in which a thread notices that it should stop.
const STOPS_WITHIN: Duration = Duration::from_millis(200);
/// Room for questions that wait, in bytes for each socket. The kernel's default holds a few hundred; a busy thread leaves
/// more behind while a batch takes long.
const WAITING_BYTES: usize = 1 << 20;
/// Pause after a socket error, so that a lasting error does not become a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// The parts that all threads use.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) responder: Arc<Responder>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) metrics: Metrics,
}

/// UDP sockets of one address.
#[derive(Debug)]
pub(crate) struct Sockets(Vec<UdpSocket>);

impl Sockets {
    /// Binds one socket for each core. With port 0, all get the same free port.
    pub(crate) fn bind(listen: SocketAddr) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let first = bind_one(listen)?;
        let address = first.local_addr()?;
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(bind_one(address)?);
        }
        Ok(Self(sockets))
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.0.first().ok_or(io::ErrorKind::NotConnected)?.local_addr()
    }

    /// Starts the threads.
    pub(crate) fn serve(self, shared: Shared) -> io::Result<Threads> {
        let shared = Arc::new(shared);
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, ends) = mpsc::unbounded_channel();
        for (number, socket) in self.0.into_iter().enumerate() {
            let (shared, stop, ended) = (shared.clone(), stop.clone(), Ended(ended.clone()));
            thread::Builder::new()
                .name(format!("dns-udp-{number}"))
                .spawn(move || {
                    let _ended = ended;
                    serve(&socket, &shared, &stop);
                })?;
        }
        Ok(Threads { stop, ends })
    }
}

/// The threads of one address. They stop when this is dropped.
#[derive(Debug)]
pub(crate) struct Threads {
    stop: Arc<AtomicBool>,
    ends: mpsc::UnboundedReceiver<()>,
}

impl Threads {
    /// Returns when a thread ended, which none does by itself.
    pub(crate) async fn ended(&mut self) {
        self.ends.recv().await;
    }

    /// Stops the threads and returns when all have ended.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Relaxed);
        // Each thread holds one sender, and the channel closes with the last one.
        while self.ends.recv().await.is_some() {}
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// Says that a thread ended, also when it panicked.
struct Ended(mpsc::UnboundedSender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        // Nobody listens any more when the process stops.
        let _ = self.0.send(());
    }
}

fn bind_one(listen: SocketAddr) -> io::Result<UdpSocket> {
    let family = if listen.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd: OwnedFd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?,
        // An IPv6 socket also receives IPv4, and reports IPv4 addresses in their mapped form.
        IpAddr::V6(ip) if ip.is_unspecified() => setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?,
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    if let Err(error) = setsockopt(&fd, sockopt::RcvBuf, &WAITING_BYTES) {
        tracing::debug!(%error, "the socket keeps its small buffer");
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(listen))?;
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(STOPS_WITHIN))?;
    Ok(socket)
}

fn serve(socket: &UdpSocket, shared: &Shared, stop: &AtomicBool) {
    let mut batch = Batch::new();
    let mut tally = Tally::default();
    let began = Instant::now();
    while !stop.load(Relaxed) {
        let count = match batch.receive(socket) {
            Ok(count) => count,
            Err(error) if is_quiet(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "{}", texts::CANNOT_RECEIVE);
                thread::sleep(ERROR_PAUSE);
                continue;
            }
        };
        // One look at the clock and one at the answers for all of them.
        let now = daemon::clock::now();
        let taken = Instant::now();
        let now_us = taken.duration_since(began).as_micros() as u64;
        let in_force = shared.responder.load();
        let mut lengths = [0; BATCH];
        for (at, length) in lengths.iter_mut().enumerate().take(count) {
            let slot = batch.slot(at);
            // No datagram can be sent to port 0.
            let Some(client) = slot.client.filter(|client| client.port() > 0) else {
                tally.dropped += 1;
                continue;
            };
            let received = Received {
                message: slot.question,
                client: client.ip(),
                transport: Transport::Udp,
                now,
            };
            *length = answer(shared, &in_force, &received, now_us, slot.reply, &mut tally).unwrap_or(0);
        }
        drop(in_force);
        tally.unsent += batch.send(socket, &lengths[..count]) as u64;
        let replies = lengths.iter().filter(|length| **length > 0).count() as u64;
        shared.metrics.seen.took(taken.elapsed(), replies);
        tally.flush(&shared.metrics);
    }
}

/// Writes the reply to one datagram. `None` if there is none.
fn answer(
    shared: &Shared,
    in_force: &InForce,
    received: &Received<'_>,
    now_us: u64,
    out: &mut [u8; UDP_BYTES_MAX as usize],
    tally: &mut Tally,
) -> Option<usize> {
    let responder = &shared.responder;
    let limit = |is_trusted: bool| match is_trusted {
        true => Verdict::Send,
        false => shared.limiter.count(received.client, now_us),
    };
    let written = fast::reply(
        in_force,
        responder.terms(),
        received.message,
        received.client,
        seconds(received.now),
        out,
    );
    if let Ok(fast) = written {
        tally.count(fast.qtype, fast.rcode);
        return match limit(fast.is_trusted) {
            Verdict::Send => Some(fast.length),
            Verdict::Cut => {
                tally.limited += 1;
                Some(fast.cut(out))
            }
            Verdict::Drop => {
                tally.limited += 1;
                None
            }
        };
    }
    let Some(mut reply) = responder.reply(received) else {
        tally.dropped += 1;
        return None;
    };
    tally.unusual += 1;
    match limit(reply.is_trusted) {
        Verdict::Send => {}
        Verdict::Cut => {
            tally.limited += 1;
            reply = responder.cut_reply(received)?;
        }
        Verdict::Drop => {
            tally.limited += 1;
            return None;
        }
    }
    tally.count(reply.qtype, reply.rcode);
    tally.truncated += u64::from(reply.truncated);
    out.get_mut(..reply.bytes.len())?.copy_from_slice(&reply.bytes);
    Some(reply.bytes.len())
}

/// True if nothing came until the timeout.
fn is_quiet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
