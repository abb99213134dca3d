//! A term as leader, and the reasons for which it ends.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::messages::Request;
use crate::store::{Leadership, StoreError};

/// The reasons for which a term as leader ends.
pub(super) enum Ended {
    /// The process stops.
    Stopped,
    /// The leadership was lost.
    Lost,
    /// This version cannot read the store's documents; another replica may be able to.
    Unreadable,
}

/// A term as leader, with the inputs it shares with following.
pub(super) struct Term<'t> {
    pub(super) lead: &'t Leadership,
    pub(super) inbox: &'t mut mpsc::Receiver<Request>,
    pub(super) stop: &'t CancellationToken,
}

/// Whether the error shows that another replica leads.
pub(super) fn is_fenced_off(lead: &Leadership, error: &StoreError) -> bool {
    let (fence, _) = lead.fence();
    matches!(error, StoreError::Conflict { key, .. } if *key == fence)
}
