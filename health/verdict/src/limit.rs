//! The limits of the policy, and the ticks that exceed them.

use std::{collections::BTreeMap, fmt};

use topology::{NodeId, policy::HealthPolicy};

use crate::{
    Latency,
    region_seen::{Counts, Summed, TickSeen},
    run::Called,
};

/// A limit of the policy. A value exactly at the limit does not exceed it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    SuccessBelow(f64),
    ErrorsAbove(f64),
    /// A percentile (0..=1) above that many milliseconds.
    LatencyAbove(f64, f64),
}

impl Limit {
    /// A tick is bad when all vantages together exceed the limit and enough of them do alone: one vantage alone may be
    /// cut off itself. It is unknown with too few samples, or too few vantages that have any. `needed`: the samples that
    /// count, if not all do.
    pub(crate) fn call(
        self,
        seen: TickSeen<'_>,
        needed: Option<&BTreeMap<&NodeId, Summed>>,
        policy: &HealthPolicy,
    ) -> Called {
        let Some(needed) = needed else {
            return self.call_of_all(seen, policy);
        };
        let total = Summed::of_all(needed.values());
        self.call_of(total.counts(), || needed.values().map(Summed::counts), policy)
    }

    /// The same by all samples: of a region with one stack, or of one stack.
    pub(crate) fn call_of_all(self, seen: TickSeen<'_>, policy: &HealthPolicy) -> Called {
        self.call_of(seen.total(), || seen.vantages().map(|(_, saw)| saw.into()), policy)
    }

    fn call_of<'w, V: Iterator<Item = Counts<'w>>>(
        self,
        total: Counts<'w>,
        vantages: impl Fn() -> V,
        policy: &HealthPolicy,
    ) -> Called {
        let enough = |holds: &dyn Fn(Counts<'_>) -> bool| {
            let those = vantages().filter(|saw| holds(*saw));
            // Two are enough: the count need not reach a thousand.
            those.take(policy.vantages_min as usize).count() >= policy.vantages_min as usize
        };
        if self.volume(total) < u64::from(policy.samples_min) || !enough(&|it| self.volume(it) > 0) {
            Called::Unknown
        } else if self.is_passed(total) && enough(&|it| self.is_seen_past(it)) {
            Called::Bad
        } else {
            Called::Good
        }
    }

    fn volume(self, counts: Counts<'_>) -> u64 {
        match self {
            Self::SuccessBelow(_) | Self::ErrorsAbove(_) => counts.samples(),
            Self::LatencyAbove(..) => counts.latency.map_or(0, Latency::count),
        }
    }

    /// Whether one vantage accuses: past the limit, and not by a single loss among several attempts. A vantage makes
    /// two or three attempts in a tick; a single loss is no evidence, and two vantages lose one each in the same tick
    /// every other hour.
    pub(crate) fn is_seen_past(self, counts: Counts<'_>) -> bool {
        let is_more_than_a_loss = counts.failed > 1 || counts.succeeded == 0;
        match self {
            Self::SuccessBelow(_) | Self::ErrorsAbove(_) => self.is_passed(counts) && is_more_than_a_loss,
            Self::LatencyAbove(..) => self.is_passed(counts),
        }
    }

    pub(crate) fn is_passed(self, counts: Counts<'_>) -> bool {
        let share = |of: u64| of as f64 / counts.samples() as f64;
        match self {
            Self::SuccessBelow(_) | Self::ErrorsAbove(_) if counts.samples() == 0 => false,
            Self::SuccessBelow(min) => share(counts.succeeded) < min,
            Self::ErrorsAbove(max) => share(counts.failed) > max,
            Self::LatencyAbove(q, max_ms) => {
                let ms = counts.latency.and_then(|latency| latency.quantile(q));
                ms.is_some_and(|ms| ms > max_ms)
            }
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| (share * 1000.0).round() / 10.0;
        match self {
            Self::SuccessBelow(min) => write!(f, "success below {} %", percent(*min)),
            Self::ErrorsAbove(max) => write!(f, "errors above {} %", percent(*max)),
            Self::LatencyAbove(q, max_ms) => write!(f, "p{} above {max_ms:.0} ms", percent(*q)),
        }
    }
}
