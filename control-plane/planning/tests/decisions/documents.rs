//! Documents that change under what goes on, and documents that are refused.

use planning::{Phase, problems, refuses_topology};
use topology::{IntentKind, Policy, ReasonCode, RegionState, Role, fixtures::three_primaries};
use verdict::Health;

use crate::world::{HOUR, MINUTE, SECOND, World, abort, fail_over, promote, region, restore, roll_out, switch_over};

#[test]
fn a_backup_that_goes_takes_along_only_what_was_there() {
    for restoring in [false, true] {
        let mut world = World::with(|topology, _| {
            topology.regions.get_mut(&region("us-west")).unwrap().sessions_max = 20;
        });
        let asked = if restoring {
            world.ask("alice", fail_over("us-east"));
            world.pass(MINUTE);
            let asked = world.ask("alice", restore("us-east"));
            world.pass(200 * SECOND);
            asked
        } else {
            world.ask("alice", switch_over("us-east"))
        };
        let (state, home) = if restoring {
            (RegionState::Restoring(50), "us-east 50 + us-west 10 + eu-central 40")
        } else {
            (RegionState::Draining(75), "us-east 75 + us-west 10 + eu-central 15")
        };
        assert_eq!((world.state("us-east"), world.route("us-east")), (state, home.into()));
        world.without("us-west").decide();
        let moved = if restoring {
            "us-east 50 + eu-central 50"
        } else {
            "us-east 75 + eu-central 25"
        };
        assert_eq!((world.state("us-east"), world.route("us-east")), (state, moved.into()));
        assert_eq!(world.phase(&asked), Some(Phase::Running), "it goes on");
        let said = world.plan().reasons.iter().find(|it| it.region.is_some()).unwrap();
        let text = "us-west is gone from the topology: what was there (10 %) moves on";
        assert!(said.text.starts_with(text), "{}", said.text);
        world.pass(5 * MINUTE);
        assert_eq!(world.phase(&asked), Some(Phase::Done));
    }
}

#[test]
fn what_finds_no_place_when_a_backup_goes_comes_home() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("us-west")).unwrap().sessions_max = 100;
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 120;
    });
    world.ask("alice", fail_over("us-east"));
    assert_eq!(world.route("us-east"), "us-west 50 + eu-central 50");
    world.without("us-west").decide();
    assert_eq!(world.route("us-east"), "us-east 40 + eu-central 60");
    assert_eq!(world.state("us-east"), RegionState::Draining(40));
    // And with the other one gone as well, all of it.
    world.without("eu-central").decide();
    assert_eq!(world.route("us-east"), "us-east 100");
    assert_eq!(world.state("us-east"), RegionState::Serving);
}

#[test]
fn what_is_ordered_about_a_region_ends_with_it() {
    for demoted in [false, true] {
        for order in ["drain", "restore", "rollout"] {
            let mut world = World::new();
            let asked = match order {
                "drain" => world.ask("alice", switch_over("us-east")),
                "restore" => {
                    world.ask("alice", fail_over("us-east"));
                    world.pass(MINUTE);
                    world.ask("alice", restore("us-east"))
                }
                _ => world.ask("alice", roll_out("v2")),
            };
            if demoted {
                let us_east = world.input.topology.regions.get_mut(&region("us-east")).unwrap();
                us_east.role = Role::Backup;
            } else {
                world.without("us-east");
            }
            world.decide();
            if order == "rollout" {
                assert_eq!(world.phase(&asked), Some(Phase::Running), "it is about no region");
                continue;
            }
            assert_eq!(world.phase(&asked), Some(Phase::Aborted), "{order}");
            let text = &world.input.memory.actions[&asked].text;
            let why = if demoted {
                "us-east is a backup now"
            } else {
                "us-east is gone from the topology"
            };
            assert!(text.ends_with(why), "{text}");
            world.ask("bob", abort(&asked));
            assert!(world.refused(ReasonCode::NoSuchAction));
        }
    }
}

#[test]
fn guests_of_a_backup_that_became_a_primary_leave_with_its_own() {
    let mut world = World::with(|topology, policy| {
        policy.safety.two_person.clear();
        topology.regions.get_mut(&region("us-east")).unwrap().sessions_max = 150;
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 100;
    });
    world.ask("alice", fail_over("us-east"));
    assert_eq!(world.route("us-east"), "us-west 100");
    let promoted = |world: &mut World| {
        let regions = &mut world.input.topology.regions;
        regions.get_mut(&region("us-west")).unwrap().role = Role::Primary {
            backups: vec![region("ap-northeast")],
        };
        for primary in ["us-east", "eu-west"] {
            let Role::Primary { backups } = &mut regions.get_mut(&region(primary)).unwrap().role else {
                panic!()
            };
            backups.retain(|backup| *backup != region("us-west"));
        }
    };
    let mut planned = world.input.clone();
    promoted(&mut world);
    std::mem::swap(&mut planned.topology, &mut world.input.topology);
    let refused = refuses_topology(&world.input, &planned.topology, world.now);
    let text = "sessions of us-east are at us-west, which is to be a primary, and find no other place";
    assert_eq!(refused, [text]);
    // By hand in the store, all the same.
    world.input.topology = planned.topology;
    world.decide();
    assert_eq!(world.route("us-east"), "us-west 100", "there is no room elsewhere");
    world.ask("alice", switch_over("us-west"));
    assert!(world.report.refused[0].text.contains("sessions of us-east are there"));
    world.ask("alice", fail_over("us-west"));
    let text = &world.report.refused[0].text;
    assert!(
        text.contains("sessions of us-east are there and find no other place"),
        "{text}"
    );
    assert_eq!(world.state("us-west"), RegionState::Serving);

    // An outage asks nobody: what finds no place is at home, whatever that is worth.
    world.input.policy.failover.automatic_max = 2;
    world.sees("us-west", Health::Down).pass(10 * SECOND);
    assert_eq!(world.state("us-west"), RegionState::Evacuated);
    assert_eq!(world.route("us-east"), "us-east 34 + eu-central 66");
    assert_eq!(world.state("us-east"), RegionState::Draining(34));
}

#[test]
fn a_plan_that_cannot_be_applied_is_never_made() {
    let mut world = World::new();
    // A world that no document describes: without edges no plan is valid.
    world.input.topology.edges.clear();
    world.now = world.now + SECOND;
    let outcome = planning::plan(&world.input, world.now);
    assert_eq!(outcome.plan, None);
    assert_eq!(outcome.memory, world.input.memory);
    let refused = &outcome.report.refused[0];
    assert!(
        refused.code == ReasonCode::InvalidPlan && refused.text.contains("no edge serves"),
        "{refused:?}"
    );
    let broken = planning::invariants::Invariants::default().check(&world.input, &outcome, world.now);
    assert!(broken[0].contains("no edge serves"), "{broken:?}");
}

// What is refused before it does harm.

#[test]
fn a_region_that_writes_for_another_cannot_be_taken_away() {
    let mut world = World::new();
    world.lags("us-east", SECOND);
    world.ask("alice", promote("us-east", None));
    let mut smaller = World::new();
    let without = |smaller: &mut World, name: &str| smaller.without(name).input.topology.clone();
    let refused = refuses_topology(&world.input, &without(&mut smaller, "us-west"), world.now);
    let text = "us-west writes data of us-east; `meridian restore us-east` brings them home before us-west goes";
    assert_eq!(refused, [text]);
    let refused = refuses_topology(&world.input, &without(&mut World::new(), "us-east"), world.now);
    assert!(
        refused[0].starts_with("data of us-east are written by us-west"),
        "{refused:?}"
    );
    let refused = refuses_topology(&world.input, &without(&mut World::new(), "ap-northeast"), world.now);
    assert_eq!(refused, [] as [&str; 0]);

    // Who does it all the same, by hand in the store, is told what it did.
    world.without("us-west").decide();
    let reasons = &world.plan().reasons;
    let demoted = reasons.iter().find(|it| it.code == ReasonCode::Demoted).unwrap();
    assert!(
        demoted.text.contains("us-west, which wrote analytics, conversations,")
            && demoted.text.contains("without what only us-west had"),
        "{}",
        demoted.text
    );
}

#[test]
fn a_region_whose_sessions_find_no_other_place_cannot_be_taken_away() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 60;
    });
    world.ask("alice", fail_over("us-east"));
    let mut smaller = world.input.topology.clone();
    smaller.regions.remove(&region("us-west"));
    for region in smaller.regions.values_mut() {
        if let Role::Primary { backups } = &mut region.role {
            backups.retain(|backup| backup.as_str() != "us-west");
        }
    }
    let refused = refuses_topology(&world.input, &smaller, world.now);
    let text = "sessions of us-east are at us-west (100 %) and 70 % find no place in its other backups";
    assert_eq!(refused, [text]);
    smaller.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 200;
    assert_eq!(refuses_topology(&world.input, &smaller, world.now), [] as [&str; 0]);
}

#[test]
fn a_primary_goes_only_when_it_is_empty() {
    let mut world = World::new();
    let smaller = World::new().without("us-east").input.topology.clone();
    let refused = refuses_topology(&world.input, &smaller, world.now);
    let text = "us-east serves 100 % of its sessions; `meridian drain --region us-east` empties it before it goes";
    assert_eq!(refused, [text]);
    world.ask("alice", fail_over("us-east"));
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    assert_eq!(refuses_topology(&world.input, &smaller, world.now), [] as [&str; 0]);
}

#[test]
fn documents_by_which_no_region_could_ever_be_left_are_a_problem() {
    let (topology, mut policy) = (three_primaries().topology, Policy::default());
    for (min, is_problem) in [(5, false), (6, true), (7, true)] {
        policy.safety.regions_serving_min = min;
        assert_eq!(!problems(&topology, &policy).is_empty(), is_problem, "{min}");
    }
    assert_eq!(
        problems(&topology, &policy),
        [
            "safety.regions_serving_min is 7 and the topology has 6 regions, so no region could ever be left; with 6 regions \
          it is 5 at most"
        ]
    );
}

#[test]
fn a_frozen_planner_follows_documents_all_the_same() {
    let mut world = World::new();
    world.ask("alice", fail_over("us-east"));
    world.ask_for("alice", IntentKind::Freeze, HOUR);
    world.without("us-west").pass(MINUTE);
    assert_eq!(world.route("us-east"), "eu-central 100");
}

#[test]
fn where_devices_find_the_service_changes_one_edge_at_a_time() {
    let current = three_primaries().topology;
    let moved = |names: &[&str]| {
        let mut topology = current.clone();
        for name in names {
            let edge = topology.edges.get_mut(&crate::world::edge(name)).unwrap();
            edge.addresses = vec!["192.0.2.1".parse().unwrap()];
        }
        planning::risks(&current, &topology)
    };
    assert_eq!(moved(&[]), [""; 0]);
    assert_eq!(moved(&["edge-iad"]), [""; 0]);
    let both = moved(&["edge-iad", "edge-dub"]);
    assert!(
        both[0].starts_with("the addresses of edge-dub and edge-iad would change or go at once"),
        "{both:?}"
    );
    let mut elsewhere = current.clone();
    elsewhere.zone = "other.meridian.test".to_owned();
    let zone = planning::risks(&current, &elsewhere);
    assert!(
        zone[0].contains("devices that ask for voice.meridian.test would find nothing at once"),
        "{zone:?}"
    );
    let mut fewer = current.clone();
    fewer.edges.clear();
    assert_eq!(planning::risks(&current, &fewer).len(), 1);
}

#[test]
fn more_vantages_than_there_are_would_find_nothing_bad() {
    let topology = three_primaries().topology;
    let mut policy = Policy::default();
    policy.health.vantages_min = 3;
    assert_eq!(problems(&topology, &policy), [""; 0], "two edges and the control plane");
    policy.health.vantages_min = 4;
    assert!(problems(&topology, &policy)[0].contains("no region could ever be found bad; it is 3 at most"));
}

#[test]
fn a_version_that_no_stack_has_is_not_rolled_out() {
    let mut world = World::new();
    world.ask("alice", crate::world::roll_out("v22"));
    assert!(world.refused(ReasonCode::BadRequest));
    let text = &world.report.refused[0].text;
    assert!(text.ends_with("stacks have current, v2, v3"), "{text}");
    world.ask("alice", crate::world::roll_out("v2"));
    assert!(world.plan().rollout.is_some(), "the mistake is in nobody's way");
}
