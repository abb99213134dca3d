//! The last word on each region: how it was when somebody last saw it. A tick without data leaves the verdict before it in
//! force, an operator's order goes by it while nobody sees anything, and the next leader begins with it. So it is part of
//! the memory that is committed, and it changes only when a verdict does: a world at rest writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use topology::{Moment, RegionId, RegionState, Tick};
use verdict::{Before, Health, Trigger, Verdict, correlated};

use crate::{
    Memory,
    plan::{Planner, primaries},
};

/// How a region was when it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Believed {
    /// The last verdict that said how it is: neither no data nor blind.
    pub health: Health,
    /// The tick in which that verdict was first heard.
    pub since: Tick,
    /// The tick in which the region last turned from good to bad; none while it is not bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad_since: Option<Tick>,
    /// The triggers that had fired and not cleared.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fallen: BTreeSet<Trigger>,
    /// Since when nobody sees how it is; none while somebody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen_since: Option<Moment>,
}

impl Memory {
    /// What a leader that has judged nothing yet believes about its regions: what the last leader did.
    pub fn before(&self) -> BTreeMap<RegionId, Before> {
        let before = self.believed.iter().map(|(region, it)| {
            let fallen = it.fallen.clone();
            (region.clone(), Before { fallen })
        });
        before.collect()
    }
}

impl Planner<'_> {
    /// Notes what the verdicts say, where they say something new.
    pub(crate) fn note_verdicts(&mut self) {
        let regions = &self.input.topology.regions;
        self.memory.believed.retain(|region, _| regions.contains_key(region));
        for region in regions.keys() {
            let seen = self.seen(region);
            let verdict = self.input.verdicts.get(region);
            let known = self.memory.believed.get_mut(region);
            match (verdict, known) {
                (Some(verdict), known) if !is_unseen(seen) => {
                    let now = believe(verdict, known.as_deref());
                    if known.as_deref() != Some(&now) {
                        self.memory.believed.insert(region.clone(), now);
                    }
                }
                (_, Some(known)) => {
                    known.unseen_since.get_or_insert(self.now);
                }
                (_, None) => {}
            }
        }
    }

    /// How a region was when it was last seen; none when nobody ever saw it.
    pub(crate) fn last_known(&self, region: &RegionId) -> Option<Health> {
        let seen = self.seen(region);
        if is_unseen(seen) {
            return self.memory.believed.get(region).map(|it| it.health);
        }
        Some(seen)
    }

    /// Whether the region is suspect since the newest tick only: one bad tick is no evidence yet.
    pub(crate) fn is_blip(&self, region: &RegionId) -> bool {
        let (verdict, known) = (self.input.verdicts.get(region), self.memory.believed.get(region));
        let newest = verdict.map(|it| it.tick);
        self.seen(region) == Health::Suspect && newest.is_some() && newest == known.map(|it| it.since)
    }

    /// Ties primaries whose failure may have one cause, which may be ours: they take sessions, turned bad within a few ticks
    /// of each other, and are bad by the word of the same vantages. A region that has been bad alone for longer says nothing
    /// about one that turns bad now, and holding automation for one that has no place to go protects nobody.
    pub(crate) fn tie_correlated(&mut self) {
        let takes = |region: &RegionId| {
            let planned = self.next.regions.get(region);
            planned.is_some_and(|it| it.state != RegionState::Evacuated)
        };
        let is_bad = |region: &RegionId| match self.health(region) {
            Health::Down => true,
            Health::Suspect => self.is_failing(region),
            _ => false,
        };
        let onset = |region: &RegionId| self.memory.believed.get(region)?.bad_since;
        let bad: Vec<(RegionId, Tick)> = primaries(self.input)
            .into_iter()
            .filter(|it| takes(it) && is_bad(it) && self.has_place(it))
            .filter_map(|it| onset(&it).map(|onset| (it, onset)))
            .collect();
        let policy = &self.input.policy;
        let within = u64::from(policy.failover.correlated_ticks);
        let mut tied: BTreeMap<RegionId, BTreeSet<RegionId>> = BTreeMap::new();
        for (index, (one, turned)) in bad.iter().enumerate() {
            for (other, other_turned) in &bad[index + 1..] {
                let verdicts = [one, other].into_iter().filter_map(|it| self.input.verdicts.get(it));
                if turned.0.abs_diff(other_turned.0) > within || correlated(verdicts, &policy.health).is_empty() {
                    continue;
                }
                for (region, with) in [(one, other), (other, one)] {
                    let tied = tied.entry(region.clone()).or_insert_with(|| [region.clone()].into());
                    tied.insert(with.clone());
                }
            }
        }
        self.correlated = tied;
    }
}

/// Whether a verdict says that nobody sees how it is.
pub(crate) fn is_unseen(health: Health) -> bool {
    matches!(health, Health::NoData | Health::Blind)
}

fn believe(verdict: &Verdict, before: Option<&Believed>) -> Believed {
    // A region whose gateway works is not failing, whatever its recognition does: that has its own, longer patience.
    let is_bad = match verdict.health {
        Health::Down => true,
        Health::Suspect => verdict.failing,
        _ => false,
    };
    let before_now = before.filter(|it| it.since <= verdict.tick);
    let same = before_now.filter(|it| it.health == verdict.health);
    let was_bad = before_now.and_then(|it| it.bad_since);
    Believed {
        health: verdict.health,
        since: same.map_or(verdict.tick, |it| it.since),
        bad_since: is_bad.then(|| was_bad.unwrap_or(verdict.tick)),
        fallen: verdict.fired.iter().map(|fired| fired.trigger).collect(),
        unseen_since: None,
    }
}
