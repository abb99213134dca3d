//! Writes plans and repeated reasons into the transcript.

use std::collections::BTreeSet;

use topology::{Level, Plan, Reason, ReasonCode, RegionId};

/// Whether a reason is the same fact again. The text of a hold-down counts its penalty down, that of a lost edge the
/// seconds up.
pub(crate) fn is_same(old: &Reason, new: &Reason) -> bool {
    let counts_down = old.code == ReasonCode::HoldDown && old.until == new.until;
    let words = |text: &str| -> String {
        let words = text
            .split(' ')
            .filter(|word| !word.bytes().all(|it| it.is_ascii_digit()));
        words.collect()
    };
    let counts_up =
        matches!(old.code, ReasonCode::EdgeFloor | ReasonCode::EdgeLost) && words(&old.text) == words(&new.text);
    (old.code, &old.region) == (new.code, &new.region) && (old.text == new.text || counts_down || counts_up)
}

/// A plan in one line: the parts that differ from a healthy world.
pub(crate) fn describe(plan: &Plan) -> String {
    let away = plan
        .routes
        .iter()
        .filter(|(primary, shares)| shares.iter().any(|share| share.region != **primary));
    let mut told: Vec<String> = away
        .map(|(primary, shares)| {
            let shares: Vec<String> = shares
                .iter()
                .map(|share| format!("{} {} %", share.region, share.percent))
                .collect();
            format!("{primary} → {}", shares.join(" + "))
        })
        .collect();
    told.push(
        if told.is_empty() {
            "every primary at home"
        } else {
            "others at home"
        }
        .to_owned(),
    );
    if told.len() > plan.routes.len() {
        told.pop();
    }
    let levels = plan.regions.iter().filter(|(_, it)| it.level > Level::L0);
    told.extend(levels.map(|(region, it)| format!("{region} at {}", it.level)));
    let drained = plan.edges.iter().filter(|(_, it)| **it == topology::EdgeState::Drained);
    told.extend(drained.map(|(edge, _)| format!("{edge} drained")));
    told.extend(plan.drained_stacks.iter().map(|stack| format!("{stack} drained")));
    for (region, writers) in &plan.writers {
        let writers: BTreeSet<&RegionId> = writers.values().collect();
        let writers: Vec<&str> = writers.into_iter().map(RegionId::as_str).collect();
        told.push(format!("data of {region} is written in {}", writers.join(" and ")));
    }
    if let Some(rollout) = &plan.rollout {
        told.push(format!("{} at {} %", rollout.version, rollout.percent));
    }
    told.join("; ")
}
