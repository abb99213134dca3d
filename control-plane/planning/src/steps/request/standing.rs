//! Orders that stand for a time, and those that end such orders: freeze, unfreeze, override, ack.

use topology::{Intent, IntentKind, Reason, ReasonCode, RegionId, Rule, policy::TwoPerson};

use crate::{
    Phase, Report,
    draft::Draft,
    facts::Facts,
    texts::{changed, part},
};

use super::carried::{Carried, already, state_of_primary};

pub(super) fn freeze(facts: &Facts<'_>, report: &mut Report, intent: &Intent, why: &str) -> Phase {
    let text = changed::frozen(why, intent.expires_at);
    let reason = facts.reason_for(&intent.kind, ReasonCode::Frozen, text);
    report.change(reason.until(intent.expires_at));
    Phase::Running
}

/// Ends every freeze, and the rest of automation after a plan was taken back.
pub(super) fn unfreeze(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report, intent: &Intent, why: &str) -> Phase {
    let freezes = draft.memory.running(|kind| *kind == IntentKind::Freeze);
    let ids: Vec<String> = freezes.map(|action| action.intent.id.clone()).collect();
    for id in &ids {
        draft.end_action(facts, id, Phase::Aborted, &changed::ended_by(why));
    }
    let rested = draft.memory.taken_back.take().is_some();
    if ids.is_empty() && !rested {
        return already(facts, report, &intent.kind, changed::nothing_is_frozen());
    }
    let text = changed::unfrozen(why);
    report.change(facts.reason_for(&intent.kind, ReasonCode::Unfrozen, text));
    Phase::Done
}

pub(super) fn override_rule(facts: &Facts<'_>, report: &mut Report, intent: &Intent, rule: Rule, why: &str) -> Carried {
    let until = intent.expires_at;
    let text = changed::rule_off(why, rule, until);
    let reason = facts.reason_for(&intent.kind, ReasonCode::RuleOverridden, text);
    report.change(reason.until(until));
    Carried::from(Phase::Running).asking(facts, TwoPerson::Override, &rule.to_string(), part::turns_rule_off())
}

/// Lifts the penalty of a region that moved too often.
pub(super) fn ack(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    intent: &Intent,
    region: &RegionId,
    why: &str,
) -> Result<Phase, Reason> {
    let kind = &intent.kind;
    state_of_primary(facts, draft, kind, region)?;
    let Some(penalty) = draft.memory.penalties.remove(region) else {
        return Ok(already(facts, report, kind, changed::no_penalty(region)));
    };
    let value = penalty.value(&facts.input.policy.damping, facts.now);
    let text = changed::penalty_lifted(why, value);
    report.change(facts.reason_for(kind, ReasonCode::Acknowledged, text));
    Ok(Phase::Done)
}
