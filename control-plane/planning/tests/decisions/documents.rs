//! New documents while actions go on, and documents that are refused.

use planning::{Phase, problems, refuses_topology};
use topology::{
    Component, IntentKind, NameServer, NodeId, Policy, ReasonCode, RegionState, Role, Topology,
    fixtures::three_primaries,
};
use verdict::Health;

use crate::world::{HOUR, MINUTE, SECOND, World, abort, fail_over, promote, region, restore, roll_out, switch_over};

#[test]
fn a_backup_that_goes_moves_only_the_sessions_that_were_there() {
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
        let text = "us-west is gone from the topology: the 10 % of its sessions that were there leave";
        assert!(said.text.starts_with(text), "{}", said.text);
        world.pass(5 * MINUTE);
        assert_eq!(world.phase(&asked), Some(Phase::Done));
    }
}

#[test]
fn sessions_without_a_place_come_home_when_a_backup_goes() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("us-west")).unwrap().sessions_max = 100;
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 120;
    });
    world.ask("alice", fail_over("us-east"));
    assert_eq!(world.route("us-east"), "us-west 50 + eu-central 50");
    world.without("us-west").decide();
    assert_eq!(world.route("us-east"), "us-east 40 + eu-central 60");
    assert_eq!(world.state("us-east"), RegionState::Draining(40));
    // Without the other region as well: all of it.
    world.without("eu-central").decide();
    assert_eq!(world.route("us-east"), "us-east 100");
    assert_eq!(world.state("us-east"), RegionState::Serving);
}

#[test]
fn an_order_about_a_region_ends_with_the_region() {
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
    let text = "sessions of us-east are at us-west, which is to be a primary, and find no other place; \
                `meridian restore us-east --reason WHY` brings them home first";
    assert_eq!(refused, [text]);
    // The document is in force all the same, changed by hand in the store.
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

    // No rule holds an outage up: sessions without a place count as at home, though home is dead.
    world.input.policy.failover.automatic_max = 2;
    world.sees("us-west", Health::Down).pass(10 * SECOND);
    assert_eq!(world.state("us-west"), RegionState::Evacuated);
    assert_eq!(world.route("us-east"), "us-east 34 + eu-central 66");
    assert_eq!(world.state("us-east"), RegionState::Draining(34));
}

#[test]
fn a_plan_that_cannot_be_applied_is_never_made() {
    let mut world = World::new();
    // No document describes this world: without edges no plan is valid.
    world.input.topology.edges.clear();
    world.now = world.now + SECOND;
    let outcome = planning::plan(&world.input, world.now);
    assert_eq!(outcome.plan, None);
    assert_eq!(outcome.memory, world.input.memory);
    let refused = &outcome.report.refused[0];
    assert!(
        refused.code == ReasonCode::InvalidPlan && refused.text.contains("the plan has no serving edge"),
        "{refused:?}"
    );
    let broken = planning::invariants::Invariants::default().check(&world.input, &outcome, world.now);
    assert!(broken[0].contains("the plan has no serving edge"), "{broken:?}");
}

// Refusals before harm is done.

#[test]
fn a_region_that_writes_for_another_cannot_be_taken_away() {
    let mut world = World::new();
    world.lags("us-east", SECOND);
    world.ask("alice", promote("us-east", None));
    let mut smaller = World::new();
    let without = |smaller: &mut World, name: &str| smaller.without(name).input.topology.clone();
    let refused = refuses_topology(&world.input, &without(&mut smaller, "us-west"), world.now);
    let text =
        "us-west writes data of us-east; `meridian restore us-east --reason WHY` brings them home before us-west goes";
    assert_eq!(refused, [text]);
    let refused = refuses_topology(&world.input, &without(&mut World::new(), "us-east"), world.now);
    assert!(
        refused[0].starts_with("data of us-east are written by us-west"),
        "{refused:?}"
    );
    let refused = refuses_topology(&world.input, &without(&mut World::new(), "ap-northeast"), world.now);
    assert_eq!(refused, [] as [&str; 0]);

    // An operator who does it all the same, by hand in the store, reads the result.
    world.without("us-west").decide();
    let reasons = &world.plan().reasons;
    let demoted = reasons.iter().find(|it| it.code == ReasonCode::Demoted).unwrap();
    assert!(
        demoted.text.contains("us-west, which wrote analytics, conversations,")
            && demoted.text.contains("without the data that only us-west had"),
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
    let text = "sessions of us-east are at us-west (100 %) and 70 % find no place in its other backups; \
                `meridian restore us-east --reason WHY` brings them home first";
    assert_eq!(refused, [text]);
    smaller.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 200;
    assert_eq!(refuses_topology(&world.input, &smaller, world.now), [] as [&str; 0]);
}

#[test]
fn a_primary_goes_only_when_it_is_empty() {
    let mut world = World::new();
    let smaller = World::new().without("us-east").input.topology.clone();
    let refused = refuses_topology(&world.input, &smaller, world.now);
    let text = "us-east serves 100 % of its sessions; `meridian drain --region us-east --reason WHY` empties it before it goes";
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

/// The risks of a change of the topology.
fn risks_of(change: impl FnOnce(&mut Topology)) -> Vec<String> {
    let world = World::new();
    let mut topology = world.input.topology.clone();
    change(&mut topology);
    planning::risks(&world.input, &topology)
}

#[test]
fn the_addresses_of_the_service_change_one_edge_at_a_time() {
    let moved = |names: &[&str]| {
        risks_of(|topology| {
            for name in names {
                let edge = topology.edges.get_mut(&crate::world::edge(name)).unwrap();
                edge.addresses = vec!["192.0.2.1".parse().unwrap()];
            }
        })
    };
    assert_eq!(moved(&[]), [""; 0]);
    // Two of them a second apart would be both at once.
    let one = moved(&["edge-iad"]);
    assert!(one[0].starts_with("edge-iad would have another address"), "{one:?}");
    let both = moved(&["edge-iad", "edge-dub"]);
    assert!(
        both[0].starts_with("the addresses of edge-dub and edge-iad would change or go at once"),
        "{both:?}"
    );
    let zone = risks_of(|topology| topology.zone = "other.meridian.test".to_owned());
    assert!(
        zone[0].contains("devices that ask for voice.meridian.test would find nothing at once"),
        "{zone:?}"
    );
    assert_eq!(risks_of(|topology| topology.edges.clear()).len(), 1);
}

/// A caller is sent to a new edge when it works, but to a new home at once.
#[test]
fn new_edges_need_one_person_and_a_new_home_needs_two() {
    let with_edges = |topology: &mut topology::Topology| {
        let one = topology.edges[&crate::world::edge("edge-iad")].clone();
        for number in 0..9 {
            let id = crate::world::edge(&format!("edge-{number}"));
            let addresses = vec![std::net::IpAddr::from([192, 0, 2, number])];
            let edge = topology::Edge {
                id: id.clone(),
                addresses,
                ..one.clone()
            };
            topology.edges.insert(id, edge);
        }
    };
    assert_eq!(risks_of(with_edges), [""; 0]);
    // The new ones are no replacement for those that work.
    let mut world = World::new();
    with_edges(&mut world.input.topology);
    world.input.topology.edges.remove(&crate::world::edge("edge-dub"));
    world.decide();
    let mut without = world.input.topology.clone();
    without.edges.remove(&crate::world::edge("edge-0"));
    assert_eq!(planning::risks(&world.input, &without), [""; 0]);
    without.edges.remove(&crate::world::edge("edge-iad"));
    let risks = planning::risks(&world.input, &without);
    assert!(
        risks[0].starts_with("the addresses of edge-iad would change or go at once"),
        "{risks:?}"
    );
    let with_region = |name: &str| {
        risks_of(|topology| {
            let mut new = topology.regions[&region(name)].clone();
            new.id = region("ghost");
            topology.regions.insert(new.id.clone(), new);
        })
    };
    let risks = with_region("us-east");
    assert_eq!(
        risks,
        ["ghost would be a new primary: callers near it would have their home there at once"]
    );
    assert_eq!(with_region("us-west"), [""; 0], "nobody is at home in a backup");
}

#[test]
fn name_servers_change_one_at_a_time_and_never_the_only_one() {
    let server = |id: &str| NameServer {
        id: NodeId::new(id).unwrap(),
        address: "192.0.2.53".parse().unwrap(),
    };
    let only = risks_of(|topology| topology.name_servers.clear());
    assert!(
        only[0].starts_with("the addresses of ns1 would change or go at once"),
        "{only:?}"
    );
    let mut world = World::new();
    for id in ["ns2", "ns3"] {
        let server = server(id);
        world.input.topology.name_servers.insert(server.id.clone(), server);
    }
    let mut topology = world.input.topology.clone();
    topology.name_servers.remove(&NodeId::new("ns1").unwrap());
    assert_eq!(planning::risks(&world.input, &topology), [""; 0]);
    topology.name_servers.remove(&NodeId::new("ns2").unwrap());
    assert_eq!(planning::risks(&world.input, &topology).len(), 1);
}

#[test]
fn a_region_says_another_room_with_a_second_person_only() {
    for sessions in [100, 201, 1_000_000] {
        let risks = risks_of(|topology| topology.regions.get_mut(&region("us-west")).unwrap().sessions_max = sessions);
        let text =
            format!("sessions_max of us-west would change from 200 to {sessions}: too much overloads the region");
        assert!(risks[0].starts_with(&text), "{risks:?}");
    }
    let risks = risks_of(|topology| topology.regions.get_mut(&region("us-west")).unwrap().connects_per_s_max = Some(1));
    assert!(
        risks[0].starts_with("connects_per_s_max of us-west would change from no limit to 1"),
        "{risks:?}"
    );
}

#[test]
fn stacks_are_exchanged_some_at_a_time() {
    let address = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let changed = |before: &[u16], after: &[u16]| {
        let mut world = World::new();
        let us_east = |topology: &mut Topology, ports: &[u16]| {
            let stacks = ports.iter().map(|port| address(*port).into()).collect();
            topology.regions.get_mut(&region("us-east")).unwrap().stacks = stacks;
        };
        us_east(&mut world.input.topology, before);
        let mut topology = world.input.topology.clone();
        us_east(&mut topology, after);
        planning::risks(&world.input, &topology)
    };
    for (before, after, is_risk) in [
        (&[1][..], &[1][..], false),
        (&[1], &[2], true),
        (&[1], &[1, 2], false),
        (&[1], &[1, 2, 3], true),
        (&[1, 2], &[1, 3], false),
        (&[1, 2], &[3, 4], true),
        (&[1, 2, 3, 4], &[1, 2], false),
        (&[1, 2, 3, 4], &[1], true),
    ] {
        assert_eq!(!changed(before, after).is_empty(), is_risk, "{before:?} {after:?}");
    }
    let all = changed(&[1, 2], &[3, 4]);
    let text = "0 of 2 stacks of us-east would be those that serve now, and it needs 1; change some,";
    assert!(all[0].starts_with(text), "{all:?}");
}

#[test]
fn a_version_comes_into_service_by_a_rollout_or_with_a_second_person() {
    let in_service = |topology: &mut Topology, version: &str| {
        let stacks = &mut topology.regions.get_mut(&region("ap-south")).unwrap().stacks;
        let at = stacks.iter().position(|it| it.version() == version).unwrap();
        stacks.swap(0, at);
    };
    let risks = risks_of(|topology| in_service(topology, "v2"));
    assert_eq!(
        risks,
        [
            "version v2 would be in service in ap-south at once; `meridian rollout v2 --reason WHY` brings it to users in steps"
        ]
    );
    let mut world = World::new();
    world.ask("alice", roll_out("v2"));
    let mut topology = world.input.topology.clone();
    in_service(&mut topology, "v2");
    assert_eq!(
        planning::risks(&world.input, &topology).len(),
        1,
        "a tenth of the users have it"
    );
    world.input.current.as_mut().unwrap().rollout.as_mut().unwrap().percent = 100;
    assert_eq!(planning::risks(&world.input, &topology), [""; 0], "everybody has it");
}

/// The author of a new field of the topology decides who may change it: this test changes each field, and its name has
/// to be in one of the two lists.
#[test]
fn every_field_of_the_topology_has_its_risk_decided() {
    const BY_TWO: [&str; 14] = [
        "zone",
        "regions.role.kind",
        "regions.role.backups",
        "regions.location.latitude",
        "regions.location.longitude",
        "regions.sessions_max",
        "regions.connects_per_s_max",
        "regions.capacity.asr",
        "regions.stacks",
        "edges.addresses",
        "edges.port",
        "edges.location.latitude",
        "edges.location.longitude",
        "name_servers.address",
    ];
    // No session, no data and no evidence depend on these.
    const BY_ONE: [&str; 1] = ["regions.time_zone"];
    // Names are keys: a thing with another name is new, and the one before is gone.
    const NAMES: [&str; 3] = ["regions.id", "edges.id", "name_servers.id"];
    let mut world = World::new();
    // One edge, so that its change is a change of all.
    world.input.topology.edges.retain(|id, _| id.as_str() == "edge-iad");
    let us_east = world.input.topology.regions.get_mut(&region("us-east")).unwrap();
    us_east.connects_per_s_max = Some(50);
    us_east.capacity.insert(Component::Asr, 100);
    us_east.time_zone = Some("America/New_York".to_owned());
    let json = serde_json::to_value(&world.input.topology).unwrap();
    let mut fields = Vec::new();
    for (name, value) in json.as_object().unwrap() {
        match value.as_object() {
            None => fields.push((name.clone(), format!("/{name}"))),
            Some(things) => {
                let thing = if name == "regions" {
                    "us-east"
                } else {
                    things.keys().next().unwrap()
                };
                leaves(name, &format!("/{name}/{thing}"), &things[thing], &mut fields);
            }
        }
    }
    let mut found = Vec::new();
    for (name, pointer) in fields {
        if NAMES.contains(&name.as_str()) {
            continue;
        }
        let mut changed = json.clone();
        // A role of another kind has other fields.
        let pointer = pointer.strip_suffix("/kind").unwrap_or(&pointer);
        let value = changed.pointer_mut(pointer).unwrap();
        *value = another(&name, value);
        let topology: Topology = serde_json::from_value(changed).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_ne!(topology, world.input.topology, "{name}");
        let risks = planning::risks(&world.input, &topology);
        assert_eq!(
            risks.is_empty(),
            BY_ONE.contains(&name.as_str()),
            "{name}: decide whether one person may change it alone"
        );
        found.push(name);
    }
    found.sort();
    let mut known = [&BY_TWO[..], &BY_ONE].concat();
    known.sort_unstable();
    assert_eq!(found, known);
}

/// The fields of a JSON value with their paths; a list counts as one field.
fn leaves(name: &str, pointer: &str, value: &serde_json::Value, found: &mut Vec<(String, String)>) {
    match value.as_object() {
        None => found.push((name.to_owned(), pointer.to_owned())),
        Some(fields) => {
            for (field, value) in fields {
                leaves(&format!("{name}.{field}"), &format!("{pointer}/{field}"), value, found);
            }
        }
    }
}

/// Another value of a field, as an operator might write it.
fn another(name: &str, value: &serde_json::Value) -> serde_json::Value {
    use serde_json::json;
    match name {
        "zone" => json!("other.meridian.test"),
        "regions.role.kind" => json!({"kind": "backup"}),
        "regions.role.backups" => json!([]),
        "regions.stacks" => json!(["192.0.2.1:80"]),
        "regions.time_zone" => json!("America/Chicago"),
        "edges.addresses" => json!(["192.0.2.1"]),
        "name_servers.address" => json!("192.0.2.1"),
        name if name.ends_with("itude") => json!(value.as_f64().unwrap() + 10.0),
        _ => json!(value.as_u64().unwrap() + 1),
    }
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
    assert!(text.contains("stacks have current, v2, v3"), "{text}");
    world.ask("alice", crate::world::roll_out("v2"));
    assert!(world.plan().rollout.is_some(), "the mistake is in nobody's way");
}
