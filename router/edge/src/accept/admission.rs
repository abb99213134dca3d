//! Admission: [`routing::admit`] with this edge's counts, and the answers for refused devices.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use routing::admit::{Arrival, ClientLimits, ClientSlot, Clients, LimitReached, Pressure, Slots};
use tokio::{sync::watch, time::Instant};

use crate::{answer::Answer, config::Config, texts};

/// After the edge ran out of descriptors, ports or buffers, it refuses new devices for this long: enough for some of them to be
/// given back, and short enough to be over before a device has tried another edge.
const EXHAUSTED_FOR: Duration = Duration::from_secs(1);

/// The counts and limits that decide on each device.
#[derive(Debug)]
pub struct Admission {
    sessions: Gate,
    handshakes: Gate,
    clients: Mutex<Clients>,
    pub(super) pressure: watch::Sender<Pressure>,
    began: Instant,
    /// The edge is out of descriptors, ports or buffers until this time, in milliseconds since it began; 0 for never.
    exhausted_until_ms: AtomicU64,
}

/// Slots of one kind, and the number of taken ones.
#[derive(Debug)]
struct Gate {
    slots: Slots,
    taken: AtomicUsize,
}

/// The reason for which the edge refuses a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Refusal {
    /// No slot for a session.
    #[strum(serialize = "sessions-full")]
    Sessions,
    /// No slot for the opening of a session.
    #[strum(serialize = "handshakes-full")]
    Handshakes,
    /// The client has its most connections.
    ClientConnections,
    /// The client exceeds its rate.
    ClientRate(Duration),
    /// The client has its most requests in flight.
    ClientInFlight,
    /// The client has its most long bodies under way.
    ClientUploads,
    /// The edge is short of memory.
    Memory,
    /// The edge is out of descriptors, ports or buffers.
    Exhausted,
}

/// A connection that was let in; its count ends when this is dropped.
#[derive(Debug)]
pub struct Connected {
    admission: Arc<Admission>,
    client: IpAddr,
}

/// The slot of a session, until this is dropped.
#[derive(Debug)]
pub struct SessionSlot(Arc<Admission>);

/// The slot of a session that opens, until this is dropped.
#[derive(Debug)]
pub struct Handshake(Arc<Admission>);

impl Admission {
    /// Admission before the first device.
    pub fn new(config: &Config) -> Self {
        let limits = &config.limits;
        let reserve = f64::from(limits.returning_percent) / 100.0;
        let gate = |max| Gate {
            slots: Slots::new(max, reserve),
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
        self.clients.lock()
    }

    pub fn connect(self: &Arc<Self>, client: IpAddr) -> Result<Connected, Refusal> {
        self.clients().connect(client)?;
        Ok(Connected {
            admission: self.clone(),
            client,
        })
    }

    /// Admits a request, which is in flight until the caller drops its slot.
    pub fn request(&self, client: IpAddr) -> Result<ClientSlot, Refusal> {
        // No request proves that its device returns, and a request is short.
        self.calm_enough(Arrival::Returning)?;
        Ok(self.clients().begin(client, daemon::clock::now())?)
    }

    /// Whether a request of the client would be within its rate. Counts nothing.
    pub fn may_ask(&self, client: IpAddr) -> Result<(), Refusal> {
        Ok(self.clients().may_ask(client, daemon::clock::now())?)
    }

    /// Admits a body that is too long to hold; it is under way until the caller drops its slot.
    pub fn upload(&self, client: IpAddr) -> Result<ClientSlot, Refusal> {
        Ok(self.clients().upload(client)?)
    }

    /// The reason in metrics and the answer for a request that the edge refuses anyway. A refusal costs as much of the client's
    /// rate as an answer, and a client that exceeds its rate gets that answer instead.
    pub fn refuse(&self, client: IpAddr, refused: (&'static str, Answer)) -> (&'static str, Answer) {
        match self.request(client) {
            Ok(_) => refused,
            Err(refusal) => (refusal.as_str(), refusal.answer()),
        }
    }

    /// Admits a session. Returns its slot, and the slot that it needs only until a region takes it.
    ///
    /// The rate of a client does not count for returning devices: when an edge or a network comes back, all devices behind an
    /// address return at once.
    pub fn session(self: &Arc<Self>, client: IpAddr, arrival: Arrival) -> Result<(SessionSlot, Handshake), Refusal> {
        self.calm_enough(arrival)?;
        if arrival == Arrival::Newcomer {
            self.clients().count_request(client, daemon::clock::now())?;
        }
        if !self.handshakes.enter(arrival) {
            return Err(Refusal::Handshakes);
        }
        let handshake = Handshake(self.clone());
        if !self.sessions.enter(arrival) {
            return Err(Refusal::Sessions);
        }
        Ok((SessionSlot(self.clone()), handshake))
    }

    /// Refuses new devices for a moment, because this edge ran out of a resource. Returns whether it did not do so already.
    pub fn exhausted(&self) -> bool {
        let now_ms = self.now_ms();
        let until_ms = now_ms + EXHAUSTED_FOR.as_millis() as u64;
        self.exhausted_until_ms.fetch_max(until_ms, Ordering::Relaxed) <= now_ms
    }

    /// Whether the edge refuses new devices because it ran out of a resource.
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
        let one_more = |taken| self.slots.admits(taken, arrival).then_some(taken + 1);
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

impl Drop for SessionSlot {
    fn drop(&mut self) {
        self.0.sessions.leave();
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.leave();
    }
}

impl From<LimitReached> for Refusal {
    fn from(excess: LimitReached) -> Self {
        match excess {
            LimitReached::Connections => Self::ClientConnections,
            LimitReached::Rate(wait) => Self::ClientRate(wait),
            LimitReached::InFlight => Self::ClientInFlight,
            LimitReached::Uploads => Self::ClientUploads,
        }
    }
}

impl Refusal {
    /// The reason's name in metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The answer. Another edge may have room for a device, but a client that exceeds its limits does so at every edge.
    pub fn answer(self) -> Answer {
        match self {
            Self::Sessions => Answer::unavailable("edge_full", texts::SESSIONS_FULL, 2),
            Self::Handshakes => Answer::unavailable("edge_busy", texts::HANDSHAKES_FULL, 2),
            Self::Exhausted => Answer::edge_full(),
            Self::Memory => Answer::unavailable("edge_overloaded", texts::OVERLOADED, 5),
            Self::ClientConnections => Answer::too_many("too_many_connections", texts::CLIENT_CONNECTIONS, 5),
            Self::ClientInFlight => Answer::too_many("too_many_requests", texts::CLIENT_IN_FLIGHT, 1),
            Self::ClientUploads => Answer::too_many("too_many_uploads", texts::CLIENT_UPLOADS, 1),
            Self::ClientRate(wait) => Answer::too_many("rate_limited", texts::CLIENT_RATE, wait.as_secs() + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_its_name_in_metrics() {
        for (refusal, name) in [
            (Refusal::Sessions, "sessions-full"),
            (Refusal::Handshakes, "handshakes-full"),
            (Refusal::ClientConnections, "client-connections"),
            (Refusal::ClientRate(Duration::ZERO), "client-rate"),
            (Refusal::ClientInFlight, "client-in-flight"),
            (Refusal::ClientUploads, "client-uploads"),
            (Refusal::Memory, "memory"),
            (Refusal::Exhausted, "exhausted"),
        ] {
            assert_eq!(refusal.as_str(), name);
        }
    }
}
