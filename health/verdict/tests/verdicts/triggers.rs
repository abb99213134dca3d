//! Every trigger at its exact boundary, and what becomes of a region's verdict.

use std::net::SocketAddr;

use topology::{Component, Level, NodeId, Stack, Tick, fixtures::three_primaries, policy::HealthPolicy};
use verdict::{Before, Health, Observation, Service, Source, TickReport, Trigger, Unwanted, Windows};

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
    }
}

#[test]
fn bad_ticks_that_are_spread_over_a_window_count_like_those_in_a_row() {
    for it in boundaries() {
        // As the policy has it: four of twelve of the gateway, of the others as many in two and a half times the ticks.
        let (needed, window) = match it.trigger {
            Trigger::GatewayConnections => (4, 12),
            _ => (it.fall, it.fall * 5 / 2),
        };
        let name = it.trigger;
        // Every other one.
        let mut story = Story::new();
        for bad in 1..needed {
            assert!(!it.play(&mut story, 1, it.past), "{name:?} fell at bad tick {bad}");
            it.play(&mut story, 1, WELL);
        }
        assert!(it.play(&mut story, 1, it.past), "{name:?} did not fall");
        // It is held while as many are left in the window, however many good ticks there are.
        let first_leaves = window - (2 * needed - 1);
        let held = first_leaves.max(it.rise - 1);
        assert!(it.play(&mut story, held, WELL), "{name:?}");
        assert!(
            !it.play(&mut story, 1 + u32::from(held < first_leaves), WELL),
            "{name:?}"
        );
        // One fewer in each window, for long.
        let mut story = Story::new();
        for _ in 0..6 {
            for bad in 0..needed - 1 {
                assert!(!it.play(&mut story, 1, it.past), "{name:?}");
                let is_last = bad == needed - 2;
                let good = if is_last { window - 2 * (needed - 1) + 1 } else { 1 };
                it.play(&mut story, good, WELL);
            }
        }
    }
}

/// A region with so many stacks, as three vantages see it that probe each stack twice in a tick: so many stacks are dead.
fn stacks(story: &mut Story, all: u16, dead: u16) {
    let tick = story.tick + 1;
    for vantage in ["edge-a", "edge-b", "control-plane"] {
        let seen = (0..all).map(|number| {
            let saw = if number < dead { saw(0, 2) } else { saw(2, 0) };
            Observation {
                source: Source::Probe,
                stack: Some(([127, 0, 0, 1], 9_000 + number).into()),
                ..observation(Component::Gateway, saw)
            }
        });
        let report = TickReport::new(
            NodeId::new(vantage).expect("the name is an id"),
            Tick(tick),
            seen.collect(),
        );
        let taken = story.windows.take(report, Tick(tick), &story.policy);
        taken.expect("the tick has just closed");
    }
    story.silence(1);
}

#[test]
fn a_region_is_left_when_fewer_stacks_work_than_it_needs() {
    for (all, dead, health) in [
        (1, 0, Health::Healthy),
        (1, 1, Health::Down),
        (2, 1, Health::Degraded),
        (2, 2, Health::Down),
        (3, 1, Health::Degraded),
        (3, 2, Health::Down),
        (4, 2, Health::Degraded),
        (4, 3, Health::Down),
        (19, 1, Health::Degraded),
        (19, 9, Health::Degraded),
        (19, 10, Health::Down),
    ] {
        let mut story = Story::new();
        for _ in 0..12 {
            stacks(&mut story, all, dead);
        }
        assert_eq!(
            story.verdict().health,
            health,
            "{dead} of {all}: {:#?}",
            story.verdict()
        );
    }
    let mut story = Story::new();
    (0..3).for_each(|_| stacks(&mut story, 2, 1));
    let verdict = story.verdict();
    assert_eq!(
        verdict.summary,
        "stack 127.0.0.1:9000 fails, and edges pass it over; 1 of 2 stacks serve"
    );
    assert_eq!(
        verdict.evidence[0],
        "stack 127.0.0.1:9000 of us-east answers nobody; 1 of 2 stacks serves"
    );
    assert_eq!(verdict.dead_stacks, [([127, 0, 0, 1], 9_000).into()].into());
    // Half of a region is no region to send more to; the stack is repaired, or drained, which takes it out of the count.
    stacks(&mut story, 2, 0);
    story.check(Health::Healthy);
    assert!(story.verdict().dead_stacks.is_empty());
    stacks(&mut story, 1, 0);
    story.check(Health::Healthy);
    // One bad tick shows in the verdict and takes no capacity away.
    stacks(&mut story, 2, 1);
    story.check(Health::Degraded);
    assert!(story.verdict().dead_stacks.is_empty());
}

#[test]
fn a_vantage_that_names_a_made_up_or_a_drained_stack_hides_no_dead_region() {
    let (us_east, stack) = (region(), |port: u16| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut world = three_primaries();
    let stacks = [stack(9_000), stack(9_001)].map(Stack::from);
    world.topology.regions.get_mut(&us_east).expect("it exists").stacks = stacks.to_vec();
    world.plan.drained_stacks.insert(stack(9_001));

    let mut story = Story::new();
    for tick in 1..=4 {
        for (vantage, told) in [
            ("edge-a", vec![(9_000, saw(0, 2))]),
            ("edge-b", vec![(9_000, saw(0, 2))]),
            (
                "edge-c",
                vec![(9_000, saw(0, 2)), (9_001, saw(2, 0)), (9_999, saw(2, 0))],
            ),
        ] {
            let seen = told.into_iter().map(|(port, saw)| Observation {
                source: Source::Probe,
                stack: Some(stack(port)),
                ..observation(Component::Gateway, saw)
            });
            let vantage = NodeId::new(vantage).expect("the name is an id");
            let mut report = TickReport::new(vantage, Tick(tick), seen.collect());
            report.keep_stacks_with_sessions(&world.plan, &world.topology);
            let taken = story.windows.take(report, Tick(tick), &story.policy);
            taken.expect("the tick has just closed");
        }
        story.silence(1);
    }
    assert_eq!(story.verdict().health, Health::Down, "{:#?}", story.verdict());
}

#[test]
fn traffic_counts_beside_the_stacks_that_are_needed() {
    // Probes of both stacks are well, and of a thousand sessions at two edges one of ten is not taken.
    let mut story = Story::new();
    for tick in 1..=2 {
        for vantage in ["edge-a", "edge-b"] {
            let probe = |port: u16| Observation {
                source: Source::Probe,
                stack: Some(([127, 0, 0, 1], port).into()),
                ..observation(Component::Gateway, saw(2, 0))
            };
            let seen = vec![probe(1), probe(2), observation(Component::Gateway, saw(90, 10))];
            let report = TickReport::new(NodeId::new(vantage).unwrap(), Tick(tick), seen);
            story.windows.take(report, Tick(tick), &story.policy).unwrap();
        }
        story.silence(1);
    }
    story.check(Health::Down);
}

/// What real worlds are like: in each tick one spoken probe of each of three vantages, and turns of real traffic at one edge.
fn recognitions(story: &mut Story, chance: &mut u64, turns: u32, fails_percent: u64) {
    let mut fails = || {
        *chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*chance >> 33) % 100 < fails_percent
    };
    let mut seen = Vec::new();
    for (vantage, attempts) in [("edge-a", 1 + turns), ("edge-b", 1), ("control-plane", 1)] {
        let failed = (0..attempts).filter(|_| fails()).count() as u32;
        seen.push((vantage, Component::Asr, saw(attempts - failed, failed)));
        seen.push((vantage, Component::Gateway, saw(2, 0)));
    }
    story.tick(&seen);
}

#[test]
fn recognition_that_fails_now_and_then_is_acted_on_by_day_and_at_night() {
    // A region of which this share fails is left after so many ticks at most, in 40 worlds.
    for (turns, fails_percent, ticks_max) in [
        (0, 30, 180),
        (300, 30, 90),
        (0, 50, 36),
        (300, 50, 24),
        (0, 70, 24),
        (300, 100, 12),
    ] {
        let mut slowest = 0;
        for seed in 0..40 {
            let (mut story, mut chance) = (Story::new(), seed);
            (0..30).for_each(|_| recognitions(&mut story, &mut chance, turns, 1));
            let left = (1..=ticks_max).find(|_| {
                recognitions(&mut story, &mut chance, turns, fails_percent);
                let verdict = story.verdict();
                verdict.health == Health::Down && verdict.failing && verdict.bad_from.len() >= 2
            });
            let left = left.unwrap_or_else(|| {
                panic!(
                    "{turns} turns, {fails_percent} %: not left in {ticks_max} ticks: {:#?}",
                    story.verdict()
                )
            });
            // A tick or two in which a probe failed before may count.
            assert!(left >= 10, "well before two minutes: {left}");
            slowest = slowest.max(left);
        }
        println!("{turns} turns a tick, {fails_percent} % fail: left after {slowest} ticks at most");
    }
}

#[test]
fn a_healthy_region_is_left_alone_for_nights() {
    for (turns, nights) in [(0, 4), (30, 1)] {
        let (mut story, mut chance) = (Story::new(), 7);
        for _ in 0..nights * 8 * 360 {
            recognitions(&mut story, &mut chance, turns, 2);
            assert!(
                matches!(
                    story.verdict().health,
                    Health::Healthy | Health::Suspect | Health::Degraded
                ),
                "{:#?}",
                story.verdict()
            );
            assert_eq!(story.verdict().level, Level::L0);
        }
    }
}

#[test]
fn a_million_lies_of_one_vantage_weigh_no_more_than_what_it_can_have_seen() {
    // Ten thousand turns are the most that an edge can have in a tick, and 64 the most probes.
    for (source, counted) in [(Source::Traffic, 10_000), (Source::Probe, 64)] {
        let mut story = Story::new();
        for tick in 1..=3 {
            let liar = Observation {
                source,
                failed: 1_000_000,
                ..observation(Component::Gateway, saw(0, 0))
            };
            for (vantage, seen) in [
                ("edge-a", liar),
                ("edge-b", observation(Component::Gateway, saw(20, 0))),
                ("control-plane", observation(Component::Gateway, saw(2, 0))),
            ] {
                let report = TickReport::new(NodeId::new(vantage).unwrap(), Tick(tick), vec![seen]);
                story.windows.take(report, Tick(tick), &story.policy).unwrap();
            }
            story.silence(1).check(Health::Healthy);
        }
        let told = &story.verdict().evidence[0];
        assert!(told.contains(&format!("edge-a 0/{counted}")), "{told}");
    }
}

#[test]
fn a_latency_exactly_at_its_limit_is_not_past_it() {
    // What takes no time at all is the one latency that a sketch knows exactly.
    let policy = HealthPolicy {
        asr_p99_max: std::time::Duration::ZERO,
        edge_asr_p95_max: std::time::Duration::ZERO,
        ..HealthPolicy::default()
    };
    let mut story = Story::with(policy, Before::default());
    story.both(30, Component::Asr, saw_slow(0, 10, 0.0)).check_fired(&[]);
    story.both(30, Component::Asr, saw_slow(0, 10, 1.0));
    assert!(story.verdict().has_fired(Trigger::AsrLatency));
}

#[test]
fn a_region_is_not_healthy_since_any_time_while_something_of_it_is_bad() {
    // Slow for a tick is no trigger yet, and still nothing to bring sessions back to.
    let mut story = Story::new();
    story.both(5, Component::Asr, WELL).check(Health::Healthy);
    assert!(story.verdict().healthy_since.is_some());
    story
        .both(1, Component::Asr, saw_slow(0, 10, 2_500.0))
        .check(Health::Healthy);
    assert_eq!(story.verdict().healthy_since, None);
    story.both(1, Component::Asr, WELL).check(Health::Healthy);
    assert_eq!(story.verdict().healthy_since, Some(Tick(7).start()));
}

#[test]
fn what_still_fails_is_told_before_what_recovers() {
    let mut story = Story::new();
    for _ in 0..12 {
        let both = ["edge-a", "edge-b"];
        let seen = both.map(|edge| [(edge, Component::Gateway, saw(0, 5)), (edge, Component::Asr, saw(0, 5))]);
        story.tick(&seen.concat());
    }
    story.both(1, Component::Asr, saw(0, 5)).check(Health::Down);
    let verdict = story.verdict();
    assert_eq!((verdict.trigger, verdict.failing), (Some(Trigger::AsrErrors), true));
    assert!(verdict.summary.starts_with("asr errors"), "{}", verdict.summary);
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
    // Then three good ticks in a row do not do: too many bad ones are left in the window.
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
