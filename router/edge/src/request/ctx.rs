//! One request, from its head to its answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use routing::{admit::ClientSlot, pace::Pace};

use crate::{
    accept::access::{Admitted, Refused},
    http1::Body,
    request::choice::Choice,
    request::limits::{Group, Serving},
    request::route::Route,
    request::upload::BodyClock,
    session::registry::Busy,
    stamp::Stamp,
};

/// One request: its head and its body. Its admission is a value of its own, and so are the choice of a stack for it and the state of
/// a request that pingora proxies.
pub struct Ctx {
    pub(crate) _busy: Busy,
    /// The headers that the edge writes on its answer, and its name in logs.
    pub(crate) stamp: Stamp,
    pub(crate) route: Route,
    pub(crate) is_grpc: bool,
    /// Its body, of HTTP/1.
    pub(crate) body: Body,
    pub(crate) body_bytes: u64,
    /// Its connection ends with it.
    pub(crate) is_last: bool,
    /// Its end was logged and counted.
    pub(crate) is_counted: bool,
    pub(crate) admission: RequestAdmission,
    pub(crate) choice: Choice,
    pub(crate) proxied: Proxied,
}

/// The leave of a request to be served, and the places that it holds until its end.
#[derive(Default)]
pub(crate) struct RequestAdmission {
    /// The device that the edge recognised, and the counts of its tenant.
    pub(crate) device: Option<Admitted>,
    /// The refusal of a request that is not let in, if the edge knows it before pingora gets the request.
    pub(crate) refused: Option<Refused>,
    /// Its slot among the requests of its client, once it was let in.
    pub(crate) slot: Option<ClientSlot>,
    /// Its slot among the long bodies of its client, while the edge passes the body on as it comes.
    pub(crate) upload: Option<ClientSlot>,
}

/// The state of a request that pingora proxies, from one attempt to the next.
pub(crate) struct Proxied {
    /// The operator's servers behind its path; none for a request to regions.
    pub(crate) group: Option<Arc<Group>>,
    /// The server of the group that has the request.
    pub(crate) serving: Option<Serving>,
    /// The servers of the group that were asked.
    pub(crate) servers_tried: Vec<usize>,
    /// The pause before the next attempt.
    pub(crate) pause: Option<Duration>,
    pub(crate) connecting_since: Instant,
    /// The pace at which the device sends its body.
    pub(crate) pace: Pace,
    /// The deadline of a body that pingora passes on as it comes.
    pub(crate) clock: Option<Arc<BodyClock>>,
}

impl Ctx {
    /// Counts a part of its body, for its tenant too.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.body_bytes += bytes as u64;
        if let Some(admitted) = &self.admission.device {
            admitted.usage.sent(bytes as u64, daemon::clock::now());
        }
    }
}

impl Proxied {
    /// The state before the first attempt.
    pub(crate) fn new(pace: Pace) -> Self {
        Self {
            group: None,
            serving: None,
            servers_tried: Vec::new(),
            pause: None,
            connecting_since: Instant::now(),
            pace,
            clock: None,
        }
    }
}
