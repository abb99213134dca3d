//! Leadership in etcd: a key under a lease, which a candidate writes if it is missing. The key's create revision is the
//! epoch and the fence. When the lease runs out the key is gone, and every commit of the old leader fails.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch::Sender,
    task::JoinHandle,
    time::{sleep, timeout, timeout_at},
};
use topology::NodeId;

use super::{
    super::{
        backoff::{Backoff, spread},
        error::StoreError,
        lead::{Candidate, LeaderRecord, Leadership, Term, Validity},
        transaction::Entry,
    },
    client::Etcd,
    convert::{as_u64, header_revision},
    failure::Failure,
    listing, watch,
};
use crate::texts::{log, store as texts};

/// Key of the leader, written once per leadership under a lease. Its create revision is the epoch.
pub const LEADER: &str = "/meridian/v1/leader";
/// Pauses between attempts to lead while the store is out of reach.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// A leader stops this long before its lease ends by its own clock: room for clocks of different speed and for commits
/// in flight.
const MARGIN_MIN: Duration = Duration::from_millis(500);
const MARGIN_DIVISOR: u32 = 5;
/// Keep-alives per lease. Each waits a little less than this part of the lease for an answer, so that after a frozen
/// member there is time to ask another.
const RENEWALS: u32 = 3;

/// The value under [`LEADER`].
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    node: NodeId,
    url: String,
}

/// The leader, and the revision at which it was read.
pub(super) async fn read(etcd: &Etcd) -> Result<(Option<LeaderRecord>, u64), StoreError> {
    let listing = listing::list(etcd, LEADER).await?;
    let record = listing.entries.get(LEADER).map(decode).transpose()?;
    Ok((record, listing.revision))
}

fn decode(entry: &Entry) -> Result<LeaderRecord, StoreError> {
    let document: Document = serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Failed(texts::no_leader_record(LEADER, error)))?;
    Ok(LeaderRecord {
        node: document.node,
        url: document.url,
        // The key is written once, so the revision of the value is its create revision.
        epoch: entry.revision,
    })
}

fn margin(ttl: Duration) -> Duration {
    MARGIN_MIN.max(ttl / MARGIN_DIVISOR)
}

pub(super) async fn campaign(etcd: &Etcd, candidate: &Candidate) -> Result<Leadership, StoreError> {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_LAST);
    loop {
        match try_to_lead(etcd, candidate).await {
            Ok(Some(lead)) => return Ok(lead),
            Ok(None) => backoff.reset(),
            Err(error @ (StoreError::Unavailable { .. } | StoreError::NoSpace(_))) => {
                tracing::warn!(%error, "{}", log::CANNOT_STAND);
                sleep(backoff.next_wait()).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Tries once to lead. `None` if another candidate leads, or led a moment ago.
async fn try_to_lead(etcd: &Etcd, candidate: &Candidate) -> Result<Option<Leadership>, StoreError> {
    let (leader, revision) = read(etcd).await?;
    if let Some(leader) = leader {
        wait_until_free(etcd, &leader, revision, candidate.lease_ttl).await;
        return Ok(None);
    }
    let wanted = candidate.lease_ttl.as_millis().div_ceil(1_000);
    let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
    let request_timeout = etcd.0.settings.request_timeout;
    let sent = Instant::now();
    // If an answer is lost, the repeated request grants a second lease. The first holds no key and runs out.
    let granted = etcd
        .ask(request_timeout, |mut member| async move {
            member.lease.grant(wanted, None).await
        })
        .await?;
    let (lease, ttl) = (granted.id(), Duration::from_secs(as_u64(granted.ttl())));
    // The lease began after `sent`, so an end counted from `sent` is early, which is safe.
    let Some(valid) = ttl.checked_sub(margin(ttl)).filter(|valid| !valid.is_zero()) else {
        return Err(StoreError::Failed(texts::lease_too_short(ttl)));
    };
    match take(etcd, candidate, lease).await {
        Ok(Some(epoch)) => {
            let validity = Arc::new(Sender::new(Validity::Until(sent + valid)));
            let keeper = Keeper {
                etcd: etcd.clone(),
                lease,
                ttl,
                epoch,
                validity: validity.clone(),
            };
            let term = EtcdTerm {
                etcd: etcd.clone(),
                lease,
                keeper: tokio::spawn(keeper.run()),
            };
            tracing::info!(epoch, ?ttl, "leading");
            Ok(Some(Leadership::new(
                epoch,
                (LEADER.to_owned(), Some(epoch)),
                validity,
                term,
            )))
        }
        other => {
            // If the key was written after all, it goes with its lease: now, or when the lease runs out.
            let _ = revoke(etcd, lease).await;
            other.map(|_| None)
        }
    }
}

/// Waits until the leader's key is gone or may be gone, for at most `ttl`: a watch that reports nothing must not keep
/// candidates waiting.
async fn wait_until_free(etcd: &Etcd, leader: &LeaderRecord, revision: u64, ttl: Duration) {
    tracing::debug!(leader = %leader.node, epoch = leader.epoch, "waiting until the leader is gone");
    let gone = async {
        if let Ok(mut changes) = watch::open(etcd, LEADER, revision).await {
            while let Ok(batch) = changes.next().await {
                if batch
                    .changes
                    .iter()
                    .any(|change| change.key == LEADER && change.value.is_none())
                {
                    return;
                }
            }
        }
        sleep(spread(BACKOFF_FIRST)).await;
    };
    // A timeout is no failure: the caller looks again.
    let _ = timeout(ttl, gone).await;
}

/// Writes the key if it is missing. Returns its revision.
async fn take(etcd: &Etcd, candidate: &Candidate, lease: i64) -> Result<Option<u64>, StoreError> {
    let document = Document {
        node: candidate.node.clone(),
        url: candidate.url.clone(),
    };
    let document = serde_json::to_vec(&document).map_err(|error| StoreError::Failed(error.to_string()))?;
    let put = TxnOp::put(LEADER, document, Some(PutOptions::new().with_lease(lease)));
    let request = Txn::new()
        .when([Compare::create_revision(LEADER, CompareOp::Equal, 0)])
        .and_then([put]);
    let is_final = |failure: &Failure| matches!(failure, Failure::Lost(_));
    let answer = etcd
        .ask_unless(etcd.0.settings.request_timeout, is_final, |mut member| {
            let request = request.clone();
            async move { member.kv.txn(request).await }
        })
        .await?;
    if !answer.succeeded() {
        return Ok(None);
    }
    header_revision(answer.header()).map(Some)
}

async fn revoke(etcd: &Etcd, lease: i64) -> Result<(), StoreError> {
    etcd.ask(etcd.0.settings.request_timeout, |mut member| async move {
        match member.lease.revoke(lease).await {
            // The lease ran out, or an attempt whose answer was lost revoked it.
            Err(etcd_client::Error::GRpcStatus(status)) if status.code() == tonic::Code::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    })
    .await
}

/// Keeps a lease alive, and finds out when it is lost.
struct Keeper {
    etcd: Etcd,
    lease: i64,
    ttl: Duration,
    epoch: u64,
    validity: Arc<Sender<Validity>>,
}

impl Keeper {
    /// Runs until the leadership is lost.
    async fn run(self) {
        let reason = self.keep().await;
        tracing::warn!(epoch = self.epoch, reason, "{}", log::LEADERSHIP_LOST);
        self.validity.send_replace(Validity::Lost);
        // Revoking the lease spares the successor the wait for its end.
        let _ = revoke(&self.etcd, self.lease).await;
    }

    /// Returns the reason for which the leadership is lost.
    async fn keep(&self) -> String {
        let (period, soon) = (self.ttl / RENEWALS, self.ttl / 20);
        let mut next = period;
        loop {
            let end = match *self.validity.borrow() {
                Validity::Until(end) if Instant::now() < end => end,
                _ => return texts::lease_unanswered().to_owned(),
            };
            let round = async {
                sleep(next).await;
                tokio::join!(self.renew(), self.look())
            };
            next = match timeout_at(end.into(), round).await {
                Ok((Ok(()), Ok(()))) => period,
                Ok((Err(Renewal::Gone(reason)), _) | (_, Err(Renewal::Gone(reason)))) => return reason,
                Ok((Err(Renewal::NoAnswer(reason)), _) | (_, Err(Renewal::NoAnswer(reason)))) => {
                    tracing::warn!(epoch = self.epoch, reason, "{}", log::LEASE_NOT_RENEWED);
                    soon
                }
                // A keep-alive may have moved the end meanwhile.
                Err(_) => soon,
            };
        }
    }

    /// Sends one keep-alive. The new end counts from the time of sending, because the lease runs from etcd's receipt
    /// and not from the answer's arrival.
    async fn renew(&self) -> Result<(), Renewal> {
        let (index, mut member) = self.etcd.current();
        let sent = Instant::now();
        let wait = self.ttl / (RENEWALS + 1);
        match timeout(wait, member.lease.keep_alive(self.lease)).await {
            Ok(Ok(_)) => {
                let end = sent + self.ttl - margin(self.ttl);
                let prolonged = self.validity.send_if_modified(|validity| validity.prolong(end));
                if prolonged {
                    Ok(())
                } else {
                    Err(Renewal::Gone(texts::lease_renewed_late().to_owned()))
                }
            }
            Ok(Err(etcd_client::Error::LeaseKeepAliveError(reason))) => Err(Renewal::Gone(reason)),
            Ok(Err(etcd_client::Error::GRpcStatus(status))) if status.code() == tonic::Code::NotFound => {
                Err(Renewal::Gone(status.message().to_owned()))
            }
            Ok(Err(error)) => {
                self.etcd.move_on(index);
                Err(Renewal::NoAnswer(error.to_string()))
            }
            Err(_) => {
                self.etcd.move_on(index);
                Err(Renewal::NoAnswer(texts::no_answer(wait)))
            }
        }
    }

    /// Checks that the key still exists, because an operator may have removed it by hand.
    async fn look(&self) -> Result<(), Renewal> {
        let (_, mut member) = self.etcd.current();
        let wait = self.ttl / (RENEWALS + 1);
        let Ok(Ok(found)) = timeout(wait, member.kv.get(LEADER, None)).await else {
            // Keep-alives decide; this check only finds a loss earlier.
            return Ok(());
        };
        let epoch = found.kvs().first().map(|found| as_u64(found.create_revision()));
        if epoch == Some(self.epoch) {
            Ok(())
        } else {
            Err(Renewal::Gone(texts::another_leads(LEADER, epoch, self.epoch)))
        }
    }
}

/// The reasons for which a lease was not renewed.
enum Renewal {
    /// The lease or the key is gone.
    Gone(String),
    /// No answer, so the state is unknown.
    NoAnswer(String),
}

/// Ends one leadership.
struct EtcdTerm {
    etcd: Etcd,
    lease: i64,
    keeper: JoinHandle<()>,
}

#[async_trait]
impl Term for EtcdTerm {
    async fn resign(&self) -> Result<(), StoreError> {
        self.keeper.abort();
        revoke(&self.etcd, self.lease).await
    }
}

impl Drop for EtcdTerm {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_ends_before_its_lease() {
        for (ttl, expected) in [(2, 500), (5, 1_000), (30, 6_000)] {
            assert_eq!(margin(Duration::from_secs(ttl)).as_millis(), expected);
        }
    }
}
