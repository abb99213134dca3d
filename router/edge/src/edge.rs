//! The state that all connections of an edge share.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use daemon::lag::Lag;
use identity::{Identity, Link, Speaks};
use parking_lot::Mutex;
use routing::{Affinity, Decision, Ejection, Table, Tried, User, admit::network, continuity::Budget};
use topology::{EdgeId, Moment, RegionId, Snapshot};
use verdict::{Passive, TrafficSeen};
use wire::Turn;

use crate::{
    Config,
    accept::{access::Access, admission::Admission},
    affinity_tokens::AffinityTokens,
    fault::{Cause, Event, Facts, Fault},
    metrics::Metrics,
    request_id::RequestId,
    session::copy_turns::CopyTurns,
    session::parked::Parked,
    session::registry::Sessions,
    stacks::fleet_view::FleetView,
    stacks::plans::Plans,
    stamp::Stamp,
    texts,
};

/// Sessions for which the edge tries a new plan before it is in force: enough that a region with half a percent shows.
const SESSIONS_TRIED: u32 = 256;
/// Least time between two warnings of a stack whose certificate this edge does not believe, or that does not believe its own.
const DOUBTS_LOGGED_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Edge {
    pub id: EdgeId,
    pub config: Config,
    pub plans: Plans,
    /// The view of the regions.
    pub fleet: FleetView,
    pub admission: Arc<Admission>,
    /// Recognises devices; `None` where the edge serves every device.
    pub access: Option<Arc<Access>>,
    /// The lateness of this process.
    pub lag: Lag,
    pub sessions: Arc<Sessions>,
    pub metrics: Metrics,
    /// The memory that lets sessions survive the loss of their region.
    pub budget: Arc<Budget>,
    /// The last checkpoints of sessions whose devices left.
    pub parked: Parked,
    /// Turns at copying checkpoints to other stacks.
    pub copy_turns: CopyTurns,
    pub affinity_tokens: AffinityTokens,
    /// The identity that this edge shows to stacks, which must prove their region in turn; `None` for plain text.
    identity: Option<Arc<Identity>>,
    /// The time of the last warning of each such stack.
    doubted: Mutex<BTreeMap<SocketAddr, Instant>>,
}

impl Edge {
    /// An edge without a plan.
    pub fn new(config: Config, metrics: Metrics) -> Self {
        Self {
            id: config.node.clone(),
            affinity_tokens: AffinityTokens::new(config.affinity_key.clone(), config.timeouts.affinity.0),
            budget: Arc::new(Budget::new(config.continuity.replay_bytes_total_max)),
            copy_turns: CopyTurns::default(),
            parked: Parked::new(config.continuity.parked_bytes_max),
            plans: Plans::default(),
            admission: Arc::new(Admission::new(&config)),
            access: None,
            lag: Lag::default(),
            fleet: FleetView::new(config.picking),
            config,
            sessions: Arc::new(Sessions::new(metrics.clone())),
            metrics,
            identity: None,
            doubted: Mutex::default(),
        }
    }

    /// Serves only devices that it recognises.
    #[must_use]
    pub fn with_access(self, access: Option<Arc<Access>>) -> Self {
        Self { access, ..self }
    }

    /// Proves the id of this edge to stacks, and accepts only stacks that prove their region.
    #[must_use]
    pub fn with_identity(self, identity: Option<Arc<Identity>>) -> Self {
        Self { identity, ..self }
    }

    /// Opens a connection to a stack of a region.
    ///
    /// # Errors
    ///
    /// As [`identity::dial`].
    pub(crate) async fn dial(&self, region: &RegionId, stack: SocketAddr, speaks: Speaks) -> io::Result<Link> {
        identity::dial(self.identity.as_ref(), region, stack, speaks).await
    }

    /// The identity that this edge shows to stacks.
    pub(crate) fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref()
    }

    /// Puts a plan in force: the whole table is built first, then one pointer is swapped. A reader of the old table
    /// keeps it until its session or request ends.
    pub fn apply(&self, snapshot: &Snapshot) {
        let table = Table::compile(snapshot, &self.id);
        let have = self.table().map(|table| table.number()).unwrap_or_default();
        // The follower refuses older plans already; this is the second check.
        if table.number() <= have {
            tracing::warn!(offered = %table.number(), %have, "{}", texts::PLAN_NOT_NEWER);
            return;
        }
        if !self.serves_by(&table) {
            tracing::error!(offered = %table.number(), %have, "{}", texts::PLAN_SERVES_NOBODY);
            self.metrics.plan_refused();
            return;
        }
        self.fleet.retain(&table);
        self.metrics.plan(table.number().generation, table.created_at());
        self.plans.put(table);
    }

    /// Whether a table gives each of some sessions a stack that the plan has. The edge tries this before the plan is in force, because
    /// afterwards it could serve nobody.
    fn serves_by(&self, table: &Table) -> bool {
        (0..SESSIONS_TRIED).all(|n| {
            let key = n.to_string();
            let tried = Tried::default();
            let picked = self
                .fleet
                .pick(table, &key, User::default(), None, &tried, daemon::clock::now());
            picked.is_some_and(|it| table.serves(&it.region, it.stack))
        })
    }

    /// The plan in force. Take it once and keep it for the entire session or request.
    pub fn table(&self) -> Option<Arc<Table>> {
        self.plans.in_force()
    }

    /// Blames the party at fault for a failure at a stack, see [`crate::fault`]. A fault of the region counts in the tick's report and
    /// towards the ejection of the stack; a fault of this edge counts as its own lack of room.
    pub fn blame(&self, at: &Decision, failed: Failed, facts: Facts, why: &str) -> Fault {
        let (region, stack, now) = (&at.region, at.stack, daemon::clock::now());
        let is_request = matches!(failed, Failed::Request { .. });
        let facts = match facts.event {
            Event::TimedOut if is_request && self.fleet.answers_probes(stack) => Facts {
                event: Event::Unanswered,
                ..facts
            },
            _ => facts,
        };
        let fault = facts.fault();
        self.metrics.fault(region, fault.as_str());
        if let Event::Io(cause @ (Cause::Refused | Cause::Unproven)) = facts.event {
            self.note_doubt(region, stack, cause, why);
        }
        let ejection = match (fault, failed) {
            (Fault::Region, Failed::ToBegin) => self.fleet.refused(region, stack, why, now),
            (Fault::Region, Failed::Session { client }) => {
                self.fleet
                    .lost(region, stack, Some(&at.version), Some(client), why, now)
            }
            (Fault::Region, Failed::Request { client }) => self.fleet.lost(region, stack, None, client, why, now),
            (Fault::Edge, _) => {
                // An edge that is late still has room for devices; only a missing resource closes it.
                if facts.event == Event::Io(Cause::Local) && self.admission.exhausted() {
                    tracing::warn!(%region, %stack, why, "{}", texts::NO_ROOM);
                }
                None
            }
            (Fault::Device | Fault::Nobody, _) => None,
        };
        self.note_ejection(region, stack, why, ejection);
        fault
    }

    /// Records the outcome of a turn that the stack of a session reported.
    pub fn turn_ended(&self, region: &RegionId, stack: SocketAddr, version: &str, turn: &Turn) {
        self.fleet.traffic.turn(region, stack, version, turn);
        let Some(table) = self.table() else { return };
        let others = table.stacks_of(region).iter().map(|stack| stack.address);
        let ejection = self.fleet.turn_ended(stack, turn, others, daemon::clock::now());
        self.note_ejection(region, stack, "it fails its turns", ejection);
    }

    /// The headers on the answers to a request with this id from this origin.
    pub fn stamp(&self, id: Option<&[u8]>, origin: Option<&[u8]>) -> Stamp {
        Stamp::of(&self.config.cors, id, origin)
    }

    /// Counts and logs a refusal before the edge asked a region.
    pub fn refused(&self, reason: &'static str, id: &RequestId) {
        self.metrics.refused(reason);
        // At debug level: a refused device comes again and again.
        tracing::debug!(reason, request_id = %id, "refused");
    }

    /// Counts and logs that a stack and this edge do not believe each other. The log has it once in a while, because every session
    /// meets it.
    fn note_doubt(&self, region: &RegionId, stack: SocketAddr, cause: Cause, why: &str) {
        let of = match cause {
            Cause::Refused => "edge",
            _ => "stack",
        };
        self.metrics.distrust(region, of);
        let now = Instant::now();
        let mut doubted = self.doubted.lock();
        doubted.retain(|_, at| at.elapsed() < DOUBTS_LOGGED_EVERY);
        if let Entry::Vacant(entry) = doubted.entry(stack) {
            entry.insert(now);
            tracing::warn!(%region, %stack, why, "{}", texts::STACK_NOT_BELIEVED);
        }
    }

    fn note_ejection(&self, region: &RegionId, stack: SocketAddr, why: &str, ejection: Option<Ejection>) {
        if let Some(ejection) = ejection {
            let (until, times, cause) = (ejection.until, ejection.times, ejection.cause);
            self.metrics.ejected(region);
            tracing::warn!(%region, %stack, %until, times, %cause, why, "{}", texts::STACK_EJECTED);
        }
    }

    /// The outcome of real traffic since the last call.
    pub fn passive(&self) -> Passive {
        let mut passive = self.fleet.traffic.take(self.table().as_deref());
        for (region, (sessions, _)) in self.sessions.by_region() {
            let at = passive.traffic.iter().position(|seen| seen.region == region);
            let at = at.unwrap_or_else(|| {
                passive.traffic.push(TrafficSeen::new(region));
                passive.traffic.len() - 1
            });
            passive.traffic[at].sessions = u32::try_from(sessions).unwrap_or(u32::MAX);
        }
        passive
    }

    /// Counts and logs a session or request that got another version than the plan gives it.
    pub fn note_version(&self, decision: &Decision, id: &RequestId) {
        let Some(missed) = &decision.version_missed else { return };
        self.metrics.version_missed(&decision.region, missed);
        let Decision { region, version, .. } = decision;
        tracing::info!(request_id = %id, %region, missed, version, "the region has no stack of the version; another serves");
    }

    /// Counts a session or request at the stack of its decision, until the caller drops the token.
    pub fn begins(self: &Arc<Self>, decision: &Decision) -> AtStack {
        if let Some(ignored) = decision.ejection_ignored {
            self.metrics.ejection_ignored(ignored.as_str());
        }
        let (edge, stack) = (self.clone(), decision.stack);
        edge.fleet.began(stack);
        AtStack { edge, stack }
    }

    /// The decisions for a session: the first, and then those that follow if each stack before fails.
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
        while let Some(decision) = self.fleet.pick(table, key, user, affinity, &tried, now) {
            tried.stack(&decision.region, decision.stack);
            decisions.push(decision);
        }
        decisions
    }
}

/// The task at which a stack failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// Taking a connection, a session or a request.
    ToBegin,
    /// Going on with the session of a client.
    Session { client: IpAddr },
    /// Answering a request of a client, if the client is known.
    Request { client: Option<IpAddr> },
}

/// Counts as a session or request at a stack, until it is dropped.
#[derive(Debug)]
pub struct AtStack {
    edge: Arc<Edge>,
    stack: SocketAddr,
}

impl Drop for AtStack {
    fn drop(&mut self) {
        self.edge.fleet.ended(self.stack);
    }
}

/// The key by which a session keeps its region: the name that its device sends, otherwise the address of its client. Without the
/// port, and for IPv6 without the half that devices change daily (RFC 8981), so that a household keeps its region.
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
