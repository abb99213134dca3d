//! Plans that come late, and a clean-up behind them. Resolvers in front of these answers are played by the scenario
//! `edge-dies-behind-resolvers`.

#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{net::IpAddr, time::Duration};

use steering::{Client, Lookup, Steering, Type, labels};
use topology::{EdgeId, EdgeState, Moment, Snapshot, fixtures::three_primaries};

const ZONE: &str = "voice.meridian.test";
/// A day after the plan of the fixture: the world is steady.
const CALM: Moment = Moment(86_400_000);

fn without(snapshot: &Snapshot, edge: &str, decided: Moment) -> Snapshot {
    let mut next = snapshot.clone();
    next.plan.generation += 1;
    next.plan.created_at = decided;
    next.plan.edges.insert(EdgeId::new(edge).unwrap(), EdgeState::Drained);
    next
}

/// The interleaving of the outage of 2025: a plan that was decided long ago arrives after a newer one, and then the older plans
/// are cleaned up. Here the number of a plan decides and not its arrival, and no plan is ever applied that names no edge.
#[test]
fn a_delayed_older_plan_and_a_clean_up_change_nothing() {
    let old = three_primaries();
    let new = without(&old, "edge-dub", CALM);
    let mut steering = Steering::default();
    let first = steering.compile(&old, CALM);
    let second = steering.compile(&new, CALM);
    assert!(second.number() > first.number());
    // The delayed one is compiled, and its number gives it away: the responder keeps the newer answers.
    let delayed = steering.compile(&old, CALM + Duration::from_secs(60));
    assert!(delayed.number() < second.number());
    // The clean-up: a plan without a serving edge is no valid plan, and if it passed all the same, clients keep an edge.
    let mut cleaned = new.clone();
    cleaned.plan.generation += 1;
    cleaned
        .plan
        .edges
        .values_mut()
        .for_each(|state| *state = EdgeState::Drained);
    assert!(
        cleaned
            .validate()
            .unwrap_err()
            .to_string()
            .contains("the plan has no serving edge")
    );
    let answers = steering.compile(&cleaned, CALM + Duration::from_secs(61));
    let client = Client::behind(IpAddr::from([10, 1, 1, 1]));
    let answer = answers.lookup(&labels(ZONE), Type::A, &client, usize::MAX).unwrap();
    assert!(matches!(answer.lookup, Lookup::Found { .. }), "{answer:?}");
}
