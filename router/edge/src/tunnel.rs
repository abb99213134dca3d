//! The voice tunnel: a device's WebSocket, opened in the region it belongs to, or in the next one that answers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use routing::Decision;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use topology::RegionId;

use crate::{
    Edge,
    answer::Answer,
    head::{self, Bounds, Head, Kind, Upgrade},
    relay::{Io, Outcome, Relay, goodbye},
};

/// Largest answer of a region that declines an upgrade: an error message.
const DECLINED_BYTES_MAX: usize = 64 << 10;

/// Serves one upgrade from the first byte behind its head (`early`) to the end of its session.
pub async fn serve(edge: &Arc<Edge>, device: &mut dyn Io, upgrade: Upgrade, early: BytesMut, client: SocketAddr) {
    let _busy = edge.sessions.busy();
    if edge.sessions.is_draining() {
        edge.metrics.refused("draining");
        return decline(edge, device, &draining()).await;
    }
    // What is in a box here is over long before the session is, and what a session keeps for hours should be small.
    let opened = Box::pin(open(edge, &upgrade, client)).await;
    drop(upgrade);
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
        Opened::Nowhere(tried) => {
            edge.metrics.refused("no-region");
            let tried = if tried.is_empty() {
                "none".to_owned()
            } else {
                join(&tried)
            };
            tracing::warn!(%client, tried, "no region took the session");
            let message = format!("no region could take the session (tried {tried}); try again");
            decline(edge, device, &Answer::unavailable("no_region", message, 2)).await;
        }
    }
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
    let patience = edge.config.timeouts.close.0;
    if let Ok(Ok(())) = timeout(patience, device.write_all(&answer.bytes())).await {
        goodbye(device, patience).await;
    }
}

enum Opened {
    Session(Box<Session>),
    /// A region answered, and the answer is no: the device gets it as it is.
    Declined(Vec<u8>),
    /// No region answered.
    Nowhere(Vec<RegionId>),
}

struct Session {
    decision: Decision,
    stream: TcpStream,
    answer: Head,
    session_key: String,
}

/// Opens the session in the first region that takes it.
async fn open(edge: &Arc<Edge>, upgrade: &Upgrade, client: SocketAddr) -> Opened {
    let Some(table) = edge.table() else {
        return Opened::Nowhere(Vec::new());
    };
    let now = daemon::clock::now();
    let token = upgrade
        .header("meridian-affinity")
        .or_else(|| upgrade.query("affinity"));
    let affinity = token.and_then(|token| edge.affinity(token, now));
    let session_key = upgrade.header("meridian-session").or_else(|| upgrade.query("session"));
    // Without a name of its own a session is as stable as its connection.
    let session_key = session_key.map_or_else(|| client.to_string(), str::to_owned);
    let request = upgrade.forwarded(client, &edge.id);
    let mut tried = Vec::new();
    while tried.len() < edge.config.limits.regions_tried_max
        && let Some(decision) = edge
            .seen
            .pick(&table, &session_key, affinity.as_ref(), &tried, daemon::clock::now())
    {
        match ask(edge, &decision, &request).await {
            Ok((stream, Asked::Accepted(answer))) => {
                let session = Session {
                    decision,
                    stream,
                    answer,
                    session_key,
                };
                return Opened::Session(Box::new(session));
            }
            Ok((_, Asked::Declined(answer))) => return Opened::Declined(answer),
            Err(failure) => {
                let why = failure.to_string();
                tracing::info!(region = %decision.region, stack = %decision.stack, why, "region did not take a session");
                edge.metrics.connect(&decision.region, failure.outcome());
                edge.region_failed(&decision.region, &why);
                tried.push(decision.region);
            }
        }
    }
    Opened::Nowhere(tried)
}

enum Asked {
    Accepted(Head),
    Declined(Vec<u8>),
}

/// Why a region did not take a session.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("connect: no answer within {0:?}")]
    ConnectTimeout(Duration),
    #[error("upgrade: {0}")]
    Upgrade(String),
    #[error("upgrade: answered {0}")]
    Status(u16),
}

impl AskError {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect-failed",
            Self::ConnectTimeout(_) => "connect-timeout",
            Self::Upgrade(_) => "upgrade-failed",
            Self::Status(_) => "upgrade-refused",
        }
    }
}

/// Asks one region.
async fn ask(edge: &Edge, decision: &Decision, request: &[u8]) -> Result<(TcpStream, Asked), AskError> {
    let timeouts = &edge.config.timeouts;
    let region = &decision.region;
    let began = Instant::now();
    let mut stream = timeout(timeouts.connect.0, TcpStream::connect(decision.stack))
        .await
        .map_err(|_| AskError::ConnectTimeout(timeouts.connect.0))?
        .map_err(AskError::Connect)?;
    edge.metrics.connect_took(region, began.elapsed());
    edge.seen.reached(region, began.elapsed());
    // Voice frames are small and must not wait for more; a socket that refuses this still works.
    let _ = stream.set_nodelay(true);

    let broken = |error: &dyn std::fmt::Display| AskError::Upgrade(error.to_string());
    let sent = timeout(timeouts.upgrade.0, stream.write_all(request)).await;
    sent.map_err(|_| broken(&"it does not read"))?
        .map_err(|error| broken(&error))?;
    let bounds = Bounds {
        first: timeouts.upgrade.0,
        rest: timeouts.upgrade.0,
        bytes_max: edge.config.limits.header_bytes_max,
    };
    let mut answer = head::read(&mut stream, Kind::Response, bounds)
        .await
        .map_err(|error| broken(&error))?;
    match status(&answer)? {
        101 => {}
        status @ 500.. => return Err(AskError::Status(status)),
        _ => {
            // It works and says no, to a wrong key perhaps. Another region would say the same.
            edge.metrics.connect(region, "declined");
            edge.seen.answered(region, began.elapsed());
            // Only a body of known length is passed on; without one the head has to say it all.
            let whole = answer.len + body_bytes(&answer);
            let _ = timeout(timeouts.upgrade.0, async {
                while answer.bytes.len() < whole && stream.read_buf(&mut answer.bytes).await? > 0 {}
                std::io::Result::Ok(())
            })
            .await;
            return Ok((
                stream,
                Asked::Declined(with_headers(&answer, edge, &decision.region, "Connection: close\r\n")),
            ));
        }
    }
    if announces_extension(&answer) {
        return Err(broken(&"it insists on an extension that was not offered"));
    }
    edge.metrics.connect(region, "ok");
    edge.seen.answered(region, began.elapsed());
    Ok((stream, Asked::Accepted(answer)))
}

fn with_answer<T>(answer: &Head, read: impl FnOnce(&httparse::Response<'_, '_>) -> T) -> Option<T> {
    let mut lines = [httparse::EMPTY_HEADER; head::LINES_MAX];
    let mut response = httparse::Response::new(&mut lines);
    response.parse(&answer.bytes[..answer.len]).ok()?;
    Some(read(&response))
}

fn status(answer: &Head) -> Result<u16, AskError> {
    with_answer(answer, |response| response.code)
        .flatten()
        .ok_or_else(|| AskError::Upgrade("it does not speak HTTP".to_owned()))
}

fn announces_extension(answer: &Head) -> bool {
    with_answer(answer, |response| {
        response
            .headers
            .iter()
            .any(|line| line.name.eq_ignore_ascii_case("sec-websocket-extensions"))
    })
    .unwrap_or(false)
}

fn body_bytes(answer: &Head) -> usize {
    let length = with_answer(answer, |response| {
        let line = response
            .headers
            .iter()
            .find(|line| line.name.eq_ignore_ascii_case("content-length"))?;
        std::str::from_utf8(line.value).ok()?.trim().parse().ok()
    });
    length.flatten().unwrap_or(0).min(DECLINED_BYTES_MAX)
}

/// A region's answer with the edge's own headers at the end of its head.
fn with_headers(answer: &Head, edge: &Edge, region: &RegionId, extra: &str) -> Vec<u8> {
    let (head, rest) = answer.bytes.split_at(answer.len);
    // A head ends with an empty line, of which the line end of the last header stays.
    let head = head.strip_suffix(b"\r\n").or(head.strip_suffix(b"\n")).unwrap_or(head);
    let ours = format!("Meridian-Region: {region}\r\nMeridian-Edge: {}\r\n{extra}\r\n", edge.id);
    [head, ours.as_bytes(), rest].concat()
}

/// Passes the region's 101 on and relays until the end.
async fn converse(edge: &Arc<Edge>, device: &mut dyn Io, session: Session, early: BytesMut, client: SocketAddr) {
    let Session {
        decision,
        stream,
        mut answer,
        session_key,
    } = session;
    let region = &decision.region;
    let since = daemon::clock::now();
    let began = Instant::now();
    let early_from_region: BytesMut = answer.bytes.split_off(answer.len);
    let token = edge.config.affinity_key.0.issue(region, since);
    let accepted = with_headers(&answer, edge, region, &format!("Meridian-Affinity: {token}\r\n"));
    drop((answer, token));
    let registered = edge.sessions.register(region, since);
    let passed_on = timeout(edge.config.timeouts.close.0, device.write_all(&accepted)).await;
    drop(accepted);
    if !matches!(passed_on, Ok(Ok(()))) {
        tracing::info!(%region, %client, "the device left before its session began");
        edge.metrics.session_ended(region, "device-lost", 0, 0);
        return;
    }
    let mut relay = Relay::new(device, stream, &edge.config);
    let turn_to_leave = edge.sessions.turn_to_leave(registered.id);
    let end = relay.run(early, early_from_region, turn_to_leave).await;
    drop(registered);
    if let Some(why) = end.fault_of_region() {
        edge.region_failed(region, why);
    }
    let Outcome {
        end,
        code,
        from_device,
        from_region,
    } = Box::pin(relay.part(end, region.as_str())).await;
    edge.metrics
        .session_ended(region, end.as_str(), from_device, from_region);
    tracing::info!(
        session = registered_name(&session_key),
        %client,
        %region,
        stack = %decision.stack,
        home = %decision.home,
        why = decision.why.as_str(),
        skipped = join(&decision.skipped),
        plan = %decision.plan,
        duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        from_device,
        from_region,
        end = end.as_str(),
        code,
        fault = end.fault_of_region(),
        "session ended"
    );
}

/// A session's key for the log: devices choose it, so it is bounded.
fn registered_name(session_key: &str) -> &str {
    session_key.get(..session_key.len().min(64)).unwrap_or("(not ASCII)")
}

fn join(items: &[impl std::fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
