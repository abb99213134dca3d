//! The reach of edges from outside: every vantage tries the public addresses of a few edges in every tick. An edge that
//! serves well, follows plans and reports may still be out of reach for everyone else.
//!
//! One vantage alone takes no edge out, and a vantage whose own network is gone is no witness: a vantage is a witness
//! of a tick when it reached anything in it. Silence of the vantages is no evidence: the last known state stays, and
//! the time of the silence does not count. A late report counts, as it does for regions, while its tick is young.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use topology::{EdgeId, Moment, NodeId, Tick};

use crate::{EdgeProbe, Source, TickReport};

/// Fewest witnesses that together take an edge out.
pub const WITNESSES_MIN: usize = 2;
/// Limit of rounds in memory: those that wait for judgement, which takes seconds, and those that are young enough to be
/// judged again. A further round belongs to a wrong clock.
const ROUNDS_MAX: usize = 32;

/// The reach of one edge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// The time in which most witnesses did not reach it, in every tick with enough of them; none while they do.
    pub unreached: Option<Unreached>,
    /// Begin of the time in which most witnesses reached it, likewise.
    pub reached_since: Option<Moment>,
}

/// An edge that most witnesses do not reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unreached {
    /// Start of the first of these ticks.
    pub since: Moment,
    /// End of the newest of these ticks.
    pub until: Moment,
    /// Number of these ticks in which enough witnesses agreed; the others are unknown.
    #[serde(default)]
    pub ticks: u32,
    /// Number of witnesses that did not reach it in the newest tick.
    pub by: u32,
    /// Number of witnesses that tried in the newest tick.
    pub of: u32,
}

impl Unreached {
    /// The time for which witnesses agree on it.
    pub fn lasted(&self) -> Duration {
        match self.ticks {
            // An older control plane, which did not count, wrote it.
            0 => self.until.since(self.since),
            ticks => Tick::LENGTH * ticks,
        }
    }
}

/// The part of one report that is about edges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Testimony {
    vantage: NodeId,
    tick: Tick,
    /// Whether the vantage reached anything in that tick: if not, its own network may be gone.
    is_witness: bool,
    edges: Vec<EdgeProbe>,
}

impl Testimony {
    /// Takes that part out of the report.
    pub fn of(report: &mut TickReport) -> Self {
        let edges = std::mem::take(&mut report.edges);
        let mut probes = report.observations.iter().filter(|seen| seen.source == Source::Probe);
        Self {
            vantage: report.vantage.clone(),
            tick: report.tick,
            is_witness: edges.iter().any(|seen| seen.reached) || probes.any(|seen| seen.succeeded > 0),
            edges,
        }
    }
}

/// The testimonies of vantages about edges, tick by tick.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    rounds: BTreeMap<Tick, BTreeMap<NodeId, BTreeMap<EdgeId, bool>>>,
    /// The state after the settled rounds: no report on them counts any more.
    settled: BTreeMap<EdgeId, Reached>,
    settled_to: Option<Tick>,
    /// The state after all judged rounds.
    edges: BTreeMap<EdgeId, Reached>,
}

impl Reach {
    /// Adds a testimony. A report on a settled round is too late, and an edge is no witness for itself.
    pub fn take(&mut self, said: Testimony, is_edge: impl Fn(&EdgeId) -> bool) {
        let Testimony {
            vantage,
            tick,
            is_witness,
            edges,
        } = said;
        if !is_witness || edges.is_empty() || self.settled_to.is_some_and(|newest| tick <= newest) {
            return;
        }
        let others = edges.into_iter().filter(|seen| seen.edge.as_str() != vantage.as_str());
        let seen = others.filter(|seen| is_edge(&seen.edge));
        let seen = seen.map(|seen| (seen.edge, seen.reached)).collect();
        self.rounds.entry(tick).or_default().insert(vantage, seen);
        while self.rounds.len() > ROUNDS_MAX {
            self.rounds.pop_first();
        }
    }

    /// Judges every round up to this one. The rounds of the last `freshness_ticks` are judged again next time, with
    /// late reports.
    pub fn judge(&mut self, tick: Tick, freshness_ticks: u32) {
        let oldest_open = tick.back(u64::from(freshness_ticks.saturating_sub(1)));
        let open = self.rounds.split_off(&oldest_open);
        for (tick, said) in std::mem::replace(&mut self.rounds, open) {
            count(&mut self.settled, tick, &said);
        }
        if oldest_open.0 > 0 {
            self.settled_to = self.settled_to.max(Some(Tick(oldest_open.0 - 1)));
        }
        self.edges = self.settled.clone();
        for (tick, said) in self.rounds.range(..=tick) {
            count(&mut self.edges, *tick, said);
        }
    }

    /// The reach of an edge.
    pub fn of(&self, edge: &EdgeId) -> Reached {
        self.edges.get(edge).copied().unwrap_or_default()
    }

    /// Forgets edges that no longer exist.
    pub fn retain(&mut self, is_edge: impl Fn(&EdgeId) -> bool) {
        self.settled.retain(|edge, _| is_edge(edge));
        self.edges.retain(|edge, _| is_edge(edge));
    }

    /// Forgets everything, as after a clock went back: the rounds lie in the future then.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Adds one round to the reach of every edge.
fn count(known: &mut BTreeMap<EdgeId, Reached>, tick: Tick, said: &BTreeMap<NodeId, BTreeMap<EdgeId, bool>>) {
    let named: BTreeSet<&EdgeId> = said.values().flat_map(BTreeMap::keys).collect();
    for edge in named {
        let votes = || said.values().filter_map(|edges| edges.get(edge));
        let (of, by) = (votes().count(), votes().filter(|reached| !**reached).count());
        // One witness that reached the edge proves that it can be reached from somewhere; one that did not may itself
        // be cut off.
        if by == of && of < WITNESSES_MIN {
            continue;
        }
        let known = known.entry(edge.clone()).or_default();
        if by >= WITNESSES_MIN && 2 * by > of {
            let before = known.unreached;
            known.unreached = Some(Unreached {
                since: before.map_or(tick.start(), |before| before.since),
                until: tick.end(),
                ticks: before.map_or(0, |before| before.ticks).saturating_add(1),
                by: by as u32,
                of: of as u32,
            });
            known.reached_since = None;
        } else {
            known.unreached = None;
            known.reached_since.get_or_insert(tick.start());
        }
    }
}
