//! This edge's view of the regions: round trips, failures, loads, and the outcome of its traffic.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use probe::Probed;
use routing::{
    Affinity, Decision, Ejection, Policy, Request, Stacks, Table, Tried, User, affinity::Proof, latency::Distance, pick,
};
use serde::Serialize;
use tokio::{sync::Semaphore, time::Instant};
use topology::{Component, Moment, RegionId};
use wire::{Load, Turn};

use crate::stacks::traffic::{Took, Traffic};

/// Sessions that ask one stack at the same moment to take them over. When a region dies, thousands ask the next one; a
/// handshake takes a round trip, so this is some thousands a second, as many as a stack gets done.
const MOVES_AT_ONCE: usize = 512;

/// The last time at which any session heard a stack.
#[derive(Debug)]
pub struct LastHeard {
    began: Instant,
    at_ms: AtomicU64,
}

impl Default for LastHeard {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            at_ms: AtomicU64::new(0),
        }
    }
}

impl LastHeard {
    pub fn now(&self) {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at_ms.store(ms, Ordering::Relaxed);
    }

    pub fn elapsed(&self) -> Duration {
        let at = Duration::from_millis(self.at_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(at)
    }
}

/// All connections share it. Nobody holds the lock across an await.
#[derive(Debug)]
pub struct FleetView {
    policy: Policy,
    inner: Mutex<Inner>,
    /// The part of the report that belongs to the current tick.
    pub traffic: Traffic,
}

#[derive(Debug, Default)]
struct Inner {
    stacks: Stacks,
    heard: BTreeMap<SocketAddr, Arc<LastHeard>>,
    /// Slots for sessions that ask a stack to take them over.
    gates: BTreeMap<SocketAddr, Arc<Semaphore>>,
    distances: BTreeMap<RegionId, Distance>,
    /// The same in milliseconds, as `pick` takes them.
    rtt_ms: BTreeMap<RegionId, f64>,
    /// Regions that answered none of this edge's probes in the last tick, and no traffic since.
    silent: BTreeSet<RegionId>,
    /// Stacks that answered a probe of this edge in the last tick.
    answering: BTreeSet<SocketAddr>,
}

/// A choice, and the state of the stack at that moment.
#[derive(Debug)]
pub struct Picked {
    pub decision: Decision,
    /// See [`FleetView::is_out`]. A stack that was out is picked only when there is no other.
    pub was_out: bool,
}

/// The knowledge of one stack, for people.
#[derive(Debug, Serialize)]
pub struct StackSummary {
    region: RegionId,
    stack: SocketAddr,
    /// Smoothed answer time, which fades without traffic; a failure counts as one second.
    rtt_ms: Option<f64>,
    /// Sessions and requests of this edge.
    in_flight: u32,
    load: Option<Load>,
    is_full: bool,
    ejected_until: Option<Moment>,
    /// The percentage of its sessions that it gets again since its ejection ended.
    returned_percent: u8,
}

/// The knowledge at the time of an answer.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Round trips by the probes, in milliseconds: the distance by which homes are chosen.
    pub rtt_ms: BTreeMap<RegionId, f64>,
    /// Regions that answered none of this edge's probes in the last tick.
    pub silent: BTreeSet<RegionId>,
    /// Every stack of the plan.
    pub stacks: Vec<StackSummary>,
    /// Regions whose stacks are all ejected.
    pub ejected: Vec<RegionId>,
}

impl FleetView {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            inner: Mutex::default(),
            traffic: Traffic::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// The decision for a session, by everything that this edge saw.
    pub fn pick(
        &self,
        table: &Table,
        session_key: &str,
        user: User<'_>,
        affinity: Option<&Affinity>,
        tried: &Tried,
        now: Moment,
    ) -> Option<Decision> {
        self.pick_and_look(table, session_key, user, affinity, tried, now)
            .map(|picked| picked.decision)
    }

    /// The same, with the state of the stack under the same lock, so that no ejection comes between.
    pub fn pick_and_look(
        &self,
        table: &Table,
        session_key: &str,
        user: User<'_>,
        affinity: Option<&Affinity>,
        tried: &Tried,
        now: Moment,
    ) -> Option<Picked> {
        let inner = self.lock();
        let request = Request {
            session_key,
            user,
            affinity: affinity.map(|affinity| &affinity.region),
            is_there: affinity.is_some_and(|it| matches!(it.proof, Proof::IsThere | Proof::Remembers)),
            remembers: affinity.is_some_and(|it| it.proof == Proof::Remembers),
            silent: &inner.silent,
            affinity_at: affinity.map_or(Moment(0), |affinity| affinity.issued_at),
            tried,
            measured_rtt_ms: &inner.rtt_ms,
            stacks: &inner.stacks,
            policy: &self.policy,
            now,
        };
        let decision = pick(table, &request)?;
        let was_out = inner.is_out(&decision.region, decision.stack, now);
        Some(Picked { decision, was_out })
    }

    /// A stack accepted a TCP connection. The time that it took decides among the stacks of a region, but never between regions:
    /// under load it measures this edge as much as the network.
    pub fn reached(&self, region: &RegionId, stack: SocketAddr, took: Duration, now: Moment) {
        let took_ms = took.as_secs_f64() * 1000.0;
        self.lock().stacks.reached(stack, took_ms, now);
        self.traffic.reached(region, took);
    }

    /// Records the results of a tick's probes.
    pub fn probed(&self, probed: &Probed) {
        let mut inner = self.lock();
        for (region, ms) in &probed.rtt_ms {
            inner.measured(region, *ms);
        }
        inner.silent = probed.silent.clone();
        inner.answering = probed.answering.clone();
    }

    /// Whether a stack answered a probe of this edge in the last tick.
    pub fn answers_probes(&self, stack: SocketAddr) -> bool {
        self.lock().answering.contains(&stack)
    }

    /// Whether a region answered none of this edge's probes in the last tick, and no traffic since.
    pub fn is_silent(&self, region: &RegionId) -> bool {
        self.lock().silent.contains(region)
    }

    /// A stack answered an upgrade, this long after it was asked.
    pub fn answered(&self, region: &RegionId, stack: SocketAddr, took: Duration, now: Moment) {
        self.lock().silent.remove(region);
        self.worked(stack, now);
        self.traffic.took(region, stack, Took::Upgrade, took);
    }

    /// A stack took a connection that requests will use.
    pub fn accepted(&self, region: &RegionId, stack: SocketAddr, took: Duration, now: Moment) {
        self.lock().silent.remove(region);
        self.worked(stack, now);
        self.traffic.took(region, stack, Took::Connection, took);
    }

    /// A stack answered a request or a session.
    pub fn worked(&self, stack: SocketAddr, now: Moment) {
        let mut inner = self.lock();
        inner.stacks.succeeded(stack, now, &self.policy);
        if let Some(heard) = inner.heard.get(&stack) {
            heard.now();
        }
    }

    /// Records the load that a stack reported. Returns whether the stack is full.
    pub fn loaded(&self, stack: SocketAddr, load: Load, now: Moment) -> bool {
        self.lock().stacks.loaded(stack, load, now);
        load.is_full(self.policy.full_percent)
    }

    /// When a stack was last heard, shared by its sessions.
    pub fn heard(&self, stack: SocketAddr) -> Arc<LastHeard> {
        self.lock().heard.entry(stack).or_default().clone()
    }

    /// Whether this edge avoids a stack: it ejected the stack, or none of its probes of the region was answered.
    pub fn is_out(&self, region: &RegionId, stack: SocketAddr, now: Moment) -> bool {
        self.lock().is_out(region, stack, now)
    }

    /// The gate that sessions of other stacks pass before they ask this one.
    pub fn gate(&self, stack: SocketAddr) -> Arc<Semaphore> {
        let gate = || Arc::new(Semaphore::new(MOVES_AT_ONCE));
        self.lock().gates.entry(stack).or_insert_with(gate).clone()
    }

    /// A session or a request begins at a stack.
    pub fn began(&self, stack: SocketAddr) {
        self.lock().stacks.began(stack);
    }

    pub fn ended(&self, stack: SocketAddr) {
        self.lock().stacks.ended(stack);
    }

    /// A stack did not take a session or a request.
    pub fn refused(&self, region: &RegionId, stack: SocketAddr, why: &str, now: Moment) -> Option<Ejection> {
        self.traffic.refused(region, stack, why);
        self.lock().stacks.failed(stack, now, &self.policy)
    }

    /// A stack lost a session or a request of `client` in the middle; `version` is that of the session's stack.
    pub fn lost(
        &self,
        region: &RegionId,
        stack: SocketAddr,
        version: Option<&str>,
        client: Option<IpAddr>,
        why: &str,
        now: Moment,
    ) -> Option<Ejection> {
        self.traffic.lost(region, stack, version, client, why);
        self.lock().stacks.failed(stack, now, &self.policy)
    }

    /// A stack reports the outcome of a turn. Its own failures count towards its ejection while `others` of its region work.
    pub fn turn_ended(
        &self,
        stack: SocketAddr,
        turn: &Turn,
        others: impl Iterator<Item = SocketAddr>,
        now: Moment,
    ) -> Option<Ejection> {
        // The stack itself recognises, understands and speaks; skills call other services.
        let is_own = |component: &Component| matches!(component, Component::Asr | Component::Nlu | Component::Tts);
        let has_failed = turn.failed.as_ref().is_some_and(is_own);
        self.lock()
            .stacks
            .turn_ended(stack, has_failed, others, now, &self.policy)
    }

    /// The knowledge of the regions and stacks of a plan.
    pub fn summary(&self, table: &Table, now: Moment) -> Summary {
        let inner = self.lock();
        let known = |region: &RegionId, stack: SocketAddr| {
            let known = inner.stacks.get(stack).cloned().unwrap_or_default();
            StackSummary {
                region: region.clone(),
                stack,
                rtt_ms: known.rtt_ms(now),
                in_flight: known.in_flight(),
                load: known.load(now, &self.policy),
                is_full: known.is_full(now, &self.policy),
                ejected_until: known.ejected_until(now),
                returned_percent: (known.returned(now, &self.policy) * 100.0) as u8,
            }
        };
        let of_region = |(region, stacks): (&RegionId, &[topology::Stack])| {
            stacks
                .iter()
                .map(|stack| known(region, stack.address))
                .collect::<Vec<_>>()
        };
        let is_out = |(_, stacks): &(&RegionId, &[topology::Stack])| {
            stacks.iter().all(|stack| inner.stacks.is_ejected(stack.address, now))
        };
        Summary {
            rtt_ms: inner.rtt_ms.clone(),
            silent: inner.silent.clone(),
            stacks: table.regions().flat_map(of_region).collect(),
            ejected: table
                .regions()
                .filter(is_out)
                .map(|(region, _)| region.clone())
                .collect(),
        }
    }

    /// Forgets regions that the plan no longer has, so that the plan bounds the memory.
    pub fn retain(&self, table: &Table) {
        let regions: BTreeSet<&RegionId> = table.regions().map(|(region, _)| region).collect();
        let stacks = table
            .regions()
            .flat_map(|(_, stacks)| stacks.iter().map(|stack| stack.address))
            .collect();
        let mut inner = self.lock();
        inner.stacks.retain(&stacks);
        inner.heard.retain(|stack, _| stacks.contains(stack));
        inner.gates.retain(|stack, _| stacks.contains(stack));
        for stack in &stacks {
            inner.heard.entry(*stack).or_default();
        }
        inner.distances.retain(|region, _| regions.contains(region));
        inner.rtt_ms.retain(|region, _| regions.contains(region));
        inner.silent.retain(|region| regions.contains(region));
    }
}

impl Inner {
    fn is_out(&self, region: &RegionId, stack: SocketAddr, now: Moment) -> bool {
        self.silent.contains(region) || self.stacks.is_ejected(stack, now)
    }

    fn measured(&mut self, region: &RegionId, ms: f64) {
        let distance = self.distances.entry(region.clone()).or_default();
        distance.observe(ms);
        if let Some(ms) = distance.ms() {
            self.rtt_ms.insert(region.clone(), ms);
        }
    }
}
