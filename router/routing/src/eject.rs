//! Passive ejection: this edge avoids a stack that fails for a while, and then gives it its sessions back gradually.
//!
//! A failure is a connection that could not be made or a session that broke in the middle. A session that ends with a
//! Close frame is never a failure. Ejection only reorders the choices of this edge; moving the whole fleet is the
//! leader's task. A region is ejected when all of its stacks are.

use std::time::Duration;

use topology::Moment;

use crate::Policy;

/// Buckets of the window, so that it forgets a tenth at a time. The counts are exact, because an average weighted by
/// arrival lets a burst of successes hide the failures before it.
const BUCKETS: usize = 10;

/// The failures and successes of one stack, as this edge saw them.
#[derive(Debug, Clone, Default)]
pub struct Record {
    failures_in_a_row: u32,
    window: Window,
    /// Ejections in a row, without a healthy period between them.
    times: u32,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    until: Moment,
    cause: Cause,
}

/// The ejection that has just begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Time at which this edge tries the stack again.
    pub until: Moment,
    /// Number of the ejection among those in a row, from 1.
    pub times: u32,
    /// The failures that caused the ejection.
    pub cause: Cause,
}

/// The failures that cause an ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Several consecutive failures without a success: the stack is dead.
    ConsecutiveFailures,
    /// Only this percentage of the attempts in the window succeeded: the stack is degraded.
    SuccessRate(u8),
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ConsecutiveFailures => f.write_str("failures in a row"),
            Self::SuccessRate(percent) => write!(f, "{percent} % succeeded"),
        }
    }
}

impl Record {
    /// Counts a failure. Returns the ejection if this failure causes one. A merely degraded stack is ejected only if
    /// `may_eject_ill`.
    pub fn fail(&mut self, now: Moment, policy: &Policy, may_eject_ill: bool) -> Option<Ejection> {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.window.count(false, now, policy.window);
        // Two hundred sessions that break together are one event, so failures during an ejection do not extend it.
        if self.is_ejected(now) {
            return None;
        }
        let cause = if self.failures_in_a_row >= policy.failures_in_a_row {
            Cause::ConsecutiveFailures
        } else {
            self.low_success_rate(policy).filter(|_| may_eject_ill)?
        };
        Some(self.eject(cause, now, policy))
    }

    /// Counts a failure of a kind for which only the success rate matters, not consecutive failures.
    pub fn fail_in_part(&mut self, now: Moment, policy: &Policy, may_eject: bool) -> Option<Ejection> {
        self.window.count(false, now, policy.window);
        if self.is_ejected(now) {
            return None;
        }
        let cause = self.low_success_rate(policy).filter(|_| may_eject)?;
        Some(self.eject(cause, now, policy))
    }

    /// Successes and failures within the window.
    pub fn counts(&self, now: Moment, policy: &Policy) -> (u64, u64) {
        self.window.sums(now, policy.window)
    }

    fn low_success_rate(&self, policy: &Policy) -> Option<Cause> {
        let percent = self.window.success_percent(policy.volume_min)?;
        (percent < policy.success_percent_min).then_some(Cause::SuccessRate(percent))
    }

    fn eject(&mut self, cause: Cause, now: Moment, policy: &Policy) -> Ejection {
        // The count of consecutive failures is kept, so that the first failure after the ejection ejects again, for
        // longer. The window is cleared, because its failures led to this ejection and must not lead to the next.
        self.window = Window::default();
        self.times = self.times.saturating_add(1);
        let until = now + policy.ejection.saturating_mul(self.times).min(policy.ejection_max);
        self.last = Some(Last { until, cause });
        Ejection {
            until,
            times: self.times,
            cause,
        }
    }

    /// Counts a success. A success ends the ejection of a stack that seemed dead. After a healthy period it clears the
    /// record of ejections.
    pub fn succeed(&mut self, now: Moment, policy: &Policy) {
        self.failures_in_a_row = 0;
        self.window.count(true, now, policy.window);
        let Some(last) = &mut self.last else { return };
        if now < last.until {
            if last.cause == Cause::ConsecutiveFailures {
                last.until = now;
            }
        } else if now.since(last.until) >= policy.slow_start {
            (self.last, self.times) = (None, 0);
        }
    }

    /// Whether this edge avoids the stack now.
    pub fn is_ejected(&self, now: Moment) -> bool {
        self.last.is_some_and(|last| now < last.until)
    }

    /// The end of the ejection, if the stack is ejected.
    pub fn ejected_until(&self, now: Moment) -> Option<Moment> {
        self.last.map(|last| last.until).filter(|until| now < *until)
    }

    /// The share of its sessions that the stack gets back so far, 0 to 1. It only grows until the next ejection.
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

/// Successes and failures in the last [`BUCKETS`] buckets of a window.
#[derive(Debug, Clone, Default)]
struct Window {
    /// Successes and failures of bucket `newest` and the buckets before it. Bucket `n` is stored at `n` modulo the
    /// length.
    buckets: [(u32, u32); BUCKETS],
    newest: u64,
}

impl Window {
    fn bucket(now: Moment, window: Duration) -> u64 {
        let bucket_ms = (window.as_millis() as u64 / BUCKETS as u64).max(1);
        now.0 / bucket_ms
    }

    fn count(&mut self, success: bool, now: Moment, window: Duration) {
        let bucket = Self::bucket(now, window);
        // If the clock was set back, the attempt counts in the newest bucket.
        for passed in (self.newest + 1..=bucket).rev().take(BUCKETS) {
            self.buckets[passed as usize % BUCKETS] = (0, 0);
        }
        self.newest = self.newest.max(bucket);
        let (succeeded, failed) = &mut self.buckets[self.newest as usize % BUCKETS];
        let counted = if success { succeeded } else { failed };
        *counted = counted.saturating_add(1);
    }

    /// Sums the buckets that are still within the window at `now`, even if nothing was counted since.
    fn sums(&self, now: Moment, window: Duration) -> (u64, u64) {
        let bucket = Self::bucket(now, window);
        let held = self.newest.saturating_sub(BUCKETS as u64 - 1)..=self.newest;
        let recent = held.filter(|n| n + BUCKETS as u64 > bucket);
        recent.fold((0, 0), |(succeeded, failed), n| {
            let (more_succeeded, more_failed) = self.buckets[n as usize % BUCKETS];
            (succeeded + u64::from(more_succeeded), failed + u64::from(more_failed))
        })
    }

    /// The success rate in percent. `None` when the window has fewer attempts than `volume_min`.
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

    /// A number of successes, after which every second attempt fails.
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

    /// Otherwise the first failure of a stack that recovered from a bad half minute would eject it again.
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

    #[test]
    fn failures_in_a_row_of_which_only_the_share_counts_eject_when_they_are_many() {
        let mut record = Record::default();
        for _ in 1..POLICY.volume_min {
            assert_eq!(record.fail_in_part(seconds(0), &POLICY, true), None, "too few to tell");
        }
        assert_eq!(record.fail_in_part(seconds(0), &POLICY, false), None);
        let ejection = record.fail_in_part(seconds(1), &POLICY, true).unwrap();
        assert_eq!((ejection.until, ejection.cause), (seconds(11), Cause::SuccessRate(0)));
    }

    #[test]
    fn what_was_counted_grows_old_though_nothing_more_is() {
        let mut record = Record::default();
        record.succeed(seconds(1), &POLICY);
        record.fail_in_part(seconds(4), &POLICY, true);
        let counts = |s| record.counts(seconds(s), &POLICY);
        assert_eq!(
            [counts(4), counts(29), counts(30), counts(33)],
            [(1, 1), (1, 1), (0, 1), (0, 0)]
        );
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
