//! What this edge has seen of the regions: round trips, failures in a row, and the counts of the current tick.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use routing::{Decision, Ejection, Ejections, Request, Table, User};
use topology::{Component, Moment, RegionId};
use verdict::{Observation, Source};

/// Weight of a new round trip in the moving average: after ten connections nine tenths of the old value are forgotten,
/// while one slow handshake moves it by a fifth only.
const RTT_WEIGHT: f64 = 0.2;

/// Shared by all connections. The lock is held for microseconds and never across an await.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ejections: Ejections,
    rtt_ms: BTreeMap<RegionId, f64>,
    traffic: BTreeMap<RegionId, Observation>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a session goes, given all that was seen.
    pub fn pick(
        &self,
        table: &Table,
        session_key: &str,
        user: User<'_>,
        affinity: Option<&RegionId>,
        tried: &[RegionId],
        now: Moment,
    ) -> Option<Decision> {
        let inner = self.lock();
        let request = Request {
            session_key,
            user,
            affinity,
            tried,
            measured_rtt_ms: &inner.rtt_ms,
            ejected: &inner.ejections.ejected(now),
        };
        routing::pick(table, &request)
    }

    /// A region accepted a TCP connection: one round trip.
    pub fn reached(&self, region: &RegionId, took: Duration) {
        let took_ms = took.as_secs_f64() * 1000.0;
        let mut inner = self.lock();
        let average = inner.rtt_ms.entry(region.clone()).or_insert(took_ms);
        *average += RTT_WEIGHT * (took_ms - *average);
    }

    /// Takes the round trips the probes smoothed over the last ticks. They come from every region and evenly, so they
    /// replace what connections of devices made of it in the meantime.
    pub fn probed(&self, rtt_ms: &BTreeMap<RegionId, f64>) {
        let mut inner = self.lock();
        for (region, ms) in rtt_ms {
            inner.rtt_ms.insert(region.clone(), *ms);
        }
    }

    /// A region answered; everything held against it is forgiven.
    pub fn answered(&self, region: &RegionId, took: Duration) {
        let mut inner = self.lock();
        inner.ejections.succeed(region);
        inner.observation(region).succeed(took.as_secs_f64() * 1000.0);
    }

    /// A connection could not be made, or a session died in the middle.
    pub fn failed(&self, region: &RegionId, why: &str, now: Moment) -> Option<Ejection> {
        let mut inner = self.lock();
        inner.observation(region).fail(why);
        inner.ejections.fail(region, now)
    }

    /// What real traffic saw since the last call.
    pub fn observations(&self) -> Vec<Observation> {
        std::mem::take(&mut self.lock().traffic).into_values().collect()
    }

    /// Smoothed round trips in milliseconds, and the regions ejected now.
    pub fn summary(&self, now: Moment) -> (BTreeMap<RegionId, f64>, BTreeSet<RegionId>) {
        let inner = self.lock();
        (inner.rtt_ms.clone(), inner.ejections.ejected(now))
    }

    /// Forgets regions that are no more, so that what is kept is bounded by the plan.
    pub fn retain(&self, table: &Table) {
        let regions: BTreeSet<&RegionId> = table.regions().map(|(region, _)| region).collect();
        let mut inner = self.lock();
        inner.ejections.retain(|region| regions.contains(region));
        inner.rtt_ms.retain(|region, _| regions.contains(region));
    }
}

impl Inner {
    fn observation(&mut self, region: &RegionId) -> &mut Observation {
        self.traffic
            .entry(region.clone())
            .or_insert_with(|| Observation::new(region.clone(), Component::Gateway, Source::Traffic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_reports_what_traffic_saw_once() {
        let seen = Seen::default();
        let us_east = RegionId::new("us-east").unwrap();
        seen.answered(&us_east, Duration::from_millis(20));
        seen.failed(&us_east, "session lost", Moment(0));
        let observations = seen.observations();
        assert_eq!(observations.len(), 1);
        let seen_once = &observations[0];
        assert_eq!((seen_once.succeeded, seen_once.failed), (1, 1));
        assert_eq!(
            (seen_once.source, seen_once.failure.as_str()),
            (Source::Traffic, "session lost")
        );
        assert_eq!(seen.observations(), []);
    }

    #[test]
    fn one_slow_handshake_does_not_make_a_region_far() {
        let seen = Seen::default();
        let us_east = RegionId::new("us-east").unwrap();
        for ms in [10, 10, 100] {
            seen.reached(&us_east, Duration::from_millis(ms));
        }
        let (rtt_ms, _) = seen.summary(Moment(0));
        assert!((rtt_ms[&us_east] - 28.0).abs() < 1e-6, "{rtt_ms:?}");
    }
}
