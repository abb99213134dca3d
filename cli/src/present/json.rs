//! The JSON documents, each with a schema number.

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

pub(super) fn progress_json(progress: &v1::Progress) -> Value {
    json!({
        "judged_tick_end_ms": progress.judged_tick_end_ms, "judged_at_ms": progress.judged_at_ms,
        "decided_at_ms": progress.decided_at_ms, "committed": number_json(progress.committed),
        "committed_at_ms": progress.committed_at_ms, "store_took_at_ms": progress.store_took_at_ms,
        "published": number_json(progress.published), "published_at_ms": progress.published_at_ms,
        "nodes": progress.nodes, "nodes_acknowledged": progress.nodes_acknowledged,
        "edges": progress.edges, "edges_acknowledged": progress.edges_acknowledged,
        "acknowledged_at_ms": progress.acknowledged_at_ms, "leaderless_since_ms": progress.leaderless_since_ms,
    })
}

pub(super) fn unwritten_json(unwritten: &v1::Unwritten) -> Value {
    json!({
        "since_ms": unwritten.since_ms, "error": unwritten.error, "remedy": unwritten.remedy,
        "pending": unwritten.pending.iter().map(reason_json).collect::<Vec<_>>(),
    })
}

pub(super) fn number_json(number: Option<v1::PlanNumber>) -> Value {
    match number {
        Some(number) => json!({ "generation": number.generation, "epoch": number.epoch }),
        None => Value::Null,
    }
}

pub(super) fn region_json(region: &v1::RegionStatus) -> Value {
    json!({
        "region": region.region, "role": region.role, "health": region.health, "state": region.state,
        "level": region.level, "summary": region.summary, "writers": region.writers,
        "guests": region.guests.iter().map(|share| json!({
            "region": share.region, "percent": share.percent,
        })).collect::<Vec<_>>(),
        "routes": region.routes.iter().map(|share| json!({
            "region": share.region, "percent": share.percent,
        })).collect::<Vec<_>>(),
    })
}

pub(super) fn node_json(node: &v1::NodeStatus) -> Value {
    json!({
        "node": node.node, "kind": node_kind(node), "acknowledged": number_json(node.acknowledged),
        "acknowledged_at_ms": node.acknowledged_at_ms, "refused": node.refused, "connected": node.connected,
    })
}

pub(super) fn reason_json(reason: &v1::Reason) -> Value {
    json!({
        "code": reason.code, "region": reason.region, "text": reason.text, "evidence": reason.evidence,
        "until_ms": reason.until_ms,
    })
}

pub(super) fn action_json(action: &v1::Action) -> Value {
    json!({
        "id": action.id, "kind": action.kind, "subject": action.subject, "author": action.author,
        "reason": action.reason, "phase": action.phase, "owner": action.owner, "created_at_ms": action.created_at_ms,
        "changed_at_ms": action.changed_at_ms, "expires_at_ms": action.expires_at_ms,
        "approved_by": action.approved_by, "text": action.text,
        "edges": action.edges, "edges_acknowledged": action.edges_acknowledged,
    })
}

pub(super) fn plan_json(plan: &v1::PlanReply) -> Value {
    let reasons = |reasons: &[v1::Reason]| reasons.iter().map(reason_json).collect::<Vec<_>>();
    json!({
        "plan": number_json(plan.number),
        "changes": plan.changes,
        "outcome": outcome_name(plan.outcome()),
        "regions": plan.regions.iter().map(region_json).collect::<Vec<_>>(),
        "changed": reasons(&plan.changed),
        "refused": reasons(&plan.refused),
        "waiting": reasons(&plan.waiting),
        "rules": plan.checks.iter().map(|check| json!({
            "rule": check.rule, "region": check.region, "passed": check.passed, "text": check.text,
        })).collect::<Vec<_>>(),
        "capacity": plan.loads.iter().map(|load| json!({
            "region": load.region, "resource": load.resource, "now": load.now, "next": load.next, "max": load.max,
        })).collect::<Vec<_>>(),
    })
}

pub(super) fn decision_json(decision: &v1::Decision) -> Value {
    json!({
        "plan": number_json(decision.number),
        "at_ms": decision.at_ms,
        "actor": decision.actor,
        "reasons": decision.reasons.iter().map(reason_json).collect::<Vec<_>>(),
        "acknowledged": decision.acknowledged.iter().map(node_json).collect::<Vec<_>>(),
    })
}
