//! What all connections of an edge share.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use routing::{
    Decision, Standing, Table, User,
    continuity::{Budget, Why},
};
use tokio::sync::watch;
use topology::{EdgeId, Moment, RegionId, Snapshot};

use crate::{Config, admission::Admission, metrics::Metrics, seen::Seen, sessions::Sessions};

/// One edge.
#[derive(Debug)]
pub struct Edge {
    /// Its name.
    pub id: EdgeId,
    /// What it was told.
    pub config: Config,
    /// The plan in force, compiled; `None` only until the first one, and nothing is accepted before that.
    table: ArcSwapOption<Table>,
    /// What it saw of the regions.
    pub seen: Seen,
    /// Who is let in.
    pub admission: Arc<Admission>,
    /// Its live sessions.
    pub sessions: Arc<Sessions>,
    /// What it counts.
    pub metrics: Metrics,
    /// Memory for what sessions keep to survive the loss of their region.
    pub budget: Arc<Budget>,
    /// Told whenever a plan comes in force.
    plans: watch::Sender<()>,
}

impl Edge {
    /// An edge without a plan.
    pub fn new(config: Config, metrics: Metrics) -> Self {
        Self {
            id: config.node.clone(),
            budget: Arc::new(Budget::new(config.continuity.replay_bytes_total_max)),
            plans: watch::Sender::new(()),
            admission: Arc::new(Admission::new(&config.limits)),
            config,
            table: ArcSwapOption::empty(),
            seen: Seen::default(),
            sessions: Arc::new(Sessions::new(metrics.clone())),
            metrics,
        }
    }

    /// Puts a plan in force: the whole table is built first, then one pointer is swapped. Whoever holds the old table
    /// keeps it until its session or request ends.
    pub fn apply(&self, snapshot: &Snapshot) {
        let table = Table::compile(snapshot, &self.id);
        let have = self
            .table
            .load()
            .as_ref()
            .map(|table| table.number())
            .unwrap_or_default();
        // The follower refuses older plans already; this is the last door they would have to pass.
        if table.number() <= have {
            tracing::warn!(offered = %table.number(), %have, "plan is not newer; ignored");
            return;
        }
        self.seen.retain(&table);
        self.metrics.plan(table.number().generation, table.created_at());
        self.table.store(Some(Arc::new(table)));
        self.plans.send_replace(());
    }

    /// Resolves when the plan wants the sessions of a region, or of one of its stacks, gone. A region that it never planned sessions into is where
    /// sessions fled to; it does not chase them from there. With `newer` the plan in force does not count.
    pub async fn asks_to_leave(&self, region: RegionId, stack: SocketAddr, newer: bool) -> Why {
        let mut plans = self.plans.subscribe();
        let mut was_planned = false;
        let mut counts = !newer;
        loop {
            if let Some(table) = self.table() {
                match table.standing(&region) {
                    Standing::Evacuated if counts => return Why::Evacuated,
                    Standing::Unplanned if counts && was_planned => return Why::Drained,
                    _ if counts && !table.serves(&region, stack) => return Why::Drained,
                    Standing::Planned => was_planned = true,
                    Standing::Evacuated | Standing::Unplanned => {}
                }
            }
            if plans.changed().await.is_err() {
                return std::future::pending().await;
            }
            counts = true;
        }
    }

    /// The plan in force. Take it once and keep it for the entire session or request.
    pub fn table(&self) -> Option<Arc<Table>> {
        self.table.load_full()
    }

    /// Where an affinity token says the session was; `None` for one that is not ours, forged or out of date.
    pub fn affinity(&self, token: &str, now: Moment) -> Option<RegionId> {
        let verified = self
            .config
            .affinity_key
            .0
            .verify(token, now, self.config.timeouts.affinity.0);
        match verified {
            Ok(affinity) => Some(affinity.region),
            Err(error) => {
                tracing::debug!(%error, "affinity token ignored");
                None
            }
        }
    }

    /// Counts a failure of a region, in the tick's observations and towards its ejection.
    pub fn region_failed(&self, region: &RegionId, why: &str) {
        if let Some(ejection) = self.seen.failed(region, why, daemon::clock::now()) {
            self.metrics.ejected(region);
            tracing::warn!(%region, until = %ejection.until, times = ejection.times, why, "region ejected");
        }
    }

    /// Takes note of the version of the stack that took a session or request, if it should have been another.
    pub fn note_version(&self, decision: &Decision) {
        let Some(missed) = &decision.version_missed else { return };
        self.metrics.version_missed(&decision.region, missed);
        let Decision { region, version, .. } = decision;
        tracing::info!(%region, missed, version, "the region has no stack of the version; another serves");
    }

    /// The decisions for a session, as if each region before failed.
    pub fn explain(&self, session_key: &str, user: &str, affinity: Option<&RegionId>, now: Moment) -> Vec<Decision> {
        let Some(table) = self.table() else {
            return Vec::new();
        };
        let user = User {
            name: user,
            version: None,
        };
        let mut tried = Vec::new();
        let mut decisions = Vec::new();
        while decisions.len() < self.config.limits.regions_tried_max
            && let Some(decision) = self.seen.pick(&table, session_key, user, affinity, &tried, now)
        {
            tried.push(decision.region.clone());
            decisions.push(decision);
        }
        decisions
    }
}
