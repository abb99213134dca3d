//! The changes that a watch reports, and the reasons for its end.

use std::time::Duration;

use async_trait::async_trait;

/// A key that was written or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Revision of the commit.
    pub revision: u64,
    pub key: String,
    /// The new value; `None` if the key was removed.
    pub value: Option<Vec<u8>>,
}

/// Changes of one or more whole commits, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Every change up to this revision was reported.
    pub revision: u64,
    /// The changes; empty in a progress mark, which shows that the watch is alive and how far it has read.
    pub changes: Vec<Change>,
}

/// The reasons for which a watch ended or did not begin. List again and watch from there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// The store no longer has the changes that were asked for.
    #[error("changes before revision {oldest} are no longer kept")]
    Compacted {
        /// The first revision that the store still has.
        oldest: u64,
    },
    /// The store ended the watch, for example because the member lost its leader.
    #[error("the store cancelled the watch: {0}")]
    Cancelled(String),
    /// The store closed the stream.
    #[error("the store closed the watch")]
    Ended,
    /// The member sends no progress marks either.
    #[error("no progress mark for {:.1} s", .0.as_secs_f64())]
    Stalled(Duration),
    /// The store cannot be reached.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// A response cannot be decoded.
    #[error("a response of the watch cannot be decoded: {0}")]
    Unreadable(String),
}

/// The source of a store's [`Changes`].
#[async_trait]
pub(super) trait Source: Send {
    /// The next batch. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Batch, WatchEnd>;
}

/// A running watch. Dropping it ends it.
pub struct Changes(Box<dyn Source>);

impl Changes {
    pub(super) fn new(source: impl Source + 'static) -> Self {
        Self(Box::new(source))
    }

    /// The next batch. After an error there are no more. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Batch, WatchEnd> {
        self.0.next().await
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Changes")
    }
}
