//! Windows: what every vantage saw in the newest closed ticks, per region and component, and what the triggers made of
//! all ticks before.
//!
//! Reports are accepted for a few ticks only. A tick on which nobody may report any more is settled: each trigger takes
//! note of it, and what the vantages saw in it is forgotten. Memory is thus bounded by the ticks that are still open, not
//! by the longest window, and a run of ticks may be of any length.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
};

use topology::{Component, NodeId, RegionId, Tick, policy::HealthPolicy};

use crate::{
    Latency, Observation, TickReport, TrafficSeen, Trigger,
    run::{Called, Run},
    spread::{Recent, Spread},
    trigger::Accusation,
};

/// Most vantages remembered per tick; more than any fleet has, so that made-up names cannot fill the memory.
pub const VANTAGES_MAX: usize = 4_096;
/// Most stacks of a region that are told apart; more than a region has, so that made-up addresses cannot fill the memory.
const STACKS_MAX: usize = 256;

/// Everything that was seen, as far as it still matters.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    /// The ticks that are not settled.
    ticks: BTreeMap<Tick, SeenByAll>,
    /// What the triggers made of the settled ticks.
    settled: BTreeMap<RegionId, [Believed; Trigger::ALL.len()]>,
    /// The newest tick that is settled: no report may come to it, also when the clock goes back.
    settled_to: Option<Tick>,
}

/// One tick, by everybody's word.
#[derive(Debug, Clone, Default)]
struct SeenByAll {
    vantages: BTreeSet<NodeId>,
    /// As they came. Hundreds of thousands of observations come in each tick of a large fleet, so they are not moved any
    /// more: the cells say where they are.
    reports: Vec<TickReport>,
    regions: BTreeMap<RegionId, RegionSeen>,
    /// Real traffic, by everybody's word, and of how many.
    traffic: BTreeMap<RegionId, (TrafficSeen, usize)>,
}

/// One region in one tick.
#[derive(Debug, Clone, Default)]
struct RegionSeen {
    /// By component: of the gateway, all stacks and traffic together.
    components: [Cell; Component::ALL.len()],
    /// The gateway, stack by stack, where the vantage tells of which it speaks.
    stacks: BTreeMap<SocketAddr, Cell>,
    /// The gateway where it does not: real traffic above all.
    elsewhere: Cell,
}

/// One component of one region in one tick.
#[derive(Debug, Clone, Default)]
struct Cell {
    succeeded: u64,
    failed: u64,
    latency: Latency,
    /// Who saw something of it: the number of the report, and that of the observation in it.
    seen_in: Vec<(u32, u32)>,
}

/// What was seen of one component of one region in one tick, probes and traffic together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TickSeen<'w> {
    cell: &'w Cell,
    region: &'w RegionSeen,
    reports: &'w [TickReport],
}

/// Attempts and how long they took: of one vantage, or of all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts<'w> {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// None where nobody asks for it.
    pub(crate) latency: Option<&'w Latency>,
}

/// What a trigger makes of all ticks up to one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Believed {
    pub(crate) run: Run,
    recent: Recent,
    /// What the ticks of the window make together, though they are not bad in a row.
    pub(crate) spread: Spread,
    /// Of the newest bad tick, or of the window.
    pub(crate) accusation: Option<Accusation>,
}

/// Why a report does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwanted {
    /// The tick is far from over by our clock.
    #[error("tick {at} of {1} has not come yet: its clock and ours are too far apart", at = .0.start())]
    TooEarly(Tick, NodeId),
    /// Too old to decide on.
    #[error("tick {at} of {1} is too old to decide on", at = .0.start())]
    Stale(Tick, NodeId),
    /// The vantage has reported on this tick. Its first word counts: what was decided on is not rewritten.
    #[error("{1} has already reported on tick {at}", at = .0.start())]
    Repeated(Tick, NodeId),
    /// Whoever reports is no vantage: a name that is wrong, or a node that is not in the topology any more.
    #[error("{0} is no edge of the topology")]
    Stranger(NodeId),
    /// More vantages than can be real.
    #[error("more than {VANTAGES_MAX} vantages report")]
    TooManyVantages,
}

impl Windows {
    /// Takes a report. `last_closed` is the newest tick that is over; how far ahead of it a report may be is for
    /// [`crate::Rounds`] to say.
    pub fn take(&mut self, report: TickReport, last_closed: Tick, policy: &HealthPolicy) -> Result<(), Unwanted> {
        let tick = report.tick;
        if tick < oldest_open(policy, last_closed) || self.settled_to.is_some_and(|newest| tick <= newest) {
            return Err(Unwanted::Stale(tick, report.vantage));
        }
        self.ticks.entry(tick).or_default().take(report)
    }

    /// Settles the ticks on which nobody may report any more, and forgets regions that no longer exist.
    pub fn forget(&mut self, policy: &HealthPolicy, last_closed: Tick, exists: impl Fn(&RegionId) -> bool) {
        let open = self.ticks.split_off(&oldest_open(policy, last_closed));
        for (tick, seen) in std::mem::replace(&mut self.ticks, open) {
            self.settled_to = self.settled_to.max(Some(tick));
            for region in seen.regions.keys() {
                let settled = self.settled.entry(region.clone()).or_default();
                for (believed, trigger) in settled.iter_mut().zip(Trigger::ALL) {
                    let seen = seen.of(region, trigger.component());
                    believed.go_on(trigger, policy, seen.map(|seen| (tick, seen)));
                }
            }
        }
        self.settled.retain(|region, _| exists(region));
        for seen in self.ticks.values_mut() {
            seen.regions.retain(|region, _| exists(region));
            seen.traffic.retain(|region, _| exists(region));
        }
    }

    /// What a trigger makes of the ticks up to `last_closed`. `fallen`: whether it had fallen before.
    pub(crate) fn believed(
        &self,
        region: &RegionId,
        trigger: Trigger,
        policy: &HealthPolicy,
        last_closed: Tick,
        fallen: bool,
    ) -> Believed {
        let settled = self.settled.get(region).map(|it| &it[trigger as usize]);
        let mut believed = settled.cloned().unwrap_or_default();
        believed.run.fallen |= fallen;
        believed.go_on(trigger, policy, self.ticks(region, trigger.component(), last_closed));
        believed
    }

    /// What was seen in the ticks up to `last_closed` that are not settled, oldest first.
    pub(crate) fn ticks(
        &self,
        region: &RegionId,
        component: Component,
        last_closed: Tick,
    ) -> impl DoubleEndedIterator<Item = (Tick, TickSeen<'_>)> {
        self.ticks
            .range(..=last_closed)
            .filter_map(move |(tick, all)| Some((*tick, all.of(region, component)?)))
    }

    /// The newest real traffic of a region in the ticks that are not settled, and of how many vantages.
    pub(crate) fn traffic(&self, region: &RegionId, last_closed: Tick) -> Option<(Tick, &TrafficSeen, usize)> {
        let mut ticks = self.ticks.range(..=last_closed).rev();
        ticks.find_map(|(tick, all)| {
            let (seen, vantages) = all.traffic.get(region)?;
            Some((*tick, seen, *vantages))
        })
    }

    /// The vantages that reported on a tick.
    pub fn vantages(&self, tick: Tick) -> impl ExactSizeIterator<Item = &NodeId> {
        static NOBODY: BTreeSet<NodeId> = BTreeSet::new();
        self.ticks.get(&tick).map_or(&NOBODY, |seen| &seen.vantages).iter()
    }

    /// How many vantages reported on any tick that is not settled.
    pub(crate) fn lively(&self) -> usize {
        let vantages: BTreeSet<&NodeId> = self.ticks.values().flat_map(|seen| &seen.vantages).collect();
        vantages.len()
    }

    /// Whether a tick was settled: enough ticks were watched to know who reports.
    pub(crate) fn has_settled(&self) -> bool {
        self.settled_to.is_some()
    }
}

/// The oldest tick on which vantages may still report.
fn oldest_open(policy: &HealthPolicy, last_closed: Tick) -> Tick {
    last_closed.back(u64::from(policy.freshness_ticks.saturating_sub(1)))
}

impl SeenByAll {
    fn take(&mut self, mut report: TickReport) -> Result<(), Unwanted> {
        if self.vantages.contains(&report.vantage) {
            return Err(Unwanted::Repeated(report.tick, report.vantage));
        }
        if self.vantages.len() >= VANTAGES_MAX {
            return Err(Unwanted::TooManyVantages);
        }
        self.vantages.insert(report.vantage.clone());
        let number = self.reports.len();
        let observations = &mut report.observations;
        observations.iter_mut().for_each(Observation::cap);
        let (mut at, told) = (0, observations.len());
        // Reports mostly come in the order of regions: each is looked up once then.
        while let Some(region) = observations[..told].get(at).map(|it| it.region.clone()) {
            let seen_there = self.regions.entry(region.clone()).or_default();
            let mut gateway: Option<Observation> = None;
            while let Some(seen) = observations[..told].get(at).filter(|it| it.region == region) {
                let stack = seen.stack;
                if seen.component != Component::Gateway {
                    seen_there.components[seen.component as usize].add(number, observations, at);
                } else {
                    match &mut gateway {
                        Some(all) => all.merge(seen),
                        None => gateway = Some(seen.clone()),
                    }
                    let has_room = seen_there.stacks.len() < STACKS_MAX;
                    let known = stack.filter(|stack| has_room || seen_there.stacks.contains_key(stack));
                    let cell = match known {
                        Some(stack) => seen_there.stacks.entry(stack).or_default(),
                        None => &mut seen_there.elsewhere,
                    };
                    cell.add(number, observations, at);
                }
                at += 1;
            }
            // All stacks together are an observation of their own.
            if let Some(all) = gateway {
                observations.push(all);
                let at = observations.len() - 1;
                seen_there.components[Component::Gateway as usize].add(number, observations, at);
            }
        }
        for seen in std::mem::take(&mut report.traffic) {
            match self.traffic.entry(seen.region.clone()) {
                Entry::Vacant(place) => drop(place.insert((seen, 1))),
                Entry::Occupied(mut known) => {
                    let (all, vantages) = known.get_mut();
                    all.merge(&seen);
                    *vantages += 1;
                }
            }
        }
        self.reports.push(report);
        Ok(())
    }

    fn of(&self, region: &RegionId, component: Component) -> Option<TickSeen<'_>> {
        let region = self.regions.get(region)?;
        let cell = &region.components[component as usize];
        let reports = &self.reports;
        (!cell.seen_in.is_empty()).then_some(TickSeen { cell, region, reports })
    }
}

impl Cell {
    fn add(&mut self, report: usize, observations: &mut [Observation], at: usize) {
        let (before, rest) = observations.split_at_mut(at);
        let Some(seen) = rest.first() else { return };
        if seen.samples() == 0 && seen.latency.is_empty() {
            return;
        }
        self.succeeded += u64::from(seen.succeeded);
        self.failed += u64::from(seen.failed);
        self.latency.merge(&seen.latency);
        match self.seen_in.last() {
            // Probes and traffic of one vantage are one.
            Some((last, first)) if *last as usize == report => before[*first as usize].merge(seen),
            _ => self.seen_in.push((report as u32, at as u32)),
        }
    }
}

impl<'w> TickSeen<'w> {
    /// By all vantages together.
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

    /// Each stack of the gateway that somebody told of.
    pub(crate) fn stacks(self) -> impl ExactSizeIterator<Item = (SocketAddr, TickSeen<'w>)> {
        let stacks = self.region.stacks.iter();
        stacks.map(move |(stack, cell)| (*stack, TickSeen { cell, ..self }))
    }

    /// Of a gateway with several stacks, what those make that a region cannot do without, the best of them, and its traffic:
    /// by vantage. None where there are no several, and all counts. So one dead stack of two is passed over, as edges do, and
    /// two are not.
    pub(crate) fn needed(self, capacity_min: f64) -> Option<Vec<(&'w NodeId, Counts<'w>)>> {
        let mut stacks: Vec<TickSeen<'w>> = self.stacks().map(|(_, seen)| seen).collect();
        if stacks.len() < 2 {
            return None;
        }
        let share = |seen: &TickSeen<'_>| seen.total().succeeded as f64 / seen.total().samples().max(1) as f64;
        stacks.sort_by(|a, b| share(b).total_cmp(&share(a)));
        // A hair less, so that half of two is one whatever the arithmetic makes of it.
        let needed = (stacks.len() as f64 * capacity_min - 1e-9).ceil().max(1.0) as usize;
        stacks.truncate(needed);
        let elsewhere = TickSeen {
            cell: &self.region.elsewhere,
            ..self
        };
        let mut by_vantage: BTreeMap<&NodeId, (u64, u64)> = BTreeMap::new();
        for (vantage, saw) in stacks.into_iter().chain([elsewhere]).flat_map(TickSeen::vantages) {
            let (succeeded, failed) = by_vantage.entry(vantage).or_default();
            *succeeded += u64::from(saw.succeeded);
            *failed += u64::from(saw.failed);
        }
        let counts = |(succeeded, failed)| Counts {
            succeeded,
            failed,
            latency: None,
        };
        Some(
            by_vantage
                .into_iter()
                .map(|(vantage, it)| (vantage, counts(it)))
                .collect(),
        )
    }

    /// By each of them, in the order in which they reported.
    pub(crate) fn vantages(self) -> impl ExactSizeIterator<Item = (&'w NodeId, &'w Observation)> {
        self.cell.seen_in.iter().map(move |(report, observation)| {
            let report = &self.reports[*report as usize];
            (&report.vantage, &report.observations[*observation as usize])
        })
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

impl Believed {
    /// Takes note of further ticks.
    fn go_on<'s>(
        &mut self,
        trigger: Trigger,
        policy: &HealthPolicy,
        ticks: impl IntoIterator<Item = (Tick, TickSeen<'s>)>,
    ) {
        let (mut accused, patience, window) = (None, trigger.patience(policy), trigger.window(policy));
        for (tick, seen) in ticks {
            let called = trigger.call(seen, policy);
            if called == Called::Unknown {
                continue;
            }
            if let Some(newest) = self.run.newest_known
                && tick.0.saturating_sub(newest.0) > u64::from(patience.blind)
            {
                self.recent.clear();
            }
            self.recent
                .add(trigger.remember(tick, called, seen, policy), window.ticks);
            self.spread = self.recent.judge(window);
            self.run.go_on(tick, called, patience, self.spread);
            if self.run.bad >= patience.fall {
                // It fell by ticks in a row; what comes of those is judged by what follows them.
                self.recent.clear();
                self.spread = Spread::Clear;
            }
            accused = called.is_bad().then_some(seen).or(accused);
        }
        if let Some(seen) = accused {
            self.accusation = Some(trigger.accuse(seen, policy));
        }
        // Where no tick is bad by itself, all of them accuse together.
        if self.spread == Spread::Bad && !self.recent.is_agreed(window) {
            let (what, vantages) = (trigger.errors(policy), self.recent.accusers(window));
            self.accusation = Some(Accusation { what, vantages });
        }
    }

    /// How many ticks of the window were bad, of how many, and how much of what was tried in them failed; in words.
    pub(crate) fn describe_spread(&self) -> String {
        self.recent.describe()
    }
}
