//! The documents of topology and policy: the one in force, a difference, and the outcome of applying one.

use std::fmt::Write as _;

use api::v1;
use serde_json::json;

use super::{
    json::{document, plan_json},
    plan::plan,
    text::reason_line,
};
use crate::output::Output;

/// `topology get` and `policy get`.
pub(crate) fn document_in_force(it: &v1::Document, output: Output) -> String {
    match output {
        Output::Json => document(json!({
            "text": it.text, "version": it.version, "author": it.author, "applied_at_ms": it.applied_at_ms,
        })),
        // The text exactly as applied, so that it can be edited and applied again.
        Output::Table => it.text.clone(),
    }
}

/// `topology diff` and `policy diff`: the difference, and the plan that would follow.
pub(crate) fn difference(difference: &str, tried: &v1::ApplyDocumentReply, output: Output) -> String {
    let planned = tried.plan.clone().unwrap_or_default();
    match output {
        Output::Json => document(json!({
            "difference": difference, "accepted": tried.accepted, "problems": tried.problems, "plan": plan_json(&planned),
        })),
        Output::Table => format!("{difference}\n{}", applied(tried, true, output)),
    }
}

/// The outcome of `apply`, or of its dry run.
pub(crate) fn applied(reply: &v1::ApplyDocumentReply, dry_run: bool, output: Output) -> String {
    let planned = reply.plan.clone().unwrap_or_default();
    if output == Output::Json {
        return document(json!({
            "accepted": reply.accepted, "dry_run": dry_run, "version": reply.version, "problems": reply.problems,
            "plan": plan_json(&planned),
        }));
    }
    match (reply.accepted, dry_run) {
        (false, _) => format!("refused\n{}", reply.problems.join("\n")),
        (true, true) => plan(&planned, output),
        (true, false) => {
            let mut text = format!("version {:.12} is in force", reply.version);
            for reason in &planned.changed {
                let _ = write!(text, "\n  {}", reason_line(reason));
            }
            text
        }
    }
}
