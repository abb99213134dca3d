//! Orders that are decided and not in force yet, and their reasons for the author.

use planning::{Action, Phase, waited_for};
use topology::{EdgeId, ReasonCode, RegionState};
use verdict::Health;

use crate::world::{MINUTE, SECOND, World, approve, edge, fail_over, promote, region, restore, roll_out, switch_over};

fn action<'w>(world: &'w World, id: &str) -> &'w Action {
    &world.input.memory.actions[id]
}

/// Most edges apply the plan in force after this many seconds.
fn spread(world: &mut World, seconds: u64) {
    world.now = world.now + SECOND * seconds as u32;
    world.refresh();
    world.input.applied = Some(world.plan().generation);
    world.decide();
}

#[test]
fn an_order_runs_until_most_edges_apply_its_plan() {
    let mut world = World::new();
    let asked = world.ask("alice", fail_over("us-east"));
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
    assert_eq!(action(&world, &asked).phase_in_force(), Phase::Running);
    world.input.applied = Some(world.plan().generation - 1);
    world.pass(MINUTE);
    assert_eq!(
        action(&world, &asked).phase_in_force(),
        Phase::Running,
        "they have the one before"
    );
    let plans = world.plans.len();
    spread(&mut world, 3);
    assert_eq!(action(&world, &asked).phase_in_force(), Phase::Done);
    let done = world
        .report
        .changed
        .iter()
        .find(|it| it.code == ReasonCode::OrderDone)
        .unwrap();
    assert_eq!(
        done.text,
        "failover of us-east by alice is done: most edges apply plan 2, 63.0 s after it was ordered"
    );
    assert_eq!(world.plans.len(), plans, "nodes need no plan for it");
    world.decide();
    assert!(!world.changed(ReasonCode::OrderDone), "it is said once");
}

#[test]
fn an_order_for_what_is_so_already_waits_for_the_edges_too() {
    // The first order is still on its way to the edges; or no person waits, because none ordered it.
    let by_a_person = |world: &mut World| drop(world.ask("alice", fail_over("us-east")));
    let by_itself = |world: &mut World| {
        world.sees("us-east", Health::Down).pass(10 * SECOND);
    };
    let leave: [&dyn Fn(&mut World); 2] = [&by_a_person, &by_itself];
    for leave in leave {
        let mut world = World::new();
        leave(&mut world);
        let (generation, plans) = (world.plan().generation, world.plans.len());
        world.input.applied = Some(generation - 1);
        world.now = world.now + SECOND;
        let again = world.ask("bob", fail_over("us-east"));
        assert_eq!(world.plans.len(), plans, "it is so already");
        assert_eq!(
            action(&world, &again).phase_in_force(),
            Phase::Running,
            "no edge has it"
        );
        world.input.applied = Some(generation - 1);
        world.pass(10 * SECOND);
        assert_eq!(action(&world, &again).phase_in_force(), Phase::Running);
        spread(&mut world, 3);
        assert_eq!(action(&world, &again).phase_in_force(), Phase::Done);
        let told = world
            .report
            .changed
            .iter()
            .filter(|it| it.code == ReasonCode::OrderDone);
        let told: Vec<&str> = told.map(|it| it.text.as_str()).collect();
        let text = format!("by bob is done: most edges apply plan {generation}, 13.0 s after it was ordered");
        assert!(told.iter().any(|it| it.ends_with(&text)), "{told:?}");
    }
}

#[test]
fn an_order_that_takes_steps_waits_for_the_plan_of_its_last_one() {
    let mut world = World::new();
    let asked = world.ask("alice", switch_over("us-east"));
    assert_eq!(action(&world, &asked).spreads, None, "it goes on anyway");
    world.pass(5 * MINUTE);
    let last = world.plan().generation;
    assert_eq!(
        (action(&world, &asked).phase, action(&world, &asked).spreads),
        (Phase::Done, Some(last))
    );
    spread(&mut world, 1);
    assert_eq!(action(&world, &asked).phase_in_force(), Phase::Done);
}

#[test]
fn an_action_without_a_new_plan_or_an_author_waits_for_no_edge() {
    let mut world = World::new();
    world.sees("eu-west", Health::Down).pass(10 * SECOND);
    assert_eq!(world.state("eu-west"), RegionState::Evacuated);
    world.ask_for("alice", topology::IntentKind::Freeze, MINUTE);
    let asked = world.ask("alice", topology::IntentKind::Unfreeze);
    assert_eq!(world.input.memory.spreads(), None);
    assert_eq!(action(&world, &asked).phase_in_force(), Phase::Done);
}

#[test]
fn nobody_waits_for_a_lost_or_a_drained_edge() {
    let mut world = World::new();
    let named = |world: &World| waited_for(&world.input).map(EdgeId::to_string).collect::<Vec<_>>();
    assert_eq!(named(&world), ["edge-dub", "edge-iad"]);
    world.edges_are_silent(&["edge-dub"], MINUTE).decide();
    assert_eq!(named(&world), ["edge-iad"]);
}

#[test]
fn a_recovery_is_measured_against_what_its_data_allow() {
    for (seconds, end) in [
        (
            20,
            "after us-east turned bad, within the RTO of every class of its data",
        ),
        (301, "after us-east turned bad, later than the RTO of profiles (300 s)"),
    ] {
        let mut world = World::new();
        world.lags("us-east", SECOND).sees("us-east", Health::Down);
        world.input.policy.safety.automation = false;
        world.pass(10 * SECOND);
        world.ask("alice", promote("us-east", None));
        assert!(world.changed(ReasonCode::Promoted), "{:#?}", world.report);
        spread(&mut world, seconds);
        let done = world
            .report
            .changed
            .iter()
            .find(|it| it.code == ReasonCode::OrderDone)
            .unwrap();
        assert!(done.text.ends_with(end), "{}", done.text);
    }
}

#[test]
fn an_approver_reads_where_sessions_go() {
    let mut world = World::with(|topology, _| {
        topology.regions.get_mut(&region("us-east")).unwrap().sessions_max = 1_500;
        topology.regions.get_mut(&region("us-west")).unwrap().sessions_max = 1_000;
        topology.regions.get_mut(&region("eu-central")).unwrap().sessions_max = 2_000;
    });
    world.ask("alice", fail_over("ap-south"));
    let asked = world.ask("alice", fail_over("us-east"));
    let shown = world.shown(&asked).unwrap();
    let text = format!(
        "failover by alice needs a second person, because ap-south is away already: `meridian approve {asked} \
         --shown {shown} --reason WHY` moves us-east (up to 1,500 sessions) to us-west, then eu-central"
    );
    assert_eq!(world.waiting(ReasonCode::NeedsApproval).text, text);
    assert_eq!(action(&world, &asked).text, text, "as status and why show it");
}

#[test]
fn the_same_order_twice_points_at_the_one_that_waits() {
    let mut world = World::new();
    world.ask("alice", fail_over("ap-south"));
    let first = world.ask("alice", fail_over("us-east"));
    let second = world.ask("carol", fail_over("us-east"));
    assert_eq!(world.phase(&second), None);
    let denied = &world.report.denied[0];
    assert_eq!(denied.code, ReasonCode::AskedAlready);
    let text = format!(
        "it waits for a second person: `meridian approve {first} --reason WHY` carries it out, `meridian abort \
         {first} --reason WHY` ends it"
    );
    assert!(
        denied.text.starts_with("alice asked for the same at ") && denied.text.ends_with(&text),
        "{}",
        denied.text
    );
    // An order of another kind does not count.
    world.ask("carol", fail_over("eu-west"));
    assert!(world.waits(ReasonCode::NeedsApproval));
    world.ask("bob", approve(&first));
    assert_eq!(world.state("us-east"), RegionState::Evacuated);
}

#[test]
fn a_refusal_names_only_what_keeps_this_order_back() {
    let mut world = World::new();
    world.sees("us-east", Health::Down).sees("eu-west", Health::Down);
    world.pass(10 * SECOND);
    assert!(world.refused(ReasonCode::CorrelatedEvidence), "automation is held");
    world.ask("alice", roll_out("v9"));
    let denied: Vec<ReasonCode> = world.report.denied.iter().map(|it| it.code).collect();
    assert_eq!(denied, [ReasonCode::BadRequest]);
    world.ask("alice", restore("us-east"));
    assert!(world.report.denied.is_empty(), "it serves all its sessions already");
}

#[test]
fn an_edge_that_is_heard_again_says_when_dns_names_it() {
    let mut world = World::new();
    world.edges_are_silent(&["edge-dub"], MINUTE).decide();
    let heard = world.now + 5 * SECOND;
    world.now = heard;
    let seen = planning::EdgeSeen::heard(heard, heard);
    world.input.edges.insert(edge("edge-dub"), seen);
    world.decide();
    let waiting = world.waiting(ReasonCode::EdgeReturned);
    let again = heard + 20 * SECOND;
    assert_eq!(
        waiting.text,
        format!("edge-dub is heard again, and DNS names it again at {again} by itself, if it goes on working")
    );
    assert_eq!(waiting.until, Some(again));
    assert_eq!(
        planning::next_wake(&world.input, world.now),
        Some(again),
        "and it is looked at then"
    );
}

#[test]
fn a_topology_that_changed_says_in_what() {
    let mut world = World::new();
    let (before, policy) = (world.input.topology.clone(), world.input.policy.clone());
    let topology = &mut world.input.topology;
    topology.regions.get_mut(&region("us-west")).unwrap().sessions_max = 400;
    topology.edges.get_mut(&edge("edge-dub")).unwrap().port = 8081;
    world.input.policy.dns.ttl = 20 * SECOND;
    let after = (&world.input.topology, &world.input.policy);
    world.input.differences = planning::differences((&before, &policy), after);
    world.decide();
    let changed = world
        .report
        .changed
        .iter()
        .find(|it| it.code == ReasonCode::TopologyChanged)
        .unwrap();
    assert_eq!(
        changed.text,
        "edge edge-dub has another port; region us-west has another sessions_max; the DNS TTL is 20 s in place of 15 s"
    );
    // A plan by hand in the store was never applied, so its state before is unknown.
    world.input.differences.clear();
    world.input.policy.dns.ttl = 30 * SECOND;
    world.decide();
    let changed = world
        .report
        .changed
        .iter()
        .find(|it| it.code == ReasonCode::TopologyChanged)
        .unwrap();
    assert_eq!(changed.text, "the topology, the DNS TTL or the probe policy changed");
}
