//! Replicated data: when another region may become its writer.
//!
//! Moving sessions loses nothing that is replicated. Moving the writer of data that is replicated with a lag loses what
//! the copy does not have yet, and two writers cannot be merged again. So data never follows sessions by itself: an
//! operator promotes, within each class's RPO or by naming the loss that is accepted.

use std::{collections::BTreeSet, time::Duration};

use topology::{
    Moment, Reason, ReasonCode, RegionId, RegionState,
    policy::{DataPolicy, Replication},
};
use verdict::Health;

use crate::{
    ANY_LOSS, Input, Report,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    report::Check,
    rules::check,
    texts::{changed, part, refused, waiting},
};

/// The classes of data that only one region writes at a time.
fn written_in_one_place(classes: &[DataPolicy]) -> impl Iterator<Item = &DataPolicy> {
    classes
        .iter()
        .filter(|class| !matches!(class.replication, Replication::ActiveActive | Replication::RegionLocal))
}

/// Moves the writer at the end of a switchover that promotes, if its copy has caught up.
pub(crate) fn follow_with_data(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    promotes: bool,
) {
    if promotes && let Err(held) = promote(facts, gate, draft, report, region, None) {
        let code = ReasonCode::PromotionHeld;
        report.wait(Reason { code, ..held });
    }
}

/// Names the command that moves the writer: data never follows sessions by itself.
pub(crate) fn offer_promotion(facts: &Facts<'_>, draft: &Draft, report: &mut Report, region: &RegionId) {
    let moved = draft.next.writers.get(region);
    let held: Vec<&str> = written_in_one_place(&facts.input.policy.data)
        .map(|class| class.class.as_str())
        .filter(|class| !moved.is_some_and(|moved| moved.contains_key(*class)))
        .collect();
    if held.is_empty() {
        return;
    }
    let text = waiting::data_keep_their_writer(&held, region);
    report.wait(facts.reason(ReasonCode::PromotionHeld, region, text));
}

/// Makes the region's first target the writer of its replicated data, if no more is lost than allowed.
pub(crate) fn promote(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    accepted: Option<Duration>,
) -> Result<(), Reason> {
    let shares = draft.next.routes.get(region).into_iter().flatten();
    let target = shares
        .filter(|share| share.region != *region && facts.health(&share.region) != Health::Down)
        .max_by_key(|share| share.percent);
    let Some(target) = target.map(|share| share.region.clone()) else {
        let text = refused::nobody_can_take_the_data(region);
        return Err(facts.reason(ReasonCode::BadRequest, region, text));
    };
    let writers = draft.next.writers.get(region).cloned().unwrap_or_default();
    let classes = written_in_one_place(&facts.input.policy.data).map(|class| class.class.clone());
    let moved: BTreeSet<String> = classes.filter(|class| writers.get(class) != Some(&target)).collect();
    if moved.is_empty() {
        let text = changed::promoted_already(&target);
        report.change(facts.reason(ReasonCode::AlreadySo, region, text));
        return Ok(());
    }
    check_may_take_over(facts, gate, draft, report, region, &moved, accepted)?;
    let written = moved.into_iter().map(|class| (class, target.clone()));
    draft.next.writers.entry(region.clone()).or_default().extend(written);
    report.change(facts.reason(ReasonCode::Promoted, region, changed::promoted(&target)));
    Ok(())
}

/// The region writes its replicated data itself again, if no more is lost than allowed.
pub(crate) fn bring_data_home(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    accepted: Option<Duration>,
) -> Result<(), Reason> {
    check_may_come_home(facts, gate, draft, report, region, accepted)?;
    if draft.next.writers.remove(region).is_some() {
        report.change(facts.reason(ReasonCode::Demoted, region, changed::data_came_home()));
    }
    Ok(())
}

/// Checks that the region may write again what others write for it.
pub(crate) fn check_may_come_home(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    accepted: Option<Duration>,
) -> Result<(), Reason> {
    let classes = written_elsewhere(draft, region);
    if classes.is_empty() {
        return Ok(());
    }
    check_may_take_over(facts, gate, draft, report, region, &classes, accepted)
}

/// The classes of a primary's data that another region writes.
fn written_elsewhere(draft: &Draft, region: &RegionId) -> BTreeSet<String> {
    let writers = draft.next.writers.get(region);
    writers.into_iter().flat_map(|it| it.keys().cloned()).collect()
}

fn check_may_take_over(
    facts: &Facts<'_>,
    gate: Gate,
    draft: &mut Draft,
    report: &mut Report,
    region: &RegionId,
    classes: &BTreeSet<String>,
    accepted: Option<Duration>,
) -> Result<(), Reason> {
    let problems = would_be_lost(facts.input, facts.now, region, classes, accepted);
    let text = part::data_lost(&problems);
    let rule = Check::of(ReasonCode::RpoExceeded, region, problems.is_empty(), text.clone());
    if check(facts, gate, draft, report, rule) {
        return Ok(());
    }
    let text = refused::too_much_lost(&text, region);
    let reason = Reason::of(ReasonCode::RpoExceeded, text).about(region).with(problems);
    Err(reason.with(facts.evidence(region)))
}

/// Names data that is written elsewhere than at home, and the command that brings it home: nothing else moves it.
pub(crate) fn say_where_data_is_written(facts: &Facts<'_>, draft: &Draft, report: &mut Report) {
    let regions: Vec<RegionId> = draft.next.writers.keys().cloned().collect();
    for region in regions {
        let writers = &draft.next.writers[&region];
        let written: BTreeSet<&RegionId> = writers.values().collect();
        let where_written: Vec<String> = written.iter().map(|it| describe_writer(facts, draft, it)).collect();
        let is_lost = written.iter().any(|it| is_lost(facts, draft, it));
        let command = match draft.state(&region) {
            Some(RegionState::Serving) => part::restore_brings_data_home(&region),
            // It comes home by itself at the end of the return.
            Some(RegionState::Restoring(_)) if is_lost => part::return_brings_data_home(),
            _ if is_lost => part::failover_moves_writer(&region),
            _ => continue,
        };
        let classes = written_elsewhere(draft, &region);
        let lost = would_be_lost(facts.input, facts.now, &region, &classes, None);
        // The lag changes all the time, so it is evidence: the text stays the same while it holds.
        let classes: Vec<String> = classes.into_iter().collect();
        let (classes, writers) = (classes.join(", "), where_written.join(" and "));
        let text = waiting::data_are_written_by(&classes, &writers, &command, !lost.is_empty());
        let reason = Reason::of(ReasonCode::PromotionHeld, text).about(&region).with(lost);
        report.wait(reason.with(facts.evidence(&region)));
    }
}

fn is_lost(facts: &Facts<'_>, draft: &Draft, writer: &RegionId) -> bool {
    facts.health(writer) == Health::Down || draft.state(writer) == Some(RegionState::Evacuated)
}

fn describe_writer(facts: &Facts<'_>, draft: &Draft, writer: &RegionId) -> String {
    let is_evacuated = draft.state(writer) == Some(RegionState::Evacuated);
    part::writer(writer, is_evacuated, facts.health(writer))
}

/// The classes of `region`'s data that would lose too much if a copy took over, one a line: more than `accepted`, or
/// more than the class's RPO when no loss is accepted.
fn would_be_lost(
    input: &Input,
    now: Moment,
    region: &RegionId,
    classes: &BTreeSet<String>,
    accepted: Option<Duration>,
) -> Vec<String> {
    let freshest = topology::Tick::LENGTH * input.policy.health.freshness_ticks;
    let mut problems = Vec::new();
    for class in written_in_one_place(&input.policy.data).filter(|it| classes.contains(&it.class)) {
        let lag = input
            .replication
            .get(region)
            .and_then(|classes| classes.get(&class.class));
        let limit = accepted.unwrap_or(class.rpo);
        // Since it was measured, everything written is missing as well.
        let behind = lag.map(|lag| lag.behind.saturating_add(now.since(lag.at)));
        match (lag, behind) {
            // A lag that was never measured may be anything: only an order that accepts any loss accepts it.
            (None, _) if accepted != Some(ANY_LOSS) => problems.push(part::lag_unknown(&class.class)),
            (Some(lag), _) if accepted.is_none() && now.since(lag.at) > freshest => {
                problems.push(part::lag_too_old(&class.class, now.since(lag.at)));
            }
            (_, Some(behind)) if behind > limit => {
                problems.push(part::lag_too_long(&class.class, behind, limit, accepted.is_some()));
            }
            _ => {}
        }
    }
    problems
}
