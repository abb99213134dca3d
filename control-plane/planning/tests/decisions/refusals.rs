//! Nodes that refuse a plan: a fault of theirs, unless most of the edges refuse it.

use topology::{EdgeState, IntentKind, Level, Plan, ReasonCode, RegionState};
use verdict::Health;

use crate::world::{HOUR, MINUTE, SECOND, World, abort, edge, fail_over, region, restore, roll_out, switch_over};

const EDGES: [&str; 2] = ["edge-iad", "edge-dub"];

/// A plan without an order that leaves no region: it serves one region at a lower level. With the plan before it.
fn degraded() -> (World, Plan) {
    let mut world = World::new();
    let good = world.plan().clone();
    world.input.verdicts.get_mut(&region("eu-central")).unwrap().level = Level::L1;
    world.decide();
    assert_eq!(world.level("eu-central"), Level::L1);
    (world, good)
}

fn content(plan: &Plan) -> Plan {
    Plan {
        generation: 0,
        epoch: 0,
        created_at: topology::Moment(0),
        reasons: vec![],
        ..plan.clone()
    }
}

#[test]
fn a_plan_that_most_edges_refuse_is_taken_back_and_automation_rests() {
    let (mut world, good) = degraded();
    let bad = world.plan().generation;
    world.nodes_refuse(&EDGES, &good).decide();
    assert!(world.changed(ReasonCode::PlanTakenBack));
    assert_eq!(world.plan().generation, bad + 1);
    assert_eq!(content(world.plan()), content(&good));
    world.input.refusal = None;
    world.pass(9 * MINUTE);
    assert_eq!(world.level("eu-central"), Level::L0);
    assert!(world.refused(ReasonCode::RefusedByNodes));
    world.ask("alice", IntentKind::Unfreeze);
    assert_eq!(world.level("eu-central"), Level::L1);
    assert!(world.input.memory.taken_back.is_none());

    let (mut world, good) = degraded();
    world.nodes_refuse(&EDGES, &good).decide();
    world.input.refusal = None;
    world.pass(10 * MINUTE);
    assert_eq!(world.level("eu-central"), Level::L1, "the rest ends by itself");
}

#[test]
fn a_minority_is_shown_and_changes_nothing() {
    for nodes in [&["edge-iad"][..], &["ns1"], &["edge-dub", "ns1"]] {
        let (mut world, good) = degraded();
        let plan = world.plan().clone();
        world.nodes_refuse(nodes, &good);
        for _ in 0..3 {
            world.pass(10 * SECOND);
            assert_eq!(world.plan(), &plan);
            let shown = world.waiting(ReasonCode::RefusedByNodes);
            assert!(shown.text.starts_with(nodes[0]), "{}", shown.text);
            assert!(shown.evidence[0].contains("it cannot read it"));
        }
        assert!(world.input.memory.taken_back.is_none(), "{nodes:?}");
    }
    // One edge of one is a majority, and may be broken itself.
    let (mut world, good) = degraded();
    world.input.topology.edges.remove(&edge("edge-dub"));
    world.nodes_refuse(&["edge-iad"], &good).decide();
    assert!(!world.changed(ReasonCode::PlanTakenBack));
}

#[test]
fn a_plan_that_leaves_a_dead_region_stands_whoever_refuses_it() {
    let mut world = World::new();
    let good = world.plan().clone();
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    world.nodes_refuse(&["edge-iad", "edge-dub", "ns1"], &good).pass(MINUTE);
    assert_eq!(world.route("us-east"), "us-west 100");
    let text = &world.waiting(ReasonCode::RefusedByNodes).text;
    assert!(
        text.contains("because it moves sessions of us-east away from us-east, which is down"),
        "{text}"
    );
    // Automation handles the next failure, too.
    world.input.refusal = None;
    world.sees("us-west", Health::Down).pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "eu-central 100");
}

#[test]
fn an_order_stands_although_nodes_refuse_it() {
    let [stack, other] = [9002, 9012].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let orders = [
        fail_over("us-east"),
        switch_over("us-east"),
        roll_out("v2"),
        IntentKind::DrainEdge { edge: edge("edge-iad") },
        IntentKind::DrainStack { stack },
    ];
    for order in orders {
        let mut world = World::with(|topology, _| {
            let eu_west = topology.regions.get_mut(&region("eu-west")).unwrap();
            eu_west.stacks = vec![stack.into(), other.into()];
        });
        let good = world.plan().clone();
        world.now = world.now + SECOND;
        let asked = world.ask_for("alice", order.clone(), HOUR);
        let ordered = content(world.plan());
        assert_ne!(ordered, content(&good));
        world.nodes_refuse(&EDGES, &good).decide();
        assert_eq!(content(world.plan()), ordered, "{order:?}");
        let text = &world.waiting(ReasonCode::RefusedByNodes).text;
        assert!(text.contains("because alice ordered it"), "{text}");
        assert_ne!(world.phase(&asked), Some(planning::Phase::Aborted));
    }
}

#[test]
fn an_abort_and_a_return_are_orders_too() {
    let mut world = World::new();
    let asked = world.ask("alice", switch_over("us-east"));
    let good = world.plan().clone();
    world.now = world.now + SECOND;
    world.ask("alice", abort(&asked));
    world.nodes_refuse(&EDGES, &good).decide();
    assert_eq!(world.state("us-east"), RegionState::Serving);

    let mut world = World::new();
    world.ask("alice", fail_over("us-east"));
    let good = world.plan().clone();
    world.pass(MINUTE);
    world.ask("alice", restore("us-east"));
    world.pass(MINUTE);
    world.nodes_refuse(&EDGES, &good).decide();
    assert_eq!(
        world.state("us-east"),
        RegionState::Restoring(5),
        "also its later steps"
    );
}

/// Automation left a region as far as its slow backup took its sessions, and the region is healthy again. With the plan
/// before, and the action.
fn partly_left() -> (World, Plan, String) {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("us-west")).unwrap().connects_per_s_max = Some(5);
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 1;
    });
    let good = world.plan().clone();
    world.sees("us-east", Health::Down).decide();
    assert_eq!(world.state("us-east"), RegionState::Draining(75));
    world.sees("us-east", Health::Healthy).decide();
    let moving = world.input.memory.moving(&region("us-east")).unwrap();
    let id = moving.intent.id.clone();
    (world, good, id)
}

/// Otherwise the region would count as moving for ever.
#[test]
fn the_actions_of_a_plan_that_is_taken_back_have_ended() {
    let (mut world, good, action) = partly_left();
    world.nodes_refuse(&EDGES, &good).decide();
    assert!(world.changed(ReasonCode::PlanTakenBack) && world.changed(ReasonCode::Aborted));
    assert_eq!(world.state("us-east"), RegionState::Serving);
    assert_eq!(world.phase(&action), Some(planning::Phase::Aborted));
    assert_eq!(world.input.memory.moving(&region("us-east")), None);
}

/// The rest is there so that what was refused is not tried again at once; it is not about a region that dies meanwhile.
#[test]
fn a_dead_region_is_left_while_automation_rests() {
    let (mut world, good) = degraded();
    world.nodes_refuse(&EDGES, &good).decide();
    world.input.refusal = None;
    world.pass(MINUTE);
    world.sees("us-east", Health::Down).pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "us-west 100");
    assert_eq!(world.level("eu-central"), Level::L0, "what was refused still waits");
    // Its sessions do not stay in a host that dies, either.
    world.pass(MINUTE);
    world.sees("us-west", Health::Down).pass(10 * SECOND);
    assert_eq!(world.route("us-east"), "eu-central 100");
    // A freeze holds both: a person wants nothing to change.
    world.input.memory.taken_back.as_ref().unwrap();
    let mut world = World::new();
    world.ask_for("alice", IntentKind::Freeze, HOUR);
    world.sees("us-east", Health::Down).pass(MINUTE);
    assert_eq!(world.route("us-east"), "us-east 100");
}

/// The slow parts of an evacuation go on as well.
#[test]
fn a_dead_region_that_is_left_in_parts_is_left_while_automation_rests() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("us-west")).unwrap().connects_per_s_max = Some(5);
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 1;
    });
    let until = world.now + 10 * MINUTE;
    world.input.memory.taken_back = Some(planning::TakenBack {
        generation: 0,
        until,
        why: "it cannot read it".to_owned(),
    });
    world.sees("us-east", Health::Down).decide();
    assert_eq!(world.state("us-east"), RegionState::Draining(75));
    world.pass(10 * SECOND);
    assert_eq!(world.state("us-east"), RegionState::Draining(50));
}

/// Automation began the action; a person ordered its end.
#[test]
fn an_abort_of_an_automatic_move_stands_although_nodes_refuse_it() {
    let (mut world, _, action) = partly_left();
    let good = world.plan().clone();
    world.now = world.now + SECOND;
    world.ask("alice", abort(&action));
    let ordered = content(world.plan());
    assert_ne!(ordered, content(&good));
    world.nodes_refuse(&EDGES, &good).decide();
    assert_eq!(content(world.plan()), ordered);
    let text = &world.waiting(ReasonCode::RefusedByNodes).text;
    assert!(text.contains("because alice ordered it: abort"), "{text}");
}

/// The end of a drain is no order. The whole plan is taken back, drained stacks and edges too, and stays so while
/// automation rests: otherwise the next decision would make the refused plan again.
#[test]
fn a_plan_is_taken_back_whole_and_once() {
    let [stack, other] = [9002, 9012].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let mut world = World::with(|topology, _| {
        let eu_west = topology.regions.get_mut(&region("eu-west")).unwrap();
        eu_west.stacks = vec![stack.into(), other.into()];
    });
    world.ask_for("alice", IntentKind::DrainStack { stack }, MINUTE);
    world.ask_for("alice", IntentKind::DrainEdge { edge: edge("edge-iad") }, MINUTE);
    let good = world.plan().clone();
    world.pass(MINUTE);
    assert!(world.changed(ReasonCode::StackRestored) && world.changed(ReasonCode::EdgeRestored));
    world.nodes_refuse(&EDGES, &good).decide();
    assert_eq!(content(world.plan()), content(&good));
    let (until, plan) = (
        world.input.memory.taken_back.as_ref().unwrap().until,
        world.plan().clone(),
    );
    // The nodes refuse that plan as well, which they had before: so they are broken, and no further plan helps them.
    let acknowledged = good.clone();
    world.nodes_refuse(&EDGES, &acknowledged);
    for _ in 0..30 {
        let outcome = world.decide();
        assert_eq!((outcome.plan, outcome.report.changed), (None, vec![]));
    }
    world.pass(9 * MINUTE);
    assert_eq!(world.plan(), &plan);
    assert_eq!(world.plan().drained_stacks, [stack].into());
    assert_eq!(world.plan().edges[&edge("edge-iad")], EdgeState::Drained);
    assert_eq!(
        world.input.memory.taken_back.as_ref().unwrap().until,
        until,
        "its rest is not prolonged"
    );
    world.input.refusal = None;
    world.pass(MINUTE);
    assert_eq!(world.plan().drained_stacks, [].into());
    assert_eq!(world.plan().edges[&edge("edge-iad")], EdgeState::Serving);
}

/// A lost edge is no part of the good plan: DNS names it again while automation rests, and the refusal is answered
/// once.
#[test]
fn a_plan_that_leaves_out_a_lost_edge_is_taken_back_once() {
    let lost = edge("edge-fra");
    let mut world = World::with(|topology, _| {
        let mut edge = topology.edges.values().next().unwrap().clone();
        edge.id = lost.clone();
        edge.addresses = vec!["127.0.0.77".parse().unwrap()];
        topology.edges.insert(lost.clone(), edge);
    });
    let good = world.plan().clone();
    world.edges_are_silent(&[lost.as_str()], MINUTE).decide();
    assert_eq!(world.plan().edges[&lost], EdgeState::Drained);
    let bad = world.plan().generation;
    world.nodes_refuse(&EDGES, &good).decide();
    assert!(world.changed(ReasonCode::PlanTakenBack));
    assert_eq!(content(world.plan()), content(&good));
    assert_eq!(world.plan().generation, bad + 1);
    let until = world.input.memory.taken_back.as_ref().unwrap().until;
    world.input.refusal = None;
    for _ in 0..6 {
        world.now = world.now + 10 * SECOND;
        world.refresh();
        let outcome = world.edges_are_silent(&[lost.as_str()], MINUTE).decide();
        assert_eq!((outcome.plan, outcome.report.changed), (None, vec![]));
        let text = &world.waiting(ReasonCode::EdgeLost).text;
        assert!(text.contains("DNS still names it: automation rests until"), "{text}");
    }
    assert_eq!(world.input.memory.taken_back.as_ref().unwrap().until, until);
}

/// The answer to a refusal may be the refused plan itself. Then it is not given again.
#[test]
fn a_refusal_that_was_answered_is_not_answered_again() {
    let (mut world, good) = degraded();
    let plan = world.plan().clone();
    world.input.memory.taken_back = Some(planning::TakenBack {
        generation: plan.generation,
        until: world.now + 5 * MINUTE,
        why: "it cannot read it".to_owned(),
    });
    world.nodes_refuse(&EDGES, &good);
    let outcome = world.decide();
    assert_eq!((outcome.plan, outcome.report.changed), (None, vec![]));
    assert!(world.waits(ReasonCode::RefusedByNodes), "it is shown all the same");
}

#[test]
fn nobody_goes_back_to_a_version_that_was_found_bad() {
    let mut world = World::new();
    world.ask("alice", roll_out("v2"));
    let good = world.plan().clone();
    world.now = world.now + SECOND;
    world.devices_see("v2", |it| it.gpu_memory_errors = 1).decide();
    assert_eq!(world.plan().rollout, None);
    world.input.verdicts.get_mut(&region("eu-central")).unwrap().level = Level::L1;
    world.decide();
    world.nodes_refuse(&EDGES, &good).decide();
    assert_eq!(world.plan().rollout, None);
}
