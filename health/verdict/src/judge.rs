//! The triggers, and the verdict they lead to.
//!
//! Each trigger calls every closed tick good, bad or unknown. Unknown ticks freeze it: they neither count nor clear. It
//! falls after so many bad ticks in a row and rises after so many good ones; both counts come from the policy, and
//! rising is slower than falling, which keeps a flapping region out.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use topology::{Component, Level, Moment, RegionId, Tick, policy::HealthPolicy};

use crate::{
    Latency, Observation,
    window::{TickSeen, Windows, merged_latency},
};

/// Vantages named one by one in a line of evidence; of the rest only the number is told. A fleet has hundreds.
const VANTAGES_NAMED: usize = 5;
/// Fewest latencies a P99 is taken from: below this it would be the second slowest, or the slowest.
const P99_SAMPLES_MIN: usize = 100;

/// What we believe about a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Every component works.
    Healthy,
    /// Something was bad in the last tick, and no trigger has fired.
    Suspect,
    /// It serves, with less: see the level.
    Degraded,
    /// A failover trigger has fired.
    Down,
    /// Too little was seen in the last tick to say; the verdict before it stands.
    NoData,
    /// Nothing has been seen for so long that nothing may be decided.
    Blind,
}

impl Health {
    /// The name used in tables and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Suspect => "suspect",
            Self::Degraded => "degraded",
            Self::Down => "down",
            Self::NoData => "no-data",
            Self::Blind => "blind",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A rule of the policy that can fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// Too few connections to the gateway succeed.
    GatewayConnections,
    /// Too many recognitions fail.
    AsrErrors,
    /// Recognition is far too slow.
    AsrLatency,
}

/// What we believe about a region, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which region.
    pub region: RegionId,
    /// What we believe.
    pub health: Health,
    /// How far its service should be degraded.
    pub level: Level,
    /// The failover trigger that fired, while `health` is down.
    pub trigger: Option<Trigger>,
    /// Whether it was still bad in the newest tick. A region that is down and no longer failing is on its way back.
    pub failing: bool,
    /// Since when every tick was known and good; none while the newest was not.
    pub healthy_since: Option<Moment>,
    /// The tick that decided it.
    pub tick: Tick,
    /// One sentence for people.
    pub summary: String,
    /// What was seen, one fact a line.
    pub evidence: Vec<String>,
}

/// What was believed before: windows end somewhere, and what fell before their beginning has not risen since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Before {
    /// A failover trigger had fired.
    pub down: bool,
    /// How far service was degraded.
    pub level: Level,
}

impl From<&Verdict> for Before {
    fn from(verdict: &Verdict) -> Self {
        Self {
            down: verdict.health == Health::Down,
            level: verdict.level,
        }
    }
}

/// Judges every region on the ticks up to and including `last_closed`. A region missing in `before` was well.
pub fn judge<'r>(
    regions: impl IntoIterator<Item = &'r RegionId>,
    windows: &Windows,
    policy: &HealthPolicy,
    last_closed: Tick,
    before: &BTreeMap<RegionId, Before>,
) -> BTreeMap<RegionId, Verdict> {
    let verdict = |region: &RegionId| {
        let before = before.get(region).copied().unwrap_or_default();
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
    before: Before,
) -> Verdict {
    let gateway = windows.ticks(region, Component::Gateway, last_closed);
    let asr = windows.ticks(region, Component::Asr, last_closed);
    let is_fresh = |newest: Option<Tick>| newest.is_some_and(|it| last_closed.0 - it.0 < u64::from(policy.blind_ticks));
    let too_many_errors = |ratio: f64| 1.0 - ratio > policy.asr_error_max;

    let connections = Latch::over(
        before.down,
        gateway.iter().map(|(tick, seen)| {
            (
                *tick,
                ratio_of(seen, policy, |ratio| ratio < policy.gateway_success_min),
            )
        }),
        policy.gateway_ticks,
        policy.recover_ticks,
    );
    let errors = Latch::over(
        false,
        asr.iter()
            .map(|(tick, seen)| (*tick, ratio_of(seen, policy, too_many_errors))),
        policy.asr_error_ticks,
        policy.recover_ticks,
    );
    let edge_asr_ms = policy.edge_asr_p95_max.as_secs_f64() * 1000.0;
    let slow = Latch::over(
        before.level >= Level::L1,
        asr.iter()
            .map(|(tick, seen)| (*tick, slow_of(seen, policy, edge_asr_ms))),
        policy.edge_asr_ticks,
        policy.edge_asr_recover_ticks,
    );
    // A window that was too slow counts until it has not been for as long as any other trigger needs to rise.
    let far_too_slow_at = |tick: Tick| far_too_slow(&asr, policy, tick);
    let p99_now = far_too_slow_at(last_closed);
    let p99 =
        p99_now.or_else(|| (1..u64::from(policy.recover_ticks)).find_map(|by| far_too_slow_at(last_closed.back(by))));

    let level = if slow.fallen { Level::L1 } else { Level::L0 };
    let asr_is_fresh = is_fresh(errors.newest_known);
    let fired = [
        (connections.fallen, Trigger::GatewayConnections, connections.bad_run > 0),
        (errors.fallen && asr_is_fresh, Trigger::AsrErrors, errors.bad_run > 0),
        (p99.is_some() && asr_is_fresh, Trigger::AsrLatency, p99_now.is_some()),
    ];
    let fired = fired
        .into_iter()
        .find(|(fallen, ..)| *fallen)
        .map(|(_, trigger, failing)| (trigger, failing));
    let broken = broken_component(region, windows, policy, last_closed);

    let (health, summary) = if !is_fresh(connections.newest_known) {
        let ticks = policy.blind_ticks;
        (
            Health::Blind,
            format!("nothing usable was seen for {ticks} ticks or more; no automatic action"),
        )
    } else if let Some((trigger, failing)) = fired {
        let what = describe(trigger, p99, policy);
        let back = format!(
            "{what}; good again, down until {} good ticks in a row",
            policy.recover_ticks
        );
        (Health::Down, if failing { what } else { back })
    } else if connections.newest_known != Some(last_closed) {
        (
            Health::NoData,
            "too little was seen in the last tick; the window is frozen".to_owned(),
        )
    } else if connections.bad_run > 0 {
        let needed = policy.gateway_ticks;
        (
            Health::Suspect,
            format!(
                "gateway connections bad in {} of {needed} ticks needed",
                connections.bad_run
            ),
        )
    } else if errors.bad_run > 0 && asr_is_fresh {
        let needed = policy.asr_error_ticks;
        (
            Health::Suspect,
            format!("asr errors in {} of {needed} ticks needed", errors.bad_run),
        )
    } else if level > Level::L0 {
        (Health::Degraded, format!("asr p95 above {edge_asr_ms:.0} ms"))
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

    let mut evidence = Vec::new();
    // The last ticks that could decide it, newest first; older ones add nothing to the picture.
    for (tick, seen) in gateway.iter().rev().take(policy.gateway_ticks.max(2) as usize) {
        evidence.push(describe_tick(Component::Gateway, *tick, seen));
    }
    for component in [Some(Component::Asr), broken].into_iter().flatten() {
        if let Some((tick, seen)) = windows.ticks(region, component, last_closed).last() {
            evidence.push(describe_tick(component, *tick, seen));
        }
    }
    if gateway.last().is_none_or(|(tick, _)| *tick != last_closed) {
        evidence.push(format!("gateway: nobody reported on tick {}", last_closed.start()));
    }
    let (trigger, fired_failing) = fired.filter(|_| health == Health::Down).unzip();
    Verdict {
        region: region.clone(),
        health,
        level,
        trigger,
        failing: fired_failing.unwrap_or(connections.bad_run > 0),
        healthy_since: connections
            .good_since(last_closed)
            .filter(|_| health == Health::Healthy),
        tick: last_closed,
        summary,
        evidence,
    }
}

/// The first component without a trigger of its own that fails more than ASR may: the region serves, with less.
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
        let newest = windows.ticks(region, *component, last_closed).pop();
        newest.is_some_and(|(tick, seen)| {
            let fresh = last_closed.0 - tick.0 < u64::from(policy.blind_ticks);
            fresh && ratio_of(seen, policy, |ratio| 1.0 - ratio > policy.asr_error_max) == Called::Bad
        })
    })
}

/// What one trigger makes of one tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Called {
    Good,
    Bad,
    Unknown,
}

/// A tick by its share of successes. Bad needs enough samples and enough vantages that each see it bad: one vantage
/// alone may be the one that is cut off.
fn ratio_of(seen: &TickSeen, policy: &HealthPolicy, is_bad: impl Fn(f64) -> bool) -> Called {
    let ratio = |succeeded: u64, samples: u64| succeeded as f64 / samples as f64;
    let (mut succeeded, mut samples, mut vantages, mut vantages_bad) = (0, 0, 0, 0);
    for observation in seen.values().filter(|observation| observation.samples() > 0) {
        let (ok, all) = (u64::from(observation.succeeded), u64::from(observation.samples()));
        succeeded += ok;
        samples += all;
        vantages += 1;
        vantages_bad += u32::from(is_bad(ratio(ok, all)));
    }
    if samples < u64::from(policy.samples_min) || vantages < policy.vantages_min {
        Called::Unknown
    } else if is_bad(ratio(succeeded, samples)) && vantages_bad >= policy.vantages_min {
        Called::Bad
    } else {
        Called::Good
    }
}

/// A tick by the P95 of recognition: over all vantages, and on each of enough vantages alone.
fn slow_of(seen: &TickSeen, policy: &HealthPolicy, limit_ms: f64) -> Called {
    let merged = merged_latency([seen]);
    let is_slow = |latency: &Latency| latency.quantile(0.95).is_some_and(|p95| p95 > limit_ms);
    let timed = || {
        seen.values()
            .map(|observation| &observation.latency)
            .filter(|latency| latency.count() > 0)
    };
    let enough = |count: usize| count >= policy.vantages_min as usize;
    if merged.count() < policy.samples_min as usize || !enough(timed().count()) {
        Called::Unknown
    } else if is_slow(&merged) && enough(timed().filter(|latency| is_slow(latency)).count()) {
        Called::Bad
    } else {
        Called::Good
    }
}

/// The P99 of recognition over the whole window that ends with `last`, when the window is full, has enough in it for a
/// P99, and enough vantages see it above the limit.
fn far_too_slow(asr: &[(Tick, &TickSeen)], policy: &HealthPolicy, last: Tick) -> Option<f64> {
    let limit_ms = policy.asr_p99_max.as_secs_f64() * 1000.0;
    let window = last.back(u64::from(policy.asr_p99_ticks) - 1)..=last;
    let known = |seen: &&TickSeen| slow_of(seen, policy, limit_ms) != Called::Unknown;
    let seen: Vec<&TickSeen> = asr
        .iter()
        .filter(|(tick, _)| window.contains(tick))
        .map(|(_, seen)| *seen)
        .filter(known)
        .collect();
    if seen.len() < policy.asr_p99_ticks as usize {
        return None;
    }
    let merged = merged_latency(seen.iter().copied());
    let p99 = merged
        .quantile(0.99)
        .filter(|p99| *p99 > limit_ms && merged.count() >= P99_SAMPLES_MIN)?;
    let mut by_vantage: BTreeMap<_, Latency> = BTreeMap::new();
    for (vantage, observation) in seen.into_iter().flatten() {
        by_vantage.entry(vantage).or_default().merge(&observation.latency);
    }
    let slow = by_vantage
        .values()
        .filter(|latency| latency.quantile(0.99).is_some_and(|p99| p99 > limit_ms));
    (slow.count() >= policy.vantages_min as usize).then_some(p99)
}

/// Falls after `fall` bad ticks in a row, rises after `rise` good ones; unknown ticks change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Latch {
    fallen: bool,
    bad_run: u32,
    newest_known: Option<Tick>,
    /// First of the ticks in a row, without a gap, that were good up to the newest known one.
    good_from: Option<Tick>,
}

impl Latch {
    fn over(fallen: bool, ticks: impl Iterator<Item = (Tick, Called)>, fall: u32, rise: u32) -> Self {
        let mut latch = Self {
            fallen,
            bad_run: 0,
            newest_known: None,
            good_from: None,
        };
        let mut good_run = 0;
        for (tick, called) in ticks {
            let follows = latch.newest_known == Some(tick.back(1));
            match called {
                Called::Bad => (latch.bad_run, good_run, latch.good_from) = (latch.bad_run + 1, 0, None),
                Called::Good => {
                    (latch.bad_run, good_run) = (0, good_run + 1);
                    latch.good_from = latch.good_from.filter(|_| follows).or(Some(tick));
                }
                Called::Unknown => continue,
            }
            latch.newest_known = Some(tick);
            latch.fallen = (latch.fallen && good_run < rise) || latch.bad_run >= fall;
        }
        latch
    }

    fn good_since(&self, last_closed: Tick) -> Option<Moment> {
        self.good_from
            .filter(|_| self.newest_known == Some(last_closed))
            .map(Tick::start)
    }
}

fn describe(trigger: Trigger, p99: Option<f64>, policy: &HealthPolicy) -> String {
    match trigger {
        Trigger::GatewayConnections => {
            let percent = policy.gateway_success_min * 100.0;
            format!(
                "gateway connection success below {percent:.0} % for {} ticks",
                policy.gateway_ticks
            )
        }
        Trigger::AsrErrors => {
            let percent = policy.asr_error_max * 100.0;
            format!("asr errors above {percent:.0} % for {} ticks", policy.asr_error_ticks)
        }
        Trigger::AsrLatency => format!(
            "asr p99 of {:.0} ms over {} ticks",
            p99.unwrap_or_default(),
            policy.asr_p99_ticks
        ),
    }
}

fn describe_tick(component: Component, tick: Tick, seen: &TickSeen) -> String {
    let share_failed = |seen: &Observation| f64::from(seen.failed) / f64::from(seen.samples().max(1));
    let mut vantages: Vec<_> = seen.iter().collect();
    // The worst first: they are what decides. The sort is stable, so equal ones stay in the order of names.
    vantages.sort_by(|(_, a), (_, b)| share_failed(b).total_cmp(&share_failed(a)));
    let mut words: Vec<String> = vantages
        .iter()
        .take(VANTAGES_NAMED)
        .map(|(vantage, seen)| {
            let failure = if seen.failure.is_empty() {
                String::new()
            } else {
                format!(", {}", seen.failure)
            };
            format!("{vantage} {}/{} ok{failure}", seen.succeeded, seen.samples())
        })
        .collect();
    if let Some(rest) = vantages.get(VANTAGES_NAMED..).filter(|rest| !rest.is_empty()) {
        let (ok, all) = rest.iter().fold((0_u64, 0_u64), |(ok, all), (_, seen)| {
            (ok + u64::from(seen.succeeded), all + u64::from(seen.samples()))
        });
        words.push(format!("{} more vantages {ok}/{all} ok", rest.len()));
    }
    let p95 = merged_latency([seen])
        .quantile(0.95)
        .map(|ms| format!(", p95 {ms:.0} ms"))
        .unwrap_or_default();
    format!(
        "{component} in {}..{}: {}{p95}",
        tick.start(),
        tick.end(),
        words.join(" · ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Observation, Source, TickReport};
    use topology::NodeId;

    fn region() -> RegionId {
        RegionId::new("us-east").unwrap()
    }

    /// Ticks 1.. in which each of the named vantages sees (succeeded, failed, latency) of a component.
    struct Story {
        windows: Windows,
        tick: u64,
        policy: HealthPolicy,
        before: Before,
    }

    impl Story {
        fn new() -> Self {
            let (policy, before) = (HealthPolicy::default(), Before::default());
            Self {
                windows: Windows::default(),
                tick: 0,
                policy,
                before,
            }
        }

        fn tick(&mut self, seen: &[(&str, Component, u32, u32, f64)]) -> &mut Self {
            self.tick += 1;
            for (vantage, component, succeeded, failed, ms) in seen {
                let mut observation = Observation::new(region(), *component, Source::Probe);
                (0..*succeeded).for_each(|_| observation.succeed(*ms));
                (0..*failed).for_each(|_| observation.fail("connection refused"));
                // What the other component saw in this tick must not be replaced: report under the same vantage.
                let report = TickReport::new(NodeId::new(vantage).unwrap(), Tick(self.tick), vec![observation]);
                self.windows.take(report, Tick(self.tick)).unwrap();
            }
            self
        }

        fn gateway(&mut self, ticks: u32, a: (u32, u32), b: (u32, u32)) -> &mut Self {
            for _ in 0..ticks {
                self.tick(&[
                    ("edge-a", Component::Gateway, a.0, a.1, 5.0),
                    ("edge-b", Component::Gateway, b.0, b.1, 5.0),
                ]);
            }
            self
        }

        fn asr(&mut self, ticks: u32, succeeded: u32, failed: u32, ms: f64) -> &mut Self {
            for _ in 0..ticks {
                self.tick(&[
                    ("edge-a", Component::Gateway, 5, 0, 5.0),
                    ("edge-b", Component::Gateway, 5, 0, 5.0),
                    ("edge-a", Component::Asr, succeeded, failed, ms),
                    ("edge-b", Component::Asr, succeeded, failed, ms),
                ]);
            }
            self
        }

        fn verdict(&self) -> Verdict {
            judge_region(&region(), &self.windows, &self.policy, Tick(self.tick), self.before)
        }

        fn check(&self, health: Health) -> &Self {
            let verdict = self.verdict();
            assert_eq!(verdict.health, health, "{verdict:#?}");
            self
        }
    }

    #[test]
    fn a_region_nobody_can_reach_is_down_after_two_ticks_not_one() {
        let mut story = Story::new();
        story.gateway(3, (5, 0), (5, 0)).check(Health::Healthy);
        story.gateway(1, (0, 5), (0, 5)).check(Health::Suspect);
        story.gateway(1, (0, 5), (0, 5)).check(Health::Down);
        let verdict = story.verdict();
        assert_eq!(verdict.trigger, Some(Trigger::GatewayConnections));
        assert!(
            verdict.evidence[0].contains("edge-a 0/5 ok, connection refused"),
            "{verdict:#?}"
        );
    }

    #[test]
    fn connection_success_is_judged_at_its_boundary() {
        // 95 of 100 is not below 95 %; 94 is.
        Story::new().gateway(2, (95, 5), (95, 5)).check(Health::Healthy);
        Story::new().gateway(2, (94, 6), (94, 6)).check(Health::Down);
    }

    #[test]
    fn no_vantage_alone_takes_a_region_down() {
        Story::new().gateway(10, (0, 50), (5, 0)).check(Health::Healthy);
        let mut story = Story::new();
        for _ in 0..10 {
            story.tick(&[("edge-a", Component::Gateway, 0, 50, 5.0)]);
        }
        story.check(Health::Blind);
    }

    #[test]
    fn silence_is_not_failure_it_freezes_and_then_blinds() {
        let mut story = Story::new();
        story
            .gateway(3, (5, 0), (5, 0))
            .gateway(1, (0, 5), (0, 5))
            .check(Health::Suspect);
        story.tick(&[]).check(Health::NoData);
        // The bad tick before the silence still counts: one more makes two.
        story.gateway(1, (0, 5), (0, 5)).check(Health::Down);
        story.tick(&[]).tick(&[]).tick(&[]).check(Health::Blind);
    }

    #[test]
    fn a_region_that_was_down_needs_three_good_ticks() {
        let mut story = Story::new();
        story
            .gateway(2, (0, 5), (0, 5))
            .gateway(2, (5, 0), (5, 0))
            .check(Health::Down);
        story
            .gateway(1, (0, 5), (0, 5))
            .gateway(2, (5, 0), (5, 0))
            .check(Health::Down);
        story.gateway(1, (5, 0), (5, 0)).check(Health::Healthy);
    }

    #[test]
    fn asr_errors_fire_at_the_twelfth_tick_above_ten_percent() {
        Story::new().asr(11, 80, 20, 50.0).check(Health::Suspect);
        let mut story = Story::new();
        story.asr(12, 80, 20, 50.0).check(Health::Down);
        assert_eq!(story.verdict().trigger, Some(Trigger::AsrErrors));
        // Exactly 10 % is not above 10 %.
        Story::new().asr(20, 90, 10, 50.0).check(Health::Healthy);
    }

    #[test]
    fn slow_recognition_moves_it_to_the_edge_and_back() {
        let mut story = Story::new();
        story.asr(5, 10, 0, 700.0).check(Health::Healthy);
        story.asr(1, 10, 0, 700.0).check(Health::Degraded);
        assert_eq!(story.verdict().level, Level::L1);
        story.asr(11, 10, 0, 100.0);
        assert_eq!(story.verdict().level, Level::L1);
        story.asr(1, 10, 0, 100.0).check(Health::Healthy);
    }

    #[test]
    fn recognition_far_too_slow_for_five_minutes_is_down() {
        let mut story = Story::new();
        story.asr(29, 10, 0, 2500.0).check(Health::Degraded);
        story.asr(1, 10, 0, 2500.0).check(Health::Down);
        assert_eq!(story.verdict().trigger, Some(Trigger::AsrLatency));
    }

    #[test]
    fn one_vantage_that_is_slow_alone_changes_nothing() {
        let mut story = Story::new();
        for _ in 0..40 {
            story.tick(&[
                ("edge-a", Component::Gateway, 5, 0, 5.0),
                ("edge-b", Component::Gateway, 5, 0, 5.0),
                ("edge-a", Component::Asr, 500, 0, 3000.0),
                ("edge-b", Component::Asr, 1, 0, 20.0),
            ]);
        }
        story.check(Health::Healthy);
    }

    #[test]
    fn two_slow_answers_among_a_few_are_no_p99() {
        let mut story = Story::new();
        story.asr(29, 1, 0, 20.0).asr(1, 1, 0, 2500.0).check(Health::Healthy);
    }

    #[test]
    fn a_region_that_fell_before_the_window_began_still_has_to_rise() {
        // After a restart nothing is in the window; the plan says that the region was evacuated.
        let mut story = Story::new();
        story.before = Before {
            down: true,
            level: Level::L1,
        };
        story.gateway(1, (5, 0), (5, 0)).check(Health::Down);
        assert!(!story.verdict().failing);
        assert_eq!(story.verdict().level, Level::L1);
        // Good and bad in turn never rises, however long it goes on.
        for _ in 0..60 {
            story.gateway(1, (0, 5), (0, 5)).gateway(1, (5, 0), (5, 0));
            story.windows.forget(&story.policy, Tick(story.tick), |_| true);
            story.check(Health::Down);
        }
        story.gateway(2, (5, 0), (5, 0)).check(Health::Degraded);
    }

    #[test]
    fn a_component_without_a_trigger_degrades_its_region() {
        let mut story = Story::new();
        story.gateway(3, (5, 0), (5, 0));
        let good = story.verdict().healthy_since;
        assert_eq!(good, Some(Tick(1).start()));
        story.tick(&[
            ("edge-a", Component::Gateway, 5, 0, 5.0),
            ("edge-b", Component::Gateway, 5, 0, 5.0),
            ("edge-a", Component::Tts, 0, 1, 5.0),
            ("edge-b", Component::Tts, 0, 1, 5.0),
        ]);
        story.check(Health::Degraded);
        assert!(story.verdict().summary.contains("tts"), "{:#?}", story.verdict());
        assert_eq!(story.verdict().healthy_since, None);
    }

    #[test]
    fn reports_from_the_future_and_the_past_do_not_count() {
        let report = |tick| TickReport::new(NodeId::new("v").unwrap(), Tick(tick), vec![]);
        let mut windows = Windows::default();
        assert!(matches!(
            windows.take(report(11), Tick(10)),
            Err(crate::Unwanted::NotClosed(..))
        ));
        assert!(matches!(
            windows.take(report(7), Tick(10)),
            Err(crate::Unwanted::Stale(..))
        ));
        assert!(windows.take(report(8), Tick(10)).is_ok());
    }
}
