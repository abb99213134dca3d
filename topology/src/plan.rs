//! The plan: the whole routing truth, immutable and numbered.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{EdgeId, Level, Moment, RegionId};

/// What makes one plan newer than another. A receiver refuses anything that is not strictly greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PlanNumber {
    /// Grows by one with every plan.
    pub generation: u64,
    /// Fencing token of the leader that wrote it.
    pub epoch: u64,
}

impl fmt::Display for PlanNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.generation, self.epoch)
    }
}

/// The whole routing truth. Maps are ordered, so the same plan is always the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Grows by one with every plan.
    pub generation: u64,
    /// Fencing token of the leader that wrote it.
    pub epoch: u64,
    /// When it was decided.
    pub created_at: Moment,
    /// Digest of the documents it was made for: one number never means two worlds ([`crate::snapshot::digest`]).
    pub documents: String,
    /// Every region of the topology.
    pub regions: BTreeMap<RegionId, RegionPlan>,
    /// For every primary: where sessions at home there go. Percentages sum to 100; the order is the overflow order.
    pub routes: BTreeMap<RegionId, Vec<Share>>,
    /// Every edge of the topology.
    pub edges: BTreeMap<EdgeId, EdgeState>,
    /// Why this plan differs from the one before.
    pub reasons: Vec<Reason>,
}

/// What the plan says about one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionPlan {
    /// Whether it takes sessions.
    pub state: RegionState,
    /// How far its service is degraded.
    pub level: Level,
    /// When `state` (or its restore step) last changed.
    pub since: Moment,
}

/// Whether a region takes sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegionState {
    /// It takes every session planned for it.
    Serving,
    /// It takes none; its sessions went to its backups.
    Evacuated,
    /// It takes back this percentage (1..=99) of the sessions at home there.
    Restoring(u8),
}

impl fmt::Display for RegionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving => f.pad("serving"),
            Self::Evacuated => f.pad("evacuated"),
            Self::Restoring(percent) => f.pad(&format!("restoring {percent} %")),
        }
    }
}

/// A part of a primary's sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Where they go.
    pub region: RegionId,
    /// How many of them, in percent, 1..=100.
    pub percent: u8,
}

/// Whether DNS names an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EdgeState {
    /// Named in answers.
    Serving,
    /// Left out of answers.
    Drained,
}

impl fmt::Display for EdgeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Serving => "serving",
            Self::Drained => "drained",
        })
    }
}

/// Why something changed, was refused, or waits. Machine-readable by its code, and in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Which rule spoke.
    pub code: ReasonCode,
    /// The region it is about, if one.
    pub region: Option<RegionId>,
    /// One sentence for people.
    pub text: String,
    /// What the rule saw, one fact a line.
    pub evidence: Vec<String>,
}

/// The rules that change plans, refuse changes, or wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonCode {
    /// The first plan of a deployment.
    Genesis,
    /// The topology changed.
    TopologyChanged,
    /// A trigger fired and the region's sessions move to its backups.
    Failover,
    /// An operator moved the region's sessions to its backups.
    ForcedFailover,
    /// The region takes back a step of its sessions.
    RestoreStep,
    /// The region has all its sessions back.
    RestoreDone,
    /// The returning region failed its guard and was evacuated again.
    RestoreAborted,
    /// The degradation level changed.
    LevelChanged,
    /// Refused: no backup of the region is fit to take its sessions.
    NoFitBackup,
    /// Refused: the backups lack headroom for the region's sessions.
    NoHeadroom,
    /// Refused: everything looks dead, so weights are kept and people are called.
    EverythingLooksDead,
    /// Refused: two or more primaries turned bad together, so weights are kept and people are called.
    CorrelatedEvidence,
    /// Refused: an automatic evacuation is already in force.
    EvacuationLimit,
    /// Refused: too few regions would be left serving.
    RegionsServingMin,
    /// Refused: automation is frozen.
    Frozen,
    /// Refused: the region is not healthy enough to return.
    NotHealthy,
    /// Waits: a trigger needs more bad ticks.
    TriggerPending,
    /// Waits: too little is known to judge.
    NoData,
    /// Waits: the current restore step is held to its end.
    RestoreHold,
    /// Waits: an evacuated region is healthy again, and an operator decides when it returns.
    RestoreReady,
}

impl ReasonCode {
    /// The code as it is written in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Genesis => "genesis",
            Self::TopologyChanged => "topology-changed",
            Self::Failover => "failover",
            Self::ForcedFailover => "forced-failover",
            Self::RestoreStep => "restore-step",
            Self::RestoreDone => "restore-done",
            Self::RestoreAborted => "restore-aborted",
            Self::LevelChanged => "level-changed",
            Self::NoFitBackup => "no-fit-backup",
            Self::NoHeadroom => "no-headroom",
            Self::EverythingLooksDead => "everything-looks-dead",
            Self::CorrelatedEvidence => "correlated-evidence",
            Self::EvacuationLimit => "evacuation-limit",
            Self::RegionsServingMin => "regions-serving-min",
            Self::Frozen => "frozen",
            Self::NotHealthy => "not-healthy",
            Self::TriggerPending => "trigger-pending",
            Self::NoData => "no-data",
            Self::RestoreHold => "restore-hold",
            Self::RestoreReady => "restore-ready",
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Plan {
    /// What orders this plan among others.
    pub fn number(&self) -> PlanNumber {
        PlanNumber {
            generation: self.generation,
            epoch: self.epoch,
        }
    }

    /// Whether any session is planned into `region`.
    pub fn uses(&self, region: &RegionId) -> bool {
        self.routes.values().flatten().any(|share| &share.region == region)
    }
}
