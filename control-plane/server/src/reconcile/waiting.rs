//! Waiting for the store without standing still: ticks are judged and reports taken meanwhile.

use std::{mem::take, time::Duration};

use tokio::time::sleep;

use super::{
    reconciler::Reconciler,
    term::{Ended, Term},
};

/// Time that requests wait for a failing store before they are declined. Most such failures are an election of etcd's,
/// and clients wait for five seconds.
const DECLINED_AFTER: Duration = Duration::from_secs(2);
/// Requests deferred during one commit. A commit takes milliseconds, and some seconds while the store fails.
const DEFERRED_MAX: usize = 256;

/// The treatment of requests that need a write while the task waits for the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WhileWaiting {
    /// Keeps them for later, as during a commit.
    Defer,
    /// Declines them after a moment, because nothing can be written: the state is being read again.
    Decline,
}

impl Reconciler {
    /// Waits for `work` while judging ticks, taking reports and publishing the view, because a slow store must not stop
    /// observations. Returns early if the leadership is lost; then a write may or may not have happened.
    pub(super) async fn wait_while_observing<T>(
        &mut self,
        term: &mut Term<'_>,
        requests: WhileWaiting,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        let mut work = std::pin::pin!(work);
        loop {
            let now = daemon::clock::now();
            if self.judge_if_due(now) {
                self.is_undecided = true;
                if requests == WhileWaiting::Decline {
                    self.show_pending(now);
                }
                self.publish_view();
            }
            let wait = self
                .evidence
                .next_judgement(now)
                .since(now)
                .max(Duration::from_millis(5));
            let ill_since = self
                .standing
                .progress
                .unwritten
                .as_ref()
                .map(|unwritten| unwritten.since);
            let is_long = ill_since.is_some_and(|since| now.since(since) >= DECLINED_AFTER);
            let (declines, wait) = match requests {
                WhileWaiting::Defer => (false, wait),
                WhileWaiting::Decline => (is_long || !self.standing.leads(), wait.min(DECLINED_AFTER)),
            };
            if declines {
                for request in take(&mut self.deferred) {
                    self.decline(request);
                }
            }
            tokio::select! {
                biased;
                () = term.lead.lost() => return Err(Ended::Lost),
                done = &mut work => return Ok(done),
                // A stop does not cut a commit short: the requester needs to know its outcome.
                () = term.stop.cancelled(), if requests == WhileWaiting::Decline => return Err(Ended::Stopped),
                request = term.inbox.recv(), if self.deferred.len() < DEFERRED_MAX => {
                    let Some(request) = self.answer_without_store(request.ok_or(Ended::Stopped)?, now) else { continue };
                    if declines {
                        self.decline(request);
                    } else {
                        self.deferred.push_back(request);
                    }
                }
                () = sleep(wait) => {}
            }
        }
    }
}
