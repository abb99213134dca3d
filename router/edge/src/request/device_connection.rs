//! A device of HTTP/1.1 that the edge reads and answers itself.

use std::{
    future::poll_fn,
    net::IpAddr,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use identity::Link;
use routing::Decision;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf},
    time::Instant,
};

use crate::{
    answer::Answer,
    deadline::Deadline,
    device::{self, Io},
    http1::head::{self, Head},
    http1::{Body, Response},
    request::chooser::Chooser,
    request::ctx::Ctx,
    request::exchange::{Answering, At, Failure, READ_BYTES},
    request::pool::ConnectionPool,
    request::requester::{Requester, Unread},
    stamp::Stamp,
};

/// Most bytes of the next request that the edge reads while this one waits for its answer.
pub(crate) const AHEAD_BYTES_MAX: usize = 4 << 10;

/// The result of a request on the fast path.
pub(crate) enum Forwarded {
    /// The edge answered it, and the device may send the next request, of which these bytes came.
    Answered(BytesMut),
    /// The connection ended.
    Over,
    /// pingora has to serve it. Its context says which steps are done already.
    ForPingora(Head, Box<Ctx>),
}

/// The parts of a connection that its requests use, one after the other.
pub(crate) struct DeviceConnection<'a> {
    pub(crate) device: &'a mut dyn Io,
    pub(crate) timer: &'a mut Deadline,
    pub(crate) pool: &'a ConnectionPool,
    /// Whether the device still sends the body of a request that the edge has answered.
    pub(crate) owes_body: bool,
}

impl DeviceConnection<'_> {
    /// Ends the connection so that the last answer arrives.
    async fn goodbye(&mut self, chooser: &Chooser) {
        let (timeouts, limits) = (&chooser.edge.config.timeouts, &chooser.edge.config.limits);
        match self.owes_body {
            true => device::goodbye_to_sender(self.device, timeouts.device.0, limits.body_bytes_max).await,
            false => device::goodbye(self.device, timeouts.close.0).await,
        }
    }
}

/// A device of which the edge reads a body part by part.
pub(crate) struct StreamingDevice<'a> {
    conn: DeviceConnection<'a>,
    /// Bytes behind the head that were not taken yet: of the body, and then of the next requests.
    unread: BytesMut,
    /// The rest of the body.
    body: Body,
    is_head: bool,
    is_last: bool,
    /// The state of the connection once the request was answered.
    pub(crate) after: Forwarded,
}

impl<'a> StreamingDevice<'a> {
    /// The device of a request with this head. Takes its body out of `ctx`.
    pub(crate) fn new(conn: DeviceConnection<'a>, head: Head, ctx: &mut Ctx, is_head: bool) -> Self {
        let Head { bytes: mut unread, len } = head;
        unread.advance(len);
        Self {
            conn,
            unread,
            body: std::mem::replace(&mut ctx.body, Body::Length(0)),
            is_head,
            is_last: ctx.is_last,
            after: Forwarded::Over,
        }
    }
}

impl Requester for StreamingDevice<'_> {
    type Gone = Failure;

    fn is_body_done(&mut self) -> bool {
        self.body.is_done()
    }

    async fn go_on(&mut self) -> Result<(), Failure> {
        let device = &mut *self.conn.device;
        let written = async {
            device.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            device.flush().await
        };
        written.await.map_err(|_| Failure::device_gone())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, Unread<Failure>> {
        loop {
            if self.body.is_done() {
                return Ok(None);
            }
            let data = self.body.data(&mut self.unread).map_err(|_| Unread::Malformed)?;
            if !data.is_empty() {
                return Ok(Some(data));
            }
            if self.body.is_done() {
                return Ok(None);
            }
            self.unread.reserve(READ_BYTES);
            match self.conn.device.read_buf(&mut self.unread).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(Unread::Gone(Failure::device_gone())),
            }
        }
    }

    async fn leaves(&mut self) -> Failure {
        poll_fn(|cx| poll_device(&mut *self.conn.device, &mut self.unread, 0, cx)).await
    }

    async fn refuse(&mut self, chooser: &Chooser, ctx: &mut Ctx, answer: &Answer) -> Result<(), Failure> {
        chooser.done(ctx, answer.status.as_u16(), None);
        let was_too_slow = answer.status == http::StatusCode::REQUEST_TIMEOUT;
        self.conn.owes_body = !self.body.is_done() && !was_too_slow;
        say_failed(chooser, &mut self.conn, ctx, self.is_head, answer).await;
        Ok(())
    }

    async fn pass_on(
        &mut self,
        chooser: &Chooser,
        ctx: &mut Ctx,
        answering: Answering,
        client: Option<IpAddr>,
    ) -> Result<(), Failure> {
        // The edge would read the rest of the body as the next request.
        self.conn.owes_body = !self.body.is_done();
        let is_last = self.is_last || self.conn.owes_body;
        let sent = (std::mem::take(&mut self.unread), 0);
        self.after = give(chooser, &mut self.conn, ctx, (is_last, client), answering, sent).await;
        Ok(())
    }
}

/// Passes an answer on to the device, to its last byte.
///
/// `sent` has the bytes that the device sent, and the end of its request in them.
pub(crate) async fn give(
    chooser: &Chooser,
    conn: &mut DeviceConnection<'_>,
    ctx: &mut Ctx,
    (is_last, client): (bool, Option<IpAddr>),
    answering: Answering,
    (mut sent, end): (BytesMut, usize),
) -> Forwarded {
    let Answering {
        region,
        mut response,
        mut read,
    } = answering;
    let closes = is_last || chooser.edge.sessions.is_draining() || matches!(response.body, Body::UntilClose);
    if let Some(decision) = &ctx.choice.decision {
        sign(chooser, &mut response, decision, &ctx.stamp, closes);
    }
    // Usually this is the whole answer, in one packet.
    let begun = match response.body.take(&read) {
        Ok(begun) => begun,
        Err(broken) => {
            chooser.broke_off(ctx, response.status, &broken.into(), client);
            return Forwarded::Over;
        }
    };
    response.returned.extend_from_slice(&read[..begun]);
    read.advance(begun);
    let mut region = Some(region);
    let mut is_first = true;
    let mut taken = 0;
    let mut pace = chooser.edge.config.pace();
    let failure = loop {
        if response.body.is_done()
            && let Some(region) = region.take()
        {
            // The region is done, however slowly the device takes the answer. The next request of the device finds the slot
            // free and this request counted.
            ctx.choice.in_flight = None;
            if response.keeps
                && read.len() == taken
                && let Some(decision) = &ctx.choice.decision
            {
                conn.pool.put(decision.stack, region);
            }
            chooser.done(ctx, response.status, None);
        }
        let part = if is_first {
            &response.returned[..]
        } else {
            &read[..taken]
        };
        let began = Instant::now();
        let writing = async {
            conn.device.write_all(part).await?;
            conn.device.flush().await
        };
        match conn.timer.until(began + pace.remaining(), writing).await {
            Some(Ok(())) => {}
            Some(Err(_)) => break Some(Failure::device_gone()),
            None => break Some(Failure::device_slow()),
        }
        if !std::mem::take(&mut is_first) {
            pace.waited(began.elapsed(), taken);
            read.advance(taken);
        }
        let Some(from) = &mut region else { break None };
        let limit = chooser.edge.config.timeouts.answer.0;
        let by = Instant::now() + limit;
        match read_watching(conn, &mut sent, end, from, &mut read, by, READ_BYTES).await {
            Ok(Some(0)) if matches!(response.body, Body::UntilClose) => {
                ctx.choice.in_flight = None;
                chooser.done(ctx, response.status, None);
                region = None;
                break None;
            }
            Ok(Some(0)) => break Some(Failure::ended()),
            Ok(Some(_)) => {}
            Ok(None) => break Some(Failure::timed_out(&chooser.edge, At::Sent, limit)),
            Err(failure) => break Some(failure),
        }
        taken = match response.body.take(&read) {
            Ok(taken) => taken,
            Err(broken) => break Some(broken.into()),
        };
    };
    if let Some(failure) = failure {
        // The device has a part of the answer. Only the end of its connection can show that no more comes.
        if region.is_some() {
            chooser.broke_off(ctx, response.status, &failure, client);
        }
        return Forwarded::Over;
    }
    if closes {
        conn.goodbye(chooser).await;
        return Forwarded::Over;
    }
    let has_grown = sent.len() > head::READ_BYTES;
    sent.advance(end);
    if has_grown {
        // An idle connection gives back the memory of a large request.
        sent = BytesMut::from(&sent[..]);
    }
    Forwarded::Answered(sent)
}

/// Adds the edge's headers to an answer, and the end of its head.
fn sign(chooser: &Chooser, response: &mut Response, decision: &Decision, stamp: &Stamp, closes: bool) {
    stamp.write(&chooser.edge.config.cors, &mut response.returned);
    let token = chooser.edge.affinity_tokens.issue(decision, daemon::clock::now());
    let (region, edge) = (decision.region.as_str(), chooser.edge.id.as_str());
    for part in [
        "Meridian-Region: ",
        region,
        "\r\nMeridian-Affinity: ",
        &token,
        "\r\nMeridian-Edge: ",
        edge,
    ] {
        response.returned.extend_from_slice(part.as_bytes());
    }
    let end: &[u8] = if closes {
        b"\r\nConnection: close\r\n\r\n"
    } else {
        b"\r\n\r\n"
    };
    response.returned.extend_from_slice(end);
}

/// Ends a connection whose request failed.
pub(crate) async fn failed(
    chooser: &Chooser,
    conn: &mut DeviceConnection<'_>,
    ctx: &mut Ctx,
    is_head: bool,
    (answer, why): (Option<Answer>, &str),
) -> Forwarded {
    let status = answer.as_ref().map_or(0, |answer| answer.status.as_u16());
    chooser.done(ctx, status, Some(why));
    if let Some(answer) = answer {
        say_failed(chooser, conn, ctx, is_head, &answer).await;
    }
    Forwarded::Over
}

async fn say_failed(chooser: &Chooser, conn: &mut DeviceConnection<'_>, ctx: &Ctx, is_head: bool, answer: &Answer) {
    // RFC 9110 §9.3.2.
    let cors = &chooser.edge.config.cors;
    let bytes = match is_head {
        true => answer.head(&ctx.stamp, cors),
        false => answer.bytes(&ctx.stamp, cors),
    };
    let limit = chooser.edge.config.timeouts.close.0;
    let by = Instant::now() + limit;
    if let Some(Ok(())) = conn.timer.until(by, conn.device.write_all(&bytes)).await {
        conn.goodbye(chooser).await;
    }
}

/// Waits before the edge asks a region, and watches the device.
pub(crate) async fn pause_watching(
    conn: &mut DeviceConnection<'_>,
    sent: &mut BytesMut,
    end: usize,
    pause: Duration,
) -> Result<(), Failure> {
    let by = Instant::now() + pause;
    let DeviceConnection { device, timer, .. } = conn;
    poll_fn(|cx| match poll_device(&mut **device, sent, end, cx) {
        Poll::Ready(gone) => Poll::Ready(Err(gone)),
        Poll::Pending => timer.poll(by, cx).map(Ok),
    })
    .await
}

/// Reads from a region and watches the device: a device that leaves cancels its request. `None` when no byte came in time.
pub(crate) async fn read_watching(
    conn: &mut DeviceConnection<'_>,
    sent: &mut BytesMut,
    end: usize,
    region: &mut Link,
    read: &mut BytesMut,
    by: Instant,
    room: usize,
) -> Result<Option<usize>, Failure> {
    read.reserve(room);
    let mut reading = pin!(region.read_buf(read));
    let DeviceConnection { device, timer, .. } = conn;
    poll_fn(|cx| {
        if let Poll::Ready(count) = reading.as_mut().poll(cx) {
            return Poll::Ready(count.map(Some).map_err(|error| Failure::io(At::Sent, &error)));
        }
        if let Poll::Ready(gone) = poll_device(&mut **device, sent, end, cx) {
            return Poll::Ready(Err(gone));
        }
        timer.poll(by, cx).map(|()| Ok(None))
    })
    .await
}

/// Reads the bytes that the device sends ahead, up to a bound; ready when it leaves.
fn poll_device(device: &mut dyn Io, sent: &mut BytesMut, end: usize, cx: &mut Context<'_>) -> Poll<Failure> {
    while sent.len() - end < AHEAD_BYTES_MAX {
        let mut ahead = [0; 512];
        let mut ahead = ReadBuf::new(&mut ahead);
        match Pin::new(&mut *device).poll_read(cx, &mut ahead) {
            Poll::Ready(Ok(())) if !ahead.filled().is_empty() => sent.extend_from_slice(ahead.filled()),
            Poll::Ready(_) => return Poll::Ready(Failure::device_gone()),
            Poll::Pending => break,
        }
    }
    Poll::Pending
}
