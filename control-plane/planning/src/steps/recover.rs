//! A plan that nodes serve and the store lost.
//!
//! Why it is so: docs/decisions/20-nodes-and-control-planes.md.

use std::{collections::BTreeMap, time::Duration};

use topology::{EdgeId, EdgeState, Intent, IntentKind, Plan, Reason, ReasonCode};

use crate::{
    Action, Phase, Report,
    actions::{RECOVERED, STANDING_MAX},
    draft::Draft,
    facts::Facts,
    steps::edges::is_silent,
    texts::changed,
};

/// The life of a drain that only a recovered plan shows. The store forgot its end, so a person ends it; a life that no
/// one outwaits says so.
const RECOVERED_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The next plan follows the plan that nodes serve, when that is newer than the store's.
pub(crate) fn adopt(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let Some(recovered) = &facts.input.recovered else {
        return;
    };
    let ours = facts.input.current.as_ref().map(Plan::number).unwrap_or_default();
    if recovered.number() <= ours {
        return;
    }
    let text = changed::plan_recovered(recovered.number(), ours);
    report.change(Reason::of(ReasonCode::PlanRecovered, text));
    recover_drains(facts, draft, report, recovered);
}

/// Remembers drains that only the recovered plan shows: the store forgot the orders. Sessions must not go back to a
/// stack that a person works on, so stacks and edges that the plan has drained stay so until a person ends it. An edge
/// that is silent was rather lost, and comes back by itself.
fn recover_drains(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report, recovered: &Plan) {
    let now = facts.now;
    let stacks = recovered
        .drained_stacks
        .iter()
        .filter(|stack| facts.input.has_stack(stack));
    let stacks = stacks.map(|stack| IntentKind::DrainStack { stack: *stack });
    let drained = recovered.edges.iter().filter(|(_, it)| **it == EdgeState::Drained);
    let edges: Vec<EdgeId> = drained
        .map(|(edge, _)| edge.clone())
        .filter(|edge| facts.input.topology.edges.contains_key(edge))
        .filter(|edge| !draft.memory.leaves_out(edge))
        .collect();
    let (lost, edges): (Vec<EdgeId>, Vec<EdgeId>) =
        edges.into_iter().partition(|edge| is_silent(facts.input, edge, now));
    let edges = edges.into_iter().map(|edge| IntentKind::DrainEdge { edge });
    let kinds: Vec<IntentKind> = stacks.chain(edges).collect();
    draft.memory.lost_edges.extend(lost.into_iter().map(|edge| (edge, now)));
    let known: Vec<IntentKind> = draft
        .memory
        .running(|_| true)
        .map(|it| it.intent.kind.clone())
        .collect();
    let forgotten = kinds.into_iter().filter(|kind| !known.contains(kind));
    for kind in forgotten.take(STANDING_MAX) {
        let (generation, subject) = (recovered.generation, kind.subject());
        let id = format!("recovered-{generation}-{subject}");
        let text = changed::drain_recovered(&subject, generation, &id);
        let code = match kind {
            IntentKind::DrainEdge { .. } => ReasonCode::EdgeDrained,
            _ => ReasonCode::StackDrained,
        };
        let intent = Intent {
            id: id.clone(),
            kind,
            author: RECOVERED.to_owned(),
            reason: changed::drain_recovered_because(generation),
            created_at: now,
            expires_at: now + RECOVERED_LIFE,
        };
        let action = Action {
            intent,
            phase: Phase::Running,
            owner: facts.input.epoch,
            changed_at: now,
            approved_by: None,
            text: text.clone(),
            spreads: None,
            shown: BTreeMap::new(),
            shares: BTreeMap::new(),
        };
        draft.memory.actions.insert(id, action);
        report.change(Reason::of(code, text));
    }
}
