//! What this edge has seen of the regions: round trips, failures in a row, and what its traffic came to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use routing::{Decision, Ejection, Ejections, Request, Table, User};
use topology::{Moment, RegionId};

use crate::traffic::{Took, Traffic};

/// Weight of a new round trip in the moving average: after ten connections nine tenths of the old value are forgotten,
/// while one slow handshake moves it by a fifth only.
const RTT_WEIGHT: f64 = 0.2;

/// Shared by all connections. The lock is held for microseconds and never across an await.
#[derive(Debug, Default)]
pub struct Seen {
    inner: Mutex<Inner>,
    /// What is reported of the current tick.
    pub traffic: Traffic,
}

#[derive(Debug, Default)]
struct Inner {
    ejections: Ejections,
    rtt_ms: BTreeMap<RegionId, f64>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
        drop(inner);
        self.traffic.reached(region, took);
    }

    /// Takes the round trips the probes smoothed over the last ticks. They come from every region and evenly, so they
    /// replace what connections of devices made of it in the meantime.
    pub fn probed(&self, rtt_ms: &BTreeMap<RegionId, f64>) {
        let mut inner = self.lock();
        for (region, ms) in rtt_ms {
            inner.rtt_ms.insert(region.clone(), *ms);
        }
    }

    /// A region answered an upgrade, this long after it was asked; everything held against it is forgiven.
    pub fn answered(&self, region: &RegionId, took: Duration) {
        self.lock().ejections.succeed(region);
        self.traffic.took(region, Took::Upgrade, took);
    }

    /// The same for a connection that requests will use.
    pub fn accepted(&self, region: &RegionId, took: Duration) {
        self.lock().ejections.succeed(region);
        self.traffic.took(region, Took::Connection, took);
    }

    /// A region did not take a session or a request.
    pub fn refused(&self, region: &RegionId, why: &str, now: Moment) -> Option<Ejection> {
        self.traffic.refused(region, why);
        self.lock().ejections.fail(region, now)
    }

    /// A region lost a session or a request in the middle; `version` is that of the session's stack.
    pub fn lost(&self, region: &RegionId, version: Option<&str>, why: &str, now: Moment) -> Option<Ejection> {
        self.traffic.lost(region, version, why);
        self.lock().ejections.fail(region, now)
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

#[cfg(test)]
mod tests {
    use super::*;

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
