//! Circuit breakers: they limit this edge's use of one region. Requests over a limit go to the next region.
//!
//! The limits and their names are Envoy's. They do not count live sessions, which last for hours: the plan and the
//! limits of the edge bound those.

use serde::{Deserialize, Serialize};

/// Most concurrent uses of one region, per kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections in use by HTTP/1.1 requests.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    /// Requests that were sent and are not fully answered.
    pub max_requests: u32,
    /// Retries and second copies among those requests.
    pub max_retries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Envoy's defaults, except for retries. Envoy allows 3; when a region loses a hundred connections at once,
            // that would make the retry budget of a fifth meaningless.
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 64,
        }
    }
}

/// The limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Limit {
    /// [`Limits::max_connections`].
    Connections,
    /// [`Limits::max_pending_requests`].
    #[strum(serialize = "pending-requests")]
    Pending,
    /// [`Limits::max_requests`].
    Requests,
    /// [`Limits::max_retries`].
    Retries,
}

impl Limit {
    /// The name of the limit in metrics and logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The limits that a request counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Whether it has a connection of its own, as in HTTP/1.1.
    pub has_connection: bool,
    /// Whether it is a retry or a second copy.
    pub is_extra: bool,
}

/// The concurrent uses of one region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Breaker {
    connections: u32,
    pending: u32,
    requests: u32,
    extras: u32,
}

impl Breaker {
    /// Counts a request that begins and waits for a connection. Fails with the limit that it would exceed. After every
    /// `Ok` the caller must call [`end`](Self::end) once; [`connected`](Self::connected) may come before.
    pub fn begin(&mut self, limits: &Limits, wanted: Demand) -> Result<(), Limit> {
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

    /// Counts that a waiting request got its connection.
    pub fn connected(&mut self) {
        debug_assert!(self.pending > 0, "only what waited can connect");
        self.pending = self.pending.saturating_sub(1);
    }

    /// Counts the end of a request. `waiting` means that it never got a connection.
    pub fn end(&mut self, had: Demand, waiting: bool) {
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
