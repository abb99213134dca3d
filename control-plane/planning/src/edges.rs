//! Edges that are lost: nothing was heard of them for a while, so DNS names them no more until they are heard again. Their
//! sessions are not touched, because an edge that only we do not hear may serve them well.
//!
//! When many edges look lost it is rather our own view that is broken: then none more is left out.

use std::collections::BTreeSet;

use topology::{EdgeId, IntentKind, Moment, Reason, ReasonCode};

use crate::{Input, plan::Planner};

/// Whether nothing was heard of an edge for so long that it counts as lost. An edge of which nothing is known is not lost.
fn is_silent(input: &Input, edge: &EdgeId, now: Moment) -> bool {
    let seen = input.edges.get(edge);
    seen.is_some_and(|seen| now.since(seen.heard_at) >= input.policy.edges.lost_after)
}

/// Whether an edge was heard of without a gap for long enough to be named again.
fn is_back(input: &Input, edge: &EdgeId, now: Moment) -> bool {
    let steady = |seen: &crate::EdgeSeen| seen.heard_at.since(seen.heard_since) >= input.policy.edges.returned_after;
    !is_silent(input, edge, now) && input.edges.get(edge).is_some_and(steady)
}

impl Planner<'_> {
    /// Which edges are lost, and which of those are back. [`Planner::set_edges`] makes the plan of it.
    pub(crate) fn find_lost_edges(&mut self) {
        let (input, now) = (self.input, self.now);
        let edges = &input.topology.edges;
        self.memory.lost_edges.retain(|edge, _| edges.contains_key(edge));
        let lost = &self.memory.lost_edges;
        let back: Vec<EdgeId> = lost.keys().filter(|edge| is_back(input, edge, now)).cloned().collect();
        let is_news = |edge: &&EdgeId| !lost.contains_key(*edge) && is_silent(input, edge, now);
        let silent: Vec<EdgeId> = edges.keys().filter(is_news).cloned().collect();
        // A freeze or an automation that is off does not keep an edge out of DNS: an edge that works again takes nothing from
        // anybody, and callers have one more way in.
        for edge in &back {
            self.memory.lost_edges.remove(edge);
        }
        if silent.is_empty() {
            return;
        }
        if let Some(stopped) = self.automation() {
            for edge in &silent {
                let text = format!("{}; DNS still names it: {}", self.silence(edge), stopped.text);
                self.say_of_edges(ReasonCode::EdgeLost, text);
            }
            return;
        }
        let drained = self.memory.running(|kind| matches!(kind, IntentKind::DrainEdge { .. }));
        let drained = drained.filter_map(|action| match &action.intent.kind {
            IntentKind::DrainEdge { edge } => Some(edge),
            _ => None,
        });
        let lost: BTreeSet<&EdgeId> = self.memory.lost_edges.keys().chain(&silent).collect();
        let out = lost.iter().copied().chain(drained).collect::<BTreeSet<_>>().len();
        let most = (input.policy.edges.lost_max * edges.len() as f64).floor();
        let why_not = if lost.len() as f64 > most {
            Some(format!(
                "{} of {} edges look lost, and at most {most} may be left out of DNS answers for that. Our own view may be \
                 broken: look at the network between the edges and this control plane",
                lost.len(),
                edges.len()
            ))
        } else if out >= edges.len() {
            Some("no other edge would be left in DNS answers".to_owned())
        } else {
            None
        };
        for edge in silent {
            match &why_not {
                Some(why_not) => {
                    let text = format!("{}; DNS still names it: {why_not}", self.silence(&edge));
                    self.say_of_edges(ReasonCode::EdgeFloor, text);
                }
                None => drop(self.memory.lost_edges.insert(edge, now)),
            }
        }
    }

    /// What is said of an edge that is lost.
    pub(crate) fn silence(&self, edge: &EdgeId) -> String {
        let heard = self
            .input
            .edges
            .get(edge)
            .map(|seen| self.now.since(seen.heard_at).as_secs());
        match heard {
            Some(seconds) => {
                format!("nothing was heard of {edge} for {seconds} s: it follows no plans and sends no reports")
            }
            None => format!("nothing was heard of {edge}: it follows no plans and sends no reports"),
        }
    }

    fn say_of_edges(&mut self, code: ReasonCode, text: String) {
        self.report.waiting.push(Reason {
            code,
            region: None,
            text,
            evidence: vec![],
            until: None,
        });
    }
}
