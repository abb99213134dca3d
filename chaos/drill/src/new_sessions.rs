//! A steady stream of new sessions that say nothing: the view of devices that call for the first time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use client::{Call, CallOptions};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{sync::watch, task::JoinSet};
use topology::Moment;

/// A new session, closed again at once without a word.
#[derive(Debug, Clone, Serialize)]
pub struct NewSession {
    /// Time at which it began.
    pub at_ms: Moment,
    /// The edge that was called.
    pub edge: SocketAddr,
    /// Time until the session was open or had failed.
    pub took_ms: f64,
    /// The region that opened it.
    pub region: Option<String>,
    /// The error; empty if the session opened.
    pub failure: String,
}

/// A steady stream of new sessions at some edges: the view of devices that call for the first time.
#[derive(Debug)]
pub struct NewSessions {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    ended: Arc<Mutex<Vec<NewSession>>>,
}

/// Period per edge. Short enough to show a difference of a tenth of a second, and little load beside the callers who
/// talk.
const PERIOD: Duration = Duration::from_millis(200);

/// Deadline for a new session.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

impl NewSessions {
    /// Starts a stream of new sessions at every edge.
    pub fn start(edges: Vec<SocketAddr>, options: &CallOptions) -> Self {
        let (stop, stopped) = watch::channel(false);
        let ended = Arc::<Mutex<Vec<NewSession>>>::default();
        let into = Arc::clone(&ended);
        let options = CallOptions {
            connect_timeout: CONNECT_DEADLINE,
            ..options.clone()
        };
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            let mut period = tokio::time::interval(PERIOD);
            let mut count = 0_u64;
            while !*stopped.borrow() {
                period.tick().await;
                for edge in &edges {
                    count += 1;
                    let options = options.clone().with_device_name(&format!("new-session-{count}"));
                    // A session starts on time even if earlier ones hang; their timeout bounds their number.
                    open.spawn(open_one(*edge, options, Arc::clone(&into)));
                }
                while open.try_join_next().is_some() {}
            }
            while open.join_next().await.is_some() {}
        });
        Self { stop, task, ended }
    }

    /// All sessions that have opened or failed, in the order of their start.
    pub fn ended(&self) -> Vec<NewSession> {
        let mut sessions = self.ended.lock().clone();
        sessions.sort_by_key(|session| (session.at_ms, session.edge));
        sessions
    }

    /// Stops the stream and waits for the last session.
    pub async fn finish(self) -> Vec<NewSession> {
        self.stop.send_replace(true);
        // The task ends by itself. An error would mean that it panicked, and its results are still there.
        let _ = self.task.await;
        let mut sessions = std::mem::take(&mut *self.ended.lock());
        sessions.sort_by_key(|session| (session.at_ms, session.edge));
        sessions
    }
}

async fn open_one(edge: SocketAddr, options: CallOptions, into: Arc<Mutex<Vec<NewSession>>>) {
    let at_ms = daemon::clock::now();
    let began = std::time::Instant::now();
    let result = Call::open(edge, &options).await;
    let took_ms = began.elapsed().as_secs_f64() * 1000.0;
    let (region, failure) = match &result {
        Ok(call) => (call.region().map(str::to_owned), String::new()),
        Err(error) => (None, error.to_string()),
    };
    into.lock().push(NewSession {
        at_ms,
        edge,
        took_ms,
        region,
        failure,
    });
    if let Ok(call) = result {
        call.hang_up().await;
    }
}

/// Share of the new sessions begun from `since` to `until` that opened outside `region`; `None` if there were none.
pub fn share_elsewhere(sessions: &[NewSession], region: &str, since: Moment, until: Moment) -> Option<f64> {
    let chosen: Vec<&NewSession> = sessions
        .iter()
        .filter(|session| (since..until).contains(&session.at_ms))
        .collect();
    let elsewhere = chosen.iter().filter(|session| is_elsewhere(session, region)).count();
    (!chosen.is_empty()).then(|| elsewhere as f64 / chosen.len() as f64)
}

/// Whether the session opened, and outside `region`.
pub fn is_elsewhere(session: &NewSession, region: &str) -> bool {
    session.failure.is_empty() && session.region.as_deref() != Some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_session(at: u64, region: &str, failure: &str) -> NewSession {
        NewSession {
            at_ms: Moment(at),
            edge: "127.0.1.1:8080".parse().unwrap(),
            took_ms: 1.0,
            region: (!region.is_empty()).then(|| region.to_owned()),
            failure: failure.to_owned(),
        }
    }

    #[test]
    fn a_failed_session_is_nowhere() {
        let sessions = [
            new_session(10, "us-east", ""),
            new_session(20, "", "refused"),
            new_session(30, "us-west", ""),
            new_session(40, "eu-west", ""),
        ];
        let share = |since, until| share_elsewhere(&sessions, "us-east", Moment(since), Moment(until));
        assert_eq!(share(0, 50), Some(0.5));
        assert_eq!(share(25, 50), Some(1.0));
        assert_eq!(share(50, 60), None);
    }
}
