//! Drained stacks, and stacks that answer and do not do their work. Such a stack keeps its sessions: an edge cannot see
//! the trouble inside a session and moves none, and one bad stack is no reason to leave a region. An operator reads of
//! it and decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{Component, IntentKind, Reason, ReasonCode};
use verdict::{Ailment, Trouble};

use crate::{Report, draft::Draft, facts::Facts};

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
            let by = asked.get(&stack).map(|it| {
                let (author, reason, until) = (&it.author, &it.reason, it.expires_at);
                format!("drain by {author}: {reason}; {stack} gets no sessions until {until}")
            });
            (ReasonCode::StackDrained, by.unwrap_or_default())
        } else {
            (ReasonCode::StackRestored, format!("{stack} gets sessions again"))
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
            let (what, callers) = describe(**ailment);
            let help = if verdict.broken == Some(ailment.component) {
                format!(
                    "too few of the others do it, and no rule leaves {id} for that: `meridian failover {id} --reason \
                     WHY` does"
                )
            } else {
                format!("`meridian drain --stack {stack} --for 2h --reason WHY` moves them to the others")
            };
            let others = if more > 0 && number + 1 == STACKS_NAMED {
                format!("; {more} more stacks of {id} fail too")
            } else {
                String::new()
            };
            texts.push(format!(
                "stack {stack} (one of {of}) answers and {what}: callers whose sessions are there {callers}; {help}{others}"
            ));
        }
        // A region with one stack, or seen by vantages that do not tell stacks apart.
        let is_named = |component| ailing.iter().any(|(_, ailment)| ailment.component == component);
        if let Some(component) = verdict.broken.filter(|it| !is_named(*it)) {
            let trouble = Trouble::Fails;
            let (what, callers) = describe(Ailment { component, trouble });
            texts.push(format!(
                "{id} answers and {what}: its callers {callers}, and no rule leaves it for that: `meridian failover {id} --reason \
                     WHY` does"
            ));
        }
        for text in texts {
            report.wait(facts.reason(ReasonCode::StackFails, id, text));
        }
    }
}

/// The trouble, and its effect on callers.
fn describe(ailment: Ailment) -> (&'static str, &'static str) {
    match (ailment.component, ailment.trouble) {
        (Component::Asr, Trouble::Fails) => ("does not recognise speech", "are not understood"),
        (Component::Asr, Trouble::Slow) => ("recognises speech too slowly", "wait too long"),
        (Component::Nlu, Trouble::Fails) => ("does not make sense of what it hears", "are not understood"),
        (Component::Skills, Trouble::Fails) => ("does not do what it is asked to", "get no answer"),
        (Component::Tts, Trouble::Fails) => ("does not speak", "hear no reply"),
        (Component::SessionStore, Trouble::Fails) => ("keeps no sessions", "are not remembered when they call again"),
        // Neither is judged so; a newer verdict may.
        (_, Trouble::Slow) => ("is too slow", "wait too long"),
        (Component::Gateway, Trouble::Fails) => ("fails", "are not served"),
    }
}
