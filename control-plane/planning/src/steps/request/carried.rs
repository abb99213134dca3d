//! An order that is carried out, and the facts that several kinds of order ask for.

use std::collections::BTreeMap;

use topology::{IntentKind, Reason, ReasonCode, RegionId, RegionState, policy::TwoPerson};

use crate::{
    Phase, Report,
    draft::Draft,
    facts::Facts,
    texts::{part, refused},
};

/// An order that the draft carries out.
pub(super) struct Carried {
    pub(super) phase: Phase,
    /// The reasons for a second person, by the policy's rule and its subject; empty when one person is enough.
    pub(super) asks: BTreeMap<String, String>,
}

impl From<Phase> for Carried {
    fn from(phase: Phase) -> Self {
        let asks = BTreeMap::new();
        Self { phase, asks }
    }
}

impl Carried {
    /// The same, if a second person agrees, where the policy wants one for that.
    pub(super) fn asking(mut self, facts: &Facts<'_>, of: TwoPerson, about: &str, because: String) -> Self {
        if facts.needs_two(of) {
            let key = format!("{of} {about}").trim_end().to_owned();
            self.asks.insert(key, because);
        }
        self
    }
}

/// Leaving a second region is for two people to decide.
pub(super) fn ask_for_second_evacuation(
    carried: Carried,
    facts: &Facts<'_>,
    draft: &Draft,
    region: &RegionId,
) -> Carried {
    let others = draft.others_away(region);
    if others.is_empty() {
        return carried;
    }
    let because = part::away_already(&others);
    carried.asking(facts, TwoPerson::SecondEvacuation, &others.join(" "), because)
}

/// The state of a region that an order names; an error when it is no primary.
pub(super) fn state_of_primary(
    facts: &Facts<'_>,
    draft: &Draft,
    kind: &IntentKind,
    region: &RegionId,
) -> Result<RegionState, Reason> {
    let is_primary = facts.input.topology.primaries().any(|it| it.id == *region);
    let text = match draft.state(region) {
        Some(state) if is_primary => return Ok(state),
        Some(_) => refused::is_a_backup(region),
        None => refused::no_such_region(region),
    };
    Err(facts.reason_for(kind, ReasonCode::BadRequest, text))
}

/// The order asks for what is so already.
pub(super) fn already(facts: &Facts<'_>, report: &mut Report, kind: &IntentKind, text: impl Into<String>) -> Phase {
    report.change(facts.reason_for(kind, ReasonCode::AlreadySo, text));
    Phase::Done
}
