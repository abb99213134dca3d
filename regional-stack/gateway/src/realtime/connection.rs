//! The socket of a session: moves messages between it and the [`Session`], keeps both from waiting for ever, and closes it
//! with a reason.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use topology::words::{Resume, Word, WordError};
use uuid::Uuid;

use super::{checkpoint::RestoreError, session::Session};
use crate::{
    metrics::{ClosedLabels, ClosedReason},
    seal::SealError,
    stack::Stack,
};

/// Frames between session and socket. Few, because what is in here can no longer be taken back when the user interrupts.
const IN_FLIGHT_MAX: usize = 2;
/// How often timers, pings and patience are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Time for the client to take the Close frame and answer it.
const GOODBYE: Duration = Duration::from_secs(2);
/// A store that answers later than this does not hold up the conversation.
const STORE_PATIENCE: Duration = Duration::from_millis(500);
/// Ids of sessions are ours; longer ones are not.
const SESSION_ID_MAX: usize = 64;

/// How often an edge is told how far a session has come while nothing happens but that the client sends.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How often an edge is told how loaded the stack is, by one session, at most.
const LOAD_EVERY: Duration = Duration::from_secs(1);
/// Time for an edge to send what belongs to a session that it carried here: it has all of it at hand.
const REPLAY_PATIENCE: Duration = Duration::from_secs(5);
/// More than any edge keeps of one session.
const REPLAY_BYTES_MAX: usize = 16 << 20;
/// A session that an edge carried here can not go on here. Close codes from 4000 on are a matter between the two sides.
const CANNOT_RESUME: u16 = 4001;

/// How a session begins.
pub(super) enum Begin {
    /// In this stack.
    Here {
        model: String,
        /// Id of an earlier session whose memory goes on.
        remembered: Option<String>,
        /// Whether an edge listens that can carry it elsewhere.
        continuity: bool,
    },
    /// In another stack: an edge carries it here.
    Carried,
}

/// Why a session that an edge carried here does not go on.
#[derive(Debug, thiserror::Error)]
enum ResumeError {
    #[error("nothing to resume came")]
    Nothing,
    #[error("what came is not what is to be resumed")]
    Unexpected,
    #[error("too much came")]
    TooMuch,
    #[error(transparent)]
    Word(#[from] WordError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Why the socket is closed by us.
struct Closing {
    code: u16,
    text: &'static str,
    reason: ClosedReason,
}

/// Serves one session until it ends. `tells_load` and `tells_turns`: whether an edge wants to know how loaded the stack is, and
/// what the session's turns come to.
pub(super) async fn run(stack: &Arc<Stack>, socket: WebSocket, begin: Begin, tells_load: bool, tells_turns: bool) {
    stack.metrics.sessions.inc();
    let (sink, mut stream) = socket.split();
    let (out, outgoing) = mpsc::channel(IN_FLIGHT_MAX);
    let mut writer = tokio::spawn(write(sink, outgoing));
    let (id, ended) = match open(stack, begin, &mut stream).await {
        Ok(mut session) => {
            if tells_turns {
                session.told.ask();
            }
            let id = session.id.clone();
            tracing::info!(session = id, "session opened");
            let ended = Box::pin(converse(stack, &id, session, tells_load, &mut stream, &out)).await;
            (id, ended)
        }
        Err(error) => {
            tracing::warn!("a carried session cannot go on here: {error}");
            let closing = Closing {
                code: CANNOT_RESUME,
                text: "this session can not go on here",
                reason: ClosedReason::not_resumed,
            };
            (String::new(), Err(closing))
        }
    };

    let reason = match ended {
        Ok(reason) => reason,
        Err(closing) => {
            let frame = Message::Close(Some(CloseFrame {
                code: closing.code,
                reason: closing.text.into(),
            }));
            let goodbye = async {
                let _ = out.send(frame).await;
                // Reading on until the client answers: closing on unread data resets the connection, and the Close frame
                // with it.
                while let Some(Ok(_)) = stream.next().await {}
            };
            let _ = timeout(GOODBYE, goodbye).await;
            closing.reason
        }
    };
    drop(out);
    if timeout(GOODBYE, &mut writer).await.is_err() {
        writer.abort();
    }
    stack
        .metrics
        .sessions_closed
        .get_or_create(&ClosedLabels { reason })
        .inc();
    stack.metrics.sessions.dec();
    tracing::info!(session = id, ?reason, "session closed");
}

async fn open(stack: &Arc<Stack>, begin: Begin, stream: &mut SplitStream<WebSocket>) -> Result<Session, ResumeError> {
    match begin {
        Begin::Here {
            model,
            remembered,
            continuity,
        } => {
            let (id, dialogue) = restore(stack, remembered).await;
            let mut session = Session::new(Arc::clone(stack), id, model, dialogue);
            if continuity {
                session.begin_reports();
            }
            Ok(session)
        }
        Begin::Carried => {
            let session = timeout(REPLAY_PATIENCE, resume(stack, stream)).await;
            session.unwrap_or(Err(ResumeError::Nothing))
        }
    }
}

/// Takes over a session: first comes its state, then the client's messages that are needed beside it.
async fn resume(stack: &Arc<Stack>, stream: &mut SplitStream<WebSocket>) -> Result<Session, ResumeError> {
    let first = next_data(stream).await?;
    let Message::Binary(word) = &first else {
        return Err(ResumeError::Unexpected);
    };
    let Word::Resume(word) = Word::parse(word)? else {
        return Err(ResumeError::Unexpected);
    };
    let key = stack.config.checkpoint_key.as_ref().ok_or(ResumeError::Unexpected)?;
    let state = key.open(word.state, daemon::clock::now())?;
    let replay = replayed(&word, stream).await?;
    Ok(Session::restore(stack, state, &word, &replay, daemon::clock::now())?)
}

/// The messages that the state does not stand for.
async fn replayed(word: &Resume<'_>, stream: &mut SplitStream<WebSocket>) -> Result<Vec<String>, ResumeError> {
    let mut replay = Vec::new();
    let mut bytes = 0;
    while !word.is_broken && word.first + (replay.len() as u64) < word.consumed {
        // A message that is not text was refused there, and counts.
        let text = match next_data(stream).await? {
            Message::Text(text) => text.as_str().to_owned(),
            _ => String::new(),
        };
        bytes += text.len();
        if bytes > REPLAY_BYTES_MAX {
            return Err(ResumeError::TooMuch);
        }
        replay.push(text);
    }
    Ok(replay)
}

async fn next_data(stream: &mut SplitStream<WebSocket>) -> Result<Message, ResumeError> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => return Ok(message),
            _ => return Err(ResumeError::Nothing),
        }
    }
}

/// The session to go on with: an earlier one if the client names it and it is remembered, else a new one.
async fn restore(stack: &Stack, resume: Option<String>) -> (String, dialogue::DialogueState) {
    if let Some(id) = resume.filter(|id| id.len() <= SESSION_ID_MAX) {
        match timeout(STORE_PATIENCE, stack.store.load(&id, daemon::clock::now())).await {
            Ok(Ok(Some(dialogue))) => return (id, dialogue),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(session = id, "session cannot be restored: {error:#}"),
            Err(_) => tracing::warn!(session = id, "session cannot be restored: the store does not answer"),
        }
    }
    // Whoever knows the id can resume the session, so it must not be guessable.
    (format!("sess_{}", Uuid::new_v4().simple()), stack.new_dialogue())
}

/// Sends until there is nothing more to come, or the socket is gone.
async fn write(mut sink: SplitSink<WebSocket, Message>, mut outgoing: mpsc::Receiver<Message>) {
    while let Some(message) = outgoing.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
}

async fn converse(
    stack: &Stack,
    id: &str,
    mut session: Session,
    tells_load: bool,
    stream: &mut SplitStream<WebSocket>,
    out: &mpsc::Sender<Message>,
) -> Result<ClosedReason, Closing> {
    let limits = stack.config.limits;
    let idle_max = Duration::from_secs(limits.idle_seconds_max);
    let ping_every = Duration::from_secs(limits.ping_seconds);
    let slow_max = Duration::from_secs(limits.slow_client_seconds_max);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut pinged, mut sent) = (Instant::now(), Instant::now(), Instant::now());
    let mut reported = Instant::now();
    // The answer to the upgrade told it once.
    let (mut load_told, mut turns_told) = (Instant::now(), session.turns);
    loop {
        if session.outbox.is_overfull() {
            return Err(Closing {
                code: close_code::POLICY,
                text: "too many events wait for you; read faster",
                reason: ClosedReason::slow_client,
            });
        }
        if !session.outbox.is_ready() {
            sent = Instant::now();
        }
        let over = || Closing {
            code: close_code::RESTART,
            text: "region draining",
            reason: ClosedReason::draining,
        };
        let owes_word = session.owes_checkpoint() || session.told.is_due();
        if stack.draining.is_cancelled() && session.is_between_turns() && !owes_word {
            return Err(over());
        }
        // A turn is what makes work; between turns, because nothing shall come before a reply.
        let owes_load = tells_load
            && session.turns != turns_told
            && session.is_between_turns()
            && !session.outbox.is_ready()
            && load_told.elapsed() >= LOAD_EVERY;
        tokio::select! {
            message = stream.next() => {
                seen = Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) if text.len() > limits.frame_bytes_max => return Err(too_large()),
                    Some(Ok(Message::Binary(bytes))) if bytes.len() > limits.frame_bytes_max => return Err(too_large()),
                    Some(Ok(Message::Text(text))) => {
                        session.on_message(&text, daemon::clock::now());
                        // A session that comes from a region that died brings all that it said there at once. Those that are
                        // still waiting to be accepted shall not have to wait until all of that is heard.
                        tokio::task::yield_now().await;
                    }
                    Some(Ok(Message::Binary(_))) => session.on_binary(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(_))) => return Ok(ClosedReason::client),
                    Some(Err(error)) => return unreadable(&error),
                    None => return Ok(ClosedReason::lost),
                }
            }
            result = session.engine_result() => session.on_engine_result(result, daemon::clock::now()),
            place = out.reserve(), if owes_word || session.outbox.is_ready() || owes_load => {
                let Ok(place) = place else { return Ok(ClosedReason::lost) };
                if session.owes_checkpoint() && let Some(key) = &stack.config.checkpoint_key {
                    reported = Instant::now();
                    place.send(Message::Binary(session.checkpoint(key, daemon::clock::now()).into()));
                } else if session.outbox.is_ready() && let Some(mut frame) = session.outbox.pop() {
                    sent = Instant::now();
                    place.send(Message::Text(std::mem::take(&mut frame.text).into()));
                    session.on_sent(&frame, daemon::clock::now());
                } else if session.told.is_due() {
                    place.send(Message::Binary(session.told.next().into()));
                } else if owes_load {
                    (load_told, turns_told) = (Instant::now(), session.turns);
                    place.send(Message::Binary(Word::Load(stack.load()).to_bytes().into()));
                }
            }
            _ = look.tick() => {
                session.ring(daemon::clock::now());
                if reported.elapsed() >= REPORT_EVERY {
                    session.note_report_time();
                }
                if seen.elapsed() > idle_max {
                    return Err(Closing {
                        code: close_code::POLICY,
                        text: "no sign of life; answer pings or send audio",
                        reason: ClosedReason::idle,
                    });
                }
                if sent.elapsed() > slow_max {
                    return Err(Closing {
                        code: close_code::POLICY,
                        text: "you take no events; read faster",
                        reason: ClosedReason::slow_client,
                    });
                }
                // A full channel means that something is being sent, which serves as well.
                if pinged.elapsed() >= ping_every && out.try_send(Message::Ping(Bytes::new())).is_ok() {
                    pinged = Instant::now();
                }
            }
            () = stack.draining.cancelled(), if !stack.draining.is_cancelled() => {}
            () = stack.cut.cancelled() => return Err(over()),
        }
        if let Some(dialogue) = session.take_unsaved() {
            match timeout(STORE_PATIENCE, stack.store.save(id, &dialogue, daemon::clock::now())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(session = id, "session not saved: {error:#}"),
                Err(_) => tracing::warn!(session = id, "session not saved: the store does not answer"),
            }
        }
    }
}

fn too_large() -> Closing {
    Closing {
        code: close_code::SIZE,
        text: "message too large; send audio in shorter pieces",
        reason: ClosedReason::oversize,
    }
}

/// What a socket that cannot be read any more comes to.
fn unreadable(error: &axum::Error) -> Result<ClosedReason, Closing> {
    let text = error.to_string();
    // axum hides the type of the error behind its text.
    if text.contains("too long") || text.contains("too large") {
        return Err(too_large());
    }
    if text.contains("reset") || text.contains("closing handshake") || text.contains("broken pipe") {
        return Ok(ClosedReason::lost);
    }
    tracing::debug!("socket: {text}");
    if text.contains("UTF-8") {
        return Err(Closing {
            code: close_code::INVALID,
            text: "a text message is not UTF-8",
            reason: ClosedReason::protocol,
        });
    }
    Err(Closing {
        code: close_code::PROTOCOL,
        text: "not the WebSocket protocol",
        reason: ClosedReason::protocol,
    })
}
