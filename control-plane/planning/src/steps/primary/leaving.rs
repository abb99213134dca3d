//! Sessions leave a primary: at once, or the part that finds a place.

use topology::{Reason, ReasonCode, RegionId, RegionState, Share};
use verdict::Health;

use crate::{
    Phase, Report,
    capacity::Placed,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    placing::place_away,
    shares::share,
    texts::{changed, part},
};

/// Moves a primary's sessions to its backups: all of them, or as many as find a place now. Done when all left.
pub(crate) fn evacuate(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    code: ReasonCode,
    why: &str,
) -> Result<Phase, Reason> {
    let placed = place_away(facts, gate, draft, report, region, 100)?;
    note_purpose(facts, gate, draft, region);
    draft.penalise(facts, region);
    let against = if gate.is_order() {
        objections(facts, region, &placed.shares)
    } else {
        Vec::new()
    };
    let why = part::although(why, &against);
    Ok(leave(facts, draft, report, region, placed, code, &why))
}

/// Remembers whether a region that is left now was emptied on purpose: by a person, while it was not down or suspect.
fn note_purpose(facts: &Facts<'_>, gate: Gate, draft: &mut Draft, region: &RegionId) {
    let is_well = !matches!(facts.last_known(region), Some(Health::Down | Health::Suspect));
    if gate.is_order() && is_well {
        draft.memory.on_purpose.insert(region.clone());
    } else {
        draft.memory.on_purpose.remove(region);
    }
}

/// The facts against an order to leave a region for these others. The author of the order may know better, and reads
/// them.
fn objections(facts: &Facts<'_>, region: &RegionId, shares: &[Share]) -> Vec<String> {
    let mut against = Vec::new();
    if facts.seen(region) == Health::Healthy {
        against.push(part::is_healthy(region));
    }
    for target in shares.iter().map(|share| &share.region).filter(|it| *it != region) {
        let seen = facts.seen(target);
        let known = facts.believed.get(target);
        let since = known.and_then(|it| it.unseen_since);
        match (seen, known) {
            (Health::Healthy | Health::Degraded, _) => {}
            (Health::NoData | Health::Blind, Some(known)) => {
                against.push(part::nobody_sees(target, since, known.health));
            }
            (Health::NoData | Health::Blind, None) => against.push(part::nobody_has_seen(target)),
            (seen, _) => against.push(part::region_is_because(target, seen, &facts.summary(target))),
        }
    }
    against
}

/// Moves the sessions that found a place. Done when all left; running while some stay.
pub(crate) fn leave(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    placed: Placed,
    code: ReasonCode,
    why: &str,
) -> Phase {
    let Placed { mut shares, left } = placed;
    let text = changed::region_left(why, &shares, left);
    let (state, phase) = if left == 0 {
        (RegionState::Evacuated, Phase::Done)
    } else {
        shares.insert(0, share(region, left));
        (RegionState::Draining(left), Phase::Running)
    };
    draft.set(facts, region, state, shares);
    if code == ReasonCode::DrainStep {
        draft.note_progress(region, &text);
    }
    report.change(facts.reason(code, region, text));
    phase
}

/// Moves sessions in a planned step, until at most `left` percent of them stay.
pub(crate) fn drain_to(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    left: u8,
    why: &str,
) -> Result<(), Reason> {
    let placed = place_away(facts, gate, draft, report, region, 100 - left)?;
    note_purpose(facts, gate, draft, region);
    drained(facts, draft, report, region, left, placed, why);
    Ok(())
}

/// The same with the places found already.
pub(crate) fn drained(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    left: u8,
    placed: Placed,
    why: &str,
) {
    let Placed { mut shares, left: rest } = placed;
    let stay = left + rest;
    let state = if stay == 0 {
        RegionState::Evacuated
    } else {
        RegionState::Draining(stay)
    };
    let text = changed::drain_step(why, &shares, stay);
    if stay > 0 {
        shares.insert(0, share(region, stay));
    }
    draft.set(facts, region, state, shares);
    draft.note_progress(region, &text);
    report.change(facts.reason(ReasonCode::DrainStep, region, text));
}
