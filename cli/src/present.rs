//! How answers of the control plane are shown: tables for people, JSON with a schema number for programs.

use std::fmt::Write as _;

use api::v1;
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use topology::Moment;

use crate::Output;

/// Version of every JSON document printed here.
const SCHEMA: u32 = 1;

/// The state of everything.
pub(crate) fn status(status: &v1::StatusReply, output: Output) -> String {
    let number = status.number.unwrap_or_default();
    if output == Output::Json {
        return document(json!({
            "plan": number_json(status.number),
            "plan_created_at_ms": status.plan_created_at_ms,
            "now_ms": status.now_ms,
            "regions": status.regions.iter().map(region_json).collect::<Vec<_>>(),
            "edges": status.edges.iter().map(|edge| json!({
                "edge": edge.edge, "state": edge.state, "addresses": edge.addresses, "port": edge.port,
            })).collect::<Vec<_>>(),
            "nodes": status.nodes.iter().map(node_json).collect::<Vec<_>>(),
            "waiting": status.waiting.iter().map(reason_json).collect::<Vec<_>>(),
            "intents": status.intents.iter().map(|intent| json!({
                "id": intent.id, "kind": intent.kind, "region": intent.region, "author": intent.author,
                "reason": intent.reason, "expires_at_ms": intent.expires_at_ms,
            })).collect::<Vec<_>>(),
        }));
    }
    let mut text = String::new();
    let age = ago(status.plan_created_at_ms, status.now_ms);
    let _ = writeln!(
        text,
        "plan {} (epoch {}), made {age}\n",
        number.generation, number.epoch
    );

    let mut regions = table(["REGION", "ROLE", "HEALTH", "STATE", "LEVEL", "SESSIONS GO", "SUMMARY"]);
    for region in &status.regions {
        regions.add_row([
            &region.region,
            &region.role,
            &region.health,
            &region.state,
            &region.level,
            &routes(region),
            &region.summary,
        ]);
    }
    let _ = writeln!(text, "{}\n", plain(&regions));

    let mut edges = table(["EDGE", "DNS", "ADDRESSES"]);
    for edge in &status.edges {
        let addresses: Vec<String> = (edge.addresses.iter())
            .map(|address| socket(address, edge.port))
            .collect();
        edges.add_row([&edge.edge, &edge.state, &addresses.join(" ")]);
    }
    let _ = writeln!(text, "{}\n", plain(&edges));
    let _ = writeln!(text, "{}", nodes(&status.nodes, status.now_ms, number.generation));
    lines(&mut text, "waiting", status.waiting.iter().map(reason_line));
    lines(
        &mut text,
        "asked for",
        status.intents.iter().map(|intent| {
            let left = intent.expires_at_ms.saturating_sub(status.now_ms) / 1000;
            let until = if intent.expires_at_ms == 0 {
                String::new()
            } else {
                format!(", {left} s left")
            };
            let region = if intent.region.is_empty() {
                String::new()
            } else {
                format!(" {}", intent.region)
            };
            format!("{}{region} by {}: {}{until}", intent.kind, intent.author, intent.reason)
        }),
    );
    text
}

/// All about one region.
pub(crate) fn why(why: &v1::WhyReply, output: Output) -> String {
    let region = why.region.clone().unwrap_or_default();
    if output == Output::Json {
        return document(json!({
            "region": region_json(&region),
            "evidence": why.evidence,
            "waiting": why.waiting.iter().map(reason_json).collect::<Vec<_>>(),
            "decisions": why.decisions.iter().map(decision_json).collect::<Vec<_>>(),
        }));
    }
    let mut text = format!(
        "{} ({}): {}, {}, {}\n",
        region.region, region.role, region.health, region.state, region.level
    );
    if !region.summary.is_empty() {
        let _ = writeln!(text, "{}", region.summary);
    }
    if !region.routes.is_empty() {
        let _ = writeln!(text, "sessions go {}", routes(&region));
    }
    lines(&mut text, "waiting", why.waiting.iter().map(reason_line));
    lines(&mut text, "seen", why.evidence.iter().cloned());
    lines(&mut text, "decided", why.decisions.iter().map(decision_lines));
    text
}

/// Decisions, newest first.
pub(crate) fn history(decisions: &[v1::Decision], output: Output) -> String {
    if output == Output::Json {
        return document(json!({ "decisions": decisions.iter().map(decision_json).collect::<Vec<_>>() }));
    }
    if decisions.is_empty() {
        return "nothing was decided yet".to_owned();
    }
    decisions.iter().map(decision_lines).collect::<Vec<_>>().join("\n")
}

/// What became of an action.
pub(crate) fn action(reply: &v1::ActionReply, output: Output) -> String {
    if output == Output::Json {
        return document(json!({
            "accepted": reply.accepted,
            "plan": number_json(reply.number),
            "reasons": reply.reasons.iter().map(reason_json).collect::<Vec<_>>(),
        }));
    }
    let generation = reply.number.unwrap_or_default().generation;
    let mut text = match (reply.accepted, generation) {
        (true, 0) => "accepted".to_owned(),
        (true, generation) => format!("accepted: plan {generation}"),
        (false, _) => "refused".to_owned(),
    };
    for reason in &reply.reasons {
        let _ = write!(text, "\n  {}", reason_line(reason));
        for fact in &reason.evidence {
            let _ = write!(text, "\n    {fact}");
        }
    }
    text
}

/// A table without lines, as people and `grep` like them.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    table
}

/// The table without the spaces around it.
pub(crate) fn plain(table: &Table) -> String {
    let text = table.to_string();
    let lines = text
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end());
    lines.collect::<Vec<_>>().join("\n")
}

fn nodes(nodes: &[v1::NodeStatus], now_ms: u64, newest: u64) -> String {
    let mut shown = table(["NODE", "KIND", "PLAN", "ACKNOWLEDGED", "CONNECTED", "REFUSED"]);
    for node in nodes {
        let have = node.acknowledged.unwrap_or_default().generation;
        let plan = match have {
            0 => "none".to_owned(),
            have if have == newest => have.to_string(),
            have => format!("{have} (old)"),
        };
        shown.add_row([
            node.node.clone(),
            kind(node).to_owned(),
            plan,
            ago(node.acknowledged_at_ms, now_ms),
            if node.connected { "yes" } else { "no" }.to_owned(),
            node.refused.clone(),
        ]);
    }
    plain(&shown)
}

fn lines(text: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<String> = lines.collect();
    if !lines.is_empty() {
        let _ = writeln!(text, "\n{title}");
        for line in lines {
            let _ = writeln!(text, "  {}", line.trim_end().replace('\n', "\n  "));
        }
    }
}

fn decision_lines(decision: &v1::Decision) -> String {
    let number = decision.number.unwrap_or_default();
    let what = match number.generation {
        // A refusal is a decision too.
        0 => "no change".to_owned(),
        generation => format!("plan {generation}"),
    };
    let mut text = format!("{what} at {} UTC by {}", Moment(decision.at_ms), decision.actor);
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

fn reason_line(reason: &v1::Reason) -> String {
    if reason.region.is_empty() {
        format!("{}: {}", reason.code, reason.text)
    } else {
        format!("{} {}: {}", reason.region, reason.code, reason.text)
    }
}

fn routes(region: &v1::RegionStatus) -> String {
    let shares: Vec<String> = (region.routes.iter())
        .map(|share| format!("{} {} %", share.region, share.percent))
        .collect();
    shares.join(", ")
}

fn socket(address: &str, port: u32) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn kind(node: &v1::NodeStatus) -> &'static str {
    match node.kind() {
        v1::NodeKind::Edge => "edge",
        v1::NodeKind::Dns => "dns",
        v1::NodeKind::Unspecified => "",
    }
}

/// How long ago something was.
fn ago(at_ms: u64, now_ms: u64) -> String {
    if at_ms == 0 {
        return "never".to_owned();
    }
    match now_ms.saturating_sub(at_ms) / 1000 {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

/// A JSON document with the schema number.
pub(crate) fn document(mut value: Value) -> String {
    value["schema"] = SCHEMA.into();
    format!("{value:#}")
}

fn number_json(number: Option<v1::PlanNumber>) -> Value {
    match number {
        Some(number) => json!({ "generation": number.generation, "epoch": number.epoch }),
        None => Value::Null,
    }
}

fn region_json(region: &v1::RegionStatus) -> Value {
    json!({
        "region": region.region, "role": region.role, "health": region.health, "state": region.state,
        "level": region.level, "summary": region.summary,
        "routes": region.routes.iter().map(|share| json!({
            "region": share.region, "percent": share.percent,
        })).collect::<Vec<_>>(),
    })
}

fn node_json(node: &v1::NodeStatus) -> Value {
    json!({
        "node": node.node, "kind": kind(node), "acknowledged": number_json(node.acknowledged),
        "acknowledged_at_ms": node.acknowledged_at_ms, "refused": node.refused, "connected": node.connected,
    })
}

fn reason_json(reason: &v1::Reason) -> Value {
    json!({ "code": reason.code, "region": reason.region, "text": reason.text, "evidence": reason.evidence })
}

fn decision_json(decision: &v1::Decision) -> Value {
    json!({
        "plan": number_json(decision.number),
        "at_ms": decision.at_ms,
        "actor": decision.actor,
        "reasons": decision.reasons.iter().map(reason_json).collect::<Vec<_>>(),
        "acknowledged": decision.acknowledged.iter().map(node_json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
            }],
            edges: vec![v1::EdgeStatus {
                edge: "edge-iad".into(),
                state: "serving".into(),
                addresses: vec!["127.0.1.1".into(), "::1".into()],
                port: 8080,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_status_reads_well() {
        let text = status(&example(), Output::Table);
        assert!(text.starts_with("plan 7 (epoch 1), made 12 s ago\n"), "{text}");
        assert!(text.contains("us-west 100 %"), "{text}");
        assert!(text.contains("127.0.1.1:8080 [::1]:8080"), "{text}");
    }

    #[test]
    fn json_carries_its_schema() {
        let value: Value = serde_json::from_str(&status(&example(), Output::Json)).unwrap();
        assert_eq!(value["schema"], 1);
        assert_eq!(value["regions"][0]["routes"][0]["percent"], 100);
    }

    #[test]
    fn a_refusal_gives_its_reasons() {
        let reply = v1::ActionReply {
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
}
