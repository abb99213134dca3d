//! What a vantage saw of one component of one region in one tick.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use topology::{Component, NodeId, Plan, RegionId, Tick, Topology};

use crate::Latency;

/// Longest failure text carried, in characters: enough for a reason, too little to fill a log.
pub const FAILURE_LENGTH_MAX: usize = 200;

/// Most probes that count of one vantage, component and tick. It makes two of each stack; a region has few enough for this.
pub const PROBES_MAX: u32 = 64;
/// Most attempts of real traffic that count of one vantage, component and tick: 10,000 in 10 s are the turns of some 50,000
/// sessions, which is more than an edge holds. Whoever claims more counts like one that saw this many.
pub const TRAFFIC_MAX: u32 = 10_000;

/// Whether something was seen by probing or in real traffic.
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
    /// Where.
    pub region: RegionId,
    /// What.
    pub component: Component,
    /// How it was seen.
    pub source: Source,
    /// Of which stack it speaks, where the vantage tells: of the gateway, in its probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<SocketAddr>,
    /// Attempts that succeeded.
    pub succeeded: u32,
    /// Attempts that failed.
    pub failed: u32,
    /// How long the successful ones took.
    pub latency: Latency,
    /// One of the failures in words; empty when none failed.
    pub failure: String,
}

/// Everything one vantage saw in one closed tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TickReport {
    /// Who saw it.
    pub vantage: NodeId,
    /// When.
    pub tick: Tick,
    /// What was seen, one entry per region, component and source.
    pub observations: Vec<Observation>,
    /// How far copies of replicated data lag behind, where it measured that.
    pub replication: Vec<ReplicationLag>,
    /// What each version of the stack did, while one is rolled out.
    pub versions: Vec<VersionSeen>,
    /// What real traffic came to, one entry per region that had some.
    #[serde(default)]
    pub traffic: Vec<TrafficSeen>,
}

/// What an edge's real traffic says, of one tick.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Passive {
    /// What the triggers judge, beside the probes.
    pub observations: Vec<Observation>,
    /// See [`TickReport::versions`].
    pub versions: Vec<VersionSeen>,
    /// See [`TickReport::traffic`].
    pub traffic: Vec<TrafficSeen>,
}

/// What real traffic came to in one region in one tick.
///
/// Triggers do not judge it: what they may judge of it is among the observations, by component. It says the rest, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrafficSeen {
    /// Where.
    pub region: RegionId,
    /// Connections for sessions and requests that the region took.
    pub connects_ok: u32,
    /// Those it did not take.
    pub connects_failed: u32,
    /// Sessions and requests that it lost in the middle. One that ends in order is none.
    pub aborts: u32,
    /// Turns that were answered.
    pub turns_ok: u32,
    /// Turns that failed.
    pub turns_failed: u32,
    /// How long it took to accept a TCP connection.
    pub connect: Latency,
    /// How long it took to answer a session's upgrade, its connection included.
    pub first_byte: Latency,
    /// From the end of the user's speech to the first audio of the reply.
    pub turn: Latency,
}

/// How far the copies of one class of a region's data lag behind their writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationLag {
    /// The region whose data it is.
    pub region: RegionId,
    /// Which class of the policy.
    pub class: String,
    /// Age of the newest write that the copy does not have.
    pub behind: Duration,
}

/// What one version of the stack did in one tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionSeen {
    /// Which version.
    pub version: String,
    /// Sessions that began on it.
    pub sessions: u32,
    /// Turns that were answered.
    pub turns_succeeded: u32,
    /// Turns that failed.
    pub turns_failed: u32,
    /// How long turns took.
    pub latency: Latency,
    /// Audio underruns that devices reported.
    pub underruns: u32,
    /// GPU memory errors of its stacks.
    pub gpu_memory_errors: u32,
}

impl TickReport {
    /// A report on health alone.
    pub fn new(vantage: NodeId, tick: Tick, observations: Vec<Observation>) -> Self {
        Self {
            vantage,
            tick,
            observations,
            replication: Vec::new(),
            versions: Vec::new(),
            traffic: Vec::new(),
        }
    }

    /// Removes what it says of stacks that get no sessions by this plan, or that do not exist. A region is judged by the best of
    /// its stacks, so one vantage that names a made-up stack, or probes a drained one by an older plan, would hide that all
    /// the others are dead.
    pub fn keep_stacks_with_sessions(&mut self, plan: &Plan, topology: &Topology) {
        // Reports mostly come in the order of regions: each is looked up once then.
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
    /// Nothing seen yet.
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
    /// Nothing seen yet.
    pub fn new(region: RegionId) -> Self {
        let none = Latency::default;
        Self {
            region,
            connects_ok: 0,
            connects_failed: 0,
            aborts: 0,
            turns_ok: 0,
            turns_failed: 0,
            connect: none(),
            first_byte: none(),
            turn: none(),
        }
    }

    /// Adds what another vantage saw of the same region.
    pub fn merge(&mut self, other: &TrafficSeen) {
        for (mine, others) in [
            (&mut self.connects_ok, other.connects_ok),
            (&mut self.connects_failed, other.connects_failed),
            (&mut self.aborts, other.aborts),
            (&mut self.turns_ok, other.turns_ok),
            (&mut self.turns_failed, other.turns_failed),
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
    /// Nothing seen yet.
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

    /// Adds what another observation of the same component saw.
    pub fn merge(&mut self, other: &Observation) {
        self.succeeded = self.succeeded.saturating_add(other.succeeded);
        self.failed = self.failed.saturating_add(other.failed);
        self.latency.merge(&other.latency);
        if !other.failure.is_empty() {
            self.failure.clone_from(&other.failure);
        }
    }

    /// Holds the counts to what one vantage can have seen in a tick; the share that failed stays as it is.
    pub(crate) fn cap(&mut self) {
        let max = match self.source {
            Source::Probe => PROBES_MAX,
            Source::Traffic => TRAFFIC_MAX,
        };
        let (failed, samples) = (
            u64::from(self.failed),
            u64::from(self.succeeded) + u64::from(self.failed),
        );
        // A sketch cannot be made smaller: one of more successes than there can have been tells nothing.
        if self.latency.count() > u64::from(self.succeeded.min(max)) {
            self.latency = Latency::default();
        }
        if samples > u64::from(max) {
            self.failed = (u64::from(max) * failed / samples) as u32;
            self.succeeded = max - self.failed;
        }
    }

    /// Attempts of either outcome.
    pub fn samples(&self) -> u32 {
        self.succeeded.saturating_add(self.failed)
    }
}
