//! Stacks of one region that fail while the region is judged.

use std::net::SocketAddr;

use topology::{Component, NodeId, Tick, policy::HealthPolicy};
use verdict::{Ailment, Before, Health, Observation, Source, TickReport, Trigger, Trouble};

use crate::{
    needs::failing,
    story::{Story, observation, saw},
};

/// Chance with a seed: true for this percentage of draws.
struct Chance(u64);

impl Chance {
    fn fails(&mut self, percent: u64) -> bool {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % 100 < percent
    }
}

/// The tick of a night in which recognition that fails for this percentage in every stack counts against the region,
/// with three vantages that probe each stack once in a tick; none when it does not within that many ticks.
fn found_out(stacks: u16, percent: u64, ticks: u64, chance: &mut Chance) -> Option<u64> {
    let mut story = Story::new();
    (1..=ticks).find(|tick| {
        for vantage in ["edge-a", "edge-b", "control-plane"] {
            let seen = (0..stacks).flat_map(|number| {
                let stack = Some(([127, 0, 0, 1], 9_000 + number).into());
                let of_stack = |component, saw| Observation {
                    source: Source::Probe,
                    stack,
                    ..observation(component, saw)
                };
                let recognised = if chance.fails(percent) { saw(0, 1) } else { saw(1, 0) };
                [
                    of_stack(Component::Gateway, saw(2, 0)),
                    of_stack(Component::Asr, recognised),
                ]
            });
            let vantage = NodeId::new(vantage).expect("the name is an id");
            let report = TickReport::new(vantage, Tick(*tick), seen.collect());
            let taken = story.windows.take(report, Tick(*tick), &story.policy);
            taken.expect("the tick has just closed");
        }
        story.silence(1).verdict().has_fired(Trigger::AsrErrors)
    })
}

pub(crate) fn fails(component: Component) -> Ailment {
    let trouble = Trouble::Fails;
    Ailment { component, trouble }
}

fn stack(number: u16) -> SocketAddr {
    ([127, 0, 0, 1], 9_000 + number).into()
}

/// Its callers notice, and the region's other stacks hide it from all others.
#[test]
fn a_stack_that_answers_and_fails_in_any_component_is_named() {
    for component in [
        Component::Asr,
        Component::Nlu,
        Component::Skills,
        Component::Tts,
        Component::SessionStore,
    ] {
        let mut story = Story::new();
        failing(&mut story, component, 3, 1, 0);
        story.check(Health::Degraded);
        assert!(story.verdict().ailing_stacks.is_empty(), "one bad tick of {component}");
        failing(&mut story, component, 3, 1, 0);
        story.check(Health::Degraded).check_fired(&[]);
        let verdict = story.verdict();
        assert_eq!(verdict.ailing_stacks, [(stack(0), fails(component))].into());
        assert_eq!(verdict.broken, None, "two of three stacks are enough");
        assert_eq!(
            verdict.summary,
            format!(
                "stack 127.0.0.1:9000 fails in {component}; `meridian drain --stack \
                 127.0.0.1:9000 --for 2h --reason WHY` takes it out; 2 of 3 stacks serve"
            )
        );
        assert_eq!(
            verdict.evidence[0],
            format!("stack 127.0.0.1:9000 of us-east does {component} 0 times of 6; 2 of 3 stacks serve")
        );
        // Callers can do without NLU, skills and TTS, so the stack has room for them as before.
        assert_eq!(
            verdict.dead_stacks.is_empty(),
            component != Component::Asr,
            "{component}"
        );
        failing(&mut story, component, 3, 0, 0);
        assert!(story.verdict().ailing_stacks.is_empty(), "{component} works again");
    }
}

#[test]
fn a_region_is_broken_when_too_few_of_its_stacks_work_in_a_component_without_a_rule() {
    for component in [Component::Tts, Component::SessionStore] {
        for (all, bad) in [(1, 1), (3, 2)] {
            let mut story = Story::new();
            // One failing stack of three is no trouble of the region, and does not hasten its verdict.
            (0..2).for_each(|_| failing(&mut story, component, all, bad - 1, 0));
            failing(&mut story, component, all, bad, 0);
            assert_eq!(
                story.verdict().broken,
                None,
                "one bad tick of {component} in {all} stacks"
            );
            failing(&mut story, component, all, bad, 0);
            story.check(Health::Degraded);
            let verdict = story.verdict();
            assert_eq!(verdict.broken, Some(component), "{bad} of {all}");
            let named = if all == 1 { 0 } else { usize::from(bad) };
            assert_eq!(verdict.ailing_stacks.len(), named, "one stack is judged as its region");
            let summary = format!("more than 10 % of what {component} did failed");
            assert!(verdict.summary.starts_with(&summary), "{}", verdict.summary);
        }
    }
    for component in [Component::Asr, Component::Nlu, Component::Skills] {
        let mut story = Story::new();
        (0..2).for_each(|_| failing(&mut story, component, 3, 2, 0));
        assert_eq!(story.verdict().broken, None, "{component} has a trigger");
    }
}

/// Reports of three ticks are kept. A policy with a longer limit for gateways needs more of them than that.
#[test]
fn a_patient_policy_names_stacks_too() {
    let policy = HealthPolicy {
        gateway_ticks: 9,
        ..HealthPolicy::default()
    };
    let mut story = Story::with(policy, Before::default());
    (0..2).for_each(|_| failing(&mut story, Component::Asr, 3, 1, 0));
    assert!(story.verdict().dead_stacks.is_empty());
    (0..2).for_each(|_| failing(&mut story, Component::Asr, 3, 1, 0));
    assert_eq!(story.verdict().dead_stacks, [stack(0)].into());
    assert_eq!(
        story.verdict().ailing_stacks,
        [(stack(0), fails(Component::Asr))].into()
    );
}

/// Ranked by the ticks before, a stack that just died would still stand for its region in the tick of its death.
#[test]
fn a_stack_that_dies_does_not_stand_for_its_region_in_that_tick() {
    for (well, component) in [1, 2, 3, 4, 9]
        .into_iter()
        .flat_map(|well| [Component::Gateway, Component::Asr].map(|it| (well, it)))
    {
        let mut story = Story::new();
        (0..well).for_each(|_| failing(&mut story, component, 2, 0, 0));
        story.check(Health::Healthy);
        failing(&mut story, component, 2, 1, 0);
        story.check(Health::Degraded);
    }
}

/// The luck of one tick must not choose the stacks that count, or a region whose every stack fails now and then looks
/// healthy.
#[test]
fn two_stacks_that_both_fail_now_and_then_are_found_out_as_one_is() {
    let mut chance = Chance(7);
    for world in 0..20 {
        let found = found_out(2, 30, 180, &mut chance);
        assert!(found.is_some(), "world {world}: half an hour, and nothing is done");
    }
    // At 20 % most hours show it, and not all: at night there are three probes of a stack in a tick.
    for stacks in [1, 2] {
        let found = (0..12).filter_map(|_| found_out(stacks, 20, 360, &mut chance)).count();
        assert!(found >= 9, "{stacks} stacks: found out in {found} of 12 hours");
    }
}
