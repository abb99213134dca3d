//! Places for sessions away from home: which backups are fit, and the share that each takes.

use std::collections::BTreeSet;

use topology::{Reason, ReasonCode, RegionId, Share};
use verdict::Health;

use crate::{
    Report,
    capacity::{Placed, shrink},
    draft::Draft,
    facts::Facts,
    gate::Gate,
    report::Check,
    rules::check,
    shares::{share, total, total_at},
    texts::{changed, part, refused},
};

/// Finds places for `percent` of a primary's sessions in its fit backups, in their order, as far as capacity and
/// connection rates allow. Sessions that are away already keep their place, unless that is down or over its capacity.
/// An error when no further session finds a place.
pub(crate) fn place_away(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    percent: u8,
) -> Result<Placed, Reason> {
    let input = facts.input;
    let degrade = input.policy.failover.degrade_to_admit;
    let kept = kept_away(facts, draft, region, percent);
    let to_move = percent - total(&kept);
    if to_move == 0 {
        return Ok(Placed { shares: kept, left: 0 });
    }
    let backups = input.topology.backups_of(region);
    let mut fit: Vec<&RegionId> = backups
        .iter()
        .filter(|backup| is_fit(facts, gate, draft, backup))
        .collect();
    let unfit: Vec<String> = backups
        .iter()
        .filter(|it| !is_fit(facts, gate, draft, it))
        .map(|it| part::region_is(it, facts.seen(it)))
        .collect();
    let text = part::fit_backups(backups.len(), fit.len(), &unfit);
    let rule = Check::of(ReasonCode::NoFitBackup, region, !fit.is_empty(), text.clone());
    if !check(facts, gate, draft, report, rule) {
        return Err(refusal(facts, ReasonCode::NoFitBackup, region, &text, unfit));
    }
    if fit.is_empty() {
        // Only by force: the author of the order says that the beliefs about them are wrong.
        fit = backups.iter().filter(|it| draft.is_serving(it)).collect();
    }
    let mut routes = draft.next.routes.clone();
    routes.insert(region.clone(), kept.clone());
    let kept_at = |target: &RegionId| total_at(&kept, target);
    let mut placed = draft
        .headroom(facts, &routes)
        .place(region, to_move, &fit, degrade, |target| {
            let was_there = draft.percent_at(region, target).saturating_sub(kept_at(target));
            was_there.saturating_add(draft.rate(facts, region, target))
        });
    let found = to_move - placed.left;
    let text = match found {
        0 => {
            let headroom = draft.headroom(facts, &routes);
            let full = fit
                .iter()
                .map(|target| match headroom.percent(region, target, degrade) {
                    0 => part::has_no_room(target),
                    _ => part::accepts_no_more(target),
                });
            let full: Vec<String> = full.chain(unfit.iter().cloned()).collect();
            part::no_places(&full)
        }
        found => part::places(found, to_move),
    };
    let rule = Check::of(ReasonCode::NoHeadroom, region, placed.left == 0, text.clone());
    let passed = check(facts, gate, draft, report, rule);
    if let (true, Some(first), 1..) = (passed && gate == Gate::Forced, fit.first(), placed.left) {
        // By force: beyond the room of the first backup, and faster than it accepts connections.
        placed.shares.push(share(first, placed.left));
        placed.left = 0;
    }
    if to_move == placed.left {
        return Err(refusal(facts, ReasonCode::NoHeadroom, region, &text, unfit));
    }
    // In the order of the backups, which is the order of overflow; then the sessions that stay elsewhere.
    let elsewhere = kept
        .iter()
        .map(|share| &share.region)
        .filter(|it| !backups.contains(it));
    let shares = backups.iter().chain(elsewhere).map(|target| Share {
        region: target.clone(),
        percent: kept_at(target) + total_at(&placed.shares, target),
    });
    Ok(Placed {
        shares: shares.filter(|share| share.percent > 0).collect(),
        left: placed.left,
    })
}

/// The shares of a primary's sessions that are away already and keep their place, at most `percent` in all.
pub(crate) fn kept_away(facts: &Facts<'_>, draft: &Draft, region: &RegionId, percent: u8) -> Vec<Share> {
    let degrade = facts.input.policy.failover.degrade_to_admit;
    let shares = draft.next.routes.get(region).into_iter().flatten();
    let serves = |target: &RegionId| draft.is_serving(target) && facts.health(target) != Health::Down;
    let away = shares.filter(|share| share.region != *region && serves(&share.region));
    let kept = shrink(&away.cloned().collect::<Vec<_>>(), percent);
    let mut routes = draft.next.routes.clone();
    routes.insert(region.clone(), kept.clone());
    let planned = draft.headroom(facts, &routes);
    let fits = |share: &Share| !planned.is_over(&share.region, degrade);
    kept.into_iter().filter(fits).collect()
}

/// The refusal of a place, with the unfit backups before the evidence of the region.
fn refusal(facts: &Facts<'_>, code: ReasonCode, region: &RegionId, text: &str, unfit: Vec<String>) -> Reason {
    let reason = Reason::of(code, refused::no_place(region, text))
        .about(region)
        .with(unfit);
    reason.with(facts.evidence(region))
}

/// Regions that take a primary's sessions no more.
pub(crate) struct Displaced<'d> {
    pub(crate) hosts: &'d BTreeSet<RegionId>,
    pub(crate) code: ReasonCode,
    pub(crate) why: &'d str,
}

/// Finds another place for a primary's sessions at those regions. Its sessions elsewhere stay there, and sessions
/// without a place come home: the verdict of their home moves them on if that is bad.
pub(crate) fn place_again(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    primary: &RegionId,
    displaced: &Displaced<'_>,
) {
    let Displaced { hosts, code, why } = *displaced;
    let shares = draft.next.routes.get(primary).cloned().unwrap_or_default();
    let (gone, kept): (Vec<Share>, Vec<Share>) = shares.into_iter().partition(|it| hosts.contains(&it.region));
    draft.next.routes.insert(primary.clone(), kept.clone());
    let at_home = total_at(&kept, primary);
    let away: Vec<Share> = kept.into_iter().filter(|it| it.region != *primary).collect();
    let Placed { mut shares, left } =
        place_away(facts, gate, draft, report, primary, 100 - at_home).unwrap_or(Placed {
            left: total(&gone),
            shares: away,
        });
    let text = changed::displaced(why, total(&gone), &shares, left);
    let stay = at_home + left;
    if stay > 0 {
        shares.insert(0, share(primary, stay));
    }
    draft.set_routes(facts, primary, shares);
    draft.moved.insert(primary.clone());
    let cause = hosts.first().unwrap_or(primary);
    report.change(
        Reason::of(code, text.clone())
            .about(primary)
            .with(facts.evidence(cause)),
    );
    draft.stay(facts, primary, stay, &text);
}

/// Whether a backup may be sent sessions. One bad tick does not disqualify it: no trigger has fired, and all sessions
/// would cross an ocean for a blip; if the backup does fail, they move on in the next tick. An order goes by the last
/// known health, and by the word of its author where none is known.
fn is_fit(facts: &Facts<'_>, gate: Gate, draft: &Draft, backup: &RegionId) -> bool {
    draft.is_serving(backup)
        && match gate.health(facts, backup) {
            Some(Health::Healthy | Health::Degraded) => true,
            Some(Health::Suspect) => gate.is_order() || facts.is_blip(backup),
            Some(Health::Down | Health::NoData | Health::Blind) => false,
            None => gate.is_order(),
        }
}

/// Whether automation would find a place for any of a primary's sessions in its backups now, connection rates aside.
pub(crate) fn has_place(facts: &Facts<'_>, draft: &Draft, region: &RegionId) -> bool {
    let degrade = facts.input.policy.failover.degrade_to_admit;
    let headroom = draft.headroom(facts, &draft.next.routes);
    let mut backups = facts.input.topology.backups_of(region).iter();
    backups
        .any(|backup| is_fit(facts, Gate::Automation, draft, backup) && headroom.percent(region, backup, degrade) > 0)
}
