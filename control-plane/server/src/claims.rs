//! Plans that nodes hold and the store does not know: after a store was lost or restored from an old copy. More than half of the
//! topology's nodes must hold the same one before it is believed.

use std::collections::{BTreeMap, BTreeSet};

use topology::{NodeId, Plan, PlanNumber};

use crate::records;

/// Most different plans of this kind. A restored store leads to one such plan, and each takes up to a megabyte.
const CLAIMS_MAX: usize = 4;

/// The plans, by number and hash.
#[derive(Debug, Default)]
pub(crate) struct Claims(BTreeMap<(PlanNumber, String), Claim>);

#[derive(Debug)]
struct Claim {
    plan: Plan,
    by: BTreeSet<NodeId>,
    /// Set if the audit log has another plan under this number.
    is_refuted: bool,
}

/// The plan that most nodes hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Best<'c> {
    pub(crate) plan: &'c Plan,
    /// Number of the topology's nodes that hold it.
    pub(crate) held: usize,
    /// True if more than half of them do, and the audit log does not contradict it.
    pub(crate) is_proven: bool,
    pub(crate) is_refuted: bool,
}

impl Claims {
    /// Notes that a node holds a plan. A node holds one; with too many plans the one that fewest nodes hold is forgotten.
    pub(crate) fn note(&mut self, id: &NodeId, plan: Plan) {
        let key = (plan.number(), hash_of(&plan));
        self.forget(id);
        if self.0.len() >= CLAIMS_MAX && !self.0.contains_key(&key) {
            let weakest = self.0.iter().min_by_key(|(_, claim)| claim.by.len());
            if let Some(weakest) = weakest.map(|(key, _)| key.clone()) {
                self.0.remove(&weakest);
            }
        }
        let claim = self.0.entry(key).or_insert_with(|| Claim {
            plan,
            by: BTreeSet::new(),
            is_refuted: false,
        });
        claim.by.insert(id.clone());
    }

    /// Forgets that a node holds a plan: it disconnected, or holds another one.
    pub(crate) fn forget(&mut self, id: &NodeId) {
        for claim in self.0.values_mut() {
            claim.by.remove(id);
        }
        self.0.retain(|_, claim| !claim.by.is_empty());
    }

    /// Forgets the plans that are not newer than a published one.
    pub(crate) fn forget_published(&mut self, number: PlanNumber) {
        self.0.retain(|(claimed, _), _| *claimed > number);
    }

    /// Marks a plan as contradicted by the audit log: no number of nodes can make it the plan in force.
    pub(crate) fn refute(&mut self, plan: &Plan) {
        if let Some(claim) = self.0.get_mut(&(plan.number(), hash_of(plan))) {
            claim.is_refuted = true;
        }
    }

    /// The plan newer than `ours` that most of these nodes hold.
    pub(crate) fn best(&self, ours: PlanNumber, all: &BTreeSet<&str>) -> Option<Best<'_>> {
        let held_by = |claim: &Claim| claim.by.iter().filter(|node| all.contains(node.as_str())).count();
        let newer = self.0.iter().filter(|((number, _), _)| *number > ours);
        let (_, claim) = newer.max_by_key(|(_, claim)| held_by(claim))?;
        let held = held_by(claim);
        Some(Best {
            plan: &claim.plan,
            held,
            is_proven: !claim.is_refuted && held * 2 > all.len(),
            is_refuted: claim.is_refuted,
        })
    }
}

/// The hash of a plan, equal for nodes that hold the same one.
fn hash_of(plan: &Plan) -> String {
    planning::audit::hash(&records::encode(plan))
}
