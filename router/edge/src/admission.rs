//! Who is let in: [`routing::admit`] with this edge's counts, and the answers for those who are not.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use routing::admit::{Arrival, ClientLimits, ClientPlace, Clients, Excess, Places, Pressure};
use tokio::{sync::watch, time::Instant};

use crate::{Edge, answer::Answer, config::Config};

/// How often memory is looked at. It can not run out in between: a connection costs kilobytes, and what sessions keep has a
/// limit of its own.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// While memory is short, some of the quiet sessions are told to leave this often.
const SHED_EVERY: Duration = Duration::from_secs(1);

/// After the edge ran out of descriptors, ports or time, new devices are turned away for so long: enough for some of what is
/// in use to come back, and short enough to be over before a device has tried another edge.
const EXHAUSTED_FOR: Duration = Duration::from_secs(1);

/// What decides who is let in.
#[derive(Debug)]
pub struct Admission {
    sessions: Gate,
    handshakes: Gate,
    clients: Mutex<Clients>,
    pressure: watch::Sender<Pressure>,
    began: Instant,
    /// Until then the edge is short of something other than memory, in milliseconds since it began; 0 for never.
    exhausted_until_ms: AtomicU64,
}

/// Places of one kind, and how many are taken.
#[derive(Debug)]
struct Gate {
    places: Places,
    taken: AtomicUsize,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No place for a session.
    Sessions,
    /// Too many sessions are being opened at this moment.
    Handshakes,
    /// The client has as many connections as it may.
    ClientConnections,
    /// The client asks too often.
    ClientRate(Duration),
    /// The client has as many requests in flight as it may.
    ClientInFlight,
    /// As many long bodies of the client as may be are being passed on.
    ClientUploads,
    /// Memory is short.
    Memory,
    /// Descriptors, ports or time are.
    Exhausted,
}

/// A connection is let in while this exists.
#[derive(Debug)]
pub struct Connected {
    admission: Arc<Admission>,
    client: IpAddr,
}

/// A session has its place while this exists.
#[derive(Debug)]
pub struct SessionPlace(Arc<Admission>);

/// A session is being opened while this exists.
#[derive(Debug)]
pub struct Handshake(Arc<Admission>);

impl Admission {
    /// Nobody was let in yet.
    pub fn new(config: &Config) -> Self {
        let limits = &config.limits;
        let reserve = f64::from(limits.returning_percent) / 100.0;
        let gate = |max| Gate {
            places: Places::new(max, reserve),
            taken: AtomicUsize::new(0),
        };
        Self {
            sessions: gate(limits.sessions_max),
            handshakes: gate(limits.handshakes_max),
            clients: Mutex::new(Clients::new(ClientLimits {
                connections_max: limits.client_connections_max,
                requests_per_s: f64::from(limits.client_requests_per_s),
                burst: limits.client_burst,
                in_flight_max: config.client_in_flight_max(),
                uploads_max: limits.client_uploads_max,
            })),
            pressure: watch::Sender::new(Pressure::None),
            began: Instant::now(),
            exhausted_until_ms: AtomicU64::new(0),
        }
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection begins.
    pub fn connect(self: &Arc<Self>, client: IpAddr) -> Result<Connected, Refusal> {
        self.clients().connect(client)?;
        Ok(Connected {
            admission: self.clone(),
            client,
        })
    }

    /// A request begins, and is in flight until what is returned is dropped.
    pub fn request(&self, client: IpAddr) -> Result<ClientPlace, Refusal> {
        // Who returns cannot be told from who does not, and a request is short.
        self.calm_enough(Arrival::Returning)?;
        Ok(self.clients().begin(client, daemon::clock::now())?)
    }

    /// A body that is too long to be held is passed on as it comes, until what is returned is dropped.
    pub fn upload(&self, client: IpAddr) -> Result<ClientPlace, Refusal> {
        Ok(self.clients().upload(client)?)
    }

    /// What a client is told whose request is refused anyway, and the reason in metrics: a refusal costs as much of its rate as
    /// a request that is served, and who asks too often learns that instead.
    pub fn refuse(&self, client: IpAddr, refused: (&'static str, Answer)) -> (&'static str, Answer) {
        match self.request(client) {
            Ok(_) => refused,
            Err(refusal) => (refusal.as_str(), refusal.answer()),
        }
    }

    /// A session begins, as soon as a region takes it: the place it then has, and the one it has until then.
    ///
    /// The rate of a client does not count for those that return. When an edge or a network comes back, everybody behind
    /// the same address does so at once.
    pub fn session(self: &Arc<Self>, client: IpAddr, arrival: Arrival) -> Result<(SessionPlace, Handshake), Refusal> {
        self.calm_enough(arrival)?;
        if arrival == Arrival::Newcomer {
            self.clients().ask(client, daemon::clock::now())?;
        }
        if !self.handshakes.enter(arrival) {
            return Err(Refusal::Handshakes);
        }
        let handshake = Handshake(self.clone());
        if !self.sessions.enter(arrival) {
            return Err(Refusal::Sessions);
        }
        Ok((SessionPlace(self.clone()), handshake))
    }

    /// This edge ran out of something: for a moment nobody new is let in. Whether that was not so already.
    pub fn exhausted(&self) -> bool {
        let now_ms = self.now_ms();
        let until_ms = now_ms + EXHAUSTED_FOR.as_millis() as u64;
        self.exhausted_until_ms.fetch_max(until_ms, Ordering::Relaxed) <= now_ms
    }

    /// Whether that is so now.
    pub fn is_exhausted(&self) -> bool {
        let until_ms = self.exhausted_until_ms.load(Ordering::Relaxed);
        until_ms > 0 && self.now_ms() < until_ms
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn calm_enough(&self, arrival: Arrival) -> Result<(), Refusal> {
        if self.is_exhausted() {
            return Err(Refusal::Exhausted);
        }
        if self.pressure.borrow().admits(arrival) {
            Ok(())
        } else {
            Err(Refusal::Memory)
        }
    }
}

impl Gate {
    fn enter(&self, arrival: Arrival) -> bool {
        let one_more = |taken| self.places.admits(taken, arrival).then_some(taken + 1);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_ok()
    }

    fn leave(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.admission.clients().disconnect(self.client, daemon::clock::now());
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        self.0.sessions.leave();
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.leave();
    }
}

impl From<Excess> for Refusal {
    fn from(excess: Excess) -> Self {
        match excess {
            Excess::Connections => Self::ClientConnections,
            Excess::Rate(wait) => Self::ClientRate(wait),
            Excess::InFlight => Self::ClientInFlight,
            Excess::Uploads => Self::ClientUploads,
        }
    }
}

impl Refusal {
    /// The reason's name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions-full",
            Self::Handshakes => "handshakes-full",
            Self::ClientConnections => "client-connections",
            Self::ClientRate(_) => "client-rate",
            Self::ClientInFlight => "client-in-flight",
            Self::ClientUploads => "client-uploads",
            Self::Memory => "memory",
            Self::Exhausted => "exhausted",
        }
    }

    /// What the device is told: another edge may have room, but a client that takes too much takes it anywhere.
    pub fn answer(self) -> Answer {
        match self {
            Self::Sessions => Answer::unavailable("edge_full", "this edge has no place for a session; try again", 2),
            Self::Handshakes => Answer::unavailable(
                "edge_busy",
                "too many devices are connecting to this edge at this moment; try again",
                2,
            ),
            Self::Exhausted => Answer::edge_full(),
            Self::Memory => Answer::unavailable("edge_overloaded", "this edge is overloaded; try again", 5),
            Self::ClientConnections => Answer::too_many(
                "too_many_connections",
                "too many connections from this address; close some",
                5,
            ),
            Self::ClientInFlight => Answer::too_many(
                "too_many_requests",
                "too many requests from this address are not yet answered; wait for some of them",
                1,
            ),
            Self::ClientUploads => Answer::too_many(
                "too_many_uploads",
                "too many long request bodies from this address are on their way; wait for one of them, or send shorter ones",
                1,
            ),
            Self::ClientRate(wait) => Answer::too_many(
                "rate_limited",
                "too many requests from this address; slow down",
                wait.as_secs() + 1,
            ),
        }
    }
}

/// Watches the memory of this process; ends never. Without a limit there is nothing to watch.
pub async fn watch_memory(edge: &Edge) {
    let max = edge.config.limits.memory_max;
    if max == 0 {
        return std::future::pending().await;
    }
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut shed_at = tokio::time::Instant::now();
    loop {
        look.tick().await;
        let used = match resident_bytes().await {
            Ok(used) => used,
            Err(error) => {
                tracing::warn!(%error, "cannot see how much memory is used; limits.memory_max does not count");
                return std::future::pending().await;
            }
        };
        let pressure = Pressure::of(used, max);
        let before = edge.admission.pressure.send_replace(pressure);
        if pressure != before {
            tracing::warn!(used, max, pressure = pressure.as_str(), "memory pressure");
        }
        if pressure == Pressure::Shed && shed_at <= tokio::time::Instant::now() {
            edge.sessions.shed();
            shed_at = tokio::time::Instant::now() + SHED_EVERY;
        }
    }
}

/// Memory of this process that is in use: the second field of proc(5) `statm`, in pages.
async fn resident_bytes() -> std::io::Result<u64> {
    let statm = tokio::fs::read_to_string("/proc/self/statm").await?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| std::io::Error::other("/proc/self/statm is not of the known form"))?;
    Ok(pages * rustix::param::page_size() as u64)
}
