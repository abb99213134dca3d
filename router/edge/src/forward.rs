//! Requests as most of them are, passed on by the edge itself: HTTP/1.1, small or no body, to a region that answers. What is
//! special about any other is for `attempts.rs` and pingora.
//!
//! Through pingora a request costs three times the processor time that nginx takes; this way it is on a par
//! (docs/benchmarks.md). Which region is asked, and when again, is decided by the same code.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use routing::{Decision, breaker::Use};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::{
    answer::Answer,
    exchange::{Answering, At, FIRST_READ_BYTES, Failure, READ_BYTES, head_of_answer},
    head::{self, Head, LINES_MAX},
    http1::{Body, Peer, Request, Response},
    idle::Idle,
    patience::Patience,
    proxy::{Asker, Ctx, Gateway, Repeat, Route, Waiting},
    relay::{self, Io},
    sessions::Busy,
    tunnel,
};

/// Bodies up to this length are read whole before a region is chosen: the text of a long reply fits.
const BODY_BYTES_MAX: usize = 16 << 10;
/// Of the next request so much is read while this one waits for its answer.
const AHEAD_BYTES_MAX: usize = 4 << 10;

/// What became of a request.
pub(crate) enum Forwarded {
    /// It was answered, and the device may ask again: what was read of that.
    Answered(BytesMut),
    /// Its connection is over.
    Over,
    /// There is something special about it. What was done for it already is not done again.
    Unusual(Head, Box<Ctx>),
}

/// What the requests of a connection use, one after the other.
pub(crate) struct Line<'a> {
    /// Who asks.
    pub(crate) device: &'a mut dyn Io,
    /// For every wait.
    pub(crate) patience: &'a mut Patience,
    /// Connections to regions.
    pub(crate) idle: &'a Idle,
}

/// What is known of a request before a region is.
struct Asked {
    /// As a region gets it.
    message: Vec<u8>,
    /// Where it ends in what the device sent.
    end: usize,
    asker: Asker,
    repeat: Repeat,
    is_head: bool,
    is_last: bool,
}

/// What asking one region after the other came to.
enum Around {
    /// An answer, of whose body so much is in what was read.
    Answer(Answering, usize),
    /// Nothing yet. The region may just be slow, so it is asked on while another one is.
    Silent(Box<Waiting>),
    /// The device is told this.
    Nobody(Answer),
    /// There is no device any more.
    Gone(Failure),
}

/// What one region did.
enum Reply {
    Answer(Answering, usize),
    Silent(TcpStream, BytesMut),
}

impl Gateway {
    /// Answers a request, unless there is something special about it.
    pub(crate) async fn forward(&self, mut line: Line<'_>, mut head: Head, device: Peer, busy: Busy) -> Forwarded {
        let mut ctx = Box::new(self.begin(busy));
        let mut asked = match self.usual(&head, device, &mut ctx) {
            Ok(Some(asked)) => asked,
            Ok(None) => return Forwarded::Unusual(head, ctx),
            Err(what) => {
                let refused = ("malformed", Answer::bad_request(what));
                let (reason, answer) = self.edge.admission.refuse(device.ip(), refused);
                self.edge.metrics.refused(reason);
                self.done(&mut ctx, answer.status.as_u16(), Some(what));
                tunnel::decline(&self.edge, line.device, &answer).await;
                return Forwarded::Over;
            }
        };
        let Ok(place) = self.edge.admission.request(device.ip()) else {
            // Over a limit: `attempts.rs` asks again, and formats the 429 in a way that keeps the connection.
            return Forwarded::Unusual(head, ctx);
        };
        ctx.place = Some(place);
        self.requests.asked(daemon::clock::now());
        let mut pace = self.edge.config.pace();
        while head.bytes.len() < asked.end {
            let began = Instant::now();
            let reading = line.device.read_buf(&mut head.bytes);
            match line.patience.until(began + pace.patience(), reading).await {
                Some(Ok(count @ 1..)) => pace.waited(began.elapsed(), count),
                Some(_) => return self.failed(line, &mut ctx, &asked, None, "the device left").await,
                None => {
                    let answer = Some(Answer::body_too_slow());
                    return self
                        .failed(line, &mut ctx, &asked, answer, "the body took too long")
                        .await;
                }
            }
        }
        asked.message.extend_from_slice(&head.bytes[head.len..asked.end]);
        match self.ask_around(&mut line, &mut head.bytes, &asked, &mut ctx).await {
            Around::Answer(answering, begun) => self.give(line, &mut ctx, &asked, answering, begun, head.bytes).await,
            Around::Silent(waiting) => {
                ctx.waiting = Some(waiting);
                // What was read ahead of the next request is lost on the other path.
                ctx.is_last |= head.bytes.len() > asked.end;
                Forwarded::Unusual(head, ctx)
            }
            Around::Nobody(answer) => {
                self.failed(line, &mut ctx, &asked, Some(answer), "no region answered")
                    .await
            }
            Around::Gone(failure) => self.failed(line, &mut ctx, &asked, None, &failure.why).await,
        }
    }

    /// Reads a request that has nothing special about it.
    fn usual(&self, head: &Head, device: Peer, ctx: &mut Ctx) -> Result<Option<Asked>, &'static str> {
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let request = Request::parse(&head.bytes[..head.len], &mut lines)?;
        ctx.route = Route::of(request.path(), false);
        ctx.is_chunked = request.is_chunked;
        let is_usual = match ctx.route {
            Route::Audio | Route::Speech | Route::Models | Route::Voice | Route::Health => true,
            Route::Transcription | Route::VoiceGrpc | Route::Realtime | Route::Upstream | Route::Nothing => false,
        };
        let body_bytes_max = self.edge.config.limits.body_bytes_max.min(BODY_BYTES_MAX as u64);
        let is_small = !request.is_chunked && request.body_bytes() as u64 <= body_bytes_max;
        if !is_usual || !request.is_plain || !is_small || request.is_grpc() {
            return Ok(None);
        }
        Ok(Some(Asked {
            message: request.forwarded(device, &self.edge.id),
            end: head.len + request.body_bytes(),
            asker: self.asker(
                |name| request.header(name),
                request.target,
                Some(device.ip()),
                ctx.table.as_deref(),
            ),
            repeat: ctx.route.repeat(request.method),
            is_head: request.is_head(),
            is_last: request.is_last,
        }))
    }

    /// Asks one region after the other, until one answers or nobody is left.
    async fn ask_around(&self, line: &mut Line<'_>, sent: &mut BytesMut, asked: &Asked, ctx: &mut Ctx) -> Around {
        // The next attempt is a retry, and comes out of the budget when it is made.
        let mut is_retry = false;
        let mut worse = None;
        loop {
            let wanted = Use {
                has_connection: true,
                is_extra: is_retry || ctx.retries > 0,
            };
            let Some((decision, in_flight)) = self.choose(ctx, &asked.asker, wanted) else {
                if worse.is_none()
                    && let Some(pause) = self.another_round(ctx)
                {
                    is_retry = false;
                    match pause_watching(line, sent, asked.end, pause).await {
                        Ok(()) => continue,
                        Err(gone) => return Around::Gone(gone),
                    }
                }
                break;
            };
            ctx.in_flight = Some(in_flight);
            if std::mem::take(&mut is_retry) {
                let Some(pause) = self.again(ctx) else { break };
                if let Err(gone) = pause_watching(line, sent, asked.end, pause).await {
                    return Around::Gone(gone);
                }
            }
            let began = Instant::now();
            match self.ask_region(line, sent, asked, ctx, &decision).await {
                Ok(Reply::Answer(answering, begun)) => {
                    let client = asked.asker.client;
                    let could_be_better =
                        self.judge(ctx.route, &decision, &answering.response, began.elapsed(), client);
                    ctx.tried.stack(&decision.region, decision.stack);
                    if !could_be_better || asked.repeat == Repeat::Never {
                        ctx.decision = Some(decision);
                        return Around::Answer(answering, begun);
                    }
                    worse = Some((decision, answering, begun));
                    is_retry = true;
                }
                Ok(Reply::Silent(region, read)) => {
                    ctx.tried.region(&decision.region);
                    let Some(in_flight) = ctx.in_flight.take() else { break };
                    return Around::Silent(Box::new(Waiting {
                        decision,
                        in_flight,
                        region,
                        read,
                        began,
                    }));
                }
                Err(gone) if gone.is_of_device() => return Around::Gone(gone),
                Err(failure) => {
                    self.note_failure(ctx, &decision, &failure, asked.asker.client);
                    if failure.is_local() || (failure.at == At::Sent && asked.repeat == Repeat::Never) {
                        break;
                    }
                    is_retry = failure.at == At::Sent;
                    ctx.tried.stack(&decision.region, decision.stack);
                }
            }
            ctx.in_flight = None;
        }
        ctx.in_flight = None;
        match worse {
            Some((decision, answering, begun)) => {
                ctx.decision = Some(decision);
                Around::Answer(answering, begun)
            }
            None => Around::Nobody(self.nowhere(ctx)),
        }
    }

    /// Sends a request to a region and waits for the head of its answer.
    async fn ask_region(
        &self,
        line: &mut Line<'_>,
        sent: &mut BytesMut,
        asked: &Asked,
        ctx: &mut Ctx,
        decision: &Decision,
    ) -> Result<Reply, Failure> {
        let mut kept = line.idle.take(decision.stack);
        loop {
            let was_kept = kept.is_some();
            let mut region = match kept.take() {
                Some(region) => region,
                None => self.connect(line, decision).await?,
            };
            if let Some(in_flight) = &mut ctx.in_flight {
                in_flight.connected();
            }
            let mut read = BytesMut::with_capacity(FIRST_READ_BYTES);
            match self.exchange(line, sent, asked, &mut region, &mut read).await {
                Err(failure) if failure.is_kept_closed() && was_kept && asked.repeat != Repeat::Never => {}
                Err(failure) if failure.is_kept_closed() && !was_kept => return Err(Failure::ended()),
                // What is slow is not dead, and speaking takes time.
                Err(failure) if failure.is_timeout() && asked.repeat == Repeat::Slow => {
                    return Ok(Reply::Silent(region, read));
                }
                Err(failure) => return Err(failure),
                Ok(mut response) => {
                    // As long as the device has nothing of it, another region may answer.
                    let begun = response.body.take(&read)?;
                    let answering = Answering { region, response, read };
                    return Ok(Reply::Answer(answering, begun));
                }
            }
        }
    }

    async fn connect(&self, line: &mut Line<'_>, decision: &Decision) -> Result<TcpStream, Failure> {
        let began = Instant::now();
        let limit = self.edge.config.timeouts.connect.0;
        let connecting = TcpStream::connect(decision.stack);
        match line.patience.until(began + limit, connecting).await {
            Some(Ok(tcp)) => {
                // A request is written at once, and nothing follows that it could wait for.
                let _ = tcp.set_nodelay(true);
                self.connected(decision, began.elapsed());
                Ok(tcp)
            }
            Some(Err(error)) => Err(Failure::io(At::Connect, &error)),
            None => Err(Failure::timed_out(&self.edge, At::Connect, limit)),
        }
    }

    async fn exchange(
        &self,
        line: &mut Line<'_>,
        sent: &mut BytesMut,
        asked: &Asked,
        region: &mut TcpStream,
        read: &mut BytesMut,
    ) -> Result<Response, Failure> {
        let limit = self.silence(asked.repeat);
        let by = Instant::now() + limit;
        let timed_out = || Failure::timed_out(&self.edge, At::Sent, limit);
        match line.patience.until(by, region.write_all(&asked.message)).await {
            Some(written) => written.map_err(|error| Failure::before_answer(&error))?,
            None => return Err(timed_out()),
        }
        loop {
            match read_watching(line, sent, asked.end, region, read, by, FIRST_READ_BYTES).await {
                Ok(Some(0)) if read.is_empty() => return Err(Failure::kept_closed()),
                Err(failure) if read.is_empty() && !failure.is_of_device() && !failure.is_local() => {
                    return Err(Failure::kept_closed());
                }
                Ok(Some(0)) => return Err(Failure::ended()),
                Ok(Some(_)) => {}
                Ok(None) => return Err(timed_out()),
                Err(failure) => return Err(failure),
            }
            if let Some(response) = head_of_answer(read, asked.is_head, self.edge.config.limits.header_bytes_max)? {
                return Ok(response);
            }
        }
    }

    /// Gives the device its answer, to the last byte.
    async fn give(
        &self,
        mut line: Line<'_>,
        ctx: &mut Ctx,
        asked: &Asked,
        answering: Answering,
        begun: usize,
        mut sent: BytesMut,
    ) -> Forwarded {
        let Answering {
            region,
            mut response,
            mut read,
        } = answering;
        let closes = asked.is_last || self.edge.sessions.is_draining() || matches!(response.body, Body::UntilClose);
        if let Some(decision) = &ctx.decision {
            self.sign(&mut response, decision, closes);
        }
        // Mostly that is all of it, and one packet.
        response.returned.extend_from_slice(&read[..begun]);
        read.advance(begun);
        let mut region = Some(region);
        let mut is_first = true;
        let mut taken = 0;
        let mut pace = self.edge.config.pace();
        let failure = loop {
            if response.body.is_done()
                && let Some(region) = region.take()
            {
                // The region has done its part, however long the device takes to take it. What the device asks next finds
                // the place free and the request counted.
                ctx.in_flight = None;
                if response.keeps
                    && read.len() == taken
                    && let Some(decision) = &ctx.decision
                {
                    line.idle.put(decision.stack, region);
                }
                self.done(ctx, response.status, None);
            }
            let part = if is_first {
                &response.returned[..]
            } else {
                &read[..taken]
            };
            let began = Instant::now();
            let writing = async {
                line.device.write_all(part).await?;
                line.device.flush().await
            };
            match line.patience.until(began + pace.patience(), writing).await {
                Some(Ok(())) => {}
                Some(Err(_)) => break Some(Failure::device_gone()),
                None => break Some(Failure::device_slow()),
            }
            if !std::mem::take(&mut is_first) {
                pace.waited(began.elapsed(), taken);
                read.advance(taken);
            }
            let Some(from) = &mut region else { break None };
            let limit = self.edge.config.timeouts.answer.0;
            let by = Instant::now() + limit;
            match read_watching(&mut line, &mut sent, asked.end, from, &mut read, by, READ_BYTES).await {
                Ok(Some(0)) if matches!(response.body, Body::UntilClose) => {
                    ctx.in_flight = None;
                    self.done(ctx, response.status, None);
                    region = None;
                    break None;
                }
                Ok(Some(0)) => break Some(Failure::ended()),
                Ok(Some(_)) => {}
                Ok(None) => break Some(Failure::timed_out(&self.edge, At::Sent, limit)),
                Err(failure) => break Some(failure),
            }
            taken = match response.body.take(&read) {
                Ok(taken) => taken,
                Err(broken) => break Some(broken.into()),
            };
        };
        if let Some(failure) = failure {
            // The device has a part of it, and nothing but the end of its connection tells that there is no more.
            if region.is_some() {
                self.broke_off(ctx, response.status, &failure, asked.asker.client);
            }
            return Forwarded::Over;
        }
        if closes {
            relay::goodbye(line.device, self.edge.config.timeouts.close.0).await;
            return Forwarded::Over;
        }
        let has_grown = sent.len() > head::READ_BYTES;
        sent.advance(asked.end);
        if has_grown {
            // A connection that waits does not keep what a large request needed.
            sent = BytesMut::from(&sent[..]);
        }
        Forwarded::Answered(sent)
    }

    /// Adds what the edge says about an answer, and the end of its head.
    fn sign(&self, response: &mut Response, decision: &Decision, closes: bool) {
        let token = self.edge.affinity_token(decision, daemon::clock::now());
        let (region, edge) = (decision.region.as_str(), self.edge.id.as_str());
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
    async fn failed(
        &self,
        line: Line<'_>,
        ctx: &mut Ctx,
        asked: &Asked,
        answer: Option<Answer>,
        why: &str,
    ) -> Forwarded {
        let status = answer.as_ref().map_or(0, |answer| answer.status.as_u16());
        self.done(ctx, status, Some(why));
        if let Some(answer) = answer {
            // RFC 9110 §9.3.2.
            let bytes = if asked.is_head { answer.head() } else { answer.bytes() };
            tunnel::say_last(&self.edge, line.device, &bytes).await;
        }
        Forwarded::Over
    }
}

/// Waits before a region is asked, while the device is watched.
async fn pause_watching(line: &mut Line<'_>, sent: &mut BytesMut, end: usize, pause: Duration) -> Result<(), Failure> {
    let by = Instant::now() + pause;
    let Line { device, patience, .. } = line;
    poll_fn(|cx| match poll_device(&mut **device, sent, end, cx) {
        Poll::Ready(gone) => Poll::Ready(Err(gone)),
        Poll::Pending => patience.poll(by, cx).map(Ok),
    })
    .await
}

/// Reads of a region while its device is watched: one that leaves takes its question back. `None` when nothing came by then.
async fn read_watching(
    line: &mut Line<'_>,
    sent: &mut BytesMut,
    end: usize,
    region: &mut TcpStream,
    read: &mut BytesMut,
    by: Instant,
    room: usize,
) -> Result<Option<usize>, Failure> {
    read.reserve(room);
    let mut reading = pin!(region.read_buf(read));
    let Line { device, patience, .. } = line;
    poll_fn(|cx| {
        if let Poll::Ready(count) = reading.as_mut().poll(cx) {
            return Poll::Ready(count.map(Some).map_err(|error| Failure::io(At::Sent, &error)));
        }
        if let Poll::Ready(gone) = poll_device(&mut **device, sent, end, cx) {
            return Poll::Ready(Err(gone));
        }
        patience.poll(by, cx).map(|()| Ok(None))
    })
    .await
}

/// Reads what the device sends ahead, up to a bound; ready when it leaves.
fn poll_device(device: &mut dyn Io, sent: &mut BytesMut, end: usize, cx: &mut std::task::Context<'_>) -> Poll<Failure> {
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
