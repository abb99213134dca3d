use std::fmt::Write as _;

use api::v1;
use serde_json::json;
use topology::Moment;

use super::{
    json::{decision_json, document, some_text, stale_json},
    text::{lines, old_news, reason_line, routes, unwritten},
};
use crate::output::Output;

/// Decisions that `why` shows, so that the answer stays on one screen.
const DECISIONS_SHOWN: usize = 6;

/// `meridian why`: the health, evidence and decisions of one region.
pub(crate) fn why(why: &v1::WhyReply, output: Output) -> String {
    let region = why.region.clone().unwrap_or_default();
    if output == Output::Json {
        return document(json!({
            "region": region,
            "evidence": why.evidence,
            "waiting": why.waiting,
            "decisions": why.decisions.iter().map(decision_json).collect::<Vec<_>>(),
            "history_missing": some_text(&why.history_missing),
            "not_leading": why.not_leading,
            "stale_ms": stale_json(why.stale_ms),
            "answered_by": why.answered_by,
            "progress": why.progress,
            "unwritten": why.unwritten,
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
    // The answer fits one screen, so each decision gets one line; `history` shows the evidence too.
    let decided = why.decisions.iter().take(DECISIONS_SHOWN);
    let decided = decided.map(|decision| decision_line(decision, &region.region));
    lines(&mut text, "decided", decided);
    if !why.history_missing.is_empty() {
        let missing = format!(
            "missing: the history of this region is in the store: {}",
            why.history_missing
        );
        lines(&mut text, "decided", std::iter::once(missing));
    }
    if why.decisions.len() > DECISIONS_SHOWN {
        let _ = writeln!(text, "  and earlier ones: `meridian history`");
    }
    text
}

/// One decision in one line, for `why`.
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
