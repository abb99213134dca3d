//! The devices: they open sessions, talk at a steady pace or are silent, and notice when a session closes. They run in processes of
//! their own, `bench-edge clients`, because a process may have 20,000 open files here.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpSocket,
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use crate::{
    tls,
    wire::{self, CLOSE, Frames, PAYLOAD_BYTES},
};

/// The first port of devices with an address of their own. It lies below the ports that the kernel chooses from: a bound one of those,
/// at any address, would be missing for the proxies, which leave the choice of theirs to the kernel.
const FIRST_PORT: u16 = 12_000;

/// A connection, plain or TLS.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An order to the process that plays the devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Open sessions.
    Open {
        to: SocketAddr,
        /// The devices' address: one of their own has 20,000 ports, one for each session.
        from: IpAddr,
        sessions: usize,
        /// Sessions that open at the same time.
        at_once: usize,
        /// The file of the certificate that the devices trust; none for plain TCP.
        trusting: Option<PathBuf>,
    },
    /// Send this many frames in every session, one each `every_ms`.
    Talk {
        frames: u64,
        /// Time between two of them.
        every_ms: u64,
    },
    /// Report the counts.
    Look,
    /// Close all sessions.
    Close,
}

/// The counts of the devices of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Sessions that are open.
    pub(crate) open: u64,
    /// Sessions that could not be opened.
    pub(crate) failed: u64,
    /// Sessions that the other side closed.
    pub(crate) closed: u64,
    /// Sent frames.
    pub(crate) sent: u64,
    /// Received frames.
    pub(crate) received: u64,
    /// The number of failed or closed sessions, by reason.
    pub(crate) why: BTreeMap<String, u64>,
}

/// A session that does not open in this time has failed. A lost SYN is sent again after 1, 3 and 7 seconds.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for the last frames to come back.
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Shared {
    open: AtomicU64,
    failed: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    why: Mutex<BTreeMap<String, u64>>,
}

impl Shared {
    fn note(&self, counter: &AtomicU64, why: String) {
        counter.fetch_add(1, Relaxed);
        let mut reasons = self.why.lock();
        *reasons.entry(why).or_default() += 1;
    }

    fn counts(&self) -> Counts {
        Counts {
            open: self.open.load(Relaxed),
            failed: self.failed.load(Relaxed),
            closed: self.closed.load(Relaxed),
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            why: self.why.lock().clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    frames: u64,
    every: Duration,
}

/// The devices of this process.
pub(crate) struct Devices {
    shared: Arc<Shared>,
    pace: watch::Sender<Pace>,
    sessions: JoinSet<()>,
    expected: u64,
}

impl Devices {
    pub(crate) fn new() -> Self {
        Self {
            shared: Arc::default(),
            pace: watch::Sender::new(Pace::default()),
            sessions: JoinSet::new(),
            expected: 0,
        }
    }

    /// Carries an order out, and returns the counts after it.
    pub(crate) async fn obey(&mut self, order: Order) -> Counts {
        match order {
            Order::Open {
                to,
                from,
                sessions,
                at_once,
                trusting,
            } => self.open(to, from, sessions, at_once, trusting.as_deref()).await,
            Order::Talk { frames, every_ms } => self.talk(frames, Duration::from_millis(every_ms)).await,
            Order::Look => {}
            Order::Close => {
                self.sessions.shutdown().await;
                *self = Self::new();
            }
        }
        self.shared.counts()
    }

    async fn open(&mut self, to: SocketAddr, from: IpAddr, sessions: usize, at_once: usize, trusting: Option<&Path>) {
        let tls = match trusting.map(tls::connector).transpose() {
            Ok(tls) => tls,
            Err(error) => return self.shared.note(&self.shared.failed, error.to_string()),
        };
        let places = Arc::new(tokio::sync::Semaphore::new(at_once));
        for number in 0..sessions {
            let (shared, pace, tls) = (self.shared.clone(), self.pace.subscribe(), tls.clone());
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let port = u16::try_from(number).map_or(u16::MAX, |number| number.saturating_add(FIRST_PORT));
            self.sessions.spawn(async move {
                let opened = timeout(OPEN_TIMEOUT, connect(to, (from, port).into(), tls)).await;
                drop(place);
                match opened {
                    Ok(Ok((io, frames))) => {
                        shared.open.fetch_add(1, Relaxed);
                        let why = converse(io, frames, number as f64 / sessions as f64, pace, &shared).await;
                        shared.open.fetch_sub(1, Relaxed);
                        shared.note(&shared.closed, why);
                    }
                    Ok(Err(error)) => shared.note(&shared.failed, error.to_string()),
                    Err(_) => shared.note(&shared.failed, "no answer".to_owned()),
                }
            });
        }
        // Every permit is free again, so every session is open or has failed.
        let _ = places.acquire_many(u32::try_from(at_once).unwrap_or(u32::MAX)).await;
    }

    async fn talk(&mut self, frames: u64, every: Duration) {
        self.expected += self.shared.open.load(Relaxed) * frames;
        self.pace.send_replace(Pace { frames, every });
        let deadline = Instant::now() + every * u32::try_from(frames).unwrap_or(u32::MAX) + ECHO_TIMEOUT;
        while self.shared.received.load(Relaxed) < self.expected && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

type Tls = (TlsConnector, ServerName<'static>);

async fn connect(to: SocketAddr, from: SocketAddr, tls: Option<Tls>) -> std::io::Result<(Box<dyn Io>, Frames)> {
    let socket = TcpSocket::new_v4()?;
    if from.ip() != IpAddr::from(Ipv4Addr::LOCALHOST) {
        // The kernel may still remember connections of an earlier run.
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
    }
    let tcp = socket.connect(to).await?;
    tcp.set_nodelay(true)?;
    let mut io: Box<dyn Io> = match tls {
        Some((connector, name)) => Box::new(connector.connect(name, tcp).await?),
        None => Box::new(tcp),
    };
    io.write_all(wire::upgrade("voice.example").as_bytes()).await?;
    let mut bytes = Vec::with_capacity(1024);
    let end = loop {
        if io.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = wire::head_end(&bytes) {
            break end;
        }
    };
    if !bytes.starts_with(b"HTTP/1.1 101 ") {
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        return Err(std::io::Error::other(String::from_utf8_lossy(line).into_owned()));
    }
    let mut frames = Frames::default();
    frames.take(&bytes[end..], |_| {});
    Ok((io, frames))
}

/// Runs one session until the other side closes it, and returns the reason. `place` in 0..1 is the time of its frames between those of
/// the first session: devices do not speak in step.
async fn converse(
    mut io: Box<dyn Io>,
    mut frames: Frames,
    place: f64,
    mut pace: watch::Receiver<Pace>,
    shared: &Shared,
) -> String {
    let frame = wire::masked(&[0x33; PAYLOAD_BYTES]);
    let mut left = 0;
    let mut ticks = interval_at(Instant::now(), Duration::from_secs(3600));
    let mut buffer = [0; 2048];
    loop {
        tokio::select! {
            read = io.read(&mut buffer) => match read {
                Ok(0) => return "the connection ended".to_owned(),
                Err(error) => return error.to_string(),
                Ok(read) => {
                    let (mut heard, mut closed) = (0, false);
                    frames.take(&buffer[..read], |opcode| {
                        heard += u64::from(opcode < CLOSE);
                        closed |= opcode == CLOSE;
                    });
                    shared.received.fetch_add(heard, Relaxed);
                    if closed {
                        return "a Close frame".to_owned();
                    }
                }
            },
            changed = pace.changed() => {
                if changed.is_err() {
                    return "hung up".to_owned();
                }
                let Pace { frames, every } = *pace.borrow_and_update();
                left = frames;
                ticks = interval_at(Instant::now() + every.mul_f64(place), every);
                // Keeps the ordered pace even when the machine is late.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            }
            _ = ticks.tick(), if left > 0 => {
                left -= 1;
                let sent = async {
                    io.write_all(&frame).await?;
                    io.flush().await
                };
                if let Err(error) = sent.await {
                    return error.to_string();
                }
                shared.sent.fetch_add(1, Relaxed);
            }
        }
    }
}
