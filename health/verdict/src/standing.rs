//! The recent results of a region's stacks. A region is judged by its best stacks, as many as it needs; the choice must
//! not depend on the tick that is judged: of two stacks that both fail now and then, one is lucky in most ticks, and a
//! region that is judged by the lucky one looks healthy. So stacks are ranked by the ticks before. Only a stack that is
//! gone falls behind at once: that is no luck.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use topology::{Component, NodeId, policy::HealthPolicy};

use crate::{
    limit::Limit,
    region_seen::{Summed, TickSeen},
};

/// Part of a tick's weight that is left in the next one: of 20 ticks, the newest weighs about as much as the gateway's
/// limit allows to fail, so a stack that was bad in one tick is ranked last in the next.
const DECAY: f64 = 0.95;
/// Weight below which a stack is forgotten: it was drained, or is gone.
const WEIGHT_MIN: f64 = 0.01;
/// Weight of a component whose loss takes something from callers, beside one that they cannot do without.
const LESSER_WEIGHT: f64 = 0.1;

/// The stacks of a region with their recent failures.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing(BTreeMap<SocketAddr, Record>);

/// One stack.
#[derive(Debug, Clone, Default)]
struct Record {
    /// By component.
    parts: [Part; Component::ALL.len()],
    /// Ticks with slow recognition, of those with timed recognition.
    slow: Part,
    /// Ticks in a row without a limit exceeded.
    good: u32,
    /// The rank in the newest tick: see [`Record::rank`].
    rank: (f64, f64),
}

/// Failures, and attempts. Older ones weigh less.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    failed: f64,
    all: f64,
}

impl Standing {
    /// Adds a tick.
    pub(crate) fn note(&mut self, seen: TickSeen<'_>, policy: &HealthPolicy) {
        if seen.all_stacks().len() < 2 && self.0.is_empty() {
            return;
        }
        let (lost, unknown) = (lost(seen, policy), Record::default());
        let rank = |stack: &SocketAddr| self.0.get(stack).unwrap_or(&unknown).rank(lost.get(stack), policy);
        let ranks: BTreeMap<SocketAddr, (f64, f64)> = seen.all_stacks().into_iter().map(|it| (it, rank(&it))).collect();
        for record in self.0.values_mut() {
            record.parts.iter_mut().chain([&mut record.slow]).for_each(Part::age);
        }
        self.0
            .retain(|_, record| record.parts.iter().any(|it| it.all > WEIGHT_MIN));
        let slow_ms = policy.asr_p99_max.as_secs_f64() * 1000.0;
        let mut past = BTreeSet::new();
        for component in Component::ALL {
            for (stack, seen) in seen.stacks_of(component) {
                let record = self.0.entry(stack).or_default();
                let total = seen.total();
                let now = Part {
                    failed: total.failed as f64,
                    all: total.samples() as f64,
                };
                record.parts[component as usize].add(now);
                let p99_ms = total.latency.filter(|_| component == Component::Asr);
                let p99_ms = p99_ms.and_then(|latency| latency.quantile(0.99));
                let is_slow = p99_ms.is_some_and(|ms| ms > slow_ms);
                if p99_ms.is_some() {
                    let failed = f64::from(u8::from(is_slow));
                    record.slow.add(Part { failed, all: 1.0 });
                }
                if is_slow || now.share() > limit(component, policy) {
                    past.insert(stack);
                }
            }
        }
        for (stack, rank) in ranks {
            let record = self.0.entry(stack).or_default();
            record.rank = rank;
            record.good = if past.contains(&stack) {
                0
            } else {
                record.good.saturating_add(1)
            };
            // The stack works again, as a region does after as many ticks: its past must not weigh more than another
            // stack that fails now.
            if record.good >= policy.recover_ticks {
                (record.parts, record.slow) = Default::default();
            }
        }
    }

    /// The samples that count for a region with several stacks, by vantage: those of its best stacks, as many as it
    /// needs; or, when fewer than that keep within these limits, those of the stacks that do not. So one failing stack
    /// of two is passed over, and two are not. Samples of an older edge that names no stack count too, as they may
    /// belong to any: until all edges are of this version, sessions lost by one stack may count against the region.
    /// None for a region with one stack, or that needs all: then every sample counts.
    pub(crate) fn needed<'w>(
        &self,
        seen: TickSeen<'w>,
        component: Component,
        limits: &[Limit],
        policy: &HealthPolicy,
    ) -> Option<BTreeMap<&'w NodeId, Summed>> {
        let all = seen.all_stacks();
        if all.len() < 2 {
            return None;
        }
        let needed = seen.stacks_needed(all.len(), policy.capacity_min);
        let is_past = |limit: &Limit, seen: TickSeen<'_>| {
            limit.is_passed(seen.total()) && limit.call_of_all(seen, policy).is_bad()
        };
        let failing = |component, limits: &[Limit]| -> BTreeSet<SocketAddr> {
            let failing = seen
                .stacks_of(component)
                .filter(|(_, seen)| limits.iter().any(|it| is_past(it, *seen)));
            failing.map(|(stack, _)| stack).collect()
        };
        let here = failing(component, limits);
        let silent = failing(Component::Gateway, &[Limit::SuccessBelow(policy.gateway_success_min)]);
        let too_few = !here.is_empty() && all.len() - here.union(&silent).count() < needed;
        let counting: Vec<SocketAddr> = if too_few {
            here.into_iter().collect()
        } else if needed < all.len() {
            let mut best = self.best_first(&all);
            best.truncate(needed);
            best
        } else {
            return None;
        };
        let counting = counting.iter().filter_map(|stack| seen.of_stack(component, stack));
        let elsewhere = seen.elsewhere(component);
        let mut by_vantage: BTreeMap<&NodeId, Summed> = BTreeMap::new();
        for (vantage, saw) in counting.chain([elsewhere]).flat_map(TickSeen::vantages) {
            by_vantage.entry(vantage).or_default().add(saw);
        }
        Some(by_vantage)
    }

    /// These stacks in the newest noted tick, the best first.
    fn best_first(&self, stacks: &BTreeSet<SocketAddr>) -> Vec<SocketAddr> {
        let rank = |stack: &SocketAddr| self.0.get(stack).map_or((0.0, 0.0), |record| record.rank);
        let mut stacks: Vec<SocketAddr> = stacks.iter().copied().collect();
        stacks.sort_by(|a, b| {
            let (a, b) = (rank(a), rank(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        stacks
    }
}

/// The components of each stack that are gone in this tick: nothing succeeded, or a gateway failed for enough vantages.
/// A gateway is bad as soon as its stack dies in the middle of a tick, and a region is left for it after two.
fn lost(seen: TickSeen<'_>, policy: &HealthPolicy) -> BTreeMap<SocketAddr, BTreeSet<Component>> {
    let mut lost: BTreeMap<SocketAddr, BTreeSet<Component>> = BTreeMap::new();
    for component in Component::ALL {
        let limit = Limit::ErrorsAbove(limit(component, policy));
        for (stack, seen) in seen.stacks_of(component) {
            let is_gone = component == Component::Gateway || seen.total().succeeded == 0;
            if is_gone && limit.call_of_all(seen, policy).is_bad() {
                lost.entry(stack).or_default().insert(component);
            }
        }
    }
    lost
}

impl Record {
    /// The excess over its limits, where any excess counts alike; then the share of all failures. A `lost` component
    /// counts as failed altogether.
    fn rank(&self, lost: Option<&BTreeSet<Component>>, policy: &HealthPolicy) -> (f64, f64) {
        let (mut past, mut failed) = (self.slow.share().min(1.0), self.slow.share());
        for component in Component::ALL {
            let is_lost = lost.is_some_and(|lost| lost.contains(&component));
            let share = if is_lost {
                1.0
            } else {
                self.parts[component as usize].share()
            };
            let weight = match component {
                Component::Gateway | Component::Asr => 1.0,
                _ => LESSER_WEIGHT,
            };
            past += (share / limit(component, policy)).min(1.0) * weight;
            failed += share * weight;
        }
        (past, failed)
    }
}

/// The largest share of a component's attempts that may fail.
fn limit(component: Component, policy: &HealthPolicy) -> f64 {
    match component {
        Component::Gateway => 1.0 - policy.gateway_success_min,
        _ => policy.asr_error_max,
    }
}

impl Part {
    fn age(&mut self) {
        (self.failed, self.all) = (self.failed * DECAY, self.all * DECAY);
    }

    fn add(&mut self, other: Self) {
        (self.failed, self.all) = (self.failed + other.failed, self.all + other.all);
    }

    fn share(self) -> f64 {
        if self.all > 0.0 { self.failed / self.all } else { 0.0 }
    }
}
