//! The printed JSON is an interface: every name and value of every document, from messages without a default value.

use api::v1;
use serde_json::{Value, json};

use super::super::*;
use crate::output::Output;

fn number() -> Option<v1::PlanNumber> {
    Some(v1::PlanNumber {
        generation: 7,
        epoch: 2,
    })
}

fn number_json() -> Value {
    json!({ "generation": 7, "epoch": 2 })
}

fn reason() -> v1::Reason {
    v1::Reason {
        code: "failover".into(),
        region: "us-east".into(),
        text: "its sessions go to us-west".into(),
        evidence: vec!["asr: 12 % of 400 failed".into()],
        until_ms: 9,
    }
}

fn reason_json() -> Value {
    json!({
        "code": "failover", "region": "us-east", "text": "its sessions go to us-west",
        "evidence": ["asr: 12 % of 400 failed"], "until_ms": 9,
    })
}

fn region() -> v1::RegionStatus {
    let share = |region: &str, percent| v1::Share {
        region: region.into(),
        percent,
    };
    v1::RegionStatus {
        region: "us-east".into(),
        role: "primary".into(),
        health: "down".into(),
        state: "evacuated".into(),
        level: "L1".into(),
        routes: vec![share("us-west", 100)],
        summary: "gateway refused".into(),
        writers: vec!["us-west".into()],
        guests: vec![share("eu-west", 50)],
    }
}

fn region_json() -> Value {
    json!({
        "region": "us-east", "role": "primary", "health": "down", "state": "evacuated", "level": "L1",
        "routes": [{ "region": "us-west", "percent": 100 }], "summary": "gateway refused", "writers": ["us-west"],
        "guests": [{ "region": "eu-west", "percent": 50 }],
    })
}

fn node(kind: v1::NodeKind) -> v1::NodeStatus {
    v1::NodeStatus {
        node: "edge-iad".into(),
        kind: kind.into(),
        acknowledged: number(),
        acknowledged_at_ms: 11,
        refused: "too old".into(),
        connected: true,
        root: "a1b2".into(),
        certificate_until_ms: 99,
        names: Some(v1::NamesReported {
            at_ms: 12,
            answered: 500,
            refused: 3,
            limited: 2,
            failed: 1,
            p50_us: 40,
            p99_us: 900,
        }),
    }
}

fn node_json(kind: &str) -> Value {
    json!({
        "node": "edge-iad", "kind": kind, "acknowledged": number_json(), "acknowledged_at_ms": 11,
        "refused": "too old", "connected": true, "root": "a1b2", "certificate_until_ms": 99,
        "names": {
            "at_ms": 12, "answered": 500, "refused": 3, "limited": 2, "failed": 1, "p50_us": 40, "p99_us": 900,
        },
    })
}

fn action_message() -> v1::Action {
    v1::Action {
        id: "a1".into(),
        kind: "failover".into(),
        subject: "us-east".into(),
        author: "alice".into(),
        reason: "power".into(),
        phase: "running".into(),
        owner: 3,
        created_at_ms: 4,
        changed_at_ms: 5,
        expires_at_ms: 6,
        approved_by: "bob".into(),
        text: "it goes on".into(),
        edges: 2,
        edges_acknowledged: 1,
        spreads: 8,
        shown: "5d41402abc4b2a76".into(),
        effects: vec!["it turns a safety rule off".into()],
    }
}

fn action_json() -> Value {
    json!({
        "id": "a1", "kind": "failover", "subject": "us-east", "author": "alice", "reason": "power", "phase": "running",
        "owner": 3, "created_at_ms": 4, "changed_at_ms": 5, "expires_at_ms": 6, "approved_by": "bob",
        "text": "it goes on", "edges": 2, "edges_acknowledged": 1, "shown": "5d41402abc4b2a76",
        "effects": ["it turns a safety rule off"],
    })
}

fn progress() -> v1::Progress {
    v1::Progress {
        judged_tick_end_ms: 1,
        judged_at_ms: 2,
        decided_at_ms: 3,
        committed: number(),
        committed_at_ms: 4,
        store_took_at_ms: 5,
        published: None,
        published_at_ms: 6,
        nodes: 7,
        nodes_acknowledged: 8,
        edges: 9,
        edges_acknowledged: 10,
        acknowledged_at_ms: 11,
        leaderless_since_ms: 12,
    }
}

fn progress_json() -> Value {
    json!({
        "judged_tick_end_ms": 1, "judged_at_ms": 2, "decided_at_ms": 3, "committed": number_json(),
        "committed_at_ms": 4, "store_took_at_ms": 5, "published": null, "published_at_ms": 6, "nodes": 7,
        "nodes_acknowledged": 8, "edges": 9, "edges_acknowledged": 10, "acknowledged_at_ms": 11,
        "leaderless_since_ms": 12,
    })
}

fn unwritten() -> v1::Unwritten {
    v1::Unwritten {
        since_ms: 3,
        error: "the store is full".into(),
        remedy: "make room".into(),
        pending: vec![reason()],
    }
}

fn unwritten_json() -> Value {
    json!({ "since_ms": 3, "error": "the store is full", "remedy": "make room", "pending": [reason_json()] })
}

fn decision() -> v1::Decision {
    v1::Decision {
        number: number(),
        at_ms: 12,
        actor: "alice".into(),
        reasons: vec![reason()],
        acknowledged: vec![node(v1::NodeKind::Edge)],
        principal: Some(v1::Principal {
            id: "spiffe://z/operator/alice".into(),
            serial: "4f".into(),
            roles: "operator".into(),
            source: "127.0.0.1:4711".into(),
        }),
    }
}

fn decision_json() -> Value {
    json!({
        "plan": number_json(), "at_ms": 12, "actor": "alice", "reasons": [reason_json()],
        "principal": { "id": "spiffe://z/operator/alice", "serial": "4f", "roles": "operator", "source": "127.0.0.1:4711" },
        "acknowledged": [node_json("edge")],
    })
}

fn planned(outcome: v1::Outcome) -> v1::PlanReply {
    v1::PlanReply {
        number: number(),
        changes: true,
        outcome: outcome.into(),
        regions: vec![region()],
        changed: vec![reason()],
        refused: vec![reason()],
        waiting: vec![reason()],
        checks: vec![v1::Check {
            rule: "no-headroom".into(),
            region: "us-east".into(),
            passed: true,
            text: "3 regions".into(),
        }],
        loads: vec![v1::Load {
            region: "us-west".into(),
            resource: "sessions".into(),
            now: 1.5,
            next: 2.0,
            max: 3,
        }],
    }
}

fn planned_json(outcome: &str) -> Value {
    json!({
        "plan": number_json(), "changes": true, "outcome": outcome, "regions": [region_json()],
        "changed": [reason_json()], "refused": [reason_json()], "waiting": [reason_json()],
        "rules": [{ "rule": "no-headroom", "region": "us-east", "passed": true, "text": "3 regions" }],
        "capacity": [{ "region": "us-west", "resource": "sessions", "now": 1.5, "next": 2.0, "max": 3 }],
    })
}

/// Compares a document with the value and the schema number.
fn check(document: &str, mut expected: Value) {
    expected["schema"] = 1.into();
    assert_eq!(document, format!("{expected:#}"));
}

#[test]
fn the_json_of_status() {
    let full = v1::StatusReply {
        number: number(),
        plan_created_at_ms: 1,
        now_ms: 2,
        regions: vec![region()],
        edges: vec![v1::EdgeStatus {
            edge: "edge-iad".into(),
            state: "lost".into(),
            addresses: vec!["127.0.1.1".into()],
            port: 8080,
            heard_at_ms: 3,
            lost_since_ms: 4,
        }],
        nodes: vec![
            node(v1::NodeKind::Edge),
            node(v1::NodeKind::Dns),
            node(v1::NodeKind::Unspecified),
        ],
        stacks: vec![v1::StackStatus {
            stack: "127.0.0.1:9001".into(),
            id: "stack/us-east/a".into(),
            root: "a1b2".into(),
            certificate_until_ms: 99,
            seen_at_ms: 12,
        }],
        waiting: vec![reason()],
        actions: vec![action_message()],
        leader: "control-plane-1".into(),
        epoch: 5,
        rollout: "2.4.0".into(),
        rollout_percent: 6,
        automation: Some(reason()),
        not_leading: "another leads".into(),
        stale_ms: 7,
        answered_by: "control-plane-2".into(),
        progress: Some(progress()),
        unwritten: Some(unwritten()),
        dns: Some(v1::DnsTiming {
            ttl_s: 15,
            pace: "steady".into(),
            lost_edge_bound_ms: 56_000,
        }),
    };
    check(
        &status(&full, Output::Json),
        json!({
            "plan": number_json(), "plan_created_at_ms": 1, "now_ms": 2, "regions": [region_json()],
            "edges": [{
                "edge": "edge-iad", "state": "lost", "addresses": ["127.0.1.1"], "port": 8080, "heard_at_ms": 3,
                "lost_since_ms": 4,
            }],
            "nodes": [node_json("edge"), node_json("dns"), node_json("")],
            "stacks": [{
                "stack": "127.0.0.1:9001", "id": "stack/us-east/a", "root": "a1b2", "certificate_until_ms": 99, "seen_at_ms": 12,
            }],
            "waiting": [reason_json()], "actions": [action_json()], "leader": "control-plane-1",
            "automation": reason_json(), "not_leading": "another leads", "stale_ms": 7,
            "answered_by": "control-plane-2", "progress": progress_json(), "unwritten": unwritten_json(),
            "rollout": { "version": "2.4.0", "percent": 6 },
            "dns": { "ttl_s": 15, "pace": "steady", "lost_edge_bound_ms": 56_000 },
        }),
    );
    let unknown = v1::StatusReply {
        stale_ms: u64::MAX,
        ..Default::default()
    };
    check(
        &status(&unknown, Output::Json),
        json!({
            "plan": null, "plan_created_at_ms": 0, "now_ms": 0, "regions": [], "edges": [], "nodes": [], "stacks": [],
            "waiting": [], "actions": [], "leader": "", "automation": null, "not_leading": "", "stale_ms": null, "answered_by": "",
            "progress": null, "unwritten": null, "rollout": null, "dns": null,
        }),
    );
}

#[test]
fn the_json_of_why() {
    let full = v1::WhyReply {
        region: Some(region()),
        evidence: vec!["tick 1".into()],
        waiting: vec![reason()],
        decisions: vec![decision()],
        not_leading: "another leads".into(),
        stale_ms: 7,
        answered_by: "control-plane-2".into(),
        history_missing: "no answer".into(),
        progress: Some(progress()),
        unwritten: Some(unwritten()),
    };
    check(
        &why(&full, Output::Json),
        json!({
            "region": region_json(), "evidence": ["tick 1"], "waiting": [reason_json()],
            "decisions": [decision_json()], "history_missing": "no answer", "not_leading": "another leads",
            "stale_ms": 7, "answered_by": "control-plane-2", "progress": progress_json(),
            "unwritten": unwritten_json(),
        }),
    );
}

#[test]
fn the_json_of_history_and_of_plans() {
    check(
        &history(&[decision()], Output::Json),
        json!({ "decisions": [decision_json()] }),
    );
    for (outcome, name) in [
        (v1::Outcome::Unspecified, "unknown"),
        (v1::Outcome::Done, "done"),
        (v1::Outcome::Running, "running"),
        (v1::Outcome::AwaitingApproval, "awaiting-approval"),
        (v1::Outcome::Refused, "refused"),
    ] {
        check(&plan(&planned(outcome), Output::Json), planned_json(name));
    }
}

#[test]
fn the_json_of_actions() {
    let reply = v1::ActReply {
        number: number(),
        outcome: v1::Outcome::Done.into(),
        reasons: vec![reason()],
        action: Some(action_message()),
    };
    check(
        &action(&reply, Output::Json),
        json!({
            "outcome": "done", "plan": number_json(), "reasons": [reason_json()], "action": action_json(),
        }),
    );
    check(
        &waited(&action_message(), Output::Json),
        json!({ "action": action_json() }),
    );
}

#[test]
fn the_json_of_documents() {
    let document = v1::Document {
        kind: v1::DocumentKind::Policy.into(),
        text: "# empty".into(),
        version: "ab".into(),
        author: "alice".into(),
        applied_at_ms: 1,
    };
    check(
        &document_in_force(&document, Output::Json),
        json!({ "text": "# empty", "version": "ab", "author": "alice", "applied_at_ms": 1 }),
    );
    let reply = v1::ApplyDocumentReply {
        accepted: true,
        problems: vec!["p.toml:1: no".into()],
        version: "ab".into(),
        plan: Some(planned(v1::Outcome::Done)),
    };
    check(
        &applied(&reply, true, Output::Json),
        json!({
            "accepted": true, "dry_run": true, "version": "ab", "problems": ["p.toml:1: no"],
            "plan": planned_json("done"),
        }),
    );
    check(
        &difference("+ a", &reply, Output::Json),
        json!({
            "difference": "+ a", "accepted": true, "problems": ["p.toml:1: no"], "plan": planned_json("done"),
        }),
    );
}
