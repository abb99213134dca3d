//! Vantages that claim more than they can have seen, and vantages that contradict all others.

use std::collections::BTreeMap;

use proptest::prelude::*;
use topology::{
    Component, NodeId, ReasonCode, RegionId, Tick, Topology, fixtures::three_primaries, policy::HealthPolicy,
};
use verdict::{
    Before, Bounds, Health, Observation, Source, TickReport, TrafficSeen, VersionSeen, Windows,
    bounds::{PROBES_PER_STACK, TRAFFIC_MIN},
    judge,
};

use crate::story::{Saw, Story, WELL, observation, region, saw};

const MILLION: u32 = 1_000_000;

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("the name is an id")
}

fn topology() -> Topology {
    three_primaries().topology
}

fn bounds() -> Bounds {
    let mut bounds = Bounds::default();
    bounds.know(None, &topology(), |_| true);
    bounds
}

/// A report with this many probes of us-east's stack and attempts of traffic: (succeeded, failed).
fn report(vantage: &str, tick: u64, probes: (u32, u32), traffic: (u32, u32)) -> TickReport {
    let stack = topology().regions[&region()].stacks[0].address;
    let seen = |source, (succeeded, failed)| Observation {
        stack: Some(stack),
        succeeded,
        failed,
        ..Observation::new(region(), Component::Gateway, source)
    };
    let observations = vec![seen(Source::Probe, probes), seen(Source::Traffic, traffic)];
    TickReport::new(node(vantage), Tick(tick), observations)
}

/// The healths of us-east, tick by tick: twenty edges with real traffic see it well; from the ninth tick on two quiet ones
/// claim a million failures each.
fn two_claim_millions(is_bounded: bool) -> Vec<Health> {
    let (mut bounds, mut windows, policy) = (bounds(), Windows::default(), HealthPolicy::default());
    let mut before = BTreeMap::new();
    let mut healths = Vec::new();
    for tick in 1..=11 {
        let honest = (0..20).map(|it| report(&format!("edge-{it}"), tick, (2, 0), (150, 0)));
        let lies = ["liar-a", "liar-b"].map(|liar| match tick {
            1..=8 => report(liar, tick, (2, 0), (0, 0)),
            _ => report(liar, tick, (0, MILLION), (0, MILLION)),
        });
        for mut report in lies.into_iter().chain(honest) {
            if is_bounded {
                bounds.cut(&mut report);
            }
            windows
                .take(report, Tick(tick), &policy)
                .expect("the tick has just closed");
        }
        windows.forget(&policy, Tick(tick), |_| true);
        let verdicts = judge([&region()], &windows, &policy, Tick(tick), &before);
        healths.push(verdicts[&region()].health);
        before = verdicts
            .iter()
            .map(|(region, it)| (region.clone(), Before::from(it)))
            .collect();
    }
    healths
}

#[test]
fn a_million_claimed_failures_weigh_no_more_than_a_vantage_can_have_seen() {
    assert_eq!(two_claim_millions(true).last(), Some(&Health::Healthy));
    // By words alone the two outvote twenty edges that serve the region's users.
    assert_eq!(two_claim_millions(false).last(), Some(&Health::Down));
}

#[test]
fn a_vantage_counts_for_what_it_reported_before_and_what_the_region_has_room_for() {
    let mut bounds = bounds();
    let counted = |bounds: &mut Bounds, tick| {
        let mut report = report("edge-iad", tick, (0, MILLION), (MILLION, MILLION));
        assert!(bounds.cut(&mut report));
        let samples = |at: usize| report.observations[at].succeeded + report.observations[at].failed;
        assert_eq!(
            report.observations[1].succeeded, report.observations[1].failed,
            "the share stays"
        );
        (samples(0), samples(1))
    };
    let room = topology().regions[&region()].sessions_max * 10;
    assert_eq!(counted(&mut bounds, 1), (PROBES_PER_STACK, TRAFFIC_MIN));
    assert_eq!(counted(&mut bounds, 2), (PROBES_PER_STACK, 2 * TRAFFIC_MIN));
    // Speaking again on the same tick makes no more room.
    assert_eq!(counted(&mut bounds, 2), (PROBES_PER_STACK, 2 * 2 * TRAFFIC_MIN));
    assert_eq!(counted(&mut bounds, 2), (PROBES_PER_STACK, 2 * 2 * TRAFFIC_MIN));
    for tick in 3..12 {
        counted(&mut bounds, tick);
    }
    assert_eq!(counted(&mut bounds, 12), (PROBES_PER_STACK, room));
    // Its traffic ended; the room for it fades.
    for tick in 13..40 {
        bounds.cut(&mut report("edge-iad", tick, (2, 0), (0, 0)));
    }
    assert_eq!(counted(&mut bounds, 40), (PROBES_PER_STACK, TRAFFIC_MIN));
}

#[test]
fn sessions_and_results_of_versions_are_bounded_too() {
    let room = topology().regions[&region()].sessions_max;
    let version = topology().regions[&region()].stacks[0].version().to_owned();
    let mut report = report("edge-iad", 1, (2, 0), (0, 0));
    let claimed = TrafficSeen {
        sessions: u32::MAX,
        turns_failed: u32::MAX,
        ..TrafficSeen::new(region())
    };
    report.traffic = vec![claimed.clone(), claimed];
    let results = |version: &str| VersionSeen {
        turns_failed: u32::MAX,
        turns_succeeded: u32::MAX,
        gpu_memory_errors: u32::MAX,
        ..VersionSeen::new(version)
    };
    report.versions = vec![results(&version), results(&version), results("made-up")];
    assert!(bounds().cut(&mut report));
    let [traffic] = &report.traffic[..] else {
        panic!("{:?}", report.traffic)
    };
    assert_eq!((traffic.sessions, traffic.turns_failed), (room, 10 * room));
    let [results] = &report.versions[..] else {
        panic!("{:?}", report.versions)
    };
    assert_eq!(
        (results.version.as_str(), results.turns_failed, results.turns_succeeded),
        (version.as_str(), 5 * 6 * room, 5 * 6 * room)
    );
}

#[test]
fn a_vantage_that_alone_sees_a_region_fail_is_suspect_until_it_agrees_again() {
    let mut story = Story::new();
    let tick = |story: &mut Story, iad| {
        let others = ["edge-dub", "edge-nrt", "control-plane"].map(|it| (it, Component::Gateway, saw(2, 0)));
        let all: Vec<_> = others
            .into_iter()
            .chain([("edge-iad", Component::Gateway, iad)])
            .collect();
        story.tick(&all).check(Health::Healthy);
    };
    for _ in 0..5 {
        tick(&mut story, saw(0, 2));
        assert_eq!(
            story.windows.suspects().reasons(),
            [],
            "three ticks, each while late reports may come"
        );
    }
    tick(&mut story, saw(0, 2));
    let reasons = story.windows.suspects().reasons();
    let told: Vec<_> = reasons.iter().map(|it| (it.code, it.region.clone())).collect();
    assert_eq!(told, [(ReasonCode::VantageSuspect, Some(region()))]);
    assert!(
        reasons[0]
            .text
            .contains("edge-iad alone sees gateway fail, and 3 other vantages see it work"),
        "{reasons:?}"
    );
    // The evidence shows two ticks.
    tick(&mut story, saw(0, 2));
    tick(&mut story, saw(0, 2));
    let evidence = story.verdict().evidence.join("\n");
    assert!(!evidence.contains("edge-iad"), "it is left out: {evidence}");
    for _ in 0..10 {
        tick(&mut story, saw(2, 0));
    }
    assert_eq!(story.windows.suspects().iter().count(), 0);
}

/// A million successes of one vantage must not hide for ever that everybody else finds the region dead.
#[test]
fn a_vantage_cannot_hide_for_long_that_a_region_is_dead() {
    let mut story = Story::new();
    let mut fell = None;
    for tick in 1..=12 {
        let dead = ["edge-dub", "edge-nrt", "control-plane"].map(|it| (it, Component::Gateway, saw(0, 2)));
        let all: Vec<_> = dead
            .into_iter()
            .chain([("edge-iad", Component::Gateway, saw(9_000, 0))])
            .collect();
        story.tick(&all);
        if story.verdict().health == Health::Down {
            fell.get_or_insert(tick);
        }
    }
    assert_eq!(fell, Some(8), "{:#?}", story.verdict());
    let names: Vec<_> = story.verdict().bad_from.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["control-plane", "edge-dub", "edge-nrt"]);
}

#[test]
fn the_word_of_a_suspect_counts_where_another_agrees() {
    let mut story = Story::new();
    let tick = |story: &mut Story, iad, dub| {
        let all = [("edge-iad", iad), ("edge-dub", dub), ("control-plane", WELL)];
        story.tick(&all.map(|(vantage, saw)| (vantage, Component::Gateway, saw)));
    };
    for _ in 0..8 {
        tick(&mut story, saw(0, 2), WELL);
    }
    assert!(story.windows.suspects().is_suspect(&node("edge-iad")));
    story.check(Health::Healthy);
    for _ in 0..2 {
        tick(&mut story, saw(0, 90), saw(0, 90));
    }
    story.check(Health::Down);
    let names: Vec<_> = story.verdict().bad_from.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["edge-dub", "edge-iad"]);
}

fn any_report() -> impl Strategy<Value = TickReport> {
    let regions: Vec<RegionId> = topology().regions.into_keys().collect();
    let seen = (
        prop::sample::select(regions),
        prop::sample::select(Component::ALL.to_vec()),
        any::<bool>(),
        prop::option::of(0usize..3),
        any::<u32>(),
        any::<u32>(),
    );
    let observation = seen.prop_map(|(region, component, is_probe, stack, succeeded, failed)| Observation {
        stack: stack.map(|it| ([10, 0, 0, it as u8], 9000).into()),
        succeeded,
        failed,
        ..Observation::new(
            region,
            component,
            if is_probe { Source::Probe } else { Source::Traffic },
        )
    });
    let observations = prop::collection::vec(observation, 0..40);
    (0u64..6, observations).prop_map(|(tick, observations)| TickReport::new(node("edge-iad"), Tick(tick), observations))
}

proptest! {
    /// No component of a region has more attempts than a vantage can have seen, whatever the vantage writes and however
    /// often; no attempt appears from nowhere, and cutting a cut report changes nothing.
    #[test]
    fn no_report_counts_for_more_than_its_vantage_can_have_seen(reports in prop::collection::vec(any_report(), 1..8)) {
        let (mut bounds, topology) = (bounds(), topology());
        for written in reports {
            let mut cut = written.clone();
            let is_cut = bounds.cut(&mut cut);
            let mut sums: BTreeMap<_, (u64, u64)> = BTreeMap::new();
            for seen in &cut.observations {
                let sum = sums.entry((&seen.region, seen.component, seen.source)).or_default();
                *sum = (sum.0 + u64::from(seen.succeeded), sum.1 + u64::from(seen.failed));
            }
            for ((region, component, source), (succeeded, failed)) in sums {
                let region = &topology.regions[region];
                let max = match source {
                    Source::Probe => PROBES_PER_STACK * region.stacks.len() as u32,
                    Source::Traffic => 10 * region.sessions_max,
                };
                prop_assert!(succeeded + failed <= u64::from(max), "{component} of {}", region.id);
                let of = written.observations.iter().filter(|it| (&it.region, it.component, it.source) == (&region.id, component, source));
                let claimed = of.fold((0, 0), |sum, it| (sum.0 + u64::from(it.succeeded), sum.1 + u64::from(it.failed)));
                prop_assert!(succeeded <= claimed.0 && failed <= claimed.1);
                prop_assert!(is_cut || (succeeded, failed) == claimed);
            }
            let mut again = cut.clone();
            prop_assert!(!bounds.cut(&mut again));
            prop_assert_eq!(again, cut);
        }
    }

    /// One vantage may report anything: a region that all others find dead is down within two minutes at some time.
    #[test]
    fn one_lying_vantage_never_hides_a_dead_region(
        lies in prop::collection::vec((0u32..3, 0u32..40, 0u32..40, 1u32..1_000), 12..30)
    ) {
        let mut story = Story::new();
        let mut was_down = false;
        for (how, succeeded, failed, times) in lies {
            let dead = ["edge-b", "edge-c", "edge-d"].map(|it| (it, Component::Gateway, saw(0, 2)));
            let lie = observation(Component::Gateway, Saw { fast: if how == 0 { 0 } else { succeeded }, failed: if how == 2 { 0 } else { failed }, ..Saw::default() });
            story.tick_with(&dead, ("edge-a", Observation {
                succeeded: lie.succeeded * times,
                failed: lie.failed * times,
                ..lie
            }));
            was_down |= story.verdict().health == Health::Down;
        }
        prop_assert!(was_down, "{:#?}", story.verdict());
    }
}
