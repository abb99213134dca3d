//! A watch at one member. It asks for progress marks and gives up without them, because a frozen or cut-off member
//! keeps its connections and stays silent.

use std::time::Instant;

use async_trait::async_trait;
use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::time::sleep_until;

use super::{
    super::watch::{Batch, Change, Changes, Source, WatchEnd},
    client::Etcd,
    convert::{after, as_u64},
    failure::Failure,
};
use crate::texts::store as texts;

/// The watch id in answers to requests for a progress mark.
const NO_WATCH: i64 = -1;

pub(super) async fn open(etcd: &Etcd, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd> {
    let (index, mut member) = etcd.current();
    let options = WatchOptions::new()
        .with_range(after(prefix))
        .with_start_revision((after_revision + 1).cast_signed())
        .with_progress_notify();
    let timeout = etcd.0.settings.request_timeout;
    let begin = async {
        let mut stream = member.watch.watch(prefix, Some(options)).await?;
        let first = stream.message().await?;
        Ok::<_, etcd_client::Error>((stream, first))
    };
    let opened = match tokio::time::timeout(timeout, begin).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => Err(end_of(&error)),
        Err(_) => Err(WatchEnd::Unavailable(texts::no_answer(timeout))),
    };
    let began = opened.and_then(|(stream, first)| {
        let mut watching = Watching {
            etcd: etcd.clone(),
            index,
            stream,
            position: after_revision,
            heard: Instant::now(),
            asked: None,
            ended: false,
        };
        // etcd may refuse a watch at once, or after confirming it.
        let confirmed = watching.take(&first.ok_or(WatchEnd::Ended)?)?;
        debug_assert!(confirmed.changes.is_empty(), "the first answer only confirms the watch");
        Ok(Changes::new(watching))
    });
    if let Err(end) = &began {
        leave(etcd, index, end);
    }
    began
}

/// Moves on to the next member, except after compaction, which is the same at all members.
fn leave(etcd: &Etcd, index: usize, end: &WatchEnd) {
    if !matches!(end, WatchEnd::Compacted { .. }) {
        etcd.move_on(index);
    }
}

struct Watching {
    etcd: Etcd,
    /// Index of the member that serves the watch.
    index: usize,
    stream: WatchStream,
    /// Changes up to this revision were returned.
    position: u64,
    heard: Instant,
    /// Time of the last request for a progress mark, unless a response came since.
    asked: Option<Instant>,
    ended: bool,
}

impl Watching {
    /// Reads a response: changes, or a sign that the watch is alive.
    fn take(&mut self, response: &WatchResponse) -> Result<Batch, WatchEnd> {
        if response.compact_revision() != 0 {
            let oldest = as_u64(response.compact_revision());
            return Err(WatchEnd::Compacted { oldest });
        }
        if response.canceled() {
            return Err(WatchEnd::Cancelled(response.cancel_reason().to_owned()));
        }
        let mut changes = Vec::new();
        for event in response.events() {
            let Some(found) = event.kv() else {
                return Err(WatchEnd::Unreadable(texts::event_without_key().to_owned()));
            };
            let revision = as_u64(found.mod_revision());
            if revision <= self.position {
                continue;
            }
            let key = found
                .key_str()
                .map_err(|_| WatchEnd::Unreadable(texts::key_is_no_text().to_owned()))?;
            // A removed key has version zero. (The client's own `event_type` panics on types it does not know.)
            let value = (found.version() > 0).then(|| found.value().to_vec());
            let key = key.to_owned();
            changes.push(Change { revision, key, value });
        }
        match changes.last() {
            Some(last) => self.position = last.revision,
            // Marks that the member sends by itself follow all changes. A requested mark may overtake changes (etcd
            // before 3.4.25 and 3.5.8, https://github.com/etcd-io/etcd/issues/15220), so it proves only that the member
            // is alive. So does the confirmation of a new watch.
            None if response.watch_id() != NO_WATCH && !response.created() && response.events().is_empty() => {
                let revision = response.header().map_or(0, |header| as_u64(header.revision()));
                self.position = self.position.max(revision);
            }
            None => {}
        }
        let revision = self.position;
        Ok(Batch { revision, changes })
    }

    async fn wait(&mut self) -> Result<Batch, WatchEnd> {
        let stall = self.etcd.0.settings.stall_timeout;
        loop {
            let due = match self.asked {
                None => self.heard + stall / 3,
                Some(asked) => asked + stall * 2 / 3,
            };
            tokio::select! {
                biased;
                response = self.stream.message() => {
                    (self.heard, self.asked) = (Instant::now(), None);
                    let response = response.map_err(|error| end_of(&error))?.ok_or(WatchEnd::Ended)?;
                    return self.take(&response);
                }
                () = sleep_until(due.into()) => {
                    if self.asked.is_some() {
                        return Err(WatchEnd::Stalled(self.heard.elapsed()));
                    }
                    self.asked = Some(Instant::now());
                    // An error needs no handling here: a closed stream reports itself.
                    let _ = self.stream.request_progress().await;
                }
            }
        }
    }
}

#[async_trait]
impl Source for Watching {
    async fn next(&mut self) -> Result<Batch, WatchEnd> {
        if self.ended {
            return Err(WatchEnd::Ended);
        }
        let next = self.wait().await;
        if let Err(end) = &next {
            leave(&self.etcd, self.index, end);
            self.ended = true;
        }
        next
    }
}

fn end_of(error: &etcd_client::Error) -> WatchEnd {
    if let etcd_client::Error::GRpcStatus(status) = error
        && status.code() == tonic::Code::OutOfRange
    {
        // Includes the decoder's error for an answer over the size limit.
        return WatchEnd::Unreadable(status.message().to_owned());
    }
    match Failure::of(error) {
        Failure::Refused(text) | Failure::NoSpace(text) => WatchEnd::Cancelled(text),
        Failure::NotTaken(text) | Failure::Lost(text) => WatchEnd::Unavailable(text),
        Failure::Compacted => WatchEnd::Compacted { oldest: 0 },
    }
}
