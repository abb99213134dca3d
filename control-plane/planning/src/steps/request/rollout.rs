//! The order to roll out a version of the stack.

use std::collections::BTreeSet;

use topology::{Intent, Reason, ReasonCode, Rollout, Stack};

use crate::{
    Phase, Report,
    draft::Draft,
    facts::Facts,
    texts::{changed, refused},
};

use super::carried::already;

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
        let text = refused::rollout_runs(running);
        return Err(facts.reason_for(kind, ReasonCode::RolloutRunning, text));
    }
    if draft.next.rollout.as_ref().is_some_and(|it| it.version == version) {
        let text = changed::all_on_version_already(version);
        return Ok(already(facts, report, kind, text));
    }
    let stacks = facts.input.topology.regions.values().flat_map(|region| &region.stacks);
    let versions: BTreeSet<&str> = stacks.map(Stack::version).collect();
    if !versions.contains(version) {
        let text = refused::no_stack_of_version(version, versions);
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
    let text = changed::rollout_begins(why, version, percent);
    report.change(facts.reason_for(kind, ReasonCode::RolloutStep, text));
    Ok(if percent == 100 { Phase::Done } else { Phase::Running })
}
