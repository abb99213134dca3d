//! The device of a live session, as far as moves and logs need it.

use std::sync::Arc;

use auth::{Device, SessionPlace};
use routing::Decision;
use topology::Moment;

use crate::{Edge, request_id::RequestId};

/// The device of a live session.
pub(super) struct Caller {
    /// The id of its request, which is that of the session in all logs.
    pub(super) id: RequestId,
    pub(super) session_key: Box<str>,
    pub(super) user: Box<str>,
    /// The holder to whom its affinity tokens are issued.
    pub(super) holder: Box<str>,
    /// The device that the edge recognised.
    pub(super) device: Option<Arc<Device>>,
    /// Its place among the sessions of its tenant.
    pub(super) place: Option<SessionPlace>,
    /// The name of the session, by which its device comes back.
    pub(super) session: Box<str>,
    /// Issue time of the last session id that the edge gave to its device.
    pub(super) issued_at: Moment,
    /// Whether the device asked for events beyond the protocol. Other devices take such events for an error.
    pub(super) takes_events: bool,
}

impl Caller {
    /// The id of its session at a stack.
    pub(super) fn session_id(&self, edge: &Edge, decision: &Decision, issued_at: Moment) -> String {
        // Empty where this edge recognises no devices.
        let owner = self.device.as_ref().map_or("", |_| &self.holder);
        let key = &edge.config.affinity_key.0;
        key.issue_session(&self.session, owner, &decision.region, decision.stack, issued_at)
    }

    /// The session's key for the log: devices choose it, so it is bounded.
    pub(super) fn logged_key(&self) -> &str {
        let key = &*self.session_key;
        key.get(..key.len().min(64)).unwrap_or("(not ASCII)")
    }
}
