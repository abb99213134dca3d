//! Named tasks with one owner. A process runs until it receives a signal to stop or one of its tasks ends. Then it asks
//! all tasks to stop, waits for a grace period, and aborts the rest.

use std::{collections::HashMap, future::Future, sync::OnceLock, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::texts;

/// The tasks of a process, by name.
#[derive(Debug, Default)]
pub struct Tasks {
    stop: CancellationToken,
    running: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, String>,
}

impl Tasks {
    /// An empty set of tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that is cancelled when the process must stop. Tasks watch it and return.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task. If the task ends before the stop token is cancelled, the whole process stops.
    pub fn spawn(&mut self, name: &str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let handle = self.running.spawn(task);
        self.names.insert(handle.id(), name.to_owned());
    }

    /// Runs until SIGTERM, SIGINT, the end of the supervisor, or the end of the first task. Then stops all tasks within
    /// `grace`.
    pub async fn run(mut self, grace: Duration) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).with_context(|| texts::cannot_watch("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).with_context(|| texts::cannot_watch("SIGINT"))?;
        let first = tokio::select! {
            _ = terminate.recv() => { tracing::info!("SIGTERM: stopping"); Ok(()) }
            _ = interrupt.recv() => { tracing::info!("SIGINT: stopping"); Ok(()) }
            () = supervisor_ended() => { tracing::info!("standard input ended (the supervisor is gone): stopping"); Ok(()) }
            () = self.stop.cancelled() => Ok(()),
            Some(ended) = self.running.join_next_with_id() => {
                // A task that ended because of the stop token did not end too early, whichever branch `select!` polls
                // first.
                let too_early = !self.stop.is_cancelled();
                self.ended(ended, too_early)
            }
        };
        self.stop.cancel();
        let rest = tokio::time::timeout(grace, self.join_all()).await.unwrap_or_else(|_| {
            let late: Vec<&str> = self.names.values().map(String::as_str).collect();
            tracing::warn!(tasks = ?late, ?grace, "{}", texts::CUT_AFTER_GRACE);
            Ok(())
        });
        self.running.abort_all();
        first.and(rest)
    }

    async fn join_all(&mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.running.join_next_with_id().await {
            result = result.and(self.ended(ended, false));
        }
        result
    }

    fn ended(&mut self, ended: Result<(Id, anyhow::Result<()>), JoinError>, too_early: bool) -> anyhow::Result<()> {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(anyhow::Error::new(error))),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        match result {
            Ok(()) if too_early => anyhow::bail!(texts::task_ended(&name)),
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(texts::in_task(&name))),
        }
    }
}

/// Cancelled when standard input has ended, in a process started with `--supervised`.
static SUPERVISOR: OnceLock<CancellationToken> = OnceLock::new();

/// Watches standard input from its own thread: a blocking read on the runtime would delay the shutdown.
pub(crate) fn stop_when_stdin_ends() {
    let token = SUPERVISOR.get_or_init(CancellationToken::new).clone();
    std::thread::spawn(move || {
        // Only the end of the input matters; the supervisor never sends data.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        token.cancel();
    });
}

async fn supervisor_ended() {
    match SUPERVISOR.get() {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_fails_stops_the_others_and_is_named() {
        let mut tasks = Tasks::new();
        let stop = tasks.stop_token();
        let (told, was_told) = tokio::sync::oneshot::channel();
        tasks.spawn("patient", async move {
            stop.cancelled().await;
            let _ = told.send(());
            Ok(())
        });
        tasks.spawn("broken", async { anyhow::bail!("out of luck") });
        let error = tasks.run(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "task broken: out of luck");
        assert!(was_told.await.is_ok(), "the other task was asked to stop");
    }

    #[tokio::test]
    async fn a_task_that_obeys_a_stop_from_outside_did_not_end_too_early() {
        // Both branches are ready at the first poll, and `select!` polls them in random order.
        for _ in 0..50 {
            let mut tasks = Tasks::new();
            let stop = tasks.stop_token();
            tasks.spawn("obedient", async move {
                stop.cancelled().await;
                Ok(())
            });
            tasks.stop_token().cancel();
            tokio::task::yield_now().await;
            tasks.run(Duration::from_secs(5)).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_stop_is_cut_after_the_grace_period() {
        let mut tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending());
        tasks.stop_token().cancel();
        tasks.run(Duration::from_secs(5)).await.unwrap();
    }
}
