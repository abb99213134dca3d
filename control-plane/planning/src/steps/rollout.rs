//! The steps of a rollout, and the triggers that send users back from a new version of the stack.
//!
//! Why it is so: docs/decisions/18-rollouts.md.

use topology::{Reason, ReasonCode, policy::RolloutPolicy};

use crate::{
    Phase, Report, RolloutSeen,
    draft::Draft,
    facts::Facts,
    gate::Gate,
    texts::{changed, part, waiting},
    wake::rollout_step_end,
};

/// Sends more users to the version that is rolled out, waits, or rolls it back.
pub(crate) fn advance(facts: &Facts<'_>, draft: &mut Draft, report: &mut Report) {
    let Some(rollout) = draft.next.rollout.clone() else {
        return;
    };
    let running = draft.memory.actions.get(&rollout.action);
    if !running.is_some_and(|action| action.phase == Phase::Running) {
        return;
    }
    let policy = &facts.input.policy.rollout;
    let seen = facts
        .input
        .rollout
        .as_ref()
        .filter(|seen| seen.version == rollout.version);
    let judged = seen.map_or(Judged::TooFew, |seen| judge(seen, policy));
    if let Judged::Bad(why) = judged {
        let text = changed::rolled_back(&rollout.version, rollout.percent, &why);
        draft.next.rollout = None;
        draft.end_action(facts, &rollout.action, Phase::Aborted, &text);
        return report.change(Reason::of(ReasonCode::RolledBack, text));
    }
    let Some(end) = rollout_step_end(facts.input, &draft.next) else {
        return;
    };
    let hold = |text: String| Reason::of(ReasonCode::RolloutHold, text);
    if facts.now < end {
        let text = waiting::rollout_held_until(&rollout, end);
        return report.wait(hold(text).until(end));
    }
    if judged == Judged::TooFew {
        let (min, sessions) = (policy.sessions_min, seen.map_or(0, |seen| seen.sessions));
        let text = waiting::rollout_held_for_sessions(&rollout, sessions, min);
        return report.wait(hold(text));
    }
    // A rollout is an order, so a policy without automation does not stop it.
    if let Some(stop) = Gate::Order.stop(facts, &draft.memory) {
        return report.wait(stop);
    }
    let steps = &policy.steps;
    let percent = steps
        .iter()
        .map(|step| step.percent)
        .find(|percent| *percent > rollout.percent)
        .unwrap_or(100);
    draft.next.rollout = Some(topology::Rollout {
        percent,
        since: facts.now,
        ..rollout.clone()
    });
    let text = changed::rollout_step(&rollout.version, rollout.percent, percent);
    let code = if percent == 100 {
        ReasonCode::RolloutDone
    } else {
        ReasonCode::RolloutStep
    };
    if percent == 100 {
        draft.end_action(facts, &rollout.action, Phase::Done, &text);
    }
    report.change(Reason::of(code, text));
}

/// The judgement of a new version.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Judged {
    /// Too few sessions to judge.
    TooFew,
    /// As good as the old one.
    Good,
    /// A trigger fired: the evidence in words.
    Bad(String),
}

/// Judges a new version by four triggers, over the whole step and over the last minutes. After a good day of a million
/// turns a version that fails every tenth turn would take hours to spoil the sum.
fn judge(seen: &RolloutSeen, policy: &RolloutPolicy) -> Judged {
    let whole = judge_these(seen, policy);
    if matches!(whole, Judged::Bad(_)) {
        return whole;
    }
    match seen.recent.as_ref().map(|recent| judge_these(recent, policy)) {
        Some(Judged::Bad(why)) => {
            let minutes = policy.window.as_secs() / 60;
            Judged::Bad(part::lately(minutes, &why))
        }
        _ => whole,
    }
}

fn judge_these(seen: &RolloutSeen, policy: &RolloutPolicy) -> Judged {
    // One such error is too many, however few sessions there are.
    if seen.gpu_memory_errors > u64::from(policy.gpu_memory_errors_max) {
        return Judged::Bad(part::gpu_memory_errors(seen.gpu_memory_errors));
    }
    if seen.sessions < policy.sessions_min {
        return Judged::TooFew;
    }
    let turns = seen.turns_succeeded + seen.turns_failed;
    let error_rate = seen.turns_failed as f64 / turns.max(1) as f64;
    if error_rate > policy.error_rate_max {
        return Judged::Bad(part::turns_failed(error_rate, policy.error_rate_max));
    }
    if let (Some(new), Some(old)) = (seen.p95_ms, seen.old_p95_ms)
        && new > old * (1.0 + policy.latency_increase_max)
    {
        return Judged::Bad(part::latency(new, old));
    }
    let underruns = seen.underruns as f64 / f64::from(seen.sessions);
    if underruns > policy.underruns_per_session_max {
        return Judged::Bad(part::audio_underruns(underruns, policy.underruns_per_session_max));
    }
    Judged::Good
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> RolloutSeen {
        RolloutSeen {
            version: "v2".into(),
            sessions: 100,
            turns_succeeded: 990,
            turns_failed: 10,
            p95_ms: Some(150.0),
            old_p95_ms: Some(100.0),
            underruns: 1000,
            gpu_memory_errors: 0,
            recent: None,
        }
    }

    #[test]
    fn a_bad_hour_after_a_good_day_sends_users_back() {
        let policy = RolloutPolicy::default();
        let good = RolloutSeen {
            sessions: 100_000,
            turns_succeeded: 1_000_000,
            turns_failed: 0,
            p95_ms: Some(100.0),
            underruns: 0,
            ..seen()
        };
        let judged = |recent: RolloutSeen| {
            judge(
                &RolloutSeen {
                    recent: Some(Box::new(recent)),
                    ..good.clone()
                },
                &policy,
            )
        };
        assert_eq!(judged(good.clone()), Judged::Good);
        let fails = RolloutSeen {
            turns_succeeded: 900,
            turns_failed: 100,
            ..seen()
        };
        let why = "in the last 10 min 10.00 % of turns failed, 1.00 % is the most";
        assert_eq!(judged(fails.clone()), Judged::Bad(why.into()));
        // A few sessions are no evidence, and a version that is bad over the whole step stays bad after good minutes.
        assert_eq!(
            judged(RolloutSeen {
                sessions: 99,
                ..fails.clone()
            }),
            Judged::Good
        );
        let whole = RolloutSeen {
            recent: Some(Box::new(good.clone())),
            ..fails
        };
        assert!(matches!(judge(&whole, &policy), Judged::Bad(_)));
    }

    #[test]
    fn each_trigger_fires_just_above_its_limit() {
        let policy = RolloutPolicy::default();
        let judged = |change: fn(&mut RolloutSeen)| {
            let mut seen = seen();
            change(&mut seen);
            judge(&seen, &policy)
        };
        assert_eq!(judged(|_| {}), Judged::Good);
        assert_eq!(judged(|it| it.sessions = 99), Judged::TooFew);
        for bad in [
            (|it| it.turns_failed = 11) as fn(&mut RolloutSeen),
            |it| it.p95_ms = Some(150.1),
            |it| it.underruns = 1001,
            |it| it.gpu_memory_errors = 1,
            |it| (it.gpu_memory_errors, it.sessions) = (1, 0),
        ] {
            assert!(matches!(judged(bad), Judged::Bad(_)));
        }
    }
}
