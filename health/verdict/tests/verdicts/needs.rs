//! Stacks that a region needs: it is left when fewer of them work, and not before.

use std::net::SocketAddr;

use topology::{Component, NodeId, Stack, Tick, fixtures::three_primaries};
use verdict::{Health, Observation, Source, TickReport, TrafficSeen, Trigger};

use crate::{
    stacks::fails,
    story::{Story, observation, region, saw},
};

/// A region with this many stacks, some of them dead, as three vantages see it that probe each stack twice in a tick.
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
    // Half of a region is no region to send more sessions to; the stack is repaired, or drained, which takes it out of
    // the count.
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

/// A stack that dies takes its sessions with it: they are lost all through the next minute, each when its own silence
/// was long enough.
#[test]
fn sessions_that_one_stack_loses_are_its_own_fault() {
    let dies = |books_stack: bool| {
        let mut story = Story::new();
        for tick in 1..=6 {
            for vantage in ["edge-a", "edge-b"] {
                let of_stack = |number: u16, source, saw| Observation {
                    source,
                    stack: Some(([127, 0, 0, 1], 9_000 + number).into()),
                    ..observation(Component::Gateway, saw)
                };
                let mut lost = of_stack(0, Source::Traffic, saw(0, 37));
                lost.stack = lost.stack.filter(|_| books_stack);
                let seen = vec![
                    of_stack(0, Source::Probe, saw(0, 2)),
                    of_stack(1, Source::Probe, saw(2, 0)),
                    of_stack(1, Source::Traffic, saw(100, 0)),
                    lost,
                ];
                let vantage = NodeId::new(vantage).expect("the name is an id");
                let taken = story
                    .windows
                    .take(TickReport::new(vantage, Tick(tick), seen), Tick(tick), &story.policy);
                taken.expect("the tick has just closed");
            }
            story.silence(1);
        }
        story.verdict().health
    };
    assert_eq!(dies(true), Health::Degraded);
    // An older edge does not name the stack that lost them, so all may have.
    assert_eq!(dies(false), Health::Down);
}

/// A tick of a region with this many stacks, as three vantages see it that probe each stack twice: in the first stacks
/// a component fails. `sessions` are live at one edge.
pub(crate) fn failing(story: &mut Story, component: Component, all: u16, failing: u16, sessions: u32) {
    let tick = story.tick + 1;
    for vantage in ["edge-a", "edge-b", "control-plane"] {
        let of_stack = |number: u16, component, saw| Observation {
            source: Source::Probe,
            stack: Some(([127, 0, 0, 1], 9_000 + number).into()),
            ..observation(component, saw)
        };
        let seen = (0..all).flat_map(|number| {
            let saws = if number < failing { saw(0, 2) } else { saw(2, 0) };
            [
                of_stack(number, Component::Gateway, saw(2, 0)),
                of_stack(number, component, saws),
            ]
        });
        let mut report = TickReport::new(
            NodeId::new(vantage).expect("the name is an id"),
            Tick(tick),
            seen.collect(),
        );
        let sessions = if vantage == "edge-a" { sessions } else { 0 };
        report.traffic = vec![TrafficSeen {
            sessions,
            ..TrafficSeen::new(region())
        }];
        let taken = story.windows.take(report, Tick(tick), &story.policy);
        taken.expect("the tick has just closed");
    }
    story.silence(1);
}

#[test]
fn every_service_is_judged_stack_by_stack() {
    for (all, bad, is_left) in [
        (2, 1, false),
        (2, 2, true),
        (4, 2, false),
        (4, 3, true),
        (19, 9, false),
        // One too few, though of ten stacks that are needed nine recognise.
        (19, 10, true),
    ] {
        for (component, trigger) in [
            (Component::Asr, Trigger::AsrErrors),
            (Component::Nlu, Trigger::NluErrors),
            (Component::Skills, Trigger::SkillsErrors),
        ] {
            let mut story = Story::new();
            (0..12).for_each(|_| failing(&mut story, component, all, bad, 0));
            let has_fired = story.verdict().has_fired(trigger);
            assert_eq!(
                has_fired,
                is_left,
                "{component}: {bad} of {all}: {:#?}",
                story.verdict()
            );
        }
    }
    let mut story = Story::new();
    (0..12).for_each(|_| failing(&mut story, Component::Asr, 2, 1, 0));
    story.check(Health::Degraded).check_fired(&[]);
    let verdict = story.verdict();
    assert_eq!(
        verdict.summary,
        "stack 127.0.0.1:9000 fails in asr; `meridian drain --stack 127.0.0.1:9000 --for 2h --reason WHY` takes it out; 1 of 2 stacks serve"
    );
    assert_eq!(
        verdict.evidence[0],
        "stack 127.0.0.1:9000 of us-east does asr 0 times of 6; 1 of 2 stacks serves"
    );
    assert_eq!(
        verdict.dead_stacks,
        [([127, 0, 0, 1], 9_000).into()].into(),
        "it has room for nobody"
    );
    assert_eq!(
        verdict.ailing_stacks,
        [(([127, 0, 0, 1], 9_000).into(), fails(Component::Asr))].into(),
        "and it answers whoever comes"
    );
    let mut story = Story::new();
    (0..12).for_each(|_| failing(&mut story, Component::Gateway, 2, 1, 0));
    assert!(!story.verdict().dead_stacks.is_empty());
    assert!(
        story.verdict().ailing_stacks.is_empty(),
        "who does not answer gets no caller"
    );
}

#[test]
fn a_stack_that_answers_and_one_that_recognises_are_no_two_that_serve() {
    // Of four stacks one does not answer and one recognises nothing: half of them serve. With another one that
    // recognises nothing, fewer do.
    for (deaf, is_left) in [(1, false), (2, true)] {
        let mut story = Story::new();
        for tick in 1..=12 {
            for vantage in ["edge-a", "edge-b"] {
                let of_stack = |number: u16, component, saw| Observation {
                    source: Source::Probe,
                    stack: Some(([127, 0, 0, 1], 9_000 + number).into()),
                    ..observation(component, saw)
                };
                let mut seen = vec![of_stack(0, Component::Gateway, saw(0, 2))];
                for number in 1..4 {
                    let recognised = if number <= deaf { saw(0, 2) } else { saw(2, 0) };
                    seen.push(of_stack(number, Component::Gateway, saw(2, 0)));
                    seen.push(of_stack(number, Component::Asr, recognised));
                }
                let report = TickReport::new(NodeId::new(vantage).unwrap(), Tick(tick), seen);
                story.windows.take(report, Tick(tick), &story.policy).unwrap();
            }
            story.silence(1);
        }
        assert_eq!(
            story.verdict().has_fired(Trigger::AsrErrors),
            is_left,
            "{:#?}",
            story.verdict()
        );
    }
}

#[test]
fn a_region_needs_the_stacks_that_its_sessions_fill() {
    let mut world = three_primaries();
    let us_east = world.topology.regions.get_mut(&region()).unwrap();
    us_east.sessions_max = 400;
    us_east.stacks = (0..4)
        .map(|number| SocketAddr::from(([127, 0, 0, 1], 9_000 + number)).into())
        .collect();
    for (sessions, bad, is_left) in [
        // Three of four stacks have room for 300.
        (300, 1, false),
        (301, 1, true),
        // However few sessions there are, half of the stacks are needed.
        (1, 2, false),
        (1, 3, true),
    ] {
        let mut story = Story::new();
        story.windows.know_rooms(&world.plan, &world.topology);
        (0..12).for_each(|_| failing(&mut story, Component::Asr, 4, bad, sessions));
        let has_fired = story.verdict().has_fired(Trigger::AsrErrors);
        assert_eq!(
            has_fired,
            is_left,
            "{sessions} sessions, {bad} bad: {:#?}",
            story.verdict()
        );
    }
}

#[test]
fn a_stack_that_failed_for_long_and_is_well_again_carries_its_region() {
    let mut story = Story::new();
    // Of three stacks, of which two are needed, the third is dead for long, and lives again; then the second one dies.
    let tick = |story: &mut Story, dead: Option<u16>| {
        let at = story.tick + 1;
        for vantage in ["edge-a", "edge-b", "control-plane"] {
            let seen = (0..3).map(|number| {
                let saw = if dead == Some(number) { saw(0, 2) } else { saw(2, 0) };
                Observation {
                    source: Source::Probe,
                    stack: Some(([127, 0, 0, 1], 9_000 + number).into()),
                    ..observation(Component::Gateway, saw)
                }
            });
            let report = TickReport::new(NodeId::new(vantage).unwrap(), Tick(at), seen.collect());
            story.windows.take(report, Tick(at), &story.policy).unwrap();
        }
        story.silence(1);
    };
    (0..30).for_each(|_| tick(&mut story, Some(2)));
    (0..5).for_each(|_| tick(&mut story, None));
    story.check(Health::Healthy);
    for _ in 0..5 {
        tick(&mut story, Some(1));
        story.check(Health::Degraded);
    }
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
    // Probes of both stacks succeed, and of a thousand sessions at two edges one of ten is not accepted.
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

/// The sessions of a stack that freezes time out over several ticks, and go on at the other one, which works.
#[test]
fn a_stack_that_freezes_under_its_sessions_does_not_take_its_region_along() {
    for (tells_the_stack, health) in [(true, Health::Degraded), (false, Health::Down)] {
        let mut story = Story::new();
        for tick in 1..=6 {
            for vantage in ["edge-a", "edge-b"] {
                let of = |source, port: u16, saw| Observation {
                    source,
                    stack: Some(([127, 0, 0, 1], port).into()),
                    ..observation(Component::Gateway, saw)
                };
                let traffic = |port, saw| match of(Source::Traffic, port, saw) {
                    told if tells_the_stack => told,
                    told => Observation { stack: None, ..told },
                };
                let seen = vec![
                    of(Source::Probe, 1, saw(0, 2)),
                    of(Source::Probe, 2, saw(2, 0)),
                    traffic(1, saw(0, 40)),
                    traffic(2, saw(60, 0)),
                ];
                let report = TickReport::new(NodeId::new(vantage).unwrap(), Tick(tick), seen);
                story.windows.take(report, Tick(tick), &story.policy).unwrap();
            }
            story.silence(1);
        }
        story.check(health);
    }
}
