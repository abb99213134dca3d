//! From windows to verdicts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{Component, Level, NodeId, RegionId, Tick, policy::HealthPolicy};

use crate::{
    Before, Fired, Health, Latency, Observation, TrafficSeen, Trigger, Verdict, Windows,
    spread::Spread,
    trigger::Limit,
    window::{Believed, Counts, TickSeen},
};

/// Vantages named one by one in a line of evidence; of the rest only the number is told. A fleet has hundreds.
const VANTAGES_NAMED: usize = 5;

/// Judges every region on the ticks up to and including `last_closed`. A region missing in `before` was well.
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
    let believed = Trigger::ALL.map(|trigger| {
        let fallen = before.fallen.contains(&trigger);
        windows.believed(region, trigger, policy, last_closed, fallen)
    });
    let of = |trigger: Trigger| &believed[trigger as usize];
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
    // One that still fails says more than one that is on its way back.
    let seen = || failovers.clone().filter(|it| is_fresh(it.trigger));
    let down = seen().find(|it| it.failing).or_else(|| seen().next());
    let suspected = [Trigger::GatewayConnections, Trigger::AsrErrors]
        .into_iter()
        .find(|trigger| of(*trigger).run.bad > 0 && is_fresh(*trigger));
    let broken = broken_component(region, windows, policy, last_closed);
    let stacks = Stacks::of(region, windows, policy, last_closed);

    let (health, summary) = if !is_fresh(Trigger::GatewayConnections) {
        let ticks = policy.blind_ticks;
        (
            Health::Blind,
            format!("nothing usable was seen for {ticks} ticks or more; no automatic action"),
        )
    } else if let Some(fired) = down {
        (Health::Down, fired.why.clone())
    } else if let Some(unseen) = failovers.next() {
        // Nobody has seen that it works again, so it is not well; nobody sees that it fails, so it is not down.
        let (component, ticks) = (unseen.trigger.component(), policy.blind_ticks);
        (
            Health::Blind,
            format!("{component} was bad and has not been seen for {ticks} ticks or more; no automatic action"),
        )
    } else if connections.newest_known != Some(last_closed) {
        (
            Health::NoData,
            "too little was seen in the last tick; the window is frozen".to_owned(),
        )
    } else if let Some(trigger) = suspected {
        (Health::Suspect, describe_pending(trigger, of(trigger), policy))
    } else if level > Level::L0 {
        let words: Vec<String> = levels().map(|(level, it)| format!("{level}: {}", it.why)).collect();
        (Health::Degraded, words.join("; "))
    } else if !stacks.dead.is_empty() {
        (Health::Degraded, stacks.describe())
    } else if let Some(component) = broken {
        (
            Health::Degraded,
            format!(
                "more than {:.0} % of what {component} did failed",
                policy.asr_error_max * 100.0
            ),
        )
    } else {
        (Health::Healthy, "every component works".to_owned())
    };

    let decided_by = match health {
        Health::Down => down.map(|it| it.trigger),
        Health::Suspect => suspected,
        _ => None,
    };
    let bad_from = decided_by.and_then(|trigger| of(trigger).accusation.as_ref());
    let down = down.filter(|_| health == Health::Down);
    let newest_bad = believed.iter().filter_map(|it| it.run.newest_bad).max();
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
        dead_stacks: Stacks::lastingly_dead(region, windows, policy, last_closed),
        tick: last_closed,
        summary,
        evidence: [
            stacks.evidence(region),
            evidence(region, windows, policy, last_closed, &believed, broken),
        ]
        .concat(),
        fired,
    }
}

/// The stacks of a region in one tick.
#[derive(Default)]
struct Stacks {
    /// Those that fail for themselves, with what succeeded of how much.
    dead: Vec<(SocketAddr, u64, u64)>,
    all: usize,
}

impl Stacks {
    fn of(region: &RegionId, windows: &Windows, policy: &HealthPolicy, last_closed: Tick) -> Self {
        let newest = windows.ticks(region, Component::Gateway, last_closed).next_back();
        let seen = newest.filter(|(tick, _)| *tick == last_closed);
        seen.map(|(_, seen)| Self::in_tick(seen, policy)).unwrap_or_default()
    }

    fn in_tick(seen: TickSeen<'_>, policy: &HealthPolicy) -> Self {
        let limit = Limit::SuccessBelow(policy.gateway_success_min);
        let all = seen.stacks().count();
        // A region with one stack is judged as a whole.
        let dead = seen
            .stacks()
            .filter(|(_, seen)| all > 1 && limit.call_of_all(*seen, policy).is_bad());
        Self {
            dead: dead
                .map(|(stack, seen)| (stack, seen.total().succeeded, seen.total().samples()))
                .collect(),
            all,
        }
    }

    /// See [`Verdict::dead_stacks`]. It goes by the newest ticks that are known, so a tick without reports revives no stack.
    fn lastingly_dead(
        region: &RegionId,
        windows: &Windows,
        policy: &HealthPolicy,
        last_closed: Tick,
    ) -> BTreeSet<SocketAddr> {
        let patience = policy.gateway_ticks.max(1) as usize;
        let ticks = windows.ticks(region, Component::Gateway, last_closed).rev();
        let dead: Vec<BTreeSet<SocketAddr>> = ticks
            .take(patience)
            .map(|(_, seen)| {
                Self::in_tick(seen, policy)
                    .dead
                    .iter()
                    .map(|(stack, ..)| *stack)
                    .collect()
            })
            .collect();
        if dead.len() < patience {
            return BTreeSet::new();
        }
        dead.into_iter().reduce(|one, other| &one & &other).unwrap_or_default()
    }

    fn describe(&self) -> String {
        let Some((stack, ..)) = self.dead.first() else {
            return String::new();
        };
        let more = match self.dead.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "stack {stack}{more} fails, and edges pass it over; {} of {} stacks serve",
            self.all - self.dead.len(),
            self.all
        )
    }

    /// One line for each stack that fails, up to a few.
    fn evidence(&self, region: &RegionId) -> Vec<String> {
        let serving = self.all - self.dead.len();
        let line = |(stack, succeeded, samples): &(SocketAddr, u64, u64)| {
            let what = match succeeded {
                0 => "answers nobody".to_owned(),
                some => format!("answers {some} of {samples}"),
            };
            let serve = if serving == 1 { "serves" } else { "serve" };
            format!(
                "stack {stack} of {region} {what}; {serving} of {} stacks {serve}",
                self.all
            )
        };
        self.dead.iter().take(VANTAGES_NAMED).map(line).collect()
    }
}

/// The first component without a failover trigger of its own that fails more than ASR may: the region serves, with less.
fn broken_component(
    region: &RegionId,
    windows: &Windows,
    policy: &HealthPolicy,
    last_closed: Tick,
) -> Option<Component> {
    [
        Component::Nlu,
        Component::Skills,
        Component::Tts,
        Component::SessionStore,
    ]
    .into_iter()
    .find(|component| {
        let newest = windows.ticks(region, *component, last_closed).next_back();
        newest.is_some_and(|(_, seen)| Limit::ErrorsAbove(policy.asr_error_max).call(seen, policy).is_bad())
    })
}

fn describe_fired(trigger: Trigger, believed: &Believed, policy: &HealthPolicy) -> Fired {
    let patience = trigger.patience(policy);
    let what = match &believed.accusation {
        Some(accusation) => accusation.what.clone(),
        None => trigger.condition(policy),
    };
    let held = if trigger.level().is_none() { "down" } else { "held" };
    let is_in_a_row = believed.run.bad >= patience.fall;
    let failing = believed.run.bad > 0 || believed.spread == Spread::Bad;
    let why = if believed.spread != Spread::Clear && !is_in_a_row {
        let spread = believed.describe_spread();
        format!("{what} {spread}; {held} until fewer of them are bad")
    } else if failing {
        format!("{what} for {} ticks", patience.fall)
    } else if believed.run.newest_known.is_none() {
        format!(
            "{what}, as was believed before; {held} until {} good ticks in a row",
            patience.rise
        )
    } else {
        let (fall, rise) = (patience.fall, patience.rise);
        format!("{what} for {fall} ticks; good again, {held} until {rise} good ticks in a row")
    };
    Fired { trigger, failing, why }
}

fn describe_pending(trigger: Trigger, believed: &Believed, policy: &HealthPolicy) -> String {
    let what = match trigger {
        Trigger::GatewayConnections => "gateway connections bad".to_owned(),
        Trigger::AsrErrors => "asr errors".to_owned(),
        _ => trigger.condition(policy),
    };
    let needed = trigger.patience(policy).fall;
    format!("{what} in {} of {needed} ticks needed", believed.run.bad)
}

fn evidence(
    region: &RegionId,
    windows: &Windows,
    policy: &HealthPolicy,
    last_closed: Tick,
    believed: &[Believed; Trigger::ALL.len()],
    broken: Option<Component>,
) -> Vec<String> {
    let mut evidence = Vec::new();
    // The last ticks that could decide it, newest first; older ones add nothing to the picture.
    let gateway = windows.ticks(region, Component::Gateway, last_closed).rev();
    for (tick, seen) in gateway.take(policy.gateway_ticks.max(2) as usize) {
        evidence.push(describe_tick(Component::Gateway, tick, seen));
    }
    // Of the others the newest tick: of recognition always, of the rest what is bad or was.
    let concerns = |component: Component| {
        let of_it = |trigger: &Trigger| trigger.component() == component;
        let bad = |trigger: &Trigger| believed[*trigger as usize].run.fallen || believed[*trigger as usize].run.bad > 0;
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
        let believed = &believed[trigger as usize];
        if believed.run.bad > 0 && !believed.run.fallen {
            evidence.push(describe_pending(trigger, believed, policy));
        }
    }
    let newest = windows.ticks(region, Component::Gateway, last_closed).next_back();
    if newest.is_none_or(|(tick, _)| tick != last_closed) {
        evidence.push(format!("gateway: nobody reported on tick {}", last_closed.start()));
    }
    evidence
}

fn describe_tick(component: Component, tick: Tick, seen: TickSeen<'_>) -> String {
    let total = seen.total();
    // Where all is well in a fleet of hundreds, the first few names say nothing.
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
        words.push(format!("{vantage} {saw_succeed}/{saw_all}"));
        (succeeded, samples) = (succeeded - saw_succeed, samples - saw_all);
    }
    let rest = seen.vantages().len() - named.len();
    if rest > 0 {
        let more = if named.is_empty() { "" } else { "more " };
        words.push(format!("{rest} {more}vantages {succeeded}/{samples}"));
    }
    let percentile = |name: &str, q: f64| {
        let ms = total.latency.and_then(|latency| latency.quantile(q));
        ms.map(|ms| format!(", {name} {ms:.0} ms")).unwrap_or_default()
    };
    let p99 = match component {
        Component::Asr => percentile("p99", 0.99),
        _ => String::new(),
    };
    // What each of them says once is enough, and one line of it.
    let failure = failures.first().map(|failure| {
        let more = failures.len() - 1;
        let more = if more > 0 {
            format!(" (and {more} other failures)")
        } else {
            String::new()
        };
        format!("; {failure:.60}{more}")
    });
    format!(
        "{component} at {}: {} ok{}{p99}{}",
        tick.start(),
        words.join(" · "),
        percentile("p95", 0.95),
        failure.unwrap_or_default()
    )
}

/// What real traffic came to: `traffic at 12:00:10: 40/41 connections · 1 lost · 118/120 turns, p95 480 ms …`.
fn describe_traffic((tick, seen, vantages): (Tick, &TrafficSeen, usize)) -> String {
    let of = |ok: u32, failed: u32| format!("{ok}/{}", ok.saturating_add(failed));
    let p95 = |name: &str, latency: &Latency| {
        let ms = latency.quantile(0.95);
        ms.map(|ms| format!(", {name}p95 {ms:.0} ms")).unwrap_or_default()
    };
    format!(
        "traffic at {}: {} connections ok{}{} · {} lost midway · {} turns ok{}; seen by {vantages}",
        tick.start(),
        of(seen.connects_ok, seen.connects_failed),
        p95("connect ", &seen.connect),
        p95("first byte ", &seen.first_byte),
        seen.aborts,
        of(seen.turns_ok, seen.turns_failed),
        p95("", &seen.turn),
    )
}

/// The vantages that saw the largest share fail, the worst first: they are what decides.
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
