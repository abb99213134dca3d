//! The gate: the rules that stop a change, and those that a change may pass. A gate answers and never writes;
//! [`crate::rules`] writes the refusals.

use topology::{Reason, ReasonCode, RegionId, Rule};
use verdict::Health;

use crate::{Memory, facts::Facts, texts::refused};

/// Rules that `--force` passes, with the agreement of a second person: they judge by believed health, and the author of
/// a failover may know better. No one forces a change that would lose data; such an order names the loss instead.
const FORCIBLE: [ReasonCode; 3] = [
    ReasonCode::NoFitBackup,
    ReasonCode::NoHeadroom,
    ReasonCode::RegionsServingMin,
];

/// The source of a change, from the one that is stopped most to the one that is stopped least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// No person asked for the change.
    Automation,
    /// A person ordered it, and may know what no vantage sees.
    Order,
    /// A person ordered it by force: [`FORCIBLE`] rules are passed.
    Forced,
}

impl Gate {
    /// The gate of an operator's order.
    pub(crate) fn order(force: bool) -> Self {
        if force { Self::Forced } else { Self::Order }
    }

    pub(crate) fn is_order(self) -> bool {
        self != Self::Automation
    }

    /// The rule that stops every change of this source now, if one does. A policy without automation lets orders of
    /// operators be carried through; a freeze stops them where they are.
    pub(crate) fn stop(self, facts: &Facts<'_>, memory: &Memory) -> Option<Reason> {
        if !facts.input.policy.safety.automation && !self.is_order() {
            return Some(Reason::of(ReasonCode::AutomationOff, refused::automation_off()));
        }
        if let Some(freeze) = memory.freeze(facts.now) {
            let until = freeze.expires_at;
            let text = refused::frozen(&freeze.author, &freeze.reason, until);
            return Some(Reason::of(ReasonCode::Frozen, text).until(until));
        }
        let rest = memory.taken_back.as_ref()?;
        let text = refused::automation_rests(rest);
        Some(Reason::of(ReasonCode::RefusedByNodes, text).until(rest.until))
    }

    /// The same for a change that takes sessions from `from`. The rest keeps automation from trying at once what nodes
    /// refused. A plan that leaves a dead region is never taken back, so the rest does not stop it.
    pub(crate) fn stop_leaving(self, facts: &Facts<'_>, memory: &Memory, from: &RegionId) -> Option<Reason> {
        let is_down = facts.last_known(from) == Some(Health::Down);
        self.stop(facts, memory)
            .filter(|stop| stop.code != ReasonCode::RefusedByNodes || !is_down)
    }

    /// Whether an operator turned this rule off for now.
    pub(crate) fn is_overridden(rule: ReasonCode, facts: &Facts<'_>, memory: &Memory) -> bool {
        let rule = Rule::ALL.iter().find(|it| it.code() == rule);
        rule.is_some_and(|rule| memory.overrides(*rule, facts.now))
    }

    /// Whether this source passes a rule that blocks it.
    pub(crate) fn forces(self, rule: ReasonCode) -> bool {
        self == Self::Forced && FORCIBLE.contains(&rule)
    }

    /// The health that a change goes by. A person's order goes by the last known health, even if no vantage sees the
    /// region now; none when no vantage ever saw it.
    pub(crate) fn health(self, facts: &Facts<'_>, region: &RegionId) -> Option<Health> {
        if self.is_order() {
            facts.last_known(region)
        } else {
            Some(facts.health(region))
        }
    }
}
