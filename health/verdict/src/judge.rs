//! From windows to verdicts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{Component, Level, NodeId, RegionId, Tick, policy::HealthPolicy};

use crate::{
    Ailment, Before, Fired, Health, Latency, Observation, TrafficSeen, Trigger, Trouble, Verdict, Windows,
    limit::Limit,
    region_seen::{Counts, TickSeen},
    spread::Spread,
    standing::Standing,
    texts,
    window::TriggerState,
};

/// Vantages that a line of evidence names; of the others it gives the number. A fleet has hundreds.
const VANTAGES_NAMED: usize = 5;
/// Components without a failover trigger: a region that fails in them still serves, with less. ASR errors above the
/// limit are not tolerated.
const LESSER: [Component; 4] = [
    Component::Nlu,
    Component::Skills,
    Component::Tts,
    Component::SessionStore,
];

/// Judges every region on the ticks up to and including `last_closed`. A region that is missing in `before` was
/// healthy.
pub fn judge<'r>(
    regions: impl IntoIterator<Item = &'r RegionId>,
    windows: &Windows,
    policy: &HealthPolicy,
    last_closed: Tick,
    before: &BTreeMap<RegionId, Before>,
) -> BTreeMap<RegionId, Verdict> {
    let well = Before::default();
    let verdict = |region: &RegionId| {
        let before = before.get(region).unwrap_or(&well);
        (
            region.clone(),
            judge_region(region, windows, policy, last_closed, before),
        )
    };
    regions.into_iter().map(verdict).collect()
}

fn judge_region(
    region: &RegionId,
    windows: &Windows,
    policy: &HealthPolicy,
    last_closed: Tick,
    before: &Before,
) -> Verdict {
    let state = Trigger::ALL.map(|trigger| {
        let fallen = before.fallen.contains(&trigger);
        windows.trigger_state(region, trigger, policy, last_closed, fallen)
    });
    let of = |trigger: Trigger| &state[trigger as usize];
    let is_fresh = |trigger: Trigger| of(trigger).run.is_fresh(last_closed, policy.blind_ticks);
    let connections = of(Trigger::GatewayConnections).run;

    let fired: Vec<Fired> = Trigger::ALL
        .into_iter()
        .filter(|trigger| of(*trigger).run.fallen)
        .map(|trigger| describe_fired(trigger, of(trigger), policy))
        .collect();
    let levels = || {
        fired
            .iter()
            .filter_map(|it| it.trigger.level().map(|level| (level, it)))
    };
    let level = levels().map(|(level, _)| level).max().unwrap_or_default();
    let mut failovers = fired.iter().filter(|it| it.trigger.level().is_none());
    // A trigger that still fails tells more than one that recovers.
    let seen = || failovers.clone().filter(|it| is_fresh(it.trigger));
    let down = seen().find(|it| it.failing).or_else(|| seen().next());
    let suspected = [Trigger::GatewayConnections, Trigger::AsrErrors]
        .into_iter()
        .find(|trigger| of(*trigger).run.bad > 0 && is_fresh(*trigger));
    let standing = &of(Trigger::GatewayConnections).standing;
    let broken = LESSER
        .into_iter()
        .find(|component| newest_broken(*component, region, windows, standing, policy, last_closed, 1));
    let recent = Stacks::recent(region, windows, policy, last_closed);
    let newest = recent.first().filter(|(tick, _)| *tick == last_closed);
    let (described, of_stacks) = newest
        .map(|(_, it)| (it.describe(), it.evidence(region)))
        .unwrap_or_default();

    let (health, summary) = if !is_fresh(Trigger::GatewayConnections) {
        let ticks = policy.blind_ticks;
        (Health::Blind, texts::blind(ticks))
    } else if let Some(fired) = down {
        (Health::Down, fired.why.clone())
    } else if let Some(unseen) = failovers.next() {
        // No vantage saw that it works again, so it is not healthy; no vantage sees that it fails, so it is not down.
        let (component, ticks) = (unseen.trigger.component(), policy.blind_ticks);
        (Health::Blind, texts::was_bad_and_is_unseen(component, ticks))
    } else if connections.newest_known != Some(last_closed) {
        (Health::NoData, texts::too_little_seen())
    } else if let Some(trigger) = suspected {
        (Health::Suspect, describe_pending(trigger, of(trigger), policy))
    } else if level > Level::L0 {
        let words: Vec<String> = levels().map(|(level, it)| texts::at_level(level, &it.why)).collect();
        (Health::Degraded, words.join("; "))
    } else if broken.is_some() || described.is_some() {
        let broken = broken.map(|component| texts::component_fails(component, policy.asr_error_max));
        let words: Vec<String> = broken.into_iter().chain(described).collect();
        (Health::Degraded, words.join("; "))
    } else {
        (Health::Healthy, texts::healthy())
    };

    let decided_by = match health {
        Health::Down => down.map(|it| it.trigger),
        Health::Suspect => suspected,
        _ => None,
    };
    let bad_from = decided_by.and_then(|trigger| of(trigger).accusation.as_ref());
    let down = down.filter(|_| health == Health::Down);
    let to_fail = ticks_to_fail(policy);
    let lasting = Stacks::lasting(&recent, to_fail, |_| true);
    let too_few = recent
        .first()
        .is_some_and(|(_, stacks)| stacks.all - lasting.len() < stacks.needed);
    let is_broken = |component: Component| {
        let has_rule = Trigger::ALL.iter().any(|it| it.component() == component);
        // Where several stacks serve, too few of them must be left for as many ticks; a single one is judged with its
        // region.
        let ticks = if too_few { 1 } else { to_fail };
        let is_one = recent.first().is_none_or(|(_, stacks)| stacks.all < 2);
        !has_rule
            && (too_few || is_one)
            && newest_broken(component, region, windows, standing, policy, last_closed, ticks)
    };
    let newest_bad = state.iter().filter_map(|it| it.run.newest_bad).max();
    let healthy_since = connections
        .good_from
        .filter(|_| health == Health::Healthy && newest_bad < Some(last_closed))
        .map(|good_from| {
            newest_bad
                .map_or(good_from, |bad| good_from.max(Tick(bad.0 + 1)))
                .start()
        });
    Verdict {
        region: region.clone(),
        health,
        level,
        trigger: down.map(|it| it.trigger),
        failing: down.map_or(connections.bad > 0, |it| it.failing),
        bad_from: bad_from.map(|it| it.vantages.clone()).unwrap_or_default(),
        healthy_since,
        dead_stacks: Stacks::lasting(&recent, to_fail, |it| !LESSER.contains(&it.component)),
        ailing_stacks: Stacks::ailing(&recent, &lasting),
        broken: Component::ALL.into_iter().find(|it| is_broken(*it)),
        tick: last_closed,
        summary,
        evidence: [
            of_stacks,
            evidence(region, windows, policy, last_closed, &state, broken),
        ]
        .concat(),
        fired,
    }
}

/// Ticks in a row in which a stack has to fail: as many as make a gateway bad, or as are remembered.
fn ticks_to_fail(policy: &HealthPolicy) -> usize {
    policy.gateway_ticks.min(policy.freshness_ticks).max(1) as usize
}

/// The stacks of a region in one tick.
struct Stacks {
    /// The stacks that fail by themselves.
    failing: Vec<Failing>,
    all: usize,
    /// Fewest stacks that the region needs.
    needed: usize,
}

/// A stack that fails.
struct Failing {
    stack: SocketAddr,
    component: Component,
    /// The limit that it exceeds.
    limit: Limit,
    /// Successful attempts, of all.
    succeeded: u64,
    samples: u64,
}

impl Stacks {
    /// The stacks in the newest known ticks, as many as it takes, newest first.
    fn recent(region: &RegionId, windows: &Windows, policy: &HealthPolicy, last_closed: Tick) -> Vec<(Tick, Self)> {
        let ticks = windows.ticks(region, Component::Gateway, last_closed).rev();
        let ticks = ticks.take(ticks_to_fail(policy));
        ticks.map(|(tick, seen)| (tick, Self::in_tick(seen, policy))).collect()
    }

    fn in_tick(seen: TickSeen<'_>, policy: &HealthPolicy) -> Self {
        // Gateway first: a stack that does not answer does nothing else either. Then the components that callers need
        // most.
        let limits = [
            (Component::Gateway, Limit::SuccessBelow(policy.gateway_success_min)),
            (Component::Asr, Limit::ErrorsAbove(policy.asr_error_max)),
            (
                Component::Asr,
                Limit::LatencyAbove(0.99, policy.asr_p99_max.as_secs_f64() * 1000.0),
            ),
        ];
        let lesser = LESSER.map(|component| (component, Limit::ErrorsAbove(policy.asr_error_max)));
        let all = seen.all_stacks().len();
        let mut failing: Vec<Failing> = Vec::new();
        // A region with one stack is judged as a whole.
        for (component, limit) in limits.into_iter().chain(lesser).filter(|_| all > 1) {
            for (stack, seen) in seen.stacks_of(component) {
                if !failing.iter().any(|it| it.stack == stack) && limit.call_of_all(seen, policy).is_bad() {
                    let total = seen.total();
                    failing.push(Failing {
                        stack,
                        component,
                        limit,
                        succeeded: total.succeeded,
                        samples: total.samples(),
                    });
                }
            }
        }
        failing.sort_by_key(|it| it.stack);
        let needed = seen.stacks_needed(all, policy.capacity_min);
        Self { failing, all, needed }
    }

    /// Stacks that fail in that many ticks in a row, by the failures that `counts` accepts. A tick without reports is
    /// skipped, so it makes no stack healthy.
    fn lasting(recent: &[(Tick, Self)], ticks: usize, counts: impl Fn(&Failing) -> bool) -> BTreeSet<SocketAddr> {
        if recent.len() < ticks {
            return BTreeSet::new();
        }
        let failing = recent.iter().map(|(_, stacks)| -> BTreeSet<SocketAddr> {
            let failing = stacks.failing.iter().filter(|it| counts(it));
            failing.map(|it| it.stack).collect()
        });
        failing.reduce(|one, other| &one & &other).unwrap_or_default()
    }

    /// See [`Verdict::ailing_stacks`].
    fn ailing(recent: &[(Tick, Self)], lasting: &BTreeSet<SocketAddr>) -> BTreeMap<SocketAddr, Ailment> {
        let newest = recent.iter().take(1).flat_map(|(_, stacks)| &stacks.failing);
        let ailing = newest.filter(|it| it.component != Component::Gateway && lasting.contains(&it.stack));
        let ailment = |it: &Failing| {
            let trouble = match it.limit {
                Limit::LatencyAbove(..) => Trouble::Slow,
                Limit::SuccessBelow(_) | Limit::ErrorsAbove(_) => Trouble::Fails,
            };
            let component = it.component;
            (it.stack, Ailment { component, trouble })
        };
        ailing.map(ailment).collect()
    }

    fn describe(&self) -> Option<String> {
        let Failing { stack, component, .. } = self.failing.first()?;
        let (failing, all) = (self.failing.len(), self.all);
        Some(texts::stack_fails(stack, *component, failing - 1, (all - failing, all)))
    }

    /// One line for each failing stack, up to a few.
    fn evidence(&self, region: &RegionId) -> Vec<String> {
        let serving = self.all - self.failing.len();
        let line = |failing: &Failing| {
            let Failing {
                stack,
                component,
                limit,
                succeeded,
                samples,
            } = failing;
            let fault = match (*component, limit) {
                (Component::Gateway, _) => texts::answers(*succeeded, *samples),
                (component, Limit::LatencyAbove(..)) => texts::is_slow(component, limit),
                (component, _) => texts::does(component, *succeeded, *samples),
            };
            texts::stack_evidence(stack, region, &fault, (serving, self.all))
        };
        self.failing.iter().take(VANTAGES_NAMED).map(line).collect()
    }
}

/// Whether the region as a whole failed in a component without a failover trigger, in each of that many of the newest
/// known ticks.
fn newest_broken(
    component: Component,
    region: &RegionId,
    windows: &Windows,
    standing: &Standing,
    policy: &HealthPolicy,
    last_closed: Tick,
    ticks: usize,
) -> bool {
    let newest = windows.ticks(region, component, last_closed).rev().take(ticks);
    let limit = Limit::ErrorsAbove(policy.asr_error_max);
    let bad = newest.filter(|(_, seen)| {
        let needed = standing.needed(*seen, component, &[limit], policy);
        limit.call(*seen, needed.as_ref(), policy).is_bad()
    });
    bad.count() == ticks
}

fn describe_fired(trigger: Trigger, state: &TriggerState, policy: &HealthPolicy) -> Fired {
    let lengths = trigger.run_lengths(policy);
    let what = match &state.accusation {
        Some(accusation) => accusation.what.clone(),
        None => trigger.condition(policy),
    };
    let held = if trigger.level().is_none() { "down" } else { "held" };
    let is_in_a_row = state.run.bad >= lengths.fall;
    let failing = state.run.bad > 0 || state.spread == Spread::Bad;
    let spread = state.describe_spread();
    let standing = if state.spread != Spread::Clear && !is_in_a_row {
        texts::Standing::Spread(&spread)
    } else if failing {
        texts::Standing::InARow
    } else if state.run.newest_known.is_none() {
        texts::Standing::Believed
    } else {
        texts::Standing::Recovering
    };
    let why = texts::fired(&what, standing, held, (lengths.fall, lengths.rise));
    Fired { trigger, failing, why }
}

fn describe_pending(trigger: Trigger, state: &TriggerState, policy: &HealthPolicy) -> String {
    let what = match trigger {
        Trigger::GatewayConnections => "gateway connections bad".to_owned(),
        Trigger::AsrErrors => "asr errors".to_owned(),
        _ => trigger.condition(policy),
    };
    let needed = trigger.run_lengths(policy).fall;
    texts::pending(&what, state.run.bad, needed)
}

fn evidence(
    region: &RegionId,
    windows: &Windows,
    policy: &HealthPolicy,
    last_closed: Tick,
    state: &[TriggerState; Trigger::ALL.len()],
    broken: Option<Component>,
) -> Vec<String> {
    let mut evidence = Vec::new();
    // The last ticks that could decide it, newest first; older ones add nothing.
    let gateway = windows.ticks(region, Component::Gateway, last_closed).rev();
    for (tick, seen) in gateway.take(policy.gateway_ticks.max(2) as usize) {
        evidence.push(describe_tick(Component::Gateway, tick, seen));
    }
    // The other components: recognition with its newest tick, each other one only if it is bad now or was before.
    let concerns = |component: Component| {
        let of_it = |trigger: &Trigger| trigger.component() == component;
        let bad = |trigger: &Trigger| state[*trigger as usize].run.fallen || state[*trigger as usize].run.bad > 0;
        Some(component) == broken || Trigger::ALL.iter().any(|trigger| of_it(trigger) && bad(trigger))
    };
    for component in Component::ALL.into_iter().skip(1) {
        let newest = windows.ticks(region, component, last_closed).next_back();
        if let Some((tick, seen)) = newest.filter(|_| component == Component::Asr || concerns(component)) {
            evidence.push(describe_tick(component, tick, seen));
        }
    }
    evidence.extend(windows.traffic(region, last_closed).map(describe_traffic));
    for trigger in Trigger::ALL {
        let state = &state[trigger as usize];
        if state.run.bad > 0 && !state.run.fallen {
            evidence.push(describe_pending(trigger, state, policy));
        }
    }
    let newest = windows.ticks(region, Component::Gateway, last_closed).next_back();
    if newest.is_none_or(|(tick, _)| tick != last_closed) {
        evidence.push(texts::nobody_reported(last_closed.start()));
    }
    evidence
}

fn describe_tick(component: Component, tick: Tick, seen: TickSeen<'_>) -> String {
    let total = seen.total();
    // If nothing failed in a fleet of hundreds, the first few names tell nothing.
    let all_well = total.failed == 0 && seen.vantages().len() > VANTAGES_NAMED;
    let named = if all_well { Vec::new() } else { worst(seen) };
    let (mut succeeded, mut samples) = (total.succeeded, total.samples());
    let mut words = Vec::new();
    let mut failures: Vec<&str> = Vec::new();
    for (vantage, saw) in &named {
        let (saw_succeed, saw_all) = (u64::from(saw.succeeded), Counts::from(*saw).samples());
        if !saw.failure.is_empty() && !failures.contains(&saw.failure.as_str()) {
            failures.push(&saw.failure);
        }
        words.push(texts::vantage(vantage, saw_succeed, saw_all));
        (succeeded, samples) = (succeeded - saw_succeed, samples - saw_all);
    }
    let rest = seen.vantages().len() - named.len();
    if rest > 0 {
        words.push(texts::other_vantages(rest, !named.is_empty(), succeeded, samples));
    }
    let percentile = |name: &str, q: f64| {
        let ms = total.latency.and_then(|latency| latency.quantile(q));
        ms.map(|ms| texts::percentile(name, ms)).unwrap_or_default()
    };
    let mut percentiles = percentile("p95", 0.95);
    if component == Component::Asr {
        percentiles += &percentile("p99", 0.99);
    }
    // One failure of each vantage is enough, and one line of it.
    let failure = failures
        .first()
        .map(|failure| texts::failure(failure, failures.len() - 1));
    texts::tick(
        component,
        tick.start(),
        &words,
        &percentiles,
        &failure.unwrap_or_default(),
    )
}

/// The real traffic in one line: `traffic at 12:00:10: 40/41 connections ok · 1 lost midway · 118/120 turns ok, p95 480 ms …`.
fn describe_traffic((tick, seen, vantages): (Tick, &TrafficSeen, usize)) -> String {
    let p95 = |name: &str, latency: &Latency| {
        let ms = latency.quantile(0.95);
        ms.map(|ms| texts::percentile(name, ms)).unwrap_or_default()
    };
    let connect = p95("connect p95", &seen.connect) + &p95("first byte p95", &seen.first_byte);
    texts::traffic(
        tick.start(),
        (&texts::of(seen.connects_ok, seen.connects_failed), &connect),
        seen.aborts,
        (&texts::of(seen.turns_ok, seen.turns_failed), &p95("p95", &seen.turn)),
        vantages,
    )
}

/// The vantages that saw the largest share fail, the worst first: they decide.
fn worst(seen: TickSeen<'_>) -> Vec<(&NodeId, &Observation)> {
    let share_failed = |saw: &Observation| f64::from(saw.failed) / Counts::from(saw).samples().max(1) as f64;
    let worse = |a: &(&NodeId, &Observation), b: &(&NodeId, &Observation)| {
        let by_share = share_failed(b.1).total_cmp(&share_failed(a.1));
        by_share.then_with(|| a.0.cmp(b.0))
    };
    let mut vantages: Vec<_> = seen.vantages().collect();
    if vantages.len() > VANTAGES_NAMED {
        vantages.select_nth_unstable_by(VANTAGES_NAMED - 1, worse);
        vantages.truncate(VANTAGES_NAMED);
    }
    vantages.sort_unstable_by(worse);
    vantages
}
