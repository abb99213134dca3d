//! Callers who talk throughout, and call again after a loss.

use std::{sync::Arc, time::Duration};

use client::{CallEvent, CallEventKind, CallOptions, Pacing, ReconnectingCall, Turn};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{sync::watch, task::JoinSet};
use topology::Moment;

use crate::{Recording, Resolver};

/// Longest time a caller tries to get one sentence answered. Longer than a failover by plan may take, so a failed turn
/// has failed for good.
pub const TURN_DEADLINE: Duration = Duration::from_secs(35);

/// One sentence of a caller, and its outcome.
#[derive(Debug, Clone, Serialize)]
pub struct TurnRecord {
    /// Number of the caller, from 0.
    pub session: usize,
    /// The words of the recording.
    pub words: String,
    /// Time at which the caller first began to speak.
    pub started_at_ms: Moment,
    /// Time at which the reply ended or the caller gave up.
    pub ended_at_ms: Moment,
    /// The region that answered.
    pub region: Option<String>,
    /// The transcript of the stack.
    pub transcript: String,
    /// Whether the stack found the right intent.
    pub understood: bool,
    /// Text of the reply.
    pub reply: String,
    /// From the end of the speech to the first audio of the reply, in the attempt that was answered.
    pub first_audio_ms: Option<f64>,
    /// Losses of the session while the caller spoke, waited or listened.
    pub interruptions: Vec<Interruption>,
    /// Moves of the session to another region meanwhile; the caller stayed connected.
    pub moves: Vec<Moved>,
    /// The error of the last attempt; empty if the turn was answered.
    pub failure: String,
}

/// A move of a session to another region; the caller stayed connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Time at which the caller was told.
    pub at_ms: Moment,
    /// The region that the session left, if known.
    pub from: Option<String>,
    /// The region that it is in now.
    pub to: String,
}

/// A loss of a caller's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interruption {
    /// Time of the loss.
    pub at_ms: Moment,
    /// The region that was lost, if known.
    pub lost: Option<String>,
    /// The Close frame's code, if there was one.
    pub code: Option<u16>,
    /// The Close frame's reason, or else the network error.
    pub reason: String,
    /// Time at which the caller was connected again.
    pub reconnected_at_ms: Option<Moment>,
    /// The region of the new session.
    pub region: Option<String>,
}

impl Interruption {
    /// Time until the caller had another session. After a loss between two turns it counts from the next turn, when the
    /// caller notices.
    pub fn reconnected_after(&self, turn_started_at: Moment) -> Option<Duration> {
        Some(self.reconnected_at_ms?.since(self.at_ms.max(turn_started_at)))
    }
}

impl TurnRecord {
    /// Whether the turn was answered.
    pub fn completed(&self) -> bool {
        self.failure.is_empty()
    }
}

/// A fleet of callers who talk throughout.
#[derive(Debug)]
pub struct Fleet {
    stop: watch::Sender<bool>,
    callers: JoinSet<()>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    turns: Vec<TurnRecord>,
    now: Vec<Now>,
}

/// The present state of a caller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Now {
    /// The region that answered last.
    pub region: Option<String>,
    /// Whether the caller is within a turn: speaking, waiting or listening.
    pub talking: bool,
    /// Number of sentences answered so far.
    pub answered: usize,
}

impl Fleet {
    /// Starts `sessions` callers, spread over the edges.
    pub fn start(
        sessions: usize,
        recordings: &Arc<Vec<Recording>>,
        resolver: &Resolver,
        options: &CallOptions,
        on_turn: &Arc<dyn Fn(&TurnRecord) + Send + Sync>,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Mutex::new(Shared {
            turns: Vec::new(),
            now: vec![Now::default(); sessions],
        }));
        let mut callers = JoinSet::new();
        for session in 0..sessions {
            let caller = Caller {
                session,
                recordings: Arc::clone(recordings),
                resolver: resolver.clone(),
                options: options.clone(),
                stopped: stopped.clone(),
                shared: Arc::clone(&shared),
                on_turn: Arc::clone(on_turn),
            };
            callers.spawn(caller.talk());
        }
        Self { stop, callers, shared }
    }

    /// The present state of each caller.
    pub fn now(&self) -> Vec<Now> {
        self.shared.lock().now.clone()
    }

    /// All turns that have ended.
    pub fn turns(&self) -> Vec<TurnRecord> {
        self.shared.lock().turns.clone()
    }

    /// Lets every caller finish its sentence and hang up. Returns all turns.
    pub async fn finish(mut self) -> Vec<TurnRecord> {
        self.stop.send_replace(true);
        while self.callers.join_next().await.is_some() {}
        let mut turns = self.turns();
        turns.sort_by_key(|turn| (turn.started_at_ms, turn.session));
        turns
    }
}

struct Caller {
    session: usize,
    recordings: Arc<Vec<Recording>>,
    resolver: Resolver,
    options: CallOptions,
    stopped: watch::Receiver<bool>,
    shared: Arc<Mutex<Shared>>,
    on_turn: Arc<dyn Fn(&TurnRecord) + Send + Sync>,
}

impl Caller {
    async fn talk(mut self) {
        let (resolver, session) = (self.resolver.clone(), self.session);
        let resolve = move || {
            let resolver = resolver.clone();
            async move { resolver.callees(session).await }
        };
        let mut call = ReconnectingCall::new(
            self.options.clone().with_device_name(&format!("caller-{session}")),
            TURN_DEADLINE,
            resolve,
        );
        // Callers start over two seconds, each with another sentence, so that they do not speak in step.
        self.pause(Duration::from_millis(173 * (session as u64) % 2_000)).await;
        let mut said = session * 4;
        let mut cut_while_idle = Vec::new();
        while !*self.stopped.borrow() {
            let recording = self.recordings[said % self.recordings.len()].clone();
            said += 1;
            self.shared.lock().now[session].talking = true;
            let started_at_ms = daemon::clock::now();
            let result = call.turn(&recording.utterance, Pacing::RealTime).await;
            let mut events = std::mem::take(&mut cut_while_idle);
            events.extend(call.take_events());
            let before = self.shared.lock().now[session].region.clone();
            let mut record = turn_record(session, &recording, started_at_ms, result);
            record.interruptions = interruptions(&events, before.as_deref());
            record.moves = moves(&events);
            {
                let mut shared = self.shared.lock();
                let now = &mut shared.now[session];
                now.talking = false;
                if record.completed() {
                    now.region.clone_from(&record.region);
                    now.answered += 1;
                }
                shared.turns.push(record.clone());
            }
            (self.on_turn)(&record);
            // A pause of half a second to a second and a half between sentences, as people make.
            let thought = Duration::from_millis(500 + 137 * (said as u64) % 1_000);
            let mut stopped = self.stopped.clone();
            tokio::select! {
                () = call.idle(thought) => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
            cut_while_idle = call.take_events();
        }
        call.hang_up().await;
    }

    async fn pause(&mut self, length: Duration) {
        let _ = tokio::time::timeout(length, self.stopped.wait_for(|stop| *stop)).await;
    }
}

fn turn_record(
    session: usize,
    recording: &Recording,
    started_at_ms: Moment,
    result: Result<Turn, client::CallError>,
) -> TurnRecord {
    let mut record = TurnRecord {
        session,
        words: recording.words.clone(),
        started_at_ms,
        ended_at_ms: daemon::clock::now(),
        region: None,
        transcript: String::new(),
        understood: false,
        reply: String::new(),
        first_audio_ms: None,
        interruptions: Vec::new(),
        moves: Vec::new(),
        failure: String::new(),
    };
    match result {
        Ok(turn) => {
            record.understood = turn.intent == recording.intent;
            record.region = turn.region;
            record.transcript = turn.transcript;
            record.reply = turn.reply_text;
            record.first_audio_ms = turn.first_audio.map(|first| first.as_secs_f64() * 1000.0);
        }
        Err(error) => record.failure = error.to_string(),
    }
    record
}

/// Each loss of an open session, with the connection that followed. `region` was connected before the first event.
pub fn interruptions(events: &[CallEvent], region: Option<&str>) -> Vec<Interruption> {
    let mut all: Vec<Interruption> = Vec::new();
    let mut connected = region.map(str::to_owned);
    for event in events {
        match &event.kind {
            CallEventKind::Interrupted { code, reason } => all.push(Interruption {
                at_ms: event.at,
                lost: connected.take(),
                code: *code,
                reason: reason.clone(),
                reconnected_at_ms: None,
                region: None,
            }),
            CallEventKind::Connected { region, .. } => {
                connected.clone_from(region);
                if let Some(last) = all.last_mut()
                    && last.reconnected_at_ms.is_none()
                {
                    last.reconnected_at_ms = Some(event.at);
                    last.region.clone_from(region);
                }
            }
            CallEventKind::Moved { to, .. } => connected = Some(to.clone()),
            CallEventKind::ConnectFailed { .. } | CallEventKind::Waiting(_) => {}
        }
    }
    all
}

/// Each move of a session to another region.
pub fn moves(events: &[CallEvent]) -> Vec<Moved> {
    let moved = |event: &CallEvent| match &event.kind {
        CallEventKind::Moved { from, to } => Some(Moved {
            at_ms: event.at,
            from: from.clone(),
            to: to.clone(),
        }),
        _ => None,
    };
    events.iter().filter_map(moved).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_is_told_with_the_connection_after_it() {
        let event = |at, kind| CallEvent { at: Moment(at), kind };
        let connected = |region: &str| CallEventKind::Connected {
            address: "127.0.1.1:8080".parse().unwrap(),
            region: Some(region.to_owned()),
            took: Duration::ZERO,
        };
        let cut = CallEventKind::Interrupted {
            code: Some(1012),
            reason: "region lost".to_owned(),
        };
        let events = [
            event(1, connected("us-east")),
            event(2, cut),
            event(3, CallEventKind::Waiting(Duration::from_millis(100))),
            event(4, connected("us-west")),
        ];
        let all = interruptions(&events, None);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].reconnected_at_ms, Some(Moment(4)));
        assert_eq!(all[0].lost.as_deref(), Some("us-east"));
        assert_eq!(all[0].region.as_deref(), Some("us-west"));
        let known = interruptions(&events[1..], Some("eu-west"));
        assert_eq!(known[0].lost.as_deref(), Some("eu-west"));
    }
}
