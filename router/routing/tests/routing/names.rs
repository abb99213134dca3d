//! The names that metrics, logs and answers of an edge carry.

use routing::{Rule, SkipReason, admit::Pressure, breaker::Limit, continuity::LeaveReason, pick::EjectionIgnored};

#[test]
fn reasons_and_limits_have_the_names_of_metrics_and_logs() {
    use LeaveReason::{Closing, Declined, Drained, Evacuated as Left, Lost, Silent as Quiet};
    assert_eq!(
        [Lost, Quiet, Closing, Left, Drained, Declined].map(LeaveReason::as_str),
        ["lost", "silent", "closing", "evacuated", "drained", "declined"]
    );
    use SkipReason::{Ejected, Evacuated, Full, NoShare, Returning, Silent, Tried, Unknown};
    assert_eq!(
        [Tried, Ejected, Silent, Full, Returning, Evacuated, NoShare, Unknown].map(SkipReason::as_str),
        [
            "tried",
            "ejected",
            "silent",
            "full",
            "returning",
            "evacuated",
            "no-share",
            "unknown"
        ]
    );
    use Limit::{Connections, Pending, Requests, Retries};
    assert_eq!(
        [Connections, Pending, Requests, Retries].map(Limit::as_str),
        ["connections", "pending-requests", "requests", "retries"]
    );
    use Pressure::{NoNewSessions, NoNewcomers, None, Shed};
    assert_eq!(
        [None, NoNewcomers, NoNewSessions, Shed].map(Pressure::as_str),
        ["none", "no-newcomers", "nobody-new", "shed"]
    );
    use Rule::{Affinity, AnyServing, Backup, Overflow, Share};
    assert_eq!(
        [Affinity, Share(5), Overflow, Backup, AnyServing].map(Rule::as_str),
        ["affinity", "share", "overflow", "backup", "any-serving"]
    );
    use EjectionIgnored::{NothingElse, Panic};
    assert_eq!(
        [Panic, NothingElse].map(EjectionIgnored::as_str),
        ["panic", "nothing-else"]
    );
}
