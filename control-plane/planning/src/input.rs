//! What a decision is made from, and what comes of it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use topology::{EdgeId, Intent, Moment, NodeId, Plan, PlanNumber, Policy, Reason, ReasonCode, RegionId, Topology};
use verdict::Verdict;

use crate::Memory;

/// Everything a decision is made from, besides `now`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// What exists.
    pub topology: Topology,
    /// The rules.
    pub policy: Policy,
    /// The plan in force; none before the first.
    pub current: Option<Plan>,
    /// What is believed about every region. A region without a verdict has not been seen yet.
    pub verdicts: BTreeMap<RegionId, Verdict>,
    /// What earlier decisions left to remember.
    pub memory: Memory,
    /// What an operator asks for now, if somebody does. It is carried out, refused or kept waiting by this decision.
    pub request: Option<Intent>,
    /// For each primary and data class: how far the copies lag behind its writer. Absent when nobody measured it.
    pub replication: BTreeMap<RegionId, BTreeMap<String, Lag>>,
    /// What was seen of the version that is being rolled out.
    pub rollout: Option<RolloutSeen>,
    /// Which nodes refuse the plan in force, if any does.
    pub refusal: Option<Refusal>,
    /// What was heard of edges as processes: of those that are lost, and of those that were not heard of just now. Of the
    /// others there is nothing to decide.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub edges: BTreeMap<EdgeId, EdgeSeen>,
    /// A plan that nodes hold and that is newer than `current`: the store lost it, or was restored from an old copy.
    pub recovered: Option<Plan>,
    /// Fencing token of the leader that asks.
    pub epoch: u64,
}

impl Input {
    /// An input in which nothing has happened yet.
    pub fn new(topology: Topology, policy: Policy, epoch: u64) -> Self {
        Self {
            topology,
            policy,
            current: None,
            verdicts: BTreeMap::new(),
            memory: Memory::default(),
            request: None,
            replication: BTreeMap::new(),
            rollout: None,
            refusal: None,
            edges: BTreeMap::new(),
            recovered: None,
            epoch,
        }
    }
}

/// What was heard of an edge: that it follows plans, or a report of its.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeSeen {
    /// The last time; when we began to listen, if never.
    pub heard_at: Moment,
    /// Since when without a gap as long as makes it lost.
    pub heard_since: Moment,
}

/// How far the newest copy of a class of data is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lag {
    /// Age of the newest write that the copy does not have.
    pub behind: Duration,
    /// When it was measured.
    pub at: Moment,
}

/// What was seen of a new version of the stack, beside the old one: since its current rollout step began, and lately.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutSeen {
    /// The new version.
    pub version: String,
    /// Sessions on it.
    pub sessions: u32,
    /// Turns that were answered.
    pub turns_succeeded: u64,
    /// Turns that failed.
    pub turns_failed: u64,
    /// P95 latency of its turns, in milliseconds; none when nothing was timed.
    pub p95_ms: Option<f64>,
    /// The same of the old version.
    pub old_p95_ms: Option<f64>,
    /// Audio underruns that devices reported.
    pub underruns: u64,
    /// GPU memory errors of its stacks.
    pub gpu_memory_errors: u64,
    /// The same of the last minutes only, as many as the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent: Option<Box<RolloutSeen>>,
}

/// Nodes that refuse the plan in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The plan they refuse.
    pub number: PlanNumber,
    /// Who, and why.
    pub nodes: BTreeMap<NodeId, String>,
    /// Nodes that follow plans now, these included.
    pub following: u32,
    /// The newest plan that every following node acknowledged.
    pub acknowledged: Option<Plan>,
}

/// Most nodes whose words about a plan they refuse are repeated, and of each so many characters: the first few say it.
pub(crate) const REFUSALS_QUOTED: usize = 5;
const QUOTED_LENGTH_MAX: usize = 300;

/// What is repeated of a node's words.
pub(crate) fn quoted(words: &str) -> &str {
    let end = words.char_indices().nth(QUOTED_LENGTH_MAX).map(|(at, _)| at);
    &words[..end.unwrap_or(words.len())]
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The next plan; none when nothing changes.
    pub plan: Option<Plan>,
    /// What to remember for the next decision.
    pub memory: Memory,
    /// Why.
    pub report: Report,
}

/// Why a decision is what it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// What changed.
    pub changed: Vec<Reason>,
    /// What a rule refused.
    pub refused: Vec<Reason>,
    /// What it waits for.
    pub waiting: Vec<Reason>,
    /// Every safety rule that was asked, and what it said.
    pub checks: Vec<Check>,
}

/// What one safety rule said about one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Which rule, by the code it refuses with.
    pub rule: ReasonCode,
    /// About which region.
    pub region: Option<RegionId>,
    /// Whether it agrees.
    pub passed: bool,
    /// What it compared, in words.
    pub text: String,
}
