//! Sessions return to a primary, in steps.

use std::time::Duration;

use topology::{IntentKind, Reason, ReasonCode, RegionId, RegionState, Share};
use verdict::Health;

use crate::{
    Phase, Report,
    capacity::shrink,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    placing::place_away,
    rules::{check_hold_down, check_is_healthy, refuse_if_stopped},
    shares::{home, share},
    steps::data::{bring_data_home, check_may_come_home},
    texts::{changed, part, waiting},
    wake::restore_step_end,
};

/// Names the command that brings a healthy region back: nothing returns without an order.
pub(crate) fn offer_restore(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report, region: &RegionId) {
    if facts.health(region) != Health::Healthy {
        return;
    }
    match check_hold_down(facts, Gate::Automation, draft, report, region) {
        Err(held) => report.wait(held),
        Ok(()) => {
            let text = waiting::restore_ready(region);
            report.wait(facts.reason(ReasonCode::RestoreReady, region, text));
        }
    }
}

/// Begins an operator's restore.
pub(crate) fn begin_restore(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    why: &str,
    accepted: Option<Duration>,
) -> Result<(), Reason> {
    check_is_healthy(facts, gate, draft, report, region, why)?;
    check_hold_down(facts, gate, draft, report, region)?;
    check_may_come_home(facts, gate, draft, report, region, accepted)?;
    draft.penalise(facts, region);
    let at_home = match draft.state(region) {
        Some(RegionState::Draining(percent)) => percent,
        _ => 0,
    };
    let steps = &facts.input.policy.restore.steps;
    let first = steps.iter().copied().find(|step| *step > at_home).unwrap_or(100);
    let step = ReturnStep {
        percent: first,
        why,
        accepted,
    };
    restore_to(facts, gate, draft, report, region, &step);
    Ok(())
}

/// Takes the next step of a return, if the region was healthy for as long as the policy holds a step.
pub(crate) fn continue_restore(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    percent: u8,
) {
    let Some(since) = draft.next.regions.get(region).map(|it| it.since) else {
        return;
    };
    // A step needs the newest verdict: after a tick without data it waits for the next one.
    let health = facts.seen(region);
    if health != Health::Healthy {
        let text = waiting::return_held_by_health(percent, health, &facts.summary(region));
        return report.wait(facts.reason(ReasonCode::RestoreHold, region, text));
    }
    let end = restore_step_end(facts.input, region, since);
    if facts.now < end {
        let text = waiting::step_held_until(percent, end);
        return report.wait(facts.reason(ReasonCode::RestoreHold, region, text).until(end));
    }
    if draft.rate(facts, region, region) == 0 {
        let text = waiting::return_held_by_connections(percent);
        return report.wait(facts.reason(ReasonCode::RestoreHold, region, text));
    }
    if refuse_if_stopped(facts, draft.mover(region), draft, report, region) {
        return;
    }
    let restore = &facts.input.policy.restore;
    let next = restore
        .steps
        .iter()
        .copied()
        .find(|step| *step > percent)
        .unwrap_or(100);
    let held = part::healthy_for(percent, restore.step_hold);
    let accepted = match draft.memory.moving(region).map(|action| &action.intent.kind) {
        Some(IntentKind::Restore { accept_loss, .. }) => *accept_loss,
        _ => None,
    };
    let step = ReturnStep {
        percent: next,
        why: &held,
        accepted,
    };
    restore_to(facts, Gate::Automation, draft, report, region, &step);
}

/// One step of a return.
#[derive(Debug)]
pub(crate) struct ReturnStep<'w> {
    /// Percent of the sessions that are at home after it.
    pub(crate) percent: u8,
    pub(crate) why: &'w str,
    /// Loss of data that an operator accepted, for the step that brings all home.
    pub(crate) accepted: Option<Duration>,
}

/// Brings sessions back until the step's percentage of them is at home, or as many as the region accepts connections
/// from now. Where that is all of them its data follow.
pub(crate) fn restore_to(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    step: &ReturnStep<'_>,
) {
    let (why, accepted) = (step.why, step.accepted);
    let at_home = draft.percent_at(region, region);
    // A return that was ordered begins, also while others are still coming.
    let percent = step
        .percent
        .min(at_home.saturating_add(draft.rate(facts, region, region).max(1)));
    if percent >= 100 {
        let text = changed::returned(why);
        return restored(facts, gate, draft, report, region, text, accepted);
    }
    // The sessions that are still away stay at their backup, unless that is down.
    let away: Vec<Share> = draft.next.routes.get(region).into_iter().flatten().cloned().collect();
    let away: Vec<Share> = away.into_iter().filter(|share| share.region != *region).collect();
    let all_up = away.iter().all(|share| facts.health(&share.region) != Health::Down);
    let away = if all_up {
        Ok(shrink(&away, 100 - percent))
    } else {
        match place_away(facts, gate, draft, report, region, 100 - percent) {
            Ok(placed) if placed.left == 0 => Ok(placed.shares),
            Ok(_) => Err(ReasonCode::NoHeadroom),
            Err(refusal) => Err(refusal.code),
        }
    };
    match away {
        Ok(away) => {
            let mut shares = vec![share(region, percent)];
            shares.extend(away);
            let text = changed::return_step(why, percent);
            draft.set(facts, region, RegionState::Restoring(percent), shares);
            draft.note_progress(region, &text);
            report.change(facts.reason(ReasonCode::RestoreStep, region, text));
        }
        Err(code) => {
            // A healthy home beats backups that cannot hold the rest.
            let text = changed::returned_at_once(why, code != ReasonCode::NoFitBackup);
            restored(facts, gate, draft, report, region, text, accepted);
        }
    }
}

/// Brings all sessions of a region home, and ends its move.
fn restored(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    text: String,
    accepted: Option<Duration>,
) {
    draft.set(facts, region, RegionState::Serving, vec![home(region)]);
    draft.end_moves(facts, region, Phase::Done, &text);
    report.change(facts.reason(ReasonCode::RestoreDone, region, text));
    // The lag of its copy may have grown since the return began. Sessions need not wait for that; the writer does, and
    // `say_where_data_is_written` gives the reason.
    if draft.next.writers.contains_key(region) {
        let _ = bring_data_home(facts, gate, draft, report, region, accepted);
    }
}
