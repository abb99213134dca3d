//! The automatic failover of a primary.

use std::collections::BTreeMap;

use topology::{Intent, IntentKind, Reason, ReasonCode, RegionId, RegionState};

use crate::{
    Action, PLANNER, Phase, Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    report::Check,
    rules::{check_leaves_enough, refuse_leaving_if_stopped, require},
    steps::{correlated::Correlated, primary::leaving::evacuate},
    texts::{part, refused},
};

const AUTOMATION: Gate = Gate::Automation;

/// Fails over a primary that is down, if nothing stops automation and every safety rule agrees.
pub(crate) fn fail_over(
    facts: &Facts<'_>,
    correlated: &Correlated,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
) {
    if refuse_leaving_if_stopped(facts, AUTOMATION, draft, report, region, region) {
        return;
    }
    if let Err(refusal) = check_safety(facts, correlated, draft, report, region) {
        return report.refuse(refusal);
    }
    let why = facts.summary(region);
    match evacuate(facts, AUTOMATION, draft, report, region, ReasonCode::Failover, &why) {
        Ok(phase) => record(facts, draft, region, phase, why),
        Err(refusal) => report.refuse(refusal),
    }
}

/// Asks the rules that judge by the whole fleet; the error is the first that blocks.
fn check_safety(
    facts: &Facts<'_>,
    correlated: &Correlated,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
) -> Result<(), Reason> {
    let policy = &facts.input.policy.failover;
    let working = facts.input.topology.regions.keys().filter(|it| facts.works(it)).count();
    let text = match working {
        0 => refused::everything_looks_dead(),
        working => part::regions_look_healthy(working),
    };
    let rule = Check::of(ReasonCode::EverythingLooksDead, region, working > 0, text);
    require(facts, AUTOMATION, draft, report, rule)?;

    let group = correlated.get(region).filter(|_| policy.correlated_hold);
    let text = match group {
        None => part::none_bad_together(),
        Some(group) => refused::bad_together(group),
    };
    let rule = Check::of(ReasonCode::CorrelatedEvidence, region, group.is_none(), text);
    require(facts, AUTOMATION, draft, report, rule)?;

    let (others, limit) = (bad_or_moving(facts, draft, region), policy.automatic_max as usize);
    let text = match others.len() {
        0 if limit > 0 => part::none_bad_or_moving(),
        _ => refused::evacuation_limit(region, &others, limit),
    };
    let rule = Check::of(ReasonCode::EvacuationLimit, region, others.len() < limit, text);
    require(facts, AUTOMATION, draft, report, rule)?;

    check_leaves_enough(facts, AUTOMATION, draft, report, region)
}

/// Remembers the failover as an action of the planner.
fn record(facts: &Facts<'_>, draft: &mut Draft, region: &RegionId, phase: Phase, why: String) {
    let id = format!("auto-{}-{}", draft.next.generation + 1, region);
    let intent = Intent {
        id: id.clone(),
        kind: IntentKind::Failover {
            region: region.clone(),
            promote: false,
            accept_loss: None,
            force: false,
        },
        author: PLANNER.to_owned(),
        reason: why.clone(),
        created_at: facts.now,
        expires_at: facts.now,
    };
    let action = Action {
        intent,
        phase,
        owner: facts.input.epoch,
        changed_at: facts.now,
        approved_by: None,
        text: why,
        spreads: None,
        shown: BTreeMap::new(),
        shares: BTreeMap::new(),
    };
    draft.memory.actions.insert(id, action);
}

/// Regions other than `region` that automation waits for before it leaves a further one, one sentence each: those that
/// it left and that do not work yet, and those whose sessions move at the moment, whoever ordered that. A region that
/// works and waits for its return, or that a person emptied while it worked, holds no other up.
fn bad_or_moving(facts: &Facts<'_>, draft: &Draft, region: &RegionId) -> Vec<String> {
    let window = facts.input.policy.failover.reconnect_window;
    let others = draft.next.regions.iter().filter(|(id, _)| *id != region);
    let away = others.filter(|(_, it)| it.state != RegionState::Serving);
    let counted = away.filter_map(|(id, it)| {
        if !facts.works(id) && !draft.memory.on_purpose.contains(id) {
            return Some(part::bad_and_left(id, it.state, facts.health(id)));
        }
        let moves = facts.now < it.since + window;
        moves.then(|| part::moves_now(id, it.state))
    });
    counted.collect()
}
