//! The state of a control plane, for readers: gRPC services, readiness and metrics.

use std::collections::BTreeMap;

use planning::{EdgeSeen, Input, Report};
use topology::{EdgeId, Moment, PlanNumber, Reason, Tick};
use verdict::Clocks;

use crate::{
    records::Document,
    store::{LeaderRecord, StoreError},
    texts::store as texts,
};

/// The state of the deciding task, for readers. Whole and immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The input of the last decision. Its `current` is the plan in force.
    pub input: Input,
    /// The reasons of the last decision.
    pub report: Report,
    /// The topology document in force.
    pub topology: Document,
    /// The policy document in force.
    pub policy: Document,
    /// Leading, or following a leader.
    pub role: Role,
    /// Differences between the vantages' clocks and this control plane's.
    pub clocks: Clocks,
    /// Progress of the steps of deciding, and the error that stops them.
    pub progress: Progress,
    /// Signs of life of every edge.
    pub edges: BTreeMap<EdgeId, EdgeSeen>,
}

/// The last time of each step of deciding; `None` for a step that never happened. Status, readiness and metrics read
/// only this, so that they cannot contradict each other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// The newest tick that was judged, and the time of judging it.
    pub judged: Option<(Tick, Moment)>,
    /// Time of the last decision, even if it changed nothing. Only a leader decides.
    pub decided_at: Option<Moment>,
    /// Time at which the store last took a write of this replica, or reported that it takes writes.
    pub store_took_at: Option<Moment>,
    /// The published plan, and the time of publishing it.
    pub published: Option<(PlanNumber, Moment)>,
    /// The error that keeps decisions from being written; `None` while they can be.
    pub unwritten: Option<Unwritten>,
    /// Time since which this replica knows no leader; `None` while it leads or knows one.
    pub leaderless_since: Option<Moment>,
}

/// Decisions cannot be written, or the store's documents cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Unwritten {
    /// Time of the first error.
    pub since: Moment,
    /// The newest error of the store.
    pub error: StoreError,
    /// Decisions that are not in force because of it.
    pub pending: Vec<Reason>,
    /// Set if a decision waits for the store. Then only a commit ends the state.
    pub is_retried: bool,
}

impl View {
    /// The reason for which readiness fails: this replica leads and cannot write, or cannot read the store. `None`
    /// otherwise, and also if another replica may decide.
    pub fn why_not_deciding(&self) -> Option<String> {
        let unwritten = self.progress.unwritten.as_ref()?;
        let (since, error) = (unwritten.since, &unwritten.error);
        Some(texts::cannot_write(since, error, error.remedy()))
    }

    /// The reason why no leader is known, with its time; `None` while one is known.
    pub fn why_leaderless(&self) -> Option<String> {
        let since = self.progress.leaderless_since?;
        let text = match &self.role {
            Role::Leading | Role::Following(Leader::Known(_)) => return None,
            Role::Following(Leader::Nobody) => texts::nobody_leads(since),
            Role::Following(Leader::Unknown(error)) => texts::leader_unknown(since, error),
            Role::Following(Leader::Unfit(error)) => texts::nobody_leads_and_this_one_is_unfit(since, error),
        };
        Some(text)
    }
}

/// The role of this replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// This replica leads.
    Leading,
    /// Another replica leads, or none.
    Following(Leader),
}

/// The leader as a follower knows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Leader {
    /// A replica leads.
    #[error("{}", texts::leads(.0.node.as_str(), .0.url.as_str()))]
    Known(LeaderRecord),
    /// No replica leads until one is elected.
    #[error("{}", texts::nobody_leads_now())]
    Nobody,
    /// The store did not answer. Without the store no leader is elected.
    #[error("{}", texts::leader_unknown_now(.0))]
    Unknown(StoreError),
    /// No replica leads, and this one does not stand for election, because it cannot read the store's documents.
    #[error("{}", texts::unfit_now(.0))]
    Unfit(StoreError),
}

impl From<Result<Option<LeaderRecord>, StoreError>> for Leader {
    fn from(found: Result<Option<LeaderRecord>, StoreError>) -> Self {
        match found {
            Ok(Some(leader)) => Self::Known(leader),
            Ok(None) => Self::Nobody,
            Err(error) => Self::Unknown(error),
        }
    }
}
