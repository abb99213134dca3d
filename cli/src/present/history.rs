use std::fmt::Write as _;

use api::v1;
use serde_json::json;
use topology::Moment;

use super::{
    json::{decision_json, document},
    text::reason_line,
};
use crate::output::Output;

/// `meridian history`: decisions, newest first.
pub(crate) fn history(decisions: &[v1::Decision], output: Output) -> String {
    if output == Output::Json {
        return document(json!({ "decisions": decisions.iter().map(decision_json).collect::<Vec<_>>() }));
    }
    if decisions.is_empty() {
        return "nothing was decided yet".to_owned();
    }
    decisions.iter().map(decision_lines).collect::<Vec<_>>().join("\n")
}

fn decision_lines(decision: &v1::Decision) -> String {
    let number = decision.number.unwrap_or_default();
    let what = match number.generation {
        // Refusals are decisions too, and leave the plan as it is.
        0 => "no change".to_owned(),
        generation => format!("plan {generation}"),
    };
    let mut text = format!("{what} at {:#} UTC by {}", Moment(decision.at_ms), decision.actor);
    if let Some(by) = &decision.principal {
        let _ = write!(text, " ({}, from {}, certificate {})", by.roles, by.source, by.serial);
    }
    for reason in &decision.reasons {
        let _ = write!(text, "\n  {}", reason_line(reason));
        for fact in &reason.evidence {
            let _ = write!(text, "\n    {fact}");
        }
    }
    let acknowledged: Vec<String> = (decision.acknowledged.iter())
        .map(|node| {
            let after = node.acknowledged_at_ms.saturating_sub(decision.at_ms);
            format!("{} after {after} ms", node.node)
        })
        .collect();
    if !acknowledged.is_empty() {
        let _ = write!(text, "\n  acknowledged by {}", acknowledged.join(", "));
    }
    text
}
