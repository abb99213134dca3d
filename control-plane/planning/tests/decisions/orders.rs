//! Orders without telemetry: the last known health counts, and then the word of the author.

use planning::{Memory, Phase};
use topology::{IntentKind, ReasonCode, RegionState};
use verdict::Health;

use crate::world::{HOUR, MINUTE, SECOND, World, approve, approve_shown, fail_over, promote, region};

fn by_force(name: &str) -> IntentKind {
    IntentKind::Failover {
        region: region(name),
        promote: false,
        accept_loss: None,
        force: true,
    }
}

/// No vantage sees any region any more.
fn blind(world: &mut World) {
    let regions: Vec<_> = world.input.topology.regions.keys().cloned().collect();
    for region in regions {
        world.sees(region.as_str(), Health::Blind);
    }
}

#[test]
fn a_person_moves_a_region_that_nobody_sees_to_a_backup_that_was_well_and_hears_what_is_not_known() {
    let mut world = World::new();
    blind(&mut world);
    let since = world.now;
    world.pass(MINUTE);
    assert_eq!(
        world.state("us-east"),
        RegionState::Serving,
        "automation does nothing on silence"
    );
    let asked = world.ask("alice", fail_over("us-east"));
    assert_eq!(
        (world.phase(&asked), world.route("us-east")),
        (Some(Phase::Done), "us-west 100".into())
    );
    let said = &world.plan().reasons[0].text;
    let against = format!(
        "although no vantage has seen us-west since {}, when it was healthy",
        since + 10 * SECOND
    );
    assert!(said.contains(&against), "{said}");
}

#[test]
fn a_new_leader_knows_what_the_last_one_believed() {
    let mut world = World::new();
    world.sees("us-west", Health::Down).sees("us-east", Health::Down);
    world.input.policy.safety.automation = false;
    world.decide();
    world.input.verdicts.clear();
    world.input.epoch += 1;
    world.ask("alice", fail_over("us-east"));
    assert_eq!(
        world.route("us-east"),
        "eu-central 100",
        "us-west was down when it was last seen"
    );
    // It survives the store, too.
    let stored = serde_json::to_string(&world.input.memory).unwrap();
    let read: Memory = serde_json::from_str(&stored).unwrap();
    assert_eq!(read, world.input.memory);
    assert_eq!(read.before().len(), 6);
}

#[test]
fn an_order_counts_although_no_vantage_ever_saw_anything() {
    let mut world = World::new();
    world.input.verdicts.clear();
    world.input.memory = Memory::default();
    world.ask("alice", fail_over("us-east"));
    assert_eq!(world.route("us-east"), "us-west 100");
    let said = &world.plan().reasons[0].text;
    assert!(said.contains("no vantage has seen us-west yet"), "{said}");
}

#[test]
fn two_people_pass_the_believed_health_of_backups_by_force() {
    let mut world = World::new();
    world.sees("us-west", Health::Down).sees("eu-central", Health::Down);
    world.ask("alice", fail_over("us-east"));
    assert!(world.refused(ReasonCode::NoFitBackup));
    let asked = world.ask("alice", by_force("us-east"));
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    let text = &world.waiting(ReasonCode::NeedsApproval).text;
    let because = "because it passes the rule no-fit-backup by force: none of its backups is fit to take its sessions";
    assert!(text.contains(because), "{text}");
    world.ask("bob", approve(&asked));
    assert_eq!(
        (world.phase(&asked), world.route("us-east")),
        (Some(Phase::Done), "us-west 100".into())
    );
}

#[test]
fn by_force_a_backup_takes_more_than_it_has_room_for() {
    let mut world = World::with(|topology, policy| {
        policy.safety.two_person.clear();
        for backup in ["us-west", "eu-central"] {
            topology.regions.get_mut(&region(backup)).unwrap().sessions_max = 40;
        }
    });
    world.ask("alice", by_force("us-east"));
    assert_eq!(world.route("us-east"), "us-west 80 + eu-central 20");
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    world.pass(HOUR);
    assert_eq!(
        world.route("us-east"),
        "us-west 80 + eu-central 20",
        "and that stays so"
    );
}

#[test]
fn force_that_nothing_speaks_against_needs_nobody_else() {
    let mut world = World::new();
    let asked = world.ask("alice", by_force("us-east"));
    assert_eq!(world.phase(&asked), Some(Phase::Done));
}

// A second person agrees to the effects that were shown.

#[test]
fn an_approver_is_asked_again_when_the_order_would_do_another_thing() {
    let mut world = World::new();
    world.lags("us-east", 5 * SECOND);
    let asked = world.ask("alice", promote("us-east", Some(HOUR)));
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    world.sees("ap-south", Health::Down).pass(MINUTE);
    assert_eq!(world.state("ap-south"), RegionState::Evacuated);
    world.ask("bob", approve(&asked));
    assert_eq!(
        (world.phase(&asked), world.state("us-east")),
        (Some(Phase::AwaitingApproval), RegionState::Serving)
    );
    let text = &world.waiting(ReasonCode::NeedsApproval).text;
    assert!(
        text.contains("because this changed since it was shown: ap-south is away already"),
        "{text}"
    );
    world.ask("bob", approve(&asked));
    assert_eq!(
        (world.phase(&asked), world.state("us-east")),
        (Some(Phase::Done), RegionState::Evacuated)
    );
    let action = &world.input.memory.actions[&asked];
    let agreed: Vec<&str> = action.shown.keys().map(String::as_str).collect();
    assert_eq!(
        agreed,
        [
            "data-loss",
            "second-evacuation ap-south",
            "sessions of us-east go to us-west"
        ]
    );
}

/// Both approvers read the same line. The first one's approval has the second one asked for something else, under the same id.
#[test]
fn an_approval_is_for_what_its_approver_read() {
    let mut world = World::new();
    world.lags("us-east", 5 * SECOND);
    let asked = world.ask("alice", promote("us-east", Some(HOUR)));
    let both_read = world.shown(&asked);
    world.sees("ap-south", Health::Down).pass(MINUTE);
    world.ask_for("bob", approve_shown(&asked, both_read.clone()), planning::REQUEST_LIFE);
    assert!(world.waits(ReasonCode::NeedsApproval), "bob is asked again");
    let now = world.shown(&asked).unwrap();
    assert_ne!(Some(&now), both_read.as_ref());

    let carols = world.ask_for(
        "carol",
        approve_shown(&asked, both_read.clone()),
        planning::REQUEST_LIFE,
    );
    assert_eq!(
        (world.phase(&asked), world.state("us-east")),
        (Some(Phase::AwaitingApproval), RegionState::Serving),
        "carol never read about ap-south"
    );
    assert_eq!(world.phase(&carols), None, "a refused approval is no action");
    let refusal = &world.report.denied[0];
    assert_eq!(refusal.code, ReasonCode::ShownChanged);
    for part in [
        format!("the approval is for {}", both_read.unwrap()),
        "it may lose up to 3600 s of data; ap-south is away already".to_owned(),
        "sessions of us-east go to us-west: 100 %".to_owned(),
        format!("`meridian approve {asked} --shown {now} --reason WHY`"),
    ] {
        assert!(refusal.text.contains(&part), "{part}: {}", refusal.text);
    }

    // An older command names nothing.
    world.ask_for("carol", approve_shown(&asked, None), planning::REQUEST_LIFE);
    assert_eq!(world.report.denied[0].code, ReasonCode::ShownChanged);
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));

    world.ask_for(
        "carol",
        approve_shown(&asked, Some(now.clone())),
        planning::REQUEST_LIFE,
    );
    assert_eq!(world.phase(&asked), Some(Phase::Done));
    let approved = world.report.changed.iter().find(|it| it.code == ReasonCode::Approved);
    let text = &approved.unwrap().text;
    assert!(
        text.contains(&format!("approval of {asked} as {now}")),
        "the audit log names it: {text}"
    );
}

#[test]
fn a_name_that_is_used_again_is_another_order() {
    let shown = |reason: &str, minutes: u64| {
        let mut world = World::new();
        world.sees("us-east", Health::Down).pass(10 * SECOND);
        for _ in 0..minutes {
            world.pass(MINUTE);
        }
        world.ask_as("a1", "alice", fail_over(reason), planning::REQUEST_LIFE);
        world.shown("a1").unwrap()
    };
    assert_eq!(shown("eu-west", 0), shown("eu-west", 0));
    assert_ne!(shown("eu-west", 0), shown("eu-west", 1), "another time");
    assert_ne!(shown("eu-west", 0), shown("ap-south", 0), "another region");
}

#[test]
fn an_approver_is_asked_again_when_a_share_would_be_much_greater() {
    let small = |world: &mut World, name: &str, sessions: u32| {
        let region = world.input.topology.regions.get_mut(&region(name)).unwrap();
        region.sessions_max = sessions;
    };
    // us-west takes 60 % of what leaves us-east, and eu-central the rest.
    for (sessions, is_asked) in [(120, false), (106, false), (80, true)] {
        let mut world = World::with(|topology, _| {
            topology.regions.get_mut(&region("us-west")).unwrap().sessions_max = 120;
        });
        world.lags("us-east", 5 * SECOND);
        let asked = world.ask("alice", promote("us-east", Some(HOUR)));
        let shares = world.input.memory.actions[&asked].shares.clone();
        assert_eq!(shares["sessions of us-east go to us-west"], 60);
        assert_eq!(shares["sessions of us-east go to eu-central"], 40);
        small(&mut world, "us-west", sessions);
        world.ask("bob", approve(&asked));
        let waits = world.phase(&asked) == Some(Phase::AwaitingApproval);
        assert_eq!(waits, is_asked, "{sessions}: {:#?}", world.report);
        if is_asked {
            let text = world.waiting(ReasonCode::NeedsApproval).text.clone();
            let change = "changed since it was shown: sessions of us-east go to eu-central: 60 % in place of 40 %";
            assert!(text.contains(change), "{text}");
            world.ask("bob", approve(&asked));
            assert_eq!(world.phase(&asked), Some(Phase::Done), "what he agrees to then is done");
        }
    }
}

#[test]
fn an_approver_is_asked_again_when_sessions_would_go_elsewhere() {
    let mut world = World::new();
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    let asked = world.ask("alice", fail_over("eu-west"));
    world.sees("eu-central", Health::Down).decide();
    world.ask("bob", approve(&asked));
    // The room left at us-west is taken, so the sessions would find no place: refused, and not for approval again.
    assert_eq!(world.phase(&asked), Some(Phase::Refused));

    let mut world = World::new();
    world.sees("ap-south", Health::Down).pass(10 * SECOND);
    let asked = world.ask("alice", fail_over("eu-west"));
    world.sees("eu-central", Health::Down).decide();
    world.ask("bob", approve(&asked));
    assert_eq!(world.phase(&asked), Some(Phase::AwaitingApproval));
    let text = &world.waiting(ReasonCode::NeedsApproval).text;
    assert!(
        text.contains("changed since it was shown: sessions of eu-west go to us-west"),
        "{text}"
    );
}
