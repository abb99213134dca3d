//! The share of one socket in the number of sockets that a stack serves at once.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::room::Meter;

/// A socket's share of `connections_max`.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
    /// Counts the bytes of the socket once a session has it.
    pub(crate) meter: Arc<Meter>,
    /// Cancelled when the sessions of the socket must leave after their current turn: the stack stops, or no longer trusts the root of
    /// the edge at the other end.
    pub(crate) leaving: CancellationToken,
    /// Ends the watch over the peer's certificate with the last request or session of the socket.
    _watch: Arc<DropGuard>,
}

impl Place {
    pub(crate) fn new(
        permit: OwnedSemaphorePermit,
        meter: Arc<Meter>,
        leaving: CancellationToken,
        watch: DropGuard,
    ) -> Self {
        Self {
            _permit: Arc::new(permit),
            meter,
            leaving,
            _watch: Arc::new(watch),
        }
    }
}
