//! Orders on their way to the edges. A plan that no edge has moves no session, so an order is done when most of the
//! edges that DNS names apply its plan, and the decision that notes it says how long that took.
//!
//! Why it is so: docs/decisions/17-orders-of-people.md.

use topology::{EdgeId, EdgeState, IntentKind, Moment, Reason, ReasonCode, RegionId};

use crate::{
    Action, Input, Memory, PLANNER, Phase, RECOVERED, Report,
    draft::Draft,
    facts::Facts,
    texts::{changed, part},
};

impl Action {
    /// The phase for its author: an order that is decided still runs until most edges apply its plan.
    pub fn phase_in_force(&self) -> Phase {
        match (self.phase, self.spreads) {
            (Phase::Done, Some(_)) => Phase::Running,
            (phase, _) => phase,
        }
    }
}

impl Memory {
    /// The newest plan that an order waits for, if one does.
    pub fn spreads(&self) -> Option<u64> {
        self.actions.values().filter_map(|action| action.spreads).max()
    }
}

/// The edges that an order waits for: those that DNS names. A lost edge applies nothing until it is back, and then it
/// gets the newest plan first; a drained one takes no new sessions. Counting them would keep an order waiting for a
/// dead edge for ever.
pub fn waited_for(input: &Input) -> impl Iterator<Item = &EdgeId> {
    let lost = &input.memory.lost_edges;
    let edges = input.current.iter().flat_map(|plan| &plan.edges);
    let named = edges.filter(|(edge, state)| **state == EdgeState::Serving && !lost.contains_key(*edge));
    named.map(|(edge, _)| edge)
}

/// The plan that carries out the orders of a decision, by its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The one that this decision makes.
    Next(u64),
    /// The plan in force: it had the ordered state already.
    InForce(u64),
}

/// Ends the wait of orders whose plan most edges apply.
pub(crate) fn note_done(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let Some(applied) = facts.input.applied else { return };
    let now = facts.now;
    let actions = draft.memory.actions.values_mut();
    let there = actions.filter(|action| action.spreads.is_some_and(|plan| plan <= applied));
    let mut done = Vec::new();
    for action in there {
        let plan = action.spreads.take().unwrap_or_default();
        action.changed_at = now;
        done.push((action.intent.clone(), plan));
    }
    for (intent, plan) in done {
        let was_so = facts.input.current.as_ref();
        let was_so = was_so.is_some_and(|it| it.generation == plan && it.created_at < intent.created_at);
        let took = match intent.kind.region().filter(|_| !was_so) {
            Some(region) => recovery(facts, draft, region, intent.created_at),
            None => part::took(now.since(intent.created_at), None),
        };
        let text = changed::order_done(&intent, plan, &took);
        report.change(Reason::of(ReasonCode::OrderDone, text).about(intent.kind.region()));
    }
}

/// The time that an order took, beside the RTO of data that another region writes by now.
fn recovery(facts: &Facts<'_>, draft: &Draft, region: &RegionId, ordered: Moment) -> String {
    let turned_bad = facts.believed.get(region).and_then(|it| it.bad_since);
    let (took, from) = match turned_bad.map(|tick| tick.start()).filter(|bad| *bad < ordered) {
        Some(bad) => (facts.now.since(bad), Some(region)),
        None => (facts.now.since(ordered), None),
    };
    let text = part::took(took, from);
    let Some(written) = draft.next.writers.get(region).filter(|it| !it.is_empty()) else {
        return text;
    };
    let classes = facts
        .input
        .policy
        .data
        .iter()
        .filter(|it| written.contains_key(&it.class));
    let late: Vec<String> = classes
        .filter(|class| took > class.rto)
        .map(|class| part::rto_of(&class.class, class.rto))
        .collect();
    part::beside_rto(&text, &late)
}

/// Notes the plan that the orders of this decision wait for. An order whose state was so already waits for the plan in
/// force, as edges may not have it yet.
pub(crate) fn let_orders_spread(facts: &Facts<'_>, draft: &mut Draft, carrier: Carrier) {
    let (Carrier::Next(generation) | Carrier::InForce(generation)) = carrier;
    let before = &facts.input.memory.actions;
    let was_done = |action: &Action| before.get(&action.intent.id).map(|it| it.phase) == Some(Phase::Done);
    let routes = |kind: &IntentKind| match kind {
        IntentKind::Failover { .. }
        | IntentKind::Switchover { .. }
        | IntentKind::Restore { .. }
        | IntentKind::Rollout { .. } => true,
        // An order that it ended may have changed no plan.
        IntentKind::Abort { .. } => matches!(carrier, Carrier::Next(_)),
        // Standing orders run until their time is over; the others change no plan.
        IntentKind::DrainEdge { .. }
        | IntentKind::DrainStack { .. }
        | IntentKind::Freeze
        | IntentKind::Unfreeze
        | IntentKind::Override { .. }
        | IntentKind::Ack { .. }
        | IntentKind::Approve { .. } => false,
    };
    for action in draft.memory.actions.values_mut() {
        let is_ordered = ![PLANNER, RECOVERED].contains(&action.intent.author.as_str());
        if is_ordered && action.phase == Phase::Done && routes(&action.intent.kind) && !was_done(action) {
            action.spreads = Some(generation);
        }
    }
}
