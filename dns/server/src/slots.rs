//! Slots for TCP connections. When all are in use, a new connection takes the slot of an idle one (RFC 7766 §6.2.3, RFC
//! 9210 §5.1), so that idle connections delay nobody.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All slots.
#[derive(Debug)]
pub(crate) struct Slots {
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
    /// The time of its last reply, or of the connection if there was none.
    last_reply: Instant,
    eviction: CancellationToken,
}

/// One slot. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    eviction: CancellationToken,
}

impl Slots {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let taken = Mutex::default();
        Arc::new(Self { max, taken })
    }

    /// A slot for a client, and whether another connection was evicted for it.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr) -> (Slot, bool) {
        let mut taken = self.lock();
        let evicted = (taken.connections.len() >= self.max)
            .then(|| idlest(&taken.connections))
            .flatten()
            .and_then(|number| taken.connections.remove(&number));
        if let Some(evicted) = &evicted {
            evicted.eviction.cancel();
        }
        let (number, eviction) = (taken.next, CancellationToken::new());
        taken.next += 1;
        let connection = Connection {
            client: host(client),
            last_reply: Instant::now(),
            eviction: eviction.clone(),
        };
        taken.connections.insert(number, connection);
        let slot = Slot {
            slots: self.clone(),
            number,
            eviction,
        };
        (slot, evicted.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock()
    }
}

impl Slot {
    /// Records that the connection of this slot got a reply.
    pub(crate) fn replied(&self) {
        if let Some(connection) = self.slots.lock().connections.get_mut(&self.number) {
            connection.last_reply = Instant::now();
        }
    }

    /// Returns when the slot was given to another connection.
    pub(crate) async fn evicted(&self) {
        self.eviction.cancelled().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().connections.remove(&self.number);
    }
}

/// The connection to evict: of the client with the most connections, the one whose last reply is longest ago. A
/// connection in the middle of a question counts as idle too, so that bytes that trickle in cannot keep a slot.
fn idlest(connections: &BTreeMap<u64, Connection>) -> Option<u64> {
    let mut used: BTreeMap<u128, usize> = BTreeMap::new();
    for connection in connections.values() {
        *used.entry(connection.client).or_default() += 1;
    }
    (connections.iter())
        .min_by_key(|(_, connection)| (std::cmp::Reverse(used[&connection.client]), connection.last_reply))
        .map(|(number, _)| *number)
}

/// The key of a client. An IPv6 host may use any of the 2^64 addresses of its network, so they share a key.
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

    fn is_evicted(slot: &Slot) -> bool {
        slot.eviction.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_got_no_reply_for_longest_is_evicted() {
        let slots = Slots::new(3);
        let mut slots_in_use = Vec::new();
        for last in 1..=3 {
            slots_in_use.push(slots.take(client(last)).0);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        slots_in_use[0].replied();
        let (_fourth, evicted) = slots.take(client(4));
        assert!(evicted);
        assert_eq!(
            slots_in_use.iter().map(is_evicted).collect::<Vec<_>>(),
            [false, true, false]
        );
        // A connection that closes frees its slot too.
        drop(slots_in_use.remove(0));
        assert!(!slots.take(client(5)).1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_many_connections_loses_one_of_its_own() {
        let slots = Slots::new(4);
        let (quiet, _) = slots.take(client(1));
        tokio::time::advance(Duration::from_secs(5)).await;
        let mut many = Vec::new();
        for _ in 0..10 {
            many.push(slots.take(client(2)).0);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(!is_evicted(&quiet));
        assert_eq!(many.iter().filter(|slot| !is_evicted(slot)).count(), 3);
        assert!(many[..7].iter().all(is_evicted));
    }
}
