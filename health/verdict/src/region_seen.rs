//! The samples of one region in one tick: by component, by stack and by vantage.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{Component, NodeId};

use crate::{Latency, Observation, TickReport};

/// Most stacks of a region in memory; more than a region has, so that made-up addresses cannot fill the memory.
const STACKS_MAX: usize = 256;

/// One region in one tick.
#[derive(Debug, Clone, Default)]
pub(crate) struct RegionSeen {
    /// By component: all stacks together, with observations that name no stack.
    components: [Cell; Component::ALL.len()],
    /// By component and stack, where the vantage names the stack.
    stacks: [BTreeMap<SocketAddr, Cell>; Component::ALL.len()],
    /// By component, where it does not: the observations of older vantages, or connections of real traffic.
    elsewhere: [Cell; Component::ALL.len()],
}

/// The observation of one vantage of one component, all pieces together, while its report is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whole {
    /// Index among the observations.
    at: usize,
    stack: Option<SocketAddr>,
    /// Whether all pieces name the same stack: then it is the observation of that stack as well.
    is_of_one: bool,
}

/// One component of one region in one tick.
#[derive(Debug, Clone, Default)]
struct Cell {
    succeeded: u64,
    failed: u64,
    latency: Latency,
    /// The vantages with samples: index of the report, and of the observation in it.
    seen_in: Vec<(u32, u32)>,
}

/// The samples of one component of one region in one tick, probes and traffic together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TickSeen<'w> {
    cell: &'w Cell,
    region: &'w RegionSeen,
    reports: &'w [TickReport],
    /// Number of stacks that the sessions of the region fill.
    filled: usize,
}

/// Attempts and latencies, of one vantage or of all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts<'w> {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// None where no trigger needs it.
    pub(crate) latency: Option<&'w Latency>,
}

/// The same of a vantage, for several stacks together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Summed {
    succeeded: u64,
    failed: u64,
    latency: Latency,
}

impl RegionSeen {
    /// Adds one observation of a report, to its stack and to the others of its component.
    pub(crate) fn take(
        &mut self,
        report: usize,
        observations: &mut Vec<Observation>,
        at: usize,
        whole: &mut Option<Whole>,
    ) {
        let seen = &observations[at];
        if seen.samples() == 0 && seen.latency.is_empty() {
            return;
        }
        let component = seen.component as usize;
        let stacks = &mut self.stacks[component];
        let has_room = stacks.len() < STACKS_MAX;
        let stack = seen.stack.filter(|stack| has_room || stacks.contains_key(stack));
        let piece = match stack {
            Some(stack) => stacks.entry(stack).or_default(),
            None => &mut self.elsewhere[component],
        };
        let all = &mut self.components[component];
        piece.count(seen);
        all.count(seen);
        // Probes and traffic of one vantage count together.
        match piece.seen_in.last().copied() {
            Some((last, first)) if last as usize == report => merge(observations, first as usize, at),
            _ => piece.seen_in.push((report as u32, at as u32)),
        }
        match whole {
            None => {
                let is_of_one = true;
                *whole = Some(Whole { at, stack, is_of_one });
                all.seen_in.push((report as u32, at as u32));
            }
            // It was merged above.
            Some(whole) if whole.is_of_one && whole.stack == stack => {}
            Some(whole) => {
                if whole.is_of_one {
                    observations.push(observations[whole.at].clone());
                    (whole.at, whole.is_of_one) = (observations.len() - 1, false);
                    if let Some((_, at)) = all.seen_in.last_mut() {
                        *at = whole.at as u32;
                    }
                }
                merge(observations, whole.at, at);
            }
        }
    }

    /// The samples of a component, if there are any. `reports` are all of the tick, and `filled` is the number of stacks
    /// that the sessions of the region fill.
    pub(crate) fn of<'w>(
        &'w self,
        component: Component,
        reports: &'w [TickReport],
        filled: usize,
    ) -> Option<TickSeen<'w>> {
        let cell = &self.components[component as usize];
        let seen = TickSeen {
            cell,
            region: self,
            reports,
            filled,
        };
        (!cell.seen_in.is_empty()).then_some(seen)
    }
}

fn merge(observations: &mut [Observation], into: usize, from: usize) {
    if let Ok([into, from]) = observations.get_disjoint_mut([into, from]) {
        into.merge(from);
    }
}

impl Cell {
    fn count(&mut self, seen: &Observation) {
        self.succeeded += u64::from(seen.succeeded);
        self.failed += u64::from(seen.failed);
        self.latency.merge(&seen.latency);
    }
}

impl<'w> TickSeen<'w> {
    /// The samples of all vantages together.
    pub(crate) fn total(self) -> Counts<'w> {
        let Cell {
            succeeded,
            failed,
            latency,
            ..
        } = self.cell;
        Counts {
            succeeded: *succeeded,
            failed: *failed,
            latency: Some(latency),
        }
    }

    /// Each stack with samples of a component.
    pub(crate) fn stacks_of(self, component: Component) -> impl ExactSizeIterator<Item = (SocketAddr, TickSeen<'w>)> {
        let stacks = self.region.stacks[component as usize].iter();
        stacks.map(move |(stack, cell)| (*stack, TickSeen { cell, ..self }))
    }

    /// The samples of a component that belong to one stack.
    pub(crate) fn of_stack(self, component: Component, stack: &SocketAddr) -> Option<Self> {
        let cell = self.region.stacks[component as usize].get(stack)?;
        Some(Self { cell, ..self })
    }

    /// The samples of a component that name no stack.
    pub(crate) fn elsewhere(self, component: Component) -> Self {
        let cell = &self.region.elsewhere[component as usize];
        Self { cell, ..self }
    }

    /// Each stack with samples of any component.
    pub(crate) fn all_stacks(self) -> BTreeSet<SocketAddr> {
        self.region.stacks.iter().flat_map(BTreeMap::keys).copied().collect()
    }

    /// Fewest stacks that the region needs, of all: a share of them, and those that its sessions fill.
    pub(crate) fn stacks_needed(self, all: usize, capacity_min: f64) -> usize {
        // A hair less, so that half of two is one in spite of rounding.
        let least = (all as f64 * capacity_min - 1e-9).ceil() as usize;
        least.max(self.filled).clamp(1, all.max(1))
    }

    /// The samples by vantage, in the order in which they reported.
    pub(crate) fn vantages(self) -> impl ExactSizeIterator<Item = (&'w NodeId, &'w Observation)> {
        self.cell.seen_in.iter().map(move |(report, observation)| {
            let report = &self.reports[*report as usize];
            (&report.vantage, &report.observations[*observation as usize])
        })
    }
}

impl Summed {
    pub(crate) fn add(&mut self, saw: &Observation) {
        self.succeeded += u64::from(saw.succeeded);
        self.failed += u64::from(saw.failed);
        self.latency.merge(&saw.latency);
    }

    /// The samples of several vantages.
    pub(crate) fn of_all<'s>(all: impl IntoIterator<Item = &'s Self>) -> Self {
        let mut total = Self::default();
        for it in all {
            total.succeeded += it.succeeded;
            total.failed += it.failed;
            total.latency.merge(&it.latency);
        }
        total
    }

    pub(crate) fn counts(&self) -> Counts<'_> {
        Counts {
            succeeded: self.succeeded,
            failed: self.failed,
            latency: Some(&self.latency),
        }
    }
}

impl Counts<'_> {
    pub(crate) fn samples(&self) -> u64 {
        self.succeeded + self.failed
    }
}

impl<'w> From<&'w Observation> for Counts<'w> {
    fn from(seen: &'w Observation) -> Self {
        Self {
            succeeded: u64::from(seen.succeeded),
            failed: u64::from(seen.failed),
            latency: Some(&seen.latency),
        }
    }
}
