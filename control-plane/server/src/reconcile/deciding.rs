//! One decision: its input, its transaction, and the state after it.

use planning::{Input, Outcome, Phase, Report, plan};
use tokio::time::Instant;
use topology::{Moment, Plan, ReasonCode, RegionId};

use super::{
    reconciler::Reconciler,
    term::{Ended, Term, is_fenced_off},
    waiting::WhileWaiting,
};
use crate::{
    metrics::ReasonLabel,
    nodes::{Recovery, waited_for},
    records::{self, Actor, Audited, Decision, Document, Known},
    store::{Leadership, StoreError, Transaction},
    texts::{self, log},
};

/// Plans of this term that are kept, for nodes that refuse the newest one to go back to.
const RECENT_KEPT: usize = 16;
/// Audit entries searched for a plan that nodes hold. A store that has the plan has it among the newest.
const RECOVERY_SCANNED: u64 = 300;

impl Reconciler {
    pub(super) async fn decide(&mut self, term: &mut Term<'_>, now: Moment) -> Result<Result<(), StoreError>, Ended> {
        let recovered = match self.recovered(term).await? {
            Ok(recovered) => recovered,
            Err(error) => return Ok(Err(error)),
        };
        let input = Input {
            recovered,
            ..self.fresh_input()
        };
        let outcome = self
            .decide_and_commit(term, &Actor::planner(), now, input, None)
            .await?;
        Ok(outcome.map(drop))
    }

    /// Makes one decision: asks `plan()`, and writes plan, memory and audit entry in one transaction. The transaction
    /// expects that this replica still leads and that the parent plan is in force. Then publishes the plan.
    pub(super) async fn decide_and_commit(
        &mut self,
        term: &mut Term<'_>,
        actor: &Actor,
        now: Moment,
        input: Input,
        document: Option<Document>,
    ) -> Result<Result<Outcome, StoreError>, Ended> {
        let outcome = plan(&input, now);
        self.standing.progress.decided_at = Some(now);
        let Outcome {
            plan: next,
            memory,
            report,
        } = &outcome;
        let reasons = records::reasons_to_record(&input, &outcome, &self.last_refused);
        let is_recorded = input.request.as_ref().is_none_or(|request| {
            let is_refused = is_refused(&request.id, &outcome);
            let is_idle = is_refused || is_so_already(&request.id, &outcome);
            let has_room = !is_idle || self.pace.count_idle(&request.author, Instant::now());
            // A request for what is so already leaves an action in the memory, and no commit goes without its entry.
            has_room || !is_refused
        });
        if let Some(document) = &document {
            self.pace.count_document(&document.author, Instant::now());
        }
        if !is_recorded {
            self.metrics.refusals_unrecorded.inc();
        }
        let decision = Decision {
            actor,
            now,
            input: &input,
            outcome: &outcome,
            reasons: &reasons,
            is_recorded,
            document: document.as_ref(),
        };
        let (transaction, after) = records::transaction(&self.known, &decision);
        let mut revision = None;
        if !transaction.put.is_empty() {
            match self.write(term, transaction).await? {
                Ok(written) => revision = Some(written),
                Err(error) => {
                    self.note_not_written(term.lead, &error, &input, report);
                    return Ok(Err(error));
                }
            }
            self.standing.progress.store_took_at = Some(daemon::clock::now());
            self.note_writable();
        }

        self.standing.note_nothing_waits();
        let asked = input.request.is_some();
        self.last_refused.clone_from(&report.refused);
        let Input { topology, policy, .. } = input;
        (self.input.topology, self.input.policy) = (topology, policy);
        // A newly applied document keeps this version's limits; one that is only written again may break them.
        let known = after.committed(revision);
        let version = |known: &Known, kind| known.documents.of(kind).version.clone();
        self.outdated
            .retain(|(kind, _)| version(&known, *kind) == version(&self.known, *kind));
        self.known = known;
        self.input.memory.clone_from(memory);
        for reason in &reasons {
            let generation = next.as_ref().map(|plan| plan.generation);
            let region = reason.region.as_ref().map(RegionId::as_str);
            tracing::info!(code = %reason.code, region, generation, "{}", reason.text);
            let label = ReasonLabel {
                reason: reason.code.as_str().to_owned(),
            };
            self.metrics.decisions.get_or_create(&label).inc();
        }
        let spreads = memory.spreads();
        if let Some(next) = next {
            self.input.current = Some(next.clone());
            self.recent.push_back(next.clone());
            if self.recent.len() > RECENT_KEPT {
                self.recent.pop_front();
            }
            self.publish_snapshot();
        }
        self.nodes.set_awaited(spreads, waited_for(&self.input));
        // The requester got its own refusals; the view shows the state without the request.
        self.last_report = if asked {
            plan(&self.input, now).report
        } else {
            report.clone()
        };
        self.publish_view();
        Ok(Ok(outcome))
    }

    /// Writes a transaction, fenced by the leadership. Returns the revision of the commit.
    pub(super) async fn write(
        &mut self,
        term: &mut Term<'_>,
        transaction: Transaction,
    ) -> Result<Result<u64, StoreError>, Ended> {
        let transaction = match term.lead.fenced(transaction) {
            Ok(transaction) => transaction,
            Err(error) => return Ok(Err(error)),
        };
        let store = self.store.clone();
        let commit = async move { store.commit(transaction).await };
        self.wait_while_observing(term, WhileWaiting::Defer, commit).await
    }

    /// A plan that the store lost and nodes proved; `None` if there is none. If the audit log still has a plan of that
    /// number, it must be the same one.
    pub(super) async fn recovered(&mut self, term: &mut Term<'_>) -> Result<Result<Option<Plan>, StoreError>, Ended> {
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
        match self.wait_while_observing(term, WhileWaiting::Defer, asked).await? {
            Err(error) => Ok(Err(error)),
            Ok(Audited::Possible) => Ok(Ok(Some(*plan))),
            Ok(Audited::Unreadable(why)) => {
                // Logged once: each decision checks again.
                if was_unproven.is_none() {
                    tracing::error!(%number, %why, "{}", log::NEWER_PLAN_UNCONFIRMED);
                }
                self.unproven = Some(texts::plan_unconfirmed(number, ours, why));
                Ok(Ok(None))
            }
            Ok(Audited::Contradicted) => {
                tracing::error!(%number, "{}", log::NEWER_PLAN_CONTRADICTED);
                self.nodes.refute(&plan);
                Ok(Ok(None))
            }
        }
    }

    /// Shows a decision that was not written, if the store is at fault. It is not if another replica wrote first, or if
    /// the request is too large for any store.
    pub(super) fn note_not_written(&mut self, lead: &Leadership, error: &StoreError, input: &Input, report: &Report) {
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
                self.note_unwritable(error.clone(), pending, !is_asked);
            }
        }
    }
}

/// Whether a request asked for what is so already.
pub(super) fn is_so_already(id: &str, outcome: &Outcome) -> bool {
    let Outcome { plan, memory, report } = outcome;
    let is_over = memory.actions.get(id).is_some_and(|action| action.phase == Phase::Done);
    let already_so = report.changed.iter().all(|reason| reason.code == ReasonCode::AlreadySo);
    plan.is_none() && is_over && already_so && !report.changed.is_empty()
}

/// Whether a request was refused: it left no action and changed nothing.
pub(super) fn is_refused(id: &str, outcome: &Outcome) -> bool {
    !outcome.memory.actions.contains_key(id) && outcome.report.changed.is_empty()
}
