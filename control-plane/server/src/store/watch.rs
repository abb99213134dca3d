//! What a watch tells, and why it ends.

use std::time::Duration;

use async_trait::async_trait;

/// One key was written or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Revision of the commit.
    pub revision: u64,
    /// Which key.
    pub key: String,
    /// Its new value; `None` when it was removed.
    pub value: Option<Vec<u8>>,
}

/// Changes of one or more whole commits, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Every change up to this revision has been told.
    pub revision: u64,
    /// The changes; none in a progress mark, which says that the watch is alive and how far it is.
    pub changes: Vec<Change>,
}

/// Why a watch ended, or did not begin. List again and watch from there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// The changes asked for are no longer kept.
    #[error("changes before revision {oldest} are no longer kept")]
    Compacted {
        /// First revision that is still kept.
        oldest: u64,
    },
    /// The store ended the watch, for example because the member has lost its leader.
    #[error("the store cancelled the watch: {0}")]
    Cancelled(String),
    /// The store closed the stream.
    #[error("the store closed the watch")]
    Ended,
    /// The member does not even answer that nothing happened.
    #[error("the watch told nothing for {:.1} s", .0.as_secs_f64())]
    Stalled(Duration),
    /// The store cannot be reached.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// What came cannot be read.
    #[error("the watch told something unreadable: {0}")]
    Unreadable(String),
}

/// What a store puts behind [`Changes`].
#[async_trait]
pub(super) trait Source: Send {
    /// The next batch. Nothing is lost when the future is dropped.
    async fn next(&mut self) -> Result<Batch, WatchEnd>;
}

/// A running watch. It ends when it is dropped.
pub struct Changes(Box<dyn Source>);

impl Changes {
    pub(super) fn new(source: impl Source + 'static) -> Self {
        Self(Box::new(source))
    }

    /// The next batch; after an error there are no more. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Batch, WatchEnd> {
        self.0.next().await
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Changes")
    }
}
