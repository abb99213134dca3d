//! Places for TCP connections. When all are taken, a newcomer gets the place of a connection that does nothing
//! (RFC 7766 §6.2.3, RFC 9210 §5.1), so that idle connections delay nobody.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All places.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    connections: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    client: u128,
    /// When it last got a reply, or came.
    last_reply: Instant,
    leave: CancellationToken,
}

/// One place; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    leave: CancellationToken,
}

impl Places {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let taken = Mutex::default();
        Arc::new(Self { max, taken })
    }

    /// A place for this client, and whether another connection has to leave for it.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr) -> (Place, bool) {
        let mut taken = self.lock();
        let evicted = (taken.connections.len() >= self.max)
            .then(|| idlest(&taken.connections))
            .flatten()
            .and_then(|number| taken.connections.remove(&number));
        if let Some(evicted) = &evicted {
            evicted.leave.cancel();
        }
        let (number, leave) = (taken.next, CancellationToken::new());
        taken.next += 1;
        let connection = Connection {
            client: host(client),
            last_reply: Instant::now(),
            leave: leave.clone(),
        };
        taken.connections.insert(number, connection);
        let place = Place {
            places: self.clone(),
            number,
            leave,
        };
        (place, evicted.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Its connection got a reply just now.
    pub(crate) fn replied(&self) {
        if let Some(connection) = self.places.lock().connections.get_mut(&self.number) {
            connection.last_reply = Instant::now();
        }
    }

    /// Ends when the place is needed for somebody else.
    pub(crate) async fn needed(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().connections.remove(&self.number);
    }
}

/// Of the client with the most connections, the one whose last reply is longest ago. A connection in the middle of a question
/// counts as idle too: bytes that trickle in must not keep a place.
fn idlest(connections: &BTreeMap<u64, Connection>) -> Option<u64> {
    let mut held: BTreeMap<u128, usize> = BTreeMap::new();
    for connection in connections.values() {
        *held.entry(connection.client).or_default() += 1;
    }
    (connections.iter())
        .min_by_key(|(_, connection)| (std::cmp::Reverse(held[&connection.client]), connection.last_reply))
        .map(|(number, _)| *number)
}

/// IPv6 hosts may use any of the 2^64 addresses of their network.
fn host(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits() & !u128::from(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn must_leave(place: &Place) -> bool {
        place.leave.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_got_no_reply_for_longest_leaves() {
        let places = Places::new(3);
        let mut held = Vec::new();
        for last in 1..=3 {
            held.push(places.take(client(last)).0);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        held[0].replied();
        let (_fourth, evicted) = places.take(client(4));
        assert!(evicted);
        assert_eq!(held.iter().map(must_leave).collect::<Vec<_>>(), [false, true, false]);
        // Those that leave by themselves make room as well.
        drop(held.remove(0));
        assert!(!places.take(client(5)).1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_many_connections_loses_one_of_its_own() {
        let places = Places::new(4);
        let (quiet, _) = places.take(client(1));
        tokio::time::advance(Duration::from_secs(5)).await;
        let mut many = Vec::new();
        for _ in 0..10 {
            many.push(places.take(client(2)).0);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(!must_leave(&quiet));
        assert_eq!(many.iter().filter(|place| !must_leave(place)).count(), 3);
        assert!(many[..7].iter().all(must_leave));
    }
}
