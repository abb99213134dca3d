//! What happened in a scenario: as lines to read, and as facts to ask about.

use std::{fmt, time::Duration};

use topology::{NodeId, Plan, PlanNumber, Reason, RegionId};

/// Everything that happened, in the order of time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// One line a fact.
    pub transcript: String,
    /// Plans as they came into force.
    pub plans: Vec<(Duration, Plan)>,
    /// What decisions said, each once for as long as they go on saying it.
    pub said: Vec<Said>,
    /// Plans that nodes refused.
    pub refused: Vec<(Duration, NodeId, PlanNumber)>,
    /// What nodes apply at the end.
    pub applied: Vec<(NodeId, Option<PlanNumber>)>,
    /// What must never happen and did.
    pub broken: Vec<String>,
}

/// One reason, and when it was first said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// When, from the start.
    pub at: Duration,
    /// As what.
    pub kind: Kind,
    /// The reason.
    pub reason: Reason,
}

/// What a reason explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A change.
    Changed,
    /// A refusal.
    Refused,
    /// A wait.
    Waiting,
}

impl Kind {
    /// Its name in scenarios and transcripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Refused => "refused",
            Self::Waiting => "waiting",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
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

    /// What was said about a region.
    pub fn about(&self, region: &RegionId) -> impl Iterator<Item = &Said> {
        self.said
            .iter()
            .filter(move |said| said.reason.region.as_ref() == Some(region))
    }

    pub(crate) fn say(&mut self, at: Duration, line: &str) {
        use fmt::Write as _;
        writeln!(self.transcript, "{:>7.1}s  {line}", at.as_secs_f64()).expect("text can always grow");
    }
}
