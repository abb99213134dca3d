//! Stories of automation that people stop or start: freezes, rollouts, overrides.

use planning::{Phase, RolloutSeen};
use topology::{Component, IntentKind, Level, ReasonCode, RegionState, Rule};
use verdict::Health;

use crate::world::{
    DAY, HOUR, MINUTE, SECOND, World, abort, approve, fail_over, region, restore, roll_out, switch_over,
};

// Freeze.

#[test]
fn while_automation_is_frozen_operators_act_and_nothing_else_does() {
    let mut world = World::new();
    let drain = world.ask("alice", switch_over("us-east"));
    world.ask_for("alice", IntentKind::Freeze, 5 * MINUTE);
    world.sees("eu-west", Health::Down).pass(4 * MINUTE);
    assert_eq!(world.state("eu-west"), RegionState::Serving);
    assert_eq!(
        world.state("us-east"),
        RegionState::Draining(75),
        "a drain is held where it is"
    );
    assert!(world.refused(ReasonCode::Frozen));

    world.ask("bob", abort(&drain));
    assert_eq!(world.state("us-east"), RegionState::Serving);
    world.pass(MINUTE);
    assert_eq!(world.state("eu-west"), RegionState::Evacuated, "its time is over");
}

#[test]
fn an_unfreeze_ends_every_freeze() {
    let mut world = World::new();
    world.ask_for("alice", IntentKind::Freeze, HOUR);
    world.ask_for("bob", IntentKind::Freeze, 2 * HOUR);
    world.sees("us-east", Health::Down).pass(MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Serving);
    world.ask("carol", IntentKind::Unfreeze);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
}

#[test]
fn a_crowded_backup_is_degraded_also_while_automation_is_frozen() {
    let mut world = World::with(|topology, _| {
        for backup in ["us-west", "eu-central"] {
            let backup = topology.regions.get_mut(&region(backup)).unwrap();
            backup.capacity.insert(Component::Asr, 20);
        }
    });
    world.ask_for("alice", IntentKind::Freeze, HOUR);
    world.input.verdicts.get_mut(&region("us-west")).unwrap().level = Level::L2;
    world.ask("alice", fail_over("us-east"));
    assert_eq!(
        world.level("us-west"),
        Level::L1,
        "as far as the sessions need it, no further"
    );
}

// Rollout.

#[test]
fn a_new_version_takes_fifteen_days_to_reach_everybody() {
    let mut world = World::new();
    let asked = world.ask("alice", roll_out("v2"));
    let percent = |world: &World| world.plan().rollout.as_ref().map(|it| it.percent);
    world.devices_see("v2", |_| {});
    for (days, before, after) in [(3, 10, 25), (5, 25, 50), (7, 50, 100)] {
        assert_eq!(percent(&world), Some(before));
        world.jump(days * DAY - SECOND);
        assert!(world.waits(ReasonCode::RolloutHold));
        assert_eq!(percent(&world), Some(before));
        world.jump(SECOND);
        assert_eq!(percent(&world), Some(after));
    }
    assert_eq!(world.phase(&asked), Some(Phase::Done));
    world.ask("alice", roll_out("v2"));
    assert!(world.changed(ReasonCode::AlreadySo));
}

#[test]
fn each_trigger_sends_everybody_back_to_the_old_version() {
    let turns_fail = |it: &mut RolloutSeen| {
        (it.turns_failed, it.turns_succeeded) = (101, 9_899);
    };
    let bad = [
        ("1.01 % of turns failed", turns_fail as fn(&mut RolloutSeen)),
        ("p95 latency 301 ms", |it| it.p95_ms = Some(301.0)),
        ("10.1 audio underruns per session", |it| it.underruns = 10_100),
        ("1 GPU memory errors", |it| it.gpu_memory_errors = 1),
    ];
    for (why, change) in bad {
        let mut world = World::new();
        let asked = world.ask("alice", roll_out("v2"));
        world.devices_see("v2", |_| {}).pass(10 * SECOND);
        assert!(world.plan().rollout.is_some());
        // It happens also while automation is frozen: a version that hurts users ends.
        world.ask_for("alice", IntentKind::Freeze, HOUR);
        world.devices_see("v2", change).pass(10 * SECOND);
        assert_eq!(world.plan().rollout, None, "{why}");
        assert_eq!(world.phase(&asked), Some(Phase::Aborted));
        let reason = &world.plan().reasons[0];
        assert!(
            reason.code == ReasonCode::RolledBack && reason.text.contains(why),
            "{reason:?}"
        );
    }
}

#[test]
fn a_rollout_waits_for_sessions_to_judge_it_by_and_for_automation() {
    let mut world = World::with(|_, policy| policy.rollout.steps[0].hold = MINUTE);
    world.ask("alice", roll_out("v2"));
    world.pass(2 * MINUTE);
    assert!(
        world
            .waiting(ReasonCode::RolloutHold)
            .text
            .contains("0 sessions were seen")
    );
    world.devices_see("v3", |_| {}).pass(10 * SECOND);
    assert!(world.waits(ReasonCode::RolloutHold), "those are of another version");
    world.ask_for("alice", IntentKind::Freeze, MINUTE);
    world.devices_see("v2", |_| {}).pass(50 * SECOND);
    assert!(world.waits(ReasonCode::Frozen));
    world.pass(10 * SECOND);
    assert_eq!(world.plan().rollout.as_ref().unwrap().percent, 25);
}

#[test]
fn one_rollout_at_a_time_and_an_abort_rolls_back() {
    let mut world = World::new();
    let asked = world.ask("alice", roll_out("v2"));
    world.ask("bob", roll_out("v3"));
    assert!(world.refused(ReasonCode::RolloutRunning));
    world.ask("bob", abort(&asked));
    assert!(world.changed(ReasonCode::RolledBack));
    assert_eq!(world.plan().rollout, None);
}

// Overrides.

#[test]
fn an_override_takes_two_people_and_ends() {
    let mut world = World::new();
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    world.pass(MINUTE).sees("eu-west", Health::Down).pass(10 * SECOND);
    assert!(world.refused(ReasonCode::EvacuationLimit));
    let rule = Rule::EvacuationLimit;
    let asked = world.ask_for("alice", IntentKind::Override { rule }, 30 * MINUTE);
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    world.pass(10 * SECOND);
    assert_eq!(world.state("eu-west"), RegionState::Serving);
    world.ask("bob", approve(&asked));
    world.pass(10 * SECOND);
    assert_eq!(world.state("eu-west"), RegionState::Evacuated);
    world.pass(30 * MINUTE);
    assert_eq!(world.phase(&asked), Some(Phase::Expired));
    world.sees("ap-south", Health::Down).pass(10 * SECOND);
    assert!(world.refused(ReasonCode::EvacuationLimit), "its time is over");
}

#[test]
fn every_rule_that_can_be_overridden_can() {
    let refusal = |rule: Rule| -> World {
        let mut world = World::with(|_, policy| {
            policy.safety.two_person.clear();
            policy.failover.automatic_max = if rule == Rule::EvacuationLimit { 0 } else { 1 };
            policy.safety.regions_serving_min = if rule == Rule::RegionsServingMin { 6 } else { 2 };
        });
        if rule == Rule::HoldDown {
            for _ in 0..2 {
                world.ask("alice", restore("us-east"));
                world.sees("us-east", Health::Down).pass(20 * SECOND);
                world.sees("us-east", Health::Healthy).pass(10 * SECOND);
            }
        }
        world
    };
    for rule in [Rule::EvacuationLimit, Rule::RegionsServingMin, Rule::HoldDown] {
        let mut world = refusal(rule);
        let act = |world: &mut World| {
            if rule == Rule::HoldDown {
                world.ask("alice", restore("us-east"));
                world.state("us-east") != RegionState::Evacuated
            } else {
                world.sees("us-east", Health::Down).pass(10 * SECOND);
                world.state("us-east") == RegionState::Evacuated
            }
        };
        assert!(!act(&mut world), "{rule}");
        world.ask_for("alice", IntentKind::Override { rule }, HOUR);
        assert!(act(&mut world), "{rule}");
    }
}
