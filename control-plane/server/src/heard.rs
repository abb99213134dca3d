//! When each edge was last heard of: while it follows plans, and with each of its reports, whatever they say. Every replica
//! listens, so that whoever leads next knows.

use std::{collections::BTreeMap, time::Duration};

use planning::EdgeSeen;
use topology::{EdgeId, Moment, Tick, Topology};

/// What was heard of edges since we began to listen.
#[derive(Debug)]
pub(crate) struct Heard {
    began: Moment,
    edges: BTreeMap<EdgeId, EdgeSeen>,
}

impl Heard {
    /// Nothing yet. An edge that is never heard of is silent since `began`.
    pub(crate) fn since(began: Moment) -> Self {
        Self {
            began,
            edges: BTreeMap::new(),
        }
    }

    /// An edge gives a sign of life. After a gap as long as `lost_after` it begins anew.
    pub(crate) fn hear(&mut self, edge: &EdgeId, lost_after: Duration, now: Moment) {
        let seen = self.edges.entry(edge.clone()).or_insert(EdgeSeen {
            heard_at: now,
            heard_since: now,
        });
        if now.since(seen.heard_at) >= lost_after {
            seen.heard_since = now;
        }
        // A clock that went back leaves moments in the future.
        seen.heard_since = seen.heard_since.min(now);
        seen.heard_at = now;
    }

    /// What is known of every edge there is.
    pub(crate) fn all(&mut self, topology: &Topology, now: Moment) -> BTreeMap<EdgeId, EdgeSeen> {
        self.edges.retain(|edge, _| topology.edges.contains_key(edge));
        self.began = self.began.min(now);
        let never = EdgeSeen {
            heard_at: self.began,
            heard_since: self.began,
        };
        let seen = |edge: &EdgeId| self.edges.get(edge).copied().unwrap_or(never);
        topology.edges.keys().map(|edge| (edge.clone(), seen(edge))).collect()
    }
}

/// Whether a decision needs to know it: the input of every decision is recorded, and a thousand edges that are well would fill
/// the audit log.
pub(crate) fn matters(seen: &EdgeSeen, now: Moment) -> bool {
    now.since(seen.heard_at) > Tick::LENGTH
}

#[cfg(test)]
mod tests {
    use topology::fixtures::three_primaries;

    use super::*;

    #[test]
    fn a_gap_begins_anew_and_a_clock_that_went_back_keeps_nobody_silent() {
        let topology = three_primaries().topology;
        let edge = EdgeId::new("edge-iad").unwrap();
        let (gap, at) = (Duration::from_secs(30), |seconds: u64| Moment(seconds * 1_000));
        let mut heard = Heard::since(at(100));
        let silent = heard.all(&topology, at(200))[&edge];
        assert_eq!((silent.heard_at, silent.heard_since), (at(100), at(100)));
        heard.hear(&edge, gap, at(200));
        heard.hear(&edge, gap, at(229));
        assert_eq!(heard.all(&topology, at(229))[&edge].heard_since, at(200));
        heard.hear(&edge, gap, at(259));
        assert_eq!(heard.all(&topology, at(259))[&edge].heard_since, at(259));
        heard.hear(&edge, gap, at(50));
        let seen = heard.all(&topology, at(50))[&edge];
        assert_eq!((seen.heard_at, seen.heard_since), (at(50), at(50)));
        assert!(!matters(&seen, at(60)) && matters(&seen, at(61)));
    }
}
