//! Real traffic: the triggers judge it like probes, and people read the rest.

use topology::{Component, NodeId, Tick};
use verdict::{Health, Source, TickReport, TrafficSeen};

use crate::story::{Story, WELL, observation, region, saw};

/// A report of a vantage that sees the gateway healthy, and has real traffic.
fn report(vantage: &str, tick: u64, traffic: TrafficSeen) -> TickReport {
    TickReport {
        traffic: vec![traffic],
        ..TickReport::new(
            NodeId::new(vantage).expect("the name is an id"),
            Tick(tick),
            vec![observation(Component::Gateway, WELL)],
        )
    }
}

#[test]
fn traffic_of_all_vantages_is_told_together_with_percentiles_of_all() {
    let mut story = Story::new();
    let seen = |turns_ok, turn_ms| {
        let mut seen = TrafficSeen {
            connects_ok: 20,
            connects_failed: 1,
            aborts: 2,
            turns_ok,
            turns_failed: 3,
            ..TrafficSeen::new(region())
        };
        (0..turns_ok).for_each(|_| seen.turn.add(turn_ms));
        seen
    };
    // The slow vantage has few turns: the mean of both percentiles would be 1,100 ms. Sketches are within 1 %.
    for (vantage, traffic) in [("edge-a", seen(99, 200.0)), ("edge-b", seen(1, 2000.0))] {
        let taken = story.windows.take(report(vantage, 1, traffic), Tick(1), &story.policy);
        taken.expect("the tick has just closed");
    }
    story.silence(1).check(Health::Healthy);
    let told = story
        .verdict()
        .evidence
        .iter()
        .find(|line| line.starts_with("traffic at"));
    let told = told.expect("traffic is told");
    assert!(
        told.contains("40/42 connections ok · 4 lost midway · 100/106 turns ok, p95 198 ms"),
        "{told}"
    );
    assert!(told.ends_with("; seen by 2"), "{told}");
}

#[test]
fn turns_that_fail_at_one_edge_alone_move_nobody() {
    for (others_fail, health) in [(false, Health::Healthy), (true, Health::Down)] {
        let mut story = Story::new();
        for tick in 1..=12 {
            for (vantage, fails) in [("edge-a", true), ("edge-b", others_fail)] {
                let failed = if fails { 50 } else { 0 };
                let mut turns = observation(Component::Asr, saw(50, failed));
                turns.source = Source::Traffic;
                let mut report = report(vantage, tick, TrafficSeen::new(region()));
                report.observations.push(turns);
                let taken = story.windows.take(report, Tick(tick), &story.policy);
                taken.expect("the tick has just closed");
            }
            story.silence(1);
        }
        story.check(health);
    }
}
