//! Publishes the plan to nodes, and the state of this replica to its other readers.

use std::{mem::take, sync::Arc};

use planning::{Input, plan};
use topology::{Moment, Problem, Reason, ReasonCode, Snapshot, snapshot::SNAPSHOT_SCHEMA};

use super::Reconciler;
use crate::{
    records::DocumentKind,
    store::StoreError,
    texts,
    view::{Role, Unwritten, View},
};

impl Reconciler {
    /// Publishes the plan in force to the nodes that follow this replica; never an older plan or an invalid one.
    pub(super) fn publish_snapshot(&mut self) {
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

    pub(super) fn publish_view(&mut self) {
        let generation = self.input.current.as_ref().map_or(0, |plan| plan.generation);
        self.metrics
            .plan_generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
        let edges = self.evidence.signs_of_life(&self.input, daemon::clock::now());
        let mut report = self.last_report.clone();
        report.waiting.extend(self.evidence.clocks.reasons());
        report.waiting.extend(self.evidence.suspects().reasons());
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
            topology: self.known.documents.topology.clone(),
            policy: self.known.documents.policy.clone(),
            role: self.role.clone(),
            clocks: self.evidence.clocks.clone(),
            progress: self.progress.clone(),
            edges,
        }));
    }

    /// Handles the store's health while this replica leads.
    pub(super) fn take_health(&mut self, health: Result<(), StoreError>) {
        let waits = |unwritten: &Unwritten| unwritten.is_retried;
        match health {
            Ok(()) => {
                self.progress.store_took_at = Some(daemon::clock::now());
                if !self.progress.unwritten.as_ref().is_some_and(waits) {
                    self.note_writable();
                }
            }
            Err(error) => {
                let pending = self.progress.unwritten.as_mut().map(|it| take(&mut it.pending));
                self.note_unwritable(error, pending.unwrap_or_default(), false);
            }
        }
    }

    /// Notes that decisions cannot be written. Logs each kind of error once; the view shows it until it is over.
    pub(super) fn note_unwritable(&mut self, error: StoreError, pending: Vec<Reason>, is_retried: bool) {
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

    pub(super) fn note_writable(&mut self) {
        if let Some(unwritten) = self.progress.unwritten.take() {
            tracing::info!(since = %unwritten.since, "decisions can be written again");
            self.publish_view();
        }
    }

    /// Shows operators the decisions that would be made if the store took writes.
    pub(super) fn show_pending(&mut self, now: Moment) {
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
