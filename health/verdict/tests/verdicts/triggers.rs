//! Every trigger at its exact boundary, and what becomes of a region's verdict.

use topology::{Component, Level, NodeId, Tick, policy::HealthPolicy};
use verdict::{Before, Health, Service, TickReport, Trigger, Unwanted, Windows};

use crate::story::{Saw, Story, WELL, observation, region, saw, saw_slow};

/// A trigger with its numbers as the source documents have them, and what each of two edges sees at its limit and just
/// past it. Nothing here reads the policy: a changed default shows.
struct Boundary {
    trigger: Trigger,
    fall: u32,
    rise: u32,
    at: Saw,
    past: Saw,
}

fn boundaries() -> [Boundary; 7] {
    let boundary = |trigger, fall, rise, at, past| Boundary {
        trigger,
        fall,
        rise,
        at,
        past,
    };
    [
        boundary(Trigger::GatewayConnections, 2, 3, saw(95, 5), saw(94, 6)),
        // Errors degrade before they fail over; see `errors_of_asr_are_degraded_before_they_are_gone`.
        boundary(Trigger::AsrErrors, 12, 3, saw(90, 10), saw(89, 11)),
        // One of a hundred is not past the P99, two are; of twenty, one and two for the P95.
        boundary(
            Trigger::AsrLatency,
            30,
            3,
            saw_slow(99, 1, 2500.0),
            saw_slow(98, 2, 2500.0),
        ),
        boundary(
            Trigger::AsrDegraded,
            6,
            12,
            saw_slow(19, 1, 510.0),
            saw_slow(18, 2, 510.0),
        ),
        boundary(Trigger::AsrDegraded, 6, 12, saw(90, 10), saw(89, 11)),
        boundary(Trigger::NluErrors, 6, 12, saw(50, 50), saw(49, 51)),
        boundary(Trigger::SkillsErrors, 6, 12, saw(50, 50), saw(49, 51)),
    ]
}

impl Boundary {
    fn play(&self, story: &mut Story, ticks: u32, saw: Saw) -> bool {
        story.both(ticks, self.trigger.component(), saw);
        story.verdict().has_fired(self.trigger)
    }
}

#[test]
fn it_falls_at_its_last_tick_and_not_before() {
    for it in boundaries() {
        let (name, mut story) = (it.trigger, Story::new());
        assert!(!it.play(&mut story, 4, WELL));
        assert!(!it.play(&mut story, it.fall - 1, it.past), "{name:?} is a tick early");
        assert!(it.play(&mut story, 1, it.past), "{name:?} is late");
        // One good tick among them, and the count begins anew.
        let mut story = Story::new();
        it.play(&mut story, it.fall - 1, it.past);
        it.play(&mut story, 1, WELL);
        assert!(!it.play(&mut story, it.fall - 1, it.past), "{name:?}");
    }
}

#[test]
fn it_rises_at_its_last_tick_and_not_before() {
    for it in boundaries() {
        let (name, mut story) = (it.trigger, Story::new());
        it.play(&mut story, it.fall, it.past);
        assert!(it.play(&mut story, it.rise - 1, WELL), "{name:?} is a tick early");
        assert!(!it.play(&mut story, 1, WELL), "{name:?} is late");
        // One bad tick among them, and the count begins anew.
        let mut story = Story::new();
        it.play(&mut story, it.fall, it.past);
        it.play(&mut story, it.rise - 1, WELL);
        it.play(&mut story, 1, it.past);
        assert!(it.play(&mut story, it.rise - 1, WELL), "{name:?}");
        assert!(!it.play(&mut story, 1, WELL), "{name:?}");
    }
}

#[test]
fn exactly_at_the_limit_is_not_past_it() {
    for it in boundaries() {
        assert!(!it.play(&mut Story::new(), it.fall + 3, it.at), "{:?}", it.trigger);
    }
}

#[test]
fn one_sample_too_few_and_nothing_is_known() {
    for it in boundaries() {
        let Saw { fast, slow, failed, .. } = it.past;
        for (missing, fires) in [(1, false), (0, true)] {
            let samples_min = 2 * (fast + slow + failed) + missing;
            let policy = HealthPolicy {
                samples_min,
                ..HealthPolicy::default()
            };
            let mut story = Story::with(policy, Before::default());
            assert_eq!(it.play(&mut story, it.fall + 3, it.past), fires, "{:?}", it.trigger);
        }
    }
}

#[test]
fn one_vantage_is_never_enough_and_two_are() {
    for it in boundaries() {
        let (component, ticks) = (it.trigger.component(), it.fall + 3);
        let fires = |story: &Story| story.verdict().has_fired(it.trigger);
        let many = |saw: Saw| Saw {
            fast: saw.fast * 50,
            slow: saw.slow * 50,
            failed: saw.failed * 50,
            ..saw
        };
        // The other one sees it well; sees nothing; there is no other one.
        assert!(!fires(Story::new().each(ticks, component, many(it.past), saw(1, 0))));
        assert!(!fires(Story::new().each(ticks, component, many(it.past), saw(0, 0))));
        let mut story = Story::new();
        for _ in 0..ticks {
            story.tick(&[("edge-a", component, many(it.past))]);
        }
        assert!(!fires(&story), "{:?}", it.trigger);
        // A third one that sees it well is outvoted only if it saw little.
        for (third, outvoted) in [(saw(1, 0), false), (many(WELL), true)] {
            let mut story = Story::new();
            for _ in 0..ticks {
                story.tick(&[
                    ("edge-a", component, it.past),
                    ("edge-b", component, it.past),
                    ("edge-c", component, third),
                ]);
            }
            if outvoted {
                assert!(!fires(&story), "{:?}", it.trigger);
            } else {
                let from: Vec<&str> = story.verdict().bad_from.iter().map(NodeId::as_str).collect();
                let is_decisive = matches!(story.verdict().health, Health::Down | Health::Suspect);
                assert!(!is_decisive || from == ["edge-a", "edge-b"], "{:#?}", story.verdict());
            }
        }
    }
}

#[test]
fn ticks_of_which_nothing_is_known_neither_count_nor_clear() {
    for it in boundaries() {
        let (name, mut story) = (it.trigger, Story::new());
        it.play(&mut story, it.fall - 1, it.past);
        story.silence(2);
        assert!(
            !story.verdict().has_fired(it.trigger),
            "{name:?} took silence for failure"
        );
        assert!(it.play(&mut story, 1, it.past), "{name:?} forgot");
        it.play(&mut story, it.rise - 1, WELL);
        story.silence(2);
        assert!(
            story.verdict().has_fired(it.trigger),
            "{name:?} took silence for success"
        );
        assert!(!it.play(&mut story, 1, WELL), "{name:?} forgot");
        // What was before blindness is too old to count, and what had fallen still has to rise.
        let mut story = Story::new();
        it.play(&mut story, it.fall - 1, it.past);
        story.silence(3);
        assert_eq!(it.play(&mut story, 1, it.past), it.fall == 1, "{name:?}");
        assert!(it.play(&mut story, it.fall - 1, it.past), "{name:?}");
        story.silence(30);
        assert!(it.play(&mut story, it.rise - 1, WELL), "{name:?}");
    }
}

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
    // The way back: down and no longer failing.
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
    // Down is forgotten by neither silence nor blindness.
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
    // Nobody has ever seen it.
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
    // Skills are back, and understanding is gone.
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

/// The question of the source documents: is ASR available?
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
    // Without understanding or skills, speech is recognised as ever.
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
    story.both(2, Component::Gateway, WELL).check(Health::Degraded);
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
    // However long ago it was: windows are short, memory is not.
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
        // What is settled stays settled, also when the clock goes back.
        windows.forget(&policy, Tick(20), |_| true);
        assert!(matches!(
            windows.take(report("c", fresh), Tick(10), &policy),
            Err(Unwanted::Stale(..))
        ));
    }
}

#[test]
fn a_late_report_is_still_heard() {
    // One edge's word of ticks 2 and 3 comes a tick late: the region is down as soon as both have spoken.
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
