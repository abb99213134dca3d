//! Sessions away from home whose backup went down, is over its capacity, or was left itself.

use std::collections::BTreeSet;

use topology::{IntentKind, Moment, Reason, ReasonCode, RegionId, RegionState, Share};

use crate::{
    Action, Phase, Report,
    capacity::Placed,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    placing::{Displaced, kept_away, place_again, place_away},
    rules::{refuse_if_stopped, refuse_leaving_if_stopped},
    shares::{share, total, total_at},
    texts::{changed, part, refused},
};

/// Moves the sessions of a backup that went down, or can no longer hold them, to the next fit one.
pub(crate) fn repair(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    guests_leave(facts, Gate::Automation, draft, report);
    let degrade = facts.input.policy.failover.degrade_to_admit;
    let routes = draft.next.routes.clone();
    for (primary, shares) in routes {
        let planned = draft.headroom(facts, &draft.next.routes);
        let away = || shares.iter().map(|share| &share.region).filter(|it| **it != primary);
        // After a person insisted on a place, only a failure after that is news.
        let insisted = insisted_at(draft, &primary);
        let is_news = |it: &RegionId| {
            let bad_since = facts.believed.get(it).and_then(|it| it.bad_since);
            insisted.is_none_or(|at| bad_since.is_some_and(|since| since.start() > at))
        };
        let dead = away().find(|it| facts.is_dead(it) && is_news(it)).cloned();
        let crowded = away().find(|target| insisted.is_none() && planned.is_over(target, degrade));
        let crowded = crowded.cloned();
        if let Some(target) = dead {
            leave_dead_backup(facts, draft, report, &primary, &shares, &target);
        } else if let Some(target) = crowded {
            relieve_crowded_backup(facts, draft, report, &primary, &shares, &target);
        }
    }
}

/// The time at which a person insisted, by force, on the places of a region's sessions, while the region is still away.
fn insisted_at(draft: &Draft, primary: &RegionId) -> Option<Moment> {
    let since = draft.next.regions.get(primary).map(|it| it.since);
    let by_force = |action: &&Action| {
        let is_forced =
            matches!(&action.intent.kind, IntentKind::Failover { region, force: true, .. } if region == primary);
        let is_last = action.phase == Phase::Done && since <= Some(action.changed_at);
        is_forced && (is_last || action.phase == Phase::Running)
    };
    let actions = draft.memory.actions.values().filter(by_force);
    actions.map(|action| action.changed_at).max()
}

/// Moves the sessions at a backup that is down on to the next. Home comes last, though it may be healthy again: a
/// return is for an operator to order, and only where no other region has room is it better than a dead one.
fn leave_dead_backup(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    primary: &RegionId,
    shares: &[Share],
    target: &RegionId,
) {
    let at_home = draft.percent_at(primary, primary);
    let problem = part::backup_is_down(target, &facts.summary(target));
    let (mut placed, refusal) = match place_away(facts, Gate::Automation, draft, report, primary, 100 - at_home) {
        Ok(placed) => (placed, None),
        Err(refusal) => {
            let shares = kept_away(facts, draft, primary, 100 - at_home);
            let left = 100 - at_home - total(&shares);
            (Placed { shares, left }, Some(refusal))
        }
    };
    let returning = takes_back(facts, draft, primary).min(placed.left);
    placed.left -= returning;
    let stays = at_home + returning;
    if let Some(refusal) = refusal.filter(|_| returning == 0) {
        let text = refused::backup_not_left(&problem, &refusal.text);
        let evidence = facts.evidence(target);
        return report.refuse(Reason {
            text,
            evidence,
            ..refusal
        });
    }
    let mut repaired = Vec::new();
    if stays > 0 {
        repaired.push(share(primary, stays));
    }
    repaired.extend(placed.shares);
    let text = changed::backup_left(&problem, &repaired, placed.left);
    let mut left = placed.left;
    if left > 0 {
        // These stay where they are, because no place is better; edges pass a dead region over.
        let mut were: Vec<&Share> = shares.iter().filter(|it| it.region != *primary).collect();
        were.sort_by_key(|it| !facts.is_dead(&it.region));
        for was in were {
            let stay = left.min(was.percent.saturating_sub(total_at(&repaired, &was.region)));
            left -= stay;
            match repaired.iter_mut().find(|it| it.region == was.region) {
                Some(there) => there.percent += stay,
                None if stay > 0 => repaired.push(share(&was.region, stay)),
                None => {}
            }
        }
    }
    if repaired == shares || refuse_leaving_if_stopped(facts, Gate::Automation, draft, report, primary, target) {
        return;
    }
    draft.set_routes(facts, primary, repaired);
    report.change(
        Reason::of(ReasonCode::Failover, text.clone())
            .about(primary)
            .with(facts.evidence(target)),
    );
    if stays > at_home {
        draft.stay(facts, primary, stays, &text);
    }
}

/// Percent of a primary's own sessions that it can take back at once, because it works and is not at its limits.
fn takes_back(facts: &Facts<'_>, draft: &Draft, primary: &RegionId) -> u8 {
    if !facts.works(primary) {
        return 0;
    }
    let degrade = facts.input.policy.failover.degrade_to_admit;
    let headroom = draft.headroom(facts, &draft.next.routes);
    headroom
        .percent(primary, primary, degrade)
        .min(draft.rate(facts, primary, primary))
}

/// Moves sessions from a backup that holds more than it has room for to others.
fn relieve_crowded_backup(
    facts: &Facts<'_>,
    draft: &mut Draft,
    report: &mut Report,
    primary: &RegionId,
    shares: &[Share],
    target: &RegionId,
) {
    let problem = part::backup_is_crowded(target);
    let at_home = draft.percent_at(primary, primary);
    let placed = match place_away(facts, Gate::Automation, draft, report, primary, 100 - at_home) {
        Ok(placed) if placed.left == 0 => placed,
        Ok(placed) => {
            let text = refused::crowded_backup_not_left(&problem, placed.left);
            return report.refuse(facts.reason(ReasonCode::NoHeadroom, primary, text));
        }
        Err(refusal) => return report.refuse(refusal),
    };
    let text = changed::backup_left(&problem, &placed.shares, 0);
    let mut repaired: Vec<Share> = shares.iter().filter(|it| it.region == *primary).cloned().collect();
    repaired.extend(placed.shares);
    if repaired != shares && !refuse_if_stopped(facts, Gate::Automation, draft, report, primary) {
        draft.set_routes(facts, primary, repaired);
        report.change(
            Reason::of(ReasonCode::Failover, text)
                .about(primary)
                .with(facts.evidence(target)),
        );
    }
}

/// Moves sessions of other primaries out of a region that was left. Only a primary is left, and no primary is a backup
/// of another; but a region that was a backup until lately may still have guests. Their move is part of leaving the
/// region, so no gate stops it.
pub(crate) fn guests_leave(facts: &Facts<'_>, gate: Gate, draft: &mut Draft, report: &mut Report) {
    let left = draft
        .next
        .regions
        .iter()
        .filter(|(_, it)| it.state == RegionState::Evacuated);
    let left: BTreeSet<RegionId> = left.map(|(id, _)| id.clone()).collect();
    let is_guest = |shares: &Vec<Share>| shares.iter().any(|share| left.contains(&share.region));
    let guests = draft.next.routes.iter().filter(|(_, shares)| is_guest(shares));
    for primary in guests.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
        let displaced = Displaced {
            hosts: &left,
            code: ReasonCode::Failover,
            why: part::host_is_left(),
        };
        place_again(facts, gate, draft, report, &primary, &displaced);
    }
}
