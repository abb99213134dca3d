//! Measures how late this process itself is. When an event loop notices a deadline too late, the missed deadline says
//! nothing about the peer.
//!
//! Each worker repeatedly sleeps for a moment and notes how late it wakes up. The same causes (a burst of handshakes, a
//! machine short of processor time) make every other timer of the process late too.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};

/// The interval at which a worker measures. Ten wake-ups a second have no measurable cost.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Length of a period. The worst lateness of the current and the previous period counts: together about as long as the
/// deadlines of requests to peers.
const REMEMBERED: Duration = Duration::from_secs(2);
/// A missed deadline is no evidence against a peer once this process may have been late for one part in `PART` of it.
const PART: u32 = 4;
/// Shorter deadlines are judged like this one, the shortest by default: a busy machine is sometimes late by some tens
/// of milliseconds.
const SHORTEST: Duration = Duration::from_secs(1);

/// The lateness of this process: the worst of all its workers.
#[derive(Debug)]
pub struct Lag {
    began: Instant,
    worst: Mutex<Worst>,
}

/// The worst lateness in the current period and in the one before it.
#[derive(Debug, Default)]
struct Worst {
    period: u128,
    now: Duration,
    before: Duration,
    /// The next time at which each worker wakes up. A process that was paused may be asked before its workers have
    /// measured, and a worker that is blocked is late before it can say so.
    due: BTreeMap<u64, Instant>,
    /// Workers that began to measure, ever.
    watches: u64,
}

/// A running [`Lag::watch`]. When it is dropped, its worker measures no more, and a missing wake-up is not lateness.
struct Watching<'l> {
    lag: &'l Lag,
    worker: u64,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.lag.lock().due.remove(&self.worker);
    }
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
        self.worst.lock()
    }

    /// Measures the event loop that it runs on. Never returns.
    pub async fn watch(&self) {
        let worker = {
            let mut worst = self.lock();
            worst.watches += 1;
            worst.watches
        };
        let _watching = Watching { lag: self, worker };
        loop {
            let due = Instant::now() + LOOK_EVERY;
            self.lock().due.insert(worker, due);
            sleep_until(due).await;
            self.note(due.elapsed());
        }
    }

    /// Records that a worker woke up this much too late.
    pub fn note(&self, late: Duration) {
        let mut worst = self.lock();
        worst.turn_to(self.period());
        worst.now = worst.now.max(late);
    }

    /// Whether this process was so late within the last seconds that a missed deadline of `limit` is no evidence
    /// against the peer.
    pub fn is_late_for(&self, limit: Duration) -> bool {
        let mut worst = self.lock();
        worst.turn_to(self.period());
        let overdue = worst.due.values().min().map_or(Duration::ZERO, Instant::elapsed);
        worst.now.max(worst.before).max(overdue) >= limit.max(SHORTEST) / PART
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
    async fn a_process_that_was_late_is_no_witness_for_a_few_seconds() {
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

    /// After a pause all timers are due at once, and a probe may be judged before the worker has measured.
    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_knows_before_it_has_looked() {
        let lag = Lag::default();
        let second = Duration::from_secs(1);
        {
            let mut watching = std::pin::pin!(lag.watch());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(watching.as_mut().poll(&mut context).is_pending());
            assert!(!lag.is_late_for(second));
            tokio::time::advance(second).await;
            assert!(lag.is_late_for(second));
        }
        assert!(!lag.is_late_for(second), "nobody watches any more");
    }

    /// The other workers wake up in time meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_blocked_is_noticed_by_the_others() {
        let lag = Lag::default();
        let second = Duration::from_secs(1);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut blocked = std::pin::pin!(lag.watch());
        assert!(blocked.as_mut().poll(&mut context).is_pending());
        {
            let mut other = std::pin::pin!(lag.watch());
            for _ in 0..20 {
                assert!(other.as_mut().poll(&mut context).is_pending());
                tokio::time::advance(LOOK_EVERY).await;
            }
            assert!(lag.is_late_for(second));
        }
        assert!(lag.is_late_for(second), "the other one left, the blocked one did not");
    }

    #[test]
    fn a_worker_that_is_kept_busy_notices() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let lag = Lag::default();
            let busy = async {
                while !lag.is_late_for(SHORTEST) {
                    tokio::task::yield_now().await;
                    // A burst of handshakes blocks an event loop like this.
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
