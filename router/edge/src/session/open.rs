//! The opening of a voice session: a device's WebSocket goes to the stack it belongs to, or to the next one that answers.

use std::{net::SocketAddr, sync::Arc};

use auth::SessionPlace;
use bytes::BytesMut;
use routing::{Affinity, Decision, Tried, User, admit::Arrival, affinity::Proof, user};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, timeout},
};
use topology::RegionId;

use crate::{
    Edge,
    accept::access::Refused,
    accept::admission::SessionSlot,
    answer::Answer,
    device::{Io, decline, draining, goodbye},
    edge::{AtStack, session_key},
    fault::Fault,
    http1::{request::USER, upgrade::Upgrade},
    request_id::RequestId,
    session::ask::{Accepted, AskError, Asked, ask, not_taken, signed},
    session::caller::Caller,
    session::live::{NewConnection, Session, converse, join},
    session::registry::Busy,
    session::resume::Resuming,
    stamp::Stamp,
    texts,
};

/// An upgrade that the edge has read.
pub struct Arrived {
    pub upgrade: Upgrade,
    /// The first bytes behind its head.
    pub early: BytesMut,
    pub client: SocketAddr,
}

/// Serves one upgrade to the end of its session.
///
/// The opening is in a box of its own and ends long before the session does: thousands of sessions keep their memory for hours, so
/// it should be small.
pub async fn serve(edge: &Arc<Edge>, device: &mut dyn Io, arrived: Box<Arrived>) {
    let Some(session) = Box::pin(begin(edge, device, arrived)).await else {
        return;
    };
    converse(edge, device, session).await;
}

/// Opens the session and passes the answer of its stack on, or refuses the device with the reason.
async fn begin(edge: &Arc<Edge>, device: &mut dyn Io, arrived: Box<Arrived>) -> Option<Box<Session>> {
    let Arrived {
        mut upgrade,
        early,
        client,
    } = *arrived;
    let busy = edge.sessions.busy();
    let stamp = Stamp::from(upgrade.id());
    let id = &stamp.id;
    if edge.sessions.refuses() {
        edge.refused("draining", id);
        decline(edge, device, &stamp, &draining()).await;
        return None;
    }
    let place = match recognise(edge, &mut upgrade, client) {
        Ok(place) => place,
        Err((reason, answer)) => {
            edge.refused(reason, id);
            decline(edge, device, &stamp, &answer).await;
            return None;
        }
    };
    let requester = Requester::of(edge, &upgrade, client);
    // Admission needs to know whether the device returns before the edge spends anything on it.
    let arrival = match &requester.affinity {
        Some(affinity) if affinity.proof == Proof::HadSession => Arrival::Returning,
        Some(_) | None => Arrival::Newcomer,
    };
    // No rate counts for returning devices: when an edge is lost, those of a tenant come back together.
    let counted = place.as_ref().map_or(Ok(()), |place| match arrival {
        Arrival::Newcomer => place.usage().begin(daemon::clock::now()),
        Arrival::Returning => place.usage().has_bytes(daemon::clock::now()),
    });
    if let Err(exceeded) = counted {
        let refused = Refused::from(exceeded);
        let (reason, answer) = edge.admission.refuse(client.ip(), (refused.as_str(), refused.answer()));
        edge.refused(reason, id);
        decline(edge, device, &stamp, &answer).await;
        return None;
    }
    let (slot, handshake) = match edge.admission.session(client.ip(), arrival) {
        Ok(slots) => slots,
        Err(refusal) => {
            edge.refused(refusal.as_str(), id);
            decline(edge, device, &stamp, &refusal.answer()).await;
            return None;
        }
    };
    let opened = open(edge, &upgrade, id, requester).await;
    drop((upgrade, handshake));
    match opened {
        Opened::Session(mut taken) => {
            taken.caller.place = place;
            return agree(edge, device, *taken, early, client, (busy, slot)).await;
        }
        Opened::Declined(mut answer) => {
            if timeout(edge.config.timeouts.close.0, device.write_all(&answer))
                .await
                .is_ok()
            {
                answer.clear();
                goodbye(device, edge.config.timeouts.close.0).await;
            }
        }
        Opened::EdgeFull => {
            edge.refused("exhausted", id);
            decline(edge, device, &stamp, &Answer::edge_full()).await;
        }
        Opened::Nowhere(tried) => {
            edge.refused("no-region", id);
            let tried = tried.regions();
            let tried = if tried.is_empty() {
                "none".to_owned()
            } else {
                join(tried)
            };
            tracing::warn!(request_id = %id, %client, tried, "{}", texts::NO_REGION_TOOK_SESSION);
            let message = texts::no_region_for_session(&tried);
            decline(edge, device, &stamp, &Answer::unavailable("no_region", message, 2)).await;
        }
    }
    None
}

/// Recognises the device, where this edge recognises devices, and takes a place of its tenant for the session.
fn recognise(
    edge: &Edge,
    upgrade: &mut Upgrade,
    client: SocketAddr,
) -> Result<Option<SessionPlace>, (&'static str, Answer)> {
    let Some(access) = &edge.access else { return Ok(None) };
    // A signature costs as much as a session's first second: the edge verifies none of a client that asks too often.
    let allowed = edge.admission.may_ask(client.ip());
    allowed.map_err(|refusal| (refusal.as_str(), refusal.answer()))?;
    let admitted = access.admit(upgrade.credential(), daemon::clock::now());
    let place = admitted.and_then(|admitted| {
        let place = admitted.usage.session()?;
        upgrade.vouched = Some(admitted.device);
        Ok(place)
    });
    let place = place.map_err(|refused| edge.admission.refuse(client.ip(), (refused.as_str(), refused.answer())))?;
    Ok(Some(place))
}

/// The device of one upgrade: the facts about it that are hashed and verified once.
struct Requester {
    client: SocketAddr,
    /// The holder to whom the affinity tokens of its session are issued.
    holder: String,
    /// The region in which it had a session, if its token proves that.
    affinity: Option<Affinity>,
}

impl Requester {
    fn of(edge: &Edge, upgrade: &Upgrade, client: SocketAddr) -> Self {
        let holder = match &upgrade.vouched {
            Some(device) => device.holder(),
            None => {
                let given = upgrade.header(USER).or_else(|| upgrade.query("user"));
                user::holder(upgrade.header("authorization"), given, client.ip())
            }
        };
        let token = upgrade
            .header("meridian-affinity")
            .or_else(|| upgrade.query("affinity"));
        let affinity = token.and_then(|token| {
            edge.affinity_tokens
                .verify_of(token, Some(&holder), daemon::clock::now())
        });
        Self {
            client,
            holder,
            affinity,
        }
    }
}

enum Opened {
    Session(Box<Taken>),
    /// A region declined: the device gets its answer unchanged.
    Declined(Vec<u8>),
    /// This edge has no room to ask any region.
    EdgeFull,
    Nowhere(Tried),
}

/// A session that a stack took, before the edge tells the device.
struct Taken {
    decision: Box<Decision>,
    at_stack: AtStack,
    accepted: Accepted,
    caller: Caller,
    /// The request to go on with the session elsewhere, if its stack can hand it over.
    resume_request: Option<Box<[u8]>>,
    /// Whether an earlier session goes on, at a stack that remembers it.
    is_resumed: bool,
}

/// Opens the session in the first region that takes it.
async fn open(edge: &Arc<Edge>, upgrade: &Upgrade, id: &RequestId, requester: Requester) -> Opened {
    let Some(table) = edge.table() else {
        return Opened::Nowhere(Tried::default());
    };
    let Requester {
        client,
        holder,
        affinity,
    } = requester;
    let named = upgrade.header("meridian-session").or_else(|| upgrade.query("session"));
    let session_key = session_key(named, client.ip());
    let user = upgrade.user(client);
    let whose = User {
        name: &user,
        version: None,
    };
    let offers = edge.config.continuity.replay_bytes_max > 0;
    let asks_load = format!("{}: {}\r\n", wire::LOAD_HEADER, wire::VERSION);
    let offer = format!(
        "{}: {}\r\n{}: 1\r\n{asks_load}",
        wire::HEADER,
        wire::VERSION,
        wire::TURNS_HEADER
    );
    let request = upgrade.forwarded(&edge.id, id, if offers { &offer } else { &asks_load });
    let owner = upgrade.vouched.as_ref().map_or("", |_| holder.as_str());
    let mut resuming = Resuming::new(edge, (upgrade.query("resume"), owner), id, daemon::clock::now());
    let mut tried = Tried::up_to(edge.config.limits.regions_tried_max);
    let mut lacks_room = false;
    loop {
        let now = daemon::clock::now();
        let steers = resuming.affinity().or(affinity.as_ref());
        let picked = edge.fleet.pick(&table, &session_key, whose, steers, &tried, now);
        let picked = picked.filter(|_| !resuming.has_asked_enough());
        let picked = picked.map(|decision| resuming.at_its_stack(decision, &table));
        let Some(decision) = picked.or_else(|| resuming.settles(edge, now)) else {
            match resuming.gives_up(edge, id, now) {
                Some(tried_for_new) => tried = tried_for_new,
                None => break,
            }
            continue;
        };
        let decision = Box::new(decision);
        // Counted before the edge asks the stack: of a hundred sessions that come at once, each must count the others.
        let at_stack = edge.begins(&decision);
        let home_zone = table.time_zone(&decision.home);
        let request = resuming.request(&request, edge, &decision, home_zone, now);
        match ask(edge, &decision, &request, id).await {
            Ok(Asked::Accepted(mut accepted)) => {
                edge.note_version(&decision, id);
                if let Some(first) = resuming.first_frame().filter(|_| accepted.takes_state) {
                    // A failure shows later, like any other write of a session.
                    let sending = async {
                        accepted.stream.write_all(&first).await?;
                        accepted.stream.flush().await
                    };
                    let _ = timeout(edge.config.timeouts.upgrade.0, sending).await;
                }
                if resuming.is_taken(accepted.takes_state) {
                    edge.parked.remove(resuming.name());
                }
                let resume_request = (offers && accepted.carries_on).then(|| {
                    let resume = format!("{offer}{}: 1\r\n", wire::RESUME_HEADER);
                    upgrade.forwarded(&edge.id, id, &resume).into()
                });
                let is_resumed = resuming.is_found();
                let (name, issued_at) = resuming.into_name();
                let taken = Taken {
                    is_resumed,
                    decision,
                    at_stack,
                    accepted,
                    caller: Caller {
                        id: id.clone(),
                        session_key: session_key.into(),
                        user: user.into(),
                        holder: holder.into(),
                        device: upgrade.vouched.clone(),
                        place: None,
                        session: name.into(),
                        issued_at,
                        takes_events: asks_for_events(upgrade),
                    },
                    resume_request,
                };
                return Opened::Session(Box::new(taken));
            }
            Ok(Asked::Declined(answer, revision)) if resuming.goes_on(&answer, revision, &decision) => {
                tried.refused_for_good(decision.stack);
            }
            Ok(Asked::Declined(answer, _)) => return Opened::Declined(answer),
            Err(failure) => {
                resuming.failed(&decision);
                let (fault, why) = (not_taken(edge, &decision, &failure), failure.to_string());
                let (region, stack) = (&decision.region, decision.stack);
                let fault_name = fault.as_str();
                tracing::info!(request_id = %id, %region, %stack, why, fault = fault_name, "a stack did not take a session");
                if fault == Fault::Edge {
                    lacks_room = true;
                    // Without descriptors or ports the edge can ask no other region either; without a route it may reach a region
                    // near by.
                    if matches!(failure, AskError::Connect(_)) && failure.is_local() {
                        break;
                    }
                }
                tried.stack(region, stack);
            }
        }
    }
    if lacks_room {
        Opened::EdgeFull
    } else {
        Opened::Nowhere(tried)
    }
}

/// Passes the region's 101 on to the device.
async fn agree(
    edge: &Arc<Edge>,
    device: &mut dyn Io,
    taken: Taken,
    early: BytesMut,
    client: SocketAddr,
    (busy, slot): (Busy, SessionSlot),
) -> Option<Box<Session>> {
    let Taken {
        decision,
        at_stack,
        accepted,
        caller,
        resume_request,
        is_resumed,
    } = taken;
    let since = daemon::clock::now();
    let began = Instant::now();
    let token = edge.affinity_tokens.issue_to(&caller.holder, &decision.region);
    let ours = format!(
        "X-Request-Id: {}\r\nMeridian-Affinity: {token}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        caller.id
    );
    let answer = signed(accepted.answer, edge, &decision.region, &ours);
    edge.fleet.traffic.session_began(&decision);
    let device_of = caller.device.clone();
    let registered = edge
        .sessions
        .register(&decision.region, decision.stack, since, device_of);
    let passed_on = timeout(edge.config.timeouts.close.0, device.write_all(&answer)).await;
    if !matches!(passed_on, Ok(Ok(()))) {
        tracing::info!(request_id = %caller.id, region = %decision.region, %client, "the device left before its session began");
        edge.metrics.session_ended(&decision.region, "device-lost", 0, 0);
        return None;
    }
    let is_sent = |home: &RegionId| edge.table().is_some_and(|table| table.sends(home, &decision.region));
    Some(Box::new(Session {
        guest_of: Some(decision.home.clone()).filter(|home| is_resumed && !is_sent(home)),
        decision,
        caller,
        client,
        resume_request,
        began,
        new_connection: Some(Box::new(NewConnection {
            stream: accepted.stream,
            early_of_device: early,
            early_of_region: accepted.early,
        })),
        search: None,
        moves: 0,
        last_fault: None,
        at_stack,
        registered,
        _slot: slot,
        _busy: busy,
    }))
}

/// Whether a device asks for events beyond the protocol, `meridian.*`, as it asks stacks for theirs.
fn asks_for_events(upgrade: &Upgrade) -> bool {
    upgrade.query("meridian").or_else(|| upgrade.header("meridian-events")) == Some("1")
}
