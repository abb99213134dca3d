mod interface;

use api::v1;
use serde_json::Value;

use super::{
    json::stale_json,
    text::{ago, old_news},
    *,
};
use crate::output::Output;

fn example() -> v1::StatusReply {
    v1::StatusReply {
        number: Some(v1::PlanNumber {
            generation: 7,
            epoch: 1,
        }),
        plan_created_at_ms: 1_000,
        now_ms: 13_000,
        regions: vec![v1::RegionStatus {
            region: "us-east".into(),
            role: "primary".into(),
            health: "down".into(),
            state: "evacuated".into(),
            level: "L0".into(),
            routes: vec![v1::Share {
                region: "us-west".into(),
                percent: 100,
            }],
            summary: "gateway refused".into(),
            ..Default::default()
        }],
        edges: vec![v1::EdgeStatus {
            edge: "edge-iad".into(),
            state: "serving".into(),
            addresses: vec!["127.0.1.1".into(), "::1".into()],
            port: 8080,
            ..Default::default()
        }],
        leader: "control-plane".into(),
        nodes: vec![v1::NodeStatus {
            node: "ns1".into(),
            kind: v1::NodeKind::Dns.into(),
            names: Some(v1::NamesReported {
                at_ms: 11_000,
                answered: 4_200,
                limited: 7,
                p50_us: 35,
                p99_us: 1_204,
                ..Default::default()
            }),
            ..Default::default()
        }],
        dns: Some(v1::DnsTiming {
            ttl_s: 7,
            pace: "changing".into(),
            lost_edge_bound_ms: 48_000,
        }),
        ..Default::default()
    }
}

#[test]
fn a_status_reads_well() {
    let text = status(&example(), Output::Table);
    assert!(
        text.starts_with("plan 7 (epoch 1), made 12 s ago; control-plane leads\n"),
        "{text}"
    );
    assert!(text.contains("us-west 100 %"), "{text}");
    let promise =
        "DNS answers live for at most 7 s, while a change is likely; an edge that dies is in none after 48 s\n";
    assert!(text.contains(promise), "{text}");
    assert!(text.contains("127.0.1.1:8080 [::1]:8080"), "{text}");
    let questions =
        "\nns1 answered 4200 questions in a tick, 2 s ago: half within 0.03 ms, 99 % within 1.20 ms; 7 limited";
    assert!(text.contains(questions), "{text}");
}

#[test]
fn decisions_that_cannot_be_written_come_first_with_what_to_do() {
    let reply = v1::StatusReply {
        unwritten: Some(v1::Unwritten {
            since_ms: 3_000,
            error: "the store is full".into(),
            remedy: "make room".into(),
            pending: vec![v1::Reason {
                code: "failover".into(),
                region: "us-east".into(),
                text: "its sessions go to us-west".into(),
                ..Default::default()
            }],
        }),
        ..example()
    };
    let text = status(&reply, Output::Table);
    assert!(
        text.starts_with(
            "decisions cannot be written since 1970-01-01 00:00:03 UTC (10 s ago): the store is full\n\
             nodes keep serving their plan. To do: make room\n  \
             decided, and not in force: us-east failover: its sessions go to us-west\n"
        ),
        "{text}"
    );
}

#[test]
fn a_store_that_was_never_heard_is_no_age() {
    let text = old_news("no control plane leads", u64::MAX, "control-plane-1");
    assert!(
        text.contains("control-plane-1 has not heard from the store since it started"),
        "{text}"
    );
    assert!(!text.contains("days"), "{text}");
    assert_eq!(stale_json(u64::MAX), Value::Null);
}

#[test]
fn a_check_passed_or_is_blocked_by_its_rule() {
    let check = |rule: &str, passed| v1::Check {
        rule: rule.into(),
        region: "us-east".into(),
        passed,
        text: "3 regions".into(),
    };
    let text = plan(
        &v1::PlanReply {
            checks: vec![check("regions-serving-min", true), check("no-headroom", false)],
            refused: vec![v1::Reason {
                code: "no-headroom".into(),
                region: "us-east".into(),
                text: "its backups are full".into(),
                ..Default::default()
            }],
            ..Default::default()
        },
        Output::Table,
    );
    let row = |rule: &str| text.lines().find(|line| line.starts_with(rule)).unwrap().to_owned();
    assert!(row("regions-serving-min").contains("  passed  "), "{text}");
    assert!(row("no-headroom").contains("  blocked by no-headroom  "), "{text}");
    assert!(
        text.contains("\nblocked by a rule\n  us-east no-headroom: its backups are full\n"),
        "{text}"
    );
    assert!(!text.to_lowercase().contains("refused"), "{text}");
}

#[test]
fn a_history_that_cannot_be_read_is_missing_and_not_empty() {
    let reply = v1::WhyReply {
        region: Some(example().regions[0].clone()),
        history_missing: "the store did not answer within 1.5s".into(),
        ..Default::default()
    };
    let text = why(&reply, Output::Table);
    assert!(
        text.ends_with(
            "\ndecided\n  missing: the history of this region is in the store: the store did not answer within 1.5s\n"
        ),
        "{text}"
    );
    let json: Value = serde_json::from_str(&why(&reply, Output::Json)).unwrap();
    assert_eq!(json["history_missing"], "the store did not answer within 1.5s");
    let known = v1::WhyReply::default();
    let json: Value = serde_json::from_str(&why(&known, Output::Json)).unwrap();
    assert_eq!(json["history_missing"], Value::Null);
}

#[test]
fn json_carries_its_schema() {
    let value: Value = serde_json::from_str(&status(&example(), Output::Json)).unwrap();
    assert_eq!(value["schema"], 1);
    assert_eq!(value["regions"][0]["routes"][0]["percent"], 100);
}

#[test]
fn a_refusal_gives_its_reasons() {
    let reply = v1::ActReply {
        outcome: v1::Outcome::Refused.into(),
        reasons: vec![v1::Reason {
            code: "no-fit-backup".into(),
            region: "us-east".into(),
            text: "no backup of us-east is fit".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    assert_eq!(
        action(&reply, Output::Table),
        "refused\n  us-east no-fit-backup: no backup of us-east is fit"
    );
}

#[test]
fn ages_are_rounded_down_to_a_unit_people_use() {
    let at = 1;
    assert_eq!(ago(0, 5), "never");
    assert_eq!(ago(at, at + 119_999), "119 s ago");
    assert_eq!(ago(at, at + 3_600_000), "60 min ago");
    assert_eq!(ago(at, at + 86_400_000), "24 h ago");
}
