//! The signs of life of every edge: it follows plans, and it sends reports; and the vantages reach it as devices do.
//! Every replica listens, so that the next leader knows.

use std::{collections::BTreeMap, time::Duration};

use topology::{EdgeId, Moment, Tick, Topology};
use verdict::{Reach, Reached};

use crate::{EdgeSeen, Memory};

/// The signs of life of edges since this replica began to listen.
#[derive(Debug, Clone)]
pub struct SignsOfLife {
    began: Moment,
    edges: BTreeMap<EdgeId, EdgeSeen>,
    /// Time since which each edge is in the topology; none before the first look.
    known: Option<BTreeMap<EdgeId, Moment>>,
    /// The reach of edges at their public addresses.
    pub reach: Reach,
}

impl SignsOfLife {
    /// No sign of life yet. An edge that never gives one is silent since `began`, or since the topology has it.
    pub fn since(began: Moment) -> Self {
        Self {
            began,
            edges: BTreeMap::new(),
            known: None,
            reach: Reach::default(),
        }
    }

    /// Notes a sign of life. After a gap of `lost_after` or more the time without a gap begins anew.
    pub fn hear(&mut self, edge: &EdgeId, lost_after: Duration, now: Moment) {
        let seen = self.edges.entry(edge.clone()).or_insert(EdgeSeen::heard(now, now));
        if now.since(seen.heard_at) >= lost_after {
            seen.heard_since = now;
        }
        // A clock that went back leaves moments in the future.
        seen.heard_since = seen.heard_since.min(now);
        seen.heard_at = now;
    }

    /// The signs of life of every edge of the topology.
    pub fn all(&mut self, topology: &Topology, now: Moment) -> BTreeMap<EdgeId, EdgeSeen> {
        self.edges.retain(|edge, _| topology.edges.contains_key(edge));
        // As above: else an edge that dies now would be silent only when the clock is back where it was.
        for seen in self.edges.values_mut() {
            seen.heard_at = seen.heard_at.min(now);
            seen.heard_since = seen.heard_since.min(now);
        }
        self.began = self.began.min(now);
        let since = if self.known.is_some() { now } else { self.began };
        let known = self.known.get_or_insert_default();
        known.retain(|edge, _| topology.edges.contains_key(edge));
        for edge in topology.edges.keys() {
            let known = known.entry(edge.clone()).or_insert(since);
            *known = (*known).min(now);
        }
        let never = |edge: &EdgeId| {
            let since = known.get(edge).copied().unwrap_or(now);
            EdgeSeen::heard(since, since)
        };
        self.reach.retain(|edge| topology.edges.contains_key(edge));
        let seen = |edge: &EdgeId| {
            let Reached {
                unreached,
                reached_since,
            } = self.reach.of(edge);
            EdgeSeen {
                unreached,
                reached_since,
                ..self.edges.get(edge).copied().unwrap_or_else(|| never(edge))
            }
        };
        topology.edges.keys().map(|edge| (edge.clone(), seen(edge))).collect()
    }
}

/// Keeps the signs of life that a decision needs: those of edges that are silent, out of reach, lost or new. The input
/// of every decision is recorded, and a thousand healthy edges would fill the audit log.
pub fn keep_what_matters(edges: &mut BTreeMap<EdgeId, EdgeSeen>, memory: &Memory, now: Moment) {
    edges.retain(|edge, seen| memory.leaves_out(edge) || matters(seen, now));
}

fn matters(seen: &EdgeSeen, now: Moment) -> bool {
    now.since(seen.heard_at) > Tick::LENGTH || seen.unreached.is_some()
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
        let mut heard = SignsOfLife::since(at(100));
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

    #[test]
    fn an_edge_that_came_later_is_silent_since_then() {
        let mut topology = three_primaries().topology;
        let at = |seconds: u64| Moment(seconds * 1_000);
        let mut heard = SignsOfLife::since(at(100));
        heard.all(&topology, at(110));
        let late = topology.edges[&EdgeId::new("edge-iad").unwrap()].clone();
        let id = EdgeId::new("edge-late").unwrap();
        topology
            .edges
            .insert(id.clone(), topology::Edge { id: id.clone(), ..late });
        assert_eq!(heard.all(&topology, at(640))[&id].heard_at, at(640));
        assert_eq!(heard.all(&topology, at(700))[&id].heard_at, at(640));
        assert_eq!(
            heard.all(&topology, at(700))[&EdgeId::new("edge-dub").unwrap()].heard_at,
            at(100)
        );
        assert_eq!(
            heard.all(&topology, at(600))[&id].heard_at,
            at(600),
            "the clock went back"
        );
    }

    /// It must leave DNS as soon as any other dead edge, and not when the clock is where it was.
    #[test]
    fn an_edge_that_dies_when_the_clock_goes_back_is_silent_from_then_on() {
        let topology = three_primaries().topology;
        let edge = EdgeId::new("edge-iad").unwrap();
        let at = |seconds: u64| Moment(seconds * 1_000);
        let mut heard = SignsOfLife::since(at(4_000));
        heard.hear(&edge, Duration::from_secs(30), at(4_100));
        assert_eq!(heard.all(&topology, at(500))[&edge].heard_at, at(500));
        assert_eq!(heard.all(&topology, at(560))[&edge].heard_at, at(500));
    }
}
