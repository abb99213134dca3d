//! The choice of a stack for one request: the value that all attempts at it share.

use std::sync::Arc;

use bytes::BytesMut;
use identity::Link;
use routing::{Decision, Table, Tried, breaker::Limit};

use crate::{answer::Answer, request::limits::InFlight, texts};

/// The choice of a stack for one request. The request holds one plan from beginning to end.
pub(crate) struct Choice {
    pub(crate) table: Option<Arc<Table>>,
    /// The stack that has the request.
    pub(crate) decision: Option<Decision>,
    /// The regions and stacks that were asked in this round.
    pub(crate) tried: Tried,
    /// Attempts after the first that came out of the budget of retries.
    pub(crate) retries: u32,
    /// Its slot in the region that has it.
    pub(crate) in_flight: Option<InFlight>,
    /// A region that got the request and has not answered yet.
    pub(crate) waiting: Option<Box<Waiting>>,
    /// The limit that kept it from a region that might have served it.
    pub(crate) overloaded: Option<Limit>,
    /// This edge lacks a resource, so it could not ask the region.
    pub(crate) is_edge_full: bool,
    /// The answer that tells how the last region failed.
    pub(crate) failed: Option<Answer>,
}

impl Choice {
    /// The choice before the first attempt.
    pub(crate) fn new(table: Option<Arc<Table>>, regions_max: usize) -> Self {
        Self {
            table,
            decision: None,
            tried: Tried::up_to(regions_max),
            retries: 0,
            in_flight: None,
            waiting: None,
            overloaded: None,
            is_edge_full: false,
            failed: None,
        }
    }

    /// The answer when no region is left to ask.
    pub(crate) fn nowhere(&self) -> Answer {
        if self.is_edge_full {
            return Answer::edge_full();
        }
        match (self.overloaded, &self.failed) {
            (Some(limit), _) => Answer::unavailable("overloaded", texts::regions_at_limit(limit.as_str()), 1),
            (None, Some(failed)) => failed.clone(),
            (None, None) => Answer::unavailable("no_region", texts::NO_REGION, 2),
        }
    }
}

/// A region that got a request and has not answered yet.
pub(crate) struct Waiting {
    pub(crate) decision: Decision,
    pub(crate) in_flight: InFlight,
    pub(crate) region: Link,
    /// The bytes of its answer so far.
    pub(crate) read: BytesMut,
    pub(crate) began: tokio::time::Instant,
}
