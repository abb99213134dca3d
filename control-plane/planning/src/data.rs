//! Replicated data: when another region may become its writer.
//!
//! Moving sessions loses nothing that is replicated. Moving the writer of data that is replicated with a lag loses what the
//! copy does not have yet, and two writers cannot be merged again. So data never follows sessions by itself: an operator
//! promotes, within each class's RPO or by naming the loss that is accepted.

use std::{collections::BTreeSet, time::Duration};

use topology::{
    Moment, Reason, ReasonCode, RegionId, RegionState,
    policy::{DataPolicy, Replication},
};
use verdict::Health;

use crate::{Input, plan::Planner};

/// An accepted loss of everything that was not copied, however much that is.
pub const ANY_LOSS: Duration = Duration::from_millis(u64::MAX);

/// The classes whose writer matters.
pub(crate) fn written_in_one_place(classes: &[DataPolicy]) -> impl Iterator<Item = &DataPolicy> {
    classes
        .iter()
        .filter(|class| !matches!(class.replication, Replication::ActiveActive | Replication::RegionLocal))
}

impl Planner<'_> {
    /// The end of a switchover: data that was to follow does, if it has caught up.
    pub(crate) fn follow_with_data(&mut self, region: &RegionId, promote: bool) {
        if promote && let Err(held) = self.promote(region, None) {
            self.report.waiting.push(Reason {
                code: ReasonCode::PromotionHeld,
                ..held
            });
        }
    }

    /// Data never follows sessions by itself.
    pub(crate) fn offer_promotion(&mut self, region: &RegionId) {
        let moved = self.next.writers.get(region);
        let held: Vec<&str> = written_in_one_place(&self.input.policy.data)
            .map(|class| class.class.as_str())
            .filter(|class| !moved.is_some_and(|moved| moved.contains_key(*class)))
            .collect();
        if held.is_empty() {
            return;
        }
        let text = format!(
            "{} keep {region} as their writer; `meridian failover {region} --promote` moves it",
            held.join(", ")
        );
        self.wait(ReasonCode::PromotionHeld, region, text, None);
    }

    /// Makes the region's first target the writer of its replicated data, if no more is lost than allowed.
    pub(crate) fn promote(&mut self, region: &RegionId, accepted: Option<Duration>) -> Result<(), Reason> {
        let shares = self.next.routes.get(region).into_iter().flatten();
        let target = shares
            .filter(|share| share.region != *region && self.health(&share.region) != Health::Down)
            .max_by_key(|share| share.percent);
        let Some(target) = target.map(|share| share.region.clone()) else {
            let text = "none of its sessions went to a region that is up, so nobody can take its data".to_owned();
            return Err(self.reason(ReasonCode::BadRequest, region, text, vec![]));
        };
        let writers = self.next.writers.get(region).cloned().unwrap_or_default();
        let classes = written_in_one_place(&self.input.policy.data).map(|class| class.class.clone());
        let moved: BTreeSet<String> = classes.filter(|class| writers.get(class) != Some(&target)).collect();
        if moved.is_empty() {
            let text = format!("{target} is the writer of its replicated data already");
            self.change(ReasonCode::AlreadySo, region, text);
            return Ok(());
        }
        self.may_take_over(region, &moved, accepted)?;
        let written = moved.into_iter().map(|class| (class, target.clone()));
        self.next.writers.entry(region.clone()).or_default().extend(written);
        self.change(
            ReasonCode::Promoted,
            region,
            format!("{target} is the writer of its replicated data now"),
        );
        Ok(())
    }

    /// The region writes its replicated data itself again, if no more is lost than allowed.
    pub(crate) fn bring_data_home(&mut self, region: &RegionId, accepted: Option<Duration>) -> Result<(), Reason> {
        self.may_come_home(region, accepted)?;
        if self.next.writers.remove(region).is_some() {
            let text = "it writes its replicated data itself again".to_owned();
            self.change(ReasonCode::Demoted, region, text);
        }
        Ok(())
    }

    /// Checks that the region may write again what others write for it.
    pub(crate) fn may_come_home(&mut self, region: &RegionId, accepted: Option<Duration>) -> Result<(), Reason> {
        let classes = self.written_elsewhere(region);
        if classes.is_empty() {
            return Ok(());
        }
        self.may_take_over(region, &classes, accepted)
    }

    fn written_elsewhere(&self, region: &RegionId) -> BTreeSet<String> {
        let writers = self.next.writers.get(region);
        writers.into_iter().flat_map(|it| it.keys().cloned()).collect()
    }

    fn may_take_over(
        &mut self,
        region: &RegionId,
        classes: &BTreeSet<String>,
        accepted: Option<Duration>,
    ) -> Result<(), Reason> {
        let problems = would_be_lost(self.input, self.now, region, classes, accepted);
        let text = match problems.len() {
            0 => "no data class would lose more than allowed".to_owned(),
            _ => format!("more data would be lost than allowed: {}", problems.join("; ")),
        };
        if self.check(ReasonCode::RpoExceeded, region, problems.is_empty(), text.clone()) {
            return Ok(());
        }
        let text = format!("{text}; `--accept-loss` names a loss to accept, or `any`");
        Err(self.reason(ReasonCode::RpoExceeded, region, text, problems))
    }

    /// Data that is written elsewhere than it should be, and what an operator can do about it: nothing else moves it.
    pub(crate) fn say_where_data_is_written(&mut self) {
        let regions: Vec<RegionId> = self.next.writers.keys().cloned().collect();
        for region in regions {
            let writers = &self.next.writers[&region];
            let written: BTreeSet<&RegionId> = writers.values().collect();
            let where_written: Vec<String> = written.iter().map(|it| self.describe_writer(it)).collect();
            let is_lost = written.iter().any(|it| self.is_lost(it));
            let state = self.next.regions.get(&region).map(|it| it.state);
            let command = match state {
                Some(RegionState::Serving) => format!("`meridian restore {region}` brings them home"),
                // It comes home by itself at the end of the return.
                Some(RegionState::Restoring(_)) if is_lost => "the return brings them home".to_owned(),
                _ if is_lost => format!("`meridian failover {region} --promote` makes another region their writer"),
                _ => continue,
            };
            let classes = self.written_elsewhere(&region);
            let lost = would_be_lost(self.input, self.now, &region, &classes, None);
            // How much changes all the time, so it is evidence: what is said stays the same while it holds.
            let but = match lost.len() {
                0 => "",
                _ => ", with `--accept-loss` or once its copy has caught up",
            };
            let classes: Vec<String> = classes.into_iter().collect();
            let (classes, writers) = (classes.join(", "), where_written.join(" and "));
            let text = format!("{classes} are written by {writers}; {command}{but}");
            let reason = self.reason(ReasonCode::PromotionHeld, &region, text, lost);
            self.report.waiting.push(reason);
        }
    }

    fn is_lost(&self, writer: &RegionId) -> bool {
        let state = self.next.regions.get(writer).map(|it| it.state);
        self.health(writer) == Health::Down || state == Some(RegionState::Evacuated)
    }

    fn describe_writer(&self, writer: &RegionId) -> String {
        let health = self.health(writer);
        match self.next.regions.get(writer).map(|it| it.state) {
            Some(RegionState::Evacuated) => format!("{writer}, which is evacuated and {health}"),
            _ if health == Health::Down => format!("{writer}, which is down"),
            _ => writer.to_string(),
        }
    }
}

/// What whoever approves a loss agrees to, in words.
pub(crate) fn risk(accepted: Duration) -> String {
    match accepted {
        ANY_LOSS => "it may lose all data that was not copied yet".to_owned(),
        accepted => format!("it may lose up to {} s of data", accepted.as_secs()),
    }
}

/// What a copy of `region`'s data would lose by taking over, one class a line, where that is more than `accepted`, or more
/// than the class's RPO when no loss is accepted.
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
        let limit_text = if accepted.is_some() {
            "the accepted loss"
        } else {
            "its RPO"
        };
        // Since it was measured, everything written is missing as well.
        let behind = lag.map(|lag| lag.behind.saturating_add(now.since(lag.at)));
        match (lag, behind) {
            // What nobody measured may be anything, and only who accepts any loss accepts that.
            (None, _) if accepted != Some(ANY_LOSS) => problems.push(format!("{}: its lag is not known", class.class)),
            (Some(lag), _) if accepted.is_none() && now.since(lag.at) > freshest => {
                let age = now.since(lag.at).as_secs();
                problems.push(format!("{}: its lag was last measured {age} s ago", class.class));
            }
            (_, Some(behind)) if behind > limit => {
                let (behind, limit) = (behind.as_secs(), limit.as_secs());
                problems.push(format!("{}: {behind} s behind, {limit_text} is {limit} s", class.class));
            }
            _ => {}
        }
    }
    problems
}
