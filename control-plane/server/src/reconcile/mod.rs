//! The one task that decides. Every replica runs it. Each takes reports and judges health, so that the next leader
//! knows as much as the present one. One replica leads, decides and writes; the others publish its writes.
//!
//! The leader does not re-read its own writes. It reads everything when it takes over, and when the outcome of a write
//! is unknown. A failing store neither ends the task nor stops its observations: while the task waits for the store it
//! judges ticks and publishes the view, which tells that decisions cannot be written. Nodes keep the plan they have,
//! and deciding continues when the store is back.
//!
//! One file, although it is long: a term as leader is one story, from taking over to resigning.

mod access;
mod answers;
mod deciding;
mod evidence;
mod messages;
mod publish;
mod reconciler;
mod requests;
mod standing;
mod term;
mod waiting;

use std::{convert::Infallible, mem::take, sync::Arc, time::Duration};

use planning::next_wake;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use topology::Moment;

pub use messages::{Answer, Applied, Arrival, INBOX_LENGTH, Request, Unanswered};
pub use reconciler::{Reconciler, Settings};

use self::{
    term::{Ended, Term, is_fenced_off},
    waiting::WhileWaiting,
};
use crate::{
    records::{self, RecordError, Stored},
    store::{Leadership, Listing, Store, StoreError},
    texts::log,
    view::{Leader, Role, Unwritten},
};

/// Pause before the store is tried again.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Period at which followers look up the leader.
const LEADER_LOOK: Duration = Duration::from_secs(1);
/// Period at which the leader asks the store whether it takes writes. A quiet deployment writes nothing for days:
/// without asking, a full store would show only when a region dies.
const STORE_LOOK: Duration = Duration::from_secs(5);
/// Pause before a replica that cannot read the store's documents tries again.
const UNREADABLE_RETRY: Duration = Duration::from_secs(2);
/// Time after taking over before a new leader trusts the majority of nodes about a plan that its store does not know.
/// It lets nodes connect: the first of a fleet to come back must not speak for all.
const NODES_SETTLE: Duration = Duration::from_secs(5);

impl Reconciler {
    /// Follows, leads, and follows again until `stop`. `state` mirrors [`records::STATE`].
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
            // Boxed, because a term holds several planning inputs, which would make every caller's future large.
            let Err(ended) = Box::pin(self.lead(term)).await;
            // Stop claiming to lead before anything slow: resigning at a store that is out of reach takes seconds.
            self.set_role(Role::Following(Leader::Nobody));
            self.metrics.leading.set(0);
            for request in take(&mut self.deferred) {
                self.decline(request);
            }
            if !matches!(ended, Ended::Unreadable) {
                self.standing.progress.unwritten = None;
            }
            self.publish_view();
            // Resigning spares the successor the wait for the lease to run out. If the store does not hear of it, the
            // successor waits.
            if let Err(error) = lead.resign().await {
                tracing::debug!(%error, "the store did not take the resignation; the lease runs out by itself");
            }
            match ended {
                Ended::Stopped => return Ok(()),
                Ended::Lost => tracing::warn!(epoch = lead.epoch(), "{}", log::LEADERSHIP_LOST),
                Ended::Unreadable => tracing::error!(epoch = lead.epoch(), "{}", log::RESIGNED),
            }
        }
    }

    /// Follows the leader's writes until this replica leads; `None` when the process stops.
    async fn follow(
        &mut self,
        inbox: &mut mpsc::Receiver<Request>,
        state: &mut watch::Receiver<Arc<Listing>>,
        stop: &CancellationToken,
    ) -> Option<Leadership> {
        let (store, candidate) = (self.store.clone(), self.settings.candidate.clone());
        let known = self
            .standing
            .progress
            .unwritten
            .as_ref()
            .map(|unwritten| unwritten.error.clone());
        let (unreadable, mut unfit) = watch::channel(known);
        let mut campaign = std::pin::pin!(async move {
            loop {
                // A replica that cannot read the documents in force must not stand for election: it would take the
                // leadership from one that can.
                if let Err(error @ RecordError::Unreadable { .. }) = records::read(store.as_ref()).await {
                    unreadable.send_replace(Some(error.into()));
                    sleep(UNREADABLE_RETRY).await;
                    continue;
                }
                unreadable.send_if_modified(|unreadable| unreadable.take().is_some());
                match store.campaign(&candidate).await {
                    Ok(lead) => return lead,
                    Err(error) => tracing::warn!(%error, "{}", log::CANNOT_STAND),
                }
                sleep(STORE_RETRY).await;
            }
        });
        // Runs beside the rest, because a store that is out of reach takes seconds to answer, and reports and ticks
        // must go on.
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
            let wait = self
                .evidence
                .next_judgement(now)
                .since(now)
                .max(Duration::from_millis(5));
            tokio::select! {
                () = stop.cancelled() => return None,
                lead = &mut campaign => return Some(lead),
                Ok(()) = state.changed() => {
                    let listing = state.borrow_and_update().clone();
                    self.mirror(&listing);
                }
                () = &mut look => {}
                Ok(()) = leader.changed() => self.note_leader(&leader.borrow_and_update().clone(), &unfit.borrow().clone()),
                Ok(()) = unfit.changed() => self.note_leader(&leader.borrow().clone(), &unfit.borrow_and_update().clone()),
                request = inbox.recv() => self.decline(request?),
                () = sleep(wait) => {}
            }
        }
    }

    /// Takes over the leader's writes and publishes them to the nodes that follow this replica.
    fn mirror(&mut self, listing: &Listing) {
        match records::state(listing) {
            Ok(Some(state)) => {
                self.adopt(state);
                self.publish_snapshot();
                self.publish_view();
            }
            Ok(None) => {}
            // The view shows this error too, because the campaign finds it as well.
            Err(error) => tracing::error!(%error, "{}", log::DOCUMENTS_UNREADABLE),
        }
    }

    /// Notes the leader, and the error that keeps this replica from standing for election.
    fn note_leader(&mut self, leader: &Leader, unfit: &Option<StoreError>) {
        match unfit {
            Some(error) => self.note_unwritable(error.clone(), Vec::new(), true),
            None => self.note_writable(),
        }
        let role = Role::Following(match (leader, unfit) {
            (Leader::Nobody, Some(error)) => Leader::Unfit(error.clone()),
            (leader, _) => leader.clone(),
        });
        if self.standing.role != role {
            self.set_role(role);
            self.publish_view();
        }
    }

    /// Leads until the leadership is lost or the process stops.
    async fn lead(&mut self, mut term: Term<'_>) -> Result<Infallible, Ended> {
        self.input.epoch = term.lead.epoch();
        self.read_state(&mut term).await?;
        self.set_role(Role::Leading);
        self.settled_at = Instant::now() + NODES_SETTLE;
        self.recent = self.input.current.clone().into_iter().collect();
        self.metrics.leading.set(1);
        let mut node_changes = self.nodes.changes();
        // Dropping the set at the end of the term ends the task.
        let mut asking = JoinSet::new();
        let (health, mut said) = watch::channel(Ok(()));
        asking.spawn(ask_for_health(self.store.clone(), health));
        let (found, mut waiting) = mpsc::channel(1);
        asking.spawn(access::look_for_access(self.store.clone(), found));
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
            let request = match self.deferred.pop_front() {
                Some(request) => request,
                None => tokio::select! {
                    () = term.stop.cancelled() => return Err(Ended::Stopped),
                    () = term.lead.lost() => return Err(Ended::Lost),
                    Ok(()) = node_changes.changed() => {
                        due = Instant::now();
                        continue;
                    }
                    Ok(()) = said.changed() => {
                        let health = said.borrow_and_update().clone();
                        self.take_health(health);
                        continue;
                    }
                    Some((records, done)) = waiting.recv() => {
                        if let Err(error) = self.record_access(&mut term, records).await? {
                            self.recover_from(&mut term, &error).await?;
                        }
                        // Fails if the looking has ended.
                        let _ = done.send(());
                        continue;
                    }
                    request = term.inbox.recv() => request.ok_or(Ended::Stopped)?,
                    () = tokio::time::sleep_until(due) => continue,
                },
            };
            if let Err(error) = self.handle_request(&mut term, request).await? {
                self.recover_from(&mut term, &error).await?;
            }
            // The request may have created a deadline, such as the end of a freeze.
            due = due.min(Instant::now() + self.until_due(daemon::clock::now()));
        }
    }

    /// Handles the store's health while this replica leads.
    fn take_health(&mut self, health: Result<(), StoreError>) {
        match health {
            Ok(()) => {
                self.standing.progress.store_took_at = Some(daemon::clock::now());
                let waits = |unwritten: &Unwritten| unwritten.is_retried;
                if !self.standing.progress.unwritten.as_ref().is_some_and(waits) {
                    self.note_writable();
                }
            }
            Err(error) => {
                let pending = self.standing.take_pending();
                self.note_unwritable(error, pending, false);
            }
        }
    }

    /// After a store error, reads the state again, because the write may or may not have happened. Returns when it was
    /// read, or when the leadership is lost.
    async fn recover_from(&mut self, term: &mut Term<'_>, error: &StoreError) -> Result<(), Ended> {
        if is_fenced_off(term.lead, error) {
            tracing::warn!(%error, "{}", log::ANOTHER_LEADS);
            return Err(Ended::Lost);
        }
        if matches!(
            error,
            StoreError::TooLarge { .. } | StoreError::TransactionTooLarge { .. }
        ) {
            // The transaction was too large to send: the state is known, and the store is healthy.
            return Ok(());
        }
        self.metrics.store_errors.inc();
        self.read_state(term).await
    }

    /// Reads the store's documents until it succeeds.
    async fn read_state(&mut self, term: &mut Term<'_>) -> Result<(), Ended> {
        loop {
            let store = self.store.clone();
            let read = async move { records::read(store.as_ref()).await };
            match self.wait_while_observing(term, WhileWaiting::Decline, read).await? {
                Ok(stored) => {
                    self.take_over(stored);
                    return Ok(());
                }
                Err(error @ RecordError::Unreadable { .. }) => {
                    self.note_unwritable(error.into(), Vec::new(), true);
                    return Err(Ended::Unreadable);
                }
                Err(RecordError::Store(error)) => {
                    let pending = self.standing.take_pending();
                    self.note_unwritable(error, pending, true);
                }
            }
            self.wait_while_observing(term, WhileWaiting::Decline, sleep(STORE_RETRY))
                .await?;
        }
    }

    /// Takes over the state as read. If the store has none, because it is new or lost its data, this replica keeps its
    /// own: the documents of its settings, or those last in force.
    fn take_over(&mut self, stored: Stored) {
        let Stored { state, audit, shelf } = stored;
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
                            "the store's document is in force, not the file's; `meridian {kind} apply FILE --reason WHY` changes it"
                        );
                    }
                }
                self.adopt(state);
            }
            // The store has nothing, so the next commit writes this replica's state again.
            None => (self.known.revisions.plan, self.known.revisions.memory) = (None, None),
        }
        (self.known.audit, self.known.revisions.audit) = audit;
        self.known.shelf = shelf;
        self.publish_snapshot();
    }

    /// Time until a tick must be judged, or the decision may change by itself.
    fn until_due(&self, now: Moment) -> Duration {
        let close = self.evidence.next_judgement(now);
        let due = next_wake(&self.input, now).map_or(close, |wake| wake.min(close));
        let mut wait = due.since(now);
        let settles = self.settled_at.saturating_duration_since(Instant::now());
        if !settles.is_zero() && self.nodes.recovery(self.number(), &self.input.topology).is_some() {
            wait = wait.min(settles);
        }
        wait.max(Duration::from_millis(5))
    }
}

/// Asks the store periodically whether it takes writes, until the receiver is dropped at the end of the term.
async fn ask_for_health(store: Arc<dyn Store>, health: watch::Sender<Result<(), StoreError>>) {
    while !health.is_closed() {
        drop(health.send_replace(store.health().await.map(drop)));
        sleep(STORE_LOOK).await;
    }
}

#[cfg(test)]
mod tests;
