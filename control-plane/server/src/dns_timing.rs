//! The life of DNS answers, by the plan and the policy in force.

use std::time::Duration;

use api::v1;
use planning::Input;
use steering::{Pace, Ttl, lost_edge_bound};
use topology::{Moment, Tick};

/// The lives of answers for the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DnsTiming {
    pace: Pace,
    ttl: Ttl,
    /// The longest time from the death of an edge to the last answer that names it.
    pub(crate) lost_edge_bound: Duration,
}

impl DnsTiming {
    /// The lives at `now`. `None` before the first plan.
    pub(crate) fn of(input: &Input, now: Moment) -> Option<Self> {
        let plan = input.current.as_ref()?;
        let (pace, _) = Pace::of(plan, &input.topology, plan.created_at, now);
        let ttl = Ttl::of(input.policy.dns.ttl_s(), pace);
        Some(Self {
            pace,
            ttl,
            lost_edge_bound: lost_edge_bound(input.policy.edges.lost_after, Tick::LENGTH, ttl),
        })
    }
}

impl From<DnsTiming> for v1::DnsTiming {
    fn from(timing: DnsTiming) -> Self {
        Self {
            ttl_s: timing.ttl.high_s,
            pace: timing.pace.as_str().to_owned(),
            lost_edge_bound_ms: timing.lost_edge_bound.as_millis() as u64,
        }
    }
}
