//! The order to fail over a primary.

use std::collections::BTreeMap;

use topology::{Intent, IntentKind, Reason, ReasonCode, RegionId, RegionState, Share, policy::TwoPerson};

use crate::{
    Phase, Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    rules::check_leaves_enough,
    shares::total_at,
    steps::{data::promote, primary::leaving::evacuate, routes::guests_leave},
    texts::{changed, part, refused},
};

use super::carried::{Carried, already, ask_for_second_evacuation, state_of_primary};

pub(super) fn fail_over(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    intent: &Intent,
    region: &RegionId,
    why: &str,
) -> Result<Carried, Reason> {
    let kind = &intent.kind;
    let (promotes, accept_loss) = match kind {
        IntentKind::Failover {
            promote, accept_loss, ..
        } => (*promote, *accept_loss),
        _ => (false, None),
    };
    let state = state_of_primary(facts, draft, kind, region)?;
    if accept_loss.is_some() && !promotes {
        let text = refused::loss_without_promotion(region);
        return Err(facts.reason_for(kind, ReasonCode::BadRequest, text));
    }
    let leaves = state != RegionState::Evacuated;
    if !leaves && !promotes {
        let text = changed::already(region, state);
        return Ok(already(facts, report, kind, text).into());
    }
    let mut phase = Phase::Done;
    if leaves {
        check_leaves_enough(facts, gate, draft, report, region)?;
        draft.end_moves(facts, region, Phase::Aborted, &changed::overtaken(why));
        let routes = draft.next.routes.clone();
        phase = evacuate(facts, gate, draft, report, region, ReasonCode::ForcedFailover, why)?;
        guests_leave(facts, gate, draft, report);
        check_no_one_is_stranded(facts, draft, region, &routes)?;
    }
    if promotes {
        promote(facts, gate, draft, report, region, accept_loss)?;
    }
    let mut carried = Carried::from(phase);
    if let Some(loss) = accept_loss {
        carried = carried.asking(facts, TwoPerson::DataLoss, "", part::may_lose(loss));
    }
    if leaves {
        carried = ask_for_second_evacuation(carried, facts, draft, region);
    }
    Ok(carried)
}

/// No session is sent home because the region that took it is left: an operator can move those sessions first.
fn check_no_one_is_stranded(
    facts: &Facts<'_>,
    draft: &Draft,
    region: &RegionId,
    before: &BTreeMap<RegionId, Vec<Share>>,
) -> Result<(), Reason> {
    let mut guests = before.iter().filter(|(guest, _)| *guest != region);
    let stranded = guests.find(|(guest, shares)| draft.percent_at(guest, guest) > total_at(shares, guest));
    let Some((guest, _)) = stranded else { return Ok(()) };
    let text = refused::guests_would_be_stranded(guest);
    Err(facts.reason(ReasonCode::NoHeadroom, region, text))
}
