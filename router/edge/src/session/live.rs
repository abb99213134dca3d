//! A live session: the edge relays it until it ends, at one stack after the other if a stack loses it.

use std::{
    future::{Future, pending},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use identity::Link;
use routing::{
    Affinity, Decision, Role, Tried, affinity::Proof, continuity::LeaveReason, pick::EjectionIgnored,
    session::Whereabouts,
};
use tokio::time::Instant;
use topology::RegionId;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::{
    Edge,
    accept::admission::SessionSlot,
    device::Io,
    edge::{AtStack, Failed},
    fault::Fault,
    session::caller::Caller,
    session::continuity::MovableState,
    session::copies::{DepartedSession, copy},
    session::end::{End, Outcome},
    session::frames::frame_for_device,
    session::next_stack::{Wanted, find_next},
    session::registry::{Busy, Registered},
    session::relay::Relay,
};

/// The edge does not ask a region that lost the session again for this long, while there are others. It ejects a region only
/// when that region loses many sessions.
const AVOIDED_FOR: Duration = Duration::from_secs(30);

/// A live session: the state that it has from its first byte to its last.
pub(super) struct Session {
    pub(super) decision: Box<Decision>,
    pub(super) caller: Caller,
    pub(super) client: SocketAddr,
    pub(super) resume_request: Option<Box<[u8]>>,
    /// The home of the session, while it is in another region only because a stack there has its memory.
    pub(super) guest_of: Option<RegionId>,
    pub(super) began: Instant,
    /// Its connection to the stack, until the relay takes it.
    pub(super) new_connection: Option<Box<NewConnection>>,
    /// The stacks that it tried since it left one; few sessions ever do.
    pub(super) search: Option<Box<Search>>,
    pub(super) moves: u32,
    pub(super) last_fault: Option<Fault>,
    pub(super) at_stack: AtStack,
    pub(super) registered: Registered,
    pub(super) _slot: SessionSlot,
    /// Dropped last: a stopping edge waits for it, and then nothing of the session may be left.
    pub(super) _busy: Busy,
}

/// A connection to a stack before the first relayed byte, and the bytes that came behind the two heads.
pub(super) struct NewConnection {
    pub(super) stream: Link,
    pub(super) early_of_device: BytesMut,
    pub(super) early_of_region: BytesMut,
}

/// The stacks that a session tried when it left one, and the time at which it left last.
#[derive(Default)]
pub(super) struct Search {
    tried: Tried,
    last_left: Option<Instant>,
}

/// Relays a session until it ends, and moves it to another stack as often as one loses it.
pub(super) async fn converse(edge: &Arc<Edge>, device: &mut dyn Io, mut session: Box<Session>) {
    let Some(new_connection) = session.new_connection.take() else {
        return;
    };
    let (mut relay, mut began) = relay(edge, device, &session, *new_connection);
    let mut orders_to_leave = pin!(edge.sessions.orders_to_leave(session.registered.id));
    let mut plan_asks = asks_to_leave(edge, &relay, &session, false);
    let end = loop {
        let end = match began {
            Ok(()) => relay.run(orders_to_leave.as_mut(), plan_asks.as_mut()).await,
            Err(end) => end,
        };
        // In a box, like the end below: few sessions ever leave their stack, and each ends once.
        match Box::pin(go_on(edge, &mut relay, &mut session, end)).await {
            Next::There(early) => {
                plan_asks = asks_to_leave(edge, &relay, &session, false);
                began = relay.take_early(&[], &early);
            }
            Next::Stays => {
                plan_asks = asks_to_leave(edge, &relay, &session, true);
                began = Ok(());
            }
            Next::Over(end) => break end,
        }
    };
    drop(plan_asks);
    Box::pin(finish(edge, relay, session, end)).await;
}

/// Makes the relay. The session can move if its stack hands out checkpoints. Fails if the early bytes end the session.
fn relay<'a>(
    edge: &'a Arc<Edge>,
    device: &'a mut dyn Io,
    session: &Session,
    new_connection: NewConnection,
) -> (Relay<'a>, Result<(), End>) {
    let mut relay = Relay::new(device, new_connection.stream, &edge.config);
    if session.resume_request.is_some() {
        relay.keep(MovableState::new(edge, &session.decision, session.client.ip()));
    }
    if let Some(place) = &session.caller.place {
        relay.count_for(place.usage().clone());
    }
    let began = relay.take_early(&new_connection.early_of_device, &new_connection.early_of_region);
    (relay, began)
}

/// The next step after a session was relayed.
enum Next {
    /// It goes on at another stack, which sent these bytes behind its head.
    There(BytesMut),
    /// It stays at its stack, although the plan wants it elsewhere.
    Stays,
    Over(End),
}

/// Blames the side that ended the relay, and moves the session to another stack if it can.
async fn go_on(edge: &Arc<Edge>, relay: &mut Relay<'_>, session: &mut Session, end: End) -> Next {
    let lost_at = Instant::now();
    let failure = end.failure().map(|(event, what)| {
        let facts = relay.facts(event, edge.lag.is_late_for(edge.config.continuity.silence_busy.0));
        let client = session.client.ip();
        session.last_fault = Some(edge.blame(&session.decision, Failed::Session { client }, facts, what));
        what
    });
    let (Some(why), Some(_), Some(request)) = (end.why_to_move(), relay.movable(), &session.resume_request) else {
        return Next::Over(end);
    };
    let (decision, guest_of) = (&session.decision, &session.guest_of);
    let Search { tried, last_left } = &mut **session.search.get_or_insert_default();
    if last_left.is_none_or(|left: Instant| left.elapsed() > AVOIDED_FOR) {
        tried.clear();
    }
    *last_left = Some(lost_at);
    let stays_in = match why {
        // The other stacks of its region may work.
        LeaveReason::Lost | LeaveReason::Closing | LeaveReason::Declined => Some(decision.region.clone()),
        // The plan may drain one stack of the region.
        LeaveReason::Drained => still_planned(edge, &decision.region, guest_of.as_ref()),
        // The edge needed time to notice the silence, so the session does not wait for that region again. An evacuation means the
        // whole region.
        LeaveReason::Silent | LeaveReason::Evacuated => None,
    };
    if why == LeaveReason::Declined {
        tried.refused_for_good(decision.stack);
    }
    match &stays_in {
        Some(region) => tried.stack(region, decision.stack),
        None => tried.region(&decision.region),
    }
    let wanted = Wanted {
        caller: &session.caller,
        version: &decision.version,
        stays: stays_in.map(|region| Affinity {
            region,
            issued_at: daemon::clock::now(),
            proof: Proof::IsThere,
        }),
        // The stack of a guest works, so it leaves only for a region that the plan gives its home.
        planned_only: why == LeaveReason::Drained && guest_of.is_some() && is_in_service(edge, decision),
        why,
    };
    let Some(found) = find_next(edge, &wanted, request, tried).await else {
        if !why.is_optional() {
            return Next::Over(end);
        }
        // The session stays. The next plan that wants the same asks it again.
        relay.stay();
        tried.clear();
        return Next::Stays;
    };
    edge.note_version(&found.decision, &session.caller.id);
    session.caller.issued_at = found.issued_at;
    let from = std::mem::replace(&mut session.decision, found.decision);
    session.at_stack = found.at_stack;
    hand_over(
        edge,
        relay,
        found.stream,
        &Move {
            caller: &session.caller,
            from: &from,
            to: &session.decision,
            why,
            lost_at,
        },
    );
    let decision = &session.decision;
    session.registered.moved(&decision.region, decision.stack);
    session.moves += 1;
    session.guest_of = None;
    tracing::info!(
        request_id = %session.caller.id,
        session = session.caller.logged_key(),
        from = %from.region,
        from_stack = %from.stack,
        to = %decision.region,
        stack = %decision.stack,
        picked = decision.why.as_str(),
        stack_why = %decision.stack_why,
        load = decision.load.map(tracing::field::display),
        skipped = join(&decision.skipped),
        stacks_skipped = join(&decision.stacks_skipped),
        ejection_ignored = decision.ejection_ignored.map(EjectionIgnored::as_str),
        why = why.as_str(),
        failure,
        fault = session.last_fault.map(Fault::as_str),
        found_after_ms = u64::try_from(lost_at.elapsed().as_millis()).unwrap_or(u64::MAX),
        "session goes on elsewhere"
    );
    Next::There(found.early)
}

/// Ends the session: counts it, tells both sides, logs it, and copies its last checkpoint.
async fn finish(edge: &Arc<Edge>, relay: Relay<'_>, session: Box<Session>, end: End) {
    let Session {
        decision,
        mut caller,
        client,
        began,
        moves,
        last_fault,
        at_stack,
        registered,
        // Dropped after the rest of the session: a stopping edge no longer waits for it then.
        _busy,
        _slot,
        ..
    } = *session;
    drop((at_stack, registered));
    if end.is_of_device() {
        edge.metrics.fault(&decision.region, Fault::Device.as_str());
    }
    let state: Option<Box<[u8]>> = relay.movable().and_then(MovableState::state).map(Into::into);
    if let Some(state) = &state {
        edge.parked.put(
            (&caller.session, client.ip()),
            caller.issued_at,
            state,
            daemon::clock::now(),
        );
    }
    let region = &decision.region;
    let Outcome {
        end,
        code,
        from_device,
        from_region,
    } = relay.part(end, region.as_str(), &caller.id).await;
    edge.metrics
        .session_ended(region, end.as_str(), from_device, from_region);
    tracing::info!(
        request_id = %caller.id,
        session = caller.logged_key(),
        %client,
        tenant = caller.device.as_ref().map(|device| &*device.tenant),
        device = caller.device.as_ref().map(|device| &*device.name),
        %region,
        stack = %decision.stack,
        version = decision.version,
        home = %decision.home,
        why = decision.why.as_str(),
        stack_why = %decision.stack_why,
        load = decision.load.map(tracing::field::display),
        skipped = join(&decision.skipped),
        stacks_skipped = join(&decision.stacks_skipped),
        ejection_ignored = decision.ejection_ignored.map(EjectionIgnored::as_str),
        plan = %decision.plan,
        duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        from_device,
        from_region,
        moves,
        end = end.as_str(),
        code = code.map(u16::from),
        failure = end.failure().map(|(_, what)| what),
        fault = end.failure().and(last_fault).map(Fault::as_str),
        "session ended"
    );
    // The device left, so its slots are free.
    drop((_slot, caller.place.take()));
    if let Some(state) = &state {
        let departed = DepartedSession {
            id: &caller.id,
            session: &caller.session,
            at: Whereabouts {
                home: &decision.home,
                region,
                stack: decision.stack,
            },
            state,
        };
        copy(edge, &departed, daemon::clock::now()).await;
    }
}

type AsksToLeave = Pin<Box<dyn Future<Output = LeaveReason> + Send>>;

/// Resolves when the plan wants a session out of its region; never for a session that cannot move. Sessions that can wait leave one
/// after the other, so that the next region does not get all of them at once.
fn asks_to_leave(edge: &Arc<Edge>, relay: &Relay<'_>, session: &Session, newer: bool) -> AsksToLeave {
    if !relay.keeps_state() {
        return Box::pin(pending());
    }
    let Session {
        decision,
        guest_of,
        registered,
        ..
    } = session;
    let (edge, guest_of, id) = (edge.clone(), guest_of.clone(), registered.id);
    let (region, stack) = (decision.region.clone(), decision.stack);
    Box::pin(async move {
        let why = edge.plans.asks_to_leave(region, stack, guest_of, newer).await;
        if why == LeaveReason::Drained {
            edge.sessions.turn_to_move(id, edge.config.drain.window.0).await;
        }
        why
    })
}

/// The region, if the plan sends sessions there, and for a guest if the plan sends those of its home there.
fn still_planned(edge: &Edge, region: &RegionId, guest_of: Option<&RegionId>) -> Option<RegionId> {
    let table = edge.table()?;
    let is_planned = table.role(region) == Role::Planned;
    let is_at_home = guest_of.is_none_or(|home| table.sends(home, region));
    (is_planned && is_at_home).then(|| region.clone())
}

/// Whether the plan keeps the stack of a session in service, so that the session leaves only because of its region.
fn is_in_service(edge: &Edge, decision: &Decision) -> bool {
    let table = edge.table();
    table.is_some_and(|table| table.serves(&decision.region, decision.stack))
}

/// The two ends of a move.
struct Move<'a> {
    caller: &'a Caller,
    from: &'a Decision,
    to: &'a Decision,
    why: LeaveReason,
    lost_at: Instant,
}

/// Hands the session to its next stack. A device that asked for `meridian.*` events gets one, unless its user notices nothing:
/// the region was alive and no turn in progress. Any other device gets the protocol's own `error` event, and only when its last
/// words are lost: otherwise it would wait for an answer that never comes.
fn hand_over(edge: &Edge, relay: &mut Relay<'_>, stream: Link, moved: &Move<'_>) {
    let Move {
        caller,
        from,
        to,
        why,
        lost_at,
    } = *moved;
    let is_busy = relay.movable().is_none_or(MovableState::is_busy);
    let is_visible = is_busy || matches!(why, LeaveReason::Lost | LeaveReason::Silent);
    relay.go_on(stream, to, why, lost_at, |must_repeat| {
        let (code, message) = match (must_repeat, is_visible) {
            (true, _) => ("repeat_utterance", "Connecting to backup; please say that again"),
            (false, true) => ("region_changed", "Connecting to backup"),
            (false, false) => return None,
        };
        let event_id = format!("event_edge_{}", daemon::clock::now().0);
        if !caller.takes_events {
            let error = serde_json::json!({
                "type": "error",
                "event_id": event_id,
                "error": {
                    "type": "server_error",
                    "code": "repeat_utterance",
                    "message": "the region was lost before it heard your last words; the session goes on in another region; say them again",
                    "param": null,
                    "event_id": null,
                },
            });
            return must_repeat.then(|| frame_for_device(OpCode::Data(Data::Text), error.to_string().as_bytes()));
        }
        let notice = serde_json::json!({
            "type": "meridian.notice",
            "event_id": event_id,
            "code": code,
            "message": message,
            "from": from.region,
            "to": to.region,
            // The headers of the handshake had the old token.
            "affinity": edge.affinity_tokens.issue_to(&caller.holder, &to.region),
            // `session.created` had the old id.
            "session": caller.session_id(edge, to, caller.issued_at),
        });
        Some(frame_for_device(
            OpCode::Data(Data::Text),
            notice.to_string().as_bytes(),
        ))
    });
}

pub(super) fn join(items: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
