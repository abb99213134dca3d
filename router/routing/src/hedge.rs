//! Hedging: a second copy of a request that takes long, to another region; the first good answer wins.
//!
//! The second copy leaves after the median of what was measured, but never before a floor: below it a region is not slow,
//! and above it about half of the requests are, of which a budget lets a few be copied.

use std::time::Duration;

use topology::Moment;

use crate::budget::Budget;

/// Answers whose median is taken: some seconds on a busy edge, and enough that one outlier does not matter.
const SAMPLES: usize = 128;

/// When to send second copies.
#[derive(Debug, Clone)]
pub struct Hedging {
    floor: Duration,
    budget: Budget,
    /// How long the last answers took, in milliseconds; a ring once it is full.
    took_ms: Vec<u32>,
    next: usize,
}

impl Hedging {
    /// No copy before `floor`, and at most `percent` of the requests are copied.
    pub fn new(floor: Duration, percent: u32) -> Self {
        Self {
            floor,
            // Where there are few requests a share of them is none, and one copy in ten seconds harms nobody.
            budget: Budget::new(percent, u32::from(percent > 0)),
            took_ms: Vec::new(),
            next: 0,
        }
    }

    /// A request begins that may be copied. How long to wait for its answer before.
    pub fn begin(&mut self, now: Moment) -> Duration {
        self.budget.asked(now);
        self.delay()
    }

    /// The larger of the floor and the measured median.
    pub fn delay(&self) -> Duration {
        let mut sorted = self.took_ms.clone();
        let middle = sorted.len() / 2;
        if sorted.is_empty() {
            return self.floor;
        }
        let (_, median_ms, _) = sorted.select_nth_unstable(middle);
        self.floor.max(Duration::from_millis(u64::from(*median_ms)))
    }

    /// Whether a request that has waited may be copied; counts it.
    pub fn try_copy(&mut self, now: Moment) -> bool {
        self.budget.try_spend(now)
    }

    /// The first copy of a request was answered. Second copies are not measured: they are sent when it is slow anyway.
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
