//! Edges that are lost: they sent no reports and followed no plans for a while, or most vantages do not reach them at
//! their public addresses. DNS names them no more until they report and are reached again. Their sessions stay, because
//! an edge that only the control plane does not hear, or only new connections do not reach, may serve them well.
//!
//! An edge that a later topology brings is new until it works: DNS names it only then.
//!
//! DNS leaves out at most as many as the policy allows, silent ones first. When all look lost our own view is rather
//! broken: then no further edge is left out.
//!
//! Why it is so: docs/decisions/01-two-levels-of-steering.md.

use std::collections::{BTreeMap, BTreeSet};

use topology::{EdgeId, EdgeState, IntentKind, Moment, Reason, ReasonCode};

use crate::{
    Input, Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    texts::{changed, part, waiting},
};

/// Whether an edge gave no sign of life for so long that it counts as lost. An unknown edge is not lost.
pub(crate) fn is_silent(input: &Input, edge: &EdgeId, now: Moment) -> bool {
    let seen = input.edges.get(edge);
    seen.is_some_and(|seen| now.since(seen.heard_at) >= input.policy.edges.lost_after)
}

/// Whether most vantages have not reached an edge, where devices do, for so long that it counts as lost. Ticks in which
/// too few vantages could tell are no evidence, and do not count.
fn is_unreached(input: &Input, edge: &EdgeId) -> bool {
    let seen = input.edges.get(edge).and_then(|seen| seen.unreached);
    seen.is_some_and(|seen| seen.lasted() >= input.policy.edges.lost_after)
}

/// Whether an edge gave signs of life without a gap, and was reached, for long enough to be named again.
fn is_back(input: &Input, edge: &EdgeId, now: Moment) -> bool {
    let long_enough = input.policy.edges.returned_after;
    let steady = |seen: &crate::EdgeSeen| {
        let is_reached = seen.reached_since.is_none_or(|since| now.since(since) >= long_enough);
        seen.heard_at.since(seen.heard_since) >= long_enough && seen.unreached.is_none() && is_reached
    };
    !is_silent(input, edge, now) && input.edges.get(edge).is_some_and(steady)
}

/// Those of the lost or new edges that are heard and reached, and when DNS names them if they stay so.
pub(crate) fn returning<'i>(
    input: &'i Input,
    edges: impl Iterator<Item = &'i EdgeId>,
    now: Moment,
) -> impl Iterator<Item = (&'i EdgeId, Moment)> {
    let heard = edges.filter(move |edge| !is_silent(input, edge, now));
    let again = |edge: &'i EdgeId| {
        let seen = input.edges.get(edge).filter(|seen| seen.unreached.is_none())?;
        let since = seen
            .reached_since
            .map_or(seen.heard_since, |reached| reached.max(seen.heard_since));
        Some((edge, since + input.policy.edges.returned_after))
    };
    heard.filter_map(again)
}

/// Finds the new edges that were seen to work. [`set`] puts the result into the plan.
pub(crate) fn find_proven(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let (input, now) = (facts.input, facts.now);
    let edges = &input.topology.edges;
    let new = &mut draft.memory.new_edges;
    new.retain(|edge| edges.contains_key(edge) && !is_back(input, edge, now));
    if new.len() == edges.len() {
        // As with the first plan: edges that nobody has seen work are better than none.
        new.clear();
    }
    let named_at: BTreeMap<&EdgeId, Moment> = returning(input, new.iter(), now).collect();
    for edge in &*new {
        let reason = match named_at.get(edge) {
            Some(at) if *at > now => {
                let text = waiting::new_edge_works(edge, *at);
                Reason::of(ReasonCode::EdgeNew, text).until(*at)
            }
            _ => {
                let seconds = input.policy.edges.returned_after.as_secs();
                Reason::of(ReasonCode::EdgeNew, waiting::new_edge_not_seen_to_work(edge, seconds))
            }
        };
        report.wait(reason);
    }
}

/// Finds the edges that are lost, and those of them that are back. [`set`] puts the result into the plan.
pub(crate) fn find_lost(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let (input, now) = (facts.input, facts.now);
    let edges = &input.topology.edges;
    draft.memory.lost_edges.retain(|edge, _| edges.contains_key(edge));
    let lost = &draft.memory.lost_edges;
    let back: Vec<EdgeId> = lost.keys().filter(|edge| is_back(input, edge, now)).cloned().collect();
    let is_lost = |edge: &EdgeId| is_silent(input, edge, now) || is_unreached(input, edge);
    let is_news = |edge: &&EdgeId| !draft.memory.leaves_out(edge) && is_lost(edge);
    let mut lately: Vec<EdgeId> = edges.keys().filter(is_news).cloned().collect();
    // A silent edge is more certainly gone than one that vantages do not reach, and so is one that is silent for
    // longer.
    let heard_at = |edge: &EdgeId| input.edges.get(edge).map(|seen| seen.heard_at);
    lately.sort_by_key(|edge| (!is_silent(input, edge, now), heard_at(edge)));
    // A freeze or an automation that is off does not keep an edge out of DNS: an edge that works again takes nothing
    // from another, and callers have one more entry.
    for edge in &back {
        draft.memory.lost_edges.remove(edge);
    }
    for (edge, again) in returning(input, draft.memory.lost_edges.keys(), now) {
        let text = waiting::edge_returns(&evidence_of_return(facts, edge), again);
        report.wait(Reason::of(ReasonCode::EdgeReturned, text).until(again));
    }
    if lately.is_empty() {
        return;
    }
    if let Some(stopped) = Gate::Automation.stop(facts, &draft.memory) {
        for edge in &lately {
            let text = waiting::lost_edge_stays(&evidence_of_loss(facts, edge), &stopped.text);
            report.wait(Reason::of(ReasonCode::EdgeLost, text));
        }
        return;
    }
    let drained = draft
        .memory
        .running(|kind| matches!(kind, IntentKind::DrainEdge { .. }));
    let drained = drained.filter_map(|action| match &action.intent.kind {
        IntentKind::DrainEdge { edge } => Some(edge),
        _ => None,
    });
    // New edges were never named, so they do not count among those that are.
    let count = edges
        .keys()
        .filter(|edge| !draft.memory.new_edges.contains(*edge))
        .count();
    let drained: BTreeSet<EdgeId> = drained
        .filter(|edge| !draft.memory.new_edges.contains(*edge))
        .cloned()
        .collect();
    let most = (input.policy.edges.lost_max * count as f64).floor() as usize;
    let look_lost = draft.memory.lost_edges.len() + lately.len();
    for edge in lately {
        let lost = &draft.memory.lost_edges;
        let out: BTreeSet<&EdgeId> = lost.keys().chain(&drained).chain([&edge]).collect();
        let why_not = if look_lost == count {
            Some(waiting::all_edges_look_lost(count))
        } else if lost.len() >= most {
            Some(waiting::too_many_edges_look_lost(look_lost, count, most))
        } else if out.len() >= count {
            Some(waiting::no_other_edge_left())
        } else {
            None
        };
        match why_not {
            Some(why_not) => {
                let text = waiting::lost_edge_stays(&evidence_of_loss(facts, &edge), &why_not);
                report.wait(Reason::of(ReasonCode::EdgeFloor, text));
            }
            None => {
                draft.memory.lost_edges.insert(edge, now);
            }
        }
    }
}

/// Leaves edges out of DNS answers while they are lost, or while an order drains them; an order never drains the last
/// one.
pub(crate) fn set(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let drained: BTreeMap<_, _> = draft
        .memory
        .running(|kind| matches!(kind, IntentKind::DrainEdge { .. }))
        .filter_map(|action| match &action.intent.kind {
            IntentKind::DrainEdge { edge } => Some((edge.clone(), action.intent.clone())),
            _ => None,
        })
        .collect();
    let memory = &draft.memory;
    let is_left = |edge: &EdgeId| drained.contains_key(edge) || memory.leaves_out(edge);
    let none_left = draft.next.edges.keys().all(is_left);
    let mut changed = Vec::new();
    // An edge that came back by itself and was refused with its plan comes back when automation does.
    let rests = draft.memory.taken_back.is_some() && !draft.carries_request(facts.input);
    for (edge, state) in &mut draft.next.edges {
        let is_back = facts.input.memory.leaves_out(edge) && !memory.leaves_out(edge);
        if rests && *state == EdgeState::Drained && !is_back {
            continue;
        }
        // The topology may have lost the edges that were not drained.
        let wanted = if memory.leaves_out(edge) || (drained.contains_key(edge) && !none_left) {
            EdgeState::Drained
        } else {
            EdgeState::Serving
        };
        if *state != wanted {
            *state = wanted;
            changed.push((edge.clone(), wanted));
        }
    }
    for (edge, state) in changed {
        let was_lost = facts.input.memory.lost_edges.contains_key(&edge);
        let (code, text) = match state {
            EdgeState::Drained if draft.memory.lost_edges.contains_key(&edge) => {
                let text = changed::edge_lost(&evidence_of_loss(facts, &edge));
                (ReasonCode::EdgeLost, text)
            }
            EdgeState::Serving if facts.input.memory.new_edges.contains(&edge) => {
                let text = if is_back(facts.input, &edge, facts.now) {
                    changed::new_edge_works(&edge)
                } else {
                    changed::new_edge_is_the_only_one(&edge)
                };
                (ReasonCode::EdgeNew, text)
            }
            EdgeState::Serving if was_lost => {
                let text = changed::edge_returned(&evidence_of_return(facts, &edge));
                (ReasonCode::EdgeReturned, text)
            }
            EdgeState::Drained => {
                let by = drained.get(&edge).map(|order| changed::edge_drained(order, &edge));
                (ReasonCode::EdgeDrained, by.unwrap_or_default())
            }
            EdgeState::Serving => (ReasonCode::EdgeRestored, changed::edge_restored(&edge)),
        };
        report.change(Reason::of(code, text));
    }
}

/// The evidence that an edge is lost, in words.
fn evidence_of_loss(facts: &Facts<'_>, edge: &EdgeId) -> String {
    let seen = facts.input.edges.get(edge);
    if !is_silent(facts.input, edge, facts.now)
        && let Some(unreached) = seen.and_then(|seen| seen.unreached)
    {
        return part::edge_unreached(edge, unreached.by, unreached.of, unreached.lasted());
    }
    part::edge_silent(edge, seen.map(|seen| facts.now.since(seen.heard_at)))
}

/// The evidence that a lost edge works again: vantages reach it, it reports, or both.
fn evidence_of_return(facts: &Facts<'_>, edge: &EdgeId) -> String {
    let lost_at = facts.input.memory.lost_edges.get(edge).copied().unwrap_or(facts.now);
    let seen = facts.input.edges.get(edge);
    // An edge that was only out of reach was heard all the time.
    let was_silent = seen.is_none_or(|seen| seen.heard_since > lost_at);
    let is_reached_anew = seen
        .and_then(|seen| seen.reached_since)
        .is_some_and(|since| since > lost_at);
    part::edge_works_again(edge, was_silent, is_reached_anew)
}
