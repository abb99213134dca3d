//! Records of access: the leader moves them from the store into the audit log.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{Ended, Reconciler, STORE_LOOK, Term};
use crate::{
    records::{self, Waiting},
    store::{Store, StoreError},
};

/// Records taken over between two decisions: each is a commit.
const AT_ONCE: usize = 20;

/// Records that were found, and where to say that they are dealt with.
pub(super) type Found = (Vec<Waiting>, oneshot::Sender<()>);

/// Looks for records periodically, until the receiver is dropped at the end of the term.
pub(super) async fn look_for_access(store: Arc<dyn Store>, found: mpsc::Sender<Found>) {
    while !found.is_closed() {
        match records::waiting_access(store.as_ref()).await {
            Ok(mut waiting) if !waiting.is_empty() => {
                waiting.truncate(AT_ONCE);
                let (done, dealt_with) = oneshot::channel();
                // Fails at the end of the term.
                let _ = found.send((waiting, done)).await;
                let _ = dealt_with.await;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "cannot look for records of access; trying again"),
        }
        sleep(STORE_LOOK).await;
    }
}

impl Reconciler {
    /// Writes records of access into the audit log, each with a commit of its own, fenced like decisions.
    pub(super) async fn record_access(
        &mut self,
        term: &mut Term<'_>,
        waiting: Vec<Waiting>,
    ) -> Result<Result<(), StoreError>, Ended> {
        // The log of a new store begins with its first plan.
        if self.known.revisions.plan.is_none() {
            return Ok(Ok(()));
        }
        for one in waiting {
            let (transaction, mut after) = records::access_transaction(&self.known, &one, daemon::clock::now());
            match self.write(term, transaction).await? {
                Ok(revision) => {
                    after.revisions.audit = Some(revision);
                    self.known = after;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }
}
