//! Stories of sessions that move: capacity, connection rates, switchovers.

use std::time::Duration;

use planning::Phase;
use topology::{Component, IntentKind, Level, ReasonCode, RegionState};
use verdict::Health;

use crate::world::{HOUR, MINUTE, SECOND, World, abort, fail_over, region, restore, switch_over};

// Capacity.

#[test]
fn sessions_that_do_not_fit_stay_until_there_is_room() {
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
    let full =
        "20 % of its sessions stay: its sessions find no place in its backups: us-west has no room left, eu-central";
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
    // The author of an order knows better than the vantages.
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
