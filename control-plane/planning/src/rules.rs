//! The safety rules that several steps ask. Each notes its check in the report, passed or not.

use topology::{Reason, ReasonCode, RegionId, RegionState};
use verdict::Health;

use crate::{
    Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    report::Check,
    texts::{part, refused},
};

/// Notes the result of a rule. True when the change may go on: the rule agrees, is overridden, or is passed by force.
pub(crate) fn check(facts: &Facts<'_>, gate: Gate, draft: &mut Draft, report: &mut Report, check: Check) -> bool {
    let Check { rule, passed, text, .. } = &check;
    let overridden = !passed && Gate::is_overridden(*rule, facts, &draft.memory);
    let forced = !passed && !overridden && gate.forces(*rule);
    if forced {
        draft.passed_by_force.insert(*rule, text.clone());
    }
    let text = match (overridden, forced) {
        (true, _) => part::overridden(text),
        (_, true) => part::passed_by_force(text),
        _ => text.clone(),
    };
    let passed = *passed || overridden || forced;
    report.checks.push(Check { passed, text, ..check });
    passed
}

/// The same; the error is the refusal, in the words of the rule.
pub(crate) fn require(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    rule: Check,
) -> Result<(), Reason> {
    let refusal = Reason::of(rule.rule, rule.text.clone()).about(rule.region.as_ref());
    if check(facts, gate, draft, report, rule) {
        return Ok(());
    }
    let evidence = refusal.region.as_ref().map(|region| facts.evidence(region));
    Err(refusal.with(evidence.unwrap_or_default()))
}

/// Refuses a change of `region` where the gate stops it. True when it refused.
pub(crate) fn refuse_if_stopped(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
) -> bool {
    let stop = gate.stop(facts, &draft.memory);
    refuse_by(facts, gate, draft, report, region, stop)
}

/// Refuses a change that takes sessions of `region` from `from`, where the gate stops it. True when it refused.
pub(crate) fn refuse_leaving_if_stopped(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    from: &RegionId,
) -> bool {
    let stop = gate.stop_leaving(facts, &draft.memory, from);
    refuse_by(facts, gate, draft, report, region, stop)
}

fn refuse_by(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    stop: Option<Reason>,
) -> bool {
    let (code, text) = match &stop {
        Some(stop) => (stop.code, stop.text.as_str()),
        None => (ReasonCode::Frozen, part::nothing_stops(gate.is_order())),
    };
    let result = Check::of(code, region, stop.is_none(), text);
    check(facts, gate, draft, report, result);
    let Some(stop) = stop else { return false };
    report.refuse(stop.about(region).with(facts.evidence(region)));
    true
}

/// Enough regions serve when `region` does not.
pub(crate) fn check_leaves_enough(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
) -> Result<(), Reason> {
    // A region that no vantage sees counts as serving: silence is no failure, and a blind control plane must not keep a
    // person from an order. Automation moves no session to such a region, so it loses nothing by it.
    let left = draft.next.regions.iter().filter(|(id, it)| {
        *id != region && it.state == RegionState::Serving && gate.health(facts, id) != Some(Health::Down)
    });
    let (left, min) = (left.count(), facts.input.policy.safety.regions_serving_min as usize);
    let rule = Check::of(
        ReasonCode::RegionsServingMin,
        region,
        left >= min,
        part::regions_left(left, min),
    );
    if check(facts, gate, draft, report, rule) {
        return Ok(());
    }
    let text = refused::too_few_left(region, left, min);
    Err(facts.reason(ReasonCode::RegionsServingMin, region, text))
}

/// The region is healthy, so sessions may return to it.
pub(crate) fn check_is_healthy(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    why: &str,
) -> Result<(), Reason> {
    let health = facts.health(region);
    let summary = facts.summary(region);
    let rule = Check::of(
        ReasonCode::NotHealthy,
        region,
        health == Health::Healthy,
        part::health(health, &summary),
    );
    if check(facts, gate, draft, report, rule) {
        return Ok(());
    }
    let text = refused::not_healthy_enough_to_return(why, region, health, &summary);
    Err(facts.reason(ReasonCode::NotHealthy, region, text))
}

/// Anti-flap: a region that moved too often may not return yet.
pub(crate) fn check_hold_down(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
) -> Result<(), Reason> {
    let (policy, now) = (&facts.input.policy.damping, facts.now);
    let penalty = draft.memory.penalties.get(region).copied();
    let (until, value) = penalty.map_or((None, 0), |it| (it.until(policy, now), it.value(policy, now)));
    let text = match until {
        Some(until) => refused::held_down(region, value, until, policy),
        None => part::penalty(value, policy.suppress),
    };
    let rule = Check::of(ReasonCode::HoldDown, region, until.is_none(), text);
    require(facts, gate, draft, report, rule).map_err(|refusal| refusal.until(until))
}
