//! The order to carry out another one that waits for a second person.

use topology::{Intent, ReasonCode};

use super::{
    order::{Answer, carry_out},
    record::{Shown, person, record},
};
use crate::{
    Phase, Report,
    actions::shown_digest,
    draft::Draft,
    facts::Facts,
    texts::{changed, part, refused},
    wake::approval_end,
};

/// Carries out an order that waits for this second person.
pub(super) fn approve(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    intent: &Intent,
    id: &str,
    shown: Option<&str>,
) -> Answer {
    let waiting = draft.memory.actions.get(id);
    let waiting = waiting
        .filter(|action| action.phase == Phase::AwaitingApproval)
        .cloned();
    let Some(waiting) = waiting else {
        let text = refused::nothing_to_approve(id);
        return Answer::Refused(facts.reason_for(&intent.kind, ReasonCode::NoSuchAction, text));
    };
    if person(&waiting.intent.author) == person(&intent.author) {
        let text = refused::same_person(&intent.author, id);
        return Answer::Refused(facts.reason_for(&intent.kind, ReasonCode::SamePerson, text));
    }
    // Another approval may have changed what is asked for since this approver read it.
    let digest = shown_digest(&waiting.intent, &waiting.shown, &waiting.shares);
    if shown != Some(&*digest) {
        let text = match shown {
            Some(shown) => refused::shown_changed(id, shown, &digest, &waiting.effects()),
            None => refused::approval_names_nothing_shown(id, &digest),
        };
        return Answer::Refused(facts.reason_for(&intent.kind, ReasonCode::ShownChanged, text));
    }
    let why = changed::order(&part::approval_of(id, &digest), &intent.author, &intent.reason);
    let (approver, mut asked) = (intent.author.clone(), waiting.intent);
    let shown = Shown {
        effects: waiting.shown,
        shares: waiting.shares,
    };
    if asked.kind.stands() {
        // It lasts as long as its author asked for, however long it waited.
        asked.expires_at = facts.now + asked.expires_at.since(asked.created_at);
    }
    report.change(facts.reason_for(&asked.kind, ReasonCode::Approved, why));
    match carry_out(facts, draft, report, &asked, Some(&shown)) {
        Answer::CarriedOut(phase) => record(facts, draft, report, asked, phase, Some(approver), shown),
        Answer::NeedsApproval(reason, shown) => {
            if let Some(action) = draft.memory.actions.get_mut(id) {
                (action.shown, action.shares) = (shown.effects, shown.shares);
                action.text.clone_from(&reason.text);
            }
            report.wait(reason.until(approval_end(&asked)));
        }
        Answer::Refused(refusal) => {
            record(
                facts,
                draft,
                report,
                asked,
                Phase::Refused,
                Some(approver),
                Shown::default(),
            );
            draft.end_action(facts, id, Phase::Refused, &refusal.text);
            report.deny(refusal);
        }
    }
    Answer::CarriedOut(Phase::Done)
}
