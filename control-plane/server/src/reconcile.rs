//! The one task that decides. It owns the windows, the intents and the plan, re-reads all of them before every decision,
//! and takes no hints about what changed; being woken too often costs microseconds and does no harm.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use planning::{Input, Outcome, REQUEST_LIFE, Report, next_wake, plan};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use topology::{
    Intent, IntentKind, Moment, NodeId, Plan, Policy, Reason, ReasonCode, RegionId, RegionPlan, RegionState, Snapshot,
    Tick, Topology, snapshot::SNAPSHOT_SCHEMA,
};
use verdict::{Before, Health, TickReport, Windows, judge};

use crate::{
    metrics::{Label, Metrics, RegionHealth},
    records::{self, AuditEntry},
    store::{Store, StoreError, Transaction},
};

/// How long after a tick's end its reports are waited for. Nodes report within milliseconds; the rest is their clocks.
const GRACE: Duration = Duration::from_millis(1_000);
/// Requests and reports waiting to be taken: a burst of every edge of a large fleet.
pub const INBOX_LENGTH: usize = 2_048;

/// What the task is asked to do.
pub enum Request {
    /// Take a vantage's report.
    Observe(TickReport),
    /// Carry out what an operator asks, and say what came of it.
    Ask(Intent, oneshot::Sender<Result<Answer, StoreError>>),
    /// End every freeze.
    Unfreeze {
        /// Who asks.
        author: String,
        /// Why.
        why: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Answer, StoreError>>,
    },
}

/// What came of an operator's request.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Whether it was, or already had been, carried out.
    pub accepted: bool,
    /// Why, or why not.
    pub reasons: Vec<Reason>,
    /// The state after it.
    pub view: Arc<View>,
}

/// What is known and decided, for readers. Whole and immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Everything the last decision was made from; its `current` is the plan in force.
    pub input: Input,
    /// Why the last decision was what it was.
    pub report: Report,
}

/// The deciding task.
pub struct Reconciler {
    /// Our own name as a vantage.
    node: NodeId,
    store: Arc<dyn Store>,
    metrics: Metrics,
    windows: Windows,
    /// Newest tick that was judged.
    judged: Tick,
    input: Input,
    plan_revision: Option<u64>,
    /// Revision that our fencing token was written by.
    epoch_revision: u64,
    audit_number: u64,
    last_refused: Vec<Reason>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    views: watch::Sender<Arc<View>>,
}

impl Reconciler {
    /// Takes over from the store: the plan in force, the intents, and the next fencing token.
    pub async fn take_over(
        node: NodeId,
        store: Arc<dyn Store>,
        topology: Topology,
        policy: Policy,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let (epoch, epoch_revision) = records::next_epoch(store.as_ref()).await?;
        let (current, plan_revision) = records::read_plan(store.as_ref()).await?;
        let intents = records::read_intents(store.as_ref()).await?;
        let audit_number = records::newest_audit_number(store.as_ref()).await?;
        tracing::info!(epoch, plan = ?current.as_ref().map(topology::Plan::number), "took over");
        let input = Input {
            topology,
            policy,
            current,
            verdicts: BTreeMap::new(),
            intents,
            epoch,
        };
        let view = Arc::new(View {
            input: input.clone(),
            report: Report::default(),
        });
        let mut reconciler = Self {
            node,
            store,
            metrics,
            windows: Windows::default(),
            judged: Tick(0),
            input,
            plan_revision,
            epoch_revision,
            audit_number,
            last_refused: Vec::new(),
            snapshots: watch::Sender::new(None),
            views: watch::Sender::new(view),
        };
        // The plan of the store may have been made for another topology; deciding first makes it fit this one.
        reconciler.decide(daemon::clock::now()).await?;
        let snapshot = reconciler.snapshot().context("the first decision makes a plan")?;
        snapshot.validate().context("the plan in the store")?;
        reconciler.snapshots.send_replace(Some(Arc::new(snapshot)));
        Ok(reconciler)
    }

    /// Snapshots as they are committed.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.subscribe()
    }

    /// Views as decisions are made.
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.views.subscribe()
    }

    /// Decides until told to stop.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Request>, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let now = daemon::clock::now();
            self.judge_if_due(now).await?;
            let wait = self.next_due(now).since(now).max(Duration::from_millis(5));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                request = inbox.recv() => match request {
                    Some(request) => self.take(request).await?,
                    None => return Ok(()),
                },
                // What has become due is looked up anew; deciding once too often changes nothing.
                () = sleep(wait) => self.decide(daemon::clock::now()).await?,
            }
        }
    }

    fn next_due(&self, now: Moment) -> Moment {
        let close = Tick(self.judged.0.max(now.tick().0.saturating_sub(1)) + 1)
            .end()
            .max(now.tick().end())
            + GRACE;
        let pending = (self.judged < now.tick().back(1)).then(|| now.tick().start() + GRACE);
        let step = next_wake(&self.input, now);
        [Some(close), pending, step]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(close)
    }

    /// Judges the newest closed tick once all vantages reported on it, or when they had their time.
    async fn judge_if_due(&mut self, now: Moment) -> anyhow::Result<()> {
        let last_closed = now.tick().back(1);
        if last_closed.0 + 1 < self.judged.0 {
            tracing::warn!(judged = ?self.judged, now = %now, "the clock went back; what was seen is forgotten");
            self.windows = Windows::default();
            self.judged = last_closed;
        }
        if self.judged >= last_closed {
            return Ok(());
        }
        let expected = self.input.topology.edges.len() + 1;
        if now < last_closed.end() + GRACE && self.windows.vantages(last_closed) < expected {
            return Ok(());
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
        self.decide(now).await
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
        planned.map(|(region, plan)| (region.clone(), believed(plan))).collect()
    }

    /// Whether a report comes from somebody whose word counts: an edge of the topology, or ourselves.
    fn is_vantage(&self, node: &NodeId) -> bool {
        *node == self.node
            || self
                .input
                .topology
                .edges
                .keys()
                .any(|edge| edge.as_str() == node.as_str())
    }

    async fn take(&mut self, request: Request) -> anyhow::Result<()> {
        let now = daemon::clock::now();
        match request {
            Request::Observe(report) if !self.is_vantage(&report.vantage) => {
                self.metrics.reports_unwanted.inc();
                tracing::warn!(vantage = %report.vantage, "a report does not count: no such edge in the topology");
                Ok(())
            }
            Request::Observe(report) => {
                let vantage = report.vantage.to_string();
                match self.windows.take(report, now.tick().back(1), &self.input.policy.health) {
                    Ok(()) => drop(self.metrics.reports.get_or_create(&Label { kind: vantage }).inc()),
                    Err(unwanted) => {
                        self.metrics.reports_unwanted.inc();
                        tracing::warn!(%unwanted, "a report does not count");
                    }
                }
                Ok(())
            }
            Request::Ask(intent, reply) => {
                let answer = self.ask(intent, now).await;
                self.answer(answer, reply)
            }
            Request::Unfreeze { author, why, reply } => {
                let answer = self.unfreeze(&author, &why, now).await;
                self.answer(answer, reply)
            }
        }
    }

    /// A store that refuses one request is the requester's problem; one that failed is ours.
    fn answer(
        &self,
        answer: Result<Answer, StoreError>,
        reply: oneshot::Sender<Result<Answer, StoreError>>,
    ) -> anyhow::Result<()> {
        let failed = match &answer {
            Err(error @ (StoreError::Failed(_) | StoreError::Conflict { .. })) => Some(error.to_string()),
            Err(error @ (StoreError::Unavailable { .. } | StoreError::NoSpace(_))) => Some(error.to_string()),
            Err(StoreError::TooLarge { .. } | StoreError::TransactionTooLarge { .. }) | Ok(_) => None,
        };
        // Whoever asked may have gone; what was done is done.
        let _ = reply.send(answer);
        failed.map_or(Ok(()), |error| Err(anyhow::anyhow!(error)))
    }

    /// Carries a request out at once or not at all: nothing waits to happen when nobody expects it.
    async fn ask(&mut self, mut intent: Intent, now: Moment) -> Result<Answer, StoreError> {
        let (actor, kind) = (intent.author.clone(), intent.kind.clone());
        if let Some(known) = self.input.intents.iter().find(|known| known.id == intent.id) {
            let (same, at) = (known.kind == kind, known.created_at);
            let text = if same {
                format!("already asked at {at}")
            } else {
                format!("the token was used at {at}")
            };
            return Ok(self.reply(same, vec![said(&kind, text)]));
        }
        if let Some(text) = self.already_so(&kind) {
            return Ok(self.reply(true, vec![said(&kind, text)]));
        }
        // Requests count only if they came after the region's last change, whatever the clock did since.
        let regions = self.input.current.iter().flat_map(|plan| &plan.regions);
        let since = regions
            .filter(|(id, _)| Some(*id) == kind_region(&kind))
            .map(|(_, region)| region.since)
            .max();
        intent.created_at = since.map_or(now, |since| now.max(since + Duration::from_millis(1)));
        let with_it = Input {
            intents: [self.input.intents.clone(), vec![intent.clone()]].concat(),
            ..self.input.clone()
        };
        let report = plan(&with_it, now).report;
        let about = |reasons: &[Reason]| -> Vec<Reason> {
            reasons
                .iter()
                .filter(|reason| reason.region.as_ref() == kind_region(&kind))
                .cloned()
                .collect()
        };
        let done = report
            .changed
            .iter()
            .any(|it| it.region.as_ref() == kind_region(&kind) && carries_out(&kind, it.code));
        if kind != IntentKind::Freeze && !done {
            let reasons = [about(&report.refused), about(&report.waiting)].concat();
            self.audit(&actor, now, reasons.clone(), Transaction::default()).await?;
            return Ok(self.reply(false, reasons));
        }
        let (live, expired) = std::mem::take(&mut self.input.intents)
            .into_iter()
            .partition(|known| known.is_live(now));
        self.input.intents = live;
        self.input.intents.push(intent.clone());
        let mut transaction = Transaction {
            put: vec![(records::intent_key(&intent.id), records::encode(&intent))],
            delete: expired
                .iter()
                .map(|known: &Intent| records::intent_key(&known.id))
                .collect(),
            ..Transaction::default()
        };
        if kind == IntentKind::Freeze {
            let text = format!("no automatic change until {}: {}", intent.expires_at, intent.reason);
            let reasons = vec![said(&kind, text)];
            self.audit(&actor, now, reasons.clone(), std::mem::take(&mut transaction))
                .await?;
            self.decide(now)
                .await
                .map_err(|error| StoreError::Failed(format!("{error:#}")))?;
            return Ok(self.reply(true, reasons));
        }
        let report = self.decide_with(&actor, now, transaction).await?;
        Ok(self.reply(true, about(&report.changed)))
    }

    async fn unfreeze(&mut self, author: &str, why: &str, now: Moment) -> Result<Answer, StoreError> {
        let is_freeze = |intent: &&Intent| intent.kind == IntentKind::Freeze;
        let freezes = self.input.intents.iter().filter(is_freeze);
        let delete: Vec<String> = freezes.map(|intent| records::intent_key(&intent.id)).collect();
        let reasons = vec![said(
            &IntentKind::Freeze,
            format!("{} freezes ended: {why}", delete.len()),
        )];
        self.input.intents.retain(|intent| intent.kind != IntentKind::Freeze);
        self.audit(
            author,
            now,
            reasons.clone(),
            Transaction {
                delete,
                ..Transaction::default()
            },
        )
        .await?;
        self.decide(now)
            .await
            .map_err(|error| StoreError::Failed(format!("{error:#}")))?;
        Ok(self.reply(true, reasons))
    }

    /// Writes an audit entry without a plan, with whatever else `transaction` holds.
    async fn audit(
        &mut self,
        actor: &str,
        now: Moment,
        reasons: Vec<Reason>,
        mut transaction: Transaction,
    ) -> Result<(), StoreError> {
        transaction.put.push(self.audit_entry(actor, now, reasons, None));
        self.commit(transaction).await?;
        self.audit_number += 1;
        Ok(())
    }

    fn audit_entry(&self, actor: &str, at: Moment, reasons: Vec<Reason>, plan: Option<Plan>) -> (String, Vec<u8>) {
        let number = self.audit_number + 1;
        let entry = AuditEntry {
            number,
            at,
            actor: actor.to_owned(),
            plan,
            reasons,
            input: self.input.clone(),
        };
        (records::audit_key(number), records::encode(&entry))
    }

    /// Every commit expects our fencing token to be the newest: a control plane that was replaced cannot write.
    async fn commit(&self, mut transaction: Transaction) -> Result<u64, StoreError> {
        transaction
            .expect
            .push((records::EPOCH.to_owned(), Some(self.epoch_revision)));
        self.store.commit(transaction).await
    }

    /// Whether there is nothing to do about a request, in words.
    fn already_so(&self, kind: &IntentKind) -> Option<String> {
        let state = |region: &RegionId| {
            self.input
                .current
                .as_ref()?
                .regions
                .get(region)
                .map(|region| region.state)
        };
        match kind {
            IntentKind::Failover { region } if state(region) == Some(RegionState::Evacuated) => {
                Some(format!("{region} is evacuated already"))
            }
            IntentKind::Restore { region } if state(region) == Some(RegionState::Serving) => {
                Some(format!("{region} serves all its sessions already"))
            }
            IntentKind::Restore { region } if matches!(state(region), Some(RegionState::Restoring(_))) => {
                Some(format!("{region} is returning already"))
            }
            _ => None,
        }
    }

    fn reply(&self, accepted: bool, reasons: Vec<Reason>) -> Answer {
        Answer {
            accepted,
            reasons,
            view: self.views.borrow().clone(),
        }
    }

    fn generation(&self) -> u64 {
        self.input.current.as_ref().map_or(0, |plan| plan.generation)
    }

    async fn decide(&mut self, now: Moment) -> anyhow::Result<()> {
        self.decide_with("planner", now, Transaction::default()).await?;
        Ok(())
    }

    /// One decision: `plan()`; then the plan and its audit entry join what `transaction` holds already, and are committed
    /// and published.
    async fn decide_with(
        &mut self,
        actor: &str,
        now: Moment,
        mut transaction: Transaction,
    ) -> Result<Report, StoreError> {
        let Outcome { plan: next, report } = plan(&self.input, now);
        let is_new = |new: &&Reason| !self.last_refused.iter().any(|old| same(old, new));
        let refused: Vec<Reason> = report.refused.iter().filter(is_new).cloned().collect();
        self.last_refused.clone_from(&report.refused);
        let spoken = [report.changed.clone(), refused].concat();
        if !spoken.is_empty() {
            transaction
                .put
                .push(self.audit_entry(actor, now, spoken.clone(), next.clone()));
        }
        if let Some(next) = &next {
            // The parent must still be in force: whoever else wrote has the word now.
            transaction.expect.push((records::PLAN.to_owned(), self.plan_revision));
            transaction.put.push((records::PLAN.to_owned(), records::encode(next)));
        }
        if transaction != Transaction::default() {
            let revision = self.commit(transaction).await?;
            self.audit_number += u64::from(!spoken.is_empty());
            if next.is_some() {
                self.plan_revision = Some(revision);
            }
        }
        for reason in &spoken {
            let generation = next.as_ref().map(|plan| plan.generation);
            let region = reason.region.as_ref().map(RegionId::as_str);
            tracing::info!(code = %reason.code, region, generation, "{}", reason.text);
            self.metrics
                .decisions
                .get_or_create(&Label {
                    kind: reason.code.as_str().to_owned(),
                })
                .inc();
        }
        if let Some(next) = next {
            self.input.current = Some(next);
            if let Some(snapshot) = self.snapshot() {
                self.snapshots.send_replace(Some(Arc::new(snapshot)));
            }
        }
        self.publish_view(report.clone());
        Ok(report)
    }

    fn publish_view(&self, report: Report) {
        self.metrics
            .plan_generation
            .set(i64::try_from(self.generation()).unwrap_or(i64::MAX));
        self.views.send_replace(Arc::new(View {
            input: self.input.clone(),
            report,
        }));
    }

    fn snapshot(&self) -> Option<Snapshot> {
        let Input {
            topology,
            policy,
            current,
            ..
        } = &self.input;
        let dns_ttl_s = policy.dns.ttl_s();
        let (topology, probe) = (topology.clone(), policy.probe.clone());
        current.clone().map(|plan| Snapshot {
            schema: SNAPSHOT_SCHEMA,
            plan,
            topology,
            dns_ttl_s,
            probe,
        })
    }
}

/// A request as it is remembered.
pub fn intent(id: String, kind: IntentKind, author: String, reason: String, life: Option<Duration>) -> Intent {
    let now = daemon::clock::now();
    Intent {
        id,
        kind,
        author,
        reason,
        created_at: now,
        expires_at: now + life.unwrap_or(REQUEST_LIFE),
    }
}

fn kind_region(kind: &IntentKind) -> Option<&RegionId> {
    match kind {
        IntentKind::Failover { region } | IntentKind::Restore { region } => Some(region),
        IntentKind::Freeze => None,
    }
}

fn said(kind: &IntentKind, text: String) -> Reason {
    let code = match kind {
        IntentKind::Failover { .. } => ReasonCode::ForcedFailover,
        IntentKind::Restore { .. } => ReasonCode::RestoreStep,
        IntentKind::Freeze => ReasonCode::Frozen,
    };
    Reason {
        code,
        region: kind_region(kind).cloned(),
        text,
        evidence: Vec::new(),
    }
}

/// Whether a change is what a request asked for.
fn carries_out(kind: &IntentKind, code: ReasonCode) -> bool {
    match kind {
        IntentKind::Failover { .. } => code == ReasonCode::ForcedFailover,
        IntentKind::Restore { .. } => matches!(code, ReasonCode::RestoreStep | ReasonCode::RestoreDone),
        IntentKind::Freeze => false,
    }
}

/// The same refusal, whatever the evidence of this tick.
fn same(a: &Reason, b: &Reason) -> bool {
    (a.code, &a.region) == (b.code, &b.region)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Embedded;

    async fn control_plane(store: &Embedded) -> Reconciler {
        let node = NodeId::new("control-plane").unwrap();
        let topology = topology::fixtures::three_primaries().topology;
        let taken = Reconciler::take_over(
            node,
            Arc::new(store.clone()),
            topology,
            Policy::default(),
            Metrics::default(),
        );
        taken.await.unwrap()
    }

    fn freeze() -> Intent {
        let (author, reason) = ("a".to_owned(), "r".to_owned());
        intent(
            "t".to_owned(),
            IntentKind::Freeze,
            author,
            reason,
            Some(Duration::from_secs(60)),
        )
    }

    #[tokio::test]
    async fn a_control_plane_that_was_replaced_gets_no_write_through() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        let mut stale = control_plane(&store).await;
        let mut successor = control_plane(&store).await;
        assert!(successor.input.epoch > stale.input.epoch);

        let now = daemon::clock::now();
        let error = stale.ask(freeze(), now).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Conflict { key, .. } if key == records::EPOCH),
            "{error}"
        );
        assert!(records::read_intents(&store).await.unwrap().is_empty());
        assert!(successor.ask(freeze(), now).await.unwrap().accepted);
    }

    #[tokio::test]
    async fn every_audited_decision_can_be_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        let mut reconciler = control_plane(&store).await;
        for ttl in [20, 25] {
            reconciler.input.policy.dns.ttl = Duration::from_secs(ttl);
            reconciler.decide(daemon::clock::now()).await.unwrap();
        }
        let entries = records::read_audit(&store, 10).await.unwrap();
        assert_eq!(entries.len(), 3);
        for entry in entries {
            assert_eq!(
                records::encode(&plan(&entry.input, entry.at).plan),
                records::encode(&entry.plan)
            );
        }
    }
}
