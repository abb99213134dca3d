//! The input of a decision.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use topology::{EdgeId, Intent, Moment, NodeId, Plan, PlanNumber, Policy, RegionId, Topology};
use verdict::{Unreached, Verdict};

use crate::Memory;

/// An accepted loss of everything that was not copied, however much that is.
pub const ANY_LOSS: Duration = Duration::from_millis(u64::MAX);

/// All facts of a decision besides `now`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The regions, edges and name servers that exist.
    pub topology: Topology,
    /// The rules and limits of decisions.
    pub policy: Policy,
    /// The plan in force; none before the first.
    pub current: Option<Plan>,
    /// The newest verdict on every region. No vantage has seen a region without one yet.
    pub verdicts: BTreeMap<RegionId, Verdict>,
    /// The memory of earlier decisions.
    pub memory: Memory,
    /// The request of an operator, if there is one. This decision carries it out, refuses it, or keeps it waiting.
    pub request: Option<Intent>,
    /// For each primary and data class: the lag of the copies behind its writer. Absent when it was not measured.
    pub replication: BTreeMap<RegionId, BTreeMap<String, Lag>>,
    /// The observations of the version that is rolled out.
    pub rollout: Option<RolloutSeen>,
    /// The nodes that refuse the plan in force, if any does.
    pub refusal: Option<Refusal>,
    /// The signs of life of edges that are lost, and of those that were silent or out of reach just now. The others
    /// need no decision.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub edges: BTreeMap<EdgeId, EdgeSeen>,
    /// The newest generation that most of the edges which DNS names apply. Set while an order waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
    /// The differences between the new documents and those in force, in words; empty when none are applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// A plan that nodes hold and that is newer than `current`: the store lost it, or was restored from an old copy.
    pub recovered: Option<Plan>,
    /// Fencing token of the leader that decides.
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
            applied: None,
            differences: Vec::new(),
            recovered: None,
            epoch,
        }
    }

    pub(crate) fn primaries(&self) -> Vec<RegionId> {
        self.topology.primaries().map(|region| region.id.clone()).collect()
    }

    pub(crate) fn has_stack(&self, stack: &SocketAddr) -> bool {
        let mut stacks = self.topology.regions.values().flat_map(|region| &region.stacks);
        stacks.any(|it| it.address == *stack)
    }
}

/// The signs of life of an edge: it follows plans or sends a report, and vantages reach it as devices do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeSeen {
    /// Time of the last sign of life; the begin of listening, if there was none.
    pub heard_at: Moment,
    /// Begin of the time without a gap that is long enough to make the edge lost.
    pub heard_since: Moment,
    /// The vantages that do not reach it at its public addresses, while they are most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreached: Option<Unreached>,
    /// Begin of the time in which most vantages reach it; none while that is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_since: Option<Moment>,
}

impl EdgeSeen {
    /// An edge that gave signs of life; whether devices reach it is unknown.
    pub fn heard(heard_at: Moment, heard_since: Moment) -> Self {
        Self {
            heard_at,
            heard_since,
            unreached: None,
            reached_since: None,
        }
    }
}

/// The lag of the newest copy of a data class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lag {
    /// Age of the newest write that the copy does not have.
    pub behind: Duration,
    /// Time of the measurement.
    pub at: Moment,
}

/// The observations of a new version of the stack beside the old one: since its current rollout step began, and lately.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutSeen {
    /// The new version.
    pub version: String,
    /// Number of sessions on it.
    pub sessions: u32,
    /// Number of answered turns.
    pub turns_succeeded: u64,
    /// Number of failed turns.
    pub turns_failed: u64,
    /// P95 latency of its turns, in milliseconds; none when nothing was timed.
    pub p95_ms: Option<f64>,
    /// The same of the old version.
    pub old_p95_ms: Option<f64>,
    /// Audio underruns that devices reported.
    pub underruns: u64,
    /// GPU memory errors of its stacks.
    pub gpu_memory_errors: u64,
    /// The same over the last minutes only, the policy's `rollout.window`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent: Option<Box<RolloutSeen>>,
}

/// Nodes that refuse the plan in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The plan they refuse.
    pub number: PlanNumber,
    /// Each node with its error.
    pub nodes: BTreeMap<NodeId, String>,
    /// Number of nodes that follow plans now, these included.
    pub following: u32,
    /// The newest plan that every following node acknowledged.
    pub acknowledged: Option<Plan>,
}

/// Limits of a quotation: nodes whose errors a reason repeats, and characters of each. The first few tell enough.
pub(crate) const REFUSALS_QUOTED: usize = 5;
const QUOTED_LENGTH_MAX: usize = 300;

/// The part of a node's error that a reason repeats.
pub(crate) fn quoted(words: &str) -> &str {
    let end = words.char_indices().nth(QUOTED_LENGTH_MAX).map(|(at, _)| at);
    &words[..end.unwrap_or(words.len())]
}
