//! What sends users back from a new version of the stack.

use topology::policy::RolloutPolicy;

use crate::RolloutSeen;

/// What is thought of a new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judged {
    /// Too few sessions to say.
    TooFew,
    /// As good as the old one.
    Good,
    /// A trigger fired; in words.
    Bad(String),
}

/// Judges a new version by the four triggers of the source document: over the whole step, and over the last minutes. After a
/// good day of a million turns one that fails every tenth turn would take hours to spoil the sum.
pub(crate) fn judge(seen: &RolloutSeen, policy: &RolloutPolicy) -> Judged {
    let whole = judge_these(seen, policy);
    if matches!(whole, Judged::Bad(_)) {
        return whole;
    }
    match seen.recent.as_ref().map(|recent| judge_these(recent, policy)) {
        Some(Judged::Bad(why)) => {
            let minutes = policy.window.as_secs() / 60;
            Judged::Bad(format!("in the last {minutes} min {why}"))
        }
        _ => whole,
    }
}

fn judge_these(seen: &RolloutSeen, policy: &RolloutPolicy) -> Judged {
    // One such error is no matter of statistics.
    if seen.gpu_memory_errors > u64::from(policy.gpu_memory_errors_max) {
        return Judged::Bad(format!("{} GPU memory errors", seen.gpu_memory_errors));
    }
    if seen.sessions < policy.sessions_min {
        return Judged::TooFew;
    }
    let turns = seen.turns_succeeded + seen.turns_failed;
    let error_rate = seen.turns_failed as f64 / turns.max(1) as f64;
    if error_rate > policy.error_rate_max {
        let (rate, max) = (error_rate * 100.0, policy.error_rate_max * 100.0);
        return Judged::Bad(format!("{rate:.2} % of turns failed, {max:.2} % is the most"));
    }
    if let (Some(new), Some(old)) = (seen.p95_ms, seen.old_p95_ms)
        && new > old * (1.0 + policy.latency_increase_max)
    {
        return Judged::Bad(format!("p95 latency {new:.0} ms, the old version has {old:.0} ms"));
    }
    let underruns = seen.underruns as f64 / f64::from(seen.sessions);
    if underruns > policy.underruns_per_session_max {
        let max = policy.underruns_per_session_max;
        return Judged::Bad(format!("{underruns:.1} audio underruns per session, {max} is the most"));
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
        // A few sessions say nothing, and what is bad over the whole step is bad whatever was seen lately.
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
