//! Penalties for regions that move often, after BGP route flap damping (RFC 2439): a region above the limit stays where
//! it is safe, away, until the penalty decayed or an operator acknowledges it. Whole numbers only, so that every
//! machine computes the same.
//!
//! Why it is so: docs/decisions/16-what-holds-automation-back.md.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use topology::{Moment, policy::DampingPolicy};

/// The penalty of one region: its recent moves as a number that decays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Penalty {
    /// Its value at `at`.
    pub value: u32,
    /// Time of the last move.
    pub at: Moment,
    /// Whether it reached `damping.suppress` and has not yet fallen below `damping.reuse`.
    pub suppressed: bool,
}

impl Penalty {
    /// The penalty of a region that has not moved.
    pub(crate) fn none(now: Moment) -> Self {
        Self {
            value: 0,
            at: now,
            suppressed: false,
        }
    }

    /// The value now. Between two half-lives it falls in a straight line.
    pub fn value(&self, policy: &DampingPolicy, now: Moment) -> u32 {
        let half_life = policy.half_life.as_millis().max(1);
        let age = now.since(self.at).as_millis();
        let halved = |times: u128| u128::from(self.value).checked_shr(times.min(64) as u32).unwrap_or(0);
        let (whole, rest) = (age / half_life, age % half_life);
        let (above, below) = (halved(whole), halved(whole + 1));
        (above - (above - below) * rest / half_life) as u32
    }

    /// Adds one move.
    pub(crate) fn add(&mut self, policy: &DampingPolicy, now: Moment) {
        let suppressed = self.is_suppressed(policy, now);
        self.value = self.value(policy, now).saturating_add(policy.per_move);
        self.at = now;
        self.suppressed = suppressed || self.value >= policy.suppress;
    }

    /// Whether the region may not return yet.
    pub fn is_suppressed(&self, policy: &DampingPolicy, now: Moment) -> bool {
        self.suppressed && self.value(policy, now) >= policy.reuse
    }

    /// The end of the hold-down; none when the region may return now.
    pub fn until(&self, policy: &DampingPolicy, now: Moment) -> Option<Moment> {
        if !self.is_suppressed(policy, now) {
            return None;
        }
        // The value only falls, so the moment is found by halving a span that is long enough for any value.
        let half_life = u64::try_from(policy.half_life.as_millis()).unwrap_or(u64::MAX);
        let (mut low, mut high) = (0, half_life.saturating_mul(33));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.value(policy, self.at + Duration::from_millis(middle)) < policy.reuse {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Some(self.at + Duration::from_millis(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn three_quick_moves_hold_a_region_down_and_half_an_hour_lifts_it() {
        let policy = DampingPolicy::default();
        let start = Moment(1_000_000);
        let mut penalty = Penalty::none(start);
        penalty.add(&policy, start);
        penalty.add(&policy, start + MINUTE);
        assert!(
            !penalty.is_suppressed(&policy, start + MINUTE),
            "two moves are 1967: {penalty:?}"
        );
        penalty.add(&policy, start + 2 * MINUTE);
        assert!(penalty.is_suppressed(&policy, start + 2 * MINUTE));
        let until = penalty.until(&policy, start + 2 * MINUTE).unwrap();
        let held = until.since(start + 2 * MINUTE);
        // 2900 falls below 750 after a little under two half-lives.
        assert!((28 * MINUTE..32 * MINUTE).contains(&held), "{held:?}");
        assert!(penalty.is_suppressed(&policy, Moment(until.0 - 1)));
        assert!(!penalty.is_suppressed(&policy, until));
    }

    /// A failover and a return within a moment add up to the limit exactly; the region must not be let go back and
    /// forth again.
    #[test]
    fn a_penalty_of_the_limit_exactly_holds_a_region_down() {
        let (policy, start) = (DampingPolicy::default(), Moment(1_000_000));
        let mut penalty = Penalty::none(start);
        penalty.add(&policy, start);
        penalty.add(&policy, start);
        assert_eq!(penalty.value(&policy, start), policy.suppress);
        assert!(penalty.is_suppressed(&policy, start));
    }

    #[test]
    fn a_half_life_of_ages_is_no_overflow() {
        let policy = DampingPolicy {
            half_life: Duration::MAX,
            ..DampingPolicy::default()
        };
        let penalty = Penalty {
            value: 2000,
            at: Moment(5),
            suppressed: true,
        };
        assert_eq!(penalty.until(&policy, Moment(10)), Some(Moment(u64::MAX)));
    }

    #[test]
    fn it_halves_in_a_half_life() {
        let policy = DampingPolicy::default();
        let penalty = Penalty {
            value: 2000,
            at: Moment(0),
            suppressed: true,
        };
        let value = |minutes: u32| penalty.value(&policy, Moment(0) + minutes * MINUTE);
        assert_eq!((value(0), value(15), value(30), value(45)), (2000, 1000, 500, 250));
        assert_eq!(value(60 * 24), 0);
    }
}
