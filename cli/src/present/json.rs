//! The JSON documents, each with a schema number.
//!
//! Most messages print each field under its own name (control-plane/api/build.rs derives that). This file maps the parts that the
//! JSON names differently: the plan, rules and capacity, and enums, which are numbers in a message.

use api::v1;
use serde_json::{Value, json};

use super::text::{node_kind, outcome_name};

/// Schema number of every JSON document printed here.
const SCHEMA: u32 = 1;

/// Adds the schema number to a JSON document.
pub(crate) fn document(mut value: Value) -> String {
    value["schema"] = SCHEMA.into();
    format!("{value:#}")
}

/// The text, or null if it is empty.
pub(super) fn some_text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The age of a follower's copy; null if it never had one.
pub(super) fn stale_json(stale_ms: u64) -> Value {
    if stale_ms == u64::MAX {
        Value::Null
    } else {
        stale_ms.into()
    }
}

pub(super) fn node_json(node: &v1::NodeStatus) -> Value {
    json!({
        "node": node.node, "kind": node_kind(node), "acknowledged": node.acknowledged,
        "acknowledged_at_ms": node.acknowledged_at_ms, "refused": node.refused, "connected": node.connected,
        "root": some_text(&node.root), "certificate_until_ms": node.certificate_until_ms, "names": node.names,
    })
}

pub(super) fn plan_json(plan: &v1::PlanReply) -> Value {
    json!({
        "plan": plan.number, "changes": plan.changes, "outcome": outcome_name(plan.outcome()), "regions": plan.regions,
        "changed": plan.changed, "refused": plan.refused, "waiting": plan.waiting,
        "rules": plan.checks, "capacity": plan.loads,
    })
}

pub(super) fn decision_json(decision: &v1::Decision) -> Value {
    json!({
        "plan": decision.number, "at_ms": decision.at_ms, "actor": decision.actor, "principal": decision.principal,
        "reasons": decision.reasons,
        "acknowledged": decision.acknowledged.iter().map(node_json).collect::<Vec<_>>(),
    })
}
