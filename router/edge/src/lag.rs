//! How late this edge is itself: a deadline that an event loop looks at too late says nothing about the region it was for.
//!
//! Each worker sleeps for a moment, again and again, and notes by how much it woke up too late. What makes it late (a burst of
//! handshakes, a machine short of processor time) makes every other timer of the edge late as well.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// How often a worker looks. Ten wake-ups a second cost nothing that could be measured.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The worst of so long, and of as long before, counts: about as long as the waits for a region are (`timeouts.connect`,
/// `timeouts.upgrade`).
const REMEMBERED: Duration = Duration::from_secs(2);
/// A wait of which this edge itself may have slept away one part of so many says nothing about the region.
const PART: u32 = 4;
/// Shorter waits are judged like this one, the shortest by default: a busy machine is some tens of milliseconds late at times.
const SHORTEST: Duration = Duration::from_secs(1);

/// The lateness of all workers together.
#[derive(Debug)]
pub struct Lag {
    began: Instant,
    worst: Mutex<Worst>,
}

/// The worst lateness of the period under way and of the one before it.
#[derive(Debug, Default)]
struct Worst {
    period: u128,
    now: Duration,
    before: Duration,
}

impl Default for Lag {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            worst: Mutex::default(),
        }
    }
}

impl Lag {
    fn lock(&self) -> MutexGuard<'_, Worst> {
        self.worst.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the event loop that it runs on; ends never.
    pub async fn watch(&self) {
        loop {
            let due = Instant::now() + LOOK_EVERY;
            sleep_until(due).await;
            self.note(due.elapsed());
        }
    }

    /// A worker woke up this much too late.
    pub fn note(&self, late: Duration) {
        let mut worst = self.lock();
        worst.turn_to(self.period());
        worst.now = worst.now.max(late);
    }

    /// Whether this edge was so late within the last seconds that a wait of `limit` which came to nothing is no evidence.
    pub fn is_late_for(&self, limit: Duration) -> bool {
        let mut worst = self.lock();
        worst.turn_to(self.period());
        worst.now.max(worst.before) >= limit.max(SHORTEST) / PART
    }

    fn period(&self) -> u128 {
        self.began.elapsed().as_millis() / REMEMBERED.as_millis()
    }
}

impl Worst {
    fn turn_to(&mut self, period: u128) {
        if period > self.period {
            self.before = if period == self.period + 1 {
                self.now
            } else {
                Duration::ZERO
            };
            self.now = Duration::ZERO;
            self.period = period;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_edge_that_was_late_is_no_witness_for_a_few_seconds() {
        let lag = Lag::default();
        let second = Duration::from_secs(1);
        assert!(!lag.is_late_for(second));
        lag.note(Duration::from_millis(300));
        lag.note(Duration::from_millis(1));
        assert!(lag.is_late_for(second));
        assert!(!lag.is_late_for(3 * second), "a third of a second of three is little");
        tokio::time::advance(REMEMBERED).await;
        assert!(lag.is_late_for(second));
        tokio::time::advance(REMEMBERED).await;
        assert!(!lag.is_late_for(second), "it is over");
        lag.note(second);
        tokio::time::advance(10 * REMEMBERED).await;
        assert!(!lag.is_late_for(second));
    }

    #[test]
    fn a_worker_that_is_kept_busy_notices() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let lag = Lag::default();
            let busy = async {
                while !lag.is_late_for(SHORTEST) {
                    tokio::task::yield_now().await;
                    // What a burst of handshakes does to an event loop.
                    std::thread::sleep(2 * SHORTEST / PART);
                }
            };
            let watched = async {
                tokio::select! {
                    () = lag.watch() => unreachable!("it watches for ever"),
                    () = busy => {}
                }
            };
            tokio::time::timeout(20 * SHORTEST, watched).await.unwrap();
        });
    }
}
