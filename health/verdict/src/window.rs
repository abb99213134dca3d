//! Windows: the observations of every vantage in the newest closed ticks, by region and component, and the state of the
//! triggers after all ticks before.
//!
//! Reports are accepted for a few ticks only. A tick on which no vantage may report any more is settled: each trigger
//! counts it, and its observations are forgotten. Memory is thus bounded by the ticks that are still open, not by the
//! longest window, and a run of ticks may have any length.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use topology::{Component, NodeId, Plan, RegionId, Tick, Topology, policy::HealthPolicy};

use crate::{
    Observation, TickReport, TrafficSeen, Trigger,
    region_seen::{RegionSeen, Summed, TickSeen},
    run::{Called, Run},
    spread::{Recent, Spread},
    standing::Standing,
    suspects::{Contradiction, Suspects, Word, alone, contradicted},
    texts,
    trigger::Accusation,
};

/// Most vantages in memory per tick; more than any fleet has, so that made-up names cannot fill the memory.
pub const VANTAGES_MAX: usize = 4_096;

/// The observations that still matter.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    /// The ticks that are not settled.
    ticks: BTreeMap<Tick, SeenByAll>,
    /// The state of the triggers after the settled ticks.
    settled: BTreeMap<RegionId, [TriggerState; Trigger::ALL.len()]>,
    /// The newest settled tick: no report on it counts, even when the clock goes back.
    settled_to: Option<Tick>,
    /// Sessions that one stack of each region has room for, where that is known.
    room_per_stack: BTreeMap<RegionId, f64>,
    /// The vantages that contradict all others.
    suspects: Suspects,
}

/// The observations of all vantages in one tick.
#[derive(Debug, Clone, Default)]
struct SeenByAll {
    vantages: BTreeSet<NodeId>,
    /// The reports in the order of arrival. Hundreds of thousands of observations come in each tick of a large fleet,
    /// so they stay in place: the cells hold their indices.
    reports: Vec<TickReport>,
    regions: BTreeMap<RegionId, RegionSeen>,
    /// Real traffic of all vantages together, and the number of vantages.
    traffic: BTreeMap<RegionId, (TrafficSeen, usize)>,
    /// Reports of suspect vantages that are not compared with the others yet.
    held: Vec<TickReport>,
    /// The claims that suspect vantages made alone; they do not count.
    left_out: Vec<(NodeId, Contradiction)>,
}

/// The state of a trigger after all ticks up to one.
#[derive(Debug, Clone, Default)]
pub(crate) struct TriggerState {
    pub(crate) run: Run,
    /// The results of the region's stacks before the newest tick, and their losses in it.
    pub(crate) standing: Standing,
    recent: Recent,
    /// The judgement of the window's ticks together, though they are not bad in a row.
    pub(crate) spread: Spread,
    /// The accusation of the newest bad tick, or of the window.
    pub(crate) accusation: Option<Accusation>,
}

/// The reason why a report does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwanted {
    /// The tick is far from over by our clock.
    #[error("{}", texts::too_early(.0.start(), .1))]
    TooEarly(Tick, NodeId),
    /// The tick is too old to decide on.
    #[error("{}", texts::too_old(.0.start(), .1))]
    Stale(Tick, NodeId),
    /// The vantage has reported on this tick. Its first report counts: a decision is not rewritten.
    #[error("{}", texts::repeated(.0.start(), .1))]
    Repeated(Tick, NodeId),
    /// The sender is no vantage: a wrong name, or a node that is no longer in the topology.
    #[error("{}", texts::stranger(.0))]
    Stranger(NodeId),
    /// More vantages than any fleet has.
    #[error("{}", texts::too_many_vantages(VANTAGES_MAX))]
    TooManyVantages,
}

impl Windows {
    /// Notes the room of the stacks of each region.
    pub fn know_rooms(&mut self, plan: &Plan, topology: &Topology) {
        let room = |region: &topology::Region| {
            let stacks = plan.stacks_at_full_strength(region).len().max(1);
            (region.id.clone(), f64::from(region.sessions_max) / stacks as f64)
        };
        self.room_per_stack = topology.regions.values().map(room).collect();
    }

    /// Takes a report. `last_closed` is the newest tick that is over; [`crate::Rounds`] limits the ticks that a report
    /// may be ahead of it.
    pub fn take(&mut self, report: TickReport, last_closed: Tick, policy: &HealthPolicy) -> Result<(), Unwanted> {
        let tick = report.tick;
        if tick < oldest_open(policy, last_closed) || self.settled_to.is_some_and(|newest| tick <= newest) {
            return Err(Unwanted::Stale(tick, report.vantage));
        }
        let is_suspect = self.suspects.is_suspect(&report.vantage);
        self.ticks.entry(tick).or_default().take(report, is_suspect)
    }

    /// The vantages that contradict all others.
    pub fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// Settles the ticks on which no vantage may report any more, and forgets regions that no longer exist. Reports of
    /// suspect vantages count from here on, as far as others agree.
    pub fn forget(&mut self, policy: &HealthPolicy, last_closed: Tick, exists: impl Fn(&RegionId) -> bool) {
        for (_, seen) in self.ticks.range_mut(..=last_closed) {
            seen.release(&self.room_per_stack);
        }
        let open = self.ticks.split_off(&oldest_open(policy, last_closed));
        for (tick, seen) in std::mem::replace(&mut self.ticks, open) {
            self.suspects.note(tick, seen.contradictions(&self.room_per_stack));
            self.settled_to = self.settled_to.max(Some(tick));
            for region in seen.regions.keys() {
                let settled = self.settled.entry(region.clone()).or_default();
                for (state, trigger) in settled.iter_mut().zip(Trigger::ALL) {
                    let seen = seen.of(region, trigger.component(), &self.room_per_stack);
                    state.add(trigger, policy, seen.map(|seen| (tick, seen)));
                }
            }
        }
        self.settled.retain(|region, _| exists(region));
        for seen in self.ticks.values_mut() {
            seen.regions.retain(|region, _| exists(region));
            seen.traffic.retain(|region, _| exists(region));
        }
    }

    /// The state of a trigger after the ticks up to `last_closed`. `fallen`: its state before.
    pub(crate) fn trigger_state(
        &self,
        region: &RegionId,
        trigger: Trigger,
        policy: &HealthPolicy,
        last_closed: Tick,
        fallen: bool,
    ) -> TriggerState {
        let settled = self.settled.get(region).map(|it| &it[trigger as usize]);
        let mut state = settled.cloned().unwrap_or_default();
        state.run.fallen |= fallen;
        state.add(trigger, policy, self.ticks(region, trigger.component(), last_closed));
        state
    }

    /// The samples of the ticks up to `last_closed` that are not settled, oldest first.
    pub(crate) fn ticks(
        &self,
        region: &RegionId,
        component: Component,
        last_closed: Tick,
    ) -> impl DoubleEndedIterator<Item = (Tick, TickSeen<'_>)> {
        self.ticks
            .range(..=last_closed)
            .filter_map(move |(tick, all)| Some((*tick, all.of(region, component, &self.room_per_stack)?)))
    }

    /// The newest real traffic of a region in the ticks that are not settled, with the number of vantages.
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

    /// Number of vantages that reported on any tick that is not settled.
    pub(crate) fn reporting(&self) -> usize {
        let vantages: BTreeSet<&NodeId> = self.ticks.values().flat_map(|seen| &seen.vantages).collect();
        vantages.len()
    }

    /// Whether a tick was settled: then enough ticks were watched to know the vantages.
    pub(crate) fn has_settled(&self) -> bool {
        self.settled_to.is_some()
    }
}

/// The oldest tick on which vantages may still report.
fn oldest_open(policy: &HealthPolicy, last_closed: Tick) -> Tick {
    last_closed.back(u64::from(policy.freshness_ticks.saturating_sub(1)))
}

impl SeenByAll {
    fn take(&mut self, report: TickReport, is_suspect: bool) -> Result<(), Unwanted> {
        if self.vantages.contains(&report.vantage) {
            return Err(Unwanted::Repeated(report.tick, report.vantage));
        }
        if self.vantages.len() >= VANTAGES_MAX {
            return Err(Unwanted::TooManyVantages);
        }
        self.vantages.insert(report.vantage.clone());
        if is_suspect {
            self.held.push(report);
        } else {
            self.add(report);
        }
        Ok(())
    }

    /// Adds the reports of suspect vantages without what they claim against all others.
    fn release(&mut self, rooms: &BTreeMap<RegionId, f64>) {
        if self.held.is_empty() {
            return;
        }
        // All are compared before any is added: one suspect does not vouch for another one.
        let mut held = std::mem::take(&mut self.held);
        held.sort_by(|one, other| one.vantage.cmp(&other.vantage));
        for report in &mut held {
            let mut sums: BTreeMap<(&RegionId, Component), Summed> = BTreeMap::new();
            for seen in &report.observations {
                sums.entry((&seen.region, seen.component)).or_default().add(seen);
            }
            let is_alone = |((region, component), sum): ((&RegionId, Component), Summed)| {
                let word = Word::of(sum.counts())?;
                let others = self.of(region, component, rooms)?.vantages();
                let others = contradicted(word, others.map(|(_, saw)| Word::of(saw.into())))?;
                let region = region.clone();
                Some(Contradiction {
                    region,
                    component,
                    word,
                    others,
                })
            };
            let left_out: Vec<Contradiction> = sums.into_iter().filter_map(is_alone).collect();
            let is_left = |seen: &Observation| {
                left_out
                    .iter()
                    .any(|it| it.region == seen.region && it.component == seen.component)
            };
            report.observations.retain(|seen| !is_left(seen));
            let vantage = &report.vantage;
            self.left_out
                .extend(left_out.into_iter().map(|it| (vantage.clone(), it)));
        }
        held.into_iter().for_each(|report| self.add(report));
    }

    /// Everything that one vantage said against all others, with what was left out for it.
    fn contradictions(&self, rooms: &BTreeMap<RegionId, f64>) -> Vec<(NodeId, Contradiction)> {
        let mut all = self.left_out.clone();
        for region in self.regions.keys() {
            for component in Component::ALL {
                let Some(seen) = self.of(region, component, rooms) else {
                    continue;
                };
                let total = seen.total();
                // The usual case, and a fleet has a thousand vantages.
                if total.failed == 0 || total.succeeded == 0 {
                    continue;
                }
                let words = seen.vantages().map(|(vantage, saw)| (vantage, Word::of(saw.into())));
                if let Some((vantage, word, others)) = alone(words) {
                    let region = region.clone();
                    all.push((
                        vantage.clone(),
                        Contradiction {
                            region,
                            component,
                            word,
                            others,
                        },
                    ));
                }
            }
        }
        all
    }

    fn add(&mut self, mut report: TickReport) {
        let number = self.reports.len();
        let observations = &mut report.observations;
        observations.iter_mut().for_each(Observation::cap);
        // Most reports are in this order already.
        observations.sort_by(|a, b| a.region.cmp(&b.region));
        let (mut at, told) = (0, observations.len());
        while let Some(region) = observations[..told].get(at).map(|it| it.region.clone()) {
            let seen_there = self.regions.entry(region.clone()).or_default();
            let mut wholes = [None; Component::ALL.len()];
            while observations[..told].get(at).is_some_and(|it| it.region == region) {
                let component = observations[at].component as usize;
                seen_there.take(number, observations, at, &mut wholes[component]);
                at += 1;
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
    }

    fn of(
        &self,
        region: &RegionId,
        component: Component,
        room_per_stack: &BTreeMap<RegionId, f64>,
    ) -> Option<TickSeen<'_>> {
        let sessions = self.traffic.get(region).map_or(0, |(seen, _)| seen.sessions);
        let room = room_per_stack.get(region).copied().filter(|room| *room > 0.0);
        let filled = room.map_or(0.0, |room| (f64::from(sessions) / room).ceil()) as usize;
        self.regions.get(region)?.of(component, &self.reports, filled)
    }
}

impl TriggerState {
    /// Adds further ticks.
    fn add<'s>(
        &mut self,
        trigger: Trigger,
        policy: &HealthPolicy,
        ticks: impl IntoIterator<Item = (Tick, TickSeen<'s>)>,
    ) {
        let (mut accused, lengths, window) = (None, trigger.run_lengths(policy), trigger.window(policy));
        for (tick, seen) in ticks {
            self.standing.note(seen, policy);
            let called = trigger.call(seen, &self.standing, policy);
            if called == Called::Unknown {
                continue;
            }
            if let Some(newest) = self.run.newest_known
                && tick.0.saturating_sub(newest.0) > u64::from(lengths.blind)
            {
                self.recent.clear();
            }
            self.recent.add(
                trigger.remember(tick, called, seen, &self.standing, policy),
                window.ticks,
            );
            self.spread = self.recent.judge(window);
            self.run.add(tick, called, lengths, self.spread);
            if self.run.bad >= lengths.fall {
                // The trigger fell by ticks in a row; its window begins again after them.
                self.recent.clear();
                self.spread = Spread::Clear;
            }
            if called.is_bad() {
                accused = Some((seen, self.standing.clone()));
            }
        }
        if let Some((seen, standing)) = accused {
            self.accusation = Some(trigger.accuse(seen, &standing, policy));
        }
        // If no tick is bad by itself, all of them accuse together.
        if self.spread == Spread::Bad && !self.recent.is_agreed(window) {
            let (what, vantages) = (trigger.errors(policy), self.recent.accusers(window));
            self.accusation = Some(Accusation { what, vantages });
        }
    }

    /// The window in words: its bad ticks, all its ticks, and the share of failures in them.
    pub(crate) fn describe_spread(&self) -> String {
        self.recent.describe()
    }
}
