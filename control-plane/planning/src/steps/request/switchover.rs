//! The order to empty a primary in steps.

use topology::{Intent, IntentKind, Reason, ReasonCode, RegionId, RegionState};

use crate::{
    Phase, Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    report::Check,
    rules::{check, check_leaves_enough},
    steps::{data::follow_with_data, primary::leaving::drain_to},
    texts::{changed, part, refused},
};

use super::carried::{Carried, already, ask_for_second_evacuation, state_of_primary};

pub(super) fn switch_over(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    intent: &Intent,
    region: &RegionId,
    why: &str,
) -> Result<Carried, Reason> {
    let kind = &intent.kind;
    match state_of_primary(facts, draft, kind, region)? {
        RegionState::Serving => {}
        state @ RegionState::Evacuated => {
            return Ok(already(facts, report, kind, changed::already(region, state)).into());
        }
        moving => {
            let text = refused::is_moving(moving);
            return Err(facts.reason_for(kind, ReasonCode::BadRequest, text));
        }
    }
    let text = part::health(facts.health(region), &facts.summary(region));
    let works = Check::of(ReasonCode::NotHealthy, region, facts.works(region), text.clone());
    if !check(facts, gate, draft, report, works) {
        let text = refused::not_well_enough_to_drain(&text, region);
        return Err(facts.reason_for(kind, ReasonCode::NotHealthy, text));
    }
    if let Some(guest) = guest_of(draft, region) {
        let text = refused::guests_are_there(&guest);
        return Err(facts.reason_for(kind, ReasonCode::NoHeadroom, text));
    }
    check_leaves_enough(facts, gate, draft, report, region)?;
    let first = facts.input.policy.drain.steps.first().copied().unwrap_or(0);
    report.change(facts.reason(ReasonCode::Switchover, region, why));
    drain_to(facts, gate, draft, report, region, first, part::first_part_leaves())?;
    let mut phase = Phase::Running;
    if draft.state(region) == Some(RegionState::Evacuated) {
        let promote = matches!(kind, IntentKind::Switchover { promote: true, .. });
        follow_with_data(facts, gate, draft, report, region, promote);
        phase = Phase::Done;
    }
    Ok(ask_for_second_evacuation(phase.into(), facts, draft, region))
}

/// A primary whose sessions are in another region that is to be left.
fn guest_of(draft: &Draft, region: &RegionId) -> Option<RegionId> {
    let mut routes = draft.next.routes.keys();
    routes
        .find(|guest| *guest != region && draft.percent_at(guest, region) > 0)
        .cloned()
}
