//! The order to roll out a version of the stack.

use std::collections::BTreeSet;

use topology::{Intent, Reason, ReasonCode, Rollout, Stack};

use crate::{Phase, Report, draft::Draft, facts::Facts};

use super::already;

/// Sends the first part of the users to the version; [`crate::steps::rollout`] sends the others.
pub(super) fn begin(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    intent: &Intent,
    version: &str,
    why: &str,
) -> Result<Phase, Reason> {
    let kind = &intent.kind;
    if let Some(running) = draft.next.rollout.as_ref().filter(|it| it.percent < 100) {
        let text = format!(
            "{} is at {} %; abort or finish it first",
            running.version, running.percent
        );
        return Err(facts.reason_for(kind, ReasonCode::RolloutRunning, text));
    }
    if draft.next.rollout.as_ref().is_some_and(|it| it.version == version) {
        let text = format!("all users are on {version} already");
        return Ok(already(facts, report, kind, text));
    }
    let stacks = facts.input.topology.regions.values().flat_map(|region| &region.stacks);
    let versions: BTreeSet<&str> = stacks.map(Stack::version).collect();
    if !versions.contains(version) {
        let known: Vec<&str> = versions.into_iter().collect();
        let text = format!(
            "no stack has version {version}, so nobody could be sent to it; stacks have {}",
            known.join(", ")
        );
        return Err(facts.reason_for(kind, ReasonCode::BadRequest, text));
    }
    let percent = facts
        .input
        .policy
        .rollout
        .steps
        .first()
        .map_or(100, |step| step.percent);
    draft.next.rollout = Some(Rollout {
        version: version.to_owned(),
        percent,
        since: facts.now,
        action: intent.id.clone(),
    });
    let text = format!("{why}; {version} goes to {percent} % of users");
    report.change(facts.reason_for(kind, ReasonCode::RolloutStep, text));
    Ok(if percent == 100 { Phase::Done } else { Phase::Running })
}
