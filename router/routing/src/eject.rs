//! Passive ejection: a region that fails this edge several times in a row is left alone for a while.
//!
//! Failures are connections that could not be made and sessions that died in the middle; a session that ends with a Close
//! frame is never one. Ejection only reorders this edge's own choices: moving the fleet is the leader's business, and when
//! every region is ejected, [`pick`](crate::pick::pick) ignores ejection.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use topology::{Moment, RegionId};

/// Failures in a row that eject: one may be chance, two a rolling restart, three is a pattern.
const FAILURES_IN_A_ROW: u32 = 3;
/// First ejection: one tick, after which probes of other vantages will have spoken too.
const FIRST: Duration = Duration::from_secs(10);
/// Longest ejection: a region that is healthy again is found within five minutes even without help.
const LONGEST: Duration = Duration::from_secs(300);

/// What this edge holds against each region.
#[derive(Debug, Clone, Default)]
pub struct Ejections(BTreeMap<RegionId, Record>);

#[derive(Debug, Clone, Default)]
struct Record {
    failures_in_a_row: u32,
    times: u32,
    until: Moment,
}

/// A region was just ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// When it is tried again.
    pub until: Moment,
    /// How many times in a row it was ejected, from 1.
    pub times: u32,
}

impl Ejections {
    /// Counts a failure; says so when it was the one that ejects.
    pub fn fail(&mut self, region: &RegionId, now: Moment) -> Option<Ejection> {
        let record = self.0.entry(region.clone()).or_default();
        record.failures_in_a_row = record.failures_in_a_row.saturating_add(1);
        // Two hundred sessions that die together are one event: what still fails during an ejection does not extend it.
        if record.failures_in_a_row < FAILURES_IN_A_ROW || now < record.until {
            return None;
        }
        // The count is kept, so the first failure after the ejection ends ejects again, for longer.
        record.times = record.times.saturating_add(1);
        record.until = now + FIRST.saturating_mul(record.times).min(LONGEST);
        Some(Ejection {
            until: record.until,
            times: record.times,
        })
    }

    /// Forgives everything: the region works.
    pub fn succeed(&mut self, region: &RegionId) {
        self.0.remove(region);
    }

    /// Regions to stay away from now.
    pub fn ejected(&self, now: Moment) -> BTreeSet<RegionId> {
        self.0
            .iter()
            .filter(|(_, record)| now < record.until)
            .map(|(region, _)| region.clone())
            .collect()
    }

    /// Drops what is held against regions that are no more.
    pub fn retain(&mut self, exists: impl Fn(&RegionId) -> bool) {
        self.0.retain(|region, _| exists(region));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Moment {
        Moment(s * 1000)
    }

    #[test]
    fn three_failures_in_a_row_eject_for_ten_seconds_then_longer() {
        let region = RegionId::new("us-east").unwrap();
        let mut ejections = Ejections::default();
        assert_eq!(ejections.fail(&region, seconds(0)), None);
        assert_eq!(ejections.fail(&region, seconds(0)), None);
        let ejection = ejections.fail(&region, seconds(0)).unwrap();
        assert_eq!((ejection.until, ejection.times), (seconds(10), 1));
        assert!(ejections.ejected(seconds(9)).contains(&region));
        assert!(ejections.ejected(seconds(10)).is_empty(), "it is tried again");

        assert_eq!(ejections.fail(&region, seconds(9)), None, "the same event, seen late");
        let again = ejections.fail(&region, seconds(11)).unwrap();
        assert_eq!((again.until, again.times), (seconds(31), 2));
    }

    #[test]
    fn a_success_in_between_starts_over() {
        let region = RegionId::new("us-east").unwrap();
        let mut ejections = Ejections::default();
        for _ in 0..10 {
            assert_eq!(ejections.fail(&region, seconds(0)), None);
            assert_eq!(ejections.fail(&region, seconds(0)), None);
            ejections.succeed(&region);
        }
        assert!(ejections.ejected(seconds(0)).is_empty());
    }

    #[test]
    fn no_ejection_is_longer_than_five_minutes() {
        let region = RegionId::new("us-east").unwrap();
        let mut ejections = Ejections::default();
        let mut now = seconds(0);
        let mut last = None;
        for _ in 0..100 {
            if let Some(ejection) = ejections.fail(&region, now) {
                assert!(ejection.until.since(now) <= LONGEST);
                now = ejection.until;
                last = Some(ejection.times);
            }
        }
        assert!(last > Some(30));
    }
}
