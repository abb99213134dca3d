//! The one task that decides. Every replica runs it: each takes reports and judges health, so that whoever leads next knows
//! as much as the leader; one leads, decides and writes; the others publish what it wrote.
//!
//! The leader re-reads nothing it wrote itself, and everything when it takes over or when the outcome of a write is unknown.
//! A store that fails never ends the task, and never stops it from looking: ticks are judged and the view is published while
//! the store is waited for, and the view says that decisions cannot be written. Nodes keep the plan they have, and deciding
//! goes on when the store is back.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    mem::take,
    sync::Arc,
    time::Duration,
};

use planning::{Action, EdgeSeen, Input, Outcome, Phase, Report, audit, next_wake, plan};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use topology::{
    EdgeId, Intent, IntentKind, Moment, NodeId, Plan, PlanNumber, Policy, Problem, Reason, ReasonCode, RegionId,
    RegionPlan, RegionState, Rule, Snapshot, Tick, Topology, snapshot::SNAPSHOT_SCHEMA,
};
use verdict::{Before, Clocks, Health, Rounds, TickReport, Unwanted, Watch};

use crate::{
    heard::{self, Heard},
    metrics::{Metrics, ReasonLabel, RegionHealth, Vantage},
    nodes::{Nodes, Recovery},
    records::{self, AuditHead, Audited, Document, DocumentKind, RecordError, State, Stored},
    refusals::Refusals,
    sightings::Sightings,
    store::{self, Candidate, Lead, LeaderRecord, Listing, Store, StoreError, Transaction},
};

/// Requests and reports waiting to be taken: a burst of every edge of a large fleet.
pub const INBOX_LENGTH: usize = 2_048;
/// Wait before the store is tried again.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Plans of this term that nodes can go back to.
const RECENT_KEPT: usize = 16;
/// How often followers look who leads.
const LEADER_LOOK: Duration = Duration::from_secs(1);
/// How often the leader asks the store whether it takes writes. A quiet world writes nothing for days: without asking, a
/// full store would be found in the moment a region dies.
const STORE_LOOK: Duration = Duration::from_secs(5);
/// How often a replica that cannot read what the store holds tries again.
const UNREADABLE_RETRY: Duration = Duration::from_secs(2);
/// How long a new leader lets nodes connect before it believes the majority of them about a plan that its store does not
/// know: the first of a fleet to come back must not speak for all.
const NODES_SETTLE: Duration = Duration::from_secs(5);
/// Audit entries looked through for a plan that nodes hold: it is among the newest of a store that has it.
const RECOVERY_SCANNED: u64 = 300;
/// How long requests wait for a store that is ill before they are declined: most troubles are an election of etcd's, and
/// whoever asks waits for five seconds.
const DECLINED_AFTER: Duration = Duration::from_secs(2);
/// Requests kept while one commit is under way. It takes milliseconds, and some seconds when the store is ill.
const KEPT_MAX: usize = 256;

/// What the task is asked to do.
pub enum Request {
    /// Take a vantage's report.
    Observe(Arrival),
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
}

/// A report as it came.
pub struct Arrival {
    /// The report.
    pub report: TickReport,
    /// How far the clock of the vantage is ahead of ours, in milliseconds, where it told its time.
    pub ahead_ms: Option<i64>,
    /// Where the answer goes: why the report does not count, or none when it does.
    pub reply: Option<oneshot::Sender<Option<Unwanted>>>,
}

impl From<TickReport> for Arrival {
    /// A report of our own.
    fn from(report: TickReport) -> Self {
        Self {
            report,
            ahead_ms: None,
            reply: None,
        }
    }
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
    /// Too many requests of the same author were refused of late.
    #[error(
        "author: too many requests of {author} were refused within a minute; ask again in {} s. `meridian plan` says what \
         would be refused, as often as you like",
        wait.as_secs() + 1
    )]
    TooMany {
        /// Who.
        author: String,
        /// How long to wait.
        wait: Duration,
    },
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
    /// How far the clocks of the vantages are from ours.
    pub clocks: Clocks,
    /// How far deciding got, and what stops it.
    pub progress: Progress,
    /// What was heard of every edge as a process.
    pub edges: BTreeMap<EdgeId, EdgeSeen>,
}

/// How far each step of deciding got. Status, readiness and metrics read nothing else, so that they cannot contradict each
/// other; a step that never happened has no time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// The newest tick that was judged, and when.
    pub judged: Option<(Tick, Moment)>,
    /// When we last decided, also when the decision was that nothing changes. Only a leader decides.
    pub decided_at: Option<Moment>,
    /// When the store last took a write of ours, or said that it takes writes.
    pub store_took_at: Option<Moment>,
    /// The plan that nodes are given, and since when.
    pub published: Option<(PlanNumber, Moment)>,
    /// What keeps decisions from being written; none while nothing does.
    pub unwritten: Option<Unwritten>,
}

/// Decisions cannot be written, or what was written cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Unwritten {
    /// Since when.
    pub since: Moment,
    /// The store's error.
    pub error: StoreError,
    /// What was decided and is not in force because of it.
    pub pending: Vec<Reason>,
    /// A decision waits for the store: only a commit shows that it is well again.
    pub is_retried: bool,
}

impl Unwritten {
    /// What an operator can do about it.
    pub fn remedy(&self) -> &'static str {
        match self.error {
            StoreError::NoSpace(_) => "make room in the store as the error says; deciding goes on by itself then",
            StoreError::Unavailable { .. } | StoreError::Conflict { .. } => {
                "check the members of the store and the network to them; deciding goes on by itself when a quorum answers"
            }
            StoreError::TooLarge { .. } | StoreError::TransactionTooLarge { .. } => {
                "apply a smaller topology or policy document"
            }
            StoreError::Unreadable { .. } => {
                "start the version of Meridian that wrote it, or a later one, on this control plane"
            }
            StoreError::Failed(_) => "look at the log of this control plane and at the disk of the store",
        }
    }
}

impl View {
    /// Why this control plane must not be relied on for decisions; none when it decides, or when another one may.
    pub fn why_not_deciding(&self) -> Option<String> {
        let unwritten = self.progress.unwritten.as_ref()?;
        let since = unwritten.since;
        Some(format!(
            "decisions cannot be written since {since:#} UTC: {}; {}",
            unwritten.error,
            unwritten.remedy()
        ))
    }
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
    /// Nobody, and this control plane does not stand for election: it could not read what is in force.
    #[error("no control plane leads right now, and this one does not stand for election: {0}")]
    Unfit(StoreError),
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
    rounds: Rounds,
    clocks: Clocks,
    /// The monotonic clock that rounds are closed by begins here.
    started: Instant,
    sightings: Sightings,
    heard: Heard,
    refusals: Refusals,
    input: Input,
    documents: (Document, Document),
    /// What this version would not take of them.
    outdated: Vec<(DocumentKind, Problem)>,
    audit: AuditHead,
    /// Bytes of the newest entry: what the next one is about to take.
    entry_bytes: usize,
    /// By what the store's newest plan, memory and audit head were written: whatever else wrote them has the word.
    revisions: Revisions,
    /// The plans of this term, newest last: what nodes that refuse one can go back to.
    recent: VecDeque<Plan>,
    last_refused: Vec<Reason>,
    last_report: Report,
    role: Role,
    progress: Progress,
    /// Requests that came while a commit was under way.
    kept: VecDeque<Request>,
    /// A tick was judged and not decided on yet.
    is_undecided: bool,
    /// From when on what nodes hold may be taken over.
    settled_at: Instant,
    /// Nodes say that they hold a newer plan, and that is not proven.
    unproven: Option<String>,
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
    /// What the store holds cannot be read by this version; another replica may be able to.
    Unreadable,
}

/// A term as leader, and what goes on beside it.
struct Term<'t> {
    lead: &'t Lead,
    inbox: &'t mut mpsc::Receiver<Request>,
    stop: &'t CancellationToken,
}

/// What becomes of requests while the store is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Requests {
    /// A commit is under way: they have their turn after it.
    Wait,
    /// What is in force is read again. Whoever asks waits for a moment, and is then told that nothing can be written.
    AreDeclined,
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
            clocks: Clocks::default(),
            progress: Progress::default(),
            edges: BTreeMap::new(),
        };
        Ok(Self {
            settings,
            store,
            nodes,
            metrics,
            rounds: Rounds::default(),
            clocks: Clocks::default(),
            started: Instant::now(),
            sightings: Sightings::default(),
            heard: Heard::since(daemon::clock::now()),
            refusals: Refusals::default(),
            input,
            documents,
            outdated: state.outdated,
            audit: AuditHead::default(),
            entry_bytes: 0,
            revisions: Revisions::default(),
            recent: VecDeque::new(),
            last_refused: Vec::new(),
            last_report: Report::default(),
            role,
            progress: Progress::default(),
            kept: VecDeque::new(),
            is_undecided: false,
            settled_at: Instant::now(),
            unproven: None,
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
            let term = Term {
                lead: &lead,
                inbox: &mut inbox,
                stop: &stop,
            };
            let Err(ended) = self.lead(term).await;
            // First of all nobody is told any more that we lead: a store that is away takes seconds to resign at.
            self.role = Role::Following(Leader::Nobody);
            self.metrics.leading.set(0);
            for request in take(&mut self.kept) {
                self.decline(request);
            }
            if !matches!(ended, Ended::Unreadable) {
                self.progress.unwritten = None;
            }
            self.publish_view();
            // Successors need not wait for the lease to run out; if the store does not hear of it, they wait.
            if let Err(error) = lead.resign().await {
                tracing::debug!(%error, "the lead runs out by itself");
            }
            match ended {
                Ended::Stopped => return Ok(()),
                Ended::Lost => tracing::warn!(epoch = lead.epoch(), "the lead was lost; following"),
                Ended::Unreadable => tracing::error!(
                    epoch = lead.epoch(),
                    "resigned: what the store holds cannot be read; another control plane may be able to"
                ),
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
        let known = self
            .progress
            .unwritten
            .as_ref()
            .map(|unwritten| unwritten.error.clone());
        let (unreadable, mut unfit) = watch::channel(known);
        let mut campaign = std::pin::pin!(async move {
            loop {
                // Whoever cannot read what is in force cannot decide: it would take the lead from one that can.
                if let Err(error @ RecordError::Unreadable { .. }) = records::read(store.as_ref()).await {
                    unreadable.send_replace(Some(error.into()));
                    sleep(UNREADABLE_RETRY).await;
                    continue;
                }
                unreadable.send_if_modified(|unreadable| unreadable.take().is_some());
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
                Ok(()) = leader.changed() => self.follows(&leader.borrow_and_update().clone(), &unfit.borrow().clone()),
                Ok(()) = unfit.changed() => self.follows(&leader.borrow().clone(), &unfit.borrow_and_update().clone()),
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
            // Shown as well: whoever stands for election finds it too.
            Err(error) => tracing::error!(%error, "what the store holds cannot be followed"),
        }
    }

    fn adopt(&mut self, state: State) {
        let State {
            plan,
            memory,
            topology,
            policy,
            outdated,
        } = state;
        if self.outdated != outdated {
            for (kind, problem) in &outdated {
                tracing::warn!(kind = kind.as_str(), %problem, "the document in force was taken by an older version");
            }
            self.outdated = outdated;
        }
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

    /// Who leads, and why we could not.
    fn follows(&mut self, leader: &Leader, unfit: &Option<StoreError>) {
        match unfit {
            Some(error) => self.cannot_write(error.clone(), Vec::new(), true),
            None => self.can_write(),
        }
        let role = Role::Following(match (leader, unfit) {
            (Leader::Nobody, Some(error)) => Leader::Unfit(error.clone()),
            (leader, _) => leader.clone(),
        });
        if self.role != role {
            self.role = role;
            self.publish_view();
        }
    }

    /// Decisions cannot be written. Said in the log once, and shown until it is over.
    fn cannot_write(&mut self, error: StoreError, pending: Vec<Reason>, is_retried: bool) {
        let known = self.progress.unwritten.as_ref();
        let is_news = known.is_none_or(|known| std::mem::discriminant(&known.error) != std::mem::discriminant(&error));
        if is_news {
            tracing::error!(%error, "decisions cannot be written; nodes keep the plan they have");
        } else {
            tracing::debug!(%error, "decisions still cannot be written");
        }
        self.progress.unwritten = Some(Unwritten {
            since: known.map_or_else(daemon::clock::now, |known| known.since),
            is_retried: is_retried || known.is_some_and(|known| known.is_retried),
            error,
            pending,
        });
        self.publish_view();
    }

    fn can_write(&mut self) {
        if let Some(unwritten) = self.progress.unwritten.take() {
            tracing::info!(since = %unwritten.since, "decisions can be written again");
            self.publish_view();
        }
    }

    /// What the store says of itself while we lead.
    fn take_health(&mut self, health: Result<(), StoreError>) {
        let waits = |unwritten: &Unwritten| unwritten.is_retried;
        match health {
            Ok(()) => {
                self.progress.store_took_at = Some(daemon::clock::now());
                if !self.progress.unwritten.as_ref().is_some_and(waits) {
                    self.can_write();
                }
            }
            Err(error) => {
                let pending = self.progress.unwritten.as_mut().map(|it| take(&mut it.pending));
                self.cannot_write(error, pending.unwrap_or_default(), false);
            }
        }
    }

    /// What a follower does with requests: reports it takes like a leader, the rest is for the leader.
    fn decline(&mut self, request: Request) {
        let not_leading = match (&self.role, &self.progress.unwritten) {
            (Role::Following(leader), _) => Unanswered::NotLeading(leader.clone()),
            (Role::Leading, Some(unwritten)) => Unanswered::Store(unwritten.error.clone().with_nothing_written()),
            (Role::Leading, None) => Unanswered::NotLeading(Leader::Nobody),
        };
        // Whoever asked may have gone.
        match request {
            Request::Observe(report) => self.observe(report),
            Request::Ask { reply, .. } | Request::Rehearse(reply) => drop(reply.send(Err(not_leading))),
            Request::Apply { reply, .. } => drop(reply.send(Err(not_leading))),
        }
    }

    /// Leads until the lead is lost or the process stops.
    async fn lead(&mut self, mut term: Term<'_>) -> Result<Infallible, Ended> {
        self.input.epoch = term.lead.epoch();
        self.read_state(&mut term).await?;
        self.role = Role::Leading;
        self.settled_at = Instant::now() + NODES_SETTLE;
        self.recent = self.input.current.clone().into_iter().collect();
        self.metrics.leading.set(1);
        let mut refusals = self.nodes.refusals();
        // Ends when it is dropped, with this term.
        let mut asking = JoinSet::new();
        let (health, mut said) = watch::channel(Ok(()));
        asking.spawn(ask_for_health(self.store.clone(), health));
        let mut due = Instant::now();
        loop {
            let now = daemon::clock::now();
            let is_undecided = take(&mut self.is_undecided);
            if self.judge_if_due(now) || is_undecided || Instant::now() >= due {
                due = match self.decide(&mut term, now).await? {
                    Ok(()) => Instant::now() + self.until_due(now),
                    Err(error) => {
                        self.recover_from(&mut term, &error).await?;
                        Instant::now() + STORE_RETRY
                    }
                };
            }
            let request = match self.kept.pop_front() {
                Some(request) => request,
                None => tokio::select! {
                    () = term.stop.cancelled() => return Err(Ended::Stopped),
                    () = term.lead.lost() => return Err(Ended::Lost),
                    Ok(()) = refusals.changed() => {
                        due = Instant::now();
                        continue;
                    }
                    Ok(()) = said.changed() => {
                        let health = said.borrow_and_update().clone();
                        self.take_health(health);
                        continue;
                    }
                    request = term.inbox.recv() => request.ok_or(Ended::Stopped)?,
                    () = tokio::time::sleep_until(due) => continue,
                },
            };
            if let Err(error) = self.take(&mut term, request).await? {
                self.recover_from(&mut term, &error).await?;
            }
            // A request may have begun what has an end of its own.
            due = due.min(Instant::now() + self.until_due(daemon::clock::now()));
        }
    }

    /// Waits for the store while ticks are judged, reports are taken and the view is published: the store may take its
    /// time, the world does not. Ends early when the lead does; what is not awaited to its end then may be written or not.
    async fn meanwhile<T>(
        &mut self,
        term: &mut Term<'_>,
        requests: Requests,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        let mut work = std::pin::pin!(work);
        loop {
            let now = daemon::clock::now();
            if self.judge_if_due(now) {
                self.is_undecided = true;
                if requests == Requests::AreDeclined {
                    self.say_what_would_be_decided(now);
                }
                self.publish_view();
            }
            let wait = self.next_judgement(now).since(now).max(Duration::from_millis(5));
            let ill_since = self.progress.unwritten.as_ref().map(|unwritten| unwritten.since);
            let is_long = ill_since.is_some_and(|since| now.since(since) >= DECLINED_AFTER);
            let (declines, wait) = match requests {
                Requests::Wait => (false, wait),
                Requests::AreDeclined => (is_long || self.role != Role::Leading, wait.min(DECLINED_AFTER)),
            };
            if declines {
                for request in take(&mut self.kept) {
                    self.decline(request);
                }
            }
            tokio::select! {
                biased;
                () = term.lead.lost() => return Err(Ended::Lost),
                done = &mut work => return Ok(done),
                // A commit under way is awaited: whoever asked wants to know what came of it.
                () = term.stop.cancelled(), if requests == Requests::AreDeclined => return Err(Ended::Stopped),
                request = term.inbox.recv(), if self.kept.len() < KEPT_MAX => {
                    let Some(request) = self.answer_without_store(request.ok_or(Ended::Stopped)?, now) else { continue };
                    if declines {
                        self.decline(request);
                    } else {
                        self.kept.push_back(request);
                    }
                }
                () = sleep(wait) => {}
            }
        }
    }

    /// Takes reports, and answers whoever only wants to know what would be decided; gives back what must be written.
    fn answer_without_store(&mut self, request: Request, now: Moment) -> Option<Request> {
        match request {
            Request::Observe(report) => self.observe(report),
            Request::Rehearse(reply) if self.role == Role::Leading => {
                let outcome = plan(&self.fresh_input(), now);
                drop(reply.send(Ok(self.answer(None, outcome, self.input.topology.clone()))));
            }
            Request::Ask {
                intent,
                dry_run: true,
                reply,
            } if self.role == Role::Leading => {
                let id = intent.id.clone();
                let outcome = plan(&self.input_with(intent, now), now);
                drop(reply.send(Ok(self.answer(Some(&id), outcome, self.input.topology.clone()))));
            }
            other => return Some(other),
        }
        None
    }

    /// While nothing can be written, people are shown what would be.
    fn say_what_would_be_decided(&mut self, now: Moment) {
        if self.role != Role::Leading {
            return;
        }
        let report = plan(&self.fresh_input(), now).report;
        self.progress.decided_at = Some(now);
        if let Some(unwritten) = &mut self.progress.unwritten {
            unwritten.pending.clone_from(&report.changed);
        }
        self.last_report = report;
    }

    /// After a store error: reads again what is in force, since what was written may have been written or not. Ends when
    /// it was read, or when we lead no more.
    async fn recover_from(&mut self, term: &mut Term<'_>, error: &StoreError) -> Result<(), Ended> {
        if is_fenced_off(term.lead, error) {
            tracing::warn!(%error, "somebody else leads");
            return Err(Ended::Lost);
        }
        if matches!(
            error,
            StoreError::TooLarge { .. } | StoreError::TransactionTooLarge { .. }
        ) {
            // It never left: what is in force is known, and nothing is wrong with the store.
            return Ok(());
        }
        self.metrics.store_errors.inc();
        self.read_state(term).await
    }

    /// Reads what is in force until it can be read.
    async fn read_state(&mut self, term: &mut Term<'_>) -> Result<(), Ended> {
        loop {
            let store = self.store.clone();
            let read = async move { records::read(store.as_ref()).await };
            match self.meanwhile(term, Requests::AreDeclined, read).await? {
                Ok(stored) => {
                    self.take_over(stored);
                    return Ok(());
                }
                Err(error @ RecordError::Unreadable { .. }) => {
                    self.cannot_write(error.into(), Vec::new(), true);
                    return Err(Ended::Unreadable);
                }
                Err(RecordError::Store(error)) => {
                    let pending = self.progress.unwritten.as_mut().map(|it| take(&mut it.pending));
                    self.cannot_write(error, pending.unwrap_or_default(), true);
                }
            }
            self.meanwhile(term, Requests::AreDeclined, sleep(STORE_RETRY)).await?;
        }
    }

    /// What is in force, read anew. Before anything is, or after it was lost, what we have stays: the documents we were
    /// started with, or what was in force last.
    fn take_over(&mut self, stored: Stored) {
        let Stored { state, audit } = stored;
        match state {
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
    }

    /// When there is something to look at again, though nothing is reported: a tick ends, or a round has waited for long
    /// enough.
    fn next_judgement(&self, now: Moment) -> Moment {
        let end = now.tick().end();
        let wake = self.rounds.wakes_at();
        wake.map_or(end, |wake| end.min(now + wake.saturating_sub(self.started.elapsed())))
    }

    /// How long until a tick is to be judged, or the decision may change by itself.
    fn until_due(&self, now: Moment) -> Duration {
        let close = self.next_judgement(now);
        let due = next_wake(&self.input, now).map_or(close, |wake| wake.min(close));
        let mut wait = due.since(now);
        let settles = self.settled_at.saturating_duration_since(Instant::now());
        if !settles.is_zero() && self.nodes.recovery(self.number(), &self.input.topology).is_some() {
            wait = wait.min(settles);
        }
        wait.max(Duration::from_millis(5))
    }

    /// Judges the newest round that is complete or has waited for long enough ([`Rounds`]); whether one was.
    fn judge_if_due(&mut self, now: Moment) -> bool {
        let (watch, policy) = (self.watch(now), &self.input.policy.health);
        if self.rounds.look(watch, policy) {
            tracing::warn!(%now, "the clock went back; what was seen is forgotten");
        }
        let Some(tick) = self.rounds.due(watch, policy) else {
            return false;
        };
        self.progress.judged = Some((tick, now));
        let before = self.before();
        let Input { topology, policy, .. } = &self.input;
        let regions = topology.regions.keys();
        let verdicts = self.rounds.judge(tick, regions, &policy.health, &before);
        let exists = |vantage: &NodeId| topology.edges.keys().any(|edge| edge.as_str() == vantage.as_str());
        self.clocks.retain(exists);
        self.input.verdicts = verdicts;
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

    fn watch(&self, now: Moment) -> Watch {
        Watch {
            closed: now.tick().back(1),
            at: self.started.elapsed(),
            vantages: self.input.topology.edges.len() + 1,
        }
    }

    /// Whether a report comes from somebody whose word counts: an edge of the topology, or ourselves.
    fn is_vantage(&self, node: &NodeId) -> bool {
        let mut edges = self.input.topology.edges.keys();
        *node == self.settings.candidate.node || edges.any(|edge| edge.as_str() == node.as_str())
    }

    fn observe(&mut self, arrival: Arrival) {
        let Arrival {
            report,
            ahead_ms,
            reply,
        } = arrival;
        let taken = self.take_report(report, ahead_ms);
        if let Err(unwanted) = &taken {
            self.metrics.reports_unwanted.inc();
            tracing::warn!(%unwanted, "a report does not count");
        }
        // The vantage may have disconnected.
        let _ = reply.map(|reply| reply.send(taken.err()));
    }

    fn take_report(&mut self, mut report: TickReport, ahead_ms: Option<i64>) -> Result<(), Unwanted> {
        if !self.is_vantage(&report.vantage) {
            return Err(Unwanted::Stranger(report.vantage));
        }
        let (vantage, tick) = (report.vantage.clone(), report.tick);
        if let Some(ahead_ms) = ahead_ms {
            self.compare_clocks(&vantage, ahead_ms);
        }
        if let Ok(edge) = EdgeId::new(vantage.as_str()) {
            // Also one whose clock is wrong lives.
            self.heard
                .hear(&edge, self.input.policy.edges.lost_after, daemon::clock::now());
        }
        let (replication, versions) = (take(&mut report.replication), take(&mut report.versions));
        if let Some(plan) = &self.input.current {
            report.keep_stacks_with_sessions(plan, &self.input.topology);
        }
        let watch = self.watch(daemon::clock::now());
        self.rounds.take(report, watch, &self.input.policy.health)?;
        let Input { topology, policy, .. } = &self.input;
        self.sightings.follow(self.input.current.as_ref());
        // A vantage whose clock is ahead measured no later than the others.
        let measured = tick.min(watch.closed);
        self.sightings.take(measured, &replication, &versions, |region, class| {
            topology.regions.contains_key(region) && policy.data.iter().any(|known| known.class == class)
        });
        let vantage = vantage.to_string();
        self.metrics.reports.get_or_create(&Vantage { vantage }).inc();
        Ok(())
    }

    /// Notes how far a vantage's clock is from ours. Decisions bear it; people have to repair it.
    fn compare_clocks(&mut self, vantage: &NodeId, ahead_ms: i64) {
        if self.clocks.note(vantage, ahead_ms) {
            tracing::warn!(%vantage, ahead_ms, "the clocks of this vantage and ours are too far apart; check the time service");
        }
        let label = Vantage {
            vantage: vantage.to_string(),
        };
        let ahead_s = ahead_ms as f64 / 1000.0;
        self.metrics.clock_ahead.get_or_create(&label).set(ahead_s);
    }

    /// Carries a request out. The error inside is what the store said; whoever asked was told.
    async fn take(&mut self, term: &mut Term<'_>, request: Request) -> Result<Result<(), StoreError>, Ended> {
        let now = daemon::clock::now();
        match self.answer_without_store(request, now) {
            None | Some(Request::Observe(_) | Request::Rehearse(_)) => {}
            Some(Request::Ask { intent, reply, .. }) => {
                let id = intent.id.clone();
                let author = intent.author.clone();
                let input = self.input_with(intent, now);
                // Only what would be refused again waits: a loop in somebody's name must not keep them from a failover.
                if let Some(wait) = self.refusals.wait_of(&author, Instant::now())
                    && is_refused(&id, &plan(&input, now))
                {
                    drop(reply.send(Err(Unanswered::TooMany { author, wait })));
                    return Ok(Ok(()));
                }
                let outcome = self.commit(term, &author, now, input, vec![]).await?;
                let failed = outcome.as_ref().err().cloned();
                let answer = outcome.map(|it| self.answer(Some(&id), it, self.input.topology.clone()));
                drop(reply.send(answer.map_err(|error| unanswered(term.lead, error))));
                return Ok(failed.map_or(Ok(()), Err));
            }
            Some(Request::Apply {
                document,
                replaces,
                dry_run,
                reply,
            }) => {
                let applied = self.apply(term, document, &replaces, dry_run, now).await?;
                let failed = applied.as_ref().err().cloned();
                drop(reply.send(applied.map_err(|error| unanswered(term.lead, error))));
                return Ok(failed.map_or(Ok(()), Err));
            }
        }
        Ok(Ok(()))
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
        term: &mut Term<'_>,
        document: Document,
        replaces: &str,
        dry_run: bool,
        now: Moment,
    ) -> Result<Result<Applied, StoreError>, Ended> {
        let (kind, file) = (document.kind, document.kind.as_str());
        let in_force = match kind {
            DocumentKind::Topology => &self.documents.0.version,
            DocumentKind::Policy => &self.documents.1.version,
        };
        if *in_force != replaces && *in_force != document.version {
            return Ok(Ok(Applied::Changed(in_force.clone())));
        }
        let mut input = self.fresh_input();
        let parsed = match kind {
            DocumentKind::Topology => Topology::parse(file, &document.text).map(|it| input.topology = it),
            DocumentKind::Policy => Policy::parse(file, &document.text).map(|it| input.policy = it),
        };
        if let Err(problems) = parsed {
            return Ok(Ok(Applied::Problems(
                problems.0.iter().map(ToString::to_string).collect(),
            )));
        }
        let problems = self.harm(&input, now);
        if !problems.is_empty() {
            return Ok(Ok(Applied::Problems(problems)));
        }
        let topology = input.topology.clone();
        let outcome = if dry_run {
            plan(&input, now)
        } else {
            let author = document.author.clone();
            match self.commit(term, &author, now, input, vec![document]).await? {
                Ok(outcome) => outcome,
                Err(error) => return Ok(Err(error)),
            }
        };
        Ok(Ok(Applied::InForce(Box::new(self.answer(None, outcome, topology)))))
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
        self.input.rollout = self
            .sightings
            .rollout(current, self.rounds.judged().unwrap_or_default(), window);
        self.input.replication = self.sightings.lags();
        let now = daemon::clock::now();
        let mut edges = self.hear_edges(now);
        let lost = &self.input.memory.lost_edges;
        edges.retain(|edge, seen| lost.contains_key(edge) || heard::matters(seen, now));
        self.input.edges = edges;
        self.input.clone()
    }

    /// What was heard of edges; those that follow plans are heard of now.
    fn hear_edges(&mut self, now: Moment) -> BTreeMap<EdgeId, EdgeSeen> {
        let Input { topology, policy, .. } = &self.input;
        for edge in topology
            .edges
            .keys()
            .filter(|edge| self.nodes.is_connected(edge.as_str()))
        {
            self.heard.hear(edge, policy.edges.lost_after, now);
        }
        self.heard.all(topology, now)
    }

    async fn decide(&mut self, term: &mut Term<'_>, now: Moment) -> Result<Result<(), StoreError>, Ended> {
        let recovered = match self.recovered(term).await? {
            Ok(recovered) => recovered,
            Err(error) => return Ok(Err(error)),
        };
        let input = Input {
            recovered,
            ..self.fresh_input()
        };
        let outcome = self.commit(term, planning::PLANNER, now, input, vec![]).await?;
        Ok(outcome.map(drop))
    }

    /// A plan that the store forgot and nodes proved. Where the audit log still has a plan of that number it must be the
    /// same one.
    async fn recovered(&mut self, term: &mut Term<'_>) -> Result<Result<Option<Plan>, StoreError>, Ended> {
        let ours = self.number();
        let was_unproven = self.unproven.take();
        let plan = match self.nodes.recovery(ours, &self.input.topology) {
            None => return Ok(Ok(None)),
            Some(Recovery::Proven(plan)) if Instant::now() >= self.settled_at => plan,
            Some(Recovery::Proven(_)) => return Ok(Ok(None)),
            Some(Recovery::Unproven(text)) => {
                self.unproven = Some(text);
                return Ok(Ok(None));
            }
        };
        let (store, number, held) = (self.store.clone(), plan.number(), plan.clone());
        let asked = async move { records::audited(store.as_ref(), &held, RECOVERY_SCANNED).await };
        match self.meanwhile(term, Requests::Wait, asked).await? {
            Err(error) => Ok(Err(error)),
            Ok(Audited::Possible) => Ok(Ok(Some(*plan))),
            Ok(Audited::Unreadable(why)) => {
                // Said once: it is looked at again in each decision.
                if was_unproven.is_none() {
                    tracing::error!(%number, %why, "nodes hold a newer plan, and the audit log cannot be read to confirm it");
                }
                self.unproven = Some(format!(
                    "most nodes hold plan {number}, which is newer than plan {ours} of the store, and the audit log that would \
                     confirm it cannot be read: {why}. Plan {ours} goes on. Start the version of Meridian that wrote the entry, \
                     or a later one, on the control planes"
                ));
                Ok(Ok(None))
            }
            Ok(Audited::Contradicted) => {
                tracing::error!(%number, "nodes hold a plan that the audit log contradicts; it is not taken over");
                self.nodes.refute(&plan);
                Ok(Ok(None))
            }
        }
    }

    /// The plan in force.
    fn number(&self) -> PlanNumber {
        self.input.current.as_ref().map(Plan::number).unwrap_or_default()
    }

    /// One decision: `plan()`; then the plan, what is to be remembered, and the audit entry are written in one transaction
    /// that expects us to lead still and the parent to be in force; then the plan is published.
    async fn commit(
        &mut self,
        term: &mut Term<'_>,
        actor: &str,
        now: Moment,
        input: Input,
        documents: Vec<Document>,
    ) -> Result<Result<Outcome, StoreError>, Ended> {
        let outcome = plan(&input, now);
        self.progress.decided_at = Some(now);
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

        // Refused requests are recorded, but they must not push the decisions out of the log.
        let is_recorded = match &input.request {
            Some(request) if is_refused(&request.id, &outcome) => {
                self.refusals.refused(&request.author, Instant::now())
            }
            _ => true,
        };
        if !is_recorded {
            self.metrics.refusals_unrecorded.inc();
        }
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
        // Everything that was decided from: a commit that was given up and lands late finds it changed.
        let known = self.revisions;
        let mut transaction = Transaction {
            expect: vec![
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
        if (is_recorded && !spoken.is_empty()) || !written.is_empty() {
            // About its size: what it is made from is most of it.
            let mut kept = self.audit.clone();
            let gone = kept.make_room(self.entry_bytes);
            transaction.delete.extend(gone.map(records::audit_key));
            let entry = audit::Entry {
                version: audit::VERSION.to_owned(),
                oldest: kept.oldest(),
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
            self.entry_bytes = bytes.len();
            let newest = kept.with(&bytes);
            let number = newest.number;
            transaction
                .put
                .push((records::AUDIT_HEAD.to_owned(), records::encode(&newest)));
            transaction.put.push((records::audit_key(number), bytes));
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
        let writes_plan = written_plan.is_some();
        if let Some(plan) = written_plan {
            transaction.put.push((records::PLAN.to_owned(), records::encode(plan)));
        }
        if !transaction.put.is_empty() {
            let store = self.store.clone();
            let written = match term.lead.fenced(transaction) {
                Ok(transaction) => {
                    let commit = async move { store.commit(transaction).await };
                    self.meanwhile(term, Requests::Wait, commit).await?
                }
                Err(error) => Err(error),
            };
            let revision = match written {
                Ok(revision) => Some(revision),
                Err(error) => {
                    self.say_not_written(term.lead, &error, &input, report);
                    return Ok(Err(error));
                }
            };
            self.progress.store_took_at = Some(daemon::clock::now());
            self.can_write();
            for (is_written, known) in [
                (writes_plan, &mut self.revisions.plan),
                (remembers, &mut self.revisions.memory),
                (head.is_some(), &mut self.revisions.audit),
            ] {
                if is_written {
                    *known = revision;
                }
            }
        }

        // Nothing waits for the store any more; whether it takes writes it says itself.
        if let Some(unwritten) = &mut self.progress.unwritten {
            unwritten.is_retried = false;
            unwritten.pending.clear();
        }
        let asked = input.request.is_some();
        self.last_refused.clone_from(&report.refused);
        if let Some(head) = head {
            self.audit = head;
        }
        let Input { topology, policy, .. } = input;
        (self.input.topology, self.input.policy) = (topology, policy);
        // A document that was applied lies within our limits; one that was only written again may not.
        let is_same = |kind: DocumentKind| match kind {
            DocumentKind::Topology => in_force.0.version == self.documents.0.version,
            DocumentKind::Policy => in_force.1.version == self.documents.1.version,
        };
        self.outdated.retain(|(kind, _)| is_same(*kind));
        self.documents = in_force;
        self.input.memory.clone_from(memory);
        for reason in &spoken {
            let generation = next.as_ref().map(|plan| plan.generation);
            let region = reason.region.as_ref().map(RegionId::as_str);
            tracing::info!(code = %reason.code, region, generation, "{}", reason.text);
            let label = ReasonLabel {
                reason: reason.code.as_str().to_owned(),
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
        Ok(Ok(outcome))
    }

    /// A decision that was not written is shown, unless it says nothing about the store: somebody else may have written
    /// first, or the request itself may be too large for any store.
    fn say_not_written(&mut self, lead: &Lead, error: &StoreError, input: &Input, report: &Report) {
        let is_asked = input.request.is_some();
        match error {
            StoreError::Conflict { .. } => {}
            StoreError::TooLarge { .. } | StoreError::TransactionTooLarge { .. } if is_asked => {}
            _ if is_fenced_off(lead, error) => {}
            _ => {
                let pending = if is_asked { Vec::new() } else { report.changed.clone() };
                if !is_asked {
                    self.last_report = report.clone();
                }
                self.cannot_write(error.clone(), pending, !is_asked);
            }
        }
    }

    /// Gives the plan in force to the nodes that follow us; never an older one, and never one that is not valid.
    fn publish_snapshot(&mut self) {
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
        let number = snapshot.plan.number();
        let is_news = self.snapshots.send_if_modified(|published| {
            let newer = published
                .as_ref()
                .is_none_or(|published| published.plan.number() < snapshot.plan.number());
            if newer {
                *published = Some(Arc::new(snapshot));
            }
            newer
        });
        if is_news {
            self.nodes.published(number);
            self.progress.published = Some((number, daemon::clock::now()));
        }
    }

    fn publish_view(&mut self) {
        let generation = self.input.current.as_ref().map_or(0, |plan| plan.generation);
        self.metrics
            .plan_generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
        let edges = self.hear_edges(daemon::clock::now());
        let mut report = self.last_report.clone();
        report.waiting.extend(self.clocks.reasons());
        report
            .waiting
            .extend(self.outdated.iter().map(|(kind, problem)| outdated(*kind, problem)));
        if let Some(text) = self.unproven.as_ref().filter(|_| self.role == Role::Leading) {
            report.waiting.push(Reason {
                code: ReasonCode::PlanUnproven,
                region: None,
                text: text.clone(),
                evidence: vec![],
                until: None,
            });
        }
        self.views.send_replace(Arc::new(View {
            input: self.input.clone(),
            report,
            topology: self.documents.0.clone(),
            policy: self.documents.1.clone(),
            role: self.role.clone(),
            clocks: self.clocks.clone(),
            progress: self.progress.clone(),
            edges,
        }));
    }
}

/// Asks the store again and again whether it takes writes, for as long as we lead.
async fn ask_for_health(store: Arc<dyn Store>, health: watch::Sender<Result<(), StoreError>>) {
    while !health.is_closed() {
        drop(health.send_replace(store.health().await.map(drop)));
        sleep(STORE_LOOK).await;
    }
}

/// Tells operators what an older version took and this one reads within its own limits.
fn outdated(kind: DocumentKind, problem: &Problem) -> Reason {
    let kind = kind.as_str();
    Reason {
        code: ReasonCode::OutdatedDocument,
        region: None,
        text: format!(
            "the {kind} in force was taken by an older version of Meridian, and this one would refuse it ({problem}). Decisions \
             go on by what is read of it. Apply a corrected one: `meridian {kind} apply`"
        ),
        evidence: vec![],
        until: None,
    }
}

/// Whether a request was refused: nothing is remembered of it, and nothing changes.
fn is_refused(id: &str, outcome: &Outcome) -> bool {
    !outcome.memory.actions.contains_key(id) && outcome.report.changed.is_empty()
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
