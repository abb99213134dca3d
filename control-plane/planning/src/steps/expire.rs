//! Actions whose time is over.

use topology::{Reason, ReasonCode};

use crate::{Phase, Report, draft::Draft, facts::Facts, texts::changed, wake::expiry};

/// Takes over the unfinished actions of an earlier leader, and ends those whose time is over.
pub(crate) fn end_what_is_over(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let (now, epoch) = (facts.now, facts.input.epoch);
    let mut expired = Vec::new();
    for action in draft
        .memory
        .actions
        .values_mut()
        .filter(|action| !action.phase.is_final())
    {
        action.owner = epoch;
        if expiry(action).is_some_and(|end| end <= now) {
            (action.phase, action.changed_at) = (Phase::Expired, now);
            expired.push(action.intent.clone());
        }
    }
    for intent in expired {
        let text = changed::order_expired(&intent);
        report.change(Reason::of(ReasonCode::Expired, text).about(intent.kind.region()));
    }
    if draft.memory.taken_back.as_ref().is_some_and(|it| it.until <= now) {
        draft.memory.taken_back = None;
    }
    draft.memory.forget(now);
}
