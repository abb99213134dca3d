use std::fmt::Write as _;

use api::v1;
use serde_json::{Value, json};

use super::{
    json::{document, node_json, stale_json},
    text::{ago, lines, node_kind, old_news, plain, reason_line, routes, span, table, unwritten},
};
use crate::output::Output;

/// `meridian status`: the plan, regions, edges, nodes, and open actions.
pub(crate) fn status(status: &v1::StatusReply, output: Output) -> String {
    let number = status.number.unwrap_or_default();
    if output == Output::Json {
        return document(json!({
            "plan": status.number,
            "plan_created_at_ms": status.plan_created_at_ms,
            "now_ms": status.now_ms,
            "regions": status.regions,
            "edges": status.edges,
            "nodes": status.nodes.iter().map(node_json).collect::<Vec<_>>(),
            "stacks": status.stacks,
            "waiting": status.waiting,
            "actions": status.actions,
            "leader": status.leader,
            "automation": status.automation,
            "not_leading": status.not_leading,
            "stale_ms": stale_json(status.stale_ms),
            "answered_by": status.answered_by,
            "progress": status.progress,
            "unwritten": status.unwritten,
            "dns": status.dns,
            "rollout": if status.rollout.is_empty() { Value::Null } else {
                json!({ "version": status.rollout, "percent": status.rollout_percent })
            },
        }));
    }
    let mut text = unwritten(status.unwritten.as_ref(), status.now_ms);
    text += &old_news(&status.not_leading, status.stale_ms, &status.answered_by);
    let age = ago(status.plan_created_at_ms, status.now_ms);
    let leads = match status.leader.as_str() {
        "" => "nobody leads".to_owned(),
        leader => format!("{leader} leads"),
    };
    let _ = writeln!(
        text,
        "plan {} (epoch {}), made {age}; {leads}",
        number.generation, number.epoch
    );
    if let Some(progress) = &status.progress {
        let _ = writeln!(text, "{}", progress_line(progress, status.now_ms));
    }
    text.push('\n');
    if let Some(stopped) = &status.automation {
        let _ = writeln!(text, "AUTOMATION IS STOPPED: {}\n", stopped.text);
    }
    if !status.rollout.is_empty() {
        let _ = writeln!(
            text,
            "version {} is rolled out to {} % of users\n",
            status.rollout, status.rollout_percent
        );
    }

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

    let mut edges = table(["EDGE", "DNS", "HEARD", "ADDRESSES"]);
    for edge in &status.edges {
        let addresses: Vec<String> = (edge.addresses.iter())
            .map(|address| socket(address, edge.port))
            .collect();
        let heard = ago(edge.heard_at_ms, status.now_ms);
        edges.add_row([&edge.edge, &edge.state, &heard, &addresses.join(" ")]);
    }
    let _ = writeln!(text, "{}", plain(&edges));
    if let Some(dns) = &status.dns {
        let _ = writeln!(text, "{}", dns_line(dns));
    }
    text.push('\n');
    let _ = writeln!(text, "{}", nodes(&status.nodes, status.now_ms, number.generation));
    lines(&mut text, "waiting", status.waiting.iter().map(reason_line));
    if !status.actions.is_empty() {
        let mut actions = table(["ACTION", "WHAT", "PHASE", "BY", "ENDS", "RESULT SO FAR"]);
        for action in &status.actions {
            let ends = match action.expires_at_ms {
                0 => String::new(),
                at => format!("in {}", span(at.saturating_sub(status.now_ms))),
            };
            actions.add_row([
                &action.id,
                &format!("{} {}", action.kind, action.subject),
                &action.phase,
                &action.author,
                &ends,
                &action.text,
            ]);
        }
        let _ = writeln!(text, "\n{}", plain(&actions));
    }
    text
}

/// The promise of DNS about an edge that dies.
fn dns_line(dns: &v1::DnsTiming) -> String {
    let because = match dns.pace.as_str() {
        "changing" => ", while a change is likely",
        _ => "",
    };
    format!(
        "DNS answers live for at most {} s{because}; an edge that dies is in none after {}",
        dns.ttl_s,
        span(dns.lost_edge_bound_ms)
    )
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
            node_kind(node).to_owned(),
            plan,
            ago(node.acknowledged_at_ms, now_ms),
            if node.connected { "yes" } else { "no" }.to_owned(),
            node.refused.clone(),
        ]);
    }
    let names: String = nodes.iter().filter_map(|node| names_line(node, now_ms)).collect();
    plain(&shown) + &names
}

/// The newest report of a name server.
fn names_line(node: &v1::NodeStatus, now_ms: u64) -> Option<String> {
    let names = node.names.as_ref()?;
    let milliseconds = |us: u64| format!("{}.{:02} ms", us / 1000, us % 1000 / 10);
    let mut text = format!(
        "\n{} answered {} questions in a tick, {}",
        node.node,
        names.answered,
        ago(names.at_ms, now_ms)
    );
    if names.answered > 0 {
        let _ = write!(
            text,
            ": half within {}, 99 % within {}",
            milliseconds(names.p50_us),
            milliseconds(names.p99_us)
        );
    }
    for (count, what) in [
        (names.refused, "refused"),
        (names.limited, "limited"),
        (names.failed, "not sent"),
    ] {
        if count > 0 {
            let _ = write!(text, "; {count} {what}");
        }
    }
    Some(text)
}

/// The steps of a decision, from the judged tick to the nodes, each with its age.
fn progress_line(progress: &v1::Progress, now_ms: u64) -> String {
    let ago = |at_ms| ago(at_ms, now_ms);
    let plan = |number: Option<v1::PlanNumber>| match number {
        Some(number) => format!("plan {}", number.generation),
        None => "no plan".to_owned(),
    };
    let mut steps = vec![format!(
        "judged the tick that ended {}",
        ago(progress.judged_tick_end_ms)
    )];
    if progress.decided_at_ms > 0 {
        steps.push(format!("decided {}", ago(progress.decided_at_ms)));
    }
    steps.push(format!(
        "{} committed {}",
        plan(progress.committed),
        ago(progress.committed_at_ms)
    ));
    steps.push(format!(
        "{} published {}",
        plan(progress.published),
        ago(progress.published_at_ms)
    ));
    steps.push(format!(
        "acknowledged by {} of {} nodes",
        progress.nodes_acknowledged, progress.nodes
    ));
    steps.join(", ")
}

fn socket(address: &str, port: u32) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}
