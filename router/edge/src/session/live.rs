//! A live session: relayed until it ends, at one stack after the other if need be.

use std::{
    future::{Future, pending},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use auth::{Device, SessionPlace};
use bytes::BytesMut;
use identity::Link;
use routing::{
    Affinity, Decision, Role, Tried, User,
    affinity::Proof,
    continuity::LeaveReason,
    pick::{self, EjectionIgnored},
    session::Whereabouts,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};
use topology::{Moment, RegionId};
use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::{
    Edge,
    accept::admission::SessionSlot,
    device::Io,
    edge::{AtStack, Failed},
    fault::Fault,
    request_id::RequestId,
    session::ask::{Asked, ask, not_taken},
    session::continuity::MovableState,
    session::copies::{Left, copy},
    session::end::{End, Outcome},
    session::frames::frame_for_device,
    session::registry::{Busy, Registered},
    session::relay::Relay,
    stacks::fleet_view::Picked,
};

/// When no region takes a session that lost its own, the edge asks them again after a pause: one may just be starting. Each
/// session draws a pause of its own, up to this long at first ("full jitter"), so that sessions that lost a region together do
/// not ask together.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// It doubles with every round, up to this: a region that comes back is found within a second or two.
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(2);
/// The edge does not ask a region that lost the session again for this long, while there are others. It ejects a region only
/// when that region loses many sessions.
const AVOIDED_FOR: Duration = Duration::from_secs(30);
/// A session in the queue of a stack checks this often whether the stack is still the right one. Short against the wait for an
/// answer (`timeouts.upgrade`), or the sessions behind a frozen stack run out of time in its queue.
const GATE_LOOK_EVERY: Duration = Duration::from_millis(200);

/// A live session: the state that lasts as long as it does.
pub(super) struct Session {
    pub(super) decision: Box<Decision>,
    pub(super) caller: Caller,
    pub(super) client: SocketAddr,
    pub(super) resume_request: Option<Box<[u8]>>,
    /// The home of the session, while it is in another region only because a stack there remembers it.
    pub(super) guest_of: Option<RegionId>,
    pub(super) began: Instant,
    /// Its connection to the stack, until it is relayed.
    pub(super) fresh: Option<Box<Fresh>>,
    /// Its knowledge of stacks since it lost one; few sessions do.
    pub(super) away: Option<Box<Away>>,
    pub(super) moves: u32,
    pub(super) last_fault: Option<Fault>,
    pub(super) at_stack: AtStack,
    pub(super) registered: Registered,
    pub(super) _slot: SessionSlot,
    /// Last: a stopping edge waits for it, and then nothing of the session may be left.
    pub(super) _busy: Busy,
}

/// A connection to a stack before the first relayed byte, and the bytes that came early.
pub(super) struct Fresh {
    pub(super) stream: Link,
    pub(super) early_of_device: BytesMut,
    pub(super) early_of_region: BytesMut,
}

/// The search for another stack, and when the session left one last.
#[derive(Default)]
pub(super) struct Away {
    tried: Tried,
    last_left: Option<Instant>,
}

pub(super) struct Caller {
    /// The id of its request, which is that of the session in all logs.
    pub(super) id: RequestId,
    pub(super) session_key: Box<str>,
    pub(super) user: Box<str>,
    /// The holder to whom its affinity tokens are issued.
    pub(super) holder: Box<str>,
    /// The device that the edge recognised,
    pub(super) device: Option<Arc<Device>>,
    /// and its place among the sessions of its tenant.
    pub(super) place: Option<SessionPlace>,
    /// Its own name, by which its device comes back.
    pub(super) session: Box<str>,
    /// Issue time of the id that its device was told last.
    pub(super) issued_at: Moment,
    /// Whether the device asked for events beyond the protocol. Other devices take such events for an error.
    pub(super) is_told: bool,
}

impl Caller {
    /// The owner of its session's ids; empty where devices are not recognised.
    fn owner(&self) -> &str {
        self.device.as_ref().map_or("", |_| &self.holder)
    }
}

/// Relays until the end, in one region after the other if need be.
pub(super) async fn converse(edge: &Arc<Edge>, device: &mut dyn Io, mut session: Box<Session>) {
    let Some(fresh) = session.fresh.take() else { return };
    let (mut relay, mut began) = relay(edge, device, &session, *fresh);
    let mut orders_to_leave = pin!(edge.sessions.orders_to_leave(session.registered.id));
    let mut leaving = asks_to_leave(edge, &relay, &session, false);
    let end = loop {
        let end = match began {
            Ok(()) => relay.run(orders_to_leave.as_mut(), leaving.as_mut()).await,
            Err(end) => end,
        };
        // In boxes, this and the end: few sessions ever leave their stack, and each ends once.
        match Box::pin(go_on(edge, &mut relay, &mut session, end)).await {
            Next::There(early) => {
                leaving = asks_to_leave(edge, &relay, &session, false);
                began = relay.take_early(&[], &early);
            }
            Next::Stays => {
                leaving = asks_to_leave(edge, &relay, &session, true);
                began = Ok(());
            }
            Next::Over(end) => break end,
        }
    };
    drop(leaving);
    Box::pin(finish(edge, relay, session, end)).await;
}

/// Begins to relay: the session can go on elsewhere if its stack hands it over. Fails if the early bytes end the session.
fn relay<'a>(
    edge: &'a Arc<Edge>,
    device: &'a mut dyn Io,
    session: &Session,
    fresh: Fresh,
) -> (Relay<'a>, Result<(), End>) {
    let mut relay = Relay::new(device, fresh.stream, &edge.config);
    if session.resume_request.is_some() {
        relay.keep(MovableState::new(edge, &session.decision, session.client.ip()));
    }
    if let Some(place) = &session.caller.place {
        relay.count_for(place.standing().clone());
    }
    let began = relay.take_early(&fresh.early_of_device, &fresh.early_of_region);
    (relay, began)
}

/// The next step after a session was relayed.
enum Next {
    /// It goes on at another stack, which sent this early.
    There(BytesMut),
    /// It goes on where it is, though the plan wants it elsewhere.
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
    let Away { tried, last_left } = &mut **session.away.get_or_insert_default();
    if last_left.is_none_or(|left: Instant| left.elapsed() > AVOIDED_FOR) {
        tried.clear();
    }
    *last_left = Some(lost_at);
    let stays_in = match why {
        // The other stacks of its region may be well.
        LeaveReason::Lost | LeaveReason::Closing | LeaveReason::Declined => Some(decision.region.clone()),
        // The plan may drain one stack of the region.
        LeaveReason::Drained => still_planned(edge, &decision.region, guest_of.as_ref()),
        // A silence took time to notice, so the session does not wait for the region twice. An evacuation means the whole
        // region.
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
        // The session is well where it is.
        planned_only: why == LeaveReason::Drained && guest_of.is_some() && is_in_service(edge, decision),
        why,
    };
    let Some(found) = find_next(edge, &wanted, request, tried).await else {
        if !why.is_optional() {
            return Next::Over(end);
        }
        // The session stays, and is asked again when the next plan says the same.
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
        session = registered_name(&session.caller.session_key),
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

/// Tells both sides that the session is over, and the log.
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
        // Dropped in the other order: nothing of a session is left when the edge no longer waits for it.
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
        session = registered_name(&caller.session_key),
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
    // The device is gone, and its places are free.
    drop((_slot, caller.place.take()));
    if let Some(state) = &state {
        let left = Left {
            id: &caller.id,
            session: &caller.session,
            at: Whereabouts {
                home: &decision.home,
                region,
                stack: decision.stack,
            },
            state,
        };
        copy(edge, &left, daemon::clock::now()).await;
    }
}

type AsksToLeave = Pin<Box<dyn Future<Output = LeaveReason> + Send>>;

/// Resolves when the plan wants a session out of its region; never for a session that cannot leave. Sessions that can wait
/// leave one after the other, so that the next region does not get all of them at once.
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
        let why = edge.asks_to_leave(region, stack, guest_of, newer).await;
        if why == LeaveReason::Drained {
            edge.sessions.turn_to_move(id, edge.config.drain.window.0).await;
        }
        why
    })
}

/// The region, if the plan sends sessions there, and those of this home if the session is one of it.
fn still_planned(edge: &Edge, region: &RegionId, guest_of: Option<&RegionId>) -> Option<RegionId> {
    let table = edge.table()?;
    let is_planned = table.role(region) == Role::Planned;
    let is_at_home = guest_of.is_none_or(|home| table.sends(home, region));
    (is_planned && is_at_home).then(|| region.clone())
}

/// Whether the plan leaves the stack of a session in service, so that only the region is the reason to leave.
fn is_in_service(edge: &Edge, decision: &Decision) -> bool {
    let table = edge.table();
    table.is_some_and(|table| table.serves(&decision.region, decision.stack))
}

/// The wanted stack of a session that leaves its own.
struct Wanted<'a> {
    caller: &'a Caller,
    /// The version of the stack it was at.
    version: &'a str,
    /// The region it was in, if it may stay there.
    stays: Option<Affinity>,
    /// It leaves for a region of its shares, or not at all.
    planned_only: bool,
    why: LeaveReason,
}

/// A stack that goes on with a session.
struct Found {
    decision: Box<Decision>,
    at_stack: AtStack,
    stream: Link,
    early: BytesMut,
    /// When the session's id there was issued.
    issued_at: Moment,
}

/// The id of a session at a stack.
fn session_id(edge: &Edge, caller: &Caller, decision: &Decision, issued_at: Moment) -> String {
    let key = &edge.config.affinity_key.0;
    key.issue_session(
        &caller.session,
        caller.owner(),
        &decision.region,
        decision.stack,
        issued_at,
    )
}

/// Finds a region that goes on with a session, and hands the session to it. A session that still has a region does not wait.
async fn find_next(edge: &Arc<Edge>, wanted: &Wanted<'_>, request: &[u8], tried: &mut Tried) -> Option<Found> {
    let Wanted {
        caller,
        version,
        stays,
        planned_only,
        why,
    } = wanted;
    let user = User {
        name: &caller.user,
        version: Some(version),
    };
    let give_up_at = Instant::now() + edge.config.continuity.deadline.0;
    let (mut pause_max, mut failed) = (ROUND_PAUSE, Vec::new());
    loop {
        let table = edge.table()?;
        let picked = edge.fleet.pick_and_look(
            &table,
            &caller.session_key,
            user,
            stays.as_ref(),
            tried,
            daemon::clock::now(),
        );
        // A round is over when every stack was asked, or when this edge has no room to ask any.
        let (picked, lacks_room) = match picked {
            Some(picked) if !edge.admission.is_exhausted() => (Some(Box::new(picked)), false),
            picked => (None, picked.is_some()),
        };
        let Some(picked) = picked else {
            let pause = rand::random_range(Duration::ZERO..=pause_max);
            let session = registered_name(&caller.session_key);
            let asked = std::mem::take(&mut failed).join("; ");
            let gives_up = why.is_optional() || Instant::now() + pause > give_up_at;
            let request_id = caller.id.as_str();
            tracing::info!(
                %request_id,
                session,
                asked,
                lacks_room,
                gives_up,
                "no region goes on with a session"
            );
            if gives_up {
                return None;
            }
            tokio::time::sleep(pause).await;
            pause_max = (2 * pause_max).min(ROUND_PAUSE_MAX);
            // A wait for room asked no stack, so the tried stacks stay tried: the one that was just lost, for example.
            if !lacks_room {
                tried.clear();
            }
            continue;
        };
        if *planned_only && !matches!(picked.decision.why, pick::Rule::Share(_) | pick::Rule::Overflow) {
            return None;
        }
        let gate = edge.fleet.gate(picked.decision.stack);
        let Some(_permit) = wait_for_slot(edge, &picked, &gate, give_up_at).await else {
            if Instant::now() >= give_up_at {
                return None;
            }
            continue;
        };
        let decision = Box::new(picked.decision);
        let at_stack = edge.begins(&decision);
        let issued_at = daemon::clock::now().max(caller.issued_at + Duration::from_millis(1));
        let id = session_id(edge, caller, &decision, issued_at);
        // Before the empty line that ends the head.
        let lines = request.strip_suffix(b"\r\n").unwrap_or(request);
        let request = [lines, format!("{}: {id}\r\n\r\n", wire::SESSION_HEADER).as_bytes()].concat();
        match ask(edge, &decision, &request, &caller.id).await {
            Ok(Asked::Accepted(accepted)) if accepted.carries_on => {
                return Some(Found {
                    decision,
                    at_stack,
                    stream: accepted.stream,
                    early: accepted.early,
                    issued_at,
                });
            }
            Ok(_) => failed.push(format!("{} does not go on with sessions of others", decision.region)),
            Err(failure) => {
                let fault = not_taken(edge, &decision, &failure);
                failed.push(format!("{} {failure}", decision.region));
                if fault == Fault::Edge && why.is_optional() {
                    return None;
                }
                // The stack was not asked: this edge had no descriptor or port for it. The loop pauses until it may have.
                if failure.is_local() {
                    continue;
                }
            }
        }
        tried.stack(&decision.region, decision.stack);
    }
}

/// Waits for a slot among the sessions that ask a stack at once. `None` when the time is up, or when the decision no longer
/// holds: there is a newer plan, or this edge ejected the stack or lost sight of its region since it picked the stack.
async fn wait_for_slot<'g>(
    edge: &Edge,
    Picked { decision, was_out }: &Picked,
    gate: &'g Semaphore,
    give_up_at: Instant,
) -> Option<SemaphorePermit<'g>> {
    let is_out = || {
        let now = daemon::clock::now();
        edge.fleet.is_out(&decision.region, decision.stack, now)
    };
    let mut slot = pin!(gate.acquire());
    loop {
        let look_at = (Instant::now() + GATE_LOOK_EVERY).min(give_up_at);
        let taken = timeout_at(look_at, slot.as_mut()).await;
        let is_planned = edge.table().is_some_and(|table| table.number() == decision.plan);
        if !is_planned || (!*was_out && is_out()) {
            return None;
        }
        match taken {
            Ok(permit) => return permit.ok(),
            Err(_) if Instant::now() >= give_up_at => return None,
            Err(_) => {}
        }
    }
}

/// The two ends of a move.
struct Move<'a> {
    caller: &'a Caller,
    from: &'a Decision,
    to: &'a Decision,
    why: LeaveReason,
    lost_at: Instant,
}

/// Hands the session over. A device that asks for such events gets one, unless the user notices nothing: the
/// region was alive and no turn in progress. Every other device is told only that its last words are lost, by the
/// protocol's own `error` event; otherwise it would wait for an answer that never comes.
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
        if !caller.is_told {
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
            // The headers of the handshake said the old one.
            "affinity": edge.session_token(&caller.holder, &to.region),
            // And `session.created` the old id.
            "session": session_id(edge, caller, to, caller.issued_at),
        });
        Some(frame_for_device(
            OpCode::Data(Data::Text),
            notice.to_string().as_bytes(),
        ))
    });
}

/// A session's key for the log: devices choose it, so it is bounded.
fn registered_name(session_key: &str) -> &str {
    session_key.get(..session_key.len().min(64)).unwrap_or("(not ASCII)")
}

pub(super) fn join(items: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use daemon::config::Rules as _;
    use prometheus_client::registry::Registry;
    use topology::{fixtures::three_primaries, snapshot::digest};

    use super::*;
    use crate::{Config, metrics::Metrics};

    /// Regression: a stack that was ejected between the choice and the wait counted as one that was out all along. The session
    /// waited for it until its deadline, while other stacks were well.
    #[tokio::test(start_paused = true)]
    async fn a_stack_that_went_out_since_it_was_picked_is_not_waited_for() {
        let config: Config = daemon::config::parse("test", Config::EXAMPLE).unwrap();
        let edge = Edge::new(config, Metrics::new(&mut Registry::default()));
        let mut snapshot = three_primaries();
        snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
        edge.apply(&snapshot);
        let (table, tried, now) = (edge.table().unwrap(), Tried::default(), daemon::clock::now());
        let picked = edge
            .fleet
            .pick_and_look(&table, "anna", User::default(), None, &tried, now);
        let mut picked = picked.unwrap();
        assert!(!picked.was_out);
        let (region, stack) = (picked.decision.region.clone(), picked.decision.stack);
        let ejected = (0..100).any(|_| edge.fleet.refused(&region, stack, "no answer", now).is_some());
        assert!(ejected);

        // Other sessions have all slots, and keep them.
        let gate = Semaphore::new(0);
        let began = Instant::now();
        let deadline = began + Duration::from_secs(5);
        assert!(wait_for_slot(&edge, &picked, &gate, deadline).await.is_none());
        assert!(Instant::now() <= began + 2 * GATE_LOOK_EVERY, "{:?}", began.elapsed());
        // One that was picked although it was out is the last that there is.
        picked.was_out = true;
        assert!(wait_for_slot(&edge, &picked, &gate, deadline).await.is_none());
        assert!(Instant::now() >= deadline, "{:?}", began.elapsed());
    }
}
