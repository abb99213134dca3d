//! The socket of a session: moves messages between socket and [`Session`], bounds every wait, and closes the socket with a reason.

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
use topology::Moment;

use super::{
    beginning::{Begin, open},
    closing::{Closing, no_room, taken_over, unfinished, unreadable},
    edge_reports::AskedReports,
    held::Held,
    opening::STORE_LIMIT,
    sending::Outgoing,
    session::Session,
    texts,
};
use crate::{
    ids::logged,
    live::Claim,
    metrics::{ClosedLabels, ClosedReason},
    place::Place,
    room::Meter,
    stack::Stack,
    store::Memory,
    texts as log,
};

/// Most messages between session and socket. Few, because the session can no longer take them back when the user interrupts. They are
/// boxed, because the channel keeps room for 32 of them.
const IN_FLIGHT_MAX: usize = 2;
/// Least bytes of a client's control frame beside its content.
const CONTROL_HEADER_BYTES: usize = 6;
/// Period at which timers, pings and deadlines are checked.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// Time for the client to take the Close frame and answer it.
const GOODBYE: Duration = Duration::from_secs(2);
/// Period at which the stack tells the store that a session is still connected. Far below any useful lifetime.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

/// The close code for a session that an edge carried here and that cannot go on here. Edge and stack agree on codes from 4000 on.
const CANNOT_RESUME: u16 = 4001;

/// Serves one session until it ends.
pub(super) async fn run(
    stack: &Arc<Stack>,
    sink: SplitSink<WebSocket, Message>,
    mut stream: SplitStream<WebSocket>,
    place: &Place,
    begin: Begin,
    asked: AskedReports,
) {
    let meter = &*place.meter;
    stack.metrics.sessions.inc();
    let (out, outgoing) = mpsc::channel(IN_FLIGHT_MAX);
    let mut writer = tokio::spawn(write(sink, outgoing));
    // Boxed: otherwise the task of every session would keep the memory of its opening.
    let (id, ended) = match Box::pin(open(stack, begin, &mut stream)).await {
        Ok((mut session, claim)) => {
            session.begin_reports(asked, daemon::clock::now());
            // The messages from another region are read, so their share of the room is free again.
            drop(meter.take_share());
            let name = session.name().to_owned();
            tracing::info!(session = logged(&name), "session opened");
            let ended = Box::pin(converse(stack, &mut session, &claim, place, &mut stream, &out)).await;
            if matches!(ended, Ok(ClosedReason::Moved)) {
                forget(stack, &name, session.device.revision).await;
            } else if claim.may_save() {
                let memory = Memory {
                    may_go_on_elsewhere: session.is_carried() && is_unexplained(&ended),
                    ..session.memory()
                };
                save(stack, &name, memory).await;
            }
            drop(claim);
            (name, ended)
        }
        Err(error) => {
            tracing::warn!(%error, "{}", log::NOT_RESUMED);
            let closing = Closing {
                event: None,
                code: CANNOT_RESUME,
                text: texts::NOT_RESUMED_CLOSE,
                reason: ClosedReason::NotResumed,
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
            let event = closing
                .event
                .map(|event| Box::new(Message::Text(event.to_string().into())));
            let goodbye = async {
                if let Some(event) = event {
                    let _ = out.send(event).await;
                }
                let _ = out.send(Box::new(frame)).await;
                // This reads until the client answers: a close on unread data resets the connection, and the client never sees the
                // Close frame.
                while let Some(Ok(_)) = stream.next().await {}
                // Nobody reads the rest of a message that is too large, so the client gets this time to read the error.
                if closing.reason == ClosedReason::Oversize {
                    std::future::pending::<()>().await;
                }
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
    tracing::info!(session = logged(&id), reason = <&str>::from(reason), "session closed");
}

/// The reason of the peer's Close frame.
fn closed_by_client(frame: Option<&CloseFrame>) -> ClosedReason {
    match frame {
        Some(frame) if frame.code == wire::MOVED => ClosedReason::Moved,
        _ => ClosedReason::Client,
    }
}

/// The reason for a peer that takes no more messages. Its Close frame may still wait behind messages that nobody needs now.
async fn close_reason(stream: &mut SplitStream<WebSocket>, meter: &Meter) -> ClosedReason {
    let read = async {
        while let Some(Ok(message)) = stream.next().await {
            drop(meter.take_share());
            if let Message::Close(frame) = message {
                return closed_by_client(frame.as_ref());
            }
        }
        ClosedReason::Lost
    };
    timeout(GOODBYE, read).await.unwrap_or(ClosedReason::Lost)
}

/// Whether a connection ended without a reason of the peer. An edge that loses a stack ends it like this and resumes the session at
/// another stack.
fn is_unexplained(ended: &Result<ClosedReason, Closing>) -> bool {
    let reason = match ended {
        Ok(reason) => *reason,
        Err(closing) => closing.reason,
    };
    matches!(
        reason,
        ClosedReason::Lost | ClosedReason::Idle | ClosedReason::SlowClient | ClosedReason::Unfinished
    )
}

/// Saves the memory of a session.
pub(super) async fn save(stack: &Stack, name: &str, memory: Memory) {
    match timeout(STORE_LIMIT, stack.store.save(name, memory, daemon::clock::now())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(
            session = logged(name),
            error = format!("{error:#}"),
            "{}",
            log::NOT_SAVED
        ),
        Err(_) => tracing::warn!(session = logged(name), error = log::STORE_LATE, "{}", log::NOT_SAVED),
    }
}

/// Drops the memory of a session that goes on in another stack, because it would grow stale here.
pub(super) async fn forget(stack: &Stack, name: &str, revision: Moment) {
    if !matches!(
        timeout(STORE_LIMIT, stack.store.forget(name, revision)).await,
        Ok(Ok(()))
    ) {
        tracing::warn!(session = logged(name), "{}", log::STILL_REMEMBERED);
    }
}

/// Tells the store that the session is still connected, so that its memory does not age.
async fn touch(stack: &Stack, name: &str) {
    match timeout(STORE_LIMIT, stack.store.touch(name, daemon::clock::now())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(session = logged(name), error = format!("{error:#}"), "{}", log::AGES),
        Err(_) => tracing::warn!(session = logged(name), error = log::STORE_LATE, "{}", log::AGES),
    }
}

/// Sends messages until the session ends or the socket closes.
async fn write(mut sink: SplitSink<WebSocket, Message>, mut outgoing: mpsc::Receiver<Box<Message>>) {
    while let Some(message) = outgoing.recv().await {
        if sink.send(*message).await.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
}

/// Serves the session until it ends. The future lives as long as the session, so rare futures inside it are boxed.
async fn converse(
    stack: &Stack,
    session: &mut Session,
    claim: &Claim,
    Place { meter, leaving, .. }: &Place,
    stream: &mut SplitStream<WebSocket>,
    out: &mpsc::Sender<Box<Message>>,
) -> Result<ClosedReason, Closing> {
    let limits = stack.config.limits;
    let (idle_max, ping_every) = (limits.idle_max.0, limits.ping_every.0);
    let (slow_max, message_limit) = (limits.slow_client_max.0, limits.body_max.0);
    let mut check = interval(CHECK_EVERY);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut pinged, mut sent) = (Instant::now(), Instant::now(), Instant::now());
    let (mut touched, touch_every) = (Instant::now(), TOUCH_EVERY.min(limits.session_ttl.0 / 4));
    let mut held: Option<Held> = None;
    loop {
        if session.is_overfull() {
            return Err(Closing {
                event: None,
                code: close_code::POLICY,
                text: texts::OVERFULL_CLOSE,
                reason: ClosedReason::SlowClient,
            });
        }
        if !session.has_event() {
            sent = Instant::now();
        }
        let over = || Closing {
            event: None,
            code: close_code::RESTART,
            text: texts::DRAINING_CLOSE,
            reason: ClosedReason::Draining,
        };
        if leaving.is_cancelled() && session.may_end() {
            return Err(over());
        }
        let has_frame = session.has_frame(daemon::clock::now());
        tokio::select! {
            message = stream.next() => {
                seen = Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) if text.len() > limits.frame_bytes_max => {
                        session.on_too_large();
                        held = Held::next(held, Message::Text(text).into_data(), meter.take_share());
                    }
                    Some(Ok(Message::Text(text))) => {
                        session.on_message(&text, daemon::clock::now());
                        held = Held::next(held, Message::Text(text).into_data(), meter.take_share());
                        loop {
                            // Without this wait the fifth utterance of a message would find the recognizer's queue full of the first four.
                            while session.must_hear_first() {
                                tokio::select! {
                                    result = session.engine_result() => {
                                        session.on_engine_result(result, daemon::clock::now());
                                    }
                                    () = stack.cut.cancelled() => return Err(over()),
                                }
                            }
                            if !session.listen_on(daemon::clock::now()) {
                                break;
                            }
                            // The answer to an edge's ping waits behind the messages before it, so the stack sends a ping meanwhile.
                            if pinged.elapsed() >= CHECK_EVERY && out.try_send(Box::new(Message::Ping(Bytes::new()))).is_ok() {
                                pinged = Instant::now();
                            }
                            tokio::task::yield_now().await;
                        }
                        // A session from a dead region brings all of its messages at once. Sessions that wait for their acceptance get
                        // their turn between them.
                        tokio::task::yield_now().await;
                    }
                    Some(Ok(Message::Binary(bytes))) => {
                        session.on_binary();
                        held = Held::next(held, bytes, meter.take_share());
                    }
                    Some(Ok(Message::Ping(content) | Message::Pong(content))) => {
                        meter.forget(content.len() + CONTROL_HEADER_BYTES);
                    }
                    Some(Ok(Message::Close(frame))) => return Ok(closed_by_client(frame.as_ref())),
                    Some(Err(error)) => return unreadable(&error),
                    None => return Ok(ClosedReason::Lost),
                }
            }
            result = session.engine_result() => session.on_engine_result(result, daemon::clock::now()),
            place = out.reserve(), if has_frame => {
                let Ok(place) = place else { return Ok(Box::pin(close_reason(stream, meter)).await) };
                match session.next_frame(daemon::clock::now()) {
                    Some(Outgoing::Event(text)) => {
                        sent = Instant::now();
                        place.send(Box::new(Message::Text(text.into())));
                    }
                    Some(Outgoing::Private(bytes)) => place.send(Box::new(Message::Binary(bytes.into()))),
                    None => {}
                }
            }
            _ = check.tick() => {
                session.on_time(daemon::clock::now());
                if touched.elapsed() >= touch_every {
                    touched = Instant::now();
                    Box::pin(touch(stack, session.name())).await;
                }
                if meter.is_overdue(Instant::now(), message_limit) {
                    return Err(unfinished());
                }
                if meter.last_came().map_or(seen, |came| seen.max(came)).elapsed() > idle_max {
                    return Err(Closing {
                        event: None,
                        code: close_code::POLICY,
                        text: texts::IDLE_CLOSE,
                        reason: ClosedReason::Idle,
                    });
                }
                if sent.elapsed() > slow_max {
                    return Err(Closing {
                        event: None,
                        code: close_code::POLICY,
                        text: texts::SLOW_CLOSE,
                        reason: ClosedReason::SlowClient,
                    });
                }
                // A full channel means that a message is on its way, which serves as well.
                if pinged.elapsed() >= ping_every && out.try_send(Box::new(Message::Ping(Bytes::new()))).is_ok() {
                    pinged = Instant::now();
                }
            }
            () = meter.refused() => return Err(no_room()),
            () = claim.taken() => return Err(taken_over()),
            () = leaving.cancelled(), if !leaving.is_cancelled() => {}
            () = stack.cut.cancelled() => return Err(over()),
        }
        if claim.is_taken() {
            return Err(taken_over());
        }
        if let Some(memory) = session.take_unsaved() {
            Box::pin(save(stack, session.name(), memory)).await;
        }
    }
}
