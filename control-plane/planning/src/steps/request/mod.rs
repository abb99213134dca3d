//! The request of a decision: carried out at once, kept waiting for a second person, or refused by a rule.

mod abort;
mod approval;
mod carried;
mod drain;
mod failover;
mod order;
mod record;
mod restore;
mod rollout;
mod standing;
mod switchover;

use topology::{Intent, IntentKind, Reason, ReasonCode};

use self::{
    order::{Answer, carry_out},
    record::{Shown, person, record},
};
use crate::{
    Action, PLANNER, Phase, Report, actions::STANDING_MAX, draft::Draft, facts::Facts, texts::refused,
    wake::approval_end,
};

/// Carries out the request of this decision, unless its token was used before.
pub(crate) fn carry_out_request(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let Some(intent) = facts.input.request.clone() else {
        return;
    };
    if draft.memory.actions.contains_key(&intent.id) {
        return;
    }
    if person(&intent.author) == PLANNER {
        let text = refused::author_is_planner(&intent.author);
        return report.deny(facts.reason_for(&intent.kind, ReasonCode::BadRequest, text));
    }
    if let Some(refusal) = waiting_duplicate(facts, draft, &intent.kind) {
        return report.deny(refusal);
    }
    let may_stay = if intent.kind.stands() {
        check_room_for_one_more(facts, draft, &intent.kind)
    } else {
        Ok(())
    };
    if let Err(refusal) = may_stay {
        return report.deny(refusal);
    }
    let answer = match &intent.kind {
        IntentKind::Approve { action, shown } => {
            approval::approve(facts, draft, report, &intent, action, shown.as_deref())
        }
        _ => carry_out(facts, draft, report, &intent, None),
    };
    match answer {
        Answer::CarriedOut(phase) => record(facts, draft, report, intent, phase, None, Shown::default()),
        Answer::NeedsApproval(reason, shown) => {
            if let Err(refusal) = check_room_for_one_more(facts, draft, &intent.kind) {
                return report.deny(refusal);
            }
            report.wait(reason.until(approval_end(&intent)));
            record(facts, draft, report, intent, Phase::AwaitingApproval, None, shown);
        }
        Answer::Refused(refusal) => report.deny(refusal),
    }
}

/// Two orders for the same, each with a person to find for it, would be two decisions.
fn waiting_duplicate(facts: &Facts<'_>, draft: &Draft, kind: &IntentKind) -> Option<Reason> {
    let mut waiting = draft.memory.actions.values();
    let waiting = waiting.find(|it| it.phase == Phase::AwaitingApproval && it.intent.kind == *kind)?;
    let Intent {
        id, author, created_at, ..
    } = &waiting.intent;
    let text = refused::asked_already(author, *created_at, id);
    Some(facts.reason_for(kind, ReasonCode::AskedAlready, text))
}

/// A limit to the orders that stand or wait, because each is remembered until its time is over. The limit never keeps
/// anyone from moving a region, or from ending what stands.
fn check_room_for_one_more(facts: &Facts<'_>, draft: &Draft, kind: &IntentKind) -> Result<(), Reason> {
    let stays = |action: &&Action| match action.phase {
        Phase::AwaitingApproval => true,
        Phase::Running => action.intent.kind.stands(),
        _ => false,
    };
    if draft.memory.actions.values().filter(stays).count() < STANDING_MAX {
        return Ok(());
    }
    Err(facts.reason_for(kind, ReasonCode::BadRequest, refused::too_many_orders()))
}
