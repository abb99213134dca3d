//! One request, from its head to its answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use identity::Link;
use routing::{Decision, Table, Tried, admit::ClientSlot, breaker::Limit, pace::Pace};

use crate::{
    accept::access::{Admitted, Refused},
    answer::Answer,
    http1::Body,
    request::limits::{Group, InFlight, Serving},
    request::route::Route,
    request::upload::BodyClock,
    session::registry::Busy,
    stamp::Stamp,
};

/// One request. It holds one plan from beginning to end.
pub struct Ctx {
    pub(crate) _busy: Busy,
    /// The headers that the edge writes on its answer, and its name in logs.
    pub(crate) stamp: Stamp,
    pub(crate) table: Option<Arc<Table>>,
    pub(crate) route: Route,
    pub(crate) is_grpc: bool,
    /// Its body, of HTTP/1.
    pub(crate) body: Body,
    /// Its connection ends with it.
    pub(crate) is_last: bool,
    pub(crate) is_counted: bool,
    /// The device that the edge recognised, and the counts of its tenant.
    pub(crate) admitted: Option<Admitted>,
    /// Why it is not let in, if that is known before pingora gets the request.
    pub(crate) refused: Option<Refused>,
    /// Its place among those of its client, once it was let in.
    pub(crate) slot: Option<ClientSlot>,
    /// Its place among the long bodies of its client, while it is passed on as it comes.
    pub(crate) upload: Option<ClientSlot>,
    pub(crate) decision: Option<Decision>,
    /// The regions that were asked in this round.
    pub(crate) tried: Tried,
    /// Its place in the region it is at.
    pub(crate) in_flight: Option<InFlight>,
    /// The limit that kept it from a region that might have served it.
    pub(crate) overloaded: Option<Limit>,
    /// This edge is out of something itself.
    pub(crate) is_edge_full: bool,
    /// How the last region failed it.
    pub(crate) failed: Option<Answer>,
    /// A region that got it and says nothing yet.
    pub(crate) waiting: Option<Box<Waiting>>,
    /// Instead of regions: the group of servers behind its path, the one it is at, and those that failed it.
    pub(crate) group: Option<Arc<Group>>,
    pub(crate) serving: Option<Serving>,
    pub(crate) servers_tried: Vec<usize>,
    pub(crate) retries: u32,
    pub(crate) pause: Option<Duration>,
    pub(crate) connecting_since: Instant,
    pub(crate) body_bytes: u64,
    /// How the body keeps pace, on pingora's way.
    pub(crate) pace: Pace,
    /// The deadline of a body that pingora passes on as it comes.
    pub(crate) clock: Option<Arc<BodyClock>>,
}

impl Ctx {
    /// Counts a part of its body, for its tenant too.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.body_bytes += bytes as u64;
        if let Some(admitted) = &self.admitted {
            admitted.standing.sent(bytes as u64, daemon::clock::now());
        }
    }
}

/// A region that got a request and says nothing yet.
pub(crate) struct Waiting {
    pub(crate) decision: Decision,
    pub(crate) in_flight: InFlight,
    pub(crate) region: Link,
    /// The bytes of its answer so far.
    pub(crate) read: BytesMut,
    pub(crate) began: tokio::time::Instant,
}
