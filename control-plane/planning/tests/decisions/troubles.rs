//! Past faults, each of which must not come back.

use std::time::Duration;

use planning::{Phase, REQUEST_LIFE};
use topology::{Intent, IntentKind, ReasonCode, RegionState, Rule, policy::TwoPerson};
use verdict::Health;

use crate::world::{
    DAY, HOUR, MINUTE, SECOND, World, abort, approve, edge, fail_over, promote, region, restore, roll_out, switch_over,
};

fn slow_backup() -> World {
    World::with(|topology, _| {
        topology.regions.get_mut(&region("us-west")).unwrap().connects_per_s_max = Some(5);
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 1;
    })
}

// Moves.

#[test]
fn automation_goes_on_leaving_a_region_only_while_it_is_down() {
    for (health, code, word) in [
        (Health::Healthy, ReasonCode::RestoreReady, "healthy again"),
        (Health::Degraded, ReasonCode::RestoreReady, "degraded"),
        (Health::Suspect, ReasonCode::PartlyMoved, "suspect"),
        (Health::NoData, ReasonCode::PartlyMoved, "no-data"),
        (Health::Blind, ReasonCode::PartlyMoved, "blind"),
    ] {
        let mut world = slow_backup();
        world.sees("us-east", Health::Down).decide();
        world.sees("us-east", health).pass(MINUTE);
        assert_eq!(world.route("us-east"), "us-east 75 + us-west 25", "{health}");
        let text = &world.waiting(code).text;
        assert!(text.contains(word), "{text}");
        world.sees("us-east", Health::Down).pass(MINUTE);
        assert_eq!(world.state("us-east"), RegionState::Evacuated);
    }
    // A bad region that recovers is not good enough.
    let mut world = slow_backup();
    world.sees("us-east", Health::Down).decide();
    world.input.verdicts.get_mut(&region("us-east")).unwrap().failing = false;
    world.pass(MINUTE);
    assert_eq!(world.route("us-east"), "us-east 75 + us-west 25");
}

#[test]
fn a_region_that_fails_while_it_returns_and_cannot_be_left_returns_later() {
    let mut world = World::new();
    world.ask("alice", fail_over("us-east"));
    world.pass(MINUTE);
    let asked = world.ask("alice", restore("us-east"));
    world.pass(2 * MINUTE);
    world.sees("us-west", Health::Blind).sees("eu-central", Health::Blind);
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    assert!(world.refused(ReasonCode::NoFitBackup));
    assert_eq!(world.phase(&asked), Some(Phase::Running), "nothing came of the abort");
    world
        .sees("us-west", Health::Healthy)
        .sees("eu-central", Health::Healthy);
    world.sees("us-east", Health::Healthy).pass(10 * MINUTE);
    assert_eq!(
        (world.state("us-east"), world.phase(&asked)),
        (RegionState::Serving, Some(Phase::Done))
    );
}

#[test]
fn a_return_in_steps_of_less_than_a_percent_takes_its_time_and_ends() {
    let mut world = World::with(|topology, _| {
        for region in topology.regions.values_mut() {
            region.sessions_max = 100_000;
        }
        topology.regions.get_mut(&region("us-east")).unwrap().connects_per_s_max = Some(9);
    });
    world.ask("alice", fail_over("us-east"));
    world.pass(MINUTE);
    world.ask("alice", restore("us-east"));
    assert_eq!(world.state("us-east"), RegionState::Restoring(1));
    let plans = world.plans.len();
    world.pass(100 * SECOND);
    assert_eq!(
        world.state("us-east"),
        RegionState::Restoring(1),
        "a thousand sessions take 112 s"
    );
    assert!(
        world
            .waiting(ReasonCode::RestoreHold)
            .text
            .contains("while it accepts the connections")
    );
    world.pass(20 * SECOND);
    assert_eq!(world.state("us-east"), RegionState::Restoring(2));
    world.pass(4 * HOUR);
    assert_eq!(world.state("us-east"), RegionState::Serving);
    assert_eq!(world.plans.len() - plans, 99, "each percent is one plan");
}

#[test]
fn a_region_is_left_also_for_backups_that_take_long_for_a_percent() {
    let mut world = World::with(|topology, _| {
        for region in topology.regions.values_mut() {
            region.sessions_max = 100_000;
        }
        for backup in ["us-west", "eu-central"] {
            topology.regions.get_mut(&region(backup)).unwrap().connects_per_s_max = Some(50);
        }
    });
    world.sees("us-east", Health::Down).decide();
    assert_eq!(world.route("us-east"), "us-east 98 + us-west 1 + eu-central 1");
    world.pass(19 * SECOND);
    assert_eq!(world.state("us-east"), RegionState::Draining(98));
    world.pass(SECOND);
    assert_eq!(world.route("us-east"), "us-east 96 + us-west 2 + eu-central 2");
    world.pass(HOUR);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
}

#[test]
fn sessions_that_were_coming_when_the_clock_went_back_come_from_now_on() {
    let mut world = World::with(|topology, _| {
        topology
            .regions
            .get_mut(&region("eu-central"))
            .unwrap()
            .connects_per_s_max = Some(5);
    });
    world.sees("us-east", Health::Down).decide();
    world.now = world.now + 7 * SECOND;
    world.sees("us-west", Health::Down).decide();
    assert_eq!(world.route("us-east"), "eu-central 25 + us-west 75");
    world.now = topology::Moment(world.now.0 - 5_000);
    world.decide();
    world.now = world.now + Duration::from_millis(9_999);
    world.decide();
    assert_eq!(world.route("us-east"), "eu-central 25 + us-west 75");
    world.now = world.now + Duration::from_millis(1);
    world.decide();
    assert_eq!(world.route("us-east"), "eu-central 50 + us-west 50");
}

#[test]
fn more_sessions_than_can_be_counted_are_no_overflow() {
    let mut world = World::with(|topology, policy| {
        policy.restore.steps = vec![100];
        for region in topology.regions.values_mut() {
            region.sessions_max = 3_000_000_000;
        }
        topology.regions.get_mut(&region("us-west")).unwrap().connects_per_s_max = Some(u32::MAX);
    });
    for _ in 0..2 {
        world.ask("alice", fail_over("us-east"));
        world.ask("alice", restore("us-east"));
    }
    assert!(world.input.memory.arrivals[&region("us-west")].sessions > 3_000_000_000);
}

#[test]
fn without_automation_what_operators_order_is_carried_through() {
    let mut world = World::with(|_, policy| policy.safety.automation = false);
    world.ask("alice", switch_over("us-east"));
    world.pass(3 * MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    let asked = world.ask("alice", restore("us-east"));
    world.ask_for("alice", IntentKind::Freeze, 10 * MINUTE);
    world.pass(9 * MINUTE);
    assert_eq!(
        world.state("us-east"),
        RegionState::Restoring(1),
        "a freeze stops it where it is"
    );
    world.pass(10 * MINUTE);
    assert_eq!(
        (world.state("us-east"), world.phase(&asked)),
        (RegionState::Serving, Some(Phase::Done))
    );
    world.sees("us-east", Health::Down).pass(MINUTE);
    assert_eq!(world.state("us-east"), RegionState::Serving, "nobody ordered that");
    assert!(world.refused(ReasonCode::AutomationOff));
    // A rollout is an order, too.
    world.input.policy.rollout.steps[0].hold = MINUTE;
    world.ask("alice", roll_out("v2"));
    world.devices_see("v2", |_| {}).pass(MINUTE);
    assert_eq!(world.plan().rollout.as_ref().unwrap().percent, 25);
}

// Data.

#[test]
fn data_that_fell_behind_during_the_return_stays_where_it_is_written() {
    let mut world = World::new();
    world.lags("us-east", SECOND);
    world.ask("alice", promote("us-east", None));
    world.pass(MINUTE);
    let asked = world.ask("alice", restore("us-east"));
    world.lags("us-east", 48 * HOUR).pass(10 * MINUTE);
    assert_eq!(
        (world.state("us-east"), world.phase(&asked)),
        (RegionState::Serving, Some(Phase::Done))
    );
    assert_eq!(world.plan().writers[&region("us-east")]["profiles"], region("us-west"));
    let wait = world.waiting(ReasonCode::PromotionHeld);
    let text = "are written by us-west; `meridian restore us-east --reason WHY` brings them home, with `--accept-loss` or once";
    assert!(wait.text.contains(text), "{}", wait.text);
    let evidence = "profiles: 172800 s behind, its RPO is 3600 s".to_owned();
    assert!(wait.evidence.contains(&evidence), "{wait:?}");

    world.ask("alice", restore("us-east"));
    assert!(world.refused(ReasonCode::RpoExceeded));
    let accepting = IntentKind::Restore {
        region: region("us-east"),
        accept_loss: Some(50 * HOUR),
    };
    let asked = world.ask("alice", accepting);
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    world.lags("us-east", SECOND).decide();
    world.ask("alice", restore("us-east"));
    assert!(world.changed(ReasonCode::Demoted) && world.plan().writers.is_empty());
    world.ask("alice", restore("us-east"));
    assert!(world.changed(ReasonCode::AlreadySo));
}

#[test]
fn a_loss_that_was_accepted_for_the_return_holds_to_its_end() {
    let mut world = World::with(|_, policy| policy.safety.two_person = vec![TwoPerson::Override]);
    world.lags("us-east", SECOND);
    world.ask("alice", promote("us-east", None));
    world.lags("us-east", 2 * HOUR).pass(MINUTE);
    let accepting = IntentKind::Restore {
        region: region("us-east"),
        accept_loss: Some(3 * HOUR),
    };
    world.ask("alice", accepting);
    world.pass(10 * MINUTE);
    assert!(world.plan().writers.is_empty());
}

#[test]
fn a_writer_that_is_down_is_said_until_somebody_acts() {
    let mut world = World::new();
    world.lags("us-east", SECOND);
    world.ask("alice", promote("us-east", None));
    world.sees("us-west", Health::Down).pass(MINUTE);
    let text = &world.waiting(ReasonCode::PromotionHeld).text;
    let said = "conversations, device-registry, profiles, recordings, analytics are written by us-west, which is down; \
                `meridian failover us-east --promote --reason WHY` makes another region their writer";
    let classes = |text: &str| text.split(" are written").next().unwrap().split(", ").count();
    assert_eq!(classes(text), classes(said), "{text}");
    assert!(text.ends_with(said.split_once(" are written").unwrap().1), "{text}");
    world.ask("alice", promote("us-east", None));
    assert_eq!(
        world.plan().writers[&region("us-east")]["profiles"],
        region("eu-central")
    );
    assert!(!world.waits(ReasonCode::PromotionHeld));
    world.ask("alice", promote("us-east", None));
    assert!(world.changed(ReasonCode::AlreadySo));
}

#[test]
fn only_the_data_that_moves_has_to_have_caught_up() {
    let mut world = World::new();
    world.lags("us-east", SECOND);
    world.input.policy.data.retain(|class| class.class == "profiles");
    world.ask("alice", promote("us-east", None));
    world.pass(MINUTE);
    // A data class that is newer was never written elsewhere.
    world.input.policy.data = topology::Policy::default().data;
    let lags = world.input.replication.get_mut(&region("us-east")).unwrap();
    lags.retain(|class, _| class == "profiles");
    world.ask("alice", restore("us-east"));
    world.pass(10 * MINUTE);
    assert!(world.plan().writers.is_empty());
}

// Rollouts.

#[test]
fn a_rollout_that_only_nodes_remember_is_judged_aborted_and_ends() {
    for end in ["judged", "aborted", "done"] {
        let mut world = World::new();
        let before = (world.plan().clone(), world.input.memory.clone());
        let asked = world.ask("alice", roll_out("v2"));
        world.restored_to(before);
        assert_eq!(world.phase(&asked), Some(Phase::Running));
        match end {
            "judged" => drop(world.devices_see("v2", |it| it.turns_failed = 5000).pass(MINUTE)),
            "aborted" => drop(world.ask("bob", abort(&asked))),
            _ => {
                world.devices_see("v2", |_| {});
                for days in [3, 5, 7] {
                    world.jump(days * DAY);
                }
                assert_eq!(world.plan().rollout.as_ref().unwrap().percent, 100);
                assert_eq!(world.phase(&asked), Some(Phase::Done));
                continue;
            }
        }
        assert_eq!(world.plan().rollout, None, "{end}");
        assert_eq!(world.phase(&asked), Some(Phase::Aborted));
    }
}

#[test]
fn a_return_whose_order_was_lost_is_ordered_again() {
    let mut world = World::with(|_, policy| policy.safety.automation = false);
    world.ask("alice", fail_over("us-east"));
    world.pass(MINUTE);
    let before = (world.plan().clone(), world.input.memory.clone());
    let asked = world.ask("alice", restore("us-east"));
    world.restored_to(before).pass(HOUR);
    assert_eq!(
        (world.state("us-east"), world.phase(&asked)),
        (RegionState::Restoring(1), None)
    );
    let again = world.ask("bob", restore("us-east"));
    world.pass(5 * MINUTE);
    assert_eq!(
        (world.state("us-east"), world.phase(&again)),
        (RegionState::Serving, Some(Phase::Done))
    );
}

// People.

#[test]
fn a_second_person_is_somebody_else_however_the_name_is_written() {
    let mut world = World::new();
    world.ask("Åse Berg", fail_over("us-east"));
    let asked = world.ask("Åse Berg", fail_over("eu-west"));
    for herself in ["Åse Berg ", "  åse   berg", "ÅSE\tBERG"] {
        world.ask(herself, approve(&asked));
        assert!(world.refused(ReasonCode::SamePerson), "{herself:?}");
    }
    for name in ["planner", " Planner"] {
        world.ask(name, approve(&asked));
        assert!(world.refused(ReasonCode::BadRequest), "{name:?}");
    }
    world.ask("bob", approve(&asked));
    assert_eq!(world.phase(&asked), Some(Phase::Done));
}

#[test]
fn orders_that_stand_lock_nobody_out() {
    let mut world = World::new();
    let mut asked = Vec::new();
    for _ in 0..64 {
        asked.push(world.ask_for("script", IntentKind::Freeze, DAY));
        world.now = world.now + MINUTE;
        world.refresh();
    }
    let drain = IntentKind::DrainEdge { edge: edge("edge-iad") };
    for order in [IntentKind::Freeze, drain] {
        world.ask_for("script", order, DAY);
        let text = &world.report.refused[0].text;
        assert!(text.starts_with("64 orders stand or wait for approval"), "{text}");
    }
    world.ask("alice", fail_over("us-east"));
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    world.ask("alice", restore("us-east"));
    assert_eq!(world.state("us-east"), RegionState::Restoring(1));
    world.ask("alice", fail_over("eu-west"));
    assert!(
        world.refused(ReasonCode::BadRequest),
        "it would have to wait for a second person"
    );
    world.ask("alice", abort(&asked[0]));
    let second = world.ask("alice", fail_over("eu-west"));
    assert_eq!(world.phase(&second), Some(Phase::AwaitingApproval));
    world.ask("bob", approve(&second));
    assert_eq!(world.state("eu-west"), RegionState::Evacuated);
    world.ask("alice", IntentKind::Unfreeze);
    assert_eq!(world.phase(&asked[63]), Some(Phase::Aborted));
    world.ask_for("alice", IntentKind::Freeze, HOUR);
    assert!(world.input.memory.freeze(world.now).is_some());
}

#[test]
fn an_override_waits_ten_minutes_and_stands_as_long_as_was_asked_from_then_on() {
    let mut world = World::new();
    let rule = Rule::EvacuationLimit;
    let asked = world.ask_for("alice", IntentKind::Override { rule }, DAY);
    assert_eq!(
        world.waiting(ReasonCode::NeedsApproval).until,
        Some(world.now + REQUEST_LIFE)
    );
    world.pass(REQUEST_LIFE - SECOND);
    world.ask("bob", approve(&asked));
    world.jump(DAY - SECOND);
    assert_eq!(world.phase(&asked), Some(Phase::Running));
    world.pass(SECOND);
    assert_eq!(world.phase(&asked), Some(Phase::Expired));

    let asked = world.ask_for("alice", IntentKind::Override { rule }, DAY);
    world.pass(REQUEST_LIFE);
    assert_eq!(world.phase(&asked), Some(Phase::Expired));
}

#[test]
fn no_time_is_too_long() {
    let mut world = World::with(|_, policy| {
        let ages = Duration::from_millis(u64::MAX / 20);
        policy.damping.half_life = ages;
        policy.damping.per_move = 5000;
        policy.restore.step_hold = ages;
        policy.drain.step_hold = ages;
    });
    world.input.request = Some(Intent {
        id: "ages".into(),
        kind: IntentKind::Freeze,
        author: "alice".into(),
        reason: "for ever".into(),
        created_at: world.now,
        expires_at: topology::Moment(u64::MAX),
    });
    world.decide();
    world.sees("us-east", Health::Down);
    world.ask("alice", fail_over("us-east"));
    world.sees("us-east", Health::Healthy).pass(MINUTE);
    assert!(world.waits(ReasonCode::HoldDown));
    let lags = world.lags("us-east", Duration::MAX);
    lags.jump(MINUTE);
    world.ask("alice", promote("us-east", None));
    assert!(world.refused(ReasonCode::RpoExceeded));
}
