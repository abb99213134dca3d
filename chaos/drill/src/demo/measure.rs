//! From the observations of a demo to its report. Pure: no clock, no sockets.

use std::{collections::BTreeSet, time::Duration};

use api::v1::Decision;
use topology::Moment;

use crate::{
    fleet::TurnRecord,
    mark::Mark,
    new_sessions::{NewSession, is_elsewhere, share_elsewhere},
    report::{CallLine, Check, Generation, REPORT_SCHEMA, Report, percentile},
};

/// The product's target: time from the kill until every new session goes to another region by plan.
pub(super) const FAILOVER_MAX: Duration = Duration::from_secs(30);

/// Least share of new sessions in other regions once the plan is published.
const ELSEWHERE_MIN: f64 = 0.99;

/// Least share of the recorded calls with the right intent. The recogniser is small, and some recordings are hard on
/// purpose.
const UNDERSTOOD_MIN: f64 = 0.8;

/// The observations of a demo. Times are of the wall clock.
pub(super) struct Observed {
    pub(super) began_at: Moment,
    /// Seconds from the beginning until every process took work.
    pub(super) started_s: f64,
    /// Seconds from the beginning until every region was healthy.
    pub(super) healthy_s: f64,
    /// The region that was killed.
    pub(super) region: String,
    /// Number of callers who talked throughout.
    pub(super) sessions: usize,
    pub(super) killed_at: Moment,
    pub(super) detected_at: Moment,
    pub(super) decided_at: Moment,
    /// Time at which the last node had acknowledged the plan.
    pub(super) published_at: Moment,
    /// Time until which new sessions count: the restart of the region begins.
    pub(super) watched_until: Moment,
    pub(super) restarted_at: Moment,
    pub(super) commanded_at: Moment,
    pub(super) restored_at: Moment,
    /// Seconds from the restore command until the region serves.
    pub(super) restore_s: f64,
    /// Generation of the plan that evacuated the region.
    pub(super) evacuation: u64,
    pub(super) turns: Vec<TurnRecord>,
    pub(super) new_sessions: Vec<NewSession>,
    pub(super) history: Vec<Decision>,
    pub(super) calls: Vec<CallLine>,
    /// Whether other regions answered every call after the evacuation.
    pub(super) elsewhere: bool,
    /// Whether the region answered a call after the restore.
    pub(super) back: bool,
    /// Names of the processes that died by themselves.
    pub(super) died: Vec<String>,
}

/// The report, without the narrator's story and the duration of the whole.
pub(super) fn measure(observed: &Observed) -> Report {
    let Observed {
        region,
        killed_at,
        watched_until,
        turns,
        new_sessions,
        ..
    } = observed;
    let (killed_at, watched_until) = (*killed_at, *watched_until);
    let since_kill = |at: Moment| at.since(killed_at).as_secs_f64();
    let mut generations: Vec<Generation> = observed
        .history
        .iter()
        .map(|made| Generation::new(made, killed_at))
        .collect();
    // History entries of refused requests made no plan.
    generations.retain(|generation| generation.generation > 0);
    generations.sort_by_key(|generation| generation.generation);
    let reconnected = |turn: &&TurnRecord| !turn.interruptions.is_empty();
    let moved = |turn: &&TurnRecord| !turn.moves.is_empty();
    let moved_in_turn = |turn: &&TurnRecord| turn.moves.iter().any(|moved| moved.at_ms >= turn.started_at_ms);
    let cut_in_turn = |turn: &&TurnRecord| turn.interruptions.iter().any(|cut| cut.at_ms >= turn.started_at_ms);
    let mut first_audio: Vec<f64> = turns.iter().filter_map(|turn| turn.first_audio_ms).collect();
    let after_kill: Vec<&NewSession> = (new_sessions.iter())
        .filter(|session| (killed_at..watched_until).contains(&session.at_ms))
        .collect();
    let last_not_elsewhere = after_kill.iter().rev().find(|session| !is_elsewhere(session, region));
    let mut report = Report {
        schema: REPORT_SCHEMA,
        passed: false,
        began_at_ms: observed.began_at,
        took_s: 0.0,
        started_s: observed.started_s,
        healthy_s: observed.healthy_s,
        region: region.clone(),
        sessions: observed.sessions,
        sessions_interrupted: count_sessions(turns.iter().filter(|it| moved(it) || reconnected(it))),
        sessions_interrupted_in_turn: count_sessions(turns.iter().filter(|it| moved_in_turn(it) || cut_in_turn(it))),
        sessions_moved: count_sessions(turns.iter().filter(moved)),
        sessions_reconnected: count_sessions(turns.iter().filter(reconnected)),
        turns_completed: turns.iter().filter(|turn| turn.completed()).count(),
        turns_failed: turns.iter().filter(|turn| !turn.completed()).count(),
        turns_understood: turns.iter().filter(|turn| turn.understood).count(),
        turn_p50_ms: percentile(&mut first_audio, 0.5),
        turn_p99_ms: percentile(&mut first_audio, 0.99),
        reconnect_max_s: longest_reconnect(turns),
        new_sessions_elsewhere_s: last_not_elsewhere
            .map_or(0.0, |session| since_kill(session.at_ms) + session.took_ms / 1000.0),
        detect_s: since_kill(observed.detected_at),
        decide_s: since_kill(observed.decided_at),
        publish_s: since_kill(observed.published_at),
        failover_s: since_kill(observed.published_at),
        new_sessions_elsewhere_share: share_elsewhere(new_sessions, region, observed.published_at, watched_until)
            .unwrap_or_default(),
        new_sessions: after_kill.len(),
        new_sessions_failed: after_kill.iter().filter(|session| !session.failure.is_empty()).count(),
        restore_s: observed.restore_s,
        generations,
        calls: observed.calls.clone(),
        checks: Vec::new(),
        marks: vec![
            mark(killed_at, format!("{region} is killed")),
            mark(observed.detected_at, "judged down".to_owned()),
            mark(observed.decided_at, format!("plan {} decided", observed.evacuation)),
            mark(observed.published_at, "plan on every node".to_owned()),
            mark(observed.restarted_at, "process up again".to_owned()),
            mark(observed.commanded_at, "restore commanded".to_owned()),
            mark(observed.restored_at, "all sessions back".to_owned()),
        ],
        turns: turns.clone(),
        story: String::new(),
    };
    report.marks.sort_by_key(|mark| mark.at_ms);
    report.checks = checks(&report, observed.elsewhere, observed.back, &observed.died);
    report.passed = report.checks.iter().all(|check| check.passed);
    report
}

fn checks(report: &Report, elsewhere: bool, back: bool, died: &[String]) -> Vec<Check> {
    let understood = report.calls.iter().filter(|call| call.understood).count();
    let check = |passed: bool, expected: &str, found: String| Check {
        expected: expected.to_owned(),
        found,
        passed,
    };
    vec![
        check(
            understood as f64 >= UNDERSTOOD_MIN * report.calls.len() as f64,
            "the recorded calls are understood (80 % at least)",
            format!("{understood} of {}", report.calls.len()),
        ),
        check(
            report.sessions_interrupted_in_turn > 0 && report.sessions_moved > 0,
            "the kill meets callers in the middle of a turn, and they go on elsewhere",
            format!(
                "{} of {} sessions interrupted, {} in a turn; {} moved",
                report.sessions_interrupted,
                report.sessions,
                report.sessions_interrupted_in_turn,
                report.sessions_moved
            ),
        ),
        check(
            report.sessions_reconnected == 0,
            "no caller loses the connection",
            format!("{} of {} did", report.sessions_reconnected, report.sessions),
        ),
        check(
            report.turns_failed == 0 && report.turns_completed > 0,
            "every turn is answered in the end",
            format!("{} answered, {} failed", report.turns_completed, report.turns_failed),
        ),
        check(
            report.failover_s < FAILOVER_MAX.as_secs_f64(),
            "failover takes less than 30 s",
            format!("{:.1} s", report.failover_s),
        ),
        check(
            report.new_sessions_elsewhere_share >= ELSEWHERE_MIN,
            "99 % of new sessions are elsewhere once the plan is published",
            format!("{:.1} %", report.new_sessions_elsewhere_share * 100.0),
        ),
        check(
            elsewhere,
            "new calls are answered by other regions",
            if elsewhere { "all of them" } else { "not all of them" }.to_owned(),
        ),
        check(
            back,
            "after the restore the region answers again",
            if back { "it does" } else { "it does not" }.to_owned(),
        ),
        check(
            died.is_empty(),
            "no process dies but the one that is killed",
            if died.is_empty() {
                "none did".to_owned()
            } else {
                died.join(", ")
            },
        ),
    ]
}

fn count_sessions<'a>(turns: impl Iterator<Item = &'a TurnRecord>) -> usize {
    turns.map(|turn| turn.session).collect::<BTreeSet<_>>().len()
}

fn longest_reconnect(turns: &[TurnRecord]) -> f64 {
    let waits = turns.iter().flat_map(|turn| {
        let cuts = turn.interruptions.iter();
        cuts.filter_map(|cut| cut.reconnected_after(turn.started_at_ms))
    });
    waits.map(|wait| wait.as_secs_f64()).fold(0.0, f64::max)
}

fn mark(at_ms: Moment, text: String) -> Mark {
    Mark { at_ms, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Moved;

    /// A demo whose region died at second 100 and was judged, evacuated and restored.
    fn observed() -> Observed {
        let at = |seconds: u64| Moment(seconds * 1000);
        let session = |seconds, region: &str| NewSession {
            at_ms: at(seconds),
            edge: "127.0.1.1:8080".parse().unwrap(),
            took_ms: 500.0,
            region: Some(region.to_owned()),
            failure: String::new(),
        };
        Observed {
            began_at: at(0),
            started_s: 5.0,
            healthy_s: 20.0,
            region: "us-east".to_owned(),
            sessions: 2,
            killed_at: at(100),
            detected_at: at(118),
            decided_at: at(119),
            published_at: at(120),
            watched_until: at(130),
            restarted_at: at(131),
            commanded_at: at(150),
            restored_at: at(160),
            restore_s: 10.0,
            evacuation: 2,
            turns: vec![TurnRecord {
                session: 1,
                words: "what time is it".to_owned(),
                started_at_ms: at(99),
                ended_at_ms: at(103),
                region: Some("us-west".to_owned()),
                transcript: "what time is it".to_owned(),
                understood: true,
                reply: "it is ten".to_owned(),
                first_audio_ms: Some(300.0),
                interruptions: Vec::new(),
                moves: vec![Moved {
                    at_ms: at(101),
                    from: Some("us-east".to_owned()),
                    to: "us-west".to_owned(),
                }],
                failure: String::new(),
            }],
            new_sessions: vec![
                session(90, "us-east"),
                session(110, "us-east"),
                session(121, "us-west"),
                session(125, "us-west"),
                session(140, "us-east"),
            ],
            history: Vec::new(),
            calls: Vec::new(),
            elsewhere: true,
            back: true,
            died: Vec::new(),
        }
    }

    #[test]
    fn times_count_from_the_kill_and_new_sessions_until_the_restart() {
        let report = measure(&observed());
        assert!(report.passed, "{:?}", report.checks);
        assert_eq!((report.detect_s, report.failover_s), (18.0, 20.0));
        assert_eq!((report.sessions_interrupted_in_turn, report.sessions_moved), (1, 1));
        assert_eq!((report.new_sessions, report.new_sessions_failed), (3, 0));
        assert_eq!(
            report.new_sessions_elsewhere_s, 10.5,
            "the one in the dead region ends it"
        );
        assert_eq!(report.new_sessions_elsewhere_share, 1.0, "of those after the plan");
        assert!(report.marks.is_sorted_by_key(|mark| mark.at_ms));
    }

    #[test]
    fn one_unmet_expectation_fails_the_report_and_is_named() {
        let slow = Observed {
            published_at: Moment(131_000),
            ..observed()
        };
        let stayed = Observed {
            elsewhere: false,
            ..observed()
        };
        let noisy = Observed {
            died: vec!["edge-iad".to_owned()],
            ..observed()
        };
        for (observed, expected) in [
            (slow, "failover takes less than 30 s"),
            (stayed, "new calls are answered by other regions"),
            (noisy, "no process dies but the one that is killed"),
        ] {
            let report = measure(&observed);
            let failed: Vec<&str> = (report.checks.iter().filter(|check| !check.passed))
                .map(|check| check.expected.as_str())
                .collect();
            assert!(!report.passed && failed.contains(&expected), "{failed:?}");
        }
    }
}
