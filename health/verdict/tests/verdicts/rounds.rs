//! The time at which a round is judged, with clocks of vantages that differ.

use std::{collections::BTreeMap, time::Duration};

use topology::{Component, NodeId, RegionId, Tick, policy::HealthPolicy};
use verdict::{
    Before, Health, Rounds, TickReport, Unwanted, Verdict, Watch,
    rounds::{ROUND_WAIT_MAX, SETTLE, TICKS_AHEAD_MAX},
};

use crate::story::{Saw, observation, region, saw};

/// A tick, in milliseconds.
const TICK: u64 = 10_000;
/// The true time at which the control plane starts to watch; no clock is behind the epoch then.
const START: u64 = 100 * TICK;
/// The time at which the region dies.
const DEATH: u64 = START + 6 * TICK + 3_000;
/// Time within a tick at which a vantage probes.
const PROBES_AT: u64 = 7_000;
/// Delay of a vantage's report after the end of its tick.
const REPORTS_AFTER: u64 = 20;

fn vantage(name: &str) -> NodeId {
    NodeId::new(name).expect("the name is an id")
}

fn report(name: &str, tick: u64, saw: Saw) -> TickReport {
    TickReport::new(vantage(name), Tick(tick), vec![observation(Component::Gateway, saw)])
}

/// A control plane that watches one region.
struct Watcher {
    rounds: Rounds,
    policy: HealthPolicy,
    before: BTreeMap<RegionId, Before>,
    verdict: Option<Verdict>,
    vantages: usize,
}

impl Watcher {
    fn of(vantages: usize) -> Self {
        Self {
            rounds: Rounds::default(),
            policy: HealthPolicy::default(),
            before: BTreeMap::new(),
            verdict: None,
            vantages,
        }
    }

    fn watch(&self, at_ms: u64, clock_ms: u64) -> Watch {
        Watch {
            closed: Tick(clock_ms / TICK).back(1),
            at: Duration::from_millis(at_ms),
            vantages: self.vantages,
        }
    }

    /// Judges the rounds that are due; true if there was one.
    fn look(&mut self, at_ms: u64, clock_ms: u64) -> bool {
        let watch = self.watch(at_ms, clock_ms);
        self.rounds.look(watch, &self.policy);
        let Some(tick) = self.rounds.due(watch, &self.policy) else {
            return false;
        };
        let mut verdicts = self.rounds.judge(tick, [&region()], &self.policy, &self.before);
        self.verdict = verdicts.remove(&region());
        self.before = self.verdict.iter().map(|it| (region(), it.into())).collect();
        true
    }

    fn take(&mut self, report: TickReport, at_ms: u64, clock_ms: u64) -> Result<(), Unwanted> {
        self.rounds.take(report, self.watch(at_ms, clock_ms), &self.policy)
    }

    fn health(&self) -> Option<Health> {
        self.verdict.as_ref().map(|it| it.health)
    }
}

/// The true time at which a region that dies is down, and its healths before, with the clocks of the control plane and
/// its edges this many milliseconds ahead of the true time.
fn played(control_plane: i64, edges: &[i64]) -> (Option<u64>, Vec<Health>) {
    let mut watcher = Watcher::of(edges.len() + 1);
    let clock = |now: u64, ahead: i64| now.saturating_add_signed(ahead);
    let names = ["control-plane", "edge-a", "edge-b", "edge-c"];
    let mut clocks = vec![control_plane];
    clocks.extend(edges);
    let mut healths = Vec::new();
    for now in (START..START + 12 * TICK).step_by(10) {
        for (name, ahead) in names.iter().zip(&clocks) {
            let own = clock(now, *ahead);
            if own % TICK != REPORTS_AFTER {
                continue;
            }
            let tick = own / TICK - 1;
            let probed = tick * TICK + PROBES_AT;
            let probed = probed.saturating_add_signed(-ahead);
            let seen = if probed < DEATH { saw(2, 0) } else { saw(0, 2) };
            let taken = watcher.take(report(name, tick, seen), now, clock(now, control_plane));
            assert_eq!(taken, Ok(()), "{name} of {clocks:?}");
        }
        if watcher.look(now, clock(now, control_plane)) {
            healths.extend(watcher.health());
            if watcher.health() == Some(Health::Down) {
                return (Some(now), healths);
            }
        }
    }
    (None, healths)
}

#[test]
fn clocks_that_are_apart_neither_hide_a_dead_region_nor_make_a_living_one_unknown() {
    for skew in [0, 40, 150, 1_300, 2_000, 5_000, 10_000] {
        for ahead in [skew, -skew] {
            for (control_plane, edges) in [
                (ahead, [0, 0]),
                (0, [ahead, 0]),
                (0, [ahead, ahead]),
                (ahead, [-ahead / 2, 0]),
            ] {
                let (down, healths) = played(control_plane, &edges);
                let down = down.unwrap_or_else(|| panic!("never down: {control_plane} and {edges:?}: {healths:?}"));
                let after = Duration::from_millis(down - DEATH);
                assert!(
                    after <= Duration::from_secs(28),
                    "{after:?} with {control_plane} and {edges:?}: {healths:?}"
                );
                // The verdicts while the first round came in do not count; from then on all is known.
                let known = healths
                    .iter()
                    .skip_while(|it| **it == Health::Blind || **it == Health::NoData);
                let unknown = known.filter(|it| matches!(it, Health::NoData | Health::Blind)).count();
                assert_eq!(unknown, 0, "{control_plane} and {edges:?}: {healths:?}");
            }
        }
    }
}

#[test]
fn a_round_is_judged_when_everybody_is_in_and_a_moment_after_most_are() {
    let mut watcher = Watcher::of(3);
    let at = START + 20;
    watcher.take(report("control-plane", 99, saw(2, 0)), at, at).unwrap();
    assert!(!watcher.look(at, at), "one of three is not enough to judge by");
    watcher.take(report("edge-a", 99, saw(2, 0)), at + 5, at + 5).unwrap();
    let settled = at + 5 + SETTLE.as_millis() as u64;
    assert_eq!(watcher.rounds.wakes_at(), Some(Duration::from_millis(settled)));
    assert!(!watcher.look(settled - 1, settled - 1));
    assert!(watcher.look(settled, settled), "two of three settle it");
    assert!(!watcher.look(settled + 1, settled + 1), "once");
    // The third report is late, and counts at once: now all are in.
    watcher
        .take(report("edge-b", 99, saw(0, 2)), settled + 2, settled + 2)
        .unwrap();
    assert!(watcher.look(settled + 2, settled + 2));
    let evidence = &watcher.verdict.as_ref().unwrap().evidence[0];
    assert!(evidence.contains("edge-b 0/2"), "{evidence}");
}

#[test]
fn nobody_waits_for_long_for_a_vantage_that_died() {
    let mut watcher = Watcher::of(3);
    for tick in 100..110 {
        let at = (tick + 1) * TICK + 20;
        for name in ["control-plane", "edge-a"] {
            watcher.take(report(name, tick, saw(2, 0)), at, at).unwrap();
        }
        // The first ticks it could be late; after those it is known to be gone.
        assert_eq!(watcher.look(at, at), tick >= 104, "tick {tick}");
        watcher.look(at + 1_000, at + 1_000);
        assert_eq!(watcher.health(), Some(Health::Healthy));
    }
}

#[test]
fn without_reports_rounds_go_on_by_the_clock() {
    let mut watcher = Watcher::of(3);
    let wait_max = ROUND_WAIT_MAX.as_millis() as u64;
    assert!(!watcher.look(START, START));
    assert!(!watcher.look(START + wait_max - 1, START + wait_max - 1));
    assert!(watcher.look(START + wait_max, START + wait_max));
    assert_eq!(
        (watcher.health(), watcher.rounds.judged()),
        (Some(Health::Blind), Some(Tick(99)))
    );
}

#[test]
fn early_reports_wait_within_bounds_and_late_ones_count_while_they_are_fresh() {
    let mut watcher = Watcher::of(3);
    let at = START + 20;
    let too_early = 99 + TICKS_AHEAD_MAX + 1;
    for (tick, taken) in [(too_early - 1, true), (too_early, false), (u64::MAX, false)] {
        let result = watcher.take(report("edge-a", tick, saw(2, 0)), at, at);
        assert_eq!(result.is_ok(), taken, "tick {tick}: {result:?}");
        assert!(taken || matches!(result, Err(Unwanted::TooEarly(..))));
    }
    // The report waits: no verdict uses it before its time.
    assert!(!watcher.look(at, at));
    // Its first report counts, also when it is early.
    let again = watcher.take(report("edge-a", too_early - 1, saw(0, 2)), at, at);
    assert!(matches!(again, Err(Unwanted::Repeated(..))));
    for (tick, fresh) in [(97, true), (96, false)] {
        let result = watcher.take(report("edge-b", tick, saw(2, 0)), at, at);
        assert_eq!(result.is_ok(), fresh, "tick {tick}: {result:?}");
    }
}

#[test]
fn a_clock_that_goes_back_forgets_what_lies_in_its_future() {
    let mut watcher = Watcher::of(2);
    for tick in 100..103 {
        let at = (tick + 1) * TICK + 20;
        for name in ["control-plane", "edge-a"] {
            watcher.take(report(name, tick, saw(2, 0)), at, at).unwrap();
        }
        watcher.look(at, at);
    }
    assert_eq!(watcher.rounds.judged(), Some(Tick(102)));
    // Two ticks back are a clock that was a little ahead; three are not.
    let at = 103 * TICK + 30;
    let back = |ticks: u64| watcher.watch(at, at - ticks * TICK);
    let (two, three) = (back(2), back(3));
    assert!(!watcher.rounds.look(two, &watcher.policy));
    assert_eq!(watcher.rounds.judged(), Some(Tick(102)));
    assert!(watcher.rounds.look(three, &watcher.policy));
    assert_eq!(watcher.rounds.judged(), None);
    // And judgement goes on from there.
    let clock = at - 3 * TICK;
    for name in ["control-plane", "edge-a"] {
        watcher.take(report(name, 99, saw(2, 0)), at, clock).unwrap();
    }
    assert!(watcher.look(at, clock));
    assert_eq!(watcher.health(), Some(Health::Healthy));
}
