//! Failures between a request and the head of its answer, and the reading of that head. Every request to a region except gRPC
//! comes here, so that all paths read a region's answer in the same way.

use std::{io, time::Duration};

use bytes::{Buf as _, BytesMut};
use identity::{Link, Speaks};
use routing::Decision;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    Edge,
    fault::{Cause, Device, Event, Facts, Fault, WANTS_PROOF},
    http1::{Broken, Response},
};

/// A read of an answer's head: most answers to small requests fit into it.
pub(crate) const FIRST_READ_BYTES: usize = 2 << 10;
/// One read of an answer's body.
pub(crate) const READ_BYTES: usize = 16 << 10;

/// A region's answer: its head, and the connection on which its body comes.
pub(crate) struct Answering {
    pub(crate) region: Link,
    pub(crate) response: Response,
    /// Bytes that came after the head.
    pub(crate) read: BytesMut,
}

/// The reason for which an answer did not come, or broke off.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) at: At,
    pub(crate) facts: Facts,
    /// The reason as text, for logs.
    pub(crate) why: String,
}

/// The point that a request had reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// The edge had no connection, so it had sent nothing.
    Connect,
    /// The region had the request, or a part of it.
    Sent,
}

impl Failure {
    fn new(at: At, facts: Facts, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { at, facts, why }
    }

    /// The region sent bytes that are not an answer.
    pub(crate) fn nonsense(why: impl Into<String>) -> Self {
        Self::new(At::Sent, Event::Nonsense.into(), why)
    }

    /// The region closed its connection.
    pub(crate) fn ended() -> Self {
        Self::new(At::Sent, Event::Ended.into(), "the region closed the connection")
    }

    /// The region closed a connection of the pool just as the next request came.
    pub(crate) fn kept_closed() -> Self {
        let why = "the region closed a connection that waited in the pool";
        Self::new(At::Sent, Event::KeptConnectionClosed.into(), why)
    }

    /// A system call failed before any byte of an answer came: this machine may be out of a resource; otherwise the region may
    /// have closed a connection of the pool.
    pub(crate) fn before_answer(error: &io::Error) -> Self {
        match Cause::of(error) {
            Cause::Local | Cause::NoRoute | Cause::Refused | Cause::Unproven => Self::io(At::Sent, error),
            Cause::Remote => Self::kept_closed(),
        }
    }

    /// A system call on the region's connection failed.
    pub(crate) fn io(at: At, error: &io::Error) -> Self {
        let facts = Facts::io(error);
        // A stack that refuses the certificate of this edge has not read the request.
        let at = match facts.event {
            Event::Io(Cause::Refused) => At::Connect,
            _ => at,
        };
        Self::new(at, facts, error.to_string())
    }

    /// The stack takes no plain text, and this edge speaks nothing else.
    pub(crate) fn wants_proof() -> Self {
        Self::new(At::Connect, Event::Io(Cause::Refused).into(), WANTS_PROOF)
    }

    /// The region did not act within `limit`.
    pub(crate) fn timed_out(edge: &Edge, at: At, limit: Duration) -> Self {
        let why = match at {
            At::Connect => "not connected in time",
            At::Sent => "the region did not answer in time",
        };
        Self::new(at, Facts::timed_out(edge.lag.is_late_for(limit)), why)
    }

    /// The device left before its answer.
    pub(crate) fn device_gone() -> Self {
        let facts = Facts::from(Event::Ended).with(Device::Gone);
        Self::new(At::Sent, facts, "the device left")
    }

    /// The device takes its answer too slowly, or not at all.
    pub(crate) fn device_slow() -> Self {
        let facts = Facts::from(Event::TimedOut).with(Device::Blocked);
        Self::new(At::Sent, facts, "the device does not take its answer")
    }

    pub(crate) fn is_timeout(&self) -> bool {
        self.facts.event == Event::TimedOut
    }

    /// Whether the device is to blame: then the edge asks no other region and answers nothing.
    pub(crate) fn is_of_device(&self) -> bool {
        self.facts.fault() == Fault::Device
    }

    /// Whether this machine is out of a resource that a request to any region needs.
    pub(crate) fn is_local(&self) -> bool {
        self.facts.event == Event::Io(Cause::Local)
    }

    /// Whether a connection of the pool may have ended like this, before any byte of an answer came.
    pub(crate) fn may_be_kept_closed(&self) -> bool {
        let of_region = self.facts.fault() != Fault::Device && !self.is_local();
        of_region && !matches!(self.facts.event, Event::Io(Cause::Refused | Cause::Unproven))
    }

    pub(crate) fn is_kept_closed(&self) -> bool {
        self.facts.event == Event::KeptConnectionClosed
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::nonsense(broken.to_string())
    }
}

/// Takes the head of an answer out of the bytes read, once it is complete. The bytes behind it begin a body.
pub(crate) fn head_of_answer(
    read: &mut BytesMut,
    to_head: bool,
    bytes_max: usize,
) -> Result<Option<Response>, Failure> {
    while let Some(response) = Response::parse(read, to_head)? {
        read.advance(response.len);
        match response.status {
            101 => return Err(Failure::nonsense("the region switched protocols")),
            // An informational answer is not the answer (RFC 9110 §15.2).
            100..200 => {}
            // It has not looked at the request, and no device can do anything about it.
            _ if response.wants_proof => return Err(Failure::wants_proof()),
            _ => {
                // Before the device has any byte of the answer, another region may answer.
                response.body.clone().take(read)?;
                return Ok(Some(response));
            }
        }
    }
    if read.len() > bytes_max {
        return Err(Failure::nonsense("the head of the answer is too large"));
    }
    Ok(None)
}

/// Opens a connection to a stack.
pub(crate) async fn connect(edge: &Edge, decision: &Decision) -> Result<Link, Failure> {
    let limit = edge.config.timeouts.connect.0;
    let connecting = edge.dial(&decision.region, decision.stack, Speaks::Http1);
    match timeout_at(Instant::now() + limit, Box::pin(connecting)).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(error)) => Err(Failure::io(At::Connect, &error)),
        Err(_) => Err(Failure::timed_out(edge, At::Connect, limit)),
    }
}

/// Sends a whole request, and waits until `by` for the head of its answer. A region may answer before it has read all of it.
pub(crate) async fn exchange(
    edge: &Edge,
    region: &mut Link,
    (message, body): (&[u8], &[u8]),
    to_head: bool,
    limit: Duration,
) -> Result<(Response, BytesMut), Failure> {
    let by = Instant::now() + limit;
    let (mut from, mut to) = tokio::io::split(region);
    let mut writing = std::pin::pin!(async {
        to.write_all(message).await?;
        to.write_all(body).await?;
        to.flush().await
    });
    let mut is_written = false;
    let mut read = BytesMut::with_capacity(FIRST_READ_BYTES);
    loop {
        read.reserve(FIRST_READ_BYTES);
        let count = tokio::select! {
            biased;
            count = from.read_buf(&mut read) => count,
            // A region that closes may have sent the reason before; the edge reads that first, and then the end.
            written = &mut writing, if !is_written => {
                if let Err(error) = written && Cause::of(&error) == Cause::Local {
                    return Err(Failure::io(At::Sent, &error));
                }
                is_written = true;
                continue;
            }
            () = sleep_until(by) => return Err(Failure::timed_out(edge, At::Sent, limit)),
        };
        let count = came(count, &read)?;
        if let Some(mut response) = head_of_answer(&mut read, to_head, edge.config.limits.header_bytes_max)? {
            // The region would read the unsent rest of the body as the next request.
            response.keeps &= is_written;
            return Ok((response, read));
        }
        if count == 0 {
            return Err(Failure::ended());
        }
    }
}

/// Goes on waiting until `by` for the head of the answer to a request that was sent, of which `read` came.
pub(crate) async fn await_answer(
    edge: &Edge,
    region: &mut Link,
    mut read: BytesMut,
    to_head: bool,
    by: Instant,
) -> Result<(Response, BytesMut), Failure> {
    loop {
        read.reserve(FIRST_READ_BYTES);
        let count = match timeout_at(by, region.read_buf(&mut read)).await {
            Ok(count) => came(count, &read)?,
            Err(_) => return Err(Failure::timed_out(edge, At::Sent, edge.config.timeouts.answer.0)),
        };
        if let Some(response) = head_of_answer(&mut read, to_head, edge.config.limits.header_bytes_max)? {
            return Ok((response, read));
        }
        if count == 0 {
            return Err(Failure::ended());
        }
    }
}

/// The number of bytes that came. When the connection ends before any byte of an answer, it may be one of the pool that the
/// region had closed.
fn came(count: io::Result<usize>, read: &BytesMut) -> Result<usize, Failure> {
    match count {
        Ok(0) if read.is_empty() => Err(Failure::kept_closed()),
        Err(error) if read.is_empty() => Err(Failure::before_answer(&error)),
        Ok(count) => Ok(count),
        Err(error) => Err(Failure::io(At::Sent, &error)),
    }
}
