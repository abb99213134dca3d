//! What operators and automation do, told from their side.

use std::time::Duration;

use planning::{Phase, RolloutSeen};
use topology::{
    Component, EdgeState, IntentKind, Level, ReasonCode, RegionState, Rule, policy::TwoPerson, snapshot::digest,
};
use verdict::Health;

use crate::world::{
    DAY, HOUR, MINUTE, SECOND, World, abort, approve, edge, fail_over, promote, region, restore, roll_out, switch_over,
};

// Two people.

#[test]
fn leaving_a_second_region_takes_a_second_person() {
    let mut world = World::new();
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    let asked = world.ask("alice", fail_over("eu-west"));
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    let wait = world.waiting(ReasonCode::NeedsApproval);
    assert!(
        wait.text.contains(&format!("`meridian approve {asked}`")),
        "{}",
        wait.text
    );
    assert_eq!(wait.until, Some(world.now + 10 * MINUTE));
    assert_eq!(world.state("eu-west"), RegionState::Serving);

    for herself in ["alice", "Alice"] {
        world.ask(herself, approve(&asked));
        assert!(world.refused(ReasonCode::SamePerson), "{herself}");
        assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    }
    world.ask("bob", approve(&asked));
    assert!(world.changed(ReasonCode::Approved) && world.changed(ReasonCode::ForcedFailover));
    assert_eq!(world.state("eu-west"), RegionState::Evacuated);
    assert_eq!(world.phase(&asked), Some(Phase::Done));
    assert_eq!(world.input.memory.actions[&asked].approved_by.as_deref(), Some("bob"));
    world.ask("carol", approve(&asked));
    assert!(world.refused(ReasonCode::NoSuchAction), "once is enough");
}

#[test]
fn an_approval_comes_within_ten_minutes_or_not_at_all() {
    let mut world = World::new();
    world.ask("alice", fail_over("us-east"));
    let asked = world.ask("alice", fail_over("eu-west"));
    world.pass(10 * MINUTE - SECOND);
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    world.pass(SECOND);
    assert!(world.changed(ReasonCode::Expired));
    assert_eq!(world.phase(&asked), Some(Phase::Expired));
    world.ask("bob", approve(&asked));
    assert!(world.refused(ReasonCode::NoSuchAction));
    assert_eq!(world.state("eu-west"), RegionState::Serving);
}

#[test]
fn what_was_approved_is_judged_by_the_world_as_it_is_then() {
    let mut world = World::new();
    world.ask("alice", fail_over("us-east"));
    let asked = world.ask("alice", fail_over("eu-west"));
    world.sees("eu-central", Health::Down).sees("us-west", Health::Down);
    world.ask("bob", approve(&asked));
    assert!(world.refused(ReasonCode::NoFitBackup));
    assert_eq!(world.phase(&asked), Some(Phase::Refused));
    assert_eq!(world.state("eu-west"), RegionState::Serving);
}

#[test]
fn nobody_is_asked_to_approve_what_is_refused_anyway() {
    let mut world = World::new();
    world.ask("alice", fail_over("us-east"));
    world.sees("eu-central", Health::Down).sees("us-west", Health::Down);
    let asked = world.ask("alice", fail_over("eu-west"));
    assert!(world.refused(ReasonCode::NoFitBackup));
    assert_eq!(world.phase(&asked), None);
}

#[test]
fn a_policy_can_do_without_the_second_person() {
    let mut world = World::with(|_, policy| policy.safety.two_person = vec![TwoPerson::DataLoss]);
    world.ask("alice", fail_over("us-east"));
    world.ask("alice", fail_over("eu-west"));
    assert_eq!(world.state("eu-west"), RegionState::Evacuated);
}

// Data.

#[test]
fn data_is_promoted_within_its_rpo_and_never_by_itself() {
    let mut world = World::new();
    world.lags("us-east", 5 * SECOND);
    world.sees("us-east", Health::Down).pass(MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    assert!(world.plan().writers.is_empty());
    assert!(world.waiting(ReasonCode::PromotionHeld).text.contains("--promote"));

    world.ask("alice", promote("us-east", None));
    assert!(world.changed(ReasonCode::Promoted));
    let writers = &world.plan().writers[&region("us-east")];
    assert_eq!(writers["profiles"], region("us-west"));
    assert!(!writers.contains_key("sessions"), "sessions never leave their region");
    assert!(
        !writers.contains_key("skill-catalog"),
        "every region writes the catalog"
    );
    assert!(!world.waits(ReasonCode::PromotionHeld));
}

#[test]
fn a_loss_above_the_rpo_is_named_and_approved() {
    let mut world = World::new();
    world.lags("us-east", 2 * HOUR);
    world.ask("alice", promote("us-east", None));
    assert!(world.refused(ReasonCode::RpoExceeded));
    assert_eq!(world.state("us-east"), RegionState::Serving, "all or nothing");

    world.ask("alice", promote("us-east", Some(HOUR)));
    assert!(world.refused(ReasonCode::RpoExceeded), "less than would be lost");

    let asked = world.ask("alice", promote("us-east", Some(3 * HOUR)));
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    world.ask("bob", approve(&asked));
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    assert!(!world.plan().writers.is_empty());
}

#[test]
fn a_lag_nobody_measures_may_be_any_lag() {
    let mut world = World::new();
    world.ask("alice", promote("us-east", None));
    assert!(world.refused(ReasonCode::RpoExceeded));
    assert!(world.report.refused[0].text.contains("its lag is not known"));

    world.lags("us-east", 5 * SECOND);
    world.now = world.now + MINUTE;
    for verdict in world.input.verdicts.values_mut() {
        verdict.tick = world.now.tick().back(1);
    }
    world.ask("alice", promote("us-east", None));
    assert!(
        world.report.refused[0]
            .text
            .contains("its lag was last measured 60 s ago")
    );
}

#[test]
fn a_loss_is_accepted_only_together_with_promoting() {
    let mut world = World::new();
    let kind = IntentKind::Failover {
        region: region("us-east"),
        promote: false,
        accept_loss: Some(HOUR),
        force: false,
    };
    world.ask("alice", kind);
    assert!(world.refused(ReasonCode::BadRequest));
}

#[test]
fn a_region_that_returns_takes_its_data_back_when_that_has_caught_up() {
    let mut world = World::new();
    world.lags("us-east", SECOND);
    world.ask("alice", promote("us-east", None));
    world.lags("us-east", 2 * HOUR).pass(MINUTE);
    world.ask("alice", restore("us-east"));
    assert!(world.refused(ReasonCode::RpoExceeded));
    world.lags("us-east", SECOND);
    world.ask("alice", restore("us-east"));
    world.pass(5 * MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Serving);
    assert!(world.plan().writers.is_empty());
}

// Hold-down.

#[test]
fn a_region_that_moved_too_often_stays_away_until_it_calmed_down_or_is_acknowledged() {
    let mut world = World::new();
    let flap = |world: &mut World| {
        world.sees("us-east", Health::Down).pass(20 * SECOND);
        world.sees("us-east", Health::Healthy).pass(10 * SECOND);
    };
    flap(&mut world);
    world.ask("alice", restore("us-east"));
    flap(&mut world);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    let held = world.waiting(ReasonCode::HoldDown).clone();
    assert!(held.until > Some(world.now + 25 * MINUTE), "{held:?}");

    let refused = world.ask("alice", restore("us-east"));
    assert!(world.refused(ReasonCode::HoldDown));
    assert_eq!(world.phase(&refused), None);

    let (memory, now) = (world.input.memory.clone(), world.now);
    world.ask(
        "bob",
        IntentKind::Ack {
            region: region("us-east"),
        },
    );
    assert!(world.changed(ReasonCode::Acknowledged) && world.waits(ReasonCode::RestoreReady));
    world.ask(
        "bob",
        IntentKind::Ack {
            region: region("us-east"),
        },
    );
    assert!(world.changed(ReasonCode::AlreadySo));
    world.ask("alice", restore("us-east"));
    assert_eq!(world.state("us-east"), RegionState::Restoring(1));

    // The same without the acknowledgement: time lifts it.
    let mut world = World::new();
    world.sees("us-east", Health::Down).pass(20 * SECOND);
    world.sees("us-east", Health::Healthy);
    (world.input.memory, world.now) = (memory, now);
    world.pass(held.until.unwrap().since(now) - SECOND);
    assert!(world.waits(ReasonCode::HoldDown));
    world.pass(SECOND);
    assert!(world.waits(ReasonCode::RestoreReady));
}

#[test]
fn planned_moves_carry_no_penalty() {
    let mut world = World::new();
    world.ask("alice", switch_over("us-east"));
    world.pass(3 * MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    assert!(world.input.memory.penalties.is_empty());
}

// Capacity.

#[test]
fn what_does_not_fit_stays_until_there_is_room() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("us-west")).unwrap().sessions_max = 100;
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 60;
    });
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "us-east 20 + us-west 50 + eu-central 30");
    assert_eq!(world.state("us-east"), RegionState::Draining(20));
    let plans = world.plans.len();
    world.pass(5 * MINUTE);
    let text = &world.waiting(ReasonCode::PartlyMoved).text;
    let full = "20 % of them stay: its sessions find no place in its backups: us-west has no room left, eu-central";
    assert!(text.starts_with(full), "{text}");
    assert_eq!(world.plans.len(), plans, "waiting makes no plans");

    world
        .input
        .topology
        .regions
        .get_mut(&region("us-west"))
        .unwrap()
        .sessions_max = 200;
    world.pass(20 * SECOND);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    let auto = world
        .input
        .memory
        .actions
        .values()
        .find(|action| action.intent.author == "planner");
    assert_eq!(auto.unwrap().phase, Phase::Done);
}

#[test]
fn nothing_at_all_fits_so_nothing_moves_and_the_full_regions_are_named() {
    let mut world = World::with(|topology, policy| {
        policy.safety.two_person.clear();
        for backup in ["us-west", "eu-central"] {
            topology.regions.get_mut(&region(backup)).unwrap().sessions_max = 1;
        }
    });
    world.ask("alice", fail_over("us-east"));
    assert!(world.refused(ReasonCode::NoHeadroom));
    let text = &world.report.refused[0].text;
    assert!(
        text.contains("us-west has no room left, eu-central has no room left"),
        "{text}"
    );
}

#[test]
fn connections_come_no_faster_than_they_are_accepted() {
    // Who orders it by hand knows better than what is seen.
    for health in [Health::Down, Health::Healthy] {
        let mut world = World::with(|topology, _| {
            topology.regions.get_mut(&region("us-west")).unwrap().connects_per_s_max = Some(5);
            topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 1;
        });
        world.sees("us-east", health);
        let asked = world.ask("alice", fail_over("us-east"));
        assert_eq!(world.phase(&asked), Some(Phase::Running));
        let mut told = vec![world.route("us-east")];
        for _ in 0..3 {
            world.decide();
            let wait = world.waiting(ReasonCode::PartlyMoved);
            assert_eq!(wait.until, Some(world.now + 10 * SECOND));
            world.pass(10 * SECOND);
            told.push(world.route("us-east"));
        }
        let expected = [
            "us-east 75 + us-west 25",
            "us-east 50 + us-west 50",
            "us-east 25 + us-west 75",
            "us-west 100",
        ];
        assert_eq!(told, expected);
        assert_eq!(world.phase(&asked), Some(Phase::Done));
    }
}

#[test]
fn automation_stops_leaving_a_region_that_recovered() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("us-west")).unwrap().connects_per_s_max = Some(5);
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 1;
    });
    world.sees("us-east", Health::Down).decide();
    world.sees("us-east", Health::Healthy).pass(MINUTE);
    assert_eq!(world.route("us-east"), "us-east 75 + us-west 25");
    assert!(world.waits(ReasonCode::RestoreReady));
    world.ask("alice", restore("us-east"));
    world.pass(5 * MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Serving);
}

#[test]
fn a_return_is_as_slow_as_connections_are_accepted() {
    let mut world = World::with(|topology, policy| {
        topology.regions.get_mut(&region("us-east")).unwrap().connects_per_s_max = Some(2);
        policy.restore.steps = vec![50, 100];
    });
    world.ask("alice", fail_over("us-east"));
    world.pass(MINUTE);
    world.ask("alice", restore("us-east"));
    assert_eq!(
        world.state("us-east"),
        RegionState::Restoring(10),
        "20 sessions in ten seconds"
    );
    world.pass(20 * MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Serving);
}

#[test]
fn an_abort_goes_back_as_slowly_as_connections_are_accepted() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("us-east")).unwrap().connects_per_s_max = Some(2);
    });
    let asked = world.ask("alice", switch_over("us-east"));
    world.pass(45 * SECOND);
    assert_eq!(world.state("us-east"), RegionState::Draining(50));
    world.ask("bob", abort(&asked));
    assert_eq!(world.state("us-east"), RegionState::Restoring(60));
    assert_eq!(world.phase(&asked), Some(Phase::Aborted));
    world.pass(20 * MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Serving);
}

#[test]
fn a_backup_short_of_one_component_serves_without_it() {
    for (component, level) in [
        (Component::Asr, Level::L1),
        (Component::Nlu, Level::L2),
        (Component::Skills, Level::L3),
    ] {
        let mut world = World::with(|topology, _| {
            for backup in ["us-west", "eu-central"] {
                let backup = topology.regions.get_mut(&region(backup)).unwrap();
                backup.capacity.insert(component, 20);
            }
        });
        world.sees("us-east", Health::Down).pass(10 * SECOND);
        assert_eq!(world.state("us-east"), RegionState::Evacuated);
        assert_eq!(world.route("us-east"), "us-west 90 + eu-central 10");
        assert_eq!((world.level("us-west"), world.level("eu-central")), (level, Level::L0));

        world.sees("us-east", Health::Healthy).pass(MINUTE);
        world.ask("alice", restore("us-east"));
        world.pass(6 * MINUTE);
        assert_eq!(world.level("us-west"), Level::L0, "room again, quality again");
    }
}

#[test]
fn components_that_no_level_does_without_and_policies_that_degrade_nobody_keep_sessions_back() {
    for (component, degrade) in [(Component::Tts, true), (Component::Asr, false)] {
        let mut world = World::with(|topology, policy| {
            policy.failover.degrade_to_admit = degrade;
            for backup in ["us-west", "eu-central"] {
                let backup = topology.regions.get_mut(&region(backup)).unwrap();
                backup.capacity.insert(component, 20);
            }
        });
        world.sees("us-east", Health::Down).pass(10 * SECOND);
        assert_eq!(world.route("us-east"), "us-east 80 + us-west 10 + eu-central 10");
        assert_eq!(world.level("us-west"), Level::L0);
    }
}

// Switchover.

#[test]
fn a_switchover_goes_in_steps_and_takes_the_data_along() {
    let mut world = World::new();
    world.lags("us-east", SECOND);
    let kind = IntentKind::Switchover {
        region: region("us-east"),
        promote: true,
    };
    let asked = world.ask("alice", kind);
    for percent in [75, 50, 25] {
        assert_eq!(world.state("us-east"), RegionState::Draining(percent));
        assert_eq!(world.phase(&asked), Some(Phase::Running));
        assert!(world.plan().writers.is_empty(), "data follows the last session");
        world.pass(30 * SECOND - Duration::from_millis(1));
        assert_eq!(world.state("us-east"), RegionState::Draining(percent));
        assert!(world.waits(ReasonCode::DrainHold));
        world.pass(Duration::from_millis(1));
    }
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    assert_eq!(world.phase(&asked), Some(Phase::Done));
    assert_eq!(world.plan().writers[&region("us-east")]["profiles"], region("us-west"));
}

#[test]
fn a_switchover_in_one_step_is_over_at_once() {
    let mut world = World::with(|_, policy| policy.drain.steps = vec![0]);
    world.lags("us-east", SECOND);
    let kind = IntentKind::Switchover {
        region: region("us-east"),
        promote: true,
    };
    let asked = world.ask("alice", kind);
    assert_eq!(
        (world.state("us-east"), world.phase(&asked)),
        (RegionState::Evacuated, Some(Phase::Done))
    );
    assert!(!world.plan().writers.is_empty());
}

#[test]
fn data_that_has_not_caught_up_stays_behind_and_that_is_said() {
    let mut world = World::new();
    world.lags("us-east", 2 * HOUR);
    let kind = IntentKind::Switchover {
        region: region("us-east"),
        promote: true,
    };
    world.ask("alice", kind);
    world.pass(90 * SECOND);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    assert!(world.plan().writers.is_empty());
    assert!(
        world
            .waiting(ReasonCode::PromotionHeld)
            .text
            .contains("its RPO is 3600 s")
    );
}

#[test]
fn a_switchover_needs_a_region_that_works() {
    let mut world = World::new();
    world.sees("us-east", Health::Suspect);
    world.ask("alice", switch_over("us-east"));
    assert!(world.refused(ReasonCode::NotHealthy));
}

#[test]
fn a_backup_that_is_doubted_holds_the_switchover_and_one_that_fails_ends_it() {
    let mut world = World::new();
    let asked = world.ask("alice", switch_over("us-east"));
    world.sees("us-west", Health::Suspect).pass(5 * MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Draining(75));
    assert!(world.waiting(ReasonCode::DrainHold).text.contains("us-west is suspect"));
    world.sees("us-west", Health::Down).pass(10 * SECOND);
    assert_eq!(
        (world.state("us-east"), world.phase(&asked)),
        (RegionState::Serving, Some(Phase::Aborted))
    );
}

#[test]
fn a_region_that_fails_while_it_is_drained_is_left_at_once() {
    let mut world = World::new();
    let asked = world.ask("alice", switch_over("us-east"));
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    assert_eq!(
        (world.state("us-east"), world.phase(&asked)),
        (RegionState::Evacuated, Some(Phase::Done))
    );
}

#[test]
fn a_switchover_is_stopped_by_whoever_thinks_better_of_it() {
    let mut world = World::new();
    let asked = world.ask("alice", switch_over("us-east"));
    world.ask("bob", abort(&asked));
    assert_eq!(
        (world.state("us-east"), world.phase(&asked)),
        (RegionState::Serving, Some(Phase::Aborted))
    );
    world.ask("bob", abort(&asked));
    assert!(world.refused(ReasonCode::NoSuchAction));
}

#[test]
fn sessions_do_not_come_back_to_a_region_that_is_down() {
    let mut world = World::new();
    let asked = world.ask("alice", switch_over("us-east"));
    world.sees("us-east", Health::Down);
    world.ask("bob", abort(&asked));
    assert!(world.refused(ReasonCode::NotHealthy));
    assert_ne!(world.phase(&asked), Some(Phase::Aborted));
}

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

// Edges.

#[test]
fn an_edge_is_drained_for_a_time_and_the_last_one_never() {
    let mut world = World::new();
    let drain = |name: &str| IntentKind::DrainEdge { edge: edge(name) };
    let asked = world.ask_for("alice", drain("edge-iad"), 2 * HOUR);
    assert_eq!(world.plan().edges[&edge("edge-iad")], EdgeState::Drained);
    world.ask_for("bob", drain("edge-dub"), HOUR);
    assert!(world.refused(ReasonCode::LastEdge));
    world.ask_for("bob", drain("edge-xyz"), HOUR);
    assert!(world.refused(ReasonCode::BadRequest));

    world.pass(2 * HOUR);
    assert!(world.changed(ReasonCode::EdgeRestored));
    assert_eq!(world.phase(&asked), Some(Phase::Expired));

    let again = world.ask_for("alice", drain("edge-iad"), 2 * HOUR);
    world.ask("bob", abort(&again));
    assert_eq!(world.plan().edges[&edge("edge-iad")], EdgeState::Serving);
}

#[test]
fn a_stack_is_drained_for_a_time_and_the_last_one_of_a_region_never() {
    let mut world = World::new();
    let [first, second] = [9002, 9012].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let eu_west = world.input.topology.regions.get_mut(&region("eu-west")).unwrap();
    eu_west.stacks = vec![first.into(), second.into()];
    let drain = |stack| IntentKind::DrainStack { stack };
    let asked = world.ask_for("alice", drain(first), 2 * HOUR);
    assert!(world.changed(ReasonCode::StackDrained));
    assert_eq!(world.plan().drained_stacks, [first].into());
    world.ask_for("bob", drain(second), HOUR);
    assert!(world.refused(ReasonCode::LastStack));
    world.ask_for("bob", drain("127.0.0.1:1".parse().unwrap()), HOUR);
    assert!(world.refused(ReasonCode::BadRequest));

    world.pass(2 * HOUR);
    assert!(world.changed(ReasonCode::StackRestored));
    assert_eq!(world.phase(&asked), Some(Phase::Expired));
    assert_eq!(world.plan().drained_stacks, [].into());

    // What is left of a region serves, whatever was asked for before.
    world.ask_for("alice", drain(first), HOUR);
    world
        .input
        .topology
        .regions
        .get_mut(&region("eu-west"))
        .unwrap()
        .stacks
        .pop();
    world.decide();
    assert_eq!(world.plan().drained_stacks, [].into());
}

#[test]
fn an_edge_is_named_again_when_the_others_are_gone() {
    let mut world = World::new();
    world.ask_for("alice", IntentKind::DrainEdge { edge: edge("edge-iad") }, HOUR);
    world.input.topology.edges.remove(&edge("edge-dub"));
    world.decide();
    assert_eq!(world.plan().edges[&edge("edge-iad")], EdgeState::Serving);
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
        // Also while automation is frozen: what hurts users ends.
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
    assert!(world.waiting(ReasonCode::RolloutHold).text.contains("0 sessions seen"));
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

// Nodes.

#[test]
fn a_lost_edge_leaves_dns_and_comes_back_when_it_was_heard_for_a_while() {
    let mut world = World::new();
    let dub = edge("edge-dub");
    world.edges_are_silent(&["edge-dub"], 29 * SECOND);
    world.decide();
    assert_eq!(world.plan().edges[&dub], EdgeState::Serving, "not yet");
    world.edges_are_silent(&["edge-dub"], 30 * SECOND);
    world.decide();
    assert_eq!(world.plan().edges[&dub], EdgeState::Drained);
    assert!(world.changed(ReasonCode::EdgeLost));
    // It is heard again, and was silent a moment ago.
    let (now, back) = (world.now, |since| planning::EdgeSeen {
        heard_at: since,
        heard_since: since,
    });
    world.input.edges.insert(dub.clone(), back(now));
    world.decide();
    assert_eq!(
        world.plan().edges[&dub],
        EdgeState::Drained,
        "it may be gone again in a moment"
    );
    world.now = now + Duration::from_secs(20);
    let steady = planning::EdgeSeen {
        heard_at: world.now,
        heard_since: now,
    };
    world.input.edges.insert(dub.clone(), steady);
    world.decide();
    assert_eq!(world.plan().edges[&dub], EdgeState::Serving);
    assert!(world.changed(ReasonCode::EdgeReturned));
}

/// To name an edge again is safe, so nothing that stops automation keeps a working edge out of DNS.
#[test]
fn an_edge_that_works_again_is_named_again_whatever_stops_automation() {
    let stops: [fn(&mut World); 3] = [
        |world| drop(world.ask_for("alice", IntentKind::Freeze, HOUR)),
        |world| world.input.policy.safety.automation = false,
        |world| {
            world.input.memory.taken_back = Some(planning::TakenBack {
                generation: 0,
                until: world.now + 10 * MINUTE,
                why: "it cannot read it".to_owned(),
            });
        },
    ];
    for stop in stops {
        let mut world = World::new();
        world.edges_are_silent(&["edge-dub"], MINUTE).decide();
        assert_eq!(world.plan().edges[&edge("edge-dub")], EdgeState::Drained);
        stop(&mut world);
        world.edges_are_silent(&[], SECOND).decide();
        assert_eq!(world.plan().edges[&edge("edge-dub")], EdgeState::Serving);
        assert!(world.changed(ReasonCode::EdgeReturned));
        assert!(world.input.memory.lost_edges.is_empty());
        // It does not leave again before automation is on.
        world.edges_are_silent(&["edge-dub"], MINUTE).decide();
        assert!(world.waits(ReasonCode::EdgeLost), "{:#?}", world.report);
    }
}

#[test]
fn no_more_edges_are_left_out_than_the_policy_allows_and_never_the_last() {
    let mut world = World::new();
    world.edges_are_silent(&["edge-dub", "edge-iad"], 60 * SECOND);
    world.decide();
    assert!(world.waits(ReasonCode::EdgeFloor), "{:#?}", world.report);
    assert!(world.plan().edges.values().all(|state| *state == EdgeState::Serving));

    // An operator drained the other one.
    let mut world = World::new();
    world.ask("alice", IntentKind::DrainEdge { edge: edge("edge-iad") });
    world.edges_are_silent(&["edge-dub"], 60 * SECOND);
    world.decide();
    assert!(world.waits(ReasonCode::EdgeFloor), "{:#?}", world.report);
    assert_eq!(world.plan().edges[&edge("edge-dub")], EdgeState::Serving);
    assert_eq!(world.plan().edges[&edge("edge-iad")], EdgeState::Drained);

    // Nothing changes by itself while automation is frozen.
    let mut world = World::new();
    world.ask("alice", IntentKind::Freeze);
    world.edges_are_silent(&["edge-dub"], 60 * SECOND);
    world.decide();
    assert!(world.waits(ReasonCode::EdgeLost), "{:#?}", world.report);
    assert_eq!(world.plan().edges[&edge("edge-dub")], EdgeState::Serving);
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
                world.ask("alice", fail_over("us-east"));
                world.ask("alice", restore("us-east"));
            }
            world.ask("alice", fail_over("us-east"));
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

// Tokens, leaders, clocks.

#[test]
fn a_token_that_was_used_does_nothing_again() {
    let mut world = World::new();
    world.ask_as("token", "alice", fail_over("us-east"), MINUTE);
    let plan = world.plan().clone();
    let outcome = world.ask_as("token", "alice", fail_over("us-east"), MINUTE);
    assert_eq!(outcome.plan, None);
    world.ask_as("token", "mallory", restore("us-east"), MINUTE);
    assert_eq!(world.plan(), &plan);
    world.jump(23 * HOUR);
    world.ask_as("token", "alice", restore("us-east"), MINUTE);
    assert_eq!(
        world.state("us-east"),
        RegionState::Evacuated,
        "it is remembered for a day"
    );
}

#[test]
fn a_refused_token_can_be_tried_again() {
    let mut world = World::new();
    world.sees("us-west", Health::Down).sees("eu-central", Health::Down);
    world.ask_as("token", "alice", fail_over("us-east"), MINUTE);
    assert!(world.refused(ReasonCode::NoFitBackup));
    world.sees("us-west", Health::Healthy);
    world.ask_as("token", "alice", fail_over("us-east"), MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
}

#[test]
fn many_requests_in_a_day_do_not_lock_the_next_one_out() {
    let mut world = World::new();
    for _ in 0..300 {
        world.ask(
            "script",
            IntentKind::Ack {
                region: region("us-east"),
            },
        );
    }
    world.ask("alice", fail_over("us-east"));
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
}

#[test]
fn a_new_leader_owns_what_the_last_one_left_and_goes_on() {
    let mut world = World::new();
    let asked = world.ask("alice", switch_over("us-east"));
    world.pass(10 * SECOND);
    world.input.epoch = 7;
    world.pass(10 * SECOND);
    assert_eq!(world.input.memory.actions[&asked].owner, 7);
    assert_eq!(world.plan().epoch, 1, "nothing changed yet");
    world.pass(10 * SECOND);
    assert_eq!(
        (world.state("us-east"), world.plan().epoch),
        (RegionState::Draining(50), 7)
    );
    world.pass(MINUTE);
    assert_eq!(world.phase(&asked), Some(Phase::Done));
}

#[test]
fn a_plan_that_only_nodes_remember_goes_on() {
    let mut world = World::new();
    let (old, memory) = (world.plan().clone(), world.input.memory.clone());
    world.ask("alice", fail_over("us-east"));
    world.pass(MINUTE);
    let newest = world.plan().clone();
    (world.input.current, world.input.memory) = (Some(old), memory);
    (world.input.recovered, world.input.epoch) = (Some(newest.clone()), 2);
    world.decide();
    assert!(world.changed(ReasonCode::PlanRecovered));
    assert!(world.plan().number() > newest.number());
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
}

#[test]
fn a_clock_that_goes_back_prolongs_nothing() {
    let mut world = World::new();
    world.ask_for("alice", IntentKind::Freeze, 10 * MINUTE);
    world.ask("alice", fail_over("us-east"));
    world.now = topology::Moment(world.now.0 - 3_600_000);
    for name in ["us-east", "us-west", "eu-central"] {
        world.sees(name, Health::Healthy);
    }
    world.refresh();
    world.decide();
    assert!(world.changed(ReasonCode::ClockWentBack));
    world.sees("eu-west", Health::Healthy).pass(10 * MINUTE);
    assert!(world.input.memory.freeze(world.now).is_none());
    world.ask("alice", restore("us-east"));
    world.pass(4 * MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Serving);
}

#[test]
fn what_is_too_old_decides_nothing() {
    let mut world = World::new();
    world.sees("us-east", Health::Down);
    world.now = world.now + 50 * SECOND;
    world.decide();
    assert!(world.waits(ReasonCode::StaleSamples));
    assert_eq!(world.state("us-east"), RegionState::Serving);
}

#[test]
fn documents_that_change_make_a_plan_that_fits_them() {
    let mut world = World::new();
    world.ask("alice", fail_over("us-east"));
    world.input.topology.regions.remove(&region("us-west"));
    for backups in world.input.topology.regions.values_mut() {
        if let topology::Role::Primary { backups } = &mut backups.role {
            backups.retain(|backup| *backup != region("us-west"));
        }
    }
    world.decide();
    assert_eq!(world.route("us-east"), "eu-central 100");
    let Some(plan) = &world.input.current else { panic!() };
    assert_eq!(
        plan.documents,
        digest(&world.input.topology, 15, &world.input.policy.probe)
    );
}
