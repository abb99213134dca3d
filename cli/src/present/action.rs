use std::fmt::Write as _;

use api::v1;
use serde_json::json;

use super::{
    json::document,
    text::{outcome_name, reason_line},
};
use crate::output::Output;

/// The outcome of a request.
pub(crate) fn action(reply: &v1::ActReply, output: Output) -> String {
    let outcome = outcome_name(reply.outcome());
    if output == Output::Json {
        return document(json!({
            "outcome": outcome,
            "plan": reply.number,
            "reasons": reply.reasons,
            "action": reply.action,
        }));
    }
    let generation = reply.number.unwrap_or_default().generation;
    let mut text = match &reply.action {
        Some(action) => format!("{outcome}: action {}, plan {generation}", action.id),
        None => outcome.to_owned(),
    };
    for reason in &reply.reasons {
        let _ = write!(text, "\n  {}", reason_line(reason));
        // Evidence matters for refusals; a request that passed needs none.
        let refused = reply.outcome() == v1::Outcome::Refused;
        for fact in reason.evidence.iter().filter(|_| refused) {
            let _ = write!(text, "\n    {fact}");
        }
    }
    text
}

/// An action that waits for a second person, for that person.
pub(crate) fn asked_for(action: &v1::Action) -> String {
    let v1::Action {
        id,
        kind,
        subject,
        author,
        reason,
        effects,
        shown,
        ..
    } = action;
    let effects: String = effects.iter().map(|effect| format!("\n  {effect}")).collect();
    format!("{id} is {kind} {subject}, asked for by {author}: {reason}; the digest of its effects is {shown}:{effects}")
}

/// The action at the end of `wait`.
pub(crate) fn waited(action: &v1::Action, output: Output) -> String {
    match output {
        Output::Json => document(json!({ "action": action })),
        Output::Table => format!("{} {} {}: {}", action.kind, action.subject, action.phase, action.text),
    }
}
