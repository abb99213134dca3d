//! The state of the deciding task: the plan and documents in force, the evidence, and the view of both that it publishes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use planning::{Input, Report, plan, signs_of_life};
use tokio::{sync::watch, time::Instant};
use topology::{Intent, Moment, Plan, PlanNumber, Problem, Reason, ReasonCode, Snapshot};
use verdict::Clocks;

use super::{evidence::Evidence, messages::Request, publish::Publisher, standing::Standing};
use crate::{
    metrics::Metrics,
    nodes::{Nodes, waited_for},
    pace::Pace,
    records::{self, AuditHead, Document, DocumentKind, Documents, Known, RecordError, Revisions, Shelf, State},
    store::{self, Candidate, Listing, Store, StoreError},
    texts::{self, log},
    view::{Role, View},
};

/// The settings of a replica.
#[derive(Clone)]
pub struct Settings {
    /// This replica's name, also as a vantage, and its URL.
    pub candidate: Candidate,
    /// The topology for a store that has none.
    pub topology: Document,
    /// The policy for a store that has none.
    pub policy: Document,
}

/// The state of the deciding task.
pub struct Reconciler {
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn Store>,
    pub(super) nodes: Nodes,
    pub(super) metrics: Metrics,
    pub(super) evidence: Evidence,
    pub(super) pace: Pace,
    pub(super) input: Input,
    /// Problems in the documents in force that this version would refuse in a new document.
    pub(super) outdated: Vec<(DocumentKind, Problem)>,
    pub(super) known: Known,
    /// The plans of this term, newest last, for nodes that refuse the newest one to go back to.
    pub(super) recent: VecDeque<Plan>,
    pub(super) last_refused: Vec<Reason>,
    pub(super) last_report: Report,
    pub(super) standing: Standing,
    /// Requests that arrived during a commit.
    pub(super) deferred: VecDeque<Request>,
    /// Set if a tick was judged that no decision has used yet.
    pub(super) is_undecided: bool,
    /// Time from which a plan that nodes hold may be taken over.
    pub(super) settled_at: Instant,
    /// The text about a newer plan that nodes claim without proof.
    pub(super) unproven: Option<String>,
    pub(super) publisher: Publisher,
}

impl Reconciler {
    /// A replica that knows only its settings.
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
        let documents = Documents {
            topology: state.topology.0,
            policy: state.policy.0,
        };
        let standing = Standing::new(daemon::clock::now());
        let view = View {
            input: input.clone(),
            report: Report::default(),
            topology: documents.topology.clone(),
            policy: documents.policy.clone(),
            role: standing.role.clone(),
            clocks: Clocks::default(),
            progress: standing.progress.clone(),
            edges: BTreeMap::new(),
        };
        let own = settings.candidate.node.clone();
        let evidence = Evidence::new(own, nodes.clone(), metrics.clone(), daemon::clock::now());
        let publisher = Publisher::new(nodes.clone(), metrics.clone(), view);
        Ok(Self {
            settings,
            store,
            nodes,
            metrics,
            evidence,
            pace: Pace::default(),
            input,
            outdated: state.outdated,
            known: Known {
                revisions: Revisions::default(),
                documents,
                audit: AuditHead::default(),
                shelf: Shelf::default(),
                entry_bytes: 0,
            },
            recent: VecDeque::new(),
            last_refused: Vec::new(),
            last_report: Report::default(),
            standing,
            deferred: VecDeque::new(),
            is_undecided: false,
            settled_at: Instant::now(),
            unproven: None,
            publisher,
        })
    }

    /// Receives each snapshot when it is committed.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.publisher.snapshots.subscribe()
    }

    /// Receives each new view.
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.publisher.views.subscribe()
    }

    /// Judges the newest round if it is due. Returns whether it did.
    pub(super) fn judge_if_due(&mut self, now: Moment) -> bool {
        let Some((tick, verdicts)) = self.evidence.judge_if_due(&self.input, now) else {
            return false;
        };
        self.standing.progress.judged = Some((tick, now));
        self.input.verdicts = verdicts;
        true
    }

    /// Takes over the plan, the memory and the documents as the store has them.
    pub(super) fn adopt(&mut self, state: State) {
        let State {
            plan,
            memory,
            topology,
            policy,
            outdated,
        } = state;
        if self.outdated != outdated {
            for (kind, problem) in &outdated {
                tracing::warn!(kind = kind.as_str(), %problem, "{}", log::DOCUMENT_OUTDATED);
            }
            self.outdated = outdated;
        }
        if self.input.current.is_none() && plan.is_some() {
            // Verdicts so far did not know the plan's beliefs about regions, so they start anew.
            self.input.verdicts.clear();
        }
        self.known.revisions.plan = plan.as_ref().map(|(_, revision)| *revision);
        self.input.current = plan.map(|(plan, _)| plan);
        (self.input.memory, self.known.revisions.memory) = memory;
        (self.known.documents.topology, self.input.topology) = topology;
        (self.known.documents.policy, self.input.policy) = policy;
    }

    /// The present input, without a request.
    pub(super) fn fresh_input(&mut self) -> Input {
        let current = self.input.current.as_ref();
        let number = current.map(Plan::number).unwrap_or_default();
        self.input.refusal = self.nodes.refusal(number, &self.recent);
        let window = self.input.policy.rollout.window;
        self.input.rollout = self.evidence.sightings.rollout(current, self.evidence.judged(), window);
        self.input.replication = self.evidence.sightings.lags();
        let waits = self.input.memory.spreads().is_some();
        self.input.applied = waits.then(|| self.nodes.applied_by_most(&waited_for(&self.input)));
        let now = daemon::clock::now();
        let mut edges = self.evidence.signs_of_life(&self.input, now);
        signs_of_life::keep_what_matters(&mut edges, &self.input.memory, now);
        self.input.edges = edges;
        self.input.clone()
    }

    /// The input with a request. Its lifetime counts from now; the times that the request states do not count.
    pub(super) fn input_with(&mut self, mut intent: Intent, now: Moment) -> Input {
        let life = intent.expires_at.since(intent.created_at);
        (intent.created_at, intent.expires_at) = (now, now + life);
        Input {
            request: Some(intent),
            ..self.fresh_input()
        }
    }

    /// Number of the plan in force.
    pub(super) fn number(&self) -> PlanNumber {
        self.input.current.as_ref().map(Plan::number).unwrap_or_default()
    }

    /// Publishes the plan in force to the nodes that follow this replica.
    pub(super) fn publish_snapshot(&mut self) {
        if let Some(number) = self.publisher.publish_snapshot(&self.input) {
            self.standing.progress.published = Some((number, daemon::clock::now()));
        }
    }

    /// Publishes the state of this replica.
    pub(super) fn publish_view(&mut self) {
        let edges = self.evidence.signs_of_life(&self.input, daemon::clock::now());
        let mut report = self.last_report.clone();
        report.waiting.extend(self.evidence.clocks.reasons());
        report.waiting.extend(self.evidence.suspects().reasons());
        report
            .waiting
            .extend(self.outdated.iter().map(|(kind, problem)| outdated(*kind, problem)));
        if let Some(text) = self.unproven.as_ref().filter(|_| self.standing.leads()) {
            report.waiting.push(Reason {
                code: ReasonCode::PlanUnproven,
                region: None,
                text: text.clone(),
                evidence: vec![],
                until: None,
            });
        }
        self.publisher.publish_view(View {
            input: self.input.clone(),
            report,
            topology: self.known.documents.topology.clone(),
            policy: self.known.documents.policy.clone(),
            role: self.standing.role.clone(),
            clocks: self.evidence.clocks.clone(),
            progress: self.standing.progress.clone(),
            edges,
        });
    }

    pub(super) fn set_role(&mut self, role: Role) {
        self.standing.set_role(role, daemon::clock::now());
    }

    /// Shows that decisions cannot be written, until they can.
    pub(super) fn note_unwritable(&mut self, error: StoreError, pending: Vec<Reason>, is_retried: bool) {
        let now = daemon::clock::now();
        self.standing.note_unwritable(error, pending, is_retried, now);
        self.publish_view();
    }

    pub(super) fn note_writable(&mut self) {
        if self.standing.note_writable() {
            self.publish_view();
        }
    }

    /// Shows operators the decisions that would be made if the store took writes.
    pub(super) fn show_pending(&mut self, now: Moment) {
        if !self.standing.leads() {
            return;
        }
        let report = plan(&self.fresh_input(), now).report;
        self.standing.progress.decided_at = Some(now);
        if let Some(unwritten) = &mut self.standing.progress.unwritten {
            unwritten.pending.clone_from(&report.changed);
        }
        self.last_report = report;
    }
}

/// Tells operators about a document of an older version that breaks this version's limits.
fn outdated(kind: DocumentKind, problem: &Problem) -> Reason {
    Reason {
        code: ReasonCode::OutdatedDocument,
        region: None,
        text: texts::outdated_document(kind.as_str(), problem),
        evidence: vec![],
        until: None,
    }
}
