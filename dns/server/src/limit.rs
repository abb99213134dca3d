//! Limits the rate of replies to networks that did not show a cookie (response rate limiting). Forged questions then make
//! no flood at the forged address.
//!
//! One table serves all threads without locks. A network has a time up to which its replies are paid for; each reply moves
//! it on, and a network that is too far ahead of the clock gets no reply.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::cookie::siphash_2_4;

/// Number of networks that are remembered at once: 1 MiB. A flood that forges more sources than this sends few replies to
/// each.
const SLOTS: usize = 1 << 17;
/// Bits of a slot for the paid time, in microseconds: 203 days, after which the process has long restarted or the time
/// wraps and a slot is paid at once.
const TIME_BITS: u32 = 44;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
/// Replies that a network may have at once, in seconds of its rate. Resolvers ask in bursts when a popular name expires.
const BURST_S: u64 = 2;

/// The limit of all threads.
#[derive(Debug)]
pub(crate) struct Limiter {
    slots: Box<[AtomicU64]>,
    /// Time that one reply costs, in microseconds. 0: no limit.
    cost_us: u64,
    burst_us: u64,
    /// Of so many limited replies one is sent, cut, so that an honest client asks again over TCP. 0: none.
    slip: u32,
    key: [u8; 16],
}

/// The fate of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Send,
    /// Send it cut: an honest client asks again over TCP.
    Cut,
    Drop,
}

impl Limiter {
    /// `per_s` replies a second for each network; 0 means no limit. `key` is random, so that nobody finds two networks in
    /// one slot.
    pub(crate) fn new(per_s: u32, slip: u32, key: [u8; 16]) -> Self {
        let cost_us = if per_s == 0 {
            0
        } else {
            (1_000_000 / u64::from(per_s)).max(1)
        };
        let slots = if per_s == 0 { 0 } else { SLOTS };
        Self {
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            cost_us,
            burst_us: BURST_S * 1_000_000,
            slip,
            key,
        }
    }

    /// Counts one reply to `client` at `now_us`, in microseconds of any clock that never goes back.
    pub(crate) fn count(&self, client: IpAddr, now_us: u64) -> Verdict {
        if self.slots.is_empty() {
            return Verdict::Send;
        }
        let hash = siphash_2_4(&self.key, &network(client));
        let (tag, now) = (hash >> TIME_BITS << TIME_BITS, now_us & TIME_MASK);
        // Two places for each network. If others use both now, the reply goes out: the limit must not hit the innocent.
        for place in [hash, hash.rotate_right(23)] {
            let slot = &self.slots[place as usize % self.slots.len()];
            let known = slot.load(Relaxed);
            let paid = known & TIME_MASK;
            let is_idle = paid <= now || paid - now > 2 * self.burst_us;
            if known & !TIME_MASK != tag && !is_idle {
                continue;
            }
            let from = if is_idle { now } else { paid };
            if from + self.cost_us > now + self.burst_us {
                return self.over(hash, known, now);
            }
            // Two threads may count one reply where there were two; the limit is no exact science.
            slot.store(tag | ((from + self.cost_us) & TIME_MASK), Relaxed);
            return Verdict::Send;
        }
        Verdict::Send
    }

    /// Every `slip`th limited reply is sent, cut. Chosen by a hash of the time, so that threads need no common count.
    fn over(&self, hash: u64, known: u64, now: u64) -> Verdict {
        let turn = (hash ^ known ^ now.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32;
        if self.slip > 0 && turn.is_multiple_of(u64::from(self.slip)) {
            Verdict::Cut
        } else {
            Verdict::Drop
        }
    }
}

/// The network that shares a limit: a forger chooses addresses within the network of its victim freely.
fn network(client: IpAddr) -> [u8; 8] {
    let mut network = [0; 8];
    match client.to_canonical() {
        IpAddr::V4(v4) => network[..3].copy_from_slice(&v4.octets()[..3]),
        IpAddr::V6(v6) => {
            network[..7].copy_from_slice(&v6.octets()[..7]);
            network[7] = 1;
        }
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(limiter: &Limiter, client: &str, replies: u64, from_us: u64, every_us: u64) -> [u64; 3] {
        let mut counts = [0; 3];
        for nth in 0..replies {
            let verdict = limiter.count(client.parse().unwrap(), from_us + nth * every_us);
            counts[verdict as usize] += 1;
        }
        counts
    }

    #[test]
    fn a_network_gets_its_rate_and_a_burst_and_its_neighbours_are_not_limited() {
        let limiter = Limiter::new(100, 2, [3; 16]);
        // 1,000 questions a second for ten seconds: 200 at once, and 100 a second.
        let [send, cut, drop] = sent(&limiter, "192.0.2.7", 10_000, 1_000_000, 1000);
        assert!((1190..=1210).contains(&send), "{send}");
        // Half of the others tell an honest client to use TCP.
        assert!((4000..=4800).contains(&cut), "{cut} cut, {drop} dropped");
        // Another address of the network shares its limit; other networks do not.
        let at = 11_000_000;
        assert!(sent(&limiter, "192.0.2.200", 5, at, 0)[0] <= 1);
        assert_eq!(sent(&limiter, "192.0.3.7", 150, at, 0)[0], 150);
        assert_eq!(sent(&limiter, "2001:db8::1", 150, at, 0)[0], 150);
        // A network that calms down is served again.
        assert_eq!(sent(&limiter, "192.0.2.7", 100, at + 5_000_000, 0)[0], 100);
    }

    #[test]
    fn without_a_limit_everything_is_sent_and_without_slip_nothing_is_cut() {
        assert_eq!(
            sent(&Limiter::new(0, 2, [0; 16]), "192.0.2.7", 100_000, 0, 0),
            [100_000, 0, 0]
        );
        assert_eq!(sent(&Limiter::new(10, 0, [0; 16]), "192.0.2.7", 1000, 9, 0)[1], 0);
    }

    #[test]
    fn a_crowd_of_networks_limits_nobody_who_asks_seldom() {
        let limiter = Limiter::new(100, 2, [9; 16]);
        for network in 0..400_000_u32 {
            let client = IpAddr::from((network << 8).to_be_bytes());
            assert_eq!(limiter.count(client, 50), Verdict::Send, "{client}");
        }
    }
}
