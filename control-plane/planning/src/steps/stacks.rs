//! Drained stacks, and stacks that answer and do not do their work. Such a stack keeps its sessions: an edge cannot see
//! the trouble inside a session and moves none, and one bad stack is no reason to leave a region. An operator reads of
//! it and decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{IntentKind, Reason, ReasonCode};
use verdict::{Ailment, Trouble};

use crate::{
    Report,
    draft::Draft,
    facts::Facts,
    texts::{changed, part, waiting},
};

/// Stacks of a region that fail and are named one by one.
const STACKS_NAMED: usize = 5;

/// Drains stacks while an order stands for it, but never the last one of a region.
pub(crate) fn set(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let asked: BTreeMap<_, _> = draft
        .memory
        .running(|kind| matches!(kind, IntentKind::DrainStack { .. }))
        .filter_map(|action| match &action.intent.kind {
            IntentKind::DrainStack { stack } => Some((*stack, action.intent.clone())),
            _ => None,
        })
        .collect();
    // Stacks that the plan which came back has drained stay drained while automation rests.
    let rests = draft.memory.taken_back.is_some() && !draft.carries_request(facts.input);
    let mut drained = BTreeSet::new();
    let mut changed = Vec::new();
    for region in facts.input.topology.regions.values() {
        let stacks = region.stacks.iter().map(|stack| stack.address);
        let is_drained =
            |stack: &SocketAddr| asked.contains_key(stack) || (rests && draft.next.drained_stacks.contains(stack));
        let of_region: BTreeSet<SocketAddr> = stacks.filter(is_drained).collect();
        if of_region.len() < region.stacks.len() {
            drained.extend(of_region);
        }
        for stack in &region.stacks {
            let address = stack.address;
            let (was, is) = (draft.next.drained_stacks.contains(&address), drained.contains(&address));
            if was != is {
                changed.push((region.id.clone(), address, is));
            }
        }
    }
    draft.next.drained_stacks = drained;
    for (region, stack, is_drained) in changed {
        let (code, text) = if is_drained {
            let by = asked.get(&stack).map(|order| changed::stack_drained(order, stack));
            (ReasonCode::StackDrained, by.unwrap_or_default())
        } else {
            (ReasonCode::StackRestored, changed::stack_restored(stack))
        };
        report.change(Reason::of(code, text).about(&region));
    }
}

/// Names each such stack, the trouble of its callers, and the command that helps them.
pub(crate) fn advise(facts: &Facts<'_>, draft: &Draft, report: &mut Report) {
    let input = facts.input;
    for (id, verdict) in &input.verdicts {
        let region = input.topology.regions.get(id);
        let Some(region) = region.filter(|_| !facts.is_stale(id) && draft.next.uses(id)) else {
            continue;
        };
        let stacks = draft.next.stacks_with_sessions(region);
        let takes = |stack: &SocketAddr| stacks.iter().any(|it| it.address == *stack);
        let ailing: Vec<_> = verdict.ailing_stacks.iter().filter(|(it, _)| takes(it)).collect();
        let (of, more) = (stacks.len(), ailing.len().saturating_sub(STACKS_NAMED));
        let mut texts = Vec::new();
        for (number, (stack, ailment)) in ailing.iter().take(STACKS_NAMED).enumerate() {
            let region_fails = verdict.broken == Some(ailment.component);
            let more = if number + 1 == STACKS_NAMED { more } else { 0 };
            let (stack, trouble) = ((**stack, of), part::trouble(**ailment));
            texts.push(waiting::stack_fails(stack, trouble, (id, region_fails), more));
        }
        // A region with one stack, or seen by vantages that do not tell stacks apart.
        let is_named = |component| ailing.iter().any(|(_, ailment)| ailment.component == component);
        if let Some(component) = verdict.broken.filter(|it| !is_named(*it)) {
            let trouble = Trouble::Fails;
            let trouble = part::trouble(Ailment { component, trouble });
            texts.push(waiting::region_fails(id, trouble));
        }
        for text in texts {
            report.wait(facts.reason(ReasonCode::StackFails, id, text));
        }
    }
}
