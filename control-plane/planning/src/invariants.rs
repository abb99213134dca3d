//! What must hold after any decision, told without the code that decides. The simulator and the property tests ask after
//! every step.

use std::collections::{BTreeMap, BTreeSet};

use topology::{
    IntentKind, Moment, Plan, PlanNumber, RegionId, RegionState, Rule, Share, Snapshot, snapshot::SNAPSHOT_SCHEMA,
};
use verdict::Health;

use crate::{Input, Memory, Outcome, Resource, actions::ACTIONS_MAX, capacity::relief, next_wake, plan};

/// Sessions that rounding to whole percents may add.
const ROUNDING: f64 = 1e-6;

/// Watches a run of decisions.
#[derive(Debug, Clone, Default)]
pub struct Invariants {
    /// Sessions sent to regions, and when: a limit per second needs more than one decision to be broken.
    arrivals: Vec<(Moment, RegionId, f64)>,
}

impl Invariants {
    /// What is broken by a decision, one line each.
    pub fn check(&mut self, input: &Input, outcome: &Outcome, now: Moment) -> Vec<String> {
        let mut broken = Vec::new();
        let mut must = |holds: bool, text: String| {
            if !holds {
                broken.push(text);
            }
        };
        let Outcome { plan, memory, .. } = outcome;
        must(
            memory.actions.len() <= ACTIONS_MAX + input.topology.regions.len(),
            format!("{} actions are remembered", memory.actions.len()),
        );
        let after = Input {
            current: plan.clone().or_else(|| input.current.clone()),
            memory: memory.clone(),
            request: None,
            refusal: None,
            recovered: None,
            ..input.clone()
        };
        let wake = next_wake(&after, now);
        must(
            wake.is_none_or(|wake| wake > now),
            format!("it would wake at {wake:?}, and now is {now:?}"),
        );
        // The plan that is in force where sessions are: what nodes have, if the store forgot it.
        let newest = input
            .recovered
            .iter()
            .chain(&input.current)
            .max_by_key(|plan| plan.number());
        if let Some(next) = plan {
            broken.extend(is_next(input, next));
            // What nodes refuse is taken back as a whole, whatever else is known by now.
            let taken_back = input.refusal.is_some();
            if input.recovered.is_some() {
                // The store forgot also who was sent where; so must we.
                self.arrivals.clear();
            }
            if !taken_back {
                broken.extend(overloads(input, newest, next));
            }
            if let Some(before) = newest
                && before.documents == next.documents
                && !taken_back
            {
                broken.extend(self.too_many_connections(input, before, next, now));
                broken.extend(sent_to_the_unwell(input, before, next, now));
                if !is_carried_out(input, memory) {
                    broken.extend(too_much_automation(input, before, next, memory, now));
                }
            }
        }
        broken.extend(refused_and_yet(input, outcome, now));
        broken
    }

    /// No region is sent more sessions within a reconnect window than it accepts connections in it. A region that takes its
    /// own sessions back because their backup is gone is not asked.
    fn too_many_connections(&mut self, input: &Input, before: &Plan, next: &Plan, now: Moment) -> Vec<String> {
        let window = input.policy.failover.reconnect_window;
        self.arrivals.retain(|(at, ..)| *at <= now && now.since(*at) < window);
        let mut allowed: BTreeMap<RegionId, f64> = BTreeMap::new();
        for (primary, target, more) in moved(before, next) {
            let gone = |share: &Share| share.region != primary && !takes(health(input, &share.region, now));
            if target == primary && before.routes.get(&primary).into_iter().flatten().any(gone) {
                continue;
            }
            let sessions = room(input, &primary, Resource::Sessions);
            if target == primary {
                // A return always makes some progress, however few connections its region accepts.
                *allowed.entry(target.clone()).or_default() += sessions / 100.0;
            }
            self.arrivals.push((now, target, sessions * f64::from(more) / 100.0));
        }
        let mut broken = Vec::new();
        for region in input.topology.regions.values() {
            let Some(per_second) = region.connects_per_s_max else {
                continue;
            };
            let arrived = self.arrivals.iter().filter(|(_, target, _)| *target == region.id);
            let sent: f64 = arrived.map(|(.., sessions)| sessions).sum();
            let allowed = allowed.get(&region.id).copied().unwrap_or_default();
            let max = f64::from(per_second) * window.as_secs_f64() + allowed;
            if sent > max + ROUNDING {
                let (id, seconds) = (&region.id, window.as_secs_f64());
                broken.push(format!(
                    "{sent} sessions are sent to {id} within {seconds} s, which accepts {max}"
                ));
            }
        }
        broken
    }
}

/// No target is planned above what it has room for, unless its level does without what it lacks. What was over before
/// may stay over, when there is nowhere else; it may not grow.
fn overloads(input: &Input, before: Option<&Plan>, next: &Plan) -> Vec<String> {
    let planned = |plan: &Plan, region: &RegionId, resource: Resource| -> f64 {
        let shares = plan.routes.iter().flat_map(|(primary, shares)| {
            let here = shares.iter().filter(|share| share.region == *region);
            here.map(|share| room(input, primary, resource) * f64::from(share.percent) / 100.0)
        });
        shares.sum()
    };
    let mut over = Vec::new();
    for region in input.topology.regions.values() {
        let components = region.capacity.keys().map(|component| Resource::Component(*component));
        for resource in [Resource::Sessions].into_iter().chain(components) {
            let max = room(input, &region.id, resource);
            let is_over = |plan: &Plan| {
                let level = plan.regions.get(&region.id).map(|it| it.level);
                let relieved = match resource {
                    Resource::Component(component) => relief(component).is_some_and(|it| level >= Some(it)),
                    Resource::Sessions => false,
                };
                let sessions = planned(plan, &region.id, resource);
                (sessions > max + ROUNDING && !relieved).then_some(sessions)
            };
            let before = before.and_then(is_over);
            if let Some(sessions) = is_over(next)
                && before.is_none_or(|before| sessions > before + ROUNDING)
            {
                let id = &region.id;
                over.push(format!(
                    "{sessions} are planned for the {resource} of {id}, which holds {max}"
                ));
            }
        }
    }
    over
}

/// One step after the newest plan there is, by the leader that asks, and whole.
fn is_next(input: &Input, next: &Plan) -> Vec<String> {
    let newest = input.current.iter().chain(&input.recovered).map(Plan::number).max();
    let expected = PlanNumber {
        generation: newest.unwrap_or_default().generation + 1,
        epoch: input.epoch,
    };
    let mut broken = Vec::new();
    if next.number() != expected {
        broken.push(format!("plan {} follows {newest:?}", next.number()));
    }
    let snapshot = Snapshot {
        schema: SNAPSHOT_SCHEMA,
        plan: next.clone(),
        topology: input.topology.clone(),
        dns_ttl_s: input.policy.dns.ttl_s(),
        probe: input.policy.probe.clone(),
    };
    broken.extend(snapshot.validate().err().map(|error| error.to_string()));
    broken
}

/// Sessions leave only for regions that were seen well, and not long ago.
fn sent_to_the_unwell(input: &Input, before: &Plan, next: &Plan, now: Moment) -> Vec<String> {
    let away = moved(before, next)
        .into_iter()
        .filter(|(primary, target, _)| primary != target);
    let unwell = away.filter(|(_, target, _)| !takes(health(input, target, now)));
    unwell
        .map(|(primary, target, _)| {
            let health = health(input, &target, now);
            format!("sessions of {primary} are sent to {target}, which is {health}")
        })
        .collect()
}

/// What nobody asked for keeps within its limits, and rests while it is told to.
fn too_much_automation(input: &Input, before: &Plan, next: &Plan, memory: &Memory, now: Moment) -> Vec<String> {
    let mut broken = Vec::new();
    let state = |plan: &Plan| -> BTreeMap<RegionId, RegionState> {
        let states = plan.regions.iter();
        states.map(|(id, it)| (id.clone(), it.state)).collect()
    };
    let rests = memory.freeze(now).is_some() || !input.policy.safety.automation;
    if rests && (&before.routes, state(before)) != (&next.routes, state(next)) {
        broken.push("automation moves sessions although it is off or frozen".to_owned());
    }
    let left: BTreeSet<&RegionId> = next
        .regions
        .iter()
        .filter(|(_, it)| it.state != RegionState::Serving)
        .map(|(id, _)| id)
        .filter(|id| {
            before
                .regions
                .get(id)
                .is_some_and(|it| it.state == RegionState::Serving)
        })
        .collect();
    if left.is_empty() {
        return broken;
    }
    for region in &left {
        let health = health(input, region, now);
        if health != Health::Down {
            broken.push(format!("automation leaves {region}, which is {health}"));
        }
    }
    let overridden = |rule: Rule| {
        let of = |kind: &IntentKind| matches!(kind, IntentKind::Override { rule: it } if *it == rule);
        memory.running(of).any(|action| action.intent.is_live(now))
    };
    let away = next
        .regions
        .values()
        .filter(|it| it.state != RegionState::Serving)
        .count();
    let max = input.policy.failover.automatic_max as usize;
    if away > max && !overridden(Rule::EvacuationLimit) {
        broken.push(format!(
            "automation leaves {left:?}, and {away} regions are away; it may hold {max}"
        ));
    }
    let serves = |(id, it): &(&RegionId, &topology::RegionPlan)| {
        it.state == RegionState::Serving && health(input, id, now) != Health::Down
    };
    let (serving, min) = (
        next.regions.iter().filter(serves).count(),
        input.policy.safety.regions_serving_min,
    );
    if serving < min as usize && !overridden(Rule::RegionsServingMin) {
        broken.push(format!(
            "automation leaves {left:?}, and {serving} regions serve; {min} is the least"
        ));
    }
    broken
}

/// A request that is refused, or known already, leaves no trace.
fn refused_and_yet(input: &Input, outcome: &Outcome, now: Moment) -> Vec<String> {
    if input.request.is_none() || is_carried_out(input, &outcome.memory) {
        return Vec::new();
    }
    let without = Input {
        request: None,
        ..input.clone()
    };
    let without = plan(&without, now);
    if (&without.plan, &without.memory) == (&outcome.plan, &outcome.memory) {
        Vec::new()
    } else {
        vec!["a request that was refused changed something".to_owned()]
    }
}

/// Whether the request of this decision became an action.
fn is_carried_out(input: &Input, memory: &Memory) -> bool {
    let is_new = |id: &str| !input.memory.actions.contains_key(id) && memory.actions.contains_key(id);
    input.request.as_ref().is_some_and(|intent| is_new(&intent.id))
}

/// Who is sent where: primary, target, how many percent more than before.
fn moved(before: &Plan, next: &Plan) -> Vec<(RegionId, RegionId, u8)> {
    let percent = |plan: &Plan, primary: &RegionId, target: &RegionId| -> u8 {
        let shares = plan.routes.get(primary).into_iter().flatten();
        shares.filter(|it| it.region == *target).map(|it| it.percent).sum()
    };
    let mut moved = Vec::new();
    for (primary, shares) in &next.routes {
        let targets: BTreeSet<&RegionId> = shares.iter().map(|share| &share.region).collect();
        for target in targets {
            let more = percent(next, primary, target).saturating_sub(percent(before, primary, target));
            if more > 0 {
                moved.push((primary.clone(), target.clone(), more));
            }
        }
    }
    moved
}

/// What is believed of a region, unless it is too old.
fn health(input: &Input, region: &RegionId, now: Moment) -> Health {
    let freshest = u64::from(input.policy.health.freshness_ticks);
    match input.verdicts.get(region) {
        None => Health::NoData,
        Some(verdict) if now.tick().0.saturating_sub(verdict.tick.0) > freshest => Health::Blind,
        Some(verdict) => verdict.health,
    }
}

fn takes(health: Health) -> bool {
    matches!(health, Health::Healthy | Health::Degraded)
}

/// Sessions a region has room for, by one resource.
fn room(input: &Input, region: &RegionId, resource: Resource) -> f64 {
    let Some(region) = input.topology.regions.get(region) else {
        return 0.0;
    };
    let own = match resource {
        Resource::Sessions => None,
        Resource::Component(component) => region.capacity.get(&component).copied(),
    };
    f64::from(own.unwrap_or(region.sessions_max).min(region.sessions_max))
}
