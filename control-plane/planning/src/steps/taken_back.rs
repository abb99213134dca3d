//! A plan in force that nodes refuse, and the return to the one before it.
//!
//! Why it is so: docs/decisions/19-what-a-node-applies.md.

use topology::{EdgeId, EdgeState, IntentKind, NodeId, Plan, Reason, ReasonCode, RegionId};
use verdict::Health;

use crate::{
    Action, PLANNER, Phase, Refusal, Report,
    actions::TakenBack,
    draft::{Draft, differ_only_in_number},
    facts::Facts,
    input::{REFUSALS_QUOTED, quoted},
    shares::total_at,
    texts::{changed, part, waiting},
};

/// Fewest edges whose refusal takes a plan back: one alone may be broken itself.
const REFUSING_EDGES_MIN: usize = 2;

/// Takes the plan in force back when a majority of the edges refuses it: the last plan that all of them had comes back,
/// whole and under a new number. Each node keeps its last good plan, so fewer refusals are the trouble of those nodes,
/// and are shown. A plan that a person ordered, or that leaves a region that is down, is never taken back.
pub(crate) fn take_back(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let (Some(refusal), Some(current)) = (&facts.input.refusal, &facts.input.current) else {
        return;
    };
    if refusal.number != current.number() || refusal.nodes.is_empty() {
        return;
    }
    let evidence: Vec<String> = refusal
        .nodes
        .iter()
        .take(REFUSALS_QUOTED)
        .map(|(node, why)| part::node_says(node, quoted(why)))
        .collect();
    let who = describe_refusal(refusal);
    let policy = &facts.input.policy.publish;
    // A name server routes nothing, so its refusal does not count; neither does an edge that was not yet seen to work.
    let edges = facts.input.topology.edges.keys();
    let edges: Vec<&EdgeId> = edges.filter(|edge| !draft.memory.new_edges.contains(*edge)).collect();
    let is_edge = |node: &&NodeId| edges.iter().any(|edge| edge.as_str() == node.as_str());
    let refusing = refusal.nodes.keys().filter(is_edge).count();
    let share = refusing as f64 / edges.len().max(1) as f64;
    let is_majority = refusing >= REFUSING_EDGES_MIN && share > policy.refusals_max.max(0.5);
    let usable = refusal.acknowledged.as_ref();
    let usable = usable.filter(|it| it.documents == draft.next.documents && it.generation < current.generation);
    // A node that refuses a plan which it applied before is broken itself; the same plan again would change nothing.
    let usable = usable.filter(|good| !differ_only_in_number(good, current));
    // One refusal is answered once, also when the answer is the plan in force.
    let answered = draft.memory.taken_back.as_ref().map(|it| it.generation);
    let usable = usable.filter(|_| answered != Some(current.generation));
    let Some(good) = usable.filter(|_| is_majority) else {
        let all = edges.len();
        let text = waiting::refused_by_few(&who, refusing, all);
        return report.wait(Reason::of(ReasonCode::RefusedByNodes, text).with(evidence));
    };
    if let Some(why) = reason_to_stand(facts, draft, good, current) {
        let text = waiting::refused_and_stays(&who, &why);
        return report.wait(Reason::of(ReasonCode::RefusedByNodes, text).with(evidence));
    }
    // A rollout that was rolled back or aborted stays so: no user goes back to a version that was found bad.
    let ended = |id: &str| matches!(draft.memory.actions.get(id), Some(it) if it.phase == Phase::Aborted);
    draft.next = Plan {
        generation: draft.next.generation,
        epoch: draft.next.epoch,
        created_at: draft.next.created_at,
        rollout: good.rollout.clone().filter(|it| !ended(&it.action)),
        ..good.clone()
    };
    // An edge that the good plan names is not lost for the plan: else this decision would leave it out again, and the
    // next one would take that back again.
    let is_out = |edge: &EdgeId| good.edges.get(edge) == Some(&EdgeState::Drained);
    draft.memory.lost_edges.retain(|edge, _| is_out(edge));
    let until = facts.now + policy.hold;
    let first = refusal.nodes.values().next().map(|why| quoted(why).to_owned());
    draft.memory.taken_back = Some(TakenBack {
        generation: current.generation,
        until,
        why: first.unwrap_or_default(),
    });
    let text = changed::plan_taken_back(&who, good.generation, until);
    report.change(Reason::of(ReasonCode::PlanTakenBack, text).with(evidence).until(until));
}

/// The reason for which a plan is not taken back for an earlier one, even if every node refuses it; none when it may be.
fn reason_to_stand(facts: &Facts<'_>, draft: &Draft, good: &Plan, current: &Plan) -> Option<String> {
    let percent = |plan: &Plan, primary: &RegionId, target: &RegionId| {
        let shares = plan.routes.get(primary).map(Vec::as_slice).unwrap_or_default();
        total_at(shares, target)
    };
    for (primary, shares) in &good.routes {
        let back = shares
            .iter()
            .map(|share| &share.region)
            .filter(|it| percent(good, primary, it) > percent(current, primary, it));
        for target in back {
            if facts.last_known(target) == Some(Health::Down) {
                return Some(part::leaves_dead_region(primary, target));
            }
        }
    }
    let differs = |region: &RegionId| {
        let state = |plan: &Plan| plan.regions.get(region).map(|it| it.state);
        state(good) != state(current)
    };
    let carries = |action: &Action| match &action.intent.kind {
        IntentKind::Failover { region, .. }
        | IntentKind::Switchover { region, .. }
        | IntentKind::Restore { region, .. } => differs(region),
        IntentKind::Rollout { .. } => good.rollout != current.rollout,
        IntentKind::DrainEdge { .. } | IntentKind::DrainStack { .. } | IntentKind::Abort { .. } => true,
        IntentKind::Freeze
        | IntentKind::Unfreeze
        | IntentKind::Override { .. }
        | IntentKind::Ack { .. }
        | IntentKind::Approve { .. } => false,
    };
    let ordered = draft.memory.actions.values().find(|action| {
        let is_new = action.changed_at >= good.created_at && matches!(action.phase, Phase::Done | Phase::Aborted);
        let goes_on =
            action.phase == Phase::Running && (action.changed_at >= good.created_at || !action.intent.kind.stands());
        action.intent.author != PLANNER && (is_new || goes_on) && carries(action)
    })?;
    let intent = &ordered.intent;
    Some(part::was_ordered(
        &intent.author,
        intent.kind.as_str(),
        &intent.kind.subject(),
    ))
}

fn describe_refusal(refusal: &Refusal) -> String {
    let named: Vec<&str> = refusal.nodes.keys().take(REFUSALS_QUOTED).map(NodeId::as_str).collect();
    part::nodes_refuse(&named, refusal.nodes.len() - named.len(), refusal.number.generation)
}
