//! The memory of decisions: actions with their owner and phase, penalties, arrivals. It is committed together with the
//! plan, so that the next leader goes on where the last one stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use topology::{EdgeId, Intent, IntentKind, Moment, RegionId};
use verdict::Before;

use crate::{Believed, Penalty, texts::part};

/// Time for which ended actions are remembered: a request token that is used again within it is recognised.
const ENDED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Limit of actions in the memory; the oldest ended ones go first.
pub(crate) const ACTIONS_MAX: usize = 256;
/// Limit of the bytes of ended actions in a document. The document is written three times with each plan, so they take
/// a fifth of the store at most.
const ENDED_BYTES_MAX: usize = 96 << 10;
/// Limit of orders that stand or wait for approval: far more than people can keep in mind, and far below `ACTIONS_MAX`,
/// so that they crowd out neither those that move regions nor the memory of those that ended.
pub(crate) const STANDING_MAX: usize = 64;

/// The memory of earlier decisions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Every request and every automatic move, by id.
    pub actions: BTreeMap<String, Action>,
    /// The penalties of regions that moved of late.
    pub penalties: BTreeMap<RegionId, Penalty>,
    /// Sessions sent to regions that limit their connections, while they are still coming.
    pub arrivals: BTreeMap<RegionId, Arrivals>,
    /// The last plan that was taken back because nodes refused it, while automation rests.
    pub taken_back: Option<TakenBack>,
    /// Every region as it was when a vantage last saw it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub believed: BTreeMap<RegionId, Believed>,
    /// Regions that are away because a person emptied them while they were healthy.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub on_purpose: BTreeSet<RegionId>,
    /// Edges that DNS does not name because they are silent or out of reach of most vantages, each with the time of its
    /// loss.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost_edges: BTreeMap<EdgeId, Moment>,
    /// Edges that came with a later topology and were not yet seen to work. DNS does not name them, and they count
    /// neither as lost nor among those that may be.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub new_edges: BTreeSet<EdgeId>,
}

impl Memory {
    /// The triggers of every region, for a leader that has judged nothing yet: it believes what the last leader did.
    pub fn before(&self) -> BTreeMap<RegionId, Before> {
        let before = self.believed.iter().map(|(region, it)| {
            let fallen = it.fallen.clone();
            (region.clone(), Before { fallen })
        });
        before.collect()
    }
}

/// Sessions sent to a region that are still coming.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    /// Time at which the last of them were sent.
    pub since: Moment,
    /// Number of sessions sent, each less than a reconnect window after the ones before.
    pub sessions: u32,
}

impl Arrivals {
    /// Time at which all of them are there: after a reconnect window, or after as long as the region takes to accept
    /// them.
    pub(crate) fn end(&self, per_second: u32, window: Duration) -> Moment {
        let takes = Duration::from_millis((u64::from(self.sessions) * 1000).div_ceil(u64::from(per_second.max(1))));
        self.since + window.max(takes)
    }
}

/// A plan that nodes refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakenBack {
    /// Generation of the plan.
    pub generation: u64,
    /// End of the rest of automation.
    pub until: Moment,
    /// The error of the first node that refused it.
    pub why: String,
}

/// A request, or an automatic move, and its phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// The order with its author and reason. Automatic moves have the author [`PLANNER`].
    pub intent: Intent,
    /// Its phase.
    pub phase: Phase,
    /// Fencing token of the leader that carries it out.
    pub owner: u64,
    /// Time of the last change of its phase.
    pub changed_at: Moment,
    /// The second person who agreed to it.
    pub approved_by: Option<String>,
    /// The newest result, in words.
    pub text: String,
    /// Generation of the plan that carries it out, until most edges apply that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spreads: Option<u64>,
    /// The effects that its approver is shown and agrees to, in words. A further effect asks for approval again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shown: BTreeMap<String, String>,
    /// The share of each effect that they are shown, in percent of a primary's sessions. It may grow by ten points until they agree.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: BTreeMap<String, u8>,
}

impl Action {
    /// The digest that an approval has to repeat; `None` when the action waits for nobody.
    pub fn shown_digest(&self) -> Option<String> {
        (self.phase == Phase::AwaitingApproval).then(|| shown_digest(&self.intent, &self.shown, &self.shares))
    }

    /// The effects that an approver agrees to, in words, with the share of each that has one; none when the action waits for nobody.
    pub fn effects(&self) -> Vec<String> {
        if self.phase != Phase::AwaitingApproval {
            return Vec::new();
        }
        let effects = self.shown.iter();
        effects
            .map(|(key, text)| part::effect(text, self.shares.get(key).copied()))
            .collect()
    }
}

/// Binds an approval to one order and to all the effects that its approver is shown. The end of the order is left out: for a standing
/// order it moves with the approval.
pub(crate) fn shown_digest(
    order: &Intent,
    effects: &BTreeMap<String, String>,
    shares: &BTreeMap<String, u8>,
) -> String {
    let Intent {
        id,
        kind,
        author,
        created_at,
        reason: _,
        expires_at: _,
    } = order;
    let shown = serde_json::to_vec(&(id, kind, author, created_at, effects, shares));
    let digest = Sha256::digest(shown.expect("an order and its effects are JSON"));
    // 64 bits: a requester cannot look for other effects with the same digest, because effects follow from the world.
    hex::encode(&digest[..8])
}

/// The author of automatic moves.
pub const PLANNER: &str = "planner";

/// The author of orders that only a recovered plan still shows: the store forgot the person who gave them.
pub const RECOVERED: &str = "recovered";

/// The phase of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::Display, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Phase {
    /// It waits for a second person.
    AwaitingApproval,
    /// It moves sessions in steps, or stands until its time is over.
    Running,
    /// It was carried out.
    Done,
    /// A rule refused it after it had been approved.
    Refused,
    /// An operator or an event ended it early.
    Aborted,
    /// Its time is over.
    Expired,
}

impl Phase {
    /// The name in documents.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether the action has ended.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::AwaitingApproval | Self::Running)
    }
}

impl Memory {
    /// The standing orders and running actions of a kind.
    pub fn running(&self, of: impl Fn(&IntentKind) -> bool) -> impl Iterator<Item = &Action> {
        self.actions
            .values()
            .filter(move |action| action.phase == Phase::Running && of(&action.intent.kind))
    }

    /// The freeze that ends last, if automation is frozen.
    pub fn freeze(&self, now: Moment) -> Option<&Intent> {
        self.running(|kind| *kind == IntentKind::Freeze)
            .map(|action| &action.intent)
            .filter(|intent| intent.is_live(now))
            .max_by_key(|intent| intent.expires_at)
    }

    /// Whether an override turns a safety rule off now.
    pub fn overrides(&self, rule: topology::Rule, now: Moment) -> bool {
        let of = |kind: &IntentKind| matches!(kind, IntentKind::Override { rule: it } if *it == rule);
        self.running(of).any(|action| action.intent.is_live(now))
    }

    /// Whether DNS leaves an edge out by itself: because it is lost, or new.
    pub(crate) fn leaves_out(&self, edge: &EdgeId) -> bool {
        self.lost_edges.contains_key(edge) || self.new_edges.contains(edge)
    }

    /// The action that moves a region now, if one does.
    pub fn moving(&self, region: &RegionId) -> Option<&Action> {
        self.running(|kind| kind.region() == Some(region)).next()
    }

    /// Forgets actions that ended long ago, and the oldest ended ones above the limits.
    pub(crate) fn forget(&mut self, now: Moment) {
        let ended = self.actions.values().filter(|action| action.phase.is_final());
        let mut ended: Vec<(Moment, String)> = ended.map(|it| (it.changed_at, it.intent.id.clone())).collect();
        ended.sort();
        let (mut kept, mut bytes) = (self.actions.len() - ended.len(), 0);
        for (changed_at, id) in ended.into_iter().rev() {
            // One place stays free: a request in an emergency must not fail because of earlier ones.
            let fits = kept + 1 < ACTIONS_MAX && bytes < ENDED_BYTES_MAX;
            if !fits || now.since(changed_at) >= ENDED_KEPT {
                self.actions.remove(&id);
                continue;
            }
            kept += 1;
            bytes += self.actions.get(&id).map_or(0, Action::bytes);
        }
    }
}

impl Action {
    /// Approximate size in a document, in bytes.
    fn bytes(&self) -> usize {
        serde_json::to_vec(self).map_or(0, |bytes| bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_its_name_in_documents() {
        for (phase, name) in [
            (Phase::AwaitingApproval, "awaiting-approval"),
            (Phase::Running, "running"),
            (Phase::Done, "done"),
            (Phase::Refused, "refused"),
            (Phase::Aborted, "aborted"),
            (Phase::Expired, "expired"),
        ] {
            assert_eq!(
                (phase.as_str(), serde_json::to_value(phase).unwrap()),
                (name, name.into())
            );
            assert_eq!(format!("{phase:>18}"), format!("{name:>18}"), "tables pad it");
        }
    }
}
