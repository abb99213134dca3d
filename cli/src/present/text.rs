//! The parts that several tables share: cells, lists, ages, and warnings above an answer.

use std::fmt::Write as _;

use api::v1;
use comfy_table::{Table, presets};
use topology::Moment;

/// A table without ruled lines, easy to read and to `grep`.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    table
}

/// The table's text without trailing spaces and the margin that the preset adds.
pub(crate) fn plain(table: &Table) -> String {
    let text = table.to_string();
    let lines = text
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end());
    lines.collect::<Vec<_>>().join("\n")
}

pub(super) fn lines(text: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<String> = lines.collect();
    if !lines.is_empty() {
        let _ = writeln!(text, "\n{title}");
        for line in lines {
            let _ = writeln!(text, "  {}", line.trim_end().replace('\n', "\n  "));
        }
    }
}

pub(super) fn reason_line(reason: &v1::Reason) -> String {
    if reason.region.is_empty() {
        format!("{}: {}", reason.code, reason.text)
    } else {
        format!("{} {}: {}", reason.region, reason.code, reason.text)
    }
}

pub(super) fn routes(region: &v1::RegionStatus) -> String {
    let shares: Vec<String> = (region.routes.iter())
        .map(|share| format!("{} {} %", share.region, share.percent))
        .collect();
    shares.join(", ")
}

pub(super) fn node_kind(node: &v1::NodeStatus) -> &'static str {
    match node.kind() {
        v1::NodeKind::Edge => "edge",
        v1::NodeKind::Dns => "dns",
        v1::NodeKind::Unspecified => "",
    }
}

pub(super) fn outcome_name(outcome: v1::Outcome) -> &'static str {
    match outcome {
        v1::Outcome::Unspecified => "unknown",
        v1::Outcome::Done => "done",
        v1::Outcome::Running => "running",
        v1::Outcome::AwaitingApproval => "awaiting-approval",
        v1::Outcome::Refused => "refused",
    }
}

/// Renders the time since `at_ms`.
pub(super) fn ago(at_ms: u64, now_ms: u64) -> String {
    match at_ms {
        0 => "never".to_owned(),
        at_ms => format!("{} ago", span(now_ms.saturating_sub(at_ms))),
    }
}

pub(crate) fn span(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A warning above the answer of a control plane that does not lead; empty for the leader.
pub(super) fn old_news(not_leading: &str, stale_ms: u64, answered_by: &str) -> String {
    if not_leading.is_empty() {
        return String::new();
    }
    let known = match stale_ms {
        u64::MAX => format!("{answered_by} has not heard from the store since it started, so it knows no decisions"),
        stale_ms => format!("this is what {answered_by} knows, from {} ago", span(stale_ms)),
    };
    format!("NOTHING IS DECIDED NOW: {not_leading}\nnodes keep serving their plan; {known}\n\n")
}

/// A warning above everything else while the store takes no decisions; empty otherwise.
pub(super) fn unwritten(unwritten: Option<&v1::Unwritten>, now_ms: u64) -> String {
    let Some(unwritten) = unwritten else {
        return String::new();
    };
    let (since, error, remedy) = (Moment(unwritten.since_ms), &unwritten.error, &unwritten.remedy);
    let mut text = format!(
        "decisions cannot be written since {since:#} UTC ({}): {error}\nnodes keep serving their plan. To do: {remedy}\n",
        ago(unwritten.since_ms, now_ms)
    );
    for reason in &unwritten.pending {
        let _ = writeln!(text, "  decided, and not in force: {}", reason_line(reason));
    }
    text.push('\n');
    text
}
