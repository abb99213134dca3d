//! Checks whether a peer keeps pace: a device with the body or frame that it sends and with the answer or events that
//! it reads; a region with the messages of the device.
//!
//! Only the time in which the edge waits for the peer counts. A device may fall behind for a while, because radio links
//! have gaps. It cannot stretch a request at will by moving a byte now and then.
//!
//! Why it is so: docs/decisions/05-the-edge-reads-bodies-first.md.

use std::time::Duration;

/// The slowest pace that a peer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Longest time that the peer may stay behind.
    pub behind_max: Duration,
    /// Each moved byte adds the reciprocal of this to the remaining time, in seconds. A value of 0 counts as 1.
    pub bytes_per_s_min: u32,
}

/// One direction of one request or session.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    rate: Rate,
    /// The remaining time for which the edge waits.
    left: Duration,
}

impl Pace {
    /// The state before any byte has moved.
    pub fn new(rate: Rate) -> Self {
        let left = rate.behind_max;
        Self { rate, left }
    }

    /// Starts over with another peer, about which nothing is known.
    pub fn forget(&mut self) {
        self.left = self.rate.behind_max;
    }

    /// Whether the peer has used up some of its time. Bytes that move give time back.
    pub fn is_behind(&self) -> bool {
        self.left < self.rate.behind_max
    }

    /// The time for which the edge waits for the next bytes.
    pub fn remaining(&self) -> Duration {
        self.left
    }

    /// Counts a wait of the edge and the bytes that moved after it. A fast peer can save up only `behind_max`, so it
    /// cannot stop for an hour after a quick beginning.
    pub fn waited(&mut self, waited: Duration, bytes: usize) {
        let bought = Duration::from_secs_f64(bytes as f64 / f64::from(self.rate.bytes_per_s_min.max(1)));
        let left = self.left.saturating_sub(waited).saturating_add(bought);
        self.left = left.min(self.rate.behind_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    const RATE: Rate = Rate {
        behind_max: seconds(20),
        bytes_per_s_min: 500,
    };

    /// The time for which the edge waits for a device that moves `bytes` at a time with a pause in between. At most an
    /// hour.
    fn waited_for(bytes: usize, pause: Duration) -> Duration {
        let (mut pace, mut waited) = (Pace::new(RATE), Duration::ZERO);
        while waited < seconds(3600) {
            let remaining = pace.remaining();
            if remaining < pause {
                return waited + remaining;
            }
            pace.waited(pause, bytes);
            waited += pause;
        }
        waited
    }

    #[test]
    fn a_byte_now_and_then_does_not_buy_time() {
        assert_eq!(waited_for(0, seconds(3600)), seconds(20), "silent");
        assert!(waited_for(1, seconds(7)) < seconds(21), "a byte every seven seconds");
        assert!(waited_for(400, seconds(1)) < seconds(120), "a little too slow for ever");
    }

    #[test]
    fn a_slow_link_with_holes_is_waited_for() {
        assert!(waited_for(500, seconds(1)) >= seconds(3600));
        assert!(waited_for(10_000, seconds(19)) >= seconds(3600));
    }

    #[test]
    fn a_quick_beginning_does_not_buy_an_hour() {
        let mut pace = Pace::new(RATE);
        pace.waited(Duration::ZERO, 100 << 20);
        assert_eq!(pace.remaining(), seconds(20));
    }
}
