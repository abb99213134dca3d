//! What all connections of an edge share.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwapOption;
use routing::{
    Affinity, Decision, Ejection, Standing, Table, Tried, User,
    admit::network,
    continuity::{Budget, Why},
};
use tokio::sync::watch;
use topology::{EdgeId, Moment, PlanNumber, RegionId, Snapshot};
use verdict::Passive;

use crate::{
    Config,
    admission::Admission,
    fault::{Cause, Event, Facts, Fault},
    lag::Lag,
    metrics::Metrics,
    seen::Seen,
    sessions::Sessions,
};

/// Sessions that are placed by a new plan, in thought, before it is in force: enough that a part of a percent shows.
const SESSIONS_TRIED: u32 = 256;

/// One edge.
#[derive(Debug)]
pub struct Edge {
    /// Its name.
    pub id: EdgeId,
    /// What it was told.
    pub config: Config,
    /// The plan in force, compiled; `None` only until the first one, and nothing is accepted before that.
    table: ArcSwapOption<Table>,
    /// The one before, for whoever asks what it would have done.
    previous: ArcSwapOption<Table>,
    /// What it saw of the regions.
    pub seen: Seen,
    /// Who is let in.
    pub admission: Arc<Admission>,
    /// How late it is itself.
    pub lag: Lag,
    /// Its live sessions.
    pub sessions: Arc<Sessions>,
    /// What it counts.
    pub metrics: Metrics,
    /// Memory for what sessions keep to survive the loss of their region.
    pub budget: Arc<Budget>,
    /// The last token of each region.
    tokens: Mutex<BTreeMap<RegionId, Token>>,
    /// Told whenever a plan comes in force.
    plans: watch::Sender<()>,
}

impl Edge {
    /// An edge without a plan.
    pub fn new(config: Config, metrics: Metrics) -> Self {
        Self {
            id: config.node.clone(),
            tokens: Mutex::default(),
            budget: Arc::new(Budget::new(config.continuity.replay_bytes_total_max)),
            plans: watch::Sender::new(()),
            admission: Arc::new(Admission::new(&config)),
            lag: Lag::default(),
            seen: Seen::new(config.picking.policy()),
            config,
            table: ArcSwapOption::empty(),
            previous: ArcSwapOption::empty(),
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
        if !self.serves_by(&table) {
            tracing::error!(offered = %table.number(), %have, "plan would serve nobody here; ignored");
            self.metrics.plan_refused();
            return;
        }
        self.seen.retain(&table);
        self.metrics.plan(table.number().generation, table.created_at());
        self.previous.store(self.table.swap(Some(Arc::new(table))));
        self.plans.send_replace(());
    }

    /// Whether a table gives every one of some sessions a stack that it has: tried before it is in force, because nobody
    /// is left to tell afterwards.
    fn serves_by(&self, table: &Table) -> bool {
        (0..SESSIONS_TRIED).all(|n| {
            let key = n.to_string();
            let tried = Tried::default();
            let picked = self
                .seen
                .pick(table, &key, User::default(), None, &tried, daemon::clock::now());
            picked.is_some_and(|it| table.serves(&it.region, it.stack))
        })
    }

    /// Resolves when the plan wants the sessions of a region, or of one of its stacks, gone. A region that it never planned
    /// sessions into is where sessions fled to; it does not chase them from there. With `newer` the plan in force does not count.
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

    /// The plan in force and the one before.
    pub fn tables(&self) -> impl Iterator<Item = Arc<Table>> {
        [self.table.load_full(), self.previous.load_full()]
            .into_iter()
            .flatten()
    }

    /// The plan of a generation, while it is held.
    pub fn table_of(&self, generation: u64) -> Option<Arc<Table>> {
        self.tables().find(|table| table.number().generation == generation)
    }

    /// Where an affinity token says the session was, and when; `None` for one that is not ours, forged or out of date.
    pub fn affinity(&self, token: &str, now: Moment) -> Option<Affinity> {
        self.affinity_of(token, None, now)
    }

    /// The same, and whether `holder` is who the token was issued to.
    pub fn affinity_of(&self, token: &str, holder: Option<&str>, now: Moment) -> Option<Affinity> {
        let age_max = self.config.timeouts.affinity.0;
        let verified = self.config.affinity_key.0.verify(token, holder, now, age_max);
        match verified {
            Ok(affinity) => Some(affinity),
            Err(error) => {
                tracing::debug!(%error, "affinity token ignored");
                None
            }
        }
    }

    /// A token for the holder of a session in a region, who is let in before others with it.
    pub fn session_token(&self, holder: &str, region: &RegionId) -> String {
        let key = &self.config.affinity_key.0;
        key.issue_to(holder, region, daemon::clock::now())
    }

    /// A token for who asked something of a region: it steers, and lets nobody in. Many get the same, within a second and under the same plan: to sign one
    /// costs as much as half the rest of a small request.
    pub fn affinity_token(&self, decision: &Decision, now: Moment) -> Arc<str> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = tokens.get(&decision.region)
            && token.plan == decision.plan
            && token.second == now.0 / 1000
        {
            return token.text.clone();
        }
        let text: Arc<str> = self.config.affinity_key.0.issue(&decision.region, now).into();
        let token = Token {
            plan: decision.plan,
            second: now.0 / 1000,
            text: text.clone(),
        };
        tokens.insert(decision.region.clone(), token);
        text
    }

    /// Something that a stack was asked for failed. It counts where it belongs, see [`crate::fault`], and nowhere else: in the
    /// tick's report of the region and towards the ejection of the stack, or as this edge's own lack of room.
    pub fn blame(&self, at: &Decision, failed: Failed, facts: Facts, why: &str) -> Fault {
        let (region, stack, now) = (&at.region, at.stack, daemon::clock::now());
        let fault = facts.fault();
        self.metrics.fault(region, fault.as_str());
        let ejection = match (fault, failed) {
            (Fault::Region, Failed::ToBegin) => self.seen.refused(region, stack, why, now),
            (Fault::Region, Failed::Session { client }) => {
                self.seen.lost(region, stack, Some(&at.version), Some(client), why, now)
            }
            (Fault::Region, Failed::Request { client }) => self.seen.lost(region, stack, None, client, why, now),
            (Fault::Edge, _) => {
                // An edge that is late still has room for who comes; only what it ran out of closes it.
                if facts.event == Event::Io(Cause::Local) && self.admission.exhausted() {
                    tracing::warn!(
                        %region, %stack, why,
                        "this edge has no room; it turns new devices away for a moment and blames no region"
                    );
                }
                None
            }
            (Fault::Device | Fault::Nobody, _) => None,
        };
        self.note_ejection(region, stack, why, ejection);
        fault
    }

    fn note_ejection(&self, region: &RegionId, stack: SocketAddr, why: &str, ejection: Option<Ejection>) {
        if let Some(ejection) = ejection {
            let (until, times, cause) = (ejection.until, ejection.times, ejection.cause);
            self.metrics.ejected(region);
            tracing::warn!(%region, %stack, %until, times, %cause, why, "stack ejected");
        }
    }

    /// What real traffic came to since the last call.
    pub fn passive(&self) -> Passive {
        self.seen.traffic.take(self.table().as_deref())
    }

    /// Takes note of the version of the stack that took a session or request, if it should have been another.
    pub fn note_version(&self, decision: &Decision) {
        let Some(missed) = &decision.version_missed else { return };
        self.metrics.version_missed(&decision.region, missed);
        let Decision { region, version, .. } = decision;
        tracing::info!(%region, missed, version, "the region has no stack of the version; another serves");
    }

    /// A session or request begins where it was decided, and is over when what is returned is dropped.
    pub fn begins(self: &Arc<Self>, decision: &Decision) -> AtStack {
        if let Some(ignored) = decision.ejection_ignored {
            self.metrics.ejection_ignored(ignored.as_str());
        }
        let (edge, stack) = (self.clone(), decision.stack);
        edge.seen.began(stack);
        AtStack { edge, stack }
    }

    /// The decisions for a session, as if each before failed.
    pub fn explain(
        &self,
        table: &Table,
        key: &str,
        user: &str,
        affinity: Option<&Affinity>,
        now: Moment,
    ) -> Vec<Decision> {
        let user = User {
            name: user,
            version: None,
        };
        let mut tried = Tried::up_to(self.config.limits.regions_tried_max);
        let mut decisions = Vec::new();
        while let Some(decision) = self.seen.pick(table, key, user, affinity, &tried, now) {
            tried.stack(&decision.region, decision.stack);
            decisions.push(decision);
        }
        decisions
    }
}

/// What a stack was asked for when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// To take a connection, a session or a request.
    ToBegin,
    /// To go on with the session of a client.
    Session {
        /// Whose.
        client: IpAddr,
    },
    /// To answer a request of a client, if that is known.
    Request {
        /// Whose.
        client: Option<IpAddr>,
    },
}

/// An affinity token, and when it was issued.
#[derive(Debug)]
struct Token {
    plan: PlanNumber,
    second: u64,
    text: Arc<str>,
}

/// Counts as running at a stack while it exists.
#[derive(Debug)]
pub struct AtStack {
    edge: Arc<Edge>,
    stack: SocketAddr,
}

impl Drop for AtStack {
    fn drop(&mut self) {
        self.edge.seen.ended(self.stack);
    }
}

/// What keeps a session's place: the name it gives itself, else where it comes from. Without the port, and for IPv6 without
/// the half that devices change daily (RFC 8981), so that a household keeps its region.
pub fn session_key(named: Option<&str>, client: IpAddr) -> String {
    named.map_or_else(|| network(client).to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_household_has_one_key_and_a_named_session_its_own() {
        for (client, key) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
        ] {
            assert_eq!(session_key(None, client.parse().unwrap()), key);
            assert_eq!(session_key(Some("anna"), client.parse().unwrap()), "anna");
        }
    }
}
