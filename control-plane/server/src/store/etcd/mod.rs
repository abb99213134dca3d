//! The store in an etcd cluster, for several control planes, which elect one of them to decide.
//!
//! A production cluster has three or five members at as many sites, and needs flags that are not etcd's defaults:
//!
//! - `--auto-compaction-mode=periodic --auto-compaction-retention=1h`: without compaction etcd keeps every old value
//!   until it reaches its quota, and then refuses writes.
//! - `--quota-backend-bytes=4294967296`: 2 GiB is the default; alert on the size well before it.
//! - between sites `--heartbeat-interval=300 --election-timeout=3000`: the heartbeat about the longest round trip, the
//!   election ten times that. Leases cannot be shorter than one and a half election timeouts.
//!
//! After [`StoreError::NoSpace`]: compact, defragment every member, then `etcdctl alarm disarm`; see the error's text.
//!
//! A restored snapshot takes revisions back, and epochs with them. A node that saw later plans refuses those of the
//! restored store until their generation is greater. A [`Mirror`](super::Mirror) notices and reports it.

mod certificates;
mod client;
mod convert;
mod failure;
mod lead;
mod listing;
mod watch;

use async_trait::async_trait;
use etcd_client::{AlarmAction, AlarmType};
use tokio::task::JoinSet;

use self::{
    convert::{as_u64, conflict, entry_of, header_revision, txn},
    failure::Failure,
};
use super::{
    contract::{Health, Store},
    error::StoreError,
    lead::{Candidate, LeaderRecord, Leadership},
    transaction::{Entry, Listing, Transaction},
    watch::{Changes, WatchEnd},
};
use crate::texts::store as texts;

pub use certificates::look_at_members;
pub use client::{Etcd, Settings};
pub use lead::LEADER;

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let found = self
            .ask(self.0.settings.request_timeout, |mut member| async move {
                member.kv.get(key, None).await
            })
            .await?;
        Ok(found.kvs().first().map(entry_of))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        listing::list(self, prefix).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        transaction.check()?;
        let may_be_written = |failure: &Failure| matches!(failure, Failure::Lost(_));
        let request = txn(&transaction);
        let answer = self
            .ask_unless(self.0.settings.request_timeout, may_be_written, |mut member| {
                let request = request.clone();
                async move { member.kv.txn(request).await }
            })
            .await?;
        if !answer.succeeded() {
            return Err(conflict(transaction, &answer.op_responses()));
        }
        header_revision(answer.header())
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd> {
        watch::open(self, prefix, after_revision).await
    }

    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        lead::campaign(self, candidate).await
    }

    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError> {
        Ok(lead::read(self).await?.0)
    }

    async fn health(&self) -> Result<Health, StoreError> {
        // A quorum answers this, unlike a member's status.
        let alarms = self
            .ask(self.0.settings.request_timeout, |mut member| async move {
                member.maintenance.alarm(AlarmAction::Get, AlarmType::None, None).await
            })
            .await?;
        if alarms.alarms().iter().any(|alarm| alarm.alarm() == AlarmType::Nospace) {
            let text = texts::alarm_rings().to_owned();
            return Err(Failure::NoSpace(text).at("", false));
        }
        let revision = self.list(lead::LEADER).await?.revision;
        let timeout = self.0.settings.request_timeout;
        let mut asked = JoinSet::new();
        for (mut member, endpoint) in self.0.members.iter().cloned().zip(self.0.settings.endpoints.clone()) {
            asked.spawn(async move {
                (
                    endpoint,
                    tokio::time::timeout(timeout, member.maintenance.status()).await,
                )
            });
        }
        let (mut bytes, mut unreachable) = (0, Vec::new());
        while let Some(Ok((endpoint, status))) = asked.join_next().await {
            match status {
                Ok(Ok(status)) => bytes = bytes.max(as_u64(status.db_size())),
                _ => unreachable.push(endpoint),
            }
        }
        unreachable.sort();
        Ok(Health {
            revision,
            bytes,
            unreachable,
        })
    }
}
