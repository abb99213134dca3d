//! The order to bring a primary's sessions, and its data, home.

use topology::{Intent, IntentKind, Reason, RegionId, RegionState, policy::TwoPerson};

use crate::{
    Phase, Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    rules::check_is_healthy,
    steps::{data::bring_data_home, primary::returning::begin_restore},
    texts::{changed, part},
};

use super::carried::{Carried, already, state_of_primary};

pub(super) fn restore(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    intent: &Intent,
    region: &RegionId,
    why: &str,
) -> Result<Carried, Reason> {
    let kind = &intent.kind;
    let accept_loss = match kind {
        IntentKind::Restore { accept_loss, .. } => *accept_loss,
        _ => None,
    };
    let phase = match state_of_primary(facts, draft, kind, region)? {
        // Its sessions came home before its data could.
        RegionState::Serving if draft.next.writers.contains_key(region) => {
            check_is_healthy(facts, gate, draft, report, region, why)?;
            bring_data_home(facts, gate, draft, report, region, accept_loss)?;
            Phase::Done
        }
        state @ RegionState::Serving => {
            return Ok(already(facts, report, kind, changed::already(region, state)).into());
        }
        // Its action was lost with the store, or taken back with a plan: this one carries it on.
        RegionState::Restoring(_) if draft.memory.moving(region).is_none() && accept_loss.is_none() => {
            already(facts, report, kind, changed::return_goes_on(why));
            return Ok(Phase::Running.into());
        }
        state @ RegionState::Restoring(_) => {
            return Ok(already(facts, report, kind, changed::already(region, state)).into());
        }
        RegionState::Evacuated | RegionState::Draining(_) => {
            let mover = draft.memory.moving(region).map(|action| action.intent.id.clone());
            begin_restore(facts, gate, draft, report, region, why, accept_loss)?;
            if let Some(mover) = mover {
                draft.end_action(facts, &mover, Phase::Aborted, &changed::ended_by_return());
            }
            if draft.is_serving(region) {
                Phase::Done
            } else {
                Phase::Running
            }
        }
    };
    let carried = Carried::from(phase);
    Ok(match accept_loss {
        Some(loss) => carried.asking(facts, TwoPerson::DataLoss, "", part::may_lose(loss)),
        None => carried,
    })
}
