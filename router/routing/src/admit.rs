//! Admission: who may start new work on this edge while it has capacity.
//!
//! Three checks run before the edge spends anything on a requester: is a slot free (sessions, handshakes), does this
//! client use more than its share (connections, requests), and is memory running out. Devices that were here before
//! have precedence: a device that reconnects with a valid affinity token may use slots that are closed to newcomers,
//! because it may be in the middle of a conversation. Speech in progress is never refused; [`Pressure`] gives the order
//! of what is.
//!
//! Why it is so: docs/decisions/08-admission.md.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use topology::Moment;

/// Whether the requester was here before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// A device without a valid affinity token.
    Newcomer,
    /// A device with an affinity token of its own that is valid and not out of date.
    Returning,
}

/// Slots of one kind, such as sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// The number of slots.
    pub max: usize,
    /// The number of slots that only returning devices may use.
    pub reserved: usize,
}

impl Slots {
    /// `max` slots, of which the fraction `reserve`, 0..=1, is kept for returning devices. At least one slot is open to
    /// newcomers.
    pub fn new(max: usize, reserve: f64) -> Self {
        let reserved = (max as f64 * reserve.clamp(0.0, 1.0)) as usize;
        Self {
            max,
            reserved: reserved.min(max.saturating_sub(1)),
        }
    }

    /// Whether a slot is free while `taken` slots are in use.
    pub fn admits(&self, taken: usize, arrival: Arrival) -> bool {
        match arrival {
            Arrival::Newcomer => taken < self.max - self.reserved,
            Arrival::Returning => taken < self.max,
        }
    }
}

/// The limits of one client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClientLimits {
    /// Most connections at once. 0: no limit.
    pub connections_max: u32,
    /// Most requests and session openings per second, on average. 0: no limit.
    pub requests_per_s: f64,
    /// Most of them at once after a pause, at least 1.
    pub burst: u32,
    /// Most requests in flight at once. 0: no limit.
    pub in_flight_max: u32,
    /// Most streamed request bodies at once. 0: no limit.
    pub uploads_max: u32,
}

/// The limit that a client has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitReached {
    /// Connections at once.
    Connections,
    /// Requests per second. The client's next request is accepted after this time.
    Rate(Duration),
    /// Requests in flight.
    InFlight,
    /// Streamed request bodies.
    Uploads,
}

/// One of a client's slots for requests or for streamed bodies, in use until this is dropped. Dropping takes no lock.
#[derive(Debug)]
pub struct ClientSlot(Option<Arc<AtomicU32>>);

impl Drop for ClientSlot {
    fn drop(&mut self) {
        if let Some(taken) = &self.0 {
            taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Most clients stored for their rate alone. Attackers with more addresses meet the limits that all clients share.
const REMEMBERED_MAX: usize = 100_000;
/// Shortest time between two searches for clients that can be forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The use that each client makes of this edge: its connections, and its rate by the generic cell rate algorithm (ITU-T
/// I.371 annex A.2), which needs one number per client.
#[derive(Debug)]
pub struct Clients {
    limits: ClientLimits,
    clients: HashMap<IpAddr, Client>,
    sweep_at: Moment,
}

#[derive(Debug, Default)]
struct Client {
    connections: u32,
    /// Shared with the client's requests. The count grows only under the lock of [`Clients`], so the limit is exact.
    in_flight: Arc<AtomicU32>,
    /// The same for streamed request bodies.
    uploads: Arc<AtomicU32>,
    /// Theoretical arrival time of the next request, in microseconds since the epoch.
    next_us: u64,
}

impl Clients {
    /// No clients yet.
    pub fn new(limits: ClientLimits) -> Self {
        Self {
            limits,
            clients: HashMap::new(),
            sweep_at: Moment(0),
        }
    }

    /// The number of stored clients.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether no client is stored.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Counts a new connection. After every `Ok`, the caller must call [`Clients::disconnect`] once.
    pub fn connect(&mut self, client: IpAddr) -> Result<(), LimitReached> {
        let client = self.clients.entry(network(client)).or_default();
        if self.limits.connections_max > 0 && client.connections >= self.limits.connections_max {
            return Err(LimitReached::Connections);
        }
        client.connections += 1;
        Ok(())
    }

    /// Counts the end of a connection.
    pub fn disconnect(&mut self, client: IpAddr, now: Moment) {
        let network = network(client);
        if let Some(client) = self.clients.get_mut(&network) {
            client.connections = client.connections.saturating_sub(1);
            if client.can_be_forgotten(now) {
                self.clients.remove(&network);
            }
        }
        self.sweep(now);
    }

    /// Counts a request against the rate. A refused request costs the client nothing, so it may retry after the given
    /// time.
    pub fn count_request(&mut self, client: IpAddr, now: Moment) -> Result<(), LimitReached> {
        let limits = self.limits;
        if limits.requests_per_s <= 0.0 {
            return Ok(());
        }
        self.sweep(now);
        self.get_or_insert(client)
            .map_or(Ok(()), |client| client.count_request(&limits, now))
    }

    /// Whether a request would be within the rate. Counts nothing.
    pub fn may_ask(&self, client: IpAddr, now: Moment) -> Result<(), LimitReached> {
        let known = self.clients.get(&network(client));
        known.map_or(Ok(()), |known| known.next_us(&self.limits, now).map(drop))
    }

    /// Counts a request against the rate, and as in flight until the result is dropped.
    pub fn begin(&mut self, client: IpAddr, now: Moment) -> Result<ClientSlot, LimitReached> {
        let limits = self.limits;
        if limits.requests_per_s <= 0.0 && limits.in_flight_max == 0 {
            return Ok(ClientSlot(None));
        }
        self.sweep(now);
        let Some(client) = self.get_or_insert(client) else {
            return Ok(ClientSlot(None));
        };
        if limits.in_flight_max > 0 && client.in_flight.load(Ordering::Relaxed) >= limits.in_flight_max {
            return Err(LimitReached::InFlight);
        }
        client.count_request(&limits, now)?;
        client.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(ClientSlot(Some(client.in_flight.clone())))
    }

    /// Counts a streamed request body until the result is dropped.
    pub fn upload(&mut self, client: IpAddr) -> Result<ClientSlot, LimitReached> {
        let uploads_max = self.limits.uploads_max;
        let client = (uploads_max > 0).then(|| self.get_or_insert(client)).flatten();
        let Some(client) = client else {
            return Ok(ClientSlot(None));
        };
        if client.uploads.load(Ordering::Relaxed) >= uploads_max {
            return Err(LimitReached::Uploads);
        }
        client.uploads.fetch_add(1, Ordering::Relaxed);
        Ok(ClientSlot(Some(client.uploads.clone())))
    }

    /// The entry of this client. `None` for a new client when the store is full; such a client has no limits of its
    /// own.
    fn get_or_insert(&mut self, client: IpAddr) -> Option<&mut Client> {
        let is_full = self.clients.len() >= REMEMBERED_MAX;
        match self.clients.entry(network(client)) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(_) if is_full => None,
            Entry::Vacant(new) => Some(new.insert(Client::default())),
        }
    }

    /// Forgets clients that have no connection, nothing in flight, and have kept to their rate.
    fn sweep(&mut self, now: Moment) {
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            self.clients.retain(|_, client| !client.can_be_forgotten(now));
        }
    }
}

impl Client {
    fn can_be_forgotten(&self, now: Moment) -> bool {
        let is_idle = [&self.in_flight, &self.uploads]
            .iter()
            .all(|taken| taken.load(Ordering::Relaxed) == 0);
        self.connections == 0 && is_idle && self.next_us <= microseconds(now)
    }

    fn count_request(&mut self, limits: &ClientLimits, now: Moment) -> Result<(), LimitReached> {
        self.next_us = self.next_us(limits, now)?;
        Ok(())
    }

    /// Theoretical arrival time of the request after one that comes now.
    fn next_us(&self, limits: &ClientLimits, now: Moment) -> Result<u64, LimitReached> {
        if limits.requests_per_s <= 0.0 {
            return Ok(self.next_us);
        }
        let interval_us = (1e6 / limits.requests_per_s).max(1.0) as u64;
        let ahead_max_us = interval_us.saturating_mul(u64::from(limits.burst.max(1)));
        let now_us = microseconds(now);
        // A clock that was set back must not make a client wait for it.
        let known_us = match self.next_us {
            ahead if ahead > now_us.saturating_add(ahead_max_us) => now_us,
            known => known.max(now_us),
        };
        let next_us = known_us + interval_us;
        if next_us - now_us > ahead_max_us {
            return Err(LimitReached::Rate(Duration::from_micros(
                next_us - now_us - ahead_max_us,
            )));
        }
        Ok(next_us)
    }
}

fn microseconds(moment: Moment) -> u64 {
    moment.0.saturating_mul(1000)
}

/// The address that identifies a client: an IPv4 address, or the /64 of an IPv6 address. Every household has at least
/// one /64 (RFC 6177 §2), and a device in it may use any number of addresses.
pub fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The shortage of memory. Each step gives up more than the one before; speech in progress goes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Pressure {
    /// Enough memory.
    None,
    /// From 90 %: no newcomers.
    NoNewcomers,
    /// From 95 %: no new sessions at all, and no requests.
    #[strum(serialize = "nobody-new")]
    NoNewSessions,
    /// From 100 %: quiet sessions are told to reconnect elsewhere. Sessions in a turn finish the turn first.
    Shed,
}

impl Pressure {
    /// The shortage when `used` of `max` bytes are in use. A `max` of 0 means no limit.
    pub fn of(used: u64, max: u64) -> Self {
        // In twentieths, so that no result depends on rounding.
        match (max, used.saturating_mul(20)) {
            (0, _) => Self::None,
            (_, used) if used >= max.saturating_mul(20) => Self::Shed,
            (_, used) if used >= max.saturating_mul(19) => Self::NoNewSessions,
            (_, used) if used >= max.saturating_mul(18) => Self::NoNewcomers,
            _ => Self::None,
        }
    }

    /// Whether new work may begin.
    pub fn admits(self, arrival: Arrival) -> bool {
        match arrival {
            Arrival::Newcomer => self < Self::NoNewcomers,
            Arrival::Returning => self < Self::NoNewSessions,
        }
    }

    /// The name of the step in logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn limits(connections_max: u32, requests_per_s: f64, burst: u32) -> ClientLimits {
        ClientLimits {
            connections_max,
            requests_per_s,
            burst,
            in_flight_max: 0,
            uploads_max: 0,
        }
    }

    #[test]
    fn a_client_has_so_many_requests_in_flight_and_no_more() {
        let mut clients = Clients::new(ClientLimits {
            in_flight_max: 2,
            ..limits(0, 0.0, 1)
        });
        let (ann, bob) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let first = clients.begin(ann, Moment(0)).unwrap();
        let _second = clients.begin(ann, Moment(0)).unwrap();
        assert_eq!(clients.begin(ann, Moment(0)).unwrap_err(), LimitReached::InFlight);
        let _other = clients.begin(bob, Moment(0)).unwrap();
        drop(first);
        let _third = clients.begin(ann, Moment(0)).unwrap();
        // A client with requests in flight is not forgotten with its last connection.
        clients.connect(ann).unwrap();
        clients.disconnect(ann, Moment(10_000));
        assert_eq!(clients.begin(ann, Moment(10_000)).unwrap_err(), LimitReached::InFlight);
    }

    #[test]
    fn a_client_has_so_many_long_bodies_on_their_way_and_no_more() {
        let mut clients = Clients::new(ClientLimits {
            uploads_max: 1,
            ..limits(0, 0.0, 1)
        });
        let (ann, bob) = (ip("2001:db8:1:2::1"), ip("192.0.2.2"));
        let first = clients.upload(ann).unwrap();
        clients.connect(ann).unwrap();
        clients.disconnect(ann, Moment(10_000));
        assert_eq!(
            clients.upload(ip("2001:db8:1:2::3")).unwrap_err(),
            LimitReached::Uploads
        );
        let _other = clients.upload(bob).unwrap();
        drop(first);
        let _second = clients.upload(ann).unwrap();
        let mut any = Clients::new(limits(0, 0.0, 1));
        let held: Vec<_> = (0..100).map(|_| any.upload(ann).unwrap()).collect();
        assert_eq!((held.len(), any.len()), (100, 0));
    }

    #[test]
    fn who_returns_gets_the_places_that_newcomers_leave() {
        let places = Slots::new(100, 0.1);
        assert!(places.admits(89, Arrival::Newcomer));
        assert!(!places.admits(90, Arrival::Newcomer));
        assert!(places.admits(99, Arrival::Returning));
        assert!(!places.admits(100, Arrival::Returning));
        assert!(
            Slots::new(1, 1.0).admits(0, Arrival::Newcomer),
            "never closed to all newcomers"
        );
    }

    #[test]
    fn a_client_may_burst_and_then_keeps_to_its_rate() {
        let mut clients = Clients::new(limits(0, 10.0, 5));
        let client = ip("192.0.2.1");
        for _ in 0..5 {
            assert_eq!(clients.count_request(client, Moment(1_000)), Ok(()));
        }
        let wait = Duration::from_millis(100);
        assert_eq!(
            clients.count_request(client, Moment(1_000)),
            Err(LimitReached::Rate(wait))
        );
        assert_eq!(
            clients.count_request(client, Moment(1_099)),
            Err(LimitReached::Rate(wait - Duration::from_millis(99)))
        );
        assert_eq!(
            clients.count_request(client, Moment(1_100)),
            Ok(()),
            "a refusal costs nothing"
        );
        assert_eq!(
            clients.count_request(ip("192.0.2.2"), Moment(1_100)),
            Ok(()),
            "others are not concerned"
        );
    }

    #[test]
    fn a_client_does_not_wait_for_a_clock_that_was_set_back() {
        let mut clients = Clients::new(limits(0, 10.0, 5));
        let client = ip("192.0.2.1");
        while clients.count_request(client, Moment(3_600_000)).is_ok() {}
        assert_eq!(clients.may_ask(client, Moment(1_000)), Ok(()));
        assert_eq!(clients.count_request(client, Moment(1_000)), Ok(()));
    }

    #[test]
    fn one_household_is_one_client() {
        let mut clients = Clients::new(limits(2, 0.0, 1));
        assert_eq!(clients.connect(ip("2001:db8:1:2::1")), Ok(()));
        assert_eq!(clients.connect(ip("2001:db8:1:2:ffff::9")), Ok(()));
        assert_eq!(clients.connect(ip("2001:db8:1:2::3")), Err(LimitReached::Connections));
        assert_eq!(clients.connect(ip("2001:db8:1:3::3")), Ok(()));
        assert_eq!(network(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        clients.disconnect(ip("2001:db8:1:2::77"), Moment(1));
        assert_eq!(clients.connect(ip("2001:db8:1:2::3")), Ok(()));
    }

    #[test]
    fn clients_that_keep_to_their_rate_are_forgotten() {
        let mut clients = Clients::new(limits(0, 1.0, 10));
        for n in 0..100_u32 {
            assert_eq!(clients.count_request(IpAddr::from(n.to_be_bytes()), Moment(0)), Ok(()));
        }
        assert_eq!(clients.len(), 100);
        assert_eq!(clients.count_request(ip("192.0.2.1"), Moment(1_001)), Ok(()));
        assert_eq!(clients.len(), 1);
    }

    #[test]
    fn memory_runs_out_in_steps() {
        let steps = [89, 90, 94, 95, 99, 100, 200].map(|percent| Pressure::of(percent, 100));
        use Pressure::{NoNewSessions, NoNewcomers, Shed};
        assert_eq!(
            steps,
            [
                Pressure::None,
                NoNewcomers,
                NoNewcomers,
                NoNewSessions,
                NoNewSessions,
                Shed,
                Shed
            ]
        );
        assert_eq!(Pressure::of(u64::MAX, 0), Pressure::None);
        assert!(NoNewcomers.admits(Arrival::Returning) && !NoNewcomers.admits(Arrival::Newcomer));
        assert!(!NoNewSessions.admits(Arrival::Returning));
    }

    proptest! {
        /// Over any span a client gets no more than its burst and its rate, and a client that keeps to its rate is
        /// never refused.
        #[test]
        fn no_client_gets_more_than_its_part(
            rate in 1_u32..200,
            burst in 1_u32..50,
            gaps_ms in prop::collection::vec(0_u64..500, 1..300),
        ) {
            let mut clients = Clients::new(limits(0, f64::from(rate), burst));
            let (mut now, mut admitted) = (Moment(10_000), 0_u64);
            let (began, client) = (now, ip("192.0.2.1"));
            let mut last_refused: Option<Moment> = None;
            for gap in gaps_ms {
                now = now + Duration::from_millis(gap);
                match clients.count_request(client, now) {
                    Ok(()) => {
                        admitted += 1;
                        last_refused = None;
                    }
                    Err(LimitReached::Rate(wait)) => {
                        prop_assert!(wait > Duration::ZERO);
                        last_refused = Some(now + wait + Duration::from_millis(1));
                    }
                    Err(LimitReached::Connections | LimitReached::InFlight | LimitReached::Uploads) => prop_assert!(false),
                }
                let most = f64::from(burst) + now.since(began).as_secs_f64() * f64::from(rate) * 1.001 + 1.0;
                prop_assert!(admitted as f64 <= most, "{admitted} > {most}");
            }
            if let Some(at) = last_refused {
                prop_assert_eq!(clients.count_request(client, at.max(now)), Ok(()), "who waits as told is let in");
            }
        }

        /// Every counted connection is counted out again.
        #[test]
        fn connections_are_counted_out_as_they_were_counted_in(clients_of in prop::collection::vec(0_u8..4, 0..60)) {
            let mut clients = Clients::new(limits(3, 0.0, 1));
            let mut open = Vec::new();
            for n in clients_of {
                let client = IpAddr::from([192, 0, 2, n]);
                let has = open.iter().filter(|it| **it == client).count();
                prop_assert_eq!(clients.connect(client).is_ok(), has < 3);
                if has < 3 {
                    open.push(client);
                }
            }
            for client in open {
                clients.disconnect(client, Moment(5_000));
            }
            prop_assert!(clients.is_empty());
        }
    }
}
