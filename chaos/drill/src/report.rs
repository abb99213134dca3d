//! The report of a drill: a table for people, Markdown with a picture, JSON for programs.

use std::{fmt::Write as _, path::Path};

use anyhow::Context as _;
use api::v1;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use topology::Moment;

use crate::{fleet::TurnRecord, mark::Mark, texts, timeline};

/// Schema number of report.json.
pub const REPORT_SCHEMA: u32 = 2;

/// The results of a drill. Fields that end in `_s` are seconds since the kill unless they say otherwise.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// Whether every check passed.
    pub passed: bool,
    /// Time of the beginning.
    pub began_at_ms: Moment,
    /// Duration of the drill in seconds.
    pub took_s: f64,
    /// Seconds from the beginning until every process took work.
    pub started_s: f64,
    /// Seconds from the beginning until the control plane reported every region healthy.
    pub healthy_s: f64,
    /// The region that was killed.
    pub region: String,
    /// Callers who talked throughout.
    pub sessions: usize,
    /// Number of these callers whose region was lost.
    pub sessions_interrupted: usize,
    /// Number of those lost within a turn.
    pub sessions_interrupted_in_turn: usize,
    /// Number of the interrupted whose session moved to another region and stayed connected.
    pub sessions_moved: usize,
    /// Number of the interrupted whose connection was lost and who called again.
    pub sessions_reconnected: usize,
    /// Turns that were answered.
    pub turns_completed: usize,
    /// Turns without an answer at the caller's deadline.
    pub turns_failed: usize,
    /// Answered turns with the right intent.
    pub turns_understood: usize,
    /// Median over the answered turns, from the end of the speech to the first audio of the reply, in milliseconds.
    pub turn_p50_ms: f64,
    /// The 99th percentile of the same.
    pub turn_p99_ms: f64,
    /// The longest time in seconds that an interrupted caller was without a session: from the loss, or from the
    /// beginning of the next turn if it was lost between two.
    pub reconnect_max_s: f64,
    /// Until the last new session that failed or opened in the dead region; every later one opened elsewhere.
    pub new_sessions_elsewhere_s: f64,
    /// Until the control plane judged the region down.
    pub detect_s: f64,
    /// Until the control plane decided to move the region's sessions.
    pub decide_s: f64,
    /// Until every edge and name server had acknowledged the new plan.
    pub publish_s: f64,
    /// Until all new sessions went elsewhere by plan on every edge.
    pub failover_s: f64,
    /// Share of the new sessions after the plan was published that opened elsewhere.
    pub new_sessions_elsewhere_share: f64,
    /// Number of new sessions tried from the kill to the begin of the restore.
    pub new_sessions: usize,
    /// Number of these that failed.
    pub new_sessions_failed: usize,
    /// Seconds from the operator's command until the region had all its sessions back.
    pub restore_s: f64,
    /// Every plan of the drill, oldest first.
    pub generations: Vec<Generation>,
    /// The recorded calls placed before the kill.
    pub calls: Vec<CallLine>,
    /// The expectations, with findings.
    pub checks: Vec<Check>,
    /// The events of the drill.
    pub marks: Vec<Mark>,
    /// Every turn of the callers.
    pub turns: Vec<TurnRecord>,
    /// The narrator's text.
    #[serde(skip)]
    pub story: String,
}

/// A plan and its reasons.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generation {
    /// Generation of the plan that it made.
    pub generation: u64,
    /// Time of the decision.
    pub at_ms: Moment,
    /// Seconds since the kill; negative before it.
    pub since_kill_s: f64,
    /// The author: the planner or a person.
    pub actor: String,
    /// The reasons of the decision.
    pub reasons: Vec<WhyLine>,
}

/// A reason of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WhyLine {
    /// Code of the reason, such as `failover`.
    pub code: String,
    /// The region that it is about.
    pub region: String,
    /// The text for people.
    pub text: String,
    /// The facts behind it.
    pub evidence: Vec<String>,
}

/// One recorded call.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CallLine {
    /// Name of the WAV file, without its folder.
    pub file: String,
    /// The words of the recording.
    pub words: String,
    /// The transcript of the stack.
    pub transcript: String,
    /// The intent that the stack found.
    pub intent: String,
    /// Whether it is the right intent.
    pub understood: bool,
    /// Text of the reply.
    pub reply: String,
    /// The region that answered.
    pub region: String,
    /// From the end of the speech to the first audio of the reply.
    pub first_audio_ms: Option<f64>,
    /// Duration of speech recognition, as the stack measured it.
    pub asr_ms: Option<f64>,
    /// Duration of understanding.
    pub nlu_ms: Option<f64>,
    /// Duration of the skill.
    pub skill_ms: Option<f64>,
    /// Duration of speech synthesis.
    pub tts_ms: Option<f64>,
    /// The error; empty if the call was answered.
    pub failure: String,
}

/// An expectation and the finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The expectation in words.
    pub expected: String,
    /// The finding in words.
    pub found: String,
    /// Whether the expectation was met.
    pub passed: bool,
}

impl Generation {
    /// Reads a decision of the control plane's history.
    pub fn new(decision: &v1::Decision, killed_at: Moment) -> Self {
        let at_ms = Moment(decision.at_ms);
        Self {
            generation: decision.number.unwrap_or_default().generation,
            at_ms,
            since_kill_s: (decision.at_ms as f64 - killed_at.0 as f64) / 1000.0,
            actor: decision.actor.clone(),
            reasons: (decision.reasons.iter())
                .map(|reason| WhyLine {
                    code: reason.code.clone(),
                    region: reason.region.clone(),
                    text: reason.text.clone(),
                    evidence: reason.evidence.clone(),
                })
                .collect(),
        }
    }
}

/// The value that a share `q` of `values` does not exceed (nearest rank); 0 if there are none.
pub fn percentile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (q * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied().unwrap_or_default()
}

impl Report {
    /// The numbers as a table for a terminal.
    pub fn table(&self) -> String {
        let mut table = self.numbers();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        format!("{table}\n\n{}", self.verdict())
    }

    /// One line per check, and the conclusion.
    fn verdict(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let mark = if check.passed { "passed" } else { "FAILED" };
            let _ = writeln!(text, "{mark}  {}: {}", check.expected, check.found);
        }
        let failed = self.checks.iter().filter(|check| !check.passed).count();
        match failed {
            0 => text.push_str("The story passed."),
            failed => {
                let _ = write!(
                    text,
                    "The story did not pass: {failed} of {} expectations are not met.",
                    self.checks.len()
                );
            }
        }
        text
    }

    fn numbers(&self) -> Table {
        let seconds = |value: f64| format!("{value:.1} s");
        let mut table = Table::new();
        table.set_header(["", "measured", "meaning"]);
        let rows: [(&str, String, &str); 16] = [
            ("region killed", self.region.clone(), "kill -9 in the middle of calls"),
            ("sessions", self.sessions.to_string(), "callers who talk all the while"),
            (
                "sessions interrupted",
                format!(
                    "{} ({} in a turn)",
                    self.sessions_interrupted, self.sessions_interrupted_in_turn
                ),
                "lost their region",
            ),
            (
                "sessions moved",
                self.sessions_moved.to_string(),
                "went on in another region, and stayed connected",
            ),
            (
                "sessions reconnected",
                self.sessions_reconnected.to_string(),
                "lost their connection, and called again",
            ),
            ("turns completed", self.turns_completed.to_string(), "answered"),
            ("turns failed", self.turns_failed.to_string(), "never answered"),
            (
                "turns understood",
                self.turns_understood.to_string(),
                "with the right intent",
            ),
            (
                "turn latency P50 / P99",
                format!("{:.0} / {:.0} ms", self.turn_p50_ms, self.turn_p99_ms),
                "last word to first audio of the reply",
            ),
            (
                "reconnect, longest",
                format!("{:.2} s", self.reconnect_max_s),
                "cut off (or wanting to speak) to the next session",
            ),
            (
                "new sessions elsewhere",
                seconds(self.new_sessions_elsewhere_s),
                "kill to the last failed or misrouted new session",
            ),
            ("detect", seconds(self.detect_s), "kill to the verdict \"down\""),
            ("decide", seconds(self.decide_s), "kill to the new plan"),
            (
                "publish",
                seconds(self.publish_s),
                "kill to the last acknowledgement of it",
            ),
            (
                "failover",
                seconds(self.failover_s),
                "kill to all new sessions elsewhere by plan",
            ),
            ("restore", seconds(self.restore_s), "command to 100 % of its sessions"),
        ];
        for (name, value, meaning) in rows {
            table.add_row([name, &value, meaning]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// The report as Markdown. It refers to `timeline.svg` in the same folder.
    pub fn markdown(&self) -> String {
        let mut numbers = self.numbers();
        numbers.load_preset(presets::ASCII_MARKDOWN);
        let mut text = format!(
            "# One machine, six regions: a region dies under real speech\n\n{numbers}\n\n```text\n{}\n```\n\n",
            self.verdict()
        );
        text.push_str("![Each caller's turns, coloured by the region that answered](timeline.svg)\n\n");
        text.push_str("## What happened when\n\n```text\n");
        text.push_str(&self.bar());
        text.push_str("```\n\n## Plans\n\n");
        let mut plans = Table::new();
        plans.load_preset(presets::ASCII_MARKDOWN);
        plans.set_header(["generation", "since the kill", "by", "why"]);
        for generation in &self.generations {
            let why: Vec<String> = (generation.reasons.iter())
                .map(|reason| format!("{}: {}", reason.code, reason.text))
                .collect();
            plans.add_row([
                generation.generation.to_string(),
                format!("{:+.1} s", generation.since_kill_s),
                generation.actor.clone(),
                why.join("; "),
            ]);
        }
        let _ = writeln!(text, "{plans}\n");
        for generation in &self.generations {
            for reason in &generation.reasons {
                // Evidence of a restore step only says that the region is healthy, so it is left out.
                if !reason.evidence.is_empty() && !reason.code.starts_with("restore") {
                    let _ = writeln!(
                        text,
                        "Evidence for generation {} ({}):\n",
                        generation.generation, reason.code
                    );
                    for fact in &reason.evidence {
                        let _ = writeln!(text, "- {fact}");
                    }
                    text.push('\n');
                }
            }
        }
        text.push_str("## Recorded calls\n\n");
        let mut calls = Table::new();
        calls.load_preset(presets::ASCII_MARKDOWN);
        calls.set_header([
            "file",
            "heard",
            "intent",
            "reply",
            "region",
            "first audio",
            "asr",
            "tts",
        ]);
        for call in &self.calls {
            let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} ms"));
            let heard = if call.failure.is_empty() {
                &call.transcript
            } else {
                &call.failure
            };
            calls.add_row([
                call.file.clone(),
                heard.clone(),
                format!("{}{}", call.intent, if call.understood { "" } else { " (wrong)" }),
                call.reply.clone(),
                call.region.clone(),
                ms(call.first_audio_ms),
                ms(call.asr_ms),
                ms(call.tts_ms),
            ]);
        }
        let _ = writeln!(text, "{calls}\n\n## The story\n\n```text\n{}\n```", self.story);
        text
    }

    /// The marks on a line of characters.
    fn bar(&self) -> String {
        const WIDTH: usize = 60;
        let (Some(first), Some(last)) = (self.marks.first(), self.marks.last()) else {
            return String::new();
        };
        let span = last.at_ms.since(first.at_ms).as_secs_f64().max(0.001);
        let mut text = String::new();
        for mark in &self.marks {
            let since = mark.at_ms.since(first.at_ms).as_secs_f64();
            let filled = (since / span * WIDTH as f64).round() as usize;
            let _ = writeln!(
                text,
                "{since:>6.1} s  {:<width$}  {}",
                format!("{}●", "─".repeat(filled)),
                mark.text,
                width = WIDTH + 1
            );
        }
        text
    }

    /// Writes report.json, report.md and timeline.svg into a folder.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| texts::cannot_write(&path))
        };
        let ended = self.turns.iter().map(|turn| turn.ended_at_ms).max();
        let began = self.turns.iter().map(|turn| turn.started_at_ms).min();
        let picture = timeline::svg(
            &self.turns,
            &self.marks,
            began.unwrap_or(self.began_at_ms),
            ended.unwrap_or(self.began_at_ms),
        );
        write("timeline.svg", &picture)?;
        write("report.md", &self.markdown())?;
        write("report.json", &(serde_json::to_string_pretty(self)? + "\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        assert_eq!(percentile(&mut [], 0.5), 0.0);
        assert_eq!(percentile(&mut [3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(percentile(&mut [3.0, 1.0, 2.0], 0.99), 3.0);
        assert_eq!(percentile(&mut [7.0], 0.0), 7.0);
    }
}
