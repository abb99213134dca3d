//! The decision: failover, staged restore and levels, under the safety rules of the policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use topology::{
    EdgeState, Intent, IntentKind, Level, Moment, Plan, Policy, Reason, ReasonCode, RegionId, RegionPlan, RegionState,
    Role, Share, Topology, snapshot::digest,
};
use verdict::{Health, Verdict};

use crate::routes::{Headroom, Short, shrink};

/// Everything a decision is made from, besides `now`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// What exists.
    pub topology: Topology,
    /// The rules.
    pub policy: Policy,
    /// The plan in force; none before the first.
    pub current: Option<Plan>,
    /// What is believed about every region. A region without a verdict has not been seen yet.
    pub verdicts: BTreeMap<RegionId, Verdict>,
    /// What operators asked for.
    pub intents: Vec<Intent>,
    /// Fencing token of the leader that asks.
    pub epoch: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The next plan; none when nothing changes.
    pub plan: Option<Plan>,
    /// Why.
    pub report: Report,
}

/// Why a decision is what it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// What changed.
    pub changed: Vec<Reason>,
    /// What a rule refused.
    pub refused: Vec<Reason>,
    /// What it waits for.
    pub waiting: Vec<Reason>,
}

/// Decides.
pub fn plan(input: &Input, now: Moment) -> Outcome {
    let mut planner = Planner::new(input, now);
    planner.follow_topology();
    for region in primaries(&input.topology) {
        planner.decide(&region);
    }
    planner.repair_routes();
    planner.set_levels();
    planner.finish()
}

/// When, after `now`, the decision may change with no new fact: the end of a restore step or of a freeze. `None` when only
/// facts matter.
pub fn next_wake(input: &Input, now: Moment) -> Option<Moment> {
    let regions = input.current.iter().flat_map(|plan| &plan.regions);
    let restoring = regions.filter(|(_, region)| matches!(region.state, RegionState::Restoring(_)));
    let steps = restoring.map(|(id, region)| step_end(input, id, region.since));
    let freezes = input.intents.iter().filter(|intent| intent.kind == IntentKind::Freeze);
    steps
        .chain(freezes.map(|freeze| freeze.expires_at))
        .filter(|wake| *wake > now)
        .min()
}

/// A restore step ends when it was in force, and the region healthy, for as long as the policy holds it.
fn step_end(input: &Input, region: &RegionId, since: Moment) -> Moment {
    let healthy_since = input.verdicts.get(region).and_then(|verdict| verdict.healthy_since);
    healthy_since.unwrap_or(since).max(since) + input.policy.restore.step_hold
}

fn primaries(topology: &Topology) -> Vec<RegionId> {
    topology.primaries().map(|region| region.id.clone()).collect()
}

struct Planner<'i> {
    input: &'i Input,
    now: Moment,
    next: Plan,
    /// Primaries that take sessions by the plan in force and turned bad, or begin to: what was not yet acted on.
    turned_bad: BTreeSet<RegionId>,
    report: Report,
}

impl<'i> Planner<'i> {
    fn new(input: &'i Input, now: Moment) -> Self {
        let next = input.current.clone().unwrap_or_else(|| Plan {
            generation: 0,
            epoch: 0,
            created_at: now,
            documents: String::new(),
            regions: BTreeMap::new(),
            routes: BTreeMap::new(),
            edges: BTreeMap::new(),
            reasons: Vec::new(),
        });
        let is_bad = |region: &RegionId| {
            let verdict = input.verdicts.get(region);
            verdict.is_some_and(|it| it.health == Health::Down || it.health == Health::Suspect && it.failing)
        };
        let takes = |region: &RegionId| {
            next.regions
                .get(region)
                .is_some_and(|it| it.state != RegionState::Evacuated)
        };
        let turned_bad = primaries(&input.topology)
            .into_iter()
            .filter(|it| is_bad(it) && takes(it))
            .collect();
        Self {
            input,
            now,
            next,
            turned_bad,
            report: Report::default(),
        }
    }

    /// Regions and edges that came or went.
    fn follow_topology(&mut self) {
        let Input { topology, policy, .. } = self.input;
        let documents = digest(topology, policy.dns.ttl_s(), &policy.probe);
        let changed = self.next.documents != documents;
        self.next.documents = documents;
        self.next.regions.retain(|id, _| topology.regions.contains_key(id));
        self.next.edges.retain(|id, _| topology.edges.contains_key(id));
        for region in topology.regions.values() {
            let (since, level) = (self.now, Level::L0);
            let serving = RegionPlan {
                state: RegionState::Serving,
                level,
                since,
            };
            let plan = self.next.regions.entry(region.id.clone()).or_insert(serving);
            if region.role == Role::Backup {
                // Only a primary leaves its sessions to others; one that was made a backup has none to leave.
                plan.state = RegionState::Serving;
            }
        }
        for edge in topology.edges.keys() {
            self.next.edges.entry(edge.clone()).or_insert(EdgeState::Serving);
        }
        let is_primary = |id: &RegionId| matches!(topology.regions.get(id), Some(it) if it.role != Role::Backup);
        self.next.routes.retain(|id, shares| {
            is_primary(id) && shares.iter().all(|share| topology.regions.contains_key(&share.region))
        });
        for region in topology.primaries() {
            if self.next.routes.contains_key(&region.id) {
                continue;
            }
            // A route lost with its target: an evacuated region stays evacuated if its other backups can take it, or else
            // takes its sessions back, and its verdict moves them on if it is bad.
            let away = matches!(self.next.regions.get(&region.id), Some(it) if it.state != RegionState::Serving);
            match self.shares_away(&region.id, 100) {
                Ok(shares) if away => self.set(&region.id, RegionState::Evacuated, shares),
                _ if away => self.set(&region.id, RegionState::Serving, vec![home(&region.id)]),
                _ => drop(self.next.routes.insert(region.id.clone(), vec![home(&region.id)])),
            }
        }
        if changed {
            let genesis = self.input.current.is_none();
            let (code, text) = if genesis {
                (ReasonCode::Genesis, "first plan: every primary serves its own sessions")
            } else {
                (
                    ReasonCode::TopologyChanged,
                    "the topology, the DNS TTL or the probe policy changed",
                )
            };
            self.report.changed.push(Reason {
                code,
                region: None,
                text: text.to_owned(),
                evidence: vec![],
            });
        }
    }

    /// Failover or restore of one primary.
    fn decide(&mut self, region: &RegionId) {
        let Some(plan) = self.next.regions.get(region).cloned() else {
            return;
        };
        let asked = |kind: fn(&IntentKind) -> Option<&RegionId>| {
            let live = self.input.intents.iter().filter(|intent| intent.is_live(self.now));
            // An intent older than the region's state has been acted on, or was overtaken by events.
            live.filter(|intent| intent.created_at > plan.since)
                .find(|intent| kind(&intent.kind) == Some(region))
        };
        let health = self.health(region);
        match plan.state {
            RegionState::Serving | RegionState::Restoring(_) if asked(failover_of).is_some() => {
                let intent = asked(failover_of).expect("checked by the guard");
                let text = format!("{} moved it: {}", intent.author, intent.reason);
                self.evacuate(region, ReasonCode::ForcedFailover, &text);
            }
            RegionState::Serving if health == Health::Down && self.is_failing(region) => self.fail_over(region),
            RegionState::Serving if health == Health::Down => {
                let text = format!("not moved: {}", self.summary(region));
                self.wait(ReasonCode::TriggerPending, region, text);
            }
            RegionState::Restoring(_) if health == Health::Down => {
                // Not a new evacuation but the end of an attempt to lift one: of the limits only a freeze applies.
                let text = format!("it failed again while returning: {}", self.summary(region));
                if !self.is_frozen(region) {
                    self.evacuate(region, ReasonCode::RestoreAborted, &text);
                }
            }
            RegionState::Restoring(percent) => self.continue_restore(region, percent, plan.since),
            RegionState::Evacuated if asked(restore_of).is_some() => {
                let intent = asked(restore_of).expect("checked by the guard");
                let text = format!("{} asked for its return: {}", intent.author, intent.reason);
                self.begin_restore(region, &text);
            }
            RegionState::Evacuated if health == Health::Healthy => {
                let text = format!("it is healthy again; `meridian restore {region}` brings it back in steps");
                self.wait(ReasonCode::RestoreReady, region, text);
            }
            RegionState::Serving if health == Health::Suspect => {
                let text = self.summary(region);
                self.wait(ReasonCode::TriggerPending, region, text);
            }
            RegionState::Serving if matches!(health, Health::NoData | Health::Blind) => {
                let text = self.summary(region);
                self.wait(ReasonCode::NoData, region, text);
            }
            RegionState::Serving | RegionState::Evacuated => {}
        }
    }

    /// An automatic failover: only if every safety rule agrees.
    fn fail_over(&mut self, region: &RegionId) {
        if self.is_frozen(region) {
            return;
        }
        let policy = &self.input.policy.failover;
        let health_of = |region: &RegionId| self.health(region);
        if !self
            .input
            .topology
            .regions
            .keys()
            .any(|it| matches!(health_of(it), Health::Healthy | Health::Degraded))
        {
            let text = "no region looks healthy, so it may be us who cannot see; weights are kept".to_owned();
            return self.refuse(ReasonCode::EverythingLooksDead, region, text);
        }
        if policy.correlated_hold && self.turned_bad.len() > 1 {
            let names: Vec<&str> = self.turned_bad.iter().map(RegionId::as_str).collect();
            let text = format!(
                "{} turned bad together, so the evidence may be at fault; weights are kept",
                names.join(" and ")
            );
            return self.refuse(ReasonCode::CorrelatedEvidence, region, text);
        }
        let away = |it: &&RegionPlan| it.state != RegionState::Serving;
        let evacuations = self.next.regions.values().filter(away).count();
        if evacuations >= policy.automatic_max as usize {
            let limit = policy.automatic_max;
            let text =
                format!("{evacuations} evacuation in force, and automation may hold {limit}; an operator can move it");
            return self.refuse(ReasonCode::EvacuationLimit, region, text);
        }
        let left = self.next.regions.iter().filter(|(id, it)| {
            *id != region && it.state == RegionState::Serving && !matches!(health_of(id), Health::Down)
        });
        let left = left.count();
        if left < policy.regions_serving_min as usize {
            let min = policy.regions_serving_min;
            let text = format!("{left} regions would be left serving, and {min} is the least");
            return self.refuse(ReasonCode::RegionsServingMin, region, text);
        }
        let text = self.summary(region);
        self.evacuate(region, ReasonCode::Failover, &text);
    }

    /// Whether operators forbade automatic changes; says so about `region`.
    fn is_frozen(&mut self, region: &RegionId) -> bool {
        let live = |intent: &&Intent| intent.is_live(self.now) && intent.kind == IntentKind::Freeze;
        let Some(freeze) = self.input.intents.iter().find(live) else {
            return false;
        };
        let text = format!(
            "automation is frozen by {} until {}: {}",
            freeze.author, freeze.expires_at, freeze.reason
        );
        self.refuse(ReasonCode::Frozen, region, text);
        true
    }

    /// Moves all of a primary's sessions to its backups, if they can take them.
    fn evacuate(&mut self, region: &RegionId, code: ReasonCode, why: &str) {
        match self.shares_away(region, 100) {
            Ok(shares) => {
                let text = format!("{why}; its sessions go to {}", describe(&shares));
                self.set(region, RegionState::Evacuated, shares);
                self.change(code, region, text);
            }
            Err(refusal) => self.report.refused.push(refusal),
        }
    }

    fn begin_restore(&mut self, region: &RegionId, why: &str) {
        let health = self.health(region);
        if health != Health::Healthy {
            let text = format!("{why}; but it is {health}: {}", self.summary(region));
            return self.refuse(ReasonCode::NotHealthy, region, text);
        }
        let first = self.input.policy.restore.steps.first().copied().unwrap_or(100);
        self.restore_to(region, first, why);
    }

    fn continue_restore(&mut self, region: &RegionId, percent: u8, since: Moment) {
        let (health, hold) = (self.health(region), self.input.policy.restore.step_hold);
        if health != Health::Healthy {
            let text = format!("held at {percent} %: it is {health}, {}", self.summary(region));
            return self.wait(ReasonCode::RestoreHold, region, text);
        }
        let end = step_end(self.input, region, since);
        if self.now < end {
            let text = format!("held at {percent} % until {end}");
            return self.wait(ReasonCode::RestoreHold, region, text);
        }
        if self.is_frozen(region) {
            return;
        }
        let next = self
            .input
            .policy
            .restore
            .steps
            .iter()
            .copied()
            .find(|step| *step > percent)
            .unwrap_or(100);
        let held = format!("healthy at {percent} % for {} s", hold.as_secs_f64());
        self.restore_to(region, next, &held);
    }

    fn restore_to(&mut self, region: &RegionId, percent: u8, why: &str) {
        if percent >= 100 {
            self.set(region, RegionState::Serving, vec![home(region)]);
            return self.change(
                ReasonCode::RestoreDone,
                region,
                format!("{why}; it serves all its sessions again"),
            );
        }
        // The sessions that stay away stay where they are; they move on only from a backup that is down.
        let away: Vec<Share> = self.next.routes.get(region).into_iter().flatten().cloned().collect();
        let away: Vec<Share> = away.into_iter().filter(|share| share.region != *region).collect();
        let all_up = away.iter().all(|share| self.health(&share.region) != Health::Down);
        let away = if all_up {
            Ok(shrink(&away, 100 - percent))
        } else {
            self.shares_away(region, 100 - percent)
        };
        match away {
            Ok(away) => {
                let mut shares = vec![Share {
                    region: region.clone(),
                    percent,
                }];
                shares.extend(away);
                let text = format!("{why}; it takes {percent} % of its sessions");
                self.set(region, RegionState::Restoring(percent), shares);
                self.change(ReasonCode::RestoreStep, region, text);
            }
            Err(refusal) => {
                // A healthy home beats backups that cannot hold the rest.
                let text = format!("{why}; all at once, because {}", refusal.text);
                self.set(region, RegionState::Serving, vec![home(region)]);
                self.change(ReasonCode::RestoreDone, region, text);
            }
        }
    }

    /// A backup that went down under the sessions it took, or can no longer hold them: they move on to the next fit one.
    fn repair_routes(&mut self) {
        let routes = self.next.routes.clone();
        for (primary, shares) in routes {
            let planned = Headroom::beside(&self.input.topology, &self.next.routes);
            let away = shares
                .iter()
                .map(|share| &share.region)
                .filter(|target| **target != primary);
            let problem = away.into_iter().find_map(|target| {
                let down = self.health(target) == Health::Down && self.is_failing(target);
                let what = if down {
                    format!("is down: {}", self.summary(target))
                } else {
                    "is over its capacity".into()
                };
                (down || planned.is_over(target)).then(|| format!("backup {target} {what}"))
            });
            let Some(problem) = problem else { continue };
            let at_home = shares
                .iter()
                .find(|share| share.region == primary)
                .map_or(0, |share| share.percent);
            match self.shares_away(&primary, 100 - at_home) {
                Ok(away) if !self.is_frozen(&primary) => {
                    let mut shares: Vec<Share> = shares.into_iter().filter(|share| share.region == primary).collect();
                    let text = format!("{problem}; its sessions go to {}", describe(&away));
                    shares.extend(away);
                    self.next.routes.insert(primary.clone(), shares);
                    self.change(ReasonCode::Failover, &primary, text);
                }
                Ok(_) => {}
                Err(refusal) => self.report.refused.push(refusal),
            }
        }
    }

    fn set_levels(&mut self) {
        let current: Vec<(RegionId, Level)> = self
            .next
            .regions
            .iter()
            .map(|(id, it)| (id.clone(), it.level))
            .collect();
        for (region, level) in current {
            let Some(verdict) = self.input.verdicts.get(&region) else {
                continue;
            };
            // A level is believed only while the region is seen; what nobody sees keeps its level.
            if verdict.level == level || matches!(verdict.health, Health::NoData | Health::Blind) {
                continue;
            }
            let (to, why) = match verdict.level > level {
                true => (verdict.level, "recognition is slow"),
                false => (verdict.level, "recognition was fast for long enough"),
            };
            if self.is_frozen(&region) {
                continue;
            }
            if let Some(plan) = self.next.regions.get_mut(&region) {
                plan.level = to;
            }
            self.change(
                ReasonCode::LevelChanged,
                &region,
                format!("level {level} to {to}: {why}"),
            );
        }
    }

    fn finish(mut self) -> Outcome {
        let plan = if self.report.changed.is_empty() {
            None
        } else {
            self.next.generation += 1;
            self.next.epoch = self.input.epoch;
            self.next.created_at = self.now;
            self.next.reasons.clone_from(&self.report.changed);
            Some(self.next)
        };
        Outcome {
            plan,
            report: self.report,
        }
    }

    /// Shares of `percent` of a primary's sessions over its fit backups, in their order.
    fn shares_away(&self, region: &RegionId, percent: u8) -> Result<Vec<Share>, Reason> {
        let backups = self.input.topology.backups_of(region);
        let fit: Vec<&RegionId> = backups.iter().filter(|backup| self.is_fit(backup)).collect();
        let unfit = || {
            backups
                .iter()
                .filter(|it| !self.is_fit(it))
                .map(|it| format!("{it} is {}", self.health(it)))
        };
        if fit.is_empty() {
            let text = format!("none of its {} backups is fit to take its sessions", backups.len());
            return Err(self.reason(ReasonCode::NoFitBackup, region, text, unfit().collect()));
        }
        let others = self.next.routes.iter().filter(|(primary, _)| *primary != region);
        Headroom::beside(&self.input.topology, others)
            .place(region, percent, fit)
            .map_err(|Short { placed_percent }| {
                let text =
                    format!("its backups have room for {placed_percent} of the {percent} % of its sessions to move");
                self.reason(ReasonCode::NoHeadroom, region, text, unfit().collect())
            })
    }

    fn is_fit(&self, backup: &RegionId) -> bool {
        let serves = self
            .next
            .regions
            .get(backup)
            .is_some_and(|it| it.state == RegionState::Serving);
        serves && matches!(self.health(backup), Health::Healthy | Health::Degraded)
    }

    fn health(&self, region: &RegionId) -> Health {
        self.input
            .verdicts
            .get(region)
            .map_or(Health::NoData, |verdict| verdict.health)
    }

    fn is_failing(&self, region: &RegionId) -> bool {
        self.input.verdicts.get(region).is_some_and(|verdict| verdict.failing)
    }

    fn summary(&self, region: &RegionId) -> String {
        let unseen = || "it has not been seen yet".to_owned();
        self.input
            .verdicts
            .get(region)
            .map_or_else(unseen, |verdict| verdict.summary.clone())
    }

    fn set(&mut self, region: &RegionId, state: RegionState, shares: Vec<Share>) {
        if let Some(plan) = self.next.regions.get_mut(region) {
            // Always later than before, also on a clock that went back: requests count only if they came after it.
            (plan.state, plan.since) = (state, self.now.max(plan.since + Duration::from_millis(1)));
        }
        self.next.routes.insert(region.clone(), shares);
    }

    fn reason(&self, code: ReasonCode, region: &RegionId, text: String, mut evidence: Vec<String>) -> Reason {
        if let Some(verdict) = self.input.verdicts.get(region) {
            evidence.extend(verdict.evidence.iter().cloned());
        }
        Reason {
            code,
            region: Some(region.clone()),
            text,
            evidence,
        }
    }

    fn change(&mut self, code: ReasonCode, region: &RegionId, text: String) {
        let reason = self.reason(code, region, text, vec![]);
        self.report.changed.push(reason);
    }

    fn refuse(&mut self, code: ReasonCode, region: &RegionId, text: String) {
        let reason = self.reason(code, region, text, vec![]);
        self.report.refused.push(reason);
    }

    fn wait(&mut self, code: ReasonCode, region: &RegionId, text: String) {
        let reason = self.reason(code, region, text, vec![]);
        self.report.waiting.push(reason);
    }
}

fn home(region: &RegionId) -> Share {
    Share {
        region: region.clone(),
        percent: 100,
    }
}

fn describe(shares: &[Share]) -> String {
    let shares: Vec<String> = shares
        .iter()
        .map(|share| format!("{} ({} %)", share.region, share.percent))
        .collect();
    shares.join(", ")
}

fn failover_of(kind: &IntentKind) -> Option<&RegionId> {
    match kind {
        IntentKind::Failover { region } => Some(region),
        IntentKind::Restore { .. } | IntentKind::Freeze => None,
    }
}

fn restore_of(kind: &IntentKind) -> Option<&RegionId> {
    match kind {
        IntentKind::Restore { region } => Some(region),
        IntentKind::Failover { .. } | IntentKind::Freeze => None,
    }
}

/// Longest life of an operator's failover or restore that could not be carried out at once: after this the world has
/// changed too much to act on it.
pub const REQUEST_LIFE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use topology::{Snapshot, Tick, fixtures::three_primaries, snapshot::SNAPSHOT_SCHEMA};

    fn world(healths: &[Health]) -> Input {
        let Snapshot { topology, .. } = three_primaries();
        let verdict = |(region, health): (&RegionId, &Health)| {
            let (summary, evidence) = (format!("it is {health}"), vec![format!("{region} was seen {health}")]);
            let (region, health) = (region.clone(), *health);
            let verdict = Verdict {
                region: region.clone(),
                health,
                level: Level::L0,
                trigger: None,
                failing: matches!(health, Health::Down | Health::Suspect),
                fired: vec![],
                bad_from: vec![],
                healthy_since: (health == Health::Healthy).then_some(Moment(0)),
                tick: Tick(1),
                summary,
                evidence,
            };
            (region, verdict)
        };
        let verdicts = topology.regions.keys().zip(healths).map(verdict).collect();
        Input {
            topology,
            policy: Policy::default(),
            current: None,
            verdicts,
            intents: vec![],
            epoch: 1,
        }
    }

    fn any_health() -> impl Strategy<Value = Health> {
        prop_oneof![
            4 => Just(Health::Healthy), 1 => Just(Health::Suspect), 1 => Just(Health::Degraded),
            3 => Just(Health::Down), 1 => Just(Health::NoData), 1 => Just(Health::Blind),
        ]
    }

    proptest! {
        /// Whatever happens: plans stay valid, generations grow by one, the same input gives the same bytes, an evacuated
        /// region takes nothing, and no region is planned above what it can hold.
        #[test]
        fn invariants_hold_over_any_history(
            history in prop::collection::vec((prop::collection::vec(any_health(), 6), 0u8..4, 0usize..3), 1..40)
        ) {
            let mut input = world(&[Health::Healthy; 6]);
            let mut now = Moment(1_000_000);
            let mut generation = 0;
            for (healths, asked, which) in history {
                now = now + Duration::from_secs(10);
                input.verdicts = world(&healths).verdicts;
                let region = primaries(&input.topology)[which].clone();
                let kind = match asked {
                    0 => Some(IntentKind::Failover { region }),
                    1 => Some(IntentKind::Restore { region }),
                    2 => Some(IntentKind::Freeze),
                    _ => None,
                };
                input.intents = kind.into_iter().map(|kind| Intent {
                    id: "t".into(), kind, author: "a".into(), reason: "r".into(),
                    created_at: now, expires_at: now + REQUEST_LIFE,
                }).collect();
                let outcome = plan(&input, now);
                prop_assert_eq!(&outcome, &plan(&input, now));
                let Some(next) = outcome.plan else { continue };
                prop_assert_eq!(next.generation, generation + 1);
                generation = next.generation;
                let snapshot = Snapshot {
                    schema: SNAPSHOT_SCHEMA, plan: next.clone(), topology: input.topology.clone(), dns_ttl_s: 15,
                    probe: input.policy.probe.clone(),
                };
                prop_assert_eq!(snapshot.validate(), Ok(()));
                let mut planned: BTreeMap<&RegionId, f64> = BTreeMap::new();
                for (primary, shares) in &next.routes {
                    for share in shares {
                        let sessions = f64::from(input.topology.regions[primary].sessions_max);
                        *planned.entry(&share.region).or_default() += sessions * f64::from(share.percent) / 100.0;
                    }
                }
                for (region, sessions) in planned {
                    prop_assert!(sessions <= f64::from(input.topology.regions[region].sessions_max) + 1e-6);
                }
                input.current = Some(next);
            }
        }
    }
}
