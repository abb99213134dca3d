//! The level of service of every region.

use topology::{Level, ReasonCode, RegionId};

use crate::{
    Report,
    believed::is_unseen,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    rules::refuse_if_stopped,
    texts::{changed, part},
};

/// Sets the level that the health of each region asks for, or the one at which it has room for the sessions planned
/// there.
pub(crate) fn set(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let headroom = draft.headroom(facts, &draft.next.routes);
    let levels: Vec<(RegionId, Level, Level)> = draft
        .next
        .regions
        .iter()
        .map(|(id, it)| (id.clone(), it.level, headroom.level(id)))
        .collect();
    for (region, level, crowded) in levels {
        let Some(verdict) = facts.input.verdicts.get(&region) else {
            continue;
        };
        // A region that no vantage sees keeps its level.
        let unseen = is_unseen(facts.seen(&region));
        let believed = if unseen { level } else { verdict.level };
        let to = believed.max(crowded);
        if to == level {
            continue;
        }
        let why = match (to > level, to == crowded && crowded > verdict.level) {
            (true, true) => part::too_crowded_for_quality(),
            (true, false) => {
                let asks = verdict.levels().find(|(level, _)| *level == to);
                asks.map_or_else(|| facts.summary(&region), |(_, fired)| fired.why.clone())
            }
            (false, _) => part::well_again(),
        };
        // A level that makes room for sessions which are planned already is part of their move, and no gate stops it.
        let to = if to != crowded && refuse_if_stopped(facts, Gate::Automation, draft, report, &region) {
            level.max(crowded)
        } else {
            to
        };
        if to == level {
            continue;
        }
        if let Some(plan) = draft.next.regions.get_mut(&region) {
            plan.level = to;
        }
        report.change(facts.reason(ReasonCode::LevelChanged, &region, changed::level(level, to, &why)));
    }
}
