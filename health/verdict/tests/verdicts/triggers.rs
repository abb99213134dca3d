//! Every trigger at its exact boundary, and its limits of samples and vantages.

use topology::{Component, Level, NodeId, Tick, policy::HealthPolicy};
use verdict::{Before, Health, Observation, Source, TickReport, Trigger};

use crate::story::{Saw, Story, WELL, observation, saw, saw_slow};

/// A trigger with its numbers, and the samples of each of two edges at its limit and just past it. Nothing here reads
/// the policy, so a changed default shows.
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
        // The policy's default: four of twelve for the gateway; for the others as many in two and a half times the
        // ticks.
        let (needed, window) = match it.trigger {
            Trigger::GatewayConnections => (4, 12),
            _ => (it.fall, it.fall * 5 / 2),
        };
        let name = it.trigger;
        // Every other tick.
        let mut story = Story::new();
        for bad in 1..needed {
            assert!(!it.play(&mut story, 1, it.past), "{name:?} fell at bad tick {bad}");
            it.play(&mut story, 1, WELL);
        }
        assert!(it.play(&mut story, 1, it.past), "{name:?} did not fall");
        // The trigger holds while as many bad ticks are left in the window, however many good ones there are.
        let first_leaves = window - (2 * needed - 1);
        let held = first_leaves.max(it.rise - 1);
        assert!(it.play(&mut story, held, WELL), "{name:?}");
        assert!(
            !it.play(&mut story, 1 + u32::from(held < first_leaves), WELL),
            "{name:?}"
        );
        // One bad tick fewer in each window, for long.
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

/// A realistic world: in each tick one spoken probe of each of three vantages, and turns of real traffic at one edge.
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
    // A region that fails this share is left after this many ticks at most, in 40 worlds.
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
            // A tick or two with a failed probe before may count.
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
    // A latency of zero is the one that a sketch knows exactly.
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
    // Slow for one tick fires no trigger, and still lets no session return.
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
fn a_trigger_that_still_fails_is_told_before_one_that_recovers() {
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
        // One bad tick among them, and the count begins again.
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
        // The other vantage sees it healthy; has no samples; does not exist.
        assert!(!fires(Story::new().each(ticks, component, many(it.past), saw(1, 0))));
        assert!(!fires(Story::new().each(ticks, component, many(it.past), saw(0, 0))));
        let mut story = Story::new();
        for _ in 0..ticks {
            story.tick(&[("edge-a", component, many(it.past))]);
        }
        assert!(!fires(&story), "{:?}", it.trigger);
        // A third one that sees it healthy is outvoted only if it has few samples.
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
        // The ticks before blindness are too old to count, and a fallen trigger still has to rise.
        let mut story = Story::new();
        it.play(&mut story, it.fall - 1, it.past);
        story.silence(3);
        assert_eq!(it.play(&mut story, 1, it.past), it.fall == 1, "{name:?}");
        assert!(it.play(&mut story, it.fall - 1, it.past), "{name:?}");
        story.silence(30);
        assert!(it.play(&mut story, it.rise - 1, WELL), "{name:?}");
    }
}
