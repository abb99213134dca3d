//! Passive ejection: a stack that fails this edge is left alone for a while, and gets its sessions back little by little.
//!
//! Failures are connections that could not be made and sessions that died in the middle; a session that ends with a Close
//! frame is never one. Ejection only reorders this edge's own choices: moving the fleet is the leader's business. A region
//! is out when all its stacks are.

use std::time::Duration;

use topology::Moment;

use crate::Policy;

/// Buckets of the window: it forgets by tenths. Exact counts, because an average weighted by arrival lets a burst of
/// successes hide the failures before it.
const BUCKETS: usize = 10;

/// What this edge holds against one stack.
#[derive(Debug, Clone, Default)]
pub struct Record {
    failures_in_a_row: u32,
    window: Window,
    /// Ejections without a time of health between them.
    times: u32,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    until: Moment,
    cause: Cause,
}

/// A stack was just ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// When it is tried again.
    pub until: Moment,
    /// How many times in a row it was ejected, from 1.
    pub times: u32,
    /// What it did.
    pub cause: Cause,
}

/// What a stack is ejected for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It failed several times without a success between: it is gone.
    InARow,
    /// Of everything in the window this percentage succeeded: it is ill.
    SuccessRate(u8),
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InARow => f.write_str("failures in a row"),
            Self::SuccessRate(percent) => write!(f, "{percent} % succeeded"),
        }
    }
}

impl Record {
    /// Counts a failure; says so when it was the one that ejects. What is merely ill is ejected only if `may_eject_ill`.
    pub fn fail(&mut self, now: Moment, policy: &Policy, may_eject_ill: bool) -> Option<Ejection> {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.window.count(false, now, policy.window);
        // Two hundred sessions that die together are one event: what still fails during an ejection does not extend it.
        if self.is_ejected(now) {
            return None;
        }
        let cause = if self.failures_in_a_row >= policy.failures_in_a_row {
            Cause::InARow
        } else {
            let percent = self.window.success_percent(policy.volume_min)?;
            if percent >= policy.success_percent_min || !may_eject_ill {
                return None;
            }
            Cause::SuccessRate(percent)
        };
        // The count in a row is kept, so the first failure after the ejection ends ejects again, for longer. The window is
        // not: what it holds led to this ejection and shall not lead to the next.
        self.window = Window::default();
        self.times = self.times.saturating_add(1);
        let until = now + policy.ejection.saturating_mul(self.times).min(policy.ejection_max);
        self.last = Some(Last { until, cause });
        Some(Ejection {
            until,
            times: self.times,
            cause,
        })
    }

    /// Counts a success. It ends the ejection of a stack that was taken for gone, and after a time of health everything
    /// held against it is forgiven.
    pub fn succeed(&mut self, now: Moment, policy: &Policy) {
        self.failures_in_a_row = 0;
        self.window.count(true, now, policy.window);
        let Some(last) = &mut self.last else { return };
        if now < last.until {
            if last.cause == Cause::InARow {
                last.until = now;
            }
        } else if now.since(last.until) >= policy.slow_start {
            (self.last, self.times) = (None, 0);
        }
    }

    /// Whether to stay away from it now.
    pub fn is_ejected(&self, now: Moment) -> bool {
        self.last.is_some_and(|last| now < last.until)
    }

    /// Until when it is ejected, if it is.
    pub fn ejected_until(&self, now: Moment) -> Option<Moment> {
        self.last.map(|last| last.until).filter(|until| now < *until)
    }

    /// The part of its sessions that it gets back so far, 0 to 1. It only grows until the next ejection.
    pub fn returned(&self, now: Moment, policy: &Policy) -> f64 {
        let Some(last) = self.last else { return 1.0 };
        if now < last.until {
            return 0.0;
        }
        let since = now.since(last.until);
        if since >= policy.slow_start {
            return 1.0;
        }
        let first = f64::from(policy.slow_start_percent) / 100.0;
        first + (1.0 - first) * since.as_secs_f64() / policy.slow_start.as_secs_f64()
    }
}

/// Successes and failures of the last ten tenths of a window.
#[derive(Debug, Clone, Default)]
struct Window {
    /// Of bucket `newest` and those before it; bucket `n` lies at `n` modulo the length.
    buckets: [(u32, u32); BUCKETS],
    newest: u64,
}

impl Window {
    fn count(&mut self, success: bool, now: Moment, window: Duration) {
        let bucket_ms = (window.as_millis() as u64 / BUCKETS as u64).max(1);
        let bucket = now.0 / bucket_ms;
        // A clock that was set back counts into the newest bucket.
        for passed in (self.newest + 1..=bucket).rev().take(BUCKETS) {
            self.buckets[passed as usize % BUCKETS] = (0, 0);
        }
        self.newest = self.newest.max(bucket);
        let (succeeded, failed) = &mut self.buckets[self.newest as usize % BUCKETS];
        let counted = if success { succeeded } else { failed };
        *counted = counted.saturating_add(1);
    }

    /// `None` when there are fewer than `volume_min`.
    fn success_percent(&self, volume_min: u32) -> Option<u8> {
        let sum = |of: fn(&(u32, u32)) -> u32| self.buckets.iter().map(|bucket| u64::from(of(bucket))).sum::<u64>();
        let (succeeded, failed) = (sum(|(succeeded, _)| *succeeded), sum(|(_, failed)| *failed));
        let volume = succeeded + failed;
        if volume == 0 || volume < u64::from(volume_min) {
            return None;
        }
        Some((succeeded * 100 / volume) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(s: u64) -> Moment {
        Moment(s * 1000)
    }

    const POLICY: Policy = Policy::DEFAULT;

    fn fail(record: &mut Record, s: u64) -> Option<(Moment, u32)> {
        let ejection = record.fail(seconds(s), &POLICY, true)?;
        Some((ejection.until, ejection.times))
    }

    fn gone_at(s: u64) -> Record {
        let mut record = Record::default();
        assert_eq!([fail(&mut record, s), fail(&mut record, s)], [None, None]);
        assert_eq!(fail(&mut record, s), Some((seconds(s + 10), 1)));
        record
    }

    #[test]
    fn three_failures_in_a_row_eject_for_ten_seconds_then_longer() {
        let mut record = gone_at(0);
        assert!(record.is_ejected(seconds(9)));
        assert!(!record.is_ejected(seconds(10)), "it is tried again");
        assert_eq!(fail(&mut record, 9), None, "the same event, seen late");
        assert_eq!(fail(&mut record, 11), Some((seconds(31), 2)));
    }

    #[test]
    fn a_success_in_between_starts_over() {
        let mut record = Record::default();
        for _ in 0..5 {
            assert_eq!(fail(&mut record, 0), None);
            assert_eq!(fail(&mut record, 0), None);
            record.succeed(seconds(0), &POLICY);
        }
        assert!(!record.is_ejected(seconds(0)));
    }

    #[test]
    fn no_ejection_is_longer_than_five_minutes() {
        let mut record = Record::default();
        let (mut now, mut last) = (seconds(0), None);
        for _ in 0..100 {
            if let Some(ejection) = record.fail(now, &POLICY, true) {
                assert!(ejection.until.since(now) <= POLICY.ejection_max);
                now = ejection.until;
                last = Some(ejection.times);
            }
        }
        assert!(last > Some(30));
    }

    /// So many successes, then every other one fails.
    fn ill(record: &mut Record, s: u64, may_eject_ill: bool) -> Option<Ejection> {
        (0..50).find_map(|_| {
            record.succeed(seconds(s), &POLICY);
            record.fail(seconds(s), &POLICY, may_eject_ill)
        })
    }

    #[test]
    fn half_of_many_failing_ejects_and_half_of_a_few_does_not() {
        let mut record = Record::default();
        for _ in 0..9 {
            record.succeed(seconds(0), &POLICY);
            assert_eq!(record.fail(seconds(0), &POLICY, true), None, "too few to tell");
        }
        let ejection = ill(&mut record, 1, true).unwrap();
        assert_eq!(ejection.cause, Cause::SuccessRate(50));
        record.succeed(seconds(2), &POLICY);
        assert!(
            record.is_ejected(seconds(2)),
            "one success does not make an ill stack well"
        );
        assert_eq!(ill(&mut Record::default(), 0, false), None, "enough others are ejected");
    }

    /// Else a stack that is well again after a bad half minute is ejected anew by its first failure.
    #[test]
    fn what_led_to_an_ejection_does_not_lead_to_the_next() {
        let mut record = Record::default();
        assert!(ill(&mut record, 0, true).is_some());
        for _ in 0..POLICY.volume_min / 2 - 1 {
            record.succeed(seconds(11), &POLICY);
            assert_eq!(record.fail(seconds(11), &POLICY, true), None, "too few to tell");
        }
    }

    #[test]
    fn what_failed_long_ago_is_forgotten() {
        let mut record = Record::default();
        for window in 0..10 {
            for _ in 0..9 {
                record.succeed(seconds(window * 30), &POLICY);
                assert_eq!(record.fail(seconds(window * 30), &POLICY, true), None);
            }
        }
    }

    #[test]
    fn a_stack_that_works_again_returns_early_and_slowly() {
        let mut record = gone_at(0);
        record.succeed(seconds(4), &POLICY);
        assert!(!record.is_ejected(seconds(4)));
        assert_eq!(record.returned(seconds(4), &POLICY), 0.1);
        assert_eq!(record.returned(seconds(19), &POLICY), 0.55);
        assert_eq!(record.returned(seconds(34), &POLICY), 1.0);
        record.succeed(seconds(34), &POLICY);
        assert_eq!(record.returned(seconds(5), &POLICY), 1.0, "it is forgiven");
    }

    proptest! {
        #[test]
        fn sessions_only_come_back_until_it_is_ejected_again(
            pauses_ms in proptest::collection::vec(0..5_000_u64, 1..40),
        ) {
            let mut record = gone_at(0);
            let mut now = Moment(0);
            let mut before = 0.0;
            for pause_ms in pauses_ms {
                now = now + Duration::from_millis(pause_ms);
                let returned = record.returned(now, &POLICY);
                prop_assert!(returned >= before, "{returned} after {before}");
                prop_assert_eq!(returned == 0.0, record.is_ejected(now));
                before = returned;
                record.succeed(now, &POLICY);
            }
        }

        #[test]
        fn the_window_counts_exactly(events in proptest::collection::vec((any::<bool>(), 0..9_000_u64), 1..200)) {
            let mut window = Window::default();
            let mut now = Moment(0);
            let mut counted = Vec::new();
            for (success, pause_ms) in events {
                now = now + Duration::from_millis(pause_ms);
                window.count(success, now, POLICY.window);
                counted.push((now.0 / 3_000, success));
            }
            let newest = now.0 / 3_000;
            let recent: Vec<bool> = counted.iter().filter(|(bucket, _)| bucket + 10 > newest).map(|(_, success)| *success).collect();
            let succeeded = recent.iter().filter(|success| **success).count();
            prop_assert_eq!(window.success_percent(1), Some((succeeded * 100 / recent.len()) as u8));
        }
    }
}
