//! The verdict of a region over time: it fails, is silent, recovers, and is judged after a restart.

use topology::{Component, Level, NodeId, Tick, policy::HealthPolicy};
use verdict::{Before, Health, Service, TickReport, Trigger, Unwanted, Windows};

use crate::story::{Saw, Story, WELL, observation, region, saw, saw_slow};

#[test]
fn a_region_nobody_can_connect_to_is_suspect_then_down() {
    let mut story = Story::new();
    story.both(3, Component::Gateway, saw(5, 0)).check(Health::Healthy);
    story.both(1, Component::Gateway, saw(0, 5)).check(Health::Suspect);
    assert_eq!(
        story.verdict().summary,
        "gateway connections bad in 1 of 2 ticks needed"
    );
    story.both(1, Component::Gateway, saw(0, 5)).check(Health::Down);
    let verdict = story.verdict();
    assert_eq!(verdict.trigger, Some(Trigger::GatewayConnections));
    assert_eq!(verdict.summary, "gateway connection success below 95 % for 2 ticks");
    let first = &verdict.evidence[0];
    assert!(
        first.contains("edge-a 0/5 · edge-b 0/5 ok; connection refused"),
        "{verdict:#?}"
    );
    // Recovery: down and no longer failing.
    story.both(2, Component::Gateway, saw(5, 0)).check(Health::Down);
    assert!(!story.verdict().failing);
    story.both(1, Component::Gateway, saw(5, 0)).check(Health::Healthy);
    assert_eq!(story.verdict().healthy_since, Some(Tick(6).start()));
}

#[test]
fn silence_is_not_failure_it_freezes_and_the_third_tick_of_it_blinds() {
    let mut story = Story::new();
    story
        .both(3, Component::Gateway, WELL)
        .both(1, Component::Gateway, saw(0, 5));
    story.silence(1).check(Health::NoData);
    story.silence(1).check(Health::NoData);
    story.silence(1).check(Health::Blind);
    // Neither silence nor blindness ends `down`.
    let mut story = Story::new();
    story.both(2, Component::Gateway, saw(0, 5)).check(Health::Down);
    story.silence(2).check(Health::Down);
    story
        .silence(60)
        .check(Health::Blind)
        .check_fired(&[Trigger::GatewayConnections]);
    assert_eq!(story.verdict().trigger, None);
    story.both(2, Component::Gateway, WELL).check(Health::Down);
    story.both(1, Component::Gateway, WELL).check(Health::Healthy);
    // No vantage has ever seen it.
    Story::new().silence(1).check(Health::Blind);
}

#[test]
fn recognition_that_failed_and_is_seen_no_more_is_not_called_well() {
    let mut story = Story::new();
    story.both(12, Component::Asr, saw(0, 5)).check(Health::Down);
    story.both(2, Component::Gateway, WELL).check(Health::Down);
    story.both(1, Component::Gateway, WELL).check(Health::Blind);
    assert!(
        story.verdict().summary.starts_with("asr was bad"),
        "{:#?}",
        story.verdict()
    );
    story.both(2, Component::Asr, WELL).check(Health::Down);
    // The level takes longer to clear than the failover.
    story.both(1, Component::Asr, WELL).check(Health::Degraded);
    story.both(9, Component::Asr, WELL).check(Health::Healthy);
}

#[test]
fn errors_of_asr_are_degraded_before_they_are_gone() {
    let mut story = Story::new();
    story
        .both(5, Component::Asr, saw(80, 20))
        .check(Health::Suspect)
        .check_fired(&[]);
    story.both(1, Component::Asr, saw(80, 20)).check(Health::Suspect);
    story.check_fired(&[Trigger::AsrDegraded]);
    assert_eq!(story.verdict().level, Level::L1);
    assert_eq!(story.verdict().summary, "asr errors in 6 of 12 ticks needed");
    story.both(6, Component::Asr, saw(80, 20)).check(Health::Down);
    story.check_fired(&[Trigger::AsrErrors, Trigger::AsrDegraded]);
    assert_eq!(story.verdict().trigger, Some(Trigger::AsrErrors));
    // Slow in one tick and failing in the next is degraded all the time.
    let mut story = Story::new();
    for _ in 0..3 {
        story.both(1, Component::Asr, saw_slow(0, 10, 700.0));
        story.both(1, Component::Asr, saw(8, 2));
    }
    story.check_fired(&[Trigger::AsrDegraded]);
}

#[test]
fn a_few_seconds_of_very_slow_recognition_are_no_five_minutes() {
    // Of all recognitions of these five minutes more than one of a hundred was slow; but not in every tick.
    let mut story = Story::new();
    story.both(40, Component::Asr, WELL);
    story.both(2, Component::Asr, saw_slow(0, 100, 5000.0)).check_fired(&[]);
    story.both(28, Component::Asr, WELL).check_fired(&[]);
}

#[test]
fn the_highest_level_counts_and_all_are_told() {
    let all_bad = |story: &mut Story, ticks: u32, asr: Saw, nlu: Saw, skills: Saw| {
        for _ in 0..ticks {
            let both = ["edge-a", "edge-b"];
            let seen = both.iter().flat_map(|edge| {
                [
                    (*edge, Component::Gateway, WELL),
                    (*edge, Component::Asr, asr),
                    (*edge, Component::Nlu, nlu),
                    (*edge, Component::Skills, skills),
                ]
            });
            story.tick(&seen.collect::<Vec<_>>());
        }
    };
    let (slow, broken) = (saw_slow(0, 10, 700.0), saw(0, 10));
    let mut story = Story::new();
    all_bad(&mut story, 6, slow, WELL, broken);
    let verdict = story.verdict();
    let levels: Vec<Level> = verdict.levels().map(|(level, _)| level).collect();
    assert_eq!((verdict.level, levels), (Level::L3, vec![Level::L1, Level::L3]));
    assert_eq!(
        verdict.summary,
        "L1: asr p95 above 500 ms for 6 ticks; L3: skills errors above 50 % for 6 ticks"
    );
    // Skills work again, and NLU is gone.
    all_bad(&mut story, 12, slow, broken, WELL);
    let levels: Vec<Level> = story.verdict().levels().map(|(level, _)| level).collect();
    assert_eq!((story.verdict().level, levels), (Level::L2, vec![Level::L1, Level::L2]));
    all_bad(&mut story, 11, WELL, WELL, WELL);
    assert_eq!(
        story.verdict().summary,
        "L1: asr p95 above 500 ms for 6 ticks; good again, held until 12 good ticks in a row; \
         L2: nlu errors above 50 % for 6 ticks; good again, held until 12 good ticks in a row"
    );
    all_bad(&mut story, 1, WELL, WELL, WELL);
    story.check(Health::Healthy).check_fired(&[]);
}

#[test]
fn a_level_is_held_while_its_component_is_not_seen() {
    let mut story = Story::new();
    story.both(6, Component::Nlu, saw(0, 5)).check(Health::Degraded);
    story.both(30, Component::Gateway, WELL).check(Health::Degraded);
    assert_eq!(story.verdict().level, Level::L2);
}

/// The question "is ASR available?" with its three answers.
#[test]
fn the_three_ways_out() {
    type Told = fn(&mut Story) -> &mut Story;
    let table: [(&str, Told, Option<Service>); 9] = [
        (
            "all is well",
            |it| it.both(12, Component::Asr, WELL),
            Some(Service::Normal),
        ),
        (
            "slow, for less than a minute",
            |it| it.both(5, Component::Asr, saw_slow(0, 10, 700.0)),
            Some(Service::Normal),
        ),
        (
            "slow",
            |it| it.both(6, Component::Asr, saw_slow(0, 10, 700.0)),
            Some(Service::EdgeAsr),
        ),
        (
            "failing for a minute",
            |it| it.both(6, Component::Asr, saw(5, 5)),
            Some(Service::EdgeAsr),
        ),
        (
            "failing for two",
            |it| it.both(12, Component::Asr, saw(5, 5)),
            Some(Service::BackupRegion),
        ),
        (
            "far too slow for five minutes",
            |it| it.both(30, Component::Asr, saw_slow(0, 10, 2500.0)),
            Some(Service::BackupRegion),
        ),
        (
            "nobody can connect",
            |it| it.both(2, Component::Gateway, saw(0, 5)),
            Some(Service::BackupRegion),
        ),
        (
            "slow, and not seen in the last tick",
            |it| it.both(6, Component::Asr, saw_slow(0, 10, 700.0)).silence(1),
            Some(Service::EdgeAsr),
        ),
        ("blind", |it| it.both(6, Component::Asr, WELL).silence(3), None),
    ];
    for (name, told, service) in table {
        let mut story = Story::new();
        assert_eq!(
            told(&mut story).verdict().service(),
            service,
            "{name}: {:#?}",
            story.verdict()
        );
    }
    // Without NLU or skills, recognition stays as it is.
    let mut story = Story::new();
    assert_eq!(
        story.both(9, Component::Skills, saw(0, 5)).verdict().service(),
        Some(Service::Normal)
    );
}

#[test]
fn after_a_restart_what_the_plan_says_has_to_rise() {
    let before = Before::planned(true, Level::L1);
    assert_eq!(
        before.fallen,
        [Trigger::GatewayConnections, Trigger::AsrDegraded]
            .into_iter()
            .collect()
    );
    let mut story = Story::with(HealthPolicy::default(), before);
    story.both(1, Component::Gateway, WELL).check(Health::Down);
    let verdict = story.verdict();
    assert!(
        !verdict.failing && verdict.level == Level::L1 && verdict.bad_from.is_empty(),
        "{verdict:#?}"
    );
    // Good and bad in turn never rises, however long it goes on.
    for _ in 0..60 {
        story.both(1, Component::Gateway, saw(0, 5)).check(Health::Down);
        story.both(1, Component::Gateway, WELL).check(Health::Down);
    }
    // Then three good ticks in a row are not enough: too many bad ones are left in the window.
    story.both(4, Component::Gateway, WELL).check(Health::Down);
    story.both(1, Component::Gateway, WELL).check(Health::Degraded);
    story.both(11, Component::Asr, WELL).check(Health::Degraded);
    story.both(1, Component::Asr, WELL).check(Health::Healthy);
    for level in [Level::L0, Level::L1, Level::L2, Level::L3, Level::L4, Level::L5] {
        let triggers = Before::planned(false, level).fallen;
        assert!(
            triggers.iter().all(|trigger| trigger.level() == Some(level)),
            "{triggers:?}"
        );
    }
}

#[test]
fn it_has_been_healthy_since_the_last_bad_tick_of_any_trigger() {
    let mut story = Story::new();
    story.both(12, Component::Asr, saw(0, 5)).check(Health::Down);
    // Connections were good all the time; recognition is since tick 13.
    story.both(12, Component::Asr, WELL).check(Health::Healthy);
    assert_eq!(story.verdict().healthy_since, Some(Tick(13).start()));
    // Windows are short and memory is not: the tick may be long ago.
    story.both(200, Component::Asr, WELL);
    assert_eq!(story.verdict().healthy_since, Some(Tick(13).start()));
}

#[test]
fn a_component_without_a_trigger_degrades_its_region_at_once() {
    for component in [
        Component::Tts,
        Component::SessionStore,
        Component::Nlu,
        Component::Skills,
    ] {
        let mut story = Story::new();
        story.both(2, component, WELL).check(Health::Healthy);
        story
            .both(1, component, saw(89, 11))
            .check(Health::Degraded)
            .check_fired(&[]);
        assert!(
            story.verdict().summary.contains(component.as_str()),
            "{:#?}",
            story.verdict()
        );
        assert_eq!(story.verdict().healthy_since, None);
        story.both(1, component, saw(90, 10)).check(Health::Healthy);
    }
}

#[test]
fn a_report_counts_once_and_only_while_it_is_fresh() {
    let report = |vantage: &str, tick: u64| {
        TickReport::new(
            NodeId::new(vantage).unwrap(),
            Tick(tick),
            vec![observation(Component::Gateway, WELL)],
        )
    };
    for (freshness_ticks, stale, fresh) in [(3, 7, 8), (1, 9, 10), (5, 5, 6)] {
        let policy = HealthPolicy {
            freshness_ticks,
            ..HealthPolicy::default()
        };
        let mut windows = Windows::default();
        let mut take = |vantage, tick| windows.take(report(vantage, tick), Tick(10), &policy);
        assert!(matches!(take("a", stale), Err(Unwanted::Stale(..))));
        assert_eq!(take("a", fresh), Ok(()));
        assert!(matches!(take("a", fresh), Err(Unwanted::Repeated(..))));
        assert_eq!(take("b", fresh), Ok(()));
        assert_eq!(windows.vantages(Tick(fresh)).len(), 2);
        // A settled tick stays settled, also when the clock goes back.
        windows.forget(&policy, Tick(20), |_| true);
        assert!(matches!(
            windows.take(report("c", fresh), Tick(10), &policy),
            Err(Unwanted::Stale(..))
        ));
    }
}

#[test]
fn a_late_report_is_still_heard() {
    // The report of one edge on ticks 2 and 3 comes a tick late: the region is down as soon as both are in.
    let mut story = Story::new();
    story.both(1, Component::Gateway, WELL);
    for _ in 0..2 {
        story
            .tick(&[("edge-a", Component::Gateway, saw(0, 5))])
            .check(Health::NoData);
    }
    for tick in [2, 3] {
        let report = TickReport::new(
            NodeId::new("edge-b").unwrap(),
            Tick(tick),
            vec![observation(Component::Gateway, saw(0, 5))],
        );
        story.windows.take(report, Tick(3), &story.policy).unwrap();
    }
    story.silence(1).check(Health::Down);
}

#[test]
fn a_region_that_no_longer_exists_is_forgotten() {
    let mut story = Story::new();
    story.both(9, Component::Gateway, saw(0, 5)).check(Health::Down);
    story.windows.forget(&story.policy, Tick(9), |it| *it != region());
    let none = Default::default();
    let verdicts = verdict::judge([&region()], &story.windows, &story.policy, Tick(9), &none);
    assert_eq!(verdicts[&region()].health, Health::Blind);
}
