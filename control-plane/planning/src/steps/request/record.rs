//! Orders as the memory keeps them.

use std::collections::BTreeMap;

use topology::{Intent, IntentKind};

use crate::{Action, Phase, Report, actions::RECOVERED, draft::Draft, facts::Facts, texts::changed};

/// The effects of an order that its approver was shown.
#[derive(Default)]
pub(super) struct Shown {
    /// As in [`Action::shown`].
    pub(super) effects: BTreeMap<String, String>,
    /// As in [`Action::shares`].
    pub(super) shares: BTreeMap<String, u8>,
}

/// Remembers the order as an action.
pub(super) fn record(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &Report,
    intent: Intent,
    phase: Phase,
    approved_by: Option<String>,
    shown: Shown,
) {
    if phase == Phase::Running {
        replace_recovered(facts, draft, &intent);
    }
    let said = report.changed.iter().chain(&report.waiting).last();
    let text = match (&intent.kind, phase) {
        // The step that drains comes later in the decision, and gives no reason where the plan has it drained already.
        (IntentKind::DrainEdge { edge }, Phase::Running) => changed::edge_stays_out(edge, intent.expires_at),
        (IntentKind::DrainStack { stack }, Phase::Running) => changed::stack_stays_out(*stack, intent.expires_at),
        _ => said.map(|reason| reason.text.clone()).unwrap_or_default(),
    };
    let action = Action {
        text,
        intent,
        phase,
        owner: facts.input.epoch,
        changed_at: facts.now,
        approved_by,
        spreads: None,
        shown: shown.effects,
        shares: shown.shares,
    };
    draft.memory.actions.insert(action.intent.id.clone(), action);
}

/// A new order ends the same order of a recovered plan: it names its own end, which counts from now on.
fn replace_recovered(facts: &Facts<'_>, draft: &mut Draft, intent: &Intent) {
    let same = draft.memory.running(|kind| *kind == intent.kind);
    let recovered = same.filter(|action| action.intent.author == RECOVERED && action.intent.id != intent.id);
    let ids: Vec<String> = recovered.map(|action| action.intent.id.clone()).collect();
    for id in ids {
        draft.end_action(facts, &id, Phase::Done, &changed::ordered_anew(&intent.author));
    }
}

/// A name in one spelling: an extra space or capital does not make a second person.
pub(super) fn person(name: &str) -> String {
    let words: Vec<String> = name.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ")
}
