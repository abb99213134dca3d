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
                "heard_at_ms": edge.heard_at_ms, "lost_since_ms": edge.lost_since_ms,
            })).collect::<Vec<_>>(),
            "nodes": status.nodes.iter().map(node_json).collect::<Vec<_>>(),
            "waiting": status.waiting.iter().map(reason_json).collect::<Vec<_>>(),
            "actions": status.actions.iter().map(action_json).collect::<Vec<_>>(),
            "leader": status.leader,
            "automation": status.automation.as_ref().map(reason_json),
            "not_leading": status.not_leading,
            "stale_ms": stale_json(status.stale_ms),
            "answered_by": status.answered_by,
            "progress": status.progress.as_ref().map(progress_json),
            "unwritten": status.unwritten.as_ref().map(unwritten_json),
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
    let _ = writeln!(text, "{}\n", plain(&edges));
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

/// All about one region.
pub(crate) fn why(why: &v1::WhyReply, output: Output) -> String {
    let region = why.region.clone().unwrap_or_default();
    if output == Output::Json {
        return document(json!({
            "region": region_json(&region),
            "evidence": why.evidence,
            "waiting": why.waiting.iter().map(reason_json).collect::<Vec<_>>(),
            "decisions": why.decisions.iter().map(decision_json).collect::<Vec<_>>(),
            "not_leading": why.not_leading,
            "stale_ms": stale_json(why.stale_ms),
            "answered_by": why.answered_by,
            "progress": why.progress.as_ref().map(progress_json),
            "unwritten": why.unwritten.as_ref().map(unwritten_json),
        }));
    }
    let now_ms = daemon::clock::now().0;
    let mut text = unwritten(why.unwritten.as_ref(), now_ms);
    text += &old_news(&why.not_leading, why.stale_ms, &why.answered_by);
    let _ = writeln!(
        text,
        "{} ({}): {}, {}, {}",
        region.region, region.role, region.health, region.state, region.level
    );
    if !region.summary.is_empty() {
        let _ = writeln!(text, "{}", region.summary);
    }
    if !region.routes.is_empty() {
        let _ = writeln!(text, "sessions go {}", routes(&region));
    }
    if !region.guests.is_empty() {
        let guests = region
            .guests
            .iter()
            .map(|share| format!("{} % of {}'s sessions", share.percent, share.region));
        let _ = writeln!(text, "it takes {}", guests.collect::<Vec<_>>().join(", "));
    }
    if !region.writers.is_empty() {
        let _ = writeln!(text, "{} writes its replicated data", region.writers.join(" and "));
    }
    lines(&mut text, "waiting", why.waiting.iter().map(reason_line));
    lines(&mut text, "seen", why.evidence.iter().cloned());
    // One screen: each decision in a line; `history` has all that they were made from.
    let decided = why.decisions.iter().take(DECISIONS_SHOWN);
    let decided = decided.map(|decision| decision_line(decision, &region.region));
    lines(&mut text, "decided", decided);
    if why.decisions.len() > DECISIONS_SHOWN {
        let _ = writeln!(text, "  and earlier ones: `meridian history`");
    }
    text
}

/// What is put above the answer of a control plane that does not lead.
fn old_news(not_leading: &str, stale_ms: u64, answered_by: &str) -> String {
    if not_leading.is_empty() {
        return String::new();
    }
    let known = match stale_ms {
        u64::MAX => format!("{answered_by} has not heard from the store since it started, so it knows no decisions"),
        stale_ms => format!("this is what {answered_by} knows, from {} ago", span(stale_ms)),
    };
    format!("NOTHING IS DECIDED NOW: {not_leading}\nnodes go on with the plan they have; {known}\n\n")
}

/// What is put above everything else while decisions cannot be written.
fn unwritten(unwritten: Option<&v1::Unwritten>, now_ms: u64) -> String {
    let Some(unwritten) = unwritten else {
        return String::new();
    };
    let (since, error, remedy) = (Moment(unwritten.since_ms), &unwritten.error, &unwritten.remedy);
    let mut text = format!(
        "decisions cannot be written since {since:#} UTC ({}): {error}\nnodes keep the plan they have. To do: {remedy}\n",
        ago(unwritten.since_ms, now_ms)
    );
    for reason in &unwritten.pending {
        let _ = writeln!(text, "  decided, and not in force: {}", reason_line(reason));
    }
    text.push('\n');
    text
}

/// Each step from what was seen to what nodes do, with its age.
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

/// Decisions about a region that are shown at once.
const DECISIONS_SHOWN: usize = 6;

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

/// What became of a request.
pub(crate) fn action(reply: &v1::ActReply, output: Output) -> String {
    let outcome = outcome_name(reply.outcome());
    if output == Output::Json {
        return document(json!({
            "outcome": outcome,
            "plan": number_json(reply.number),
            "reasons": reply.reasons.iter().map(reason_json).collect::<Vec<_>>(),
            "action": reply.action.as_ref().map(action_json),
        }));
    }
    let generation = reply.number.unwrap_or_default().generation;
    let mut text = match &reply.action {
        Some(action) => format!("{outcome}: action {}, plan {generation}", action.id),
        None => outcome.to_owned(),
    };
    for reason in &reply.reasons {
        let _ = write!(text, "\n  {}", reason_line(reason));
        // What was asked for needs no proof; why it was refused does.
        let refused = reply.outcome() == v1::Outcome::Refused;
        for fact in reason.evidence.iter().filter(|_| refused) {
            let _ = write!(text, "\n    {fact}");
        }
    }
    text
}

/// An action that was waited for.
pub(crate) fn waited(action: &v1::Action, output: Output) -> String {
    match output {
        Output::Json => document(json!({ "action": action_json(action) })),
        Output::Table => format!("{} {} {}: {}", action.kind, action.subject, action.phase, action.text),
    }
}

/// What would be decided.
pub(crate) fn plan(plan: &v1::PlanReply, output: Output) -> String {
    if output == Output::Json {
        return document(plan_json(plan));
    }
    let mut text = String::new();
    let generation = plan.number.unwrap_or_default().generation;
    let _ = match (plan.outcome(), plan.changes) {
        (_, true) => writeln!(text, "plan {} would follow plan {generation}", generation + 1),
        (v1::Outcome::AwaitingApproval, _) => {
            writeln!(text, "it would wait for a second person; plan {generation} stays")
        }
        (_, false) => writeln!(text, "plan {generation} stays"),
    };
    for (title, reasons) in [
        ("changes", &plan.changed),
        ("refused", &plan.refused),
        ("waiting", &plan.waiting),
    ] {
        lines(&mut text, title, reasons.iter().map(reason_line));
    }
    let mut regions = table(["REGION", "HEALTH", "STATE", "LEVEL", "SESSIONS GO"]);
    for region in &plan.regions {
        regions.add_row([
            &region.region,
            &region.health,
            &region.state,
            &region.level,
            &routes(region),
        ]);
    }
    let _ = writeln!(text, "\n{}", plain(&regions));
    let mut capacity = table(["REGION", "RESOURCE", "NOW", "THEN", "MAX", "LEFT"]);
    for load in &plan.loads {
        let left = f64::from(load.max) - load.next;
        let number = |sessions: f64| format!("{sessions:.0}");
        capacity.add_row([
            load.region.clone(),
            load.resource.clone(),
            number(load.now),
            number(load.next),
            load.max.to_string(),
            number(left),
        ]);
    }
    for column in 2..6 {
        if let Some(column) = capacity.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    let _ = writeln!(text, "\n{}", plain(&capacity));
    if !plan.checks.is_empty() {
        let mut rules = table(["RULE", "REGION", "SAYS", "BECAUSE"]);
        for check in &plan.checks {
            let says = if check.passed { "passed" } else { "REFUSED" };
            rules.add_row([check.rule.as_str(), &check.region, says, &check.text]);
        }
        let _ = writeln!(text, "\n{}", plain(&rules));
    }
    text
}

/// A document that is in force.
pub(crate) fn document_in_force(it: &v1::Document, output: Output) -> String {
    match output {
        Output::Json => document(json!({
            "text": it.text, "version": it.version, "author": it.author, "applied_at_ms": it.applied_at_ms,
        })),
        // As it was written, so that it can be changed and applied again.
        Output::Table => it.text.clone(),
    }
}

/// In what a file differs, and what would come of it.
pub(crate) fn difference(difference: &str, tried: &v1::ApplyDocumentReply, output: Output) -> String {
    let planned = tried.plan.clone().unwrap_or_default();
    match output {
        Output::Json => document(json!({
            "difference": difference, "accepted": tried.accepted, "problems": tried.problems, "plan": plan_json(&planned),
        })),
        Output::Table => format!("{difference}\n{}", applied(tried, true, output)),
    }
}

/// What came of a document.
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

fn outcome_name(outcome: v1::Outcome) -> &'static str {
    match outcome {
        v1::Outcome::Unspecified => "unknown",
        v1::Outcome::Done => "done",
        v1::Outcome::Running => "running",
        v1::Outcome::AwaitingApproval => "awaiting-approval",
        v1::Outcome::Refused => "refused",
    }
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
    let mut text = format!("{what} at {:#} UTC by {}", Moment(decision.at_ms), decision.actor);
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

/// A decision in one line, for those that are history.
fn decision_line(decision: &v1::Decision, region: &str) -> String {
    let about = decision.reasons.iter().filter(|reason| reason.region == region);
    let said: Vec<String> = about
        .map(|reason| format!("{}: {}", reason.code, reason.text))
        .collect();
    let plan = match decision.number.unwrap_or_default().generation {
        0 => "no change".to_owned(),
        generation => format!("plan {generation}"),
    };
    format!(
        "{plan} at {:#} UTC by {}: {}",
        Moment(decision.at_ms),
        decision.actor,
        said.join("; ")
    )
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
    match at_ms {
        0 => "never".to_owned(),
        at_ms => format!("{} ago", span(now_ms.saturating_sub(at_ms))),
    }
}

fn span(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A JSON document with the schema number.
pub(crate) fn document(mut value: Value) -> String {
    value["schema"] = SCHEMA.into();
    format!("{value:#}")
}

/// How old a copy is; nothing when there never was one.
fn stale_json(stale_ms: u64) -> Value {
    if stale_ms == u64::MAX {
        Value::Null
    } else {
        stale_ms.into()
    }
}

fn progress_json(progress: &v1::Progress) -> Value {
    json!({
        "judged_tick_end_ms": progress.judged_tick_end_ms, "judged_at_ms": progress.judged_at_ms,
        "decided_at_ms": progress.decided_at_ms, "committed": number_json(progress.committed),
        "committed_at_ms": progress.committed_at_ms, "store_took_at_ms": progress.store_took_at_ms,
        "published": number_json(progress.published), "published_at_ms": progress.published_at_ms,
        "nodes": progress.nodes, "nodes_acknowledged": progress.nodes_acknowledged,
        "edges": progress.edges, "edges_acknowledged": progress.edges_acknowledged,
        "acknowledged_at_ms": progress.acknowledged_at_ms,
    })
}

fn unwritten_json(unwritten: &v1::Unwritten) -> Value {
    json!({
        "since_ms": unwritten.since_ms, "error": unwritten.error, "remedy": unwritten.remedy,
        "pending": unwritten.pending.iter().map(reason_json).collect::<Vec<_>>(),
    })
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
        "level": region.level, "summary": region.summary, "writers": region.writers,
        "guests": region.guests.iter().map(|share| json!({
            "region": share.region, "percent": share.percent,
        })).collect::<Vec<_>>(),
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
    json!({
        "code": reason.code, "region": reason.region, "text": reason.text, "evidence": reason.evidence,
        "until_ms": reason.until_ms,
    })
}

fn action_json(action: &v1::Action) -> Value {
    json!({
        "id": action.id, "kind": action.kind, "subject": action.subject, "author": action.author,
        "reason": action.reason, "phase": action.phase, "owner": action.owner, "created_at_ms": action.created_at_ms,
        "changed_at_ms": action.changed_at_ms, "expires_at_ms": action.expires_at_ms,
        "approved_by": action.approved_by, "text": action.text,
        "edges": action.edges, "edges_acknowledged": action.edges_acknowledged,
    })
}

fn plan_json(plan: &v1::PlanReply) -> Value {
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
        assert!(text.contains("127.0.1.1:8080 [::1]:8080"), "{text}");
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
                 nodes keep the plan they have. To do: make room\n  \
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
}
