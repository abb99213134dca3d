//! Whether a device keeps pace: with the body it sends, and with the answer it takes.
//!
//! Only the time in which the edge waits for the device counts. A device may fall behind for a while, because radio links
//! have holes, but it cannot stretch a request for as long as it likes by moving a byte now and then.

use std::time::Duration;

/// How slow a device may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// For so long it may stay behind.
    pub behind_max: Duration,
    /// Each byte that moves buys this fraction of a second.
    pub bytes_per_s_min: u32,
}

/// One direction of one request.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    rate: Rate,
    /// How long the edge still waits.
    left: Duration,
}

impl Pace {
    /// Nothing moved yet.
    pub fn new(rate: Rate) -> Self {
        let left = rate.behind_max;
        Self { rate, left }
    }

    /// How long the edge waits for more to move.
    pub fn patience(&self) -> Duration {
        self.left
    }

    /// The edge waited so long for the device, and so many bytes moved. What a fast device saves up is bounded, so that it
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

    /// How long a device is waited for that moves `bytes` at a time, `pause` apart; at most an hour.
    fn waited_for(bytes: usize, pause: Duration) -> Duration {
        let (mut pace, mut waited) = (Pace::new(RATE), Duration::ZERO);
        while waited < seconds(3600) {
            let patience = pace.patience();
            if patience < pause {
                return waited + patience;
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
        assert_eq!(pace.patience(), seconds(20));
    }
}
