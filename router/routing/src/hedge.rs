//! Hedging: sends a second copy of a slow request to another region; the first good answer wins.
//!
//! The second copy leaves after the measured median, but never before a floor. Below the floor a region is not slow.
//! Above the median about half of all requests are slow, so a budget limits the copies to a few.

use std::time::Duration;

use topology::Moment;

use crate::budget::Budget;

/// Number of answers in the median: some seconds on a busy edge, and enough that one outlier does not matter.
const SAMPLES: usize = 128;

/// Decides when to send second copies.
#[derive(Debug, Clone)]
pub struct Hedging {
    floor: Duration,
    budget: Budget,
    /// Durations of the last answers, in milliseconds. A ring buffer once it is full.
    took_ms: Vec<u32>,
    next: usize,
}

impl Hedging {
    /// Sends no copy before `floor`, and copies at most `percent` of the requests.
    pub fn new(floor: Duration, percent: u32) -> Self {
        Self {
            floor,
            // A share of few requests rounds to none, and one copy in ten seconds does no harm.
            budget: Budget::new(percent, u32::from(percent > 0)),
            took_ms: Vec::new(),
            next: 0,
        }
    }

    /// Counts a request that may be copied. Returns how long to wait for its answer before sending a copy.
    pub fn begin(&mut self, now: Moment) -> Duration {
        self.budget.count_request(now);
        self.delay()
    }

    /// The floor or the measured median, whichever is longer.
    pub fn delay(&self) -> Duration {
        let mut sorted = self.took_ms.clone();
        let middle = sorted.len() / 2;
        if sorted.is_empty() {
            return self.floor;
        }
        let (_, median_ms, _) = sorted.select_nth_unstable(middle);
        self.floor.max(Duration::from_millis(u64::from(*median_ms)))
    }

    /// Takes a second copy out of the budget. Returns whether the budget allowed it.
    pub fn try_copy(&mut self, now: Moment) -> bool {
        self.budget.try_spend(now)
    }

    /// Records how long the answer to a first copy took. Answers to second copies are not measured, because a second
    /// copy is sent only when the region is slow.
    pub fn answered(&mut self, took: Duration) {
        let took_ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        if self.took_ms.len() < SAMPLES {
            self.took_ms.push(took_ms);
        } else {
            self.took_ms[self.next] = took_ms;
        }
        self.next = (self.next + 1) % SAMPLES;
    }
}
