//! Replicated data: when another region may become its writer.
//!
//! Moving sessions loses nothing that is replicated. Moving the writer of data that is replicated with a lag loses what the
//! copy does not have yet, and two writers cannot be merged again. So data never follows sessions by itself: an operator
//! promotes, within each class's RPO or by naming the loss that is accepted.

use std::time::Duration;

use topology::{
    Moment, ReasonCode, RegionId,
    policy::{DataPolicy, Replication},
};

use crate::Input;

/// The classes whose writer matters.
pub(crate) fn written_in_one_place(classes: &[DataPolicy]) -> impl Iterator<Item = &DataPolicy> {
    classes
        .iter()
        .filter(|class| !matches!(class.replication, Replication::ActiveActive | Replication::RegionLocal))
}

/// Checks that a copy of `region`'s data may take over with at most `accepted` lost, or each class's RPO when none is
/// named. The error says what would be lost, one class a line.
pub(crate) fn may_take_over(
    input: &Input,
    now: Moment,
    region: &RegionId,
    accepted: Option<Duration>,
) -> Result<(), (ReasonCode, Vec<String>)> {
    let freshest = topology::Tick::LENGTH * input.policy.health.freshness_ticks;
    let mut problems = Vec::new();
    for class in written_in_one_place(&input.policy.data) {
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
        match lag {
            // What nobody measured may be anything; an operator who accepts a loss accepts that as well.
            None if accepted.is_none() => problems.push(format!("{}: its lag is not known", class.class)),
            Some(lag) if accepted.is_none() && now.since(lag.at) > freshest => {
                let age = now.since(lag.at).as_secs();
                problems.push(format!("{}: its lag was last measured {age} s ago", class.class));
            }
            // Since it was measured, everything written is missing as well.
            Some(lag) if lag.behind + now.since(lag.at) > limit => {
                let (behind, limit) = ((lag.behind + now.since(lag.at)).as_secs(), limit.as_secs());
                problems.push(format!("{}: {behind} s behind, {limit_text} is {limit} s", class.class));
            }
            None | Some(_) => {}
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err((ReasonCode::RpoExceeded, problems))
    }
}
