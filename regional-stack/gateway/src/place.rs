//! The place of a socket among those that a stack serves at once.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::room::Meter;

/// A socket's share of `connections_max`.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
    /// Counts the bytes of the socket once a session has it.
    pub(crate) meter: Arc<Meter>,
}

impl Place {
    pub(crate) fn new(permit: OwnedSemaphorePermit, meter: Arc<Meter>) -> Self {
        Self {
            _permit: Arc::new(permit),
            meter,
        }
    }
}
