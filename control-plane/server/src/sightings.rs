//! What reports say besides health: replication lags, and how a new version of the stack does.

use std::collections::BTreeMap;

use planning::{Lag, RolloutSeen};
use topology::{Moment, Plan, RegionId, Tick};
use verdict::{Latency, ReplicationLag, VersionSeen};

/// The newest lags, and sums since the current rollout step began.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    lags: BTreeMap<RegionId, BTreeMap<String, Lag>>,
    step: Option<(String, Moment)>,
    versions: BTreeMap<String, Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    sessions: u32,
    turns_succeeded: u64,
    turns_failed: u64,
    latency: Latency,
    underruns: u64,
    gpu_memory_errors: u64,
}

impl Sightings {
    /// Takes what a report that counts says. Only classes the policy knows are kept, of regions that exist.
    pub(crate) fn take(
        &mut self,
        tick: Tick,
        replication: &[ReplicationLag],
        versions: &[VersionSeen],
        knows: impl Fn(&RegionId, &str) -> bool,
    ) {
        for ReplicationLag { region, class, behind } in replication {
            if !knows(region, class) {
                continue;
            }
            let (behind, at) = (*behind, tick.end());
            let known = self.lags.entry(region.clone()).or_default().entry(class.clone());
            let known = known.or_insert(Lag { behind, at });
            // Of two that measured in the same tick the worse counts: loss is what is feared.
            if at > known.at || (at == known.at && behind > known.behind) {
                *known = Lag { behind, at };
            }
        }
        for seen in versions {
            if self.step.is_some() {
                self.versions.entry(seen.version.clone()).or_default().add(seen);
            }
        }
    }

    /// The newest lags.
    pub(crate) fn lags(&self) -> BTreeMap<RegionId, BTreeMap<String, Lag>> {
        self.lags.clone()
    }

    /// The plan in force. With a new step of its rollout counting begins anew; whoever takes a report says so first, or
    /// the first report of a step would be taken for one of nothing.
    pub(crate) fn follow(&mut self, plan: Option<&Plan>) {
        let rollout = plan.and_then(|plan| plan.rollout.as_ref());
        let step = rollout.map(|rollout| (rollout.version.clone(), rollout.since));
        if self.step != step {
            (self.step, self.versions) = (step, BTreeMap::new());
        }
    }

    /// What was seen of the version that `plan` rolls out, since its current step began.
    pub(crate) fn rollout(&mut self, plan: Option<&Plan>) -> Option<RolloutSeen> {
        self.follow(plan);
        let (version, _) = self.step.as_ref()?;
        let new = self.versions.get(version)?;
        let mut old = Latency::default();
        for (_, tally) in self.versions.iter().filter(|(name, _)| *name != version) {
            old.merge(&tally.latency);
        }
        Some(RolloutSeen {
            version: version.clone(),
            sessions: new.sessions,
            turns_succeeded: new.turns_succeeded,
            turns_failed: new.turns_failed,
            p95_ms: new.latency.quantile(0.95),
            old_p95_ms: old.quantile(0.95),
            underruns: new.underruns,
            gpu_memory_errors: new.gpu_memory_errors,
        })
    }
}

impl Tally {
    fn add(&mut self, seen: &VersionSeen) {
        self.sessions = self.sessions.saturating_add(seen.sessions);
        self.turns_succeeded += u64::from(seen.turns_succeeded);
        self.turns_failed += u64::from(seen.turns_failed);
        self.latency.merge(&seen.latency);
        self.underruns += u64::from(seen.underruns);
        self.gpu_memory_errors += u64::from(seen.gpu_memory_errors);
    }
}
