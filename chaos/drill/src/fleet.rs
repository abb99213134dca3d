//! Callers: some who talk all the while and call again when they are cut off, and a stream of new ones who only knock.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use probe::{Call, CallEvent, CallEventKind, CallOptions, Pacing, SteadyCall, Turn};
use serde::Serialize;
use tokio::{sync::watch, task::JoinSet};
use topology::Moment;

use crate::{Recording, Resolver};

/// Longest time a caller keeps trying to get one sentence answered. Longer than a failover by plan may take, so that
/// every turn that fails has failed for good.
pub const PATIENCE: Duration = Duration::from_secs(35);

/// One sentence of a caller and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct TurnRecord {
    /// Which caller, from 0.
    pub session: usize,
    /// What was said.
    pub words: String,
    /// When the caller began to say it for the first time.
    pub started_at_ms: Moment,
    /// When the reply ended, or the caller gave up.
    pub ended_at_ms: Moment,
    /// The region that answered.
    pub region: Option<String>,
    /// What was heard.
    pub transcript: String,
    /// Whether it was taken to mean what it means.
    pub understood: bool,
    /// The reply in words.
    pub reply: String,
    /// From the end of the speech to the first audio of the reply, in the attempt that was answered.
    pub first_audio_ms: Option<f64>,
    /// Times the caller was cut off while saying it, waiting, or listening.
    pub interruptions: Vec<Interruption>,
    /// Times its session went on in another region meanwhile, without being cut off.
    pub moves: Vec<Moved>,
    /// Why it failed for good; empty when it was answered.
    pub failure: String,
}

/// A session went on in another region, and its caller stayed connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// When the caller was told.
    pub at_ms: Moment,
    /// The region it left, if it was known.
    pub from: Option<String>,
    /// The region it is in.
    pub to: String,
}

/// A caller was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interruption {
    /// When.
    pub at_ms: Moment,
    /// The region that was lost, if it was known.
    pub lost: Option<String>,
    /// The Close frame's code, if there was one.
    pub code: Option<u16>,
    /// The Close frame's reason, or what the network said.
    pub reason: String,
    /// When the caller was connected again.
    pub reconnected_at_ms: Option<Moment>,
    /// Where.
    pub region: Option<String>,
}

impl Interruption {
    /// How long the caller waited for another session. One who was cut off between two turns notices at the next one.
    pub fn reconnected_after(&self, turn_started_at: Moment) -> Option<Duration> {
        Some(self.reconnected_at_ms?.since(self.at_ms.max(turn_started_at)))
    }
}

impl TurnRecord {
    /// Whether it was answered in the end.
    pub fn completed(&self) -> bool {
        self.failure.is_empty()
    }
}

/// Callers who talk all the while.
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

/// What a caller does now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Now {
    /// The region that answered last.
    pub region: Option<String>,
    /// Whether a sentence is being said or answered.
    pub talking: bool,
    /// Sentences answered so far.
    pub answered: usize,
}

impl Fleet {
    /// `sessions` callers begin to talk, spread over the edges.
    pub fn start(
        sessions: usize,
        recordings: &Arc<Vec<Recording>>,
        resolver: &Resolver,
        options: &CallOptions,
        told: &Arc<dyn Fn(&TurnRecord) + Send + Sync>,
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
                told: Arc::clone(told),
            };
            callers.spawn(caller.talk());
        }
        Self { stop, callers, shared }
    }

    /// What each caller does now.
    pub fn now(&self) -> Vec<Now> {
        lock(&self.shared).now.clone()
    }

    /// All turns that have ended so far.
    pub fn turns(&self) -> Vec<TurnRecord> {
        lock(&self.shared).turns.clone()
    }

    /// Lets every caller finish the sentence and hang up.
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
    told: Arc<dyn Fn(&TurnRecord) + Send + Sync>,
}

impl Caller {
    async fn talk(mut self) {
        let (resolver, session) = (self.resolver.clone(), self.session);
        let resolve = move || {
            let resolver = resolver.clone();
            async move { resolver.callees(session).await }
        };
        let mut call = SteadyCall::new(
            self.options.clone().named(&format!("caller-{session}")),
            PATIENCE,
            resolve,
        );
        // Callers do not speak in step: they begin spread over two seconds, each with another sentence.
        self.pause(Duration::from_millis(173 * (session as u64) % 2_000)).await;
        let mut said = session * 4;
        let mut cut_while_idle = Vec::new();
        while !*self.stopped.borrow() {
            let recording = self.recordings[said % self.recordings.len()].clone();
            said += 1;
            lock(&self.shared).now[session].talking = true;
            let started_at_ms = daemon::clock::now();
            let result = call.turn(&recording.utterance, Pacing::RealTime).await;
            let mut events = std::mem::take(&mut cut_while_idle);
            events.extend(call.take_events());
            let before = lock(&self.shared).now[session].region.clone();
            let mut record = turn_record(session, &recording, started_at_ms, result);
            record.interruptions = interruptions(&events, before.as_deref());
            record.moves = moves(&events);
            {
                let mut shared = lock(&self.shared);
                let now = &mut shared.now[session];
                now.talking = false;
                if record.completed() {
                    now.region.clone_from(&record.region);
                    now.answered += 1;
                }
                shared.turns.push(record.clone());
            }
            (self.told)(&record);
            // People think for half a second to a second and a half.
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
    result: Result<Turn, probe::CallError>,
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

/// Each loss of an open session, with the connection that followed it. `region` was connected before the first event.
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

/// Each time a session went on in another region.
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

/// A new session, opened and closed again without a word.
#[derive(Debug, Clone, Serialize)]
pub struct Knock {
    /// When it was begun.
    pub at_ms: Moment,
    /// At which edge.
    pub edge: SocketAddr,
    /// How long it took until there was a session, or none.
    pub took_ms: f64,
    /// The region that opened it.
    pub region: Option<String>,
    /// Why there was none; empty when there was.
    pub failure: String,
}

/// A stream of new sessions at some edges: what a device sees that calls for the first time.
#[derive(Debug)]
pub struct Knocker {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    knocks: Arc<Mutex<Vec<Knock>>>,
}

/// Per edge. Enough to see a tenth of a second's difference, little against the callers who talk.
const KNOCK_PERIOD: Duration = Duration::from_millis(200);
/// Longest wait of a new caller for a session.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(3);

impl Knocker {
    /// Begins to knock at all edges.
    pub fn start(edges: Vec<SocketAddr>, options: &CallOptions) -> Self {
        let (stop, stopped) = watch::channel(false);
        let knocks = Arc::<Mutex<Vec<Knock>>>::default();
        let kept = Arc::clone(&knocks);
        let options = CallOptions {
            connect_timeout: KNOCK_TIMEOUT,
            ..options.clone()
        };
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            let mut period = tokio::time::interval(KNOCK_PERIOD);
            let mut count = 0_u64;
            while !*stopped.borrow() {
                period.tick().await;
                for edge in &edges {
                    count += 1;
                    let options = options.clone().named(&format!("knock-{count}"));
                    // Begun on time whatever became of the earlier ones; their number is bounded by their timeout.
                    open.spawn(knock(*edge, options, Arc::clone(&kept)));
                }
                while open.try_join_next().is_some() {}
            }
            while open.join_next().await.is_some() {}
        });
        Self { stop, task, knocks }
    }

    /// All knocks that have ended so far, in the order in which they began.
    pub fn knocks(&self) -> Vec<Knock> {
        let mut knocks = lock(&self.knocks).clone();
        knocks.sort_by_key(|knock| (knock.at_ms, knock.edge));
        knocks
    }

    /// Stops knocking and waits for the last answer.
    pub async fn finish(self) -> Vec<Knock> {
        self.stop.send_replace(true);
        // It ends by itself; an error would mean that it panicked, and what it kept is still there.
        let _ = self.task.await;
        let mut knocks = std::mem::take(&mut *lock(&self.knocks));
        knocks.sort_by_key(|knock| (knock.at_ms, knock.edge));
        knocks
    }
}

async fn knock(edge: SocketAddr, options: CallOptions, kept: Arc<Mutex<Vec<Knock>>>) {
    let at_ms = daemon::clock::now();
    let began = std::time::Instant::now();
    let result = Call::open(edge, &options).await;
    let took_ms = began.elapsed().as_secs_f64() * 1000.0;
    let (region, failure) = match &result {
        Ok(call) => (call.region().map(str::to_owned), String::new()),
        Err(error) => (None, error.to_string()),
    };
    lock(&kept).push(Knock {
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

/// Share of new sessions, from `since` to `until`, that were opened outside `region`; `None` when there were none.
pub fn share_elsewhere(knocks: &[Knock], region: &str, since: Moment, until: Moment) -> Option<f64> {
    let chosen: Vec<&Knock> = knocks
        .iter()
        .filter(|knock| (since..until).contains(&knock.at_ms))
        .collect();
    let elsewhere = chosen.iter().filter(|knock| is_elsewhere(knock, region)).count();
    (!chosen.is_empty()).then(|| elsewhere as f64 / chosen.len() as f64)
}

/// Whether a new session was opened, and in another region.
pub fn is_elsewhere(knock: &Knock, region: &str) -> bool {
    knock.failure.is_empty() && knock.region.as_deref() != Some(region)
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knock(at: u64, region: &str, failure: &str) -> Knock {
        Knock {
            at_ms: Moment(at),
            edge: "127.0.1.1:8080".parse().unwrap(),
            took_ms: 1.0,
            region: (!region.is_empty()).then(|| region.to_owned()),
            failure: failure.to_owned(),
        }
    }

    #[test]
    fn a_failed_session_is_nowhere() {
        let knocks = [
            knock(10, "us-east", ""),
            knock(20, "", "refused"),
            knock(30, "us-west", ""),
            knock(40, "eu-west", ""),
        ];
        let share = |since, until| share_elsewhere(&knocks, "us-east", Moment(since), Moment(until));
        assert_eq!(share(0, 50), Some(0.5));
        assert_eq!(share(25, 50), Some(1.0));
        assert_eq!(share(50, 60), None);
    }

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
