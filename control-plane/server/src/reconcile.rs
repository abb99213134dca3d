//! The one task that decides. Every replica runs it: each takes reports and judges health, so that whoever leads next knows
//! as much as the leader; one leads, decides and writes; the others publish what it wrote.
//!
//! The leader re-reads nothing it wrote itself, and everything when it takes over or when the outcome of a write is unknown.
//! A store that fails never ends the task: nodes keep the plan they have, and deciding goes on when the store is back.

use std::{
    collections::{BTreeMap, VecDeque},
    mem::take,
    sync::Arc,
    time::Duration,
};

use planning::{Action, Input, Outcome, Phase, Report, audit, next_wake, plan};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use topology::{
    EdgeId, Intent, IntentKind, Moment, NodeId, Plan, Policy, Reason, ReasonCode, RegionId, RegionPlan, RegionState,
    Rule, Snapshot, Tick, Topology, snapshot::SNAPSHOT_SCHEMA,
};
use verdict::{Before, Health, TickReport, Windows, judge};

use crate::{
    metrics::{Label, Metrics, RegionHealth},
    nodes::Nodes,
    records::{self, AuditHead, Document, DocumentKind, RecordError, State},
    sightings::Sightings,
    store::{self, Candidate, Lead, LeaderRecord, Listing, Store, StoreError, Transaction},
};

/// How long after a tick's end its reports are waited for. Nodes report within milliseconds; the rest is their clocks.
const GRACE: Duration = Duration::from_millis(1_000);
/// Requests and reports waiting to be taken: a burst of every edge of a large fleet.
pub const INBOX_LENGTH: usize = 2_048;
/// Wait before the store is tried again.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Plans of this term that nodes can go back to.
const RECENT_KEPT: usize = 16;
/// How often followers look who leads.
const LEADER_LOOK: Duration = Duration::from_secs(1);

/// What the task is asked to do.
pub enum Request {
    /// Take a vantage's report.
    Observe(TickReport),
    /// Carry out what an operator asks, and say what came of it.
    Ask {
        /// What.
        intent: Intent,
        /// Only say what would come of it.
        dry_run: bool,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Answer, Unanswered>>,
    },
    /// Say what would be decided now.
    Rehearse(oneshot::Sender<Result<Answer, Unanswered>>),
    /// Put another document in force.
    Apply {
        /// Which, and by whom.
        document: Document,
        /// The version it replaces.
        replaces: String,
        /// Only say what would come of it.
        dry_run: bool,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Applied, Unanswered>>,
    },
    /// A node holds a plan that is newer than ours.
    Recover(Box<Plan>),
}

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Unanswered {
    /// We do not lead.
    #[error("{0}")]
    NotLeading(Leader),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What came of an operator's request.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What it became, or what was approved by it; none when it was refused.
    pub action: Option<Action>,
    /// What was decided.
    pub outcome: Outcome,
    /// The topology it was decided for.
    pub topology: Topology,
    /// The state after it, or before it for a rehearsal.
    pub view: Arc<View>,
}

/// What came of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Applied {
    /// It is wrong; every problem.
    Problems(Vec<String>),
    /// Somebody else changed it meanwhile: the version in force.
    Changed(String),
    /// It is, or would be, in force.
    InForce(Box<Answer>),
}

/// What is known and decided, for readers. Whole and immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Everything the last decision was made from; its `current` is the plan in force.
    pub input: Input,
    /// Why the last decision was what it was.
    pub report: Report,
    /// The documents in force.
    pub topology: Document,
    /// The documents in force.
    pub policy: Document,
    /// Whether we lead, and who does.
    pub role: Role,
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// We do.
    Leading,
    /// We do not.
    Following(Leader),
}

/// Who leads, as far as a control plane knows that does not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Leader {
    /// This one.
    #[error("{} leads, at {}", .0.node, .0.url)]
    Known(LeaderRecord),
    /// Nobody, until somebody is elected.
    #[error("no control plane leads right now")]
    Nobody,
    /// The store could not be asked; without it nobody is elected.
    #[error("no control plane is known to lead: {0}")]
    Unknown(StoreError),
}

impl From<Result<Option<LeaderRecord>, StoreError>> for Leader {
    fn from(found: Result<Option<LeaderRecord>, StoreError>) -> Self {
        match found {
            Ok(Some(leader)) => Self::Known(leader),
            Ok(None) => Self::Nobody,
            Err(error) => Self::Unknown(error),
        }
    }
}

/// What a replica is started with.
#[derive(Clone)]
pub struct Settings {
    /// Our name, also as a vantage, and where we are reached.
    pub candidate: Candidate,
    /// The documents for a store that has none.
    pub topology: Document,
    /// The documents for a store that has none.
    pub policy: Document,
}

/// The deciding task.
pub struct Reconciler {
    settings: Settings,
    store: Arc<dyn Store>,
    nodes: Nodes,
    metrics: Metrics,
    windows: Windows,
    sightings: Sightings,
    /// Newest tick that was judged.
    judged: Tick,
    input: Input,
    documents: (Document, Document),
    audit: AuditHead,
    /// By what the store's newest plan, memory and audit head were written: whatever else wrote them has the word.
    revisions: Revisions,
    /// The plans of this term, newest last: what nodes that refuse one can go back to.
    recent: VecDeque<Plan>,
    last_refused: Vec<Reason>,
    last_report: Report,
    role: Role,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    views: watch::Sender<Arc<View>>,
}

/// Revisions that what we last read or wrote was written by; none where nothing is.
#[derive(Debug, Clone, Copy, Default)]
struct Revisions {
    plan: Option<u64>,
    memory: Option<u64>,
    audit: Option<u64>,
}

/// Why a term as leader ended.
enum Ended {
    /// The process stops.
    Stopped,
    /// The lead was lost.
    Lost,
}

impl Reconciler {
    /// A replica that knows only what it was started with.
    pub fn new(settings: Settings, store: Arc<dyn Store>, nodes: Nodes, metrics: Metrics) -> Result<Self, RecordError> {
        let listing = Listing {
            revision: 0,
            entries: [&settings.topology, &settings.policy]
                .map(|document| {
                    let entry = store::Entry {
                        value: records::encode(document),
                        revision: 0,
                    };
                    (document.kind.key().to_owned(), entry)
                })
                .into(),
        };
        let state = records::state(&listing)?.expect("both documents were just put in");
        let input = Input::new(state.topology.1, state.policy.1, 0);
        let documents = (state.topology.0, state.policy.0);
        let role = Role::Following(Leader::Nobody);
        let view = View {
            input: input.clone(),
            report: Report::default(),
            topology: documents.0.clone(),
            policy: documents.1.clone(),
            role: role.clone(),
        };
        Ok(Self {
            settings,
            store,
            nodes,
            metrics,
            windows: Windows::default(),
            sightings: Sightings::default(),
            judged: Tick(0),
            input,
            documents,
            audit: AuditHead::default(),
            revisions: Revisions::default(),
            recent: VecDeque::new(),
            last_refused: Vec::new(),
            last_report: Report::default(),
            role,
            snapshots: watch::Sender::new(None),
            views: watch::Sender::new(Arc::new(view)),
        })
    }

    /// Snapshots as they are committed.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.subscribe()
    }

    /// Views as decisions are made.
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.views.subscribe()
    }

    /// Follows, leads, and follows again, until told to stop. `state` is a mirror of [`records::STATE`].
    pub async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Request>,
        mut state: watch::Receiver<Arc<Listing>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            let Some(lead) = self.follow(&mut inbox, &mut state, &stop).await else {
                return Ok(());
            };
            tracing::info!(epoch = lead.epoch(), "leading");
            let ended = self.lead(&lead, &mut inbox, &stop).await;
            // First of all nobody is told any more that we lead: a store that is away takes seconds to resign at.
            self.role = Role::Following(Leader::Nobody);
            self.metrics.leading.set(0);
            self.publish_view();
            // Successors need not wait for the lease to run out; if the store does not hear of it, they wait.
            if let Err(error) = lead.resign().await {
                tracing::debug!(%error, "the lead runs out by itself");
            }
            match ended {
                Ended::Stopped => return Ok(()),
                Ended::Lost => tracing::warn!(epoch = lead.epoch(), "the lead was lost; following"),
            }
        }
    }

    /// Follows what the leader writes until we lead; none when the process stops.
    async fn follow(
        &mut self,
        inbox: &mut mpsc::Receiver<Request>,
        state: &mut watch::Receiver<Arc<Listing>>,
        stop: &CancellationToken,
    ) -> Option<Lead> {
        let (store, candidate) = (self.store.clone(), self.settings.candidate.clone());
        let mut campaign = std::pin::pin!(async move {
            loop {
                match store.campaign(&candidate).await {
                    Ok(lead) => return lead,
                    Err(error) => tracing::warn!(%error, "cannot stand for election; trying again"),
                }
                sleep(STORE_RETRY).await;
            }
        });
        // Beside everything else, too: a store that is away takes seconds to say so, and reports and ticks go on.
        let (store, (seen, mut leader)) = (self.store.clone(), watch::channel(Leader::Nobody));
        let mut look = std::pin::pin!(async move {
            loop {
                seen.send_replace(store.leader().await.into());
                sleep(LEADER_LOOK).await;
            }
        });
        state.mark_changed();
        loop {
            let now = daemon::clock::now();
            if self.judge_if_due(now) {
                self.publish_view();
            }
            let wait = self.next_judgement(now).since(now).max(Duration::from_millis(5));
            tokio::select! {
                () = stop.cancelled() => return None,
                lead = &mut campaign => return Some(lead),
                Ok(()) = state.changed() => {
                    let listing = state.borrow_and_update().clone();
                    self.mirror(&listing);
                }
                () = &mut look => {}
                Ok(()) = leader.changed() => {
                    let leader = leader.borrow_and_update().clone();
                    self.follows(leader);
                }
                request = inbox.recv() => self.decline(request?),
                () = sleep(wait) => {}
            }
        }
    }

    /// Takes over what the leader wrote, and publishes it to the nodes that follow us.
    fn mirror(&mut self, listing: &Listing) {
        match records::state(listing) {
            Ok(Some(state)) => {
                self.adopt(state);
                self.publish_snapshot();
                self.publish_view();
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "what the store holds cannot be followed"),
        }
    }

    fn adopt(&mut self, state: State) {
        let State {
            plan,
            memory,
            topology,
            policy,
        } = state;
        if self.input.current.is_none() && plan.is_some() {
            // What was judged so far was judged without what the plan says was believed.
            self.input.verdicts.clear();
        }
        self.revisions.plan = plan.as_ref().map(|(_, revision)| *revision);
        self.input.current = plan.map(|(plan, _)| plan);
        (self.input.memory, self.revisions.memory) = memory;
        (self.documents.0, self.input.topology) = topology;
        (self.documents.1, self.input.policy) = policy;
    }

    fn follows(&mut self, leader: Leader) {
        let role = Role::Following(leader);
        if self.role != role {
            self.role = role;
            self.publish_view();
        }
    }

    /// What a follower does with requests: reports it takes like a leader, the rest is for the leader.
    fn decline(&mut self, request: Request) {
        let leader = match &self.role {
            Role::Following(leader) => leader.clone(),
            Role::Leading => Leader::Nobody,
        };
        let not_leading = Unanswered::NotLeading(leader);
        // Whoever asked may have gone.
        match request {
            Request::Observe(report) => self.observe(report),
            Request::Ask { reply, .. } | Request::Rehearse(reply) => drop(reply.send(Err(not_leading))),
            Request::Apply { reply, .. } => drop(reply.send(Err(not_leading))),
            Request::Recover(_) => {}
        }
    }

    /// Leads until the lead is lost or the process stops.
    async fn lead(&mut self, lead: &Lead, inbox: &mut mpsc::Receiver<Request>, stop: &CancellationToken) -> Ended {
        let lost = lead.lost();
        let mut lost = std::pin::pin!(lost);
        self.input.epoch = lead.epoch();
        // Deciding needs what is in force; without it the lead is worth nothing, and somebody else may do better.
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ended::Stopped,
                () = &mut lost => return Ended::Lost,
                read = self.read_state() => match read {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(%error, "cannot read what is in force; trying again");
                        sleep(STORE_RETRY).await;
                    }
                }
            }
        }
        self.role = Role::Leading;
        self.recent = self.input.current.clone().into_iter().collect();
        self.metrics.leading.set(1);
        let mut refusals = self.nodes.refusals();
        let mut due = Instant::now();
        loop {
            let now = daemon::clock::now();
            if self.judge_if_due(now) || Instant::now() >= due {
                let decided = tokio::select! {
                    biased;
                    () = &mut lost => return Ended::Lost,
                    decided = self.decide(lead, now) => decided,
                };
                due = match decided {
                    Ok(()) => Instant::now() + self.until_due(now),
                    Err(error) if self.recover_from(lead, &error).await => Instant::now() + STORE_RETRY,
                    Err(_) => return Ended::Lost,
                };
            }
            tokio::select! {
                () = stop.cancelled() => return Ended::Stopped,
                () = &mut lost => return Ended::Lost,
                Ok(()) = refusals.changed() => due = Instant::now(),
                request = inbox.recv() => {
                    let Some(request) = request else { return Ended::Stopped };
                    if let Err(error) = self.take(lead, request).await
                        && !self.recover_from(lead, &error).await
                    {
                        return Ended::Lost;
                    }
                    // A request may have begun what has an end of its own.
                    due = due.min(Instant::now() + self.until_due(daemon::clock::now()));
                }
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// After a store error: whether we still lead. What was written is read again, since it may have been written or not.
    async fn recover_from(&mut self, lead: &Lead, error: &StoreError) -> bool {
        if is_fenced_off(lead, error) {
            tracing::warn!(%error, "somebody else leads");
            return false;
        }
        self.metrics.store_errors.inc();
        tracing::error!(%error, "the decision was not written; nodes keep the plan they have");
        while lead.is_valid() {
            tokio::select! {
                () = lead.lost() => return false,
                read = self.read_state() => match read {
                    Ok(()) => return true,
                    Err(error) => tracing::warn!(%error, "cannot read what is in force; trying again"),
                }
            }
            sleep(STORE_RETRY).await;
        }
        false
    }

    /// What is in force, read anew. Before anything is, or after it was lost, what we have stays: the documents we were
    /// started with, or what was in force last.
    async fn read_state(&mut self) -> Result<(), RecordError> {
        let listing = self.store.list(records::STATE).await?;
        let audit = records::audit_head(self.store.as_ref()).await?;
        match records::state(&listing)? {
            Some(state) => {
                for (stored, own) in [
                    (&state.topology.0, &self.settings.topology),
                    (&state.policy.0, &self.settings.policy),
                ] {
                    if stored.version != own.version {
                        let kind = own.kind.as_str();
                        tracing::info!(
                            kind,
                            applied_by = stored.author,
                            "the store's document is in force, not the file's; `meridian topology apply` changes it"
                        );
                    }
                }
                self.adopt(state);
            }
            // Whatever we hold, it is to be written again.
            None => (self.revisions.plan, self.revisions.memory) = (None, None),
        }
        (self.audit, self.revisions.audit) = audit;
        self.publish_snapshot();
        Ok(())
    }

    fn next_judgement(&self, now: Moment) -> Moment {
        let pending = self.judged < now.tick().back(1);
        if pending {
            now.tick().start() + GRACE
        } else {
            now.tick().end() + GRACE
        }
    }

    /// How long until a tick is to be judged, or the decision may change by itself.
    fn until_due(&self, now: Moment) -> Duration {
        let close = self.next_judgement(now);
        let due = next_wake(&self.input, now).map_or(close, |wake| wake.min(close));
        due.since(now).max(Duration::from_millis(5))
    }

    /// Judges the newest closed tick once all vantages reported on it, or when they had their time; whether it did.
    fn judge_if_due(&mut self, now: Moment) -> bool {
        let last_closed = now.tick().back(1);
        if last_closed.0 + 1 < self.judged.0 {
            tracing::warn!(judged = ?self.judged, now = %now, "the clock went back; what was seen is forgotten");
            self.windows = Windows::default();
            self.judged = last_closed;
        }
        if self.judged >= last_closed {
            return false;
        }
        let expected = self.input.topology.edges.len() + 1;
        if now < last_closed.end() + GRACE && self.windows.vantages(last_closed) < expected {
            return false;
        }
        self.judged = last_closed;
        let before = self.before();
        let Input { topology, policy, .. } = &self.input;
        self.windows.forget(&policy.health, last_closed, |region| {
            topology.regions.contains_key(region)
        });
        self.input.verdicts = judge(
            topology.regions.keys(),
            &self.windows,
            &policy.health,
            last_closed,
            &before,
        );
        for (region, verdict) in &self.input.verdicts {
            for health in [
                Health::Healthy,
                Health::Suspect,
                Health::Degraded,
                Health::Down,
                Health::NoData,
                Health::Blind,
            ] {
                let labels = RegionHealth {
                    region: region.to_string(),
                    health: health.as_str(),
                };
                self.metrics
                    .region_health
                    .get_or_create(&labels)
                    .set(i64::from(verdict.health == health));
            }
        }
        true
    }

    /// What was believed before this tick; after a restart, what the plan says was believed.
    fn before(&self) -> BTreeMap<RegionId, Before> {
        if !self.input.verdicts.is_empty() {
            return self
                .input
                .verdicts
                .iter()
                .map(|(region, verdict)| (region.clone(), verdict.into()))
                .collect();
        }
        let planned = self.input.current.iter().flat_map(|plan| &plan.regions);
        let believed = |plan: &RegionPlan| Before::planned(plan.state == RegionState::Evacuated, plan.level);
        let planned = planned.map(|(region, plan)| (region.clone(), believed(plan)));
        // What the last leader believed is more than its plan says.
        planned.chain(self.input.memory.before()).collect()
    }

    /// Whether a report comes from somebody whose word counts: an edge of the topology, or ourselves.
    fn is_vantage(&self, node: &NodeId) -> bool {
        let mut edges = self.input.topology.edges.keys();
        *node == self.settings.candidate.node || edges.any(|edge| edge.as_str() == node.as_str())
    }

    fn observe(&mut self, report: TickReport) {
        if !self.is_vantage(&report.vantage) {
            self.metrics.reports_unwanted.inc();
            tracing::warn!(vantage = %report.vantage, "a report does not count: no such edge in the topology");
            return;
        }
        let vantage = report.vantage.to_string();
        let last_closed = daemon::clock::now().tick().back(1);
        let (tick, mut report) = (report.tick, report);
        let (replication, versions) = (take(&mut report.replication), take(&mut report.versions));
        match self.windows.take(report, last_closed, &self.input.policy.health) {
            Ok(()) => {
                let Input { topology, policy, .. } = &self.input;
                self.sightings.follow(self.input.current.as_ref());
                self.sightings.take(tick, &replication, &versions, |region, class| {
                    topology.regions.contains_key(region) && policy.data.iter().any(|known| known.class == class)
                });
                self.metrics.reports.get_or_create(&Label { kind: vantage }).inc();
            }
            Err(unwanted) => {
                self.metrics.reports_unwanted.inc();
                tracing::warn!(%unwanted, "a report does not count");
            }
        }
    }

    async fn take(&mut self, lead: &Lead, request: Request) -> Result<(), StoreError> {
        let now = daemon::clock::now();
        match request {
            Request::Observe(report) => self.observe(report),
            Request::Rehearse(reply) => {
                let outcome = plan(&self.fresh_input(), now);
                drop(reply.send(Ok(self.answer(None, outcome, self.input.topology.clone()))));
            }
            Request::Ask {
                intent,
                dry_run: true,
                reply,
            } => {
                let id = intent.id.clone();
                let outcome = plan(&self.input_with(intent, now), now);
                drop(reply.send(Ok(self.answer(Some(&id), outcome, self.input.topology.clone()))));
            }
            Request::Ask { intent, reply, .. } => {
                let id = intent.id.clone();
                let author = intent.author.clone();
                let input = self.input_with(intent, now);
                let outcome = self.commit(lead, &author, now, input, vec![]).await;
                let failed = outcome.as_ref().err().cloned();
                let answer = outcome.map(|it| self.answer(Some(&id), it, self.input.topology.clone()));
                drop(reply.send(answer.map_err(|error| unanswered(lead, error))));
                return failed.map_or(Ok(()), Err);
            }
            Request::Apply {
                document,
                replaces,
                dry_run,
                reply,
            } => {
                let applied = self.apply(lead, document, &replaces, dry_run, now).await;
                let failed = applied.as_ref().err().cloned();
                drop(reply.send(applied.map_err(|error| unanswered(lead, error))));
                return failed.map_or(Ok(()), Err);
            }
            Request::Recover(recovered) => {
                let ours = self.input.current.as_ref().map(Plan::number).unwrap_or_default();
                if recovered.number() > ours {
                    let input = Input {
                        recovered: Some(*recovered),
                        ..self.fresh_input()
                    };
                    self.commit(lead, planning::PLANNER, now, input, vec![]).await?;
                }
            }
        }
        Ok(())
    }

    /// A request made now. Whatever it says of the time it was made, it counts from here.
    fn input_with(&mut self, mut intent: Intent, now: Moment) -> Input {
        let life = intent.expires_at.since(intent.created_at);
        (intent.created_at, intent.expires_at) = (now, now + life);
        Input {
            request: Some(intent),
            ..self.fresh_input()
        }
    }

    async fn apply(
        &mut self,
        lead: &Lead,
        document: Document,
        replaces: &str,
        dry_run: bool,
        now: Moment,
    ) -> Result<Applied, StoreError> {
        let (kind, file) = (document.kind, document.kind.as_str());
        let in_force = match kind {
            DocumentKind::Topology => &self.documents.0.version,
            DocumentKind::Policy => &self.documents.1.version,
        };
        if *in_force != replaces && *in_force != document.version {
            return Ok(Applied::Changed(in_force.clone()));
        }
        let mut input = self.fresh_input();
        let parsed = match kind {
            DocumentKind::Topology => Topology::parse(file, &document.text).map(|it| input.topology = it),
            DocumentKind::Policy => Policy::parse(file, &document.text).map(|it| input.policy = it),
        };
        if let Err(problems) = parsed {
            return Ok(Applied::Problems(problems.0.iter().map(ToString::to_string).collect()));
        }
        let problems = self.harm(&input, now);
        if !problems.is_empty() {
            return Ok(Applied::Problems(problems));
        }
        let topology = input.topology.clone();
        let outcome = if dry_run {
            plan(&input, now)
        } else {
            let author = document.author.clone();
            self.commit(lead, &author, now, input, vec![document]).await?
        };
        Ok(Applied::InForce(Box::new(self.answer(None, outcome, topology))))
    }

    /// What well-formed documents would do that they must not, one a line.
    fn harm(&self, input: &Input, now: Moment) -> Vec<String> {
        let Input { topology, policy, .. } = input;
        let mut problems = planning::problems(topology, policy);
        if *topology != self.input.topology {
            problems.extend(planning::refuses_topology(&self.input, topology, now));
            // Our own name is no name for a node: its reports would count as ours.
            let own = self.settings.candidate.node.as_str();
            let regions = topology.regions.keys().map(RegionId::as_str);
            let edges = topology.edges.keys().map(EdgeId::as_str);
            let mut names = regions
                .chain(edges)
                .chain(topology.name_servers.keys().map(NodeId::as_str));
            if names.any(|name| name == own) {
                problems.push(format!(
                    "\"{own}\" is a control plane; give the other one a name of its own"
                ));
            }
        }
        if !self.input.memory.overrides(Rule::RiskyTopology, now) {
            let risks = planning::risks(&self.input.topology, topology);
            problems.extend(risks.into_iter().map(|what| {
                format!(
                    "{what}; `meridian override {} --for 30m` allows it, with a second person",
                    Rule::RiskyTopology
                )
            }));
        }
        if !self.input.memory.overrides(Rule::LooserPolicy, now) {
            let loosened = self.input.policy.loosened_by(policy);
            problems.extend(loosened.into_iter().map(|what| {
                format!(
                    "{what}; `meridian override {} --for 30m` allows it, with a second person",
                    Rule::LooserPolicy
                )
            }));
        }
        problems
    }

    fn answer(&self, id: Option<&str>, outcome: Outcome, topology: Topology) -> Answer {
        let actions = &outcome.memory.actions;
        let asked = id.and_then(|id| actions.get(id));
        // Whoever approves wants to know what became of what was approved.
        let approved = asked.and_then(|action| match &action.intent.kind {
            IntentKind::Approve { action } => actions.get(action),
            _ => None,
        });
        Answer {
            action: approved.or(asked).cloned(),
            outcome,
            topology,
            view: self.views.borrow().clone(),
        }
    }

    /// The input as it is now, without a request.
    fn fresh_input(&mut self) -> Input {
        let current = self.input.current.as_ref();
        let number = current.map(Plan::number).unwrap_or_default();
        self.input.refusal = self.nodes.refusal(number, &self.recent);
        let window = self.input.policy.rollout.window;
        self.input.rollout = self.sightings.rollout(current, self.judged, window);
        self.input.replication = self.sightings.lags();
        self.input.clone()
    }

    async fn decide(&mut self, lead: &Lead, now: Moment) -> Result<(), StoreError> {
        let input = self.fresh_input();
        self.commit(lead, planning::PLANNER, now, input, vec![]).await?;
        Ok(())
    }

    /// One decision: `plan()`; then the plan, what is to be remembered, and the audit entry are written in one transaction
    /// that expects us to lead still and the parent to be in force; then the plan is published.
    async fn commit(
        &mut self,
        lead: &Lead,
        actor: &str,
        now: Moment,
        input: Input,
        documents: Vec<Document>,
    ) -> Result<Outcome, StoreError> {
        let outcome = plan(&input, now);
        let Outcome {
            plan: next,
            memory,
            report,
        } = &outcome;
        // What somebody asked for is answered every time, what nobody asked for is said once.
        let is_new = |new: &&Reason| input.request.is_some() || !self.last_refused.iter().any(|old| same(old, new));
        let refused: Vec<Reason> = report.refused.iter().filter(is_new).cloned().collect();
        let asked = |reason: &&Reason| reason.code == ReasonCode::NeedsApproval && *memory != self.input.memory;
        let asked: Vec<Reason> = report.waiting.iter().filter(asked).cloned().collect();
        let spoken = [report.changed.clone(), refused, asked].concat();

        let because = documents.first().map(|document| document.reason.clone());
        let first = self.revisions.plan.is_none();
        let mut written = documents;
        if first {
            written.extend([self.documents.0.clone(), self.documents.1.clone()]);
        }
        let mut in_force = self.documents.clone();
        for document in &written {
            match document.kind {
                DocumentKind::Topology => in_force.0 = document.clone(),
                DocumentKind::Policy => in_force.1 = document.clone(),
            }
        }
        // First the lead: when somebody else leads, that is what a conflict has to say. Then everything that was decided
        // from: a commit that was given up and lands late finds it changed.
        let known = self.revisions;
        let mut transaction = Transaction {
            expect: vec![
                lead.fence(),
                (records::PLAN.to_owned(), known.plan),
                (records::MEMORY.to_owned(), known.memory),
                (records::AUDIT_HEAD.to_owned(), known.audit),
            ],
            ..Transaction::default()
        };
        for document in &written {
            transaction
                .put
                .push((document.kind.key().to_owned(), records::encode(document)));
            transaction.put.push((
                records::document_key(&document.version),
                document.text.clone().into_bytes(),
            ));
        }
        let mut head = None;
        if !spoken.is_empty() || !written.is_empty() {
            let entry = audit::Entry {
                number: self.audit.number + 1,
                previous: self.audit.hash.clone(),
                at: now,
                actor: actor.to_owned(),
                because: because.filter(|because| !because.is_empty()),
                input: audit::Recorded::of(&input, &in_force.0.version, &in_force.1.version),
                plan: next.clone(),
                memory: memory.clone(),
                reasons: spoken.clone(),
            };
            let bytes = entry.encode();
            let newest = AuditHead {
                number: entry.number,
                hash: audit::hash(&bytes),
            };
            transaction
                .put
                .push((records::AUDIT_HEAD.to_owned(), records::encode(&newest)));
            transaction.put.push((records::audit_key(entry.number), bytes));
            if let Some(old) = entry.number.checked_sub(audit::KEPT).filter(|old| *old > 0) {
                transaction.delete.push(records::audit_key(old));
            }
            head = Some(newest);
        }
        let remembers = first || *memory != self.input.memory;
        if remembers {
            transaction
                .put
                .push((records::MEMORY.to_owned(), records::encode(memory)));
        }
        // A store that lost everything gets the plan in force again.
        let written_plan = next.as_ref().or(self.input.current.as_ref().filter(|_| first));
        if let Some(plan) = written_plan {
            transaction.put.push((records::PLAN.to_owned(), records::encode(plan)));
        }
        if !transaction.put.is_empty() {
            if !lead.is_valid() {
                let (key, expected) = lead.fence();
                return Err(StoreError::Conflict {
                    key,
                    found: None,
                    expected,
                });
            }
            let revision = Some(self.store.commit(transaction).await?);
            for (is_written, known) in [
                (written_plan.is_some(), &mut self.revisions.plan),
                (remembers, &mut self.revisions.memory),
                (head.is_some(), &mut self.revisions.audit),
            ] {
                if is_written {
                    *known = revision;
                }
            }
        }

        let asked = input.request.is_some();
        self.last_refused.clone_from(&report.refused);
        if let Some(head) = head {
            self.audit = head;
        }
        let Input { topology, policy, .. } = input;
        (self.input.topology, self.input.policy) = (topology, policy);
        self.documents = in_force;
        self.input.memory.clone_from(memory);
        for reason in &spoken {
            let generation = next.as_ref().map(|plan| plan.generation);
            let region = reason.region.as_ref().map(RegionId::as_str);
            tracing::info!(code = %reason.code, region, generation, "{}", reason.text);
            let label = Label {
                kind: reason.code.as_str().to_owned(),
            };
            self.metrics.decisions.get_or_create(&label).inc();
        }
        if let Some(next) = next {
            self.input.current = Some(next.clone());
            self.recent.push_back(next.clone());
            if self.recent.len() > RECENT_KEPT {
                self.recent.pop_front();
            }
            self.publish_snapshot();
        }
        // A refused request is answered to whoever asked; the view tells what holds without it.
        self.last_report = if asked {
            plan(&self.input, now).report
        } else {
            report.clone()
        };
        self.publish_view();
        Ok(outcome)
    }

    /// Gives the plan in force to the nodes that follow us; never an older one, and never one that is not valid.
    fn publish_snapshot(&self) {
        let Input {
            topology,
            policy,
            current,
            ..
        } = &self.input;
        let Some(plan) = current.clone() else { return };
        let snapshot = Snapshot {
            schema: SNAPSHOT_SCHEMA,
            plan,
            topology: topology.clone(),
            dns_ttl_s: policy.dns.ttl_s(),
            probe: policy.probe.clone(),
        };
        if let Err(error) = snapshot.validate() {
            tracing::error!(%error, "the plan in force is not valid for the documents in force; nodes keep theirs");
            return;
        }
        self.snapshots.send_if_modified(|published| {
            let newer = published
                .as_ref()
                .is_none_or(|published| published.plan.number() < snapshot.plan.number());
            if newer {
                *published = Some(Arc::new(snapshot));
            }
            newer
        });
    }

    fn publish_view(&self) {
        let generation = self.input.current.as_ref().map_or(0, |plan| plan.generation);
        self.metrics
            .plan_generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.views.send_replace(Arc::new(View {
            input: self.input.clone(),
            report: self.last_report.clone(),
            topology: self.documents.0.clone(),
            policy: self.documents.1.clone(),
            role: self.role.clone(),
        }));
    }
}

/// Whether somebody else leads by now.
fn is_fenced_off(lead: &Lead, error: &StoreError) -> bool {
    let (fence, _) = lead.fence();
    matches!(error, StoreError::Conflict { key, .. } if *key == fence)
}

/// Nothing was written by who does not lead any more: whoever does may be asked the same.
fn unanswered(lead: &Lead, error: StoreError) -> Unanswered {
    if is_fenced_off(lead, &error) {
        Unanswered::NotLeading(Leader::Nobody)
    } else {
        Unanswered::Store(error)
    }
}

/// The same refusal, whatever the evidence of this tick.
fn same(a: &Reason, b: &Reason) -> bool {
    (a.code, &a.region) == (b.code, &b.region)
}

/// What an answer to a request is called.
pub fn outcome_of(action: Option<&Action>) -> api::v1::Outcome {
    use api::v1::Outcome;
    match action.map(|action| action.phase) {
        Some(Phase::Running) => Outcome::Running,
        Some(Phase::AwaitingApproval) => Outcome::AwaitingApproval,
        Some(Phase::Done) => Outcome::Done,
        Some(Phase::Refused | Phase::Aborted | Phase::Expired) | None => Outcome::Refused,
    }
}
