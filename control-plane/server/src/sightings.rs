//! Observations in reports besides health: replication lags, and the results of a new version of the stack.

use std::{collections::BTreeMap, time::Duration};

use planning::{Lag, RolloutSeen};
use topology::{Moment, Plan, RegionId, Tick};
use verdict::{Latency, ReplicationLag, VersionSeen};

/// The newest replication lags, and tallies since the current rollout step began: in all, and tick by tick for the
/// longest window that a policy may have (`rollout.window`).
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    lags: BTreeMap<RegionId, BTreeMap<String, Lag>>,
    step: Option<(String, Moment)>,
    versions: Tallies,
    ticks: BTreeMap<Tick, Tallies>,
}

/// Tallies by version of the stack.
type Tallies = BTreeMap<String, Tally>;

/// Longest `rollout.window` of a policy.
const WINDOW_MAX: Duration = Duration::from_secs(3600);

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
    /// Takes the observations of a report that counts. Keeps lags only of known classes and existing regions.
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
            // Of two lags measured in the same tick the larger counts, because the danger is loss of data.
            if at > known.at || (at == known.at && behind > known.behind) {
                *known = Lag { behind, at };
            }
        }
        for seen in versions {
            if self.step.is_some() {
                let of_tick = self.ticks.entry(tick).or_default();
                for tallies in [&mut self.versions, of_tick] {
                    tallies.entry(seen.version.clone()).or_default().add(seen);
                }
            }
        }
        if let Some((newest, _)) = self.ticks.last_key_value() {
            let first = first_within(*newest, WINDOW_MAX);
            self.ticks.retain(|tick, _| *tick >= first);
        }
    }

    /// Forgets what was dated by a clock that has been set back. A lag of the future would count as measured just now, and no
    /// newer one would replace it until that moment; so would ticks of a rollout push out the newest ones. The sums of a step
    /// have no date.
    pub(crate) fn forget_times(&mut self) {
        self.lags.clear();
        self.ticks.clear();
    }

    /// The newest lag of every class, by region.
    pub(crate) fn lags(&self) -> BTreeMap<RegionId, BTreeMap<String, Lag>> {
        self.lags.clone()
    }

    /// Takes the plan in force, and starts counting anew with a new step of its rollout. Callers must do so before they
    /// take a report; otherwise the first report of a step would count for the step before.
    pub(crate) fn start_step_of(&mut self, plan: Option<&Plan>) {
        let rollout = plan.and_then(|plan| plan.rollout.as_ref());
        let step = rollout.map(|rollout| (rollout.version.clone(), rollout.since));
        if self.step != step {
            (self.step, self.versions, self.ticks) = (step, BTreeMap::new(), BTreeMap::new());
        }
    }

    /// Tallies of the version that `plan` rolls out: since its current step began, and over the ticks up to `newest`
    /// within `window`.
    pub(crate) fn rollout(&mut self, plan: Option<&Plan>, newest: Tick, window: Duration) -> Option<RolloutSeen> {
        self.start_step_of(plan);
        let (version, _) = self.step.as_ref()?;
        let mut seen = seen_of(version, &[&self.versions])?;
        let recent: Vec<&Tallies> = self
            .ticks
            .range(first_within(newest, window)..)
            .map(|(_, tallies)| tallies)
            .collect();
        seen.recent = seen_of(version, &recent).map(Box::new);
        Some(seen)
    }
}

/// The first tick within `window` before `newest`.
fn first_within(newest: Tick, window: Duration) -> Tick {
    let ticks = u64::try_from(window.as_millis()).unwrap_or(u64::MAX) / Tick::LENGTH_MS;
    newest.back(ticks.saturating_sub(1))
}

fn seen_of(version: &str, tallies: &[&Tallies]) -> Option<RolloutSeen> {
    let (mut new, mut old) = (None::<Tally>, Latency::default());
    for (name, tally) in tallies.iter().copied().flatten() {
        if name == version {
            new.get_or_insert_default().merge(tally);
        } else {
            old.merge(&tally.latency);
        }
    }
    let new = new?;
    Some(RolloutSeen {
        version: version.to_owned(),
        sessions: new.sessions,
        turns_succeeded: new.turns_succeeded,
        turns_failed: new.turns_failed,
        p95_ms: new.latency.quantile(0.95),
        old_p95_ms: old.quantile(0.95),
        underruns: new.underruns,
        gpu_memory_errors: new.gpu_memory_errors,
        recent: None,
    })
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

    fn merge(&mut self, other: &Self) {
        self.sessions = self.sessions.saturating_add(other.sessions);
        self.turns_succeeded += other.turns_succeeded;
        self.turns_failed += other.turns_failed;
        self.latency.merge(&other.latency);
        self.underruns += other.underruns;
        self.gpu_memory_errors += other.gpu_memory_errors;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::{Rollout, fixtures::three_primaries};

    fn seen(turns_succeeded: u32, turns_failed: u32) -> VersionSeen {
        VersionSeen {
            version: "v2".to_owned(),
            sessions: 10,
            turns_succeeded,
            turns_failed,
            latency: Latency::default(),
            underruns: 0,
            gpu_memory_errors: 0,
        }
    }

    fn rolling_out() -> Plan {
        let mut plan = three_primaries().plan;
        plan.rollout = Some(Rollout {
            version: "v2".to_owned(),
            percent: 10,
            since: Moment(0),
            action: "a1".to_owned(),
        });
        plan
    }

    #[test]
    fn the_last_minutes_are_counted_beside_the_whole_step() {
        let plan = rolling_out();
        let mut sightings = Sightings::default();
        sightings.start_step_of(Some(&plan));
        let knows = |_: &RegionId, _: &str| true;
        // A good day, then a bad minute.
        for tick in 0..8_640 {
            sightings.take(Tick(tick), &[], &[seen(100, 0)], knows);
        }
        for tick in 8_640..8_646 {
            sightings.take(Tick(tick), &[], &[seen(90, 10)], knows);
        }
        assert!(sightings.ticks.len() <= 360, "{} ticks are kept", sightings.ticks.len());
        let minute = Duration::from_secs(60);
        let whole = sightings.rollout(Some(&plan), Tick(8_645), minute).unwrap();
        let recent = whole.recent.clone().unwrap();
        assert_eq!((whole.turns_failed, whole.turns_succeeded), (60, 864_540));
        assert_eq!(
            (recent.turns_failed, recent.turns_succeeded, recent.sessions),
            (60, 540, 60)
        );
        // No recent observations.
        let later = sightings.rollout(Some(&plan), Tick(8_652), minute).unwrap();
        assert_eq!(later.recent, None);
    }

    /// Else the good ticks of a clock that was ahead would hide the bad ones that come now.
    #[test]
    fn after_a_clock_was_set_back_only_what_is_seen_since_then_counts_as_lately() {
        let plan = rolling_out();
        let mut sightings = Sightings::default();
        sightings.start_step_of(Some(&plan));
        let knows = |_: &RegionId, _: &str| true;
        for tick in 1_000..1_010 {
            sightings.take(Tick(tick), &[], &[seen(100, 0)], knows);
        }
        sightings.forget_times();
        for tick in 500..506 {
            sightings.take(Tick(tick), &[], &[seen(90, 10)], knows);
        }
        let whole = sightings
            .rollout(Some(&plan), Tick(505), Duration::from_secs(60))
            .unwrap();
        let recent = whole.recent.clone().unwrap();
        assert_eq!((recent.turns_failed, recent.turns_succeeded), (60, 540));
        assert_eq!((whole.turns_failed, whole.turns_succeeded), (60, 1_540));
    }
}
