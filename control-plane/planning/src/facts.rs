//! The facts of a decision: its input, the time, and every region as a vantage last saw it. Read only.

use std::{borrow::Cow, collections::BTreeMap};

use topology::{IntentKind, Moment, Reason, ReasonCode, RegionId, policy::TwoPerson};
use verdict::Health;

use crate::{
    Believed, Input,
    believed::{believe, is_unseen},
    texts::part,
};

/// The facts of one decision.
#[derive(Debug)]
pub(crate) struct Facts<'i> {
    pub(crate) input: &'i Input,
    pub(crate) now: Moment,
    /// Every region as it was when a vantage last saw it.
    pub(crate) believed: Cow<'i, BTreeMap<RegionId, Believed>>,
}

impl<'i> Facts<'i> {
    /// The facts before the verdicts of this decision are noted.
    pub(crate) fn of(input: &'i Input, now: Moment) -> Self {
        Self {
            input,
            now,
            believed: Cow::Borrowed(&input.memory.believed),
        }
    }

    /// The same facts with the news of the verdicts. A region without news keeps its entry, so that a world at rest
    /// writes nothing.
    pub(crate) fn with_verdicts(self) -> Self {
        let regions = &self.input.topology.regions;
        let mut believed = self.believed.clone().into_owned();
        believed.retain(|region, _| regions.contains_key(region));
        for region in regions.keys() {
            let known = believed.get_mut(region);
            match (self.input.verdicts.get(region), known) {
                (Some(verdict), known) if !is_unseen(self.seen(region)) => {
                    let news = believe(verdict, known.as_deref());
                    believed.insert(region.clone(), news);
                }
                (_, Some(known)) => {
                    known.unseen_since.get_or_insert(self.now);
                }
                (_, None) => {}
            }
        }
        Self {
            believed: Cow::Owned(believed),
            ..self
        }
    }

    /// The health of a region by its newest verdict; blind when that is older than the policy allows.
    pub(crate) fn seen(&self, region: &RegionId) -> Health {
        let Some(verdict) = self.input.verdicts.get(region) else {
            return Health::NoData;
        };
        if self.is_stale(region) {
            Health::Blind
        } else {
            verdict.health
        }
    }

    /// The health that automation goes by: after a tick without data the verdict before it stands.
    pub(crate) fn health(&self, region: &RegionId) -> Health {
        match self.seen(region) {
            Health::NoData if self.input.verdicts.contains_key(region) => {
                self.last_known(region).unwrap_or(Health::NoData)
            }
            seen => seen,
        }
    }

    /// The health of a region when a vantage last saw it; none when no vantage ever did.
    pub(crate) fn last_known(&self, region: &RegionId) -> Option<Health> {
        let seen = self.seen(region);
        if is_unseen(seen) {
            return self.believed.get(region).map(|it| it.health);
        }
        Some(seen)
    }

    /// Whether the region serves callers well enough to take sessions.
    pub(crate) fn works(&self, region: &RegionId) -> bool {
        matches!(self.health(region), Health::Healthy | Health::Degraded)
    }

    /// Whether the newest verdict is older than the policy lets a decision act on.
    pub(crate) fn is_stale(&self, region: &RegionId) -> bool {
        let age = |verdict: &verdict::Verdict| self.now.tick().0.saturating_sub(verdict.tick.0);
        let newest = self.input.verdicts.get(region).map(age);
        newest.is_some_and(|age| age > u64::from(self.input.policy.health.freshness_ticks))
    }

    pub(crate) fn is_failing(&self, region: &RegionId) -> bool {
        self.input.verdicts.get(region).is_some_and(|verdict| verdict.failing)
    }

    /// Whether a trigger asks to leave the region, and it is down.
    pub(crate) fn is_dead(&self, region: &RegionId) -> bool {
        self.health(region) == Health::Down && self.is_failing(region)
    }

    /// Whether the region is suspect since the newest tick only: one bad tick is no evidence yet.
    pub(crate) fn is_blip(&self, region: &RegionId) -> bool {
        let (verdict, known) = (self.input.verdicts.get(region), self.believed.get(region));
        let newest = verdict.map(|it| it.tick);
        self.seen(region) == Health::Suspect && newest.is_some() && newest == known.map(|it| it.since)
    }

    /// The newest verdict in one sentence.
    pub(crate) fn summary(&self, region: &RegionId) -> String {
        match self.input.verdicts.get(region) {
            None => part::not_seen_yet(),
            Some(_) if self.is_stale(region) => part::seen_too_long_ago(),
            Some(verdict) => verdict.summary.clone(),
        }
    }

    /// The facts behind the newest verdict, one per item.
    pub(crate) fn evidence(&self, region: &RegionId) -> Vec<String> {
        let verdict = self.input.verdicts.get(region);
        verdict.map(|it| it.evidence.clone()).unwrap_or_default()
    }

    /// A reason about a region, with the evidence of its verdict.
    pub(crate) fn reason(&self, code: ReasonCode, region: &RegionId, text: impl Into<String>) -> Reason {
        Reason::of(code, text).about(region).with(self.evidence(region))
    }

    /// A reason about the subject of an order: its region with the evidence, if it has one.
    pub(crate) fn reason_for(&self, kind: &IntentKind, code: ReasonCode, text: impl Into<String>) -> Reason {
        match kind.region() {
            Some(region) => self.reason(code, region, text),
            None => Reason::of(code, text),
        }
    }

    pub(crate) fn needs_two(&self, of: TwoPerson) -> bool {
        self.input.policy.safety.two_person.contains(&of)
    }
}
