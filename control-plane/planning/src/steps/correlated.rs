//! Primaries that turned bad together, by the evidence of the same vantages.

use std::collections::{BTreeMap, BTreeSet};

use topology::{RegionId, RegionState, Tick};
use verdict::correlated;

use crate::{believed::is_unseen, draft::Draft, facts::Facts, placing::has_place};

/// For each primary that turned bad with others: all of them, itself included.
pub(crate) type Correlated = BTreeMap<RegionId, BTreeSet<RegionId>>;

/// Finds primaries whose failure may have one cause, possibly in our own view: they take sessions, turned bad within a
/// few ticks of each other, and are bad by the evidence of the same vantages. A region that has been bad alone for
/// longer says nothing about one that turns bad now, and holding automation for a region whose sessions find no place
/// protects no one.
pub(crate) fn find(facts: &Facts<'_>, draft: &Draft) -> Correlated {
    let takes = |region: &RegionId| draft.state(region).is_some_and(|it| it != RegionState::Evacuated);
    // `believed` says since when it is bad; it is bad only while a vantage sees it.
    let is_seen = |region: &RegionId| !is_unseen(facts.health(region));
    let onset = |region: &RegionId| facts.believed.get(region)?.bad_since;
    let bad: Vec<(RegionId, Tick)> = facts
        .input
        .primaries()
        .into_iter()
        .filter(|it| takes(it) && is_seen(it) && has_place(facts, draft, it))
        .filter_map(|it| onset(&it).map(|onset| (it, onset)))
        .collect();
    let policy = &facts.input.policy;
    let within = u64::from(policy.failover.correlated_ticks);
    let mut tied: BTreeMap<RegionId, BTreeSet<RegionId>> = BTreeMap::new();
    for (index, (one, turned)) in bad.iter().enumerate() {
        for (other, other_turned) in &bad[index + 1..] {
            let verdicts = [one, other].into_iter().filter_map(|it| facts.input.verdicts.get(it));
            if turned.0.abs_diff(other_turned.0) > within || correlated(verdicts, &policy.health).is_empty() {
                continue;
            }
            for (region, with) in [(one, other), (other, one)] {
                let tied = tied.entry(region.clone()).or_insert_with(|| [region.clone()].into());
                tied.insert(with.clone());
            }
        }
    }
    tied
}
