//! One primary: it serves, is left, stays away, returns.

pub(crate) mod draining;
pub(crate) mod leaving;
pub(crate) mod returning;
pub(crate) mod serving;

use topology::{ReasonCode, RegionId, RegionState};
use verdict::Health;

use crate::{
    Phase, Report,
    believed::is_unseen,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    rules::refuse_leaving_if_stopped,
    steps::{correlated::Correlated, data::offer_promotion},
    texts::{changed, waiting},
};
use draining::continue_drain;
use leaving::evacuate;
use returning::{continue_restore, offer_restore};
use serving::fail_over;

/// Decides about one primary by its state and its health.
pub(crate) fn decide(
    facts: &Facts<'_>,
    correlated: &Correlated,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
) {
    let Some(planned) = draft.next.regions.get(region).cloned() else {
        return;
    };
    if draft.moved.contains(region) {
        return;
    }
    let (health, failing) = (facts.health(region), facts.is_failing(region));
    match (planned.state, health) {
        (RegionState::Serving, Health::Down) if failing => fail_over(facts, correlated, draft, report, region),
        (RegionState::Serving, Health::Down) => {
            let text = waiting::trigger_not_reached(region, &facts.summary(region));
            report.wait(facts.reason(ReasonCode::TriggerPending, region, text));
        }
        (RegionState::Serving, _) if is_unseen(facts.seen(region)) => {
            let code = if facts.is_stale(region) {
                ReasonCode::StaleSamples
            } else {
                ReasonCode::NoData
            };
            let text = waiting::not_seen(&facts.summary(region));
            report.wait(facts.reason(code, region, text));
        }
        (RegionState::Serving, Health::Suspect) => {
            let text = waiting::trigger_pending(&facts.summary(region));
            report.wait(facts.reason(ReasonCode::TriggerPending, region, text));
        }
        (RegionState::Serving, _) => {}
        (RegionState::Restoring(_), Health::Down) if failing => {
            // This ends an attempt to lift an evacuation and begins no new one: of the limits only the gate applies.
            if !refuse_leaving_if_stopped(facts, draft.mover(region), draft, report, region, region) {
                let text = changed::failed_while_returning(&facts.summary(region));
                // If no backup has room the restore is not over: it goes on when the region is healthy again.
                match evacuate(
                    facts,
                    Gate::Automation,
                    draft,
                    report,
                    region,
                    ReasonCode::RestoreAborted,
                    &text,
                ) {
                    Ok(_) => draft.end_moves(facts, region, Phase::Aborted, &text),
                    Err(refusal) => report.refuse(refusal),
                }
            }
        }
        (RegionState::Restoring(percent), _) => continue_restore(facts, draft, report, region, percent),
        (RegionState::Draining(percent), _) => continue_drain(facts, draft, report, region, percent),
        (RegionState::Evacuated, _) => {
            offer_restore(facts, draft, report, region);
            offer_promotion(facts, draft, report, region);
        }
    }
}
