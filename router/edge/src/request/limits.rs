//! The limits that all HTTP requests of an edge share: budgets, breakers, and operators' groups of servers. `routing` decides; this
//! file locks and counts. Nobody holds a lock across an await.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use routing::{
    admit::network,
    breaker::{Breaker, Demand, Limit},
    budget::Budget,
    hedge::Hedging,
    retry::Backoff,
    upstream,
};
use topology::{Moment, RegionId};

use crate::{
    config::{Config, Limits},
    edge::AtStack,
    metrics::Metrics,
    texts,
};

pub struct Requests {
    retries: Mutex<Budget>,
    retries_max: u32,
    backoff: Backoff,
    /// The next seed; each pause takes one. The first is the time of the start, so that edges which started together differ.
    seeds: AtomicU64,
    hedging: Mutex<Hedging>,
    bodies: Arc<Bodies>,
    breakers: Arc<Breakers>,
    groups: Vec<Arc<Group>>,
    metrics: Metrics,
}

impl Requests {
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
            bodies: Arc::new(Bodies::new(&config.limits)),
            breakers: Arc::new(Breakers {
                limits: config.breaker,
                regions: Mutex::default(),
            }),
            groups,
            metrics: metrics.clone(),
        }
    }

    /// Counts a request of a device for the budget of retries.
    pub fn count_request(&self, now: Moment) {
        self.retries.lock().count_request(now);
    }

    /// Takes a retry of a request out of the budget that was retried `retries` times already. Returns the pause before it; `None`
    /// when the budget allows none.
    pub fn retry(&self, retries: u32, now: Moment) -> Option<Duration> {
        if retries >= self.retries_max {
            return None;
        }
        let granted = self.retries.lock().try_spend(now);
        self.metrics.retry(if granted { "granted" } else { "budget-exhausted" });
        let seed = self.seeds.fetch_add(1, Ordering::Relaxed);
        granted.then(|| self.backoff.pause(retries, seed))
    }

    /// Takes a slot for a request in a region. Fails with the limit that forbids it.
    pub fn begin(&self, region: &RegionId, wanted: Demand) -> Result<InFlight, Limit> {
        let begun = self
            .breakers
            .regions
            .lock()
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

    /// Memory for a body of a client, empty at first.
    pub fn memory(&self, client: IpAddr) -> BodyMemory {
        BodyMemory {
            bodies: self.bodies.clone(),
            client: network(client),
            bytes: 0,
        }
    }

    /// The decision on second copies.
    pub fn hedging(&self) -> MutexGuard<'_, Hedging> {
        self.hedging.lock()
    }

    /// The group of servers behind a path.
    pub fn group(&self, path: &str) -> Option<Arc<Group>> {
        self.groups.iter().find(|group| path.starts_with(&group.path)).cloned()
    }
}

/// The memory for bodies that the edge holds.
struct Bodies {
    /// Most bytes of one client.
    client_max: usize,
    pool: Mutex<Pool>,
}

struct Pool {
    free: usize,
    /// Bytes by client. Each client here has some, so the memory bounds the number of clients.
    clients: HashMap<IpAddr, usize>,
}

impl Bodies {
    /// One client must not use up the memory that holds the recordings of all others; and one body must fit.
    const CLIENT_SHARE: usize = 8;

    fn new(limits: &Limits) -> Self {
        let total = limits.body_buffer_bytes_total_max;
        Self {
            client_max: (total / Self::CLIENT_SHARE).max(limits.body_buffer_bytes_max),
            pool: Mutex::new(Pool {
                free: total,
                clients: HashMap::new(),
            }),
        }
    }
}

/// Memory of one body; given back when it is dropped.
pub struct BodyMemory {
    bodies: Arc<Bodies>,
    client: IpAddr,
    bytes: usize,
}

impl BodyMemory {
    /// Takes more bytes. Returns false when not as many are free.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        let mut pool = self.bodies.pool.lock();
        let held = pool.clients.get(&self.client).copied().unwrap_or(0);
        if bytes > pool.free || bytes > self.bodies.client_max.saturating_sub(held) {
            return false;
        }
        pool.free -= bytes;
        pool.clients.insert(self.client, held + bytes);
        self.bytes += bytes;
        true
    }
}

impl Drop for BodyMemory {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut pool = self.bodies.pool.lock();
        pool.free += self.bytes;
        if let Entry::Occupied(mut held) = pool.clients.entry(self.client) {
            *held.get_mut() -= self.bytes.min(*held.get());
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

struct Breakers {
    limits: routing::breaker::Limits,
    /// Regions of past plans stay: a few, and empty.
    regions: Mutex<BTreeMap<RegionId, Breaker>>,
}

/// The slot of a request in a region, until this is dropped.
pub struct InFlight {
    breakers: Arc<Breakers>,
    region: RegionId,
    had: Demand,
    waiting: bool,
    /// Its count at the stack of that region.
    pub at_stack: Option<AtStack>,
}

impl InFlight {
    pub fn connected(&mut self) {
        if std::mem::replace(&mut self.waiting, false)
            && let Some(breaker) = self.breakers.regions.lock().get_mut(&self.region)
        {
            breaker.connected();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(breaker) = self.breakers.regions.lock().get_mut(&self.region) {
            breaker.end(self.had, self.waiting);
        }
    }
}

/// Operators' own servers behind a path.
pub struct Group {
    /// The configured path, with the final slash if it has one.
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

    /// Chooses a server that was not tried; `None` when all were.
    pub fn pick(self: &Arc<Self>, tried: &[usize], now: Moment) -> Option<Serving> {
        let index = self.state.lock().pick(tried, now)?;
        Some(Serving {
            group: self.clone(),
            index,
            address: self.servers[index],
            failed: false,
        })
    }
}

/// A request at a server of a group. Its outcome counts when this is dropped.
pub struct Serving {
    group: Arc<Group>,
    /// The index of the server in its group.
    pub index: usize,
    pub address: SocketAddr,
    /// Whether the server failed it.
    pub failed: bool,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let group = &self.group;
        let is_down = group.state.lock().finish(self.index, self.failed, daemon::clock::now());
        if is_down {
            group.metrics.upstream_down(&group.path);
            tracing::warn!(path = group.path, server = %self.address, "{}", texts::SERVER_DOWN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_gets_a_part_of_the_memory_for_bodies_and_gives_it_back() {
        let limits = Limits {
            body_buffer_bytes_max: 100,
            body_buffer_bytes_total_max: 1_600,
            ..Limits::default()
        };
        let bodies = Arc::new(Bodies::new(&limits));
        let of = |client: &str| BodyMemory {
            bodies: bodies.clone(),
            client: network(client.parse().unwrap()),
            bytes: 0,
        };
        let (mut first, mut second) = (of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert!(first.grow(150) && second.grow(50));
        assert!(!first.grow(1), "an eighth is 200");
        let mut others: Vec<BodyMemory> = (2..=8).map(|n| of(&format!("192.0.2.{n}"))).collect();
        assert!(others.iter_mut().all(|other| other.grow(200)), "and all of it is used");
        assert!(!of("192.0.2.9").grow(1));
        drop(first);
        assert!(second.grow(150) && !second.grow(1));
        drop((second, others));
        let pool = bodies.pool.lock();
        assert_eq!((pool.free, pool.clients.len()), (1_600, 0));
    }
}
