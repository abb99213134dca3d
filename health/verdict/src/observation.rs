//! The observations of one vantage: of one component of one region in one tick.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use topology::{Component, EdgeId, NodeId, Plan, RegionId, Tick, Topology};

use crate::Latency;

/// Longest failure text carried, in characters: enough for a reason, too little to fill a log.
pub const FAILURE_LENGTH_MAX: usize = 200;

/// Most probes that count for one vantage, component and tick. A vantage makes two of each stack; a region has few
/// enough stacks for this.
pub const PROBES_MAX: u32 = 64;
/// Most attempts of real traffic that count for one vantage, component and tick: 10,000 in 10 s are the turns of some
/// 50,000 sessions, which is more than an edge holds. A vantage that claims more counts like one that saw this many.
pub const TRAFFIC_MAX: u32 = 10_000;

/// The source of an observation: a probe or real traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// An active probe.
    Probe,
    /// A device's session or request.
    Traffic,
}

/// Counts and latencies of one component of one region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The region.
    pub region: RegionId,
    /// The component.
    pub component: Component,
    /// The source of the attempts.
    pub source: Source,
    /// The stack, where the vantage names it. Older vantages do not, for some components or for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<SocketAddr>,
    /// Attempts that succeeded.
    pub succeeded: u32,
    /// Attempts that failed.
    pub failed: u32,
    /// Latencies of the successful attempts.
    pub latency: Latency,
    /// One of the failures in words; empty when none failed.
    pub failure: String,
}

/// The report of one vantage on one closed tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TickReport {
    /// The vantage.
    pub vantage: NodeId,
    /// The tick.
    pub tick: Tick,
    /// One entry per region, component and source.
    pub observations: Vec<Observation>,
    /// The lag of copies of replicated data, where the vantage measured it.
    pub replication: Vec<ReplicationLag>,
    /// The results of each version of the stack, while one is rolled out.
    pub versions: Vec<VersionSeen>,
    /// The real traffic, one entry per region that had some.
    #[serde(default)]
    pub traffic: Vec<TrafficSeen>,
    /// The edges that it tried at their public addresses.
    #[serde(default)]
    pub edges: Vec<EdgeProbe>,
}

/// The attempt of a vantage to reach an edge at one of its public addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeProbe {
    /// The edge.
    pub edge: EdgeId,
    /// Whether the edge answered.
    pub reached: bool,
    /// The failure in words; empty when the edge answered.
    pub failure: String,
}

/// The real traffic of an edge in one tick.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Passive {
    /// The part that triggers judge, beside the probes.
    pub observations: Vec<Observation>,
    /// See [`TickReport::versions`].
    pub versions: Vec<VersionSeen>,
    /// See [`TickReport::traffic`].
    pub traffic: Vec<TrafficSeen>,
}

/// The real traffic of one region in one tick.
///
/// Triggers do not judge it: their part is among the observations, by component. This is the rest, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrafficSeen {
    /// The region.
    pub region: RegionId,
    /// Number of connections for sessions and requests that the region accepted.
    pub connects_ok: u32,
    /// Number of connections that it did not accept.
    pub connects_failed: u32,
    /// Number of sessions and requests that it lost midway. A session that ends in order is not lost.
    pub aborts: u32,
    /// Number of answered turns.
    pub turns_ok: u32,
    /// Number of failed turns.
    pub turns_failed: u32,
    /// Number of its sessions at the end of the tick. Zero from older vantages.
    #[serde(default)]
    pub sessions: u32,
    /// Time to accept a TCP connection.
    pub connect: Latency,
    /// Time to answer a session's upgrade, its connection included.
    pub first_byte: Latency,
    /// Time from the end of the user's speech to the first audio of the reply.
    pub turn: Latency,
}

/// The lag of the copies of one class of a region's data behind their writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationLag {
    /// The region that owns the data.
    pub region: RegionId,
    /// The class in the policy.
    pub class: String,
    /// Age of the newest write that the copy does not have.
    pub behind: Duration,
}

/// The results of one version of the stack in one tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionSeen {
    /// The version.
    pub version: String,
    /// Number of sessions that began on it.
    pub sessions: u32,
    /// Number of answered turns.
    pub turns_succeeded: u32,
    /// Number of failed turns.
    pub turns_failed: u32,
    /// Latencies of turns.
    pub latency: Latency,
    /// Number of audio underruns that devices reported.
    pub underruns: u32,
    /// Number of GPU memory errors of its stacks.
    pub gpu_memory_errors: u32,
}

impl TickReport {
    /// A report with health observations alone.
    pub fn new(vantage: NodeId, tick: Tick, observations: Vec<Observation>) -> Self {
        Self {
            vantage,
            tick,
            observations,
            replication: Vec::new(),
            versions: Vec::new(),
            traffic: Vec::new(),
            edges: Vec::new(),
        }
    }

    /// Removes observations of stacks that get no sessions by this plan, or that do not exist. A region is judged by
    /// the best of its stacks, in every component: a vantage that names a made-up stack, or probes a drained one by an
    /// older plan, would hide that all the others are dead.
    pub fn keep_stacks_with_sessions(&mut self, plan: &Plan, topology: &Topology) {
        // Most reports come in the order of regions: each region is looked up once then.
        let mut looked_up: Option<(RegionId, Vec<SocketAddr>)> = None;
        self.observations.retain(|seen| {
            let Some(stack) = seen.stack else { return true };
            if looked_up.as_ref().is_none_or(|(region, _)| *region != seen.region) {
                let region = topology.regions.get(&seen.region);
                let stacks = region.into_iter().flat_map(|region| plan.stacks_with_sessions(region));
                looked_up = Some((seen.region.clone(), stacks.map(|stack| stack.address).collect()));
            }
            looked_up.as_ref().is_some_and(|(_, stacks)| stacks.contains(&stack))
        });
    }
}

impl VersionSeen {
    /// No results yet.
    pub fn new(version: &str) -> Self {
        Self {
            version: version.to_owned(),
            sessions: 0,
            turns_succeeded: 0,
            turns_failed: 0,
            latency: Latency::default(),
            underruns: 0,
            gpu_memory_errors: 0,
        }
    }
}

impl TrafficSeen {
    /// No traffic yet.
    pub fn new(region: RegionId) -> Self {
        let none = Latency::default;
        Self {
            region,
            connects_ok: 0,
            connects_failed: 0,
            aborts: 0,
            turns_ok: 0,
            turns_failed: 0,
            sessions: 0,
            connect: none(),
            first_byte: none(),
            turn: none(),
        }
    }

    /// Adds the traffic that another vantage saw in the same region.
    pub fn merge(&mut self, other: &TrafficSeen) {
        for (mine, others) in [
            (&mut self.connects_ok, other.connects_ok),
            (&mut self.connects_failed, other.connects_failed),
            (&mut self.aborts, other.aborts),
            (&mut self.turns_ok, other.turns_ok),
            (&mut self.turns_failed, other.turns_failed),
            (&mut self.sessions, other.sessions),
        ] {
            *mine = mine.saturating_add(others);
        }
        for (mine, others) in [
            (&mut self.connect, &other.connect),
            (&mut self.first_byte, &other.first_byte),
            (&mut self.turn, &other.turn),
        ] {
            if !others.is_empty() {
                mine.merge(others);
            }
        }
    }
}

impl Observation {
    /// No attempts yet.
    pub fn new(region: RegionId, component: Component, source: Source) -> Self {
        let (latency, failure) = (Latency::default(), String::new());
        Self {
            region,
            component,
            source,
            stack: None,
            succeeded: 0,
            failed: 0,
            latency,
            failure,
        }
    }

    /// Counts a success that took `latency_ms`.
    pub fn succeed(&mut self, latency_ms: f64) {
        self.succeeded = self.succeeded.saturating_add(1);
        self.latency.add(latency_ms);
    }

    /// Counts a failure.
    pub fn fail(&mut self, why: &str) {
        self.failed = self.failed.saturating_add(1);
        self.failure = why.chars().take(FAILURE_LENGTH_MAX).collect();
    }

    /// Adds the attempts of another observation of the same component.
    pub fn merge(&mut self, other: &Observation) {
        self.succeeded = self.succeeded.saturating_add(other.succeeded);
        self.failed = self.failed.saturating_add(other.failed);
        self.latency.merge(&other.latency);
        if !other.failure.is_empty() {
            self.failure.clone_from(&other.failure);
        }
    }

    /// Cuts the counts to the most that one vantage can have seen in a tick; the share of failures stays the same.
    pub(crate) fn cap(&mut self) {
        let max = match self.source {
            Source::Probe => PROBES_MAX,
            Source::Traffic => TRAFFIC_MAX,
        };
        self.cut_to(max);
    }

    /// Cuts the counts to `max`; the share of failures stays the same.
    pub(crate) fn cut_to(&mut self, max: u32) {
        // A sketch cannot be made smaller: one with more latencies than successes is dropped.
        if self.latency.count() > u64::from(self.succeeded.min(max)) {
            self.latency = Latency::default();
        }
        (self.succeeded, self.failed) = shared(self.succeeded, self.failed, max);
    }

    /// Attempts, failed or not.
    pub fn samples(&self) -> u32 {
        self.succeeded.saturating_add(self.failed)
    }
}

/// Successes and failures, cut to `max` together; their shares stay.
pub(crate) fn shared(succeeded: u32, failed: u32, max: u32) -> (u32, u32) {
    let all = u64::from(succeeded) + u64::from(failed);
    if all <= u64::from(max) {
        return (succeeded, failed);
    }
    let failed = u64::from(max) * u64::from(failed) / all;
    // A share of a number up to `max`.
    let failed = u32::try_from(failed).unwrap_or(max);
    (max - failed, failed)
}
