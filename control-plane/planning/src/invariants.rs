//! The invariants of every decision, written without the code that decides. The simulator and the property tests check
//! them after every step.

use std::collections::{BTreeMap, BTreeSet};

use topology::{
    IntentKind, Moment, Plan, PlanNumber, ReasonCode, Region, RegionId, RegionState, Rule, Share, Snapshot,
    snapshot::SNAPSHOT_SCHEMA,
};
use verdict::Health;

use crate::{
    Action, Input, Memory, Outcome, PLANNER, Phase, Resource, actions::ACTIONS_MAX, capacity::relief, next_wake, plan,
};

/// Sessions that rounding to whole percents may add.
const ROUNDING: f64 = 1e-6;

/// Checks a run of decisions.
#[derive(Debug, Clone, Default)]
pub struct Invariants {
    /// Sessions sent to regions, with their times: only several decisions together can break a limit per second.
    arrivals: Vec<(Moment, RegionId, f64)>,
}

impl Invariants {
    /// The invariants that a decision breaks, one line each.
    pub fn check(&mut self, input: &Input, outcome: &Outcome, now: Moment) -> Vec<String> {
        let mut broken = Vec::new();
        let mut must = |holds: bool, text: String| {
            if !holds {
                broken.push(text);
            }
        };
        // After a clock went back, later arrivals count from now.
        for (at, ..) in &mut self.arrivals {
            *at = now.min(*at);
        }
        let Outcome { plan, memory, .. } = outcome;
        must(
            memory.actions.len() <= ACTIONS_MAX + input.topology.regions.len(),
            format!("{} actions are remembered", memory.actions.len()),
        );
        let refused = outcome.report.refused.iter();
        let invalid = refused.filter(|reason| reason.code == ReasonCode::InvalidPlan);
        let invalid: Vec<&str> = invalid.map(|reason| reason.text.as_str()).collect();
        must(
            invalid.is_empty(),
            format!("a plan was decided that is none: {invalid:?}"),
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
        if let Some(in_force) = &after.current {
            broken.extend(about_nothing(input, in_force, memory));
            if input.refusal.is_none() {
                broken.extend(abandons(input, in_force, memory, now));
            }
        }
        // The plan in force at the nodes, even if the store forgot it.
        let newest = input
            .recovered
            .iter()
            .chain(&input.current)
            .max_by_key(|plan| plan.number());
        if let Some(next) = plan {
            broken.extend(is_next(input, next));
            // A refused plan is taken back as a whole, regardless of newer facts.
            let taken_back = input.refusal.is_some();
            let by_force = |action: &Action| {
                let is_forced = matches!(action.intent.kind, IntentKind::Failover { force: true, .. });
                is_forced && (action.phase == Phase::Running || action.changed_at == now)
            };
            let forced = memory.actions.values().any(by_force);
            if input.recovered.is_some() {
                // The store forgot the arrivals too.
                self.arrivals.clear();
            }
            if !taken_back && !forced {
                broken.extend(overloads(input, newest, next));
            }
            let before = newest.filter(|_| !taken_back);
            if let Some(before) = before {
                broken.extend(says_the_same(before, outcome, next));
            }
            if let Some(before) = before.filter(|before| before.documents == next.documents) {
                broken.extend(loses_data(input, before, next, memory, now));
                let too_many = self.too_many_connections(input, before, next, now);
                broken.extend(too_many.into_iter().filter(|_| !forced));
                if !is_carried_out(input, memory) {
                    broken.extend(sent_to_the_unwell(input, before, next, now));
                    broken.extend(too_much_automation(input, before, next, memory, now));
                }
            }
        }
        broken.extend(refused_and_yet(input, outcome, now));
        broken
    }

    /// No region is sent more sessions within a reconnect window than it accepts connections in it, but for one percent
    /// of a primary's when no other session is coming. The limit does not count for a region that takes its own
    /// sessions back because their backup is gone, or was left.
    fn too_many_connections(&mut self, input: &Input, before: &Plan, next: &Plan, now: Moment) -> Vec<String> {
        let window = input.policy.failover.reconnect_window;
        let accepts = |region: &RegionId| input.topology.regions.get(region)?.connects_per_s_max.map(f64::from);
        let is_coming = |(at, target, sessions): &(Moment, RegionId, f64)| {
            let takes = accepts(target).map_or(0.0, |per_second| sessions / per_second);
            now.since(*at).as_secs_f64() < takes.max(window.as_secs_f64())
        };
        self.arrivals.retain(is_coming);
        let earlier = self.arrivals.clone();
        let mut sent: BTreeMap<RegionId, Vec<(u8, f64, bool)>> = BTreeMap::new();
        for (primary, target, more) in moved(before, next) {
            let gone = |share: &Share| share.region != primary && !takes(health(input, &share.region, now));
            let is_lost = before.routes.get(&primary).into_iter().flatten().any(gone);
            if target == primary && (is_lost || had_its_host_left(before, next, &primary)) {
                continue;
            }
            let sessions = room(input, &primary, Resource::Sessions) * f64::from(more) / 100.0;
            // An ordered return gets its first part also while other sessions are still coming.
            let begins = target == primary && input.request.is_some();
            sent.entry(target.clone()).or_default().push((more, sessions, begins));
            self.arrivals.push((now, target, sessions));
        }
        let mut broken = Vec::new();
        for (target, sent) in sent {
            let Some(per_second) = accepts(&target) else { continue };
            let coming = earlier.iter().filter(|(_, region, _)| *region == target);
            let coming: Vec<f64> = coming.map(|(.., sessions)| *sessions).collect();
            let total: f64 = coming.iter().chain(sent.iter().map(|(_, sessions, _)| sessions)).sum();
            let begins = sent.iter().filter(|(.., begins)| *begins);
            let begun: f64 = begins.map(|(more, sessions, _)| sessions / f64::from(*more)).sum();
            let max = per_second * window.as_secs_f64() + begun;
            let alone = coming.is_empty() && matches!(sent[..], [(1, ..)]);
            if total > max + ROUNDING && !alone {
                let seconds = window.as_secs_f64();
                broken.push(format!(
                    "{total} sessions are sent to {target} within {seconds} s, which accepts {max}"
                ));
            }
        }
        broken
    }
}

/// No target is planned above its room, unless its level does without the component that it lacks. A target that was
/// over before may stay over, when there is no other place; it may not grow.
fn overloads(input: &Input, before: Option<&Plan>, next: &Plan) -> Vec<String> {
    // A region can hold its own sessions; only the sessions of others count.
    let guests = |plan: &Plan, region: &RegionId, resource: Resource| -> f64 {
        let guests = plan.routes.iter().filter(|(primary, _)| *primary != region);
        let shares = guests.flat_map(|(primary, shares)| {
            let here = shares.iter().filter(|share| share.region == *region);
            here.map(|share| room(input, primary, resource) * f64::from(share.percent) / 100.0)
        });
        shares.sum()
    };
    let mut over = Vec::new();
    for region in input.topology.regions.values() {
        let components = region.capacity.keys().map(|component| Resource::Component(*component));
        for resource in [Resource::Sessions].into_iter().chain(components) {
            let whole = room(input, &region.id, resource);
            // A drain or a rollout that changes in the same decision counts from the next one on.
            let parts = before
                .into_iter()
                .chain([next])
                .map(|plan| working(input, plan, region));
            let part = parts.fold(0.0, f64::max);
            let max = (whole * part - ROUNDING).ceil();
            let is_over = |plan: &Plan| {
                let level = plan.regions.get(&region.id).map(|it| it.level);
                let relieved = match resource {
                    Resource::Component(component) => relief(component).is_some_and(|it| level >= Some(it)),
                    Resource::Sessions => false,
                };
                let guests = guests(plan, &region.id, resource);
                let sessions = guests + max * f64::from(at_home(plan, &region.id)) / 100.0;
                (sessions > max + ROUNDING && !relieved).then_some(guests)
            };
            let before = before.map_or(0.0, |before| guests(before, &region.id, resource));
            if let Some(sessions) = is_over(next)
                && sessions > before + ROUNDING
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

/// The plan is valid, one generation after the newest, and has the epoch of the leader.
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

/// Sessions leave only for regions that work by a fresh verdict.
fn sent_to_the_unwell(input: &Input, before: &Plan, next: &Plan, now: Moment) -> Vec<String> {
    let away = moved(before, next)
        .into_iter()
        .filter(|(primary, target, _)| primary != target);
    // The author of an order may know what no vantage sees, and an ordered move goes on.
    let away = away.filter(|(primary, ..)| !is_ordered(input, primary));
    let is_well = |target: &RegionId| match health(input, target, now) {
        Health::Suspect => !is_suspect_for_long(input, target),
        health => takes(health),
    };
    let unwell = away.filter(|(_, target, _)| !is_well(target));
    unwell
        .map(|(primary, target, _)| {
            let health = health(input, &target, now);
            format!("sessions of {primary} are sent to {target}, which is {health}")
        })
        .collect()
}

/// Automation keeps within its limits, and rests while it is off or frozen.
fn too_much_automation(input: &Input, before: &Plan, next: &Plan, memory: &Memory, now: Moment) -> Vec<String> {
    let mut broken = Vec::new();
    let (frozen, off) = (memory.freeze(now).is_some(), !input.policy.safety.automation);
    for primary in next.routes.keys() {
        let said = |plan: &Plan| {
            let state = plan.regions.get(primary).map(|it| it.state);
            (state, plan.routes.get(primary).cloned())
        };
        let ordered = is_ordered(input, primary);
        if said(before) != said(next) && (frozen || (off && !ordered)) && !had_its_host_left(before, next, primary) {
            broken.push(format!(
                "automation moves sessions of {primary} although it is off or frozen"
            ));
        }
        let health = health(input, primary, now);
        if at_home(next, primary) < at_home(before, primary) && health != Health::Down && !ordered {
            broken.push(format!("automation goes on leaving {primary}, which is {health}"));
        }
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
    let overridden = |rule: Rule| memory.overrides(rule, now);
    let window = input.policy.failover.reconnect_window;
    let counts = |(id, it): &(&RegionId, &topology::RegionPlan)| {
        let is_bad = !takes(health(input, id, now)) && !memory.on_purpose.contains(*id);
        // A region that serves again by this very decision holds no other back.
        let is_away = |it: &topology::RegionPlan| it.state != RegionState::Serving;
        let is_away = is_away(it) && next.regions.get(*id).is_some_and(is_away);
        is_away && !left.contains(id) && (is_bad || now < it.since + window)
    };
    let others = before.regions.iter().filter(counts).count();
    let max = input.policy.failover.automatic_max as usize;
    if others + left.len() > max && !overridden(Rule::EvacuationLimit) {
        broken.push(format!(
            "automation leaves {left:?}, and {others} more regions are bad or moving; it may leave {max}"
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

/// Whether an operator's action moves a primary.
fn is_ordered(input: &Input, primary: &RegionId) -> bool {
    let mut moving = input.memory.running(|kind| kind.region() == Some(primary));
    moving.any(|action| action.intent.author != PLANNER)
}

/// Whether this plan leaves a region that took sessions of the primary.
fn had_its_host_left(before: &Plan, next: &Plan, primary: &RegionId) -> bool {
    let mut hosts = before.routes.get(primary).into_iter().flatten();
    hosts.any(|share| {
        let state = next.regions.get(&share.region).map(|it| it.state);
        share.region != *primary && state == Some(RegionState::Evacuated)
    })
}

fn at_home(plan: &Plan, primary: &RegionId) -> u8 {
    let shares = plan.routes.get(primary).into_iter().flatten();
    shares.filter(|it| it.region == *primary).map(|it| it.percent).sum()
}

/// Every running action has its subject in the plan in force, and every rollout its action.
fn about_nothing(input: &Input, plan: &Plan, memory: &Memory) -> Vec<String> {
    let state = |region: &RegionId| {
        let is_primary = input.topology.primaries().any(|it| it.id == *region);
        plan.regions.get(region).filter(|_| is_primary).map(|it| it.state)
    };
    let goes_on = |action: &Action| match &action.intent.kind {
        IntentKind::Failover { region, .. } | IntentKind::Switchover { region, .. } => {
            matches!(state(region), Some(RegionState::Draining(_)))
        }
        IntentKind::Restore { region, .. } => matches!(state(region), Some(RegionState::Restoring(_))),
        IntentKind::Rollout { .. } => plan.rollout.as_ref().is_some_and(|it| it.action == action.intent.id),
        IntentKind::DrainEdge { edge } => plan.edges.contains_key(edge),
        IntentKind::DrainStack { stack } => input.has_stack(stack),
        IntentKind::Freeze | IntentKind::Override { .. } => true,
        IntentKind::Unfreeze | IntentKind::Ack { .. } | IntentKind::Approve { .. } | IntentKind::Abort { .. } => false,
    };
    let running = memory.running(|_| true).filter(|action| !goes_on(action));
    let mut broken: Vec<String> = running
        .map(|action| {
            format!(
                "{} goes on and is about nothing: {:?}",
                action.intent.id, action.intent.kind
            )
        })
        .collect();
    if let Some(rollout) = plan.rollout.as_ref().filter(|it| it.percent < 100)
        && memory.actions.get(&rollout.action).map(|it| it.phase) != Some(Phase::Running)
    {
        broken.push(format!("nobody can end the rollout of {}", rollout.version));
    }
    broken
}

/// A plan differs from the one before: an equal one costs every node work, and the log an entry.
fn says_the_same(before: &Plan, outcome: &Outcome, next: &Plan) -> Vec<String> {
    // A correction of moments ahead of the clock is worth a plan.
    let mut codes = outcome.report.changed.iter().map(|reason| reason.code);
    let for_its_own_sake = [ReasonCode::ClockWentBack, ReasonCode::PlanRecovered];
    if codes.any(|code| for_its_own_sake.contains(&code)) {
        return Vec::new();
    }
    let said = |plan: &Plan| {
        let regions = plan.regions.iter().map(|(id, it)| (id.clone(), it.state, it.level));
        let rollout = plan.rollout.as_ref().map(|it| (it.version.clone(), it.percent));
        let rest = (plan.documents.clone(), plan.routes.clone(), plan.edges.clone());
        let drained = plan.drained_stacks.clone();
        (
            rest,
            regions.collect::<Vec<_>>(),
            rollout,
            plan.writers.clone(),
            drained,
        )
    };
    if said(before) == said(next) {
        vec!["a plan says what the one before said".to_owned()]
    } else {
        Vec::new()
    }
}

/// Another writer takes over only within the loss that its class allows, or that an order accepted.
fn loses_data(input: &Input, before: &Plan, next: &Plan, memory: &Memory, now: Moment) -> Vec<String> {
    let mut broken = Vec::new();
    for primary in next.routes.keys() {
        let accepted = |action: &Action| match &action.intent.kind {
            IntentKind::Failover {
                region, accept_loss, ..
            }
            | IntentKind::Restore { region, accept_loss }
                if region == primary =>
            {
                *accept_loss
            }
            _ => None,
        };
        let fresh = memory.actions.values().filter(|it| it.changed_at == now);
        let accepted = input.memory.running(|_| true).chain(fresh).filter_map(accepted).max();
        let writer = |plan: &Plan, class: &str| {
            let written = plan.writers.get(primary).and_then(|it| it.get(class));
            written.cloned()
        };
        for class in &input.policy.data {
            if writer(before, &class.class) == writer(next, &class.class) {
                continue;
            }
            let lag = input.replication.get(primary).and_then(|it| it.get(&class.class));
            let behind = lag.map(|it| it.behind.saturating_add(now.since(it.at)));
            let limit = accepted.unwrap_or(class.rpo);
            if behind.map_or(accepted.is_none(), |behind| behind > limit) {
                let class = &class.class;
                broken.push(format!(
                    "another region writes {class} of {primary}, which is {behind:?} behind; {limit:?} may be lost"
                ));
            }
        }
    }
    broken
}

/// A refused or repeated request changes nothing.
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

/// The moves of sessions: primary, target, percent more than before.
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

/// The health of a region; blind when its verdict is too old. After a tick without data the verdict before it stands.
fn health(input: &Input, region: &RegionId, now: Moment) -> Health {
    let freshest = u64::from(input.policy.health.freshness_ticks);
    let before = || input.memory.believed.get(region).map(|it| it.health);
    match input.verdicts.get(region) {
        None => Health::NoData,
        Some(verdict) if now.tick().0.saturating_sub(verdict.tick.0) > freshest => Health::Blind,
        Some(verdict) if verdict.health == Health::NoData => before().unwrap_or(Health::NoData),
        Some(verdict) => verdict.health,
    }
}

/// Whether a region is suspect for more than one tick: one bad tick is no evidence.
fn is_suspect_for_long(input: &Input, region: &RegionId) -> bool {
    let newest = input.verdicts.get(region).map(|it| (it.health, it.tick));
    let before = input.memory.believed.get(region).map(|it| (it.health, it.since));
    match (newest, before) {
        (Some((Health::Suspect, tick)), Some((Health::Suspect, since))) => tick > since,
        (Some((Health::NoData, _)), Some((Health::Suspect, _))) => true,
        _ => false,
    }
}

/// No primary's sessions stay at a backup that is down while their own region works and could take them.
fn abandons(input: &Input, next: &Plan, memory: &Memory, now: Moment) -> Vec<String> {
    let rests = memory.freeze(now).is_some() || memory.taken_back.is_some() || !input.policy.safety.automation;
    if rests {
        return Vec::new();
    }
    let is_dead = |region: &RegionId| {
        let failing = input.verdicts.get(region).is_some_and(|verdict| verdict.failing);
        health(input, region, now) == Health::Down && failing
    };
    let mut broken = Vec::new();
    for (primary, shares) in &next.routes {
        let limit = input.topology.regions.get(primary).and_then(|it| it.connects_per_s_max);
        let dead = shares
            .iter()
            .find(|share| share.region != *primary && is_dead(&share.region));
        let insisted = memory.actions.values().any(
            |action| matches!(&action.intent.kind, IntentKind::Failover { region, force: true, .. } if region == primary),
        );
        let Some(dead) = dead.filter(|_| !insisted && limit.is_none() && takes(health(input, primary, now))) else {
            continue;
        };
        let guests = next
            .routes
            .iter()
            .filter(|(of, _)| *of != primary)
            .flat_map(|(_, shares)| shares);
        if guests.filter(|share| share.region == *primary).count() == 0 {
            broken.push(format!(
                "{} % of the sessions of {primary} are planned at {}, which is down, and {primary} is well",
                dead.percent, dead.region
            ));
        }
    }
    broken
}

fn takes(health: Health) -> bool {
    matches!(health, Health::Healthy | Health::Degraded)
}

/// The part of a region's stacks that take sessions and are not known to be dead.
fn working(input: &Input, plan: &Plan, region: &Region) -> f64 {
    let whole = Plan {
        drained_stacks: BTreeSet::new(),
        ..plan.clone()
    };
    let all = whole.stacks_with_sessions(region).len();
    let mut taking = plan.stacks_with_sessions(region);
    if let Some(verdict) = input.verdicts.get(&region.id) {
        taking.retain(|stack| !verdict.dead_stacks.contains(&stack.address));
    }
    if all == 0 {
        1.0
    } else {
        taking.len() as f64 / all as f64
    }
}

/// Sessions that a region has room for when all its stacks work, by one resource.
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
