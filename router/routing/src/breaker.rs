//! Circuit breakers: how much of one region this edge may use at once. What is beyond goes to the next region.
//!
//! The limits are Envoy's and have its names. Live sessions are none of them: they last for hours, and the plan and the
//! edge's own limits bound them.

use serde::{Deserialize, Serialize};

/// How much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections in use by HTTP/1.1 requests.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    /// Requests that were sent and are not answered in full.
    pub max_requests: u32,
    /// Requests among them that are retries or second copies.
    pub max_retries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Envoy's, except for retries: it allows 3, which a region that loses a hundred connections at once makes
            // meaningless beside a budget of a fifth.
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 64,
        }
    }
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// [`Limits::max_connections`].
    Connections,
    /// [`Limits::max_pending_requests`].
    Pending,
    /// [`Limits::max_requests`].
    Requests,
    /// [`Limits::max_retries`].
    Retries,
}

impl Limit {
    /// The limit's name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending-requests",
            Self::Requests => "requests",
            Self::Retries => "retries",
        }
    }
}

/// A request, as a breaker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// It has a connection of its own: HTTP/1.1.
    pub has_connection: bool,
    /// It is a retry or a second copy.
    pub is_extra: bool,
}

/// One region's breaker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Breaker {
    connections: u32,
    pending: u32,
    requests: u32,
    extras: u32,
}

impl Breaker {
    /// A request begins and waits for a connection; or the limit that forbids it. Each that began must
    /// [`end`](Self::end), and may have [`connected`](Self::connected) before.
    pub fn begin(&mut self, limits: &Limits, wanted: Use) -> Result<(), Limit> {
        let full = |used: u32, max: u32, limit| if used < max { Ok(()) } else { Err(limit) };
        full(self.requests, limits.max_requests, Limit::Requests)?;
        full(self.pending, limits.max_pending_requests, Limit::Pending)?;
        if wanted.has_connection {
            full(self.connections, limits.max_connections, Limit::Connections)?;
        }
        if wanted.is_extra {
            full(self.extras, limits.max_retries, Limit::Retries)?;
        }
        self.requests += 1;
        self.pending += 1;
        self.connections += u32::from(wanted.has_connection);
        self.extras += u32::from(wanted.is_extra);
        Ok(())
    }

    /// A request that waited has its connection.
    pub fn connected(&mut self) {
        debug_assert!(self.pending > 0, "only what waited can connect");
        self.pending = self.pending.saturating_sub(1);
    }

    /// A request is over. `waiting`: it never had a connection.
    pub fn end(&mut self, had: Use, waiting: bool) {
        debug_assert!(self.requests > 0, "only what began can end");
        self.requests = self.requests.saturating_sub(1);
        self.pending = self.pending.saturating_sub(u32::from(waiting));
        self.connections = self.connections.saturating_sub(u32::from(had.has_connection));
        self.extras = self.extras.saturating_sub(u32::from(had.is_extra));
    }

    /// Whether nothing is in use.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}
