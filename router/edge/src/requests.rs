//! What the HTTP requests of an edge share: budgets, breakers, and operators' own groups of servers. The decisions are
//! `routing`'s; this is where they are locked and counted. No lock is held across an await.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use routing::{
    breaker::{Breaker, Limit, Use},
    budget::Budget,
    hedge::Hedging,
    retry::Backoff,
    upstream,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use topology::{Moment, RegionId};

use crate::{config::Config, edge::AtStack, metrics::Metrics};

/// Shared by all requests.
pub struct Requests {
    retries: Mutex<Budget>,
    retries_max: u32,
    backoff: Backoff,
    /// Another one for every pause. They begin at the time of the start, so that edges which started together differ.
    seeds: AtomicU64,
    hedging: Mutex<Hedging>,
    buffered_bytes: Arc<Semaphore>,
    breakers: Arc<Breakers>,
    groups: Vec<Arc<Group>>,
    metrics: Metrics,
}

impl Requests {
    /// As configured.
    pub fn new(config: &Config, metrics: &Metrics) -> Self {
        let (retry, hedge) = (&config.retry, &config.hedge);
        let mut groups: Vec<Arc<Group>> = config
            .upstream
            .iter()
            .map(|upstream| Arc::new(Group::new(upstream, metrics.clone())))
            .collect();
        // The longest path that fits wins.
        groups.sort_by_key(|group| std::cmp::Reverse(group.path.len()));
        Self {
            retries: Mutex::new(Budget::new(retry.budget_percent, retry.budget_min)),
            retries_max: retry.retries_max,
            backoff: Backoff {
                base: retry.base.0,
                cap: retry.cap.0,
            },
            seeds: AtomicU64::new(daemon::clock::now().0 << 20),
            hedging: Mutex::new(Hedging::new(hedge.after.0, hedge.budget_percent)),
            buffered_bytes: Arc::new(Semaphore::new(config.limits.body_buffer_bytes_total_max)),
            breakers: Arc::new(Breakers {
                limits: config.breaker,
                regions: Mutex::default(),
            }),
            groups,
            metrics: metrics.clone(),
        }
    }

    /// A device asked for something.
    pub fn asked(&self, now: Moment) {
        lock(&self.retries).asked(now);
    }

    /// How long to wait before the next retry of a request that was retried `retries` times; `None` when there is none.
    pub fn retry(&self, retries: u32, now: Moment) -> Option<Duration> {
        if retries >= self.retries_max {
            return None;
        }
        let granted = lock(&self.retries).try_spend(now);
        self.metrics.retry(if granted { "granted" } else { "budget-exhausted" });
        let seed = self.seeds.fetch_add(1, Ordering::Relaxed);
        granted.then(|| self.backoff.pause(retries, seed))
    }

    /// A place for a request in a region, or the limit that forbids it.
    pub fn begin(&self, region: &RegionId, wanted: Use) -> Result<InFlight, Limit> {
        let begun = lock(&self.breakers.regions)
            .entry(region.clone())
            .or_default()
            .begin(&self.breakers.limits, wanted);
        begun.inspect_err(|limit| self.metrics.breaker_open(region, limit.as_str()))?;
        Ok(InFlight {
            breakers: self.breakers.clone(),
            region: region.clone(),
            had: wanted,
            waiting: true,
            at_stack: None,
        })
    }

    /// Memory for a part of a body.
    pub fn buffer(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        self.buffered_bytes.clone().try_acquire_many_owned(bytes).ok()
    }

    /// When and whether to copy requests.
    pub fn hedging(&self) -> MutexGuard<'_, Hedging> {
        lock(&self.hedging)
    }

    /// The group of servers behind a path.
    pub fn group(&self, path: &str) -> Option<Arc<Group>> {
        self.groups.iter().find(|group| path.starts_with(&group.path)).cloned()
    }
}

struct Breakers {
    limits: routing::breaker::Limits,
    /// Regions of past plans stay: a few, and empty.
    regions: Mutex<BTreeMap<RegionId, Breaker>>,
}

/// A request's place in a region; given back when it is dropped.
pub struct InFlight {
    breakers: Arc<Breakers>,
    region: RegionId,
    had: Use,
    waiting: bool,
    /// And its place at a stack there.
    pub at_stack: Option<AtStack>,
}

impl InFlight {
    /// It has its connection.
    pub fn connected(&mut self) {
        if std::mem::replace(&mut self.waiting, false)
            && let Some(breaker) = lock(&self.breakers.regions).get_mut(&self.region)
        {
            breaker.connected();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(breaker) = lock(&self.breakers.regions).get_mut(&self.region) {
            breaker.end(self.had, self.waiting);
        }
    }
}

/// Operators' own servers behind a path.
pub struct Group {
    /// As configured, with the final slash if it has one.
    pub path: String,
    servers: Vec<SocketAddr>,
    state: Mutex<upstream::Upstream>,
    metrics: Metrics,
}

impl Group {
    fn new(config: &crate::config::Upstream, metrics: Metrics) -> Self {
        let state = upstream::Upstream::new(config.servers.len(), config.max_fails, config.fail_timeout.0);
        Self {
            path: config.path.clone(),
            servers: config.servers.clone(),
            state: Mutex::new(state),
            metrics,
        }
    }

    /// A server that was not tried; `None` when all were.
    pub fn pick(self: &Arc<Self>, tried: &[usize], now: Moment) -> Option<Serving> {
        let index = lock(&self.state).pick(tried, now)?;
        Some(Serving {
            group: self.clone(),
            index,
            address: self.servers[index],
            failed: false,
        })
    }
}

/// A request at a server of a group; counted when it is dropped.
pub struct Serving {
    group: Arc<Group>,
    /// Which server of its group.
    pub index: usize,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether the server failed it.
    pub failed: bool,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let group = &self.group;
        let is_down = lock(&group.state).finish(self.index, self.failed, daemon::clock::now());
        if is_down {
            group.metrics.upstream_down(&group.path);
            tracing::warn!(path = group.path, server = %self.address, "server of a path marked down");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
