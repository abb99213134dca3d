//! The voice tunnel: a device's WebSocket, opened in the region it belongs to, or in the next one that answers.

use std::{
    future::{Future, pending},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use routing::{
    Affinity, Decision, Standing, Tried, User, admit::Arrival, affinity::Proof, continuity::Why, pick::Ignored, user,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};
use topology::{
    RegionId,
    words::{self, Load},
};

use crate::{
    Edge,
    answer::Answer,
    edge::{AtStack, Failed, session_key},
    fault::{Cause, Event, Facts, Fault},
    frames::{code, frame_for_device, opcode},
    head::{self, Bounds, Head, HeadError, Kind, USER, Upgrade},
    http1::{Body, Response},
    kept::Kept,
    patience::Patience,
    relay::{Io, Outcome, Relay, goodbye},
};

/// Largest answer of a region that declines an upgrade: an error message.
const DECLINED_BYTES_MAX: usize = 64 << 10;
/// The reason of a 503 comes with its head. Who has none in this time is not waited for: the next region is asked.
const REASON_WAIT: Duration = Duration::from_millis(500);
/// When no region takes a session that lost its own, they are asked again after a pause: one may just be starting. Each session
/// draws its own, up to this long at first ("full jitter"), so that those that lost their region together do not ask together.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// It doubles with every round, up to this: a region that comes back is found within a second or two.
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(2);
/// A region that lost the session is not asked again for this long, as long as there are others. This edge ejects it only
/// when it loses many.
const AVOIDED_FOR: Duration = Duration::from_secs(30);
/// How often a session that waits for a place at a stack looks whether the stack is still the one to wait for. Short against
/// the wait for an answer (`timeouts.upgrade`), or the sessions behind a frozen stack run out of patience in its queue.
const GATE_LOOK_EVERY: Duration = Duration::from_millis(200);

/// Serves one upgrade from the first byte behind its head (`early`) to the end of its session.
pub async fn serve(edge: &Arc<Edge>, device: &mut dyn Io, upgrade: Upgrade, early: BytesMut, client: SocketAddr) {
    let _busy = edge.sessions.busy();
    if edge.sessions.refuses() {
        edge.metrics.refused("draining");
        return decline(edge, device, &draining()).await;
    }
    // Whether a device was here before is known before anything is spent on it.
    let arrival = match affinity(edge, &upgrade, client) {
        Some(affinity) if affinity.proof == Proof::HadSession => Arrival::Returning,
        Some(_) | None => Arrival::Newcomer,
    };
    let (place, handshake) = match edge.admission.session(client.ip(), arrival) {
        Ok(places) => places,
        Err(refusal) => {
            edge.metrics.refused(refusal.as_str());
            return decline(edge, device, &refusal.answer()).await;
        }
    };
    // What is in a box here is over long before the session is, and what a session keeps for hours should be small.
    let opened = Box::pin(open(edge, &upgrade, client)).await;
    drop((upgrade, handshake));
    match opened {
        Opened::Session(opened) => converse(edge, device, *opened, early, client).await,
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
            edge.metrics.refused("exhausted");
            decline(edge, device, &Answer::edge_full()).await;
        }
        Opened::Nowhere(tried) => {
            edge.metrics.refused("no-region");
            let tried = tried.regions();
            let tried = if tried.is_empty() {
                "none".to_owned()
            } else {
                join(tried)
            };
            tracing::warn!(%client, tried, "no region took the session");
            let message = format!("no region could take the session (tried {tried}); try again");
            decline(edge, device, &Answer::unavailable("no_region", message, 2)).await;
        }
    }
    drop(place);
}

/// Where the device was before, if it can prove it.
fn affinity(edge: &Edge, upgrade: &Upgrade, client: SocketAddr) -> Option<Affinity> {
    let token = upgrade
        .header("meridian-affinity")
        .or_else(|| upgrade.query("affinity"))?;
    edge.affinity_of(token, Some(&holder(upgrade, client)), daemon::clock::now())
}

/// Whom the affinity tokens of a session are issued to.
fn holder(upgrade: &Upgrade, client: SocketAddr) -> String {
    let given = upgrade.header(USER).or_else(|| upgrade.query("user"));
    user::holder(upgrade.header("authorization"), given, client.ip())
}

/// What a device is told that comes while the edge stops.
pub fn draining() -> Answer {
    Answer::unavailable(
        "edge_draining",
        "this edge is stopping; connect again to reach another",
        1,
    )
}

/// Answers with an error and ends the connection.
pub async fn decline(edge: &Edge, device: &mut dyn Io, answer: &Answer) {
    say_last(edge, device, &answer.bytes()).await;
}

/// Says this, and ends the connection.
pub async fn say_last(edge: &Edge, device: &mut dyn Io, bytes: &[u8]) {
    let patience = edge.config.timeouts.close.0;
    if let Ok(Ok(())) = timeout(patience, device.write_all(bytes)).await {
        goodbye(device, patience).await;
    }
}

enum Opened {
    Session(Box<Session>),
    /// A region answered, and the answer is no: the device gets it as it is.
    Declined(Vec<u8>),
    /// This edge has no room to ask any region.
    EdgeFull,
    /// No region answered.
    Nowhere(Tried),
}

struct Session {
    decision: Box<Decision>,
    at_stack: AtStack,
    accepted: Accepted,
    caller: Box<Caller>,
    /// The request to go on with the session elsewhere, if its stack can hand it over.
    resume_request: Option<Box<[u8]>>,
}

/// Whose session it is. In a box, because a session keeps it for hours and needs it when its region is lost.
struct Caller {
    session_key: String,
    user: String,
    /// Whom its affinity tokens are issued to.
    holder: String,
}

/// Opens the session in the first region that takes it.
async fn open(edge: &Arc<Edge>, upgrade: &Upgrade, client: SocketAddr) -> Opened {
    let Some(table) = edge.table() else {
        return Opened::Nowhere(Tried::default());
    };
    let affinity = affinity(edge, upgrade, client);
    let named = upgrade.header("meridian-session").or_else(|| upgrade.query("session"));
    let session_key = session_key(named, client.ip());
    let user = upgrade.user(client);
    let whose = User {
        name: &user,
        version: None,
    };
    let offers = edge.config.continuity.replay_bytes_max > 0;
    let asks_load = format!("{}: {}\r\n", words::LOAD_HEADER, words::VERSION);
    let offer = format!(
        "{}: {}\r\n{}: 1\r\n{asks_load}",
        words::HEADER,
        words::VERSION,
        words::TURNS_HEADER
    );
    let request = upgrade.forwarded(&edge.id, if offers { &offer } else { &asks_load });
    let mut tried = Tried::up_to(edge.config.limits.regions_tried_max);
    let mut lacks_room = false;
    while let Some(decision) = edge.seen.pick(
        &table,
        &session_key,
        whose,
        affinity.as_ref(),
        &tried,
        daemon::clock::now(),
    ) {
        let decision = Box::new(decision);
        // From before it is asked: of a hundred sessions that come at once each shall know of the others.
        let at_stack = edge.begins(&decision);
        match ask(edge, &decision, &request).await {
            Ok(Asked::Accepted(accepted)) => {
                edge.note_version(&decision);
                let resume_request = (offers && accepted.carries_on).then(|| {
                    let resume = format!("{offer}{}: 1\r\n", words::RESUME_HEADER);
                    upgrade.forwarded(&edge.id, &resume).into()
                });
                let session = Session {
                    decision,
                    at_stack,
                    accepted,
                    caller: Box::new(Caller {
                        session_key,
                        user,
                        holder: holder(upgrade, client),
                    }),
                    resume_request,
                };
                return Opened::Session(Box::new(session));
            }
            Ok(Asked::Declined(answer)) => return Opened::Declined(answer),
            Err(failure) => {
                let (fault, why) = (not_taken(edge, &decision, &failure), failure.to_string());
                let (region, stack) = (&decision.region, decision.stack);
                tracing::info!(%region, %stack, why, fault = fault.as_str(), "a stack did not take a session");
                if fault == Fault::Edge {
                    lacks_room = true;
                    // Without descriptors or ports no other region can be asked either.
                    if matches!(failure, AskError::Connect(_)) {
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

/// Counts what came of asking a stack that did not take a session.
fn not_taken(edge: &Edge, decision: &Decision, failure: &AskError) -> Fault {
    edge.metrics.connect(&decision.region, failure.outcome());
    edge.blame(decision, Failed::ToBegin, failure.facts(edge), &failure.to_string())
}

enum Asked {
    Accepted(Accepted),
    Declined(Vec<u8>),
}

/// A stack took the session.
struct Accepted {
    stream: TcpStream,
    /// The head of its answer as the device gets it, without its end.
    answer: Vec<u8>,
    /// What it sent behind that.
    early: BytesMut,
    /// Whether it says the words of session continuity.
    carries_on: bool,
}

/// Why a region did not take a session.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("connect: no answer within {0:?}")]
    ConnectTimeout(Duration),
    #[error("upgrade: no answer within {0:?}")]
    UpgradeTimeout(Duration),
    #[error("upgrade: {1}")]
    Upgrade(Event, String),
    #[error("upgrade: answered {0}")]
    Status(u16),
    #[error("upgrade: answered that it is full, {0}")]
    Full(Load),
    #[error("upgrade: answered 429")]
    TooMany,
    #[error("upgrade: answered that it drains")]
    Draining,
}

impl AskError {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect-failed",
            Self::ConnectTimeout(_) => "connect-timeout",
            Self::UpgradeTimeout(_) | Self::Upgrade(..) => "upgrade-failed",
            Self::Status(_) | Self::Draining => "upgrade-refused",
            Self::Full(_) | Self::TooMany => "full",
        }
    }

    fn facts(&self, edge: &Edge) -> Facts {
        match self {
            Self::Connect(error) => Facts::io(error),
            Self::ConnectTimeout(limit) | Self::UpgradeTimeout(limit) => Facts::timed_out(edge.lag.is_late_for(*limit)),
            Self::Upgrade(event, _) => (*event).into(),
            Self::Status(status) => Facts::answered(*status, false),
            Self::Full(_) => Facts::answered(503, true),
            Self::TooMany => Facts::answered(429, true),
            Self::Draining => Event::Closed(code::GOING_AWAY).into(),
        }
    }

    /// Whether this machine lacked something to ask with: descriptors, ports, buffers.
    fn is_local(&self) -> bool {
        match self {
            Self::Connect(error) => Cause::of(error) == Cause::Local,
            Self::Upgrade(event, _) => *event == Event::Io(Cause::Local),
            _ => false,
        }
    }

    fn broken(event: Event, what: impl std::fmt::Display) -> Self {
        Self::Upgrade(event, what.to_string())
    }

    fn head(error: &HeadError, limit: Duration) -> Self {
        match error {
            HeadError::Gone => Self::broken(Event::Ended, error),
            HeadError::Quiet | HeadError::TooSlow => Self::UpgradeTimeout(limit),
            HeadError::TooLarge | HeadError::Malformed(_) => Self::broken(Event::Nonsense, error),
        }
    }
}

/// Asks one stack.
async fn ask(edge: &Edge, decision: &Decision, request: &[u8]) -> Result<Asked, AskError> {
    let timeouts = &edge.config.timeouts;
    let (region, stack) = (&decision.region, decision.stack);
    let began = Instant::now();
    let mut stream = timeout(timeouts.connect.0, TcpStream::connect(stack))
        .await
        .map_err(|_| AskError::ConnectTimeout(timeouts.connect.0))?
        .map_err(AskError::Connect)?;
    edge.metrics.connect_took(region, began.elapsed());
    edge.seen.reached(region, stack, began.elapsed(), daemon::clock::now());
    // Voice frames are small and must not wait for more; a socket that refuses this still works.
    let _ = stream.set_nodelay(true);

    let sent = timeout(timeouts.upgrade.0, stream.write_all(request)).await;
    sent.map_err(|_| AskError::UpgradeTimeout(timeouts.upgrade.0))?
        .map_err(|error| AskError::broken(Facts::io(&error).event, error))?;
    let bounds = Bounds {
        first: timeouts.upgrade.0,
        rest: timeouts.upgrade.0,
        bytes_max: edge.config.limits.header_bytes_max,
    };
    let mut read = head::read(&mut stream, Kind::Response, bounds)
        .await
        .map_err(|error| AskError::head(&error, timeouts.upgrade.0))?;
    let mut answer = parse(&read)?;
    // What is said on the way is not the answer (RFC 9110 §15.2).
    while matches!(answer.status, 100 | 102..200) {
        let rest = read.bytes.split_off(read.len);
        read = head::read_on(&mut stream, Kind::Response, bounds, &mut Patience::default(), rest)
            .await
            .map_err(|error| AskError::head(&error, timeouts.upgrade.0))?;
        answer = parse(&read)?;
    }
    let load = answer.load;
    let is_full = load.is_some_and(|load| edge.seen.loaded(stack, load, daemon::clock::now()));
    match (answer.status, load) {
        (101, _) => {}
        (503, Some(load)) if is_full => return Err(AskError::Full(load)),
        // Its own limit, not the device's: another stack may have room.
        (429, _) => return Err(AskError::TooMany),
        (503, _) => {
            let body = read.bytes.split_off(read.len);
            let reading = timeout(REASON_WAIT, read_body(&mut stream, &mut answer.body, body));
            let drains = matches!(reading.await, Ok(Ok(body)) if says_draining(&body));
            return Err(if drains {
                AskError::Draining
            } else {
                AskError::Status(503)
            });
        }
        (status @ 500.., _) => return Err(AskError::Status(status)),
        _ => {
            // It works and says no, to a wrong key perhaps. Another region would say the same.
            let body = read.bytes.split_off(read.len);
            let reading = timeout(timeouts.upgrade.0, read_body(&mut stream, &mut answer.body, body));
            let body = reading
                .await
                .map_err(|_| AskError::UpgradeTimeout(timeouts.upgrade.0))??;
            edge.metrics.connect(region, "declined");
            edge.seen.answered(region, stack, began.elapsed(), daemon::clock::now());
            let declined = [
                &signed(answer.returned, edge, region, "Connection: close\r\n")[..],
                &body,
            ]
            .concat();
            return Ok(Asked::Declined(declined));
        }
    }
    if has_line(&read, |line| line.name.eq_ignore_ascii_case("sec-websocket-extensions")) {
        let what = "it insists on an extension that was not offered";
        return Err(AskError::broken(Event::Nonsense, what));
    }
    edge.metrics.connect(region, "ok");
    edge.seen.answered(region, stack, began.elapsed(), daemon::clock::now());
    // Whether it will say the words of session continuity.
    let speaks = |line: &httparse::Header<'_>| {
        line.name.eq_ignore_ascii_case(words::HEADER) && line.value == words::VERSION.as_bytes()
    };
    Ok(Asked::Accepted(Accepted {
        stream,
        carries_on: has_line(&read, speaks),
        early: read.bytes.split_off(read.len),
        answer: answer.returned,
    }))
}

/// Whether an answer is the one of a stack that stops in order. Its load cannot say so: it may have room for hundreds.
fn says_draining(body: &[u8]) -> bool {
    let answer = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    answer.pointer("/error/code").and_then(serde_json::Value::as_str) == Some("region_draining")
}

fn parse(read: &Head) -> Result<Response, AskError> {
    let answer = Response::parse(&read.bytes[..read.len], false);
    let answer = answer.map_err(|error| AskError::broken(Event::Nonsense, error))?;
    answer.ok_or_else(|| AskError::broken(Event::Nonsense, "it does not speak HTTP"))
}

/// Reads the body of an answer that declines, of which `read` came already.
async fn read_body(stream: &mut TcpStream, body: &mut Body, mut read: BytesMut) -> Result<BytesMut, AskError> {
    let broken = |error| AskError::broken(Event::Nonsense, error);
    let mut taken = body.take(&read).map_err(broken)?;
    while !body.is_done() {
        if read.len() > DECLINED_BYTES_MAX {
            return Err(AskError::broken(Event::Nonsense, "it declines at too great a length"));
        }
        match stream.read_buf(&mut read).await {
            Ok(0) if *body == Body::UntilClose => break,
            Ok(0) => return Err(AskError::broken(Event::Ended, "its answer broke off")),
            Ok(_) => taken += body.take(&read[taken..]).map_err(broken)?,
            Err(error) => return Err(AskError::broken(Facts::io(&error).event, error)),
        }
    }
    read.truncate(taken);
    Ok(read)
}

fn has_line(read: &Head, is_it: impl Fn(&httparse::Header<'_>) -> bool) -> bool {
    let mut lines = [httparse::EMPTY_HEADER; head::LINES_MAX];
    let mut response = httparse::Response::new(&mut lines);
    response.parse(&read.bytes[..read.len]).is_ok() && response.headers.iter().any(is_it)
}

/// The head of a region's answer with what the edge says, and its end.
fn signed(mut head: Vec<u8>, edge: &Edge, region: &RegionId, extra: &str) -> Vec<u8> {
    let ours = format!("Meridian-Region: {region}\r\nMeridian-Edge: {}\r\n{extra}\r\n", edge.id);
    head.extend_from_slice(ours.as_bytes());
    head
}

/// Passes the region's 101 on and relays until the end, in one region after the other if need be.
async fn converse(edge: &Arc<Edge>, device: &mut dyn Io, session: Session, early: BytesMut, client: SocketAddr) {
    let Session {
        mut decision,
        mut at_stack,
        accepted,
        caller,
        resume_request,
    } = session;
    let since = daemon::clock::now();
    let began = Instant::now();
    let Accepted {
        stream,
        answer,
        early: mut early_from_region,
        ..
    } = accepted;
    let token = edge.session_token(&caller.holder, &decision.region);
    let ours = format!("Meridian-Affinity: {token}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    let accepted = signed(answer, edge, &decision.region, &ours);
    drop((ours, token));
    edge.seen.traffic.session_began(&decision);
    let registered = edge.sessions.register(&decision.region, decision.stack, since);
    let passed_on = timeout(edge.config.timeouts.close.0, device.write_all(&accepted)).await;
    drop(accepted);
    if !matches!(passed_on, Ok(Ok(()))) {
        tracing::info!(region = %decision.region, %client, "the device left before its session began");
        edge.metrics.session_ended(&decision.region, "device-lost", 0, 0);
        return;
    }
    let mut relay = Relay::new(device, stream, &edge.config);
    if resume_request.is_some() {
        relay.keep(Kept::new(edge, &decision));
    }
    let mut turn_to_leave = pin!(edge.sessions.turn_to_leave(registered.id));
    let mut leaving = asks_to_leave(edge, &relay, &decision, registered.id, false);
    let mut early = early;
    let (mut tried, mut last_left) = (Tried::default(), None);
    let (mut moves, mut last_fault) = (0_u32, None);
    let end = loop {
        let early_of_region = std::mem::take(&mut early_from_region);
        let run = relay.run(
            std::mem::take(&mut early),
            early_of_region,
            turn_to_leave.as_mut(),
            leaving.as_mut(),
        );
        let end = run.await;
        let lost_at = Instant::now();
        let failure = end.failure().map(|(event, what)| {
            let facts = relay.facts(event, edge.lag.is_late_for(edge.config.continuity.silence_busy.0));
            let failed = Failed::Session { client: client.ip() };
            last_fault = Some(edge.blame(&decision, failed, facts, what));
            what
        });
        let (Some(why), Some(_), Some(request)) = (end.why_to_move(), relay.kept(), &resume_request) else {
            break end;
        };
        if last_left.is_none_or(|left: Instant| left.elapsed() > AVOIDED_FOR) {
            tried.clear();
        }
        last_left = Some(lost_at);
        let stays_in = match why {
            // The others of its region may be as well as they were.
            Why::Lost | Why::Closing | Why::Declined => Some(decision.region.clone()),
            // One stack of it may be meant.
            Why::Drained => still_planned(edge, &decision.region),
            // A silence took time to notice, so it is not waited for twice; and a plan means the region.
            Why::Silent | Why::Evacuated => None,
        };
        if why == Why::Declined {
            tried.never(decision.stack);
        }
        match &stays_in {
            Some(region) => tried.stack(region, decision.stack),
            None => tried.region(&decision.region),
        }
        let wanted = Wanted {
            caller: &caller,
            version: &decision.version,
            stays: stays_in.map(|region| Affinity {
                region,
                issued_at: daemon::clock::now(),
                proof: Proof::IsThere,
            }),
            why,
        };
        match Box::pin(find_next(edge, &wanted, request, &mut tried)).await {
            Some((next, there, stream, rest)) => {
                edge.note_version(&next);
                let from = std::mem::replace(&mut decision, next);
                at_stack = there;
                early_from_region = rest;
                go_on(
                    edge,
                    &mut relay,
                    stream,
                    &Move {
                        holder: &caller.holder,
                        from: &from,
                        to: &decision,
                        why,
                        lost_at,
                    },
                );
                registered.moved(&decision.region, decision.stack);
                moves += 1;
                tracing::info!(
                    session = registered_name(&caller.session_key),
                    from = %from.region,
                    from_stack = %from.stack,
                    to = %decision.region,
                    stack = %decision.stack,
                    picked = decision.why.as_str(),
                    stack_why = %decision.stack_why,
                    load = decision.load.map(tracing::field::display),
                    skipped = join(&decision.skipped),
                    stacks_skipped = join(&decision.stacks_skipped),
                    ejection_ignored = decision.ejection_ignored.map(Ignored::as_str),
                    why = why.as_str(),
                    failure,
                    fault = last_fault.map(Fault::as_str),
                    found_after_ms = u64::try_from(lost_at.elapsed().as_millis()).unwrap_or(u64::MAX),
                    "session goes on elsewhere"
                );
                leaving = asks_to_leave(edge, &relay, &decision, registered.id, false);
            }
            None if why.is_optional() => {
                // It is still where it was, and is asked again when the next plan says the same.
                relay.stay();
                tried.clear();
                leaving = asks_to_leave(edge, &relay, &decision, registered.id, true);
            }
            None => break end,
        }
    };
    drop((leaving, at_stack, registered));
    let region = &decision.region;
    let Outcome {
        end,
        code,
        from_device,
        from_region,
    } = Box::pin(relay.part(end, region.as_str())).await;
    edge.metrics
        .session_ended(region, end.as_str(), from_device, from_region);
    tracing::info!(
        session = registered_name(&caller.session_key),
        %client,
        %region,
        stack = %decision.stack,
        version = decision.version,
        home = %decision.home,
        why = decision.why.as_str(),
        stack_why = %decision.stack_why,
        load = decision.load.map(tracing::field::display),
        skipped = join(&decision.skipped),
        stacks_skipped = join(&decision.stacks_skipped),
        ejection_ignored = decision.ejection_ignored.map(Ignored::as_str),
        plan = %decision.plan,
        duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        from_device,
        from_region,
        moves,
        end = end.as_str(),
        code,
        failure = end.failure().map(|(_, what)| what),
        fault = end.failure().and(last_fault).map(Fault::as_str),
        "session ended"
    );
}

type AsksToLeave = Pin<Box<dyn Future<Output = Why> + Send>>;

/// Resolves when the plan wants a session out of its region; never for one that can not leave. Of many that the plan can
/// wait for each has its own place, so that the next region is not asked for all of them at once.
fn asks_to_leave(edge: &Arc<Edge>, relay: &Relay<'_>, decision: &Decision, id: u64, newer: bool) -> AsksToLeave {
    if !relay.is_kept() {
        return Box::pin(pending());
    }
    let (edge, region, stack) = (edge.clone(), decision.region.clone(), decision.stack);
    Box::pin(async move {
        let why = edge.asks_to_leave(region, stack, newer).await;
        if why == Why::Drained {
            edge.sessions.turn_to_move(id, edge.config.drain.window.0).await;
        }
        why
    })
}

/// The region, if the plan sends sessions there.
fn still_planned(edge: &Edge, region: &RegionId) -> Option<RegionId> {
    let standing = edge.table()?.standing(region);
    (standing == Standing::Planned).then(|| region.clone())
}

/// What is looked for when a session leaves its stack.
struct Wanted<'a> {
    caller: &'a Caller,
    /// The version of the stack it was at.
    version: &'a str,
    /// The region it was in, if it may stay there.
    stays: Option<Affinity>,
    why: Why,
}

/// Finds a region that goes on with a session, and asks it to. A session that has a region still is not worth waiting for.
async fn find_next(
    edge: &Arc<Edge>,
    wanted: &Wanted<'_>,
    request: &[u8],
    tried: &mut Tried,
) -> Option<(Box<Decision>, AtStack, TcpStream, BytesMut)> {
    let Wanted {
        caller,
        version,
        stays,
        why,
    } = wanted;
    let user = User {
        name: &caller.user,
        version: Some(version),
    };
    let give_up_at = Instant::now() + edge.config.continuity.patience.0;
    let (mut pause_max, mut failed) = (ROUND_PAUSE, Vec::new());
    loop {
        let table = edge.table()?;
        let picked = edge.seen.pick(
            &table,
            &caller.session_key,
            user,
            stays.as_ref(),
            tried,
            daemon::clock::now(),
        );
        // A round is over when everything was asked, or nothing can be: not for want of a region, but of room here.
        let (decision, lacks_room) = match picked {
            Some(decision) if !edge.admission.is_exhausted() => (Some(Box::new(decision)), false),
            picked => (None, picked.is_some()),
        };
        let Some(decision) = decision else {
            let pause = rand::random_range(Duration::ZERO..=pause_max);
            let session = registered_name(&caller.session_key);
            let asked = std::mem::take(&mut failed).join("; ");
            let gives_up = why.is_optional() || Instant::now() + pause > give_up_at;
            tracing::info!(session, asked, lacks_room, gives_up, "no region goes on with a session");
            if gives_up {
                return None;
            }
            tokio::time::sleep(pause).await;
            pause_max = (2 * pause_max).min(ROUND_PAUSE_MAX);
            // A wait for room asked nobody, so what was tried stays tried: the stack that was just lost, for one.
            if !lacks_room {
                tried.clear();
            }
            continue;
        };
        let gate = edge.seen.gate(decision.stack);
        let Some(_permit) = wait_for_place(edge, &decision, &gate, give_up_at).await else {
            if Instant::now() >= give_up_at {
                return None;
            }
            continue;
        };
        let at_stack = edge.begins(&decision);
        match ask(edge, &decision, request).await {
            Ok(Asked::Accepted(accepted)) if accepted.carries_on => {
                return Some((decision, at_stack, accepted.stream, accepted.early));
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

/// Waits for a place among those that ask a stack at once. `None` when the time is up, or when the decision no longer holds:
/// there is a newer plan, or this edge ejected the stack or lost sight of its region meanwhile.
async fn wait_for_place<'g>(
    edge: &Edge,
    decision: &Decision,
    gate: &'g Semaphore,
    give_up_at: Instant,
) -> Option<SemaphorePermit<'g>> {
    let is_out = || {
        let now = daemon::clock::now();
        edge.seen.is_out(&decision.region, decision.stack, now)
    };
    // A stack that was picked although it is out is all there is.
    let was_out = is_out();
    let mut place = pin!(gate.acquire());
    loop {
        let look_at = (Instant::now() + GATE_LOOK_EVERY).min(give_up_at);
        let taken = timeout_at(look_at, place.as_mut()).await;
        let is_planned = edge.table().is_some_and(|table| table.number() == decision.plan);
        if !is_planned || (!was_out && is_out()) {
            return None;
        }
        match taken {
            Ok(permit) => return permit.ok(),
            Err(_) if Instant::now() >= give_up_at => return None,
            Err(_) => {}
        }
    }
}

/// From where to where a session goes.
struct Move<'a> {
    holder: &'a str,
    from: &'a Decision,
    to: &'a Decision,
    why: Why,
    lost_at: Instant,
}

/// Hands the session over. The device is told, unless it has nothing to notice: the region was alive and no turn in progress.
fn go_on(edge: &Edge, relay: &mut Relay<'_>, stream: TcpStream, moved: &Move<'_>) {
    let Move {
        holder,
        from,
        to,
        why,
        lost_at,
    } = *moved;
    let is_busy = relay.kept().is_none_or(Kept::is_busy);
    let is_visible = is_busy || matches!(why, Why::Lost | Why::Silent);
    relay.go_on(stream, to, why, lost_at, |must_repeat| {
        let (code, message) = match (must_repeat, is_visible) {
            (true, _) => ("repeat_utterance", "Connecting to backup; please say that again"),
            (false, true) => ("region_changed", "Connecting to backup"),
            (false, false) => return None,
        };
        let notice = serde_json::json!({
            "type": "meridian.notice",
            "event_id": format!("event_edge_{}", daemon::clock::now().0),
            "code": code,
            "message": message,
            "from": from.region,
            "to": to.region,
            // The headers of the handshake said the old one.
            "affinity": edge.session_token(holder, &to.region),
        });
        Some(frame_for_device(opcode::TEXT, notice.to_string().as_bytes()))
    });
}

/// A session's key for the log: devices choose it, so it is bounded.
fn registered_name(session_key: &str) -> &str {
    session_key.get(..session_key.len().min(64)).unwrap_or("(not ASCII)")
}

fn join(items: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
