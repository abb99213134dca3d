//! The orders to drain an edge or a stack. [`crate::steps::edges`] and [`crate::steps::stacks`] carry them out as long
//! as they stand.

use std::net::SocketAddr;

use topology::{EdgeId, EdgeState, IntentKind, Reason, ReasonCode};

use crate::{Phase, draft::Draft, facts::Facts, texts::refused};

pub(super) fn drain_edge(facts: &Facts<'_>, draft: &Draft, kind: &IntentKind, edge: &EdgeId) -> Result<Phase, Reason> {
    let edges = &draft.next.edges;
    if !edges.contains_key(edge) {
        let text = refused::no_such_edge(edge);
        return Err(facts.reason_for(kind, ReasonCode::BadRequest, text));
    }
    let mut others = edges.iter().filter(|(id, _)| *id != edge);
    if !others.any(|(_, state)| *state == EdgeState::Serving) {
        let text = refused::last_edge(edge);
        return Err(facts.reason_for(kind, ReasonCode::LastEdge, text));
    }
    Ok(Phase::Running)
}

pub(super) fn drain_stack(
    facts: &Facts<'_>,
    draft: &Draft,
    kind: &IntentKind,
    stack: &SocketAddr,
) -> Result<Phase, Reason> {
    let mut regions = facts.input.topology.regions.values();
    let Some(region) = regions.find(|region| region.stacks.iter().any(|it| it.address == *stack)) else {
        let text = refused::no_such_stack(*stack);
        return Err(facts.reason_for(kind, ReasonCode::BadRequest, text));
    };
    let mut others = region.stacks.iter().map(|it| it.address).filter(|it| it != stack);
    if !others.any(|it| !draft.next.drained_stacks.contains(&it)) {
        let text = refused::last_stack(*stack, &region.id);
        return Err(facts.reason_for(kind, ReasonCode::LastStack, text));
    }
    Ok(Phase::Running)
}
