//! Admission: who may begin something on this edge while there is room for it.
//!
//! Three questions, each asked before anything was spent on the caller: is there a place (sessions, handshakes), does this
//! client take more than its part (connections, requests), and is memory running out. Who was here before comes first: a
//! device that reconnects with a valid affinity token gets the places that newcomers leave, because it may be in the middle
//! of a conversation. What is being said is never refused; see [`Pressure`] for what goes first.

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

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// A device without a valid affinity token.
    Newcomer,
    /// A device that was here before: its affinity token is ours and not out of date.
    Returning,
}

/// Places of one kind, such as sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// How many there are.
    pub max: usize,
    /// How many of them are kept for those that return.
    pub reserved: usize,
}

impl Places {
    /// `max` places, of which `reserve`, 0..=1, are kept for those that return. A newcomer can always take the first.
    pub fn new(max: usize, reserve: f64) -> Self {
        let reserved = (max as f64 * reserve.clamp(0.0, 1.0)) as usize;
        Self {
            max,
            reserved: reserved.min(max.saturating_sub(1)),
        }
    }

    /// Whether there is a place while `taken` are taken.
    pub fn admits(&self, taken: usize, arrival: Arrival) -> bool {
        match arrival {
            Arrival::Newcomer => taken < self.max - self.reserved,
            Arrival::Returning => taken < self.max,
        }
    }
}

/// What one client may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClientLimits {
    /// Connections at once; 0 for any number.
    pub connections_max: u32,
    /// Requests and session openings a second, over time; 0 for any rate.
    pub requests_per_s: f64,
    /// How many of them may come at once after a pause, at least 1.
    pub burst: u32,
    /// Requests in flight at once; 0 for any number.
    pub in_flight_max: u32,
    /// Bodies that are passed on as they come at once; 0 for any number.
    pub uploads_max: u32,
}

/// Why a client has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// It has as many connections as it may.
    Connections,
    /// It asks too often; the next request is welcome after this long.
    Rate(Duration),
    /// It has as many requests in flight as it may.
    InFlight,
    /// As many of its bodies as may be are being passed on.
    Uploads,
}

/// A client has one of its places for requests, or for uploads, while this exists. Giving it back takes no lock.
#[derive(Debug)]
pub struct ClientPlace(Option<Arc<AtomicU32>>);

impl Drop for ClientPlace {
    fn drop(&mut self) {
        if let Some(taken) = &self.0 {
            taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Clients remembered for their rate alone. Attackers with more addresses than that meet the limits that all share.
const REMEMBERED_MAX: usize = 100_000;
/// Clients that have nothing to be remembered for are looked for no more often than this.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What the clients of this edge take: connections, and a rate by the generic cell rate algorithm (ITU-T I.371 annex A.2),
/// which needs one number per client.
#[derive(Debug)]
pub struct Clients {
    limits: ClientLimits,
    clients: HashMap<IpAddr, Client>,
    sweep_at: Moment,
}

#[derive(Debug, Default)]
struct Client {
    connections: u32,
    /// Shared with its requests. The count only grows under the lock of all clients, so the limit is exact.
    in_flight: Arc<AtomicU32>,
    /// The same of bodies that are passed on as they come.
    uploads: Arc<AtomicU32>,
    /// Theoretical arrival time of the next request, microseconds since the epoch.
    next_us: u64,
}

impl Clients {
    /// Nobody yet.
    pub fn new(limits: ClientLimits) -> Self {
        Self {
            limits,
            clients: HashMap::new(),
            sweep_at: Moment(0),
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// A connection begins. Each that is let in is followed by one [`Clients::disconnect`].
    pub fn connect(&mut self, client: IpAddr) -> Result<(), Excess> {
        let client = self.clients.entry(network(client)).or_default();
        if self.limits.connections_max > 0 && client.connections >= self.limits.connections_max {
            return Err(Excess::Connections);
        }
        client.connections += 1;
        Ok(())
    }

    /// A connection ended.
    pub fn disconnect(&mut self, client: IpAddr, now: Moment) {
        let network = network(client);
        if let Some(client) = self.clients.get_mut(&network) {
            client.connections = client.connections.saturating_sub(1);
            if client.is_nobody(now) {
                self.clients.remove(&network);
            }
        }
        self.sweep(now);
    }

    /// A client asks for something. What is refused costs it nothing: it may come back as soon as it is told.
    pub fn ask(&mut self, client: IpAddr, now: Moment) -> Result<(), Excess> {
        let limits = self.limits;
        if limits.requests_per_s <= 0.0 {
            return Ok(());
        }
        self.sweep(now);
        self.remembered(client)
            .map_or(Ok(()), |client| client.ask(&limits, now))
    }

    /// The same for a request, which is in flight until what is returned is dropped.
    pub fn begin(&mut self, client: IpAddr, now: Moment) -> Result<ClientPlace, Excess> {
        let limits = self.limits;
        if limits.requests_per_s <= 0.0 && limits.in_flight_max == 0 {
            return Ok(ClientPlace(None));
        }
        self.sweep(now);
        let Some(client) = self.remembered(client) else {
            return Ok(ClientPlace(None));
        };
        if limits.in_flight_max > 0 && client.in_flight.load(Ordering::Relaxed) >= limits.in_flight_max {
            return Err(Excess::InFlight);
        }
        client.ask(&limits, now)?;
        client.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(ClientPlace(Some(client.in_flight.clone())))
    }

    /// A body of a client is passed on as it comes until what is returned is dropped.
    pub fn upload(&mut self, client: IpAddr) -> Result<ClientPlace, Excess> {
        let uploads_max = self.limits.uploads_max;
        let client = (uploads_max > 0).then(|| self.remembered(client)).flatten();
        let Some(client) = client else {
            return Ok(ClientPlace(None));
        };
        if client.uploads.load(Ordering::Relaxed) >= uploads_max {
            return Err(Excess::Uploads);
        }
        client.uploads.fetch_add(1, Ordering::Relaxed);
        Ok(ClientPlace(Some(client.uploads.clone())))
    }

    /// `None` for a stranger that there is no place to remember.
    fn remembered(&mut self, client: IpAddr) -> Option<&mut Client> {
        let is_full = self.clients.len() >= REMEMBERED_MAX;
        match self.clients.entry(network(client)) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(_) if is_full => None,
            Entry::Vacant(new) => Some(new.insert(Client::default())),
        }
    }

    /// Forgets those that neither are connected nor asked for more than their rate lately.
    fn sweep(&mut self, now: Moment) {
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            self.clients.retain(|_, client| !client.is_nobody(now));
        }
    }
}

impl Client {
    fn is_nobody(&self, now: Moment) -> bool {
        let is_idle = [&self.in_flight, &self.uploads]
            .iter()
            .all(|taken| taken.load(Ordering::Relaxed) == 0);
        self.connections == 0 && is_idle && self.next_us <= microseconds(now)
    }

    fn ask(&mut self, limits: &ClientLimits, now: Moment) -> Result<(), Excess> {
        if limits.requests_per_s <= 0.0 {
            return Ok(());
        }
        let interval_us = (1e6 / limits.requests_per_s).max(1.0) as u64;
        let ahead_max_us = interval_us.saturating_mul(u64::from(limits.burst.max(1)));
        let now_us = microseconds(now);
        // A clock that was set back must not keep anybody waiting for it.
        let known_us = self.next_us.clamp(now_us, now_us.saturating_add(ahead_max_us));
        let next_us = known_us + interval_us;
        if next_us - now_us > ahead_max_us {
            return Err(Excess::Rate(Duration::from_micros(next_us - now_us - ahead_max_us)));
        }
        self.next_us = next_us;
        Ok(())
    }
}

fn microseconds(moment: Moment) -> u64 {
    moment.0.saturating_mul(1000)
}

/// Who counts as one client: an IPv4 address, or the /64 of an IPv6 address, of which every household has at least one
/// (RFC 6177 §2) and any device in it as many addresses as it likes.
pub fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// How short memory is. Each step gives up more than the one before, and what is being said goes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Room enough.
    None,
    /// From 90 %: no newcomers.
    NoNewcomers,
    /// From 95 %: nobody new, and no request.
    NobodyNew,
    /// From 100 %: quiet sessions are told to reconnect elsewhere; those in a turn first finish it.
    Shed,
}

impl Pressure {
    /// Of `used` bytes where `max` may be; 0 for no limit.
    pub fn of(used: u64, max: u64) -> Self {
        // In twentieths, so that nothing depends on rounding.
        match (max, used.saturating_mul(20)) {
            (0, _) => Self::None,
            (_, used) if used >= max.saturating_mul(20) => Self::Shed,
            (_, used) if used >= max.saturating_mul(19) => Self::NobodyNew,
            (_, used) if used >= max.saturating_mul(18) => Self::NoNewcomers,
            _ => Self::None,
        }
    }

    /// Whether something new may begin.
    pub fn admits(self, arrival: Arrival) -> bool {
        match arrival {
            Arrival::Newcomer => self < Self::NoNewcomers,
            Arrival::Returning => self < Self::NobodyNew,
        }
    }

    /// The step's name in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::NoNewcomers => "no-newcomers",
            Self::NobodyNew => "nobody-new",
            Self::Shed => "shed",
        }
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
        assert_eq!(clients.begin(ann, Moment(0)).unwrap_err(), Excess::InFlight);
        let _other = clients.begin(bob, Moment(0)).unwrap();
        drop(first);
        let _third = clients.begin(ann, Moment(0)).unwrap();
        // A client that holds requests is not forgotten with its last connection.
        clients.connect(ann).unwrap();
        clients.disconnect(ann, Moment(10_000));
        assert_eq!(clients.begin(ann, Moment(10_000)).unwrap_err(), Excess::InFlight);
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
        assert_eq!(clients.upload(ip("2001:db8:1:2::3")).unwrap_err(), Excess::Uploads);
        let _other = clients.upload(bob).unwrap();
        drop(first);
        let _second = clients.upload(ann).unwrap();
        let mut any = Clients::new(limits(0, 0.0, 1));
        let held: Vec<_> = (0..100).map(|_| any.upload(ann).unwrap()).collect();
        assert_eq!((held.len(), any.len()), (100, 0));
    }

    #[test]
    fn who_returns_gets_the_places_that_newcomers_leave() {
        let places = Places::new(100, 0.1);
        assert!(places.admits(89, Arrival::Newcomer));
        assert!(!places.admits(90, Arrival::Newcomer));
        assert!(places.admits(99, Arrival::Returning));
        assert!(!places.admits(100, Arrival::Returning));
        assert!(
            Places::new(1, 1.0).admits(0, Arrival::Newcomer),
            "never closed to all newcomers"
        );
    }

    #[test]
    fn a_client_may_burst_and_then_keeps_to_its_rate() {
        let mut clients = Clients::new(limits(0, 10.0, 5));
        let client = ip("192.0.2.1");
        for _ in 0..5 {
            assert_eq!(clients.ask(client, Moment(1_000)), Ok(()));
        }
        let wait = Duration::from_millis(100);
        assert_eq!(clients.ask(client, Moment(1_000)), Err(Excess::Rate(wait)));
        assert_eq!(
            clients.ask(client, Moment(1_099)),
            Err(Excess::Rate(wait - Duration::from_millis(99)))
        );
        assert_eq!(clients.ask(client, Moment(1_100)), Ok(()), "a refusal costs nothing");
        assert_eq!(
            clients.ask(ip("192.0.2.2"), Moment(1_100)),
            Ok(()),
            "others are not concerned"
        );
    }

    #[test]
    fn one_household_is_one_client() {
        let mut clients = Clients::new(limits(2, 0.0, 1));
        assert_eq!(clients.connect(ip("2001:db8:1:2::1")), Ok(()));
        assert_eq!(clients.connect(ip("2001:db8:1:2:ffff::9")), Ok(()));
        assert_eq!(clients.connect(ip("2001:db8:1:2::3")), Err(Excess::Connections));
        assert_eq!(clients.connect(ip("2001:db8:1:3::3")), Ok(()));
        assert_eq!(network(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        clients.disconnect(ip("2001:db8:1:2::77"), Moment(1));
        assert_eq!(clients.connect(ip("2001:db8:1:2::3")), Ok(()));
    }

    #[test]
    fn clients_that_keep_to_their_rate_are_forgotten() {
        let mut clients = Clients::new(limits(0, 1.0, 10));
        for n in 0..100_u32 {
            assert_eq!(clients.ask(IpAddr::from(n.to_be_bytes()), Moment(0)), Ok(()));
        }
        assert_eq!(clients.len(), 100);
        assert_eq!(clients.ask(ip("192.0.2.1"), Moment(1_001)), Ok(()));
        assert_eq!(clients.len(), 1);
    }

    #[test]
    fn memory_runs_out_in_steps() {
        let steps = [89, 90, 94, 95, 99, 100, 200].map(|percent| Pressure::of(percent, 100));
        use Pressure::{NoNewcomers, NobodyNew, Shed};
        assert_eq!(
            steps,
            [
                Pressure::None,
                NoNewcomers,
                NoNewcomers,
                NobodyNew,
                NobodyNew,
                Shed,
                Shed
            ]
        );
        assert_eq!(Pressure::of(u64::MAX, 0), Pressure::None);
        assert!(NoNewcomers.admits(Arrival::Returning) && !NoNewcomers.admits(Arrival::Newcomer));
        assert!(!NobodyNew.admits(Arrival::Returning));
    }

    proptest! {
        /// Over any span a client gets no more than its burst and its rate, and one that keeps to its rate is never refused.
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
                match clients.ask(client, now) {
                    Ok(()) => {
                        admitted += 1;
                        last_refused = None;
                    }
                    Err(Excess::Rate(wait)) => {
                        prop_assert!(wait > Duration::ZERO);
                        last_refused = Some(now + wait + Duration::from_millis(1));
                    }
                    Err(Excess::Connections | Excess::InFlight | Excess::Uploads) => prop_assert!(false),
                }
                let most = f64::from(burst) + now.since(began).as_secs_f64() * f64::from(rate) * 1.001 + 1.0;
                prop_assert!(admitted as f64 <= most, "{admitted} > {most}");
            }
            if let Some(at) = last_refused {
                prop_assert_eq!(clients.ask(client, at.max(now)), Ok(()), "who waits as told is let in");
            }
        }

        /// What is counted is given back.
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
