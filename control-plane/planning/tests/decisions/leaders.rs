//! Stories of request tokens, new leaders and clocks.

use planning::Phase;
use topology::{EdgeState, IntentKind, ReasonCode, RegionState, snapshot::digest};
use verdict::Health;

use crate::world::{HOUR, MINUTE, SECOND, World, abort, edge, fail_over, region, restore, switch_over};

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

/// The store forgot the order to drain a stack. Callers must not get a stack that a person works on, so it stays out
/// until a person ends that.
#[test]
fn a_drain_of_a_recovered_plan_lasts_until_a_person_acts() {
    let [stack, other] = [9002, 9012].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let drain = IntentKind::DrainStack { stack };
    let recovered = || {
        let mut world = World::with(|topology, _| {
            let eu_west = topology.regions.get_mut(&region("eu-west")).unwrap();
            eu_west.stacks = vec![stack.into(), other.into()];
        });
        let old = (world.plan().clone(), world.input.memory.clone());
        world.ask_for("alice", drain.clone(), HOUR);
        world.ask_for("alice", IntentKind::DrainEdge { edge: edge("edge-iad") }, HOUR);
        let generation = world.plan().generation;
        world.restored_to(old);
        (world, generation)
    };
    let (mut world, generation) = recovered();
    let is_drained = |world: &World| {
        let edge = world.plan().edges[&edge("edge-iad")] == EdgeState::Drained;
        (world.plan().drained_stacks.contains(&stack), edge)
    };
    assert!(world.changed(ReasonCode::StackDrained) && world.changed(ReasonCode::EdgeDrained));
    assert_eq!(is_drained(&world), (true, true));
    world.jump(2 * HOUR).pass(MINUTE);
    assert_eq!(is_drained(&world), (true, true), "nobody knows when it was to end");
    world.ask("bob", abort(&format!("recovered-{generation}-{stack}")));
    assert_eq!(is_drained(&world), (false, true));
    world.ask("bob", abort(&format!("recovered-{generation}-edge-iad")));
    assert_eq!(is_drained(&world), (false, false));

    // A new order for the same names its end.
    let (mut world, _) = recovered();
    world.ask_for("bob", drain.clone(), HOUR);
    world.jump(HOUR);
    assert_eq!(is_drained(&world), (false, true));

    // A silent edge was lost, and comes back when it gives signs of life.
    let mut world = World::new();
    let old = (world.plan().clone(), world.input.memory.clone());
    world.edges_are_silent(&["edge-dub"], MINUTE).decide();
    world.restored_to(old);
    assert_eq!(world.plan().edges[&edge("edge-dub")], EdgeState::Drained);
    world.edges_are_silent(&[], SECOND).decide();
    assert_eq!(world.plan().edges[&edge("edge-dub")], EdgeState::Serving);
    assert!(world.changed(ReasonCode::EdgeReturned));
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
fn an_old_verdict_decides_nothing() {
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
