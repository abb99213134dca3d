//! Waiting with a limit, many times in a row, with one timer that moves only when it fires too early. Most waits end long before
//! their limit, and a timer for each of them costs more than the wait.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug, Default)]
pub struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    /// The output of a future; `None` when it is not done in time.
    pub async fn until<F: Future>(&mut self, deadline: Instant, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            self.poll(deadline, cx).map(|()| None)
        })
        .await
    }

    pub fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::pending, time::Duration};
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_its_own_limit() {
        let mut timer = Deadline::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(timer.until(at(60), sleep(Duration::from_secs(1))).await, Some(()));
        assert_eq!(timer.until(at(3), pending::<()>()).await, None, "sooner than before");
        assert_eq!(began.elapsed().as_secs(), 3);
        assert_eq!(timer.until(at(90), sleep(Duration::from_secs(40))).await, Some(()));
        assert_eq!(
            timer.until(at(50), pending::<()>()).await,
            None,
            "later than it was set to"
        );
        assert_eq!(began.elapsed().as_secs(), 50);
        assert_eq!(timer.until(at(20), pending::<()>()).await, None, "over before it began");
        assert_eq!(began.elapsed().as_secs(), 50);
    }
}
