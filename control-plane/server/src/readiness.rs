//! The `/ready` page of a control plane.
//!
//! It answers 503 without a plan to give, and at a leader that cannot write: another one may do better. It answers 200 without
//! a leader, and shows `decisions: false`. No other control plane decides then either, and a balancer or an orchestrator that
//! took all of them out would keep nodes from their plan and operators from `meridian status`.

use std::{sync::Arc, time::Duration};

use daemon::admin::Readiness;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use topology::{Moment, Snapshot};

use crate::view::View;

/// Time without a known leader before the page says so. A dead leader counts as known until its lease ends, and its successor is
/// elected within a second or two after that.
const LEADERLESS_AFTER: Duration = Duration::from_secs(5);

/// The reason why nothing is decided, as text.
#[derive(Debug, Clone, PartialEq)]
enum Undecided {
    /// This replica leads and cannot write, or cannot read the store's documents.
    Unwritten(String),
    /// No leader is known.
    Leaderless(String),
}

/// Keeps the page current until `stop`.
pub(crate) async fn keep(
    ready: Readiness,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    mut views: watch::Receiver<Arc<View>>,
    stop: CancellationToken,
) {
    loop {
        let wait = {
            let view = views.borrow_and_update();
            let (undecided, again) = judged(&view, daemon::clock::now());
            ready.set("plan", snapshots.borrow().is_some());
            match undecided {
                Some(Undecided::Leaderless(why)) => ready.spare("decisions", why),
                Some(Undecided::Unwritten(why)) => ready.set_unless("decisions", Some(why)),
                None => ready.set_unless("decisions", None),
            }
            again
        };
        let due = async {
            match wait {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = views.changed() => if changed.is_err() { return },
            () = due => {}
        }
    }
}

/// The reason why nothing is decided at this moment, and the time after which the answer changes without a new view.
fn judged(view: &View, now: Moment) -> (Option<Undecided>, Option<Duration>) {
    if let Some(why) = view.why_not_deciding() {
        return (Some(Undecided::Unwritten(why)), None);
    }
    let Some((since, why)) = view.progress.leaderless_since.zip(view.why_leaderless()) else {
        return (None, None);
    };
    let left = LEADERLESS_AFTER.saturating_sub(now.since(since));
    if left.is_zero() {
        (Some(Undecided::Leaderless(why)), None)
    } else {
        (None, Some(left))
    }
}

#[cfg(test)]
mod tests {
    use topology::NodeId;

    use super::*;
    use crate::{
        metrics::tests::first_view,
        store::{LeaderRecord, StoreError},
        view::{Leader, Role, Unwritten},
    };

    const SINCE: Moment = Moment(1_000_000);

    fn leaderless(leader: Leader) -> View {
        let mut view = first_view();
        view.role = Role::Following(leader);
        view.progress.leaderless_since = Some(SINCE);
        view
    }

    #[test]
    fn an_election_is_no_news_and_its_absence_is() {
        let view = leaderless(Leader::Nobody);
        let (said, again) = judged(&view, SINCE + Duration::from_secs(3));
        assert_eq!((said, again), (None, Some(Duration::from_secs(2))));
        let (said, again) = judged(&view, SINCE + LEADERLESS_AFTER);
        let text = format!("no control plane leads since {SINCE:#} UTC");
        assert_eq!((said, again), (Some(Undecided::Leaderless(text)), None));
    }

    #[test]
    fn the_error_of_the_store_is_told_with_it() {
        let error = StoreError::Failed("no quorum".to_owned());
        let (said, _) = judged(&leaderless(Leader::Unknown(error)), SINCE + LEADERLESS_AFTER);
        let Some(Undecided::Leaderless(said)) = said else {
            panic!("{said:?}");
        };
        assert!(said.contains("no quorum"), "{said}");
    }

    #[test]
    fn a_follower_of_a_leader_says_nothing() {
        let mut view = leaderless(Leader::Known(LeaderRecord {
            node: NodeId::new("control-plane-1").unwrap(),
            url: "http://127.0.0.1:7100".to_owned(),
            epoch: 1,
        }));
        view.progress.leaderless_since = None;
        assert_eq!(judged(&view, SINCE + LEADERLESS_AFTER), (None, None));
    }

    #[test]
    fn a_leader_that_cannot_write_comes_first() {
        let mut view = leaderless(Leader::Nobody);
        view.progress.unwritten = Some(Unwritten {
            since: SINCE,
            error: StoreError::Failed("disk".to_owned()),
            pending: Vec::new(),
            is_retried: false,
        });
        let (said, _) = judged(&view, SINCE + LEADERLESS_AFTER);
        assert!(
            matches!(&said, Some(Undecided::Unwritten(why)) if why.contains("disk")),
            "{said:?}"
        );
    }
}
