//! Stories of edges and stacks: drained by people, or lost.

use std::time::Duration;

use planning::Phase;
use topology::{EdgeState, IntentKind, Moment, ReasonCode};

use crate::world::{HOUR, MINUTE, SECOND, World, abort, edge, region};

// Edges.

#[test]
fn an_edge_is_drained_for_a_time_and_the_last_one_never() {
    let mut world = World::new();
    let drain = |name: &str| IntentKind::DrainEdge { edge: edge(name) };
    let asked = world.ask_for("alice", drain("edge-iad"), 2 * HOUR);
    let drained = &world.input.memory.actions[&asked];
    let until = drained.intent.expires_at;
    assert_eq!(
        drained.text,
        format!("edge-iad is left out of DNS answers until {until}"),
        "status shows it as the result so far"
    );
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

    // The last working stack of a region serves, in spite of the order.
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
    // It gives signs of life again, and was silent a moment ago.
    let (now, back) = (world.now, |since| planning::EdgeSeen::heard(since, since));
    world.input.edges.insert(dub.clone(), back(now));
    world.decide();
    assert_eq!(
        world.plan().edges[&dub],
        EdgeState::Drained,
        "it may be gone again in a moment"
    );
    world.now = now + Duration::from_secs(20);
    let steady = planning::EdgeSeen::heard(world.now, now);
    world.input.edges.insert(dub.clone(), steady);
    world.decide();
    assert_eq!(world.plan().edges[&dub], EdgeState::Serving);
    assert!(world.changed(ReasonCode::EdgeReturned));
}

/// The testimony of most vantages about an edge that reports all the time.
fn unreached(for_seconds: u64, now: Moment) -> planning::EdgeSeen {
    planning::EdgeSeen {
        unreached: Some(verdict::Unreached {
            since: Moment(now.0 - for_seconds * 1_000),
            until: now,
            ticks: (for_seconds / 10) as u32,
            by: 2,
            of: 3,
        }),
        ..planning::EdgeSeen::heard(now, Moment(0))
    }
}

#[test]
fn an_edge_that_most_vantages_do_not_reach_leaves_dns_and_comes_back_when_they_do() {
    let mut world = World::new();
    let dub = edge("edge-dub");
    for (seconds, state) in [(29, EdgeState::Serving), (30, EdgeState::Drained)] {
        let seen = unreached(seconds, world.now);
        world.input.edges.insert(dub.clone(), seen);
        world.decide();
        assert_eq!(world.plan().edges[&dub], state, "{seconds} s");
    }
    assert!(world.changed(ReasonCode::EdgeLost));
    let said = &world.plan().reasons[0].text;
    assert!(
        said.contains("2 of 3 vantages have not reached edge-dub") && said.contains("for 30 s"),
        "{said}"
    );
    // No news: silence brings no edge back, and neither does the first vantage that reaches it.
    for (seen, state) in [
        (unreached(30, world.now), EdgeState::Drained),
        (
            planning::EdgeSeen {
                reached_since: Some(world.now),
                ..planning::EdgeSeen::heard(world.now, Moment(0))
            },
            EdgeState::Drained,
        ),
    ] {
        world.input.edges.insert(dub.clone(), seen);
        world.decide();
        assert_eq!(world.plan().edges[&dub], state, "{seen:?}");
    }
    // It reported all the time, so the reason does not say that it is heard again.
    let said = &world.waiting(ReasonCode::EdgeReturned).text;
    assert!(
        said.starts_with("vantages reach edge-dub at its public addresses again, and DNS names it again at "),
        "{said}"
    );
    let since = world.now;
    world.now = since + 20 * SECOND;
    let steady = planning::EdgeSeen {
        reached_since: Some(since),
        ..planning::EdgeSeen::heard(world.now, Moment(0))
    };
    world.input.edges.insert(dub.clone(), steady);
    world.decide();
    assert_eq!(world.plan().edges[&dub], EdgeState::Serving);
    assert!(world.changed(ReasonCode::EdgeReturned));
    assert_eq!(
        world.plan().reasons[0].text,
        "vantages reach edge-dub at its public addresses again, and DNS names it again"
    );
}

/// A dead edge neither reports nor answers, so the reason of its return names both.
#[test]
fn an_edge_that_was_neither_heard_nor_reached_is_said_to_be_both_again() {
    let mut world = World::new();
    world.edges_are_silent(&["edge-dub"], MINUTE).decide();
    let back = world.now + 5 * SECOND;
    for (reached_since, said) in [
        (None, "edge-dub is heard again, and DNS"),
        (
            Some(back),
            "edge-dub is heard again and vantages reach it at its public addresses, and DNS",
        ),
    ] {
        world.now = back;
        let seen = planning::EdgeSeen {
            reached_since,
            ..planning::EdgeSeen::heard(back, back)
        };
        world.input.edges.insert(edge("edge-dub"), seen);
        world.decide();
        let waiting = &world.waiting(ReasonCode::EdgeReturned).text;
        assert!(waiting.starts_with(said), "{waiting}");
    }
}

/// Ticks without enough vantages do not count toward the time.
#[test]
fn an_edge_leaves_dns_for_ticks_in_which_witnesses_agreed_and_for_no_others() {
    let mut world = World::new();
    let dub = edge("edge-dub");
    for (ticks, state) in [(2, EdgeState::Serving), (3, EdgeState::Drained)] {
        let mut seen = unreached(600, world.now);
        seen.unreached.as_mut().unwrap().ticks = ticks;
        world.input.edges.insert(dub.clone(), seen);
        world.decide();
        assert_eq!(world.plan().edges[&dub], state, "{ticks} ticks");
    }
    let said = &world.plan().reasons[0].text;
    assert!(said.contains("for 30 s"), "{said}");
}

#[test]
fn when_no_edge_is_reached_it_is_rather_the_vantages_that_are_cut_off() {
    let mut world = World::new();
    for name in ["edge-dub", "edge-iad"] {
        let seen = unreached(60, world.now);
        world.input.edges.insert(edge(name), seen);
    }
    world.decide();
    assert!(world.waits(ReasonCode::EdgeFloor), "{:#?}", world.report);
    assert!(world.plan().edges.values().all(|state| *state == EdgeState::Serving));
}

/// To name an edge again is safe, so no stop of automation keeps a working edge out of DNS.
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

    // One of three: as many as fit leave, silent ones first, and of them the one that is silent for longest.
    for (silent_s, lost) in [
        ([60, 0, 90], "edge-sin"),
        ([90, 60, 0], "edge-dub"),
        ([0, 60, 0], "edge-iad"),
    ] {
        let mut world = World::with(|topology, _| {
            let one = topology.edges[&edge("edge-dub")].clone();
            let sin = edge("edge-sin");
            topology.edges.insert(sin.clone(), topology::Edge { id: sin, ..one });
        });
        for (name, silent_s) in ["edge-dub", "edge-iad", "edge-sin"].into_iter().zip(silent_s) {
            let heard_at = Moment(world.now.0 - silent_s * 1_000);
            world
                .input
                .edges
                .insert(edge(name), planning::EdgeSeen::heard(heard_at, Moment(0)));
        }
        // Most vantages do not reach it, for longer than any edge is silent.
        let seen = unreached(120, world.now);
        if silent_s == [0, 60, 0] {
            world.input.edges.insert(edge("edge-dub"), seen);
        }
        world.decide();
        assert!(world.waits(ReasonCode::EdgeFloor), "{silent_s:?} {:#?}", world.report);
        let out: Vec<_> = world.input.memory.lost_edges.keys().map(ToString::to_string).collect();
        assert_eq!(out, [lost], "{silent_s:?}");
        // The result is stable: the other one does not leave with the next decision.
        world.decide();
        assert_eq!(world.input.memory.lost_edges.len(), 1);
    }

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

// New edges.

/// Adds edges to the topology of a running world.
fn come(world: &mut World, names: &[&str]) {
    let one = world.input.topology.edges[&edge("edge-dub")].clone();
    for name in names {
        let id = edge(name);
        let new = topology::Edge {
            id: id.clone(),
            ..one.clone()
        };
        world.input.topology.edges.insert(id, new);
    }
    world.decide();
}

#[test]
fn dns_names_a_new_edge_when_it_was_seen_to_work_and_not_before() {
    let mut world = World::new();
    let sin = edge("edge-sin");
    come(&mut world, &["edge-sin"]);
    assert_eq!(world.plan().edges[&sin], EdgeState::Drained);
    let waiting = &world.waiting(ReasonCode::EdgeNew).text;
    assert!(waiting.contains("Start it, if it does not run"), "{waiting}");

    // It never comes: it is not lost, and nobody counts it.
    world.edges_are_silent(&["edge-sin"], HOUR).decide();
    assert!(world.input.memory.lost_edges.is_empty());
    assert!(!world.waits(ReasonCode::EdgeFloor) && world.waits(ReasonCode::EdgeNew));
    assert_eq!(planning::waited_for(&world.input).count(), 2, "no order waits for it");

    // It runs, but devices do not reach it.
    let heard = planning::EdgeSeen::heard(world.now, world.now);
    let seen = unreached(60, world.now);
    world.input.edges.insert(sin.clone(), seen);
    world.decide();
    assert_eq!(world.plan().edges[&sin], EdgeState::Drained);

    // It works, and has to go on for a while; the decision comes by itself then.
    world.input.edges.insert(sin.clone(), heard);
    world.decide();
    let waiting = world.waiting(ReasonCode::EdgeNew);
    let named_at = waiting.until.unwrap();
    assert_eq!(planning::next_wake(&world.input, world.now), Some(named_at));
    world.input.edges.get_mut(&sin).unwrap().heard_at = named_at;
    world.now = named_at;
    world.decide();
    assert!(world.changed(ReasonCode::EdgeNew), "{:#?}", world.report);
    assert!(world.plan().edges.values().all(|state| *state == EdgeState::Serving));
    assert!(world.input.memory.new_edges.is_empty());

    // From now on it is like any other.
    world.edges_are_silent(&["edge-sin"], MINUTE).decide();
    assert!(world.changed(ReasonCode::EdgeLost));
}

/// Else three names in a file would let an automation that sees nothing take every working edge out of DNS.
#[test]
fn new_edges_do_not_raise_the_number_of_edges_that_may_be_lost() {
    let mut world = World::new();
    come(&mut world, &["edge-sin", "edge-nrt", "edge-syd"]);
    let all = ["edge-dub", "edge-iad", "edge-sin", "edge-nrt", "edge-syd"];
    world.edges_are_silent(&all, MINUTE).decide();
    assert!(world.waits(ReasonCode::EdgeFloor), "{:#?}", world.report);
    assert!(world.input.memory.lost_edges.is_empty());
    world.edges_are_silent(&all[1..], MINUTE).decide();
    assert_eq!(world.plan().edges[&edge("edge-iad")], EdgeState::Drained);
    world.edges_are_silent(&all, MINUTE).decide();
    assert_eq!(
        world.plan().edges[&edge("edge-dub")],
        EdgeState::Serving,
        "the last one that worked"
    );
    world.ask("alice", IntentKind::DrainEdge { edge: edge("edge-dub") });
    assert!(world.refused(ReasonCode::LastEdge), "new edges are no others");
}

#[test]
fn new_edges_are_named_at_once_if_no_other_is_left() {
    let mut world = World::new();
    come(&mut world, &["edge-sin", "edge-nrt"]);
    for gone in ["edge-dub", "edge-iad"] {
        world.input.topology.edges.remove(&edge(gone));
    }
    world.decide();
    let named = world
        .plan()
        .edges
        .iter()
        .filter(|(_, state)| **state == EdgeState::Serving);
    assert_eq!(named.count(), 2, "{:?}", world.plan().edges);
    let reasons = world.plan().reasons.iter();
    let told = reasons.filter(|reason| reason.text.contains("although no vantage saw it work"));
    assert_eq!(told.count(), 2, "{:#?}", world.report);
}

/// They have nothing yet to go back to, and route nothing.
#[test]
fn the_refusals_of_new_edges_take_no_plan_back() {
    let mut world = World::new();
    come(&mut world, &["edge-sin", "edge-nrt", "edge-syd"]);
    let good = world.plan().clone();
    world
        .edges_are_silent(&["edge-iad", "edge-sin", "edge-nrt", "edge-syd"], MINUTE)
        .decide();
    world
        .nodes_refuse(&["edge-sin", "edge-nrt", "edge-syd"], &good)
        .decide();
    assert!(world.waits(ReasonCode::RefusedByNodes), "{:#?}", world.report);
    assert!(!world.changed(ReasonCode::PlanTakenBack));
    world.nodes_refuse(&["edge-dub", "edge-iad"], &good).decide();
    assert!(world.changed(ReasonCode::PlanTakenBack), "those of the others do");
}
