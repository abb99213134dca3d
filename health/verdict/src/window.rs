//! Windows: what every vantage saw in the last closed ticks, per region and component.

use std::collections::BTreeMap;

use topology::{Component, NodeId, RegionId, Tick, policy::HealthPolicy};

use crate::{Latency, Observation, TickReport};

/// Reports older than this many ticks are refused: no decision is made on stale samples (invariant 4).
pub const FRESH_TICKS: u64 = 3;
/// Most vantages remembered per tick; more than any fleet has, so that made-up names cannot fill the memory.
pub const VANTAGES_MAX: usize = 4_096;

/// What was seen of one component of one region in one tick, per vantage, probes and traffic together.
pub type TickSeen = BTreeMap<NodeId, Observation>;

/// Everything seen in the last closed ticks.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    seen: BTreeMap<(RegionId, Component), BTreeMap<Tick, TickSeen>>,
}

/// Why a report does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwanted {
    /// The tick is not over yet; the vantage's clock is ahead of ours.
    #[error("tick {0:?} is not closed yet; is the clock of {1} ahead?")]
    NotClosed(Tick, NodeId),
    /// Too old to decide on.
    #[error("tick {0:?} of {1} is more than {FRESH_TICKS} ticks old")]
    Stale(Tick, NodeId),
    /// More vantages than can be real.
    #[error("more than {VANTAGES_MAX} vantages report")]
    TooManyVantages,
}

impl Windows {
    /// Takes a report. `last_closed` is the newest tick that is over. A second report of the same vantage and tick
    /// replaces the first, so that repeating one after a reconnect does no harm.
    pub fn take(&mut self, report: TickReport, last_closed: Tick) -> Result<(), Unwanted> {
        let TickReport {
            vantage,
            tick,
            observations,
            ..
        } = report;
        if tick > last_closed {
            return Err(Unwanted::NotClosed(tick, vantage));
        }
        if last_closed.0 - tick.0 >= FRESH_TICKS {
            return Err(Unwanted::Stale(tick, vantage));
        }
        let mut merged: BTreeMap<(RegionId, Component), Observation> = BTreeMap::new();
        for observation in observations {
            let key = (observation.region.clone(), observation.component);
            match merged.get_mut(&key) {
                Some(seen) => seen.merge(&observation),
                None => drop(merged.insert(key, observation)),
            }
        }
        for (key, observation) in merged {
            let seen = self.seen.entry(key).or_default().entry(tick).or_default();
            if seen.len() >= VANTAGES_MAX && !seen.contains_key(&vantage) {
                return Err(Unwanted::TooManyVantages);
            }
            seen.insert(vantage.clone(), observation);
        }
        Ok(())
    }

    /// Forgets what no trigger of the policy looks at any more, and regions that no longer exist.
    pub fn forget(&mut self, policy: &HealthPolicy, last_closed: Tick, exists: impl Fn(&RegionId) -> bool) {
        let oldest = last_closed.back(retained_ticks(policy));
        self.seen.retain(|(region, _), _| exists(region));
        for ticks in self.seen.values_mut() {
            *ticks = ticks.split_off(&oldest);
        }
    }

    /// The ticks up to `last_closed` in which anything was seen, oldest first.
    pub fn ticks(&self, region: &RegionId, component: Component, last_closed: Tick) -> Vec<(Tick, &TickSeen)> {
        let key = (region.clone(), component);
        let ticks = self
            .seen
            .get(&key)
            .into_iter()
            .flat_map(|ticks| ticks.range(..=last_closed));
        ticks.map(|(tick, seen)| (*tick, seen)).collect()
    }

    /// The vantages that reported anything in a tick.
    pub fn vantages(&self, tick: Tick) -> usize {
        let mut vantages: Vec<&NodeId> = self
            .seen
            .values()
            .filter_map(|ticks| ticks.get(&tick))
            .flat_map(BTreeMap::keys)
            .collect();
        vantages.sort_unstable();
        vantages.dedup();
        vantages.len()
    }
}

/// Ticks a window keeps: enough for every trigger to fire and to clear again.
pub fn retained_ticks(policy: &HealthPolicy) -> u64 {
    let fall = policy
        .gateway_ticks
        .max(policy.asr_error_ticks)
        .max(policy.asr_p99_ticks)
        .max(policy.edge_asr_ticks);
    let rise = policy.recover_ticks.max(policy.edge_asr_recover_ticks);
    u64::from(fall + rise) + FRESH_TICKS
}

/// All vantages' latencies in one sketch.
pub fn merged_latency<'a>(ticks: impl IntoIterator<Item = &'a TickSeen>) -> Latency {
    let mut merged = Latency::default();
    for observation in ticks.into_iter().flat_map(BTreeMap::values) {
        merged.merge(&observation.latency);
    }
    merged
}
