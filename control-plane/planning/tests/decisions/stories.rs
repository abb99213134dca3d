//! Stories of people who agree, of data, and of hold-down.

use planning::Phase;
use topology::{IntentKind, ReasonCode, RegionState, policy::TwoPerson};
use verdict::Health;

use crate::world::{HOUR, MINUTE, SECOND, World, approve, fail_over, promote, region, restore, switch_over};

// Two people.

#[test]
fn leaving_a_second_region_takes_a_second_person() {
    let mut world = World::new();
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    let asked = world.ask("alice", fail_over("eu-west"));
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    let wait = world.waiting(ReasonCode::NeedsApproval);
    assert!(
        wait.text.contains(&format!(
            "`meridian approve {asked} --shown {} --reason WHY`",
            world.shown(&asked).unwrap()
        )),
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
fn an_approved_order_is_judged_by_the_world_as_it_is_then() {
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
fn nobody_is_asked_to_approve_an_order_that_is_refused_anyway() {
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

    // The same without the acknowledgement: time lifts the hold-down.
    let mut world = World::new();
    world.sees("us-east", Health::Down).pass(20 * SECOND);
    world.sees("us-east", Health::Healthy);
    (world.input.memory, world.now) = (memory, now);
    world.pass(held.until.unwrap().since(now) - SECOND);
    assert!(world.waits(ReasonCode::HoldDown));
    world.pass(SECOND);
    assert!(world.waits(ReasonCode::RestoreReady));
}

/// Drills are no flapping: however often people move a healthy region, it may return.
#[test]
fn moves_of_a_healthy_region_on_purpose_carry_no_penalty() {
    for leave in [switch_over("us-east"), fail_over("us-east")] {
        let mut world = World::new();
        for _ in 0..3 {
            world.ask("alice", leave.clone());
            world.pass(3 * MINUTE);
            assert_eq!(world.state("us-east"), RegionState::Evacuated);
            world.ask("alice", restore("us-east"));
            assert_eq!(world.state("us-east"), RegionState::Restoring(1), "{leave:?}");
            assert!(world.input.memory.penalties.is_empty(), "{leave:?}");
            world.pass(5 * MINUTE);
        }
    }
}

/// The same by failures of the region: its callers felt leaving and returning, and the third move holds it.
#[test]
fn a_return_counts_as_much_as_leaving_and_the_hold_says_so() {
    let mut world = World::new();
    world.sees("us-east", Health::Down).pass(20 * SECOND);
    // An order about a region that is down is no drill.
    world.sees("us-east", Health::Healthy).pass(10 * SECOND);
    world.ask("alice", restore("us-east"));
    world.sees("us-east", Health::Down);
    world.ask("alice", fail_over("us-east"));
    world.sees("us-east", Health::Healthy).pass(10 * SECOND);
    let held = world.waiting(ReasonCode::HoldDown).text.clone();
    for said in [
        "leaving adds 1000, so does returning, and below 750 it may return",
        "`meridian ack us-east --reason WHY`",
    ] {
        assert!(held.contains(said), "{held}");
    }
}
