//! Asking one stack to take a session, and reading its answer.

use std::time::Duration;

use bytes::BytesMut;
use identity::{Link, Speaks};
use routing::Decision;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};
use topology::{Moment, RegionId};
use tungstenite::protocol::frame::coding::CloseCode;
use wire::{Load, Resumes};

use crate::{
    Edge,
    deadline::Deadline,
    edge::Failed,
    fault::{Cause, Event, Facts, Fault, WANTS_PROOF},
    http1::head::{self, Bounds, Head, HeadError, Kind},
    http1::{Body, Response},
    request_id::RequestId,
};

/// Largest answer of a region that declines an upgrade: an error message.
const DECLINED_BYTES_MAX: usize = 64 << 10;
/// The body of a 503 usually comes with its head. The edge waits no longer for it, and asks the next region.
const REASON_WAIT: Duration = Duration::from_millis(500);

/// Counts the failure of a stack that did not take a session.
pub(super) fn not_taken(edge: &Edge, decision: &Decision, failure: &AskError) -> Fault {
    edge.metrics.connect(&decision.region, failure.outcome());
    edge.blame(decision, Failed::ToBegin, failure.facts(edge), &failure.to_string())
}

pub(super) enum Asked {
    Accepted(Accepted),
    /// The stack declined with this answer; it may name the revision of the session that it has.
    Declined(Vec<u8>, Option<Moment>),
}

/// A stack took the session.
pub(super) struct Accepted {
    pub(super) stream: Link,
    /// The head of its answer for the device, without the final empty line.
    pub(super) answer: Vec<u8>,
    /// The bytes behind the head.
    pub(super) early: BytesMut,
    /// Whether the stack speaks the protocol of session continuity.
    pub(super) carries_on: bool,
    /// Whether it takes the last checkpoint of an earlier session.
    pub(super) takes_state: bool,
}

/// The reason for which a region did not take a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
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
    #[error("upgrade: {}", WANTS_PROOF)]
    WantsProof,
    #[error("upgrade: answered that it drains")]
    Draining,
}

impl AskError {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect-failed",
            Self::ConnectTimeout(_) => "connect-timeout",
            Self::UpgradeTimeout(_) | Self::Upgrade(..) => "upgrade-failed",
            Self::Status(_) | Self::Draining | Self::WantsProof => "upgrade-refused",
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
            Self::WantsProof => Event::Io(Cause::Refused).into(),
            Self::Draining => Event::Closed(CloseCode::Away).into(),
        }
    }

    /// Whether this machine was out of descriptors, ports or buffers.
    pub(super) fn is_local(&self) -> bool {
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

pub(super) async fn ask(edge: &Edge, decision: &Decision, request: &[u8], id: &RequestId) -> Result<Asked, AskError> {
    let timeouts = &edge.config.timeouts;
    let (region, stack) = (&decision.region, decision.stack);
    let began = Instant::now();
    let mut stream = timeout(timeouts.connect.0, edge.dial(region, stack, Speaks::Http1))
        .await
        .map_err(|_| AskError::ConnectTimeout(timeouts.connect.0))?
        .map_err(AskError::Connect)?;
    edge.metrics.connect_took(region, began.elapsed());
    edge.fleet.reached(region, stack, began.elapsed(), daemon::clock::now());

    let sending = async {
        stream.write_all(request).await?;
        stream.flush().await
    };
    let sent = timeout(timeouts.upgrade.0, sending).await;
    sent.map_err(|_| AskError::UpgradeTimeout(timeouts.upgrade.0))?
        .map_err(|error| AskError::broken(Facts::io(&error).event, error))?;
    let bounds = Bounds {
        first: timeouts.upgrade.0,
        rest: timeouts.upgrade.0,
        bytes_max: edge.config.limits.header_bytes_max,
    };
    let read = head::read(&mut stream, Kind::Response, bounds).await;
    let mut read = read.map_err(|error| match stream.trust_error() {
        // In TLS 1.3 the refusal of this edge's certificate comes in place of the answer.
        Some(trust_error) => AskError::Connect(std::io::Error::other(trust_error.clone())),
        None => AskError::head(&error, timeouts.upgrade.0),
    })?;
    let mut answer = parse(&read)?;
    // An informational answer is not the answer (RFC 9110 §15.2).
    while matches!(answer.status, 100 | 102..200) {
        let rest = read.bytes.split_off(read.len);
        read = head::read_on(&mut stream, Kind::Response, bounds, &mut Deadline::default(), rest)
            .await
            .map_err(|error| AskError::head(&error, timeouts.upgrade.0))?;
        answer = parse(&read)?;
    }
    let load = answer.load;
    let is_full = load.is_some_and(|load| edge.fleet.loaded(stack, load, daemon::clock::now()));
    match (answer.status, load) {
        (101, _) => {}
        (503, Some(load)) if is_full => return Err(AskError::Full(load)),
        // The stack's own limit, not the device's: another stack may have room.
        (429, _) => return Err(AskError::TooMany),
        (426, _) => return Err(AskError::WantsProof),
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
            // The stack works and declines, for a wrong key perhaps. Another region would decline too.
            let revision = revision_in(&read);
            let body = read.bytes.split_off(read.len);
            let reading = timeout(timeouts.upgrade.0, read_body(&mut stream, &mut answer.body, body));
            let body = reading
                .await
                .map_err(|_| AskError::UpgradeTimeout(timeouts.upgrade.0))??;
            edge.metrics.connect(region, "declined");
            edge.fleet
                .answered(region, stack, began.elapsed(), daemon::clock::now());
            let declined = [
                &signed(
                    answer.returned,
                    edge,
                    region,
                    &format!("X-Request-Id: {id}\r\nConnection: close\r\n"),
                )[..],
                &body,
            ]
            .concat();
            return Ok(Asked::Declined(declined, revision));
        }
    }
    if has_line(&read, |line| line.name.eq_ignore_ascii_case("sec-websocket-extensions")) {
        let what = "the stack uses an extension that the edge did not offer";
        return Err(AskError::broken(Event::Nonsense, what));
    }
    edge.metrics.connect(region, "ok");
    edge.fleet
        .answered(region, stack, began.elapsed(), daemon::clock::now());
    // Whether the stack speaks the protocol of session continuity.
    let speaks = |line: &httparse::Header<'_>| {
        line.name.eq_ignore_ascii_case(wire::HEADER) && line.value == wire::VERSION.as_bytes()
    };
    let takes_state = |line: &httparse::Header<'_>| {
        let says = || Resumes::parse(line.value) == Some(Resumes::State);
        line.name.eq_ignore_ascii_case(wire::RESUMES_HEADER) && says()
    };
    Ok(Asked::Accepted(Accepted {
        stream,
        takes_state: has_line(&read, takes_state),
        carries_on: has_line(&read, speaks),
        early: read.bytes.split_off(read.len),
        answer: answer.returned,
    }))
}

/// Whether the answer is that of a stack that stops in order. Its load does not show that: it may have room for hundreds.
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
async fn read_body(stream: &mut Link, body: &mut Body, mut read: BytesMut) -> Result<BytesMut, AskError> {
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

/// The revision of a session that the stack has in memory and does not resume.
fn revision_in(read: &Head) -> Option<Moment> {
    let mut lines = [httparse::EMPTY_HEADER; head::LINES_MAX];
    let mut response = httparse::Response::new(&mut lines);
    response.parse(&read.bytes[..read.len]).ok()?;
    let mut lines = response.headers.iter();
    let line = lines.find(|line| line.name.eq_ignore_ascii_case(wire::REVISION_HEADER))?;
    std::str::from_utf8(line.value).ok()?.parse().ok().map(Moment)
}

fn has_line(read: &Head, is_it: impl Fn(&httparse::Header<'_>) -> bool) -> bool {
    let mut lines = [httparse::EMPTY_HEADER; head::LINES_MAX];
    let mut response = httparse::Response::new(&mut lines);
    response.parse(&read.bytes[..read.len]).is_ok() && response.headers.iter().any(is_it)
}

/// The head of a region's answer with the edge's headers and the final empty line.
pub(super) fn signed(mut head: Vec<u8>, edge: &Edge, region: &RegionId, extra: &str) -> Vec<u8> {
    let ours = format!("Meridian-Region: {region}\r\nMeridian-Edge: {}\r\n{extra}\r\n", edge.id);
    head.extend_from_slice(ours.as_bytes());
    head
}
