//! Every region as it was when a vantage last saw it. A tick without data leaves the verdict before it in force, an
//! operator's order goes by it while no vantage sees the region, and the next leader begins with it. So it is part of
//! the memory that is committed, and it changes only when a verdict does: a world at rest writes nothing.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use topology::{Moment, Tick};
use verdict::{Health, Trigger, Verdict};

/// A region as it was when a vantage last saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Believed {
    /// The last verdict with evidence: neither no data nor blind.
    pub health: Health,
    /// The tick of the first verdict with that health.
    pub since: Tick,
    /// The tick in which the region last turned from good to bad; none while it is not bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad_since: Option<Tick>,
    /// The triggers that had fired and not cleared.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fallen: BTreeSet<Trigger>,
    /// The begin of the time in which no vantage sees the region; none while one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen_since: Option<Moment>,
}

/// Whether a verdict says that no vantage sees the region.
pub(crate) fn is_unseen(health: Health) -> bool {
    matches!(health, Health::NoData | Health::Blind)
}

/// The entry of a region after a verdict with evidence.
pub(crate) fn believe(verdict: &Verdict, before: Option<&Believed>) -> Believed {
    // A region whose gateway works is not failing, even if its recognition is: recognition has its own trigger,
    // which waits longer.
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
