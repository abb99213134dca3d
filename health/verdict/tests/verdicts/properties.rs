//! Properties of every history.

use std::collections::BTreeMap;

use proptest::prelude::*;
use topology::{Component, NodeId, Tick, policy::HealthPolicy};
use verdict::{Before, Health, Source, TickReport, Verdict, Windows, judge};

use crate::story::{Saw, observation, region};

fn any_saw() -> impl Strategy<Value = Saw> {
    (0u32..40, 0u32..40, 0.0..5000.0_f64, 0u32..40).prop_map(|(fast, slow, slow_ms, failed)| Saw {
        fast,
        slow,
        slow_ms,
        failed,
    })
}

fn any_component() -> impl Strategy<Value = Component> {
    prop::sample::select(Component::ALL.to_vec())
}

/// One tick: the observations of each of four vantages, and the delay of its report in ticks.
type Told = Vec<(usize, Vec<(Component, Saw)>, u64)>;

fn any_tick() -> impl Strategy<Value = Told> {
    let seen = prop::collection::vec((any_component(), any_saw()), 0..8);
    prop::collection::vec((0usize..4, seen, 0u64..5), 0..6)
}

fn report(vantage: usize, tick: u64, seen: &[(Component, Saw)]) -> TickReport {
    let mut observations: Vec<_> = seen
        .iter()
        .map(|(component, saw)| observation(*component, *saw))
        .collect();
    for (number, observation) in observations.iter_mut().enumerate() {
        observation.source = [Source::Probe, Source::Traffic][number % 2];
    }
    let vantage = NodeId::new(&format!("edge-{vantage}")).expect("the name is an id");
    TickReport::new(vantage, Tick(tick), observations)
}

/// The verdicts tick by tick. `forgets`: ticks are settled as soon as they can be, or never.
fn play(history: &[Told], backwards: bool, forgets: bool) -> Vec<Verdict> {
    play_all(history, backwards, forgets).0
}

/// The same, with whether any vantage was suspect.
fn play_all(history: &[Told], backwards: bool, forgets: bool) -> (Vec<Verdict>, bool) {
    let mut had_suspects = false;
    let policy = HealthPolicy {
        gateway_ticks: 2,
        asr_error_ticks: 3,
        asr_p99_ticks: 4,
        edge_asr_ticks: 2,
        edge_asr_recover_ticks: 4,
        ..HealthPolicy::default()
    };
    let mut windows = Windows::default();
    let mut before = BTreeMap::new();
    let mut verdicts = Vec::new();
    for (now, told) in (10..).zip(history) {
        let mut reports: Vec<TickReport> = told
            .iter()
            .map(|(who, seen, late)| report(*who, now - late, seen))
            .collect();
        // Only the first report of a vantage counts, so only whole vantages change places.
        reports.sort_by_key(|it| it.vantage.clone());
        if backwards {
            reports.sort_by(|a, b| b.vantage.cmp(&a.vantage));
        }
        for report in reports {
            // Late and repeated reports are refused; that is part of the history.
            let _ = windows.take(report, Tick(now), &policy);
        }
        if forgets {
            windows.forget(&policy, Tick(now), |_| true);
        }
        had_suspects |= windows.suspects().iter().next().is_some();
        let judged = judge([&region()], &windows, &policy, Tick(now), &before);
        before = judged
            .iter()
            .map(|(region, it)| (region.clone(), Before::from(it)))
            .collect();
        verdicts.extend(judged.into_values());
    }
    (verdicts, had_suspects)
}

proptest! {
    /// For reports of any content, order and delay: nothing panics, the same reports give the same verdicts byte for
    /// byte, and a verdict does not contradict itself.
    #[test]
    fn verdicts_are_repeatable_and_make_sense(history in prop::collection::vec(any_tick(), 1..40)) {
        let verdicts = play(&history, false, true);
        let written = serde_json::to_string(&verdicts).unwrap();
        prop_assert_eq!(&written, &serde_json::to_string(&play(&history, false, true)).unwrap());
        prop_assert_eq!(&written, &serde_json::to_string(&play(&history, true, true)).unwrap());
        prop_assert_eq!(&serde_json::from_str::<Vec<Verdict>>(&written).unwrap(), &verdicts);
        for it in &verdicts {
            prop_assert_eq!(it.health == Health::Down, it.trigger.is_some());
            prop_assert_eq!(it.healthy_since.is_some() && it.health != Health::Healthy, false);
            prop_assert_eq!(it.levels().map(|(level, _)| level).max().unwrap_or_default(), it.level);
            prop_assert!(it.bad_from.is_empty() || matches!(it.health, Health::Down | Health::Suspect));
            // The named vantages are enough, whichever they are.
            prop_assert!(it.bad_from.is_empty() || it.bad_from.len() >= 2);
        }
    }

    /// Settling a tick changes its remembered form and not the verdicts. (Evidence shows open ticks only.)
    #[test]
    fn settled_ticks_are_believed_as_open_ones(history in prop::collection::vec(any_tick(), 1..40)) {
        let (settled, had_suspects) = play_all(&history, false, true);
        // Suspects are known from settled ticks alone.
        prop_assume!(!had_suspects);
        let open = play(&history, false, false);
        // The newest open tick names broken components: without settling it may be an old one.
        let triggers = |it: &Verdict| (it.fired.clone(), it.trigger, it.level, it.failing);
        prop_assert_eq!(settled.iter().map(triggers).collect::<Vec<_>>(), open.iter().map(triggers).collect::<Vec<_>>());
    }

    /// One vantage may report anything, as often as it likes, about a region that the others see healthy.
    #[test]
    fn one_lying_vantage_never_takes_a_region_down_nor_to_a_level(
        lies in prop::collection::vec(prop::collection::vec((any_component(), any_saw(), 1u32..1000), 0..12), 1..60)
    ) {
        let policy = HealthPolicy::default();
        let mut windows = Windows::default();
        let mut before = BTreeMap::new();
        for (now, lies) in (10..).zip(lies) {
            let truth: Vec<_> = Component::ALL.iter().map(|it| (*it, Saw { fast: 3, ..Saw::default() })).collect();
            for honest in 1..=2 {
                windows.take(report(honest, now, &truth), Tick(now), &policy).unwrap();
            }
            let mut lie = report(0, now, &lies.iter().map(|(component, saw, _)| (*component, *saw)).collect::<Vec<_>>());
            for (observation, (.., times)) in lie.observations.iter_mut().zip(&lies) {
                observation.failed = observation.failed.saturating_mul(*times);
            }
            windows.take(lie, Tick(now), &policy).unwrap();
            windows.forget(&policy, Tick(now), |_| true);
            let verdicts = judge([&region()], &windows, &policy, Tick(now), &before);
            let verdict = &verdicts[&region()];
            prop_assert_eq!(verdict.health, Health::Healthy, "{:#?}", verdict);
            prop_assert!(verdict.fired.is_empty());
            before = verdicts.iter().map(|(region, it)| (region.clone(), Before::from(it))).collect();
        }
    }
}
