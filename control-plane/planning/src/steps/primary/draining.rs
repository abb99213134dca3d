//! A primary that sessions leave in parts: the steps of a planned drain, and the rest of an emergency.

use topology::{IntentKind, Moment, Reason, ReasonCode, RegionId, RegionState};
use verdict::Health;

use crate::{
    Phase, Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    placing::place_away,
    rules::{refuse_if_stopped, refuse_leaving_if_stopped},
    shares::home,
    steps::{
        data::follow_with_data,
        primary::leaving::{drained, evacuate, leave},
    },
    texts::{changed, part, waiting},
    wake::drain_step_end,
};

/// Moves the next part of a planned drain, or of an emergency.
pub(crate) fn continue_drain(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    percent: u8,
) {
    let Some(since) = draft.next.regions.get(region).map(|it| it.since) else {
        return;
    };
    let end = drain_step_end(facts.input, region, since);
    let mover = draft.mover(region);
    let planned = match draft.memory.moving(region).map(|action| &action.intent.kind) {
        Some(IntentKind::Switchover { promote, .. }) => Some(*promote),
        _ => None,
    };
    let Some(promote) = planned else {
        return continue_emergency(facts, draft, report, region, percent, end);
    };
    if facts.health(region) == Health::Down {
        if refuse_leaving_if_stopped(facts, mover, draft, report, region, region) {
            return;
        }
        // The planned drain became an emergency, and its operator ordered in effect that the region is left.
        let text = changed::failed_while_drained(&facts.summary(region));
        return match evacuate(
            facts,
            Gate::Automation,
            draft,
            report,
            region,
            ReasonCode::Failover,
            &text,
        ) {
            Ok(Phase::Done) => draft.end_moves(facts, region, Phase::Done, &text),
            // The other sessions leave like those of any region that is down.
            Ok(_) => draft.end_moves(facts, region, Phase::Aborted, &text),
            Err(refusal) => report.refuse(refusal),
        };
    }
    let targets = draft.next.routes.get(region).into_iter().flatten();
    let unfit = targets
        .map(|share| share.region.clone())
        .find(|target| target != region && !facts.works(target));
    if let Some(target) = unfit {
        let (health, summary) = (facts.health(&target), facts.summary(&target));
        if health == Health::Down {
            if refuse_leaving_if_stopped(facts, mover, draft, report, region, &target) {
                return;
            }
            let text = changed::drain_stopped(&target, &summary);
            draft.end_moves(facts, region, Phase::Aborted, &text);
            draft.set(facts, region, RegionState::Serving, vec![home(region)]);
            return report.change(
                Reason::of(ReasonCode::Aborted, text)
                    .about(region)
                    .with(facts.evidence(&target)),
            );
        }
        let text = waiting::drain_held_by_target(percent, &target, health, &summary);
        return report.wait(facts.reason(ReasonCode::DrainHold, region, text));
    }
    if facts.now < end {
        let text = waiting::step_held_until(percent, end);
        return report.wait(facts.reason(ReasonCode::DrainHold, region, text).until(end));
    }
    let steps = &facts.input.policy.drain.steps;
    let left = steps.iter().copied().find(|step| *step < percent).unwrap_or(0);
    match place_away(facts, Gate::Automation, draft, report, region, 100 - left) {
        Ok(placed) if left + placed.left < percent => {
            if refuse_if_stopped(facts, mover, draft, report, region) {
                return;
            }
            drained(facts, draft, report, region, left, placed, part::step_held());
        }
        Ok(_) => {
            let text = waiting::sessions_find_no_place(percent);
            return report.wait(facts.reason(ReasonCode::PartlyMoved, region, text));
        }
        Err(refusal) => return partly_moved(report, percent, refusal),
    }
    if draft.state(region) == Some(RegionState::Evacuated) {
        draft.end_moves(facts, region, Phase::Done, &changed::all_left());
        follow_with_data(facts, Gate::Automation, draft, report, region, promote);
    }
}

/// Moves the next part of an emergency that found no place for all sessions at once.
fn continue_emergency(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    percent: u8,
    end: Moment,
) {
    let mover = draft.mover(region);
    // A person who ordered the move may know what health does not show; automation knows nothing else.
    if !facts.is_dead(region) && !mover.is_order() {
        return stop_leaving(facts, report, region, percent);
    }
    if facts.now < end {
        let text = waiting::sessions_wait_their_turn(percent);
        return report.wait(facts.reason(ReasonCode::PartlyMoved, region, text).until(end));
    }
    // An order goes on as it began: by the last known health, if no vantage sees the regions now.
    match place_away(facts, mover, draft, report, region, 100) {
        Ok(placed) if placed.left < percent => {
            if refuse_leaving_if_stopped(facts, mover, draft, report, region, region) {
                return;
            }
            let phase = leave(
                facts,
                draft,
                report,
                region,
                placed,
                ReasonCode::DrainStep,
                part::next_part_leaves(),
            );
            if phase == Phase::Done {
                draft.end_moves(facts, region, Phase::Done, &changed::all_left());
            }
        }
        Ok(_) => {
            let text = waiting::sessions_find_no_place(percent);
            report.wait(facts.reason(ReasonCode::PartlyMoved, region, text));
        }
        Err(refusal) => partly_moved(report, percent, refusal),
    }
}

/// Automation leaves only a region that is down. The sessions that are still in any other stay.
fn stop_leaving(facts: &Facts<'_>, report: &mut Report, region: &RegionId, percent: u8) {
    let health = facts.health(region);
    let (code, text) = match health {
        Health::Healthy => (
            ReasonCode::RestoreReady,
            waiting::restore_ready_while_leaving(region, percent),
        ),
        Health::Degraded => (
            ReasonCode::RestoreReady,
            waiting::restore_after_degraded(region, percent, &facts.summary(region)),
        ),
        Health::Down | Health::Suspect | Health::NoData | Health::Blind => (
            ReasonCode::PartlyMoved,
            waiting::sessions_stay_while(percent, health, &facts.summary(region)),
        ),
    };
    report.wait(facts.reason(code, region, text));
}

/// Sessions without a place in a backup wait for one; any other refusal stands.
fn partly_moved(report: &mut Report, percent: u8, refusal: Reason) {
    if refusal.code != ReasonCode::NoHeadroom {
        return report.refuse(refusal);
    }
    let text = waiting::sessions_stay_because(percent, &refusal.text);
    report.wait(Reason {
        code: ReasonCode::PartlyMoved,
        text,
        ..refusal
    });
}
