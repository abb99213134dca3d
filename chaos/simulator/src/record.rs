//! The record of a scenario: lines to read, and facts to check.

use std::{fmt::Write as _, time::Duration};

use topology::{NodeId, Plan, PlanNumber, Reason, RegionId};

use crate::resolvers::Left;

/// All events, in the order of time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// One line for each fact.
    pub transcript: String,
    /// Plans with the times at which they came into force.
    pub plans: Vec<(Duration, Plan)>,
    /// Reasons of decisions, each once for as long as it is repeated.
    pub said: Vec<FirstReason>,
    /// Plans that nodes refused.
    pub refused: Vec<(Duration, NodeId, PlanNumber)>,
    /// The plans of nodes at the end.
    pub applied: Vec<(NodeId, Option<PlanNumber>)>,
    /// The end of dead edges in the answers of resolvers, for scenarios that expect something of these.
    pub left: Vec<Left>,
    /// The invariants that broke.
    pub broken: Vec<String>,
}

/// One reason, with the time of its first appearance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstReason {
    /// Time from the start.
    pub at: Duration,
    /// The part of the report that has it.
    pub kind: Kind,
    /// The reason that a decision gave.
    pub reason: Reason,
}

/// The part of a report; scenarios and transcripts write its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Kind {
    /// The plan changed for this reason.
    Changed,
    /// A rule refused a change for this reason.
    Refused,
    /// A decision waits for this reason.
    Waiting,
}

impl Record {
    /// The plan in force at a time.
    pub fn plan_at(&self, at: Duration) -> Option<&Plan> {
        self.plans
            .iter()
            .rev()
            .find(|(since, _)| *since <= at)
            .map(|(_, plan)| plan)
    }

    /// The reasons about a region.
    pub fn about(&self, region: &RegionId) -> impl Iterator<Item = &FirstReason> {
        self.said
            .iter()
            .filter(move |said| said.reason.region.as_ref() == Some(region))
    }

    pub(crate) fn say(&mut self, at: Duration, line: &str) {
        writeln!(self.transcript, "{:>7.1}s  {line}", at.as_secs_f64()).expect("text can always grow");
    }
}
