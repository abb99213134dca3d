//! The last checkpoints of sessions whose devices left. If the region is lost before the device returns, only this checkpoint has
//! the session's alarms and settings.
//!
//! The checkpoints are sealed, so this edge can neither read nor change them, and no other edge has them. When memory runs out, the
//! oldest go first: those of a client that used its share, otherwise the oldest of all.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use routing::admit::network;
use topology::Moment;

/// The rough size of a session beside its state and its name.
const OVERHEAD_BYTES: usize = 256;
/// Stacks take no older checkpoint.
const AGE_MAX: Duration = Duration::from_secs(86_400);
/// One client gets one part in `CLIENT_SHARE` of the memory, as with the memory for bodies: enough for a thousand devices behind one
/// address, and too little to push out those of all other clients.
const CLIENT_SHARE: usize = 8;

/// Checkpoints by the names of their sessions, bounded in bytes.
#[derive(Debug)]
pub struct Parked {
    inner: Mutex<Inner>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Inner {
    /// By number, so the oldest comes first.
    states: BTreeMap<u64, State>,
    numbers: HashMap<String, u64>,
    /// Each client here has a state.
    clients: HashMap<IpAddr, Client>,
    bytes: usize,
    parked: u64,
}

#[derive(Debug)]
struct State {
    session: String,
    client: IpAddr,
    parked_at: Moment,
    /// The issue time of the session's id that the device has.
    issued_at: Moment,
    state: Box<[u8]>,
}

#[derive(Debug, Default)]
struct Client {
    numbers: BTreeSet<u64>,
    bytes: usize,
}

impl Parked {
    /// No checkpoints yet, and at most this many bytes of them.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            bytes_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Stores the last checkpoint of a session whose device left. The device has the id that was issued at `issued_at`. A client is a
    /// network, see [`network`]; a state that is larger than its share is not stored.
    pub fn put(&self, (session, client): (&str, IpAddr), issued_at: Moment, state: &[u8], now: Moment) {
        let client = network(client);
        let client_max = self.bytes_max / CLIENT_SHARE;
        let cost = cost(session, state);
        if cost > client_max {
            return;
        }
        let mut inner = self.lock();
        inner.remove(session);
        while inner
            .clients
            .get(&client)
            .is_some_and(|held| held.bytes + cost > client_max)
            && inner.remove_oldest_of(client)
        {}
        while inner.bytes + cost > self.bytes_max && inner.remove_oldest() {}
        inner.add(State {
            session: session.to_owned(),
            client,
            parked_at: now,
            issued_at,
            state: state.into(),
        });
    }

    /// The last checkpoint of a session whose device returns with an id issued at `issued_at`, if this edge has it. A checkpoint of an
    /// earlier id does not count: the device has gone on through another edge since. The checkpoint stays until a stack has the
    /// session ([`Parked::remove`]), because the first stack may fail.
    pub fn get(&self, session: &str, issued_at: Moment, now: Moment) -> Option<Box<[u8]>> {
        let mut inner = self.lock();
        let parked = inner.states.get(inner.numbers.get(session)?)?;
        if now.since(parked.parked_at) > AGE_MAX || issued_at > parked.issued_at {
            inner.remove(session);
            return None;
        }
        Some(parked.state.clone())
    }

    /// Forgets a checkpoint, because a stack has the session.
    pub fn remove(&self, session: &str) {
        self.lock().remove(session);
    }
}

impl Inner {
    fn add(&mut self, state: State) {
        self.parked += 1;
        let (number, cost) = (self.parked, state.cost());
        let held = self.clients.entry(state.client).or_default();
        held.numbers.insert(number);
        held.bytes += cost;
        self.bytes += cost;
        self.numbers.insert(state.session.clone(), number);
        self.states.insert(number, state);
    }

    fn remove(&mut self, session: &str) {
        if let Some(number) = self.numbers.get(session).copied() {
            self.remove_number(number);
        }
    }

    /// Returns false when there is none.
    fn remove_oldest(&mut self) -> bool {
        let oldest = self.states.keys().next().copied();
        oldest.inspect(|number| self.remove_number(*number)).is_some()
    }

    /// Returns false when the client has none.
    fn remove_oldest_of(&mut self, client: IpAddr) -> bool {
        let held = self.clients.get(&client);
        let oldest = held.and_then(|held| held.numbers.first().copied());
        oldest.inspect(|number| self.remove_number(*number)).is_some()
    }

    fn remove_number(&mut self, number: u64) {
        let Some(state) = self.states.remove(&number) else {
            return;
        };
        self.numbers.remove(&state.session);
        self.bytes -= state.cost();
        if let Some(held) = self.clients.get_mut(&state.client) {
            held.numbers.remove(&number);
            held.bytes -= state.cost();
            if held.numbers.is_empty() {
                self.clients.remove(&state.client);
            }
        }
    }
}

impl State {
    fn cost(&self) -> usize {
        cost(&self.session, &self.state)
    }
}

/// The bytes that a checkpoint takes. Two maps hold the name.
fn cost(session: &str, state: &[u8]) -> usize {
    2 * session.len() + state.len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANNA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn a_session_finds_its_last_checkpoint_until_a_stack_has_it_and_for_a_day() {
        let parked = Parked::new(1 << 20);
        parked.put(("a", ANNA), Moment(0), b"first", Moment(0));
        parked.put(("a", ANNA), Moment(0), b"second", Moment(1));
        assert_eq!(parked.get("b", Moment(0), Moment(1)), None);
        for _ in 0..2 {
            assert_eq!(parked.get("a", Moment(0), Moment(1)).as_deref(), Some(&b"second"[..]));
        }
        parked.remove("a");
        assert_eq!(parked.get("a", Moment(0), Moment(1)), None);
        parked.put(("a", ANNA), Moment(0), b"third", Moment(0));
        assert_eq!(
            parked.get("a", Moment(0), Moment(0) + AGE_MAX + Duration::from_millis(1)),
            None
        );
        parked.check_empty();
    }

    #[test]
    fn a_device_that_went_on_through_another_edge_does_not_get_what_was_before() {
        let parked = Parked::new(1 << 20);
        parked.put(("a", ANNA), Moment(5), b"state", Moment(9));
        assert!(
            parked.get("a", Moment(4), Moment(10)).is_some(),
            "it still shows its first id"
        );
        assert_eq!(parked.get("a", Moment(6), Moment(10)), None);
        parked.check_empty();
    }

    #[test]
    fn the_oldest_make_room_and_nothing_grows() {
        let parked = Parked::new(10 * cost("000", &[0; 1000]));
        for session in 0..100 {
            let client = IpAddr::from([192, 0, 2, session]);
            let name = format!("{session:03}");
            parked.put((&name, client), Moment(0), &[0; 1000], Moment(session.into()));
        }
        assert_eq!(parked.lock().states.len(), 10);
        assert_eq!(parked.get("089", Moment(0), Moment(100)), None);
        assert!(parked.get("090", Moment(0), Moment(100)).is_some());
        for _ in 0..1000 {
            parked.put(("099", ANNA), Moment(0), &[0; 1000], Moment(100));
        }
        assert_eq!(parked.lock().states.len(), 10);
        parked.put(("large", ANNA), Moment(0), &[0; 1 << 20], Moment(100));
        assert_eq!(parked.get("large", Moment(0), Moment(100)), None);
        for session in 0..100 {
            parked.remove(&format!("{session:03}"));
        }
        parked.check_empty();
    }

    #[test]
    fn a_client_that_parks_without_end_pushes_out_its_own_alone() {
        let parked = Parked::new(80 * cost("000", &[0; 1000]));
        for session in 0..20 {
            let client = IpAddr::from([192, 0, 2, session]);
            parked.put((&format!("{session:03}"), client), Moment(0), &[0; 1000], Moment(0));
        }
        // A network of IPv6 is one client.
        for session in 100..400_u16 {
            let client = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, session]);
            parked.put((&session.to_string(), client), Moment(0), &[0; 1000], Moment(1));
        }
        assert_eq!(parked.lock().states.len(), 20 + 10, "an eighth of what there is");
        for session in 0..20 {
            assert!(parked.get(&format!("{session:03}"), Moment(0), Moment(1)).is_some());
        }
        assert_eq!(parked.get("389", Moment(0), Moment(1)), None);
        assert!(
            parked.get("390", Moment(0), Moment(1)).is_some(),
            "its latest are there"
        );
    }

    impl Parked {
        fn check_empty(&self) {
            let inner = self.lock();
            let left = (
                inner.states.len(),
                inner.numbers.len(),
                inner.clients.len(),
                inner.bytes,
            );
            assert_eq!(left, (0, 0, 0, 0));
        }
    }
}
