//! Requests of HTTP/1.1 to regions. Most of them have a small body or none, and their region answers at once. `attempts.rs` serves
//! the others: it reads the body first, and races regions. pingora serves requests that are not for a region.
//!
//! Through pingora a request costs three times the processor time that nginx takes; on this path it costs about the same as
//! nginx (docs/benchmarks.md). The same code as on the other paths chooses regions and decides on retries.
//!
//! Why it is so: docs/decisions/04-small-requests-without-pingora.md.

use bytes::{Buf as _, BytesMut};
use identity::{Link, Speaks};
use routing::{Decision, breaker::Demand};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use crate::{
    answer::Answer,
    cors::PreflightHeaders,
    device,
    fault::Cause,
    http1::head::{Head, LINES_MAX},
    http1::{Peer, Request, Response},
    request::attempts::Attempts,
    request::choice::Waiting,
    request::chooser::{Chooser, RequesterId},
    request::ctx::Ctx,
    request::device_connection::{
        DeviceConnection, Forwarded, StreamingDevice, failed, give, pause_watching, read_watching,
    },
    request::exchange::{Answering, At, FIRST_READ_BYTES, Failure, head_of_answer},
    request::requester::{Asking, Requester as _},
    request::route::{Repeat, Route},
    session::registry::Busy,
    stamp::Stamp,
};

/// Bodies up to this length are read whole before a region is chosen: the text of a long reply fits.
const BODY_BYTES_MAX: usize = 16 << 10;

/// A request before the edge chooses a region.
struct Asked {
    /// The request for a region.
    message: Vec<u8>,
    /// Its end in the bytes that the device sent.
    end: usize,
    requester: RequesterId,
    repeat: Repeat,
    is_head: bool,
    is_last: bool,
}

/// The path of a request.
enum Kind {
    Small(Asked),
    /// A region answers too, but the body is not small, or a second region may get a copy.
    Long(Asking),
    /// The edge answers: a browser asks whether a page may call.
    Preflight(Result<PreflightHeaders, Answer>),
}

/// The result of asking one region after the other.
enum RoundResult {
    Answer(Answering),
    /// The region has not answered yet. It may just be slow, so the edge goes on waiting while it asks another one.
    Silent(Box<Waiting>),
    /// No region answered; the device gets this answer.
    Nobody(Answer),
    /// The device left.
    Gone(Failure),
}

enum Reply {
    Answer(Answering),
    Silent(Link, BytesMut),
}

/// The path of small requests of HTTP/1.1.
#[derive(Clone)]
pub struct FastPath {
    pub(crate) chooser: Chooser,
}

impl FastPath {
    /// Answers a request, or returns one that pingora has to serve.
    pub(crate) async fn forward(
        &self,
        mut conn: DeviceConnection<'_>,
        mut head: Head,
        device: Peer,
        busy: Busy,
    ) -> Forwarded {
        let (mut ctx, kind) = self.classify(&head, device, busy);
        let kind = match kind {
            Ok(Some(kind)) => kind,
            Ok(None) => return Forwarded::ForPingora(head, ctx),
            Err(what) => {
                let refused = ("malformed", Answer::bad_request(what));
                let (reason, answer) = self.chooser.edge.admission.refuse(device.ip(), refused);
                self.chooser.edge.refused(reason, &ctx.stamp.id);
                self.chooser.done(&mut ctx, answer.status.as_u16(), Some(what));
                device::decline(&self.chooser.edge, conn.device, &ctx.stamp, &answer).await;
                return Forwarded::Over;
            }
        };
        let Ok(slot) = self.chooser.edge.admission.request(device.ip()) else {
            // Over a limit: pingora asks again, and formats the 429 in a way that keeps the connection.
            return Forwarded::ForPingora(head, ctx);
        };
        ctx.admission.slot = Some(slot);
        self.chooser.requests.count_request(daemon::clock::now());
        let mut asked = match kind {
            Kind::Small(asked) => asked,
            // In a box: a session lives for hours on the same connection and should not pay for it.
            Kind::Long(asking) => return Box::pin(self.long(conn, head, &mut ctx, asking)).await,
            Kind::Preflight(answer) => return self.preflight(conn, head, ctx, answer).await,
        };
        let mut pace = self.chooser.edge.config.pace();
        while head.bytes.len() < asked.end {
            let began = Instant::now();
            let reading = conn.device.read_buf(&mut head.bytes);
            let (answer, why) = match conn.timer.until(began + pace.remaining(), reading).await {
                Some(Ok(count @ 1..)) => {
                    pace.waited(began.elapsed(), count);
                    continue;
                }
                Some(_) => (None, "the device left"),
                None => {
                    self.chooser.edge.refused("body-too-slow", &ctx.stamp.id);
                    (Some(Answer::body_too_slow()), "the body took too long")
                }
            };
            return failed(&self.chooser, &mut conn, &mut ctx, asked.is_head, (answer, why)).await;
        }
        let body_bytes = asked.end - head.len;
        asked.message.extend_from_slice(&head.bytes[head.len..asked.end]);
        let result = self.ask_regions(&mut conn, &mut head.bytes, &asked, &mut ctx).await;
        if !matches!(result, RoundResult::Silent(_)) {
            // `attempts` reads the body of a request with a silent region again, and counts it.
            ctx.took(body_bytes);
        }
        let ended = match result {
            RoundResult::Answer(answering) => {
                let about = (asked.is_last, asked.requester.client);
                let sent = (head.bytes, asked.end);
                return give(&self.chooser, &mut conn, &mut ctx, about, answering, sent).await;
            }
            RoundResult::Silent(waiting) => {
                ctx.choice.waiting = Some(waiting);
                let Some(asking) = self.asking_of(&head, device, &ctx) else {
                    return Forwarded::Over;
                };
                return Box::pin(self.long(conn, head, &mut ctx, asking)).await;
            }
            RoundResult::Nobody(answer) => (Some(answer), "no region answered".to_owned()),
            RoundResult::Gone(failure) => (None, failure.why),
        };
        failed(&self.chooser, &mut conn, &mut ctx, asked.is_head, (ended.0, &ended.1)).await
    }

    /// Answers a request whose body may be long, or whose region is silent.
    async fn long(&self, conn: DeviceConnection<'_>, head: Head, ctx: &mut Ctx, asking: Asking) -> Forwarded {
        let mut device = StreamingDevice::new(conn, head, ctx, asking.to_head);
        let bytes_max = self.chooser.edge.config.limits.body_bytes_max;
        let answered = if asking.length.is_some_and(|length| length > bytes_max) {
            self.chooser.edge.refused("body-too-large", &ctx.stamp.id);
            let answer = Answer::body_too_large(bytes_max);
            device.refuse(&self.chooser, ctx, &answer).await
        } else {
            let attempts = Attempts { chooser: &self.chooser };
            attempts.attempt(&mut device, ctx, asking).await
        };
        if let Err(gone) = answered {
            self.chooser.done(ctx, 0, Some(&gone.why));
        }
        device.after
    }

    /// The same request for `attempts.rs`. Its head was read before.
    fn asking_of(&self, head: &Head, device: Peer, ctx: &Ctx) -> Option<Asking> {
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let request = Request::parse(&head.bytes[..head.len], &mut lines).ok()?;
        Some(self.asking(&request, device, ctx))
    }

    fn asking(&self, request: &Request<'_, '_>, device: Peer, ctx: &Ctx) -> Asking {
        Asking {
            requester: self.requester(request, device, ctx),
            repeat: ctx.route.repeat(request.method),
            to_head: request.is_head(),
            expects: request.header("expect").is_some(),
            length: request.content_length(),
            is_bodiless: request.only_reads(),
            lines: request.forwarded_lines(&self.chooser.provenance(ctx, device)),
        }
    }

    fn requester(&self, request: &Request<'_, '_>, device: Peer, ctx: &Ctx) -> RequesterId {
        let client = Some(device.ip());
        self.chooser.requester(
            |name| request.header(name),
            request.target,
            client,
            ctx.choice.table.as_deref(),
        )
    }

    /// Reads a request and chooses its path. `None` for a request that no region answers, or of HTTP/1.0: pingora serves those.
    fn classify(&self, head: &Head, device: Peer, busy: Busy) -> (Box<Ctx>, Result<Option<Kind>, &'static str>) {
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let request = match Request::parse(&head.bytes[..head.len], &mut lines) {
            Ok(request) => request,
            Err(what) => {
                let stamp = Stamp::of_head(&self.chooser.edge.config.cors, head);
                return (Box::new(self.chooser.begin(busy, stamp)), Err(what));
            }
        };
        let stamp = self.chooser.edge.stamp(request.id, request.origin);
        let mut ctx = Box::new(self.chooser.begin(busy, stamp));
        ctx.route = Route::of(request.path(), false);
        ctx.is_last = request.is_last;
        ctx.body = request.body();
        let is_for_region = match ctx.route {
            Route::Audio | Route::Speech | Route::Models | Route::Voice | Route::Health | Route::Transcription => true,
            Route::VoiceGrpc | Route::Realtime | Route::Upstream | Route::Preflight | Route::Nothing => false,
        };
        let body_bytes_max = self
            .chooser
            .edge
            .config
            .limits
            .body_bytes_max
            .min(BODY_BYTES_MAX as u64);
        let is_small = !request.is_chunked && request.body_bytes() as u64 <= body_bytes_max;
        if request.is_http11()
            && let Some(answer) = self
                .chooser
                .answer_to_preflight(&mut ctx, (request.method, request.path()), |name| request.header(name))
        {
            // Browsers send no body, and an unread one would pass for the next request.
            ctx.is_last |= request.has_body();
            return (ctx, Ok(Some(Kind::Preflight(answer))));
        }
        if !is_for_region || !request.is_http11() || request.is_grpc() {
            return (ctx, Ok(None));
        }
        if self.chooser.edge.access.is_some() {
            // pingora's refusal keeps the connection open. The edge verifies no credential of a client over its rate.
            let may_ask = self.chooser.edge.admission.may_ask(device.ip());
            if may_ask.is_err() {
                return (ctx, Ok(None));
            }
            if let Err(refused) = self
                .chooser
                .recognise(&mut ctx, request.method, |name| request.header(name))
            {
                ctx.admission.refused = Some(refused);
                return (ctx, Ok(None));
            }
        }
        // A transcription may be copied to a second region.
        if !request.is_plain || !is_small || ctx.route == Route::Transcription {
            let asking = self.asking(&request, device, &ctx);
            return (ctx, Ok(Some(Kind::Long(asking))));
        }
        let asked = Asked {
            message: request.forwarded(&self.chooser.provenance(&ctx, device)),
            end: head.len + request.body_bytes(),
            requester: self.requester(&request, device, &ctx),
            repeat: ctx.route.repeat(request.method),
            is_head: request.is_head(),
            is_last: request.is_last,
        };
        (ctx, Ok(Some(Kind::Small(asked))))
    }

    /// Answers the question of a browser whether a page may ask something. No region is asked, and the connection stays.
    async fn preflight(
        &self,
        conn: DeviceConnection<'_>,
        mut head: Head,
        mut ctx: Box<Ctx>,
        answer: Result<PreflightHeaders, Answer>,
    ) -> Forwarded {
        let headers = match answer {
            Ok(headers) => headers,
            Err(answer) => {
                self.chooser.edge.refused("origin", &ctx.stamp.id);
                self.chooser.done(&mut ctx, answer.status.as_u16(), None);
                device::decline(&self.chooser.edge, conn.device, &ctx.stamp, &answer).await;
                return Forwarded::Over;
            }
        };
        let closes = ctx.is_last || self.chooser.edge.sessions.is_draining();
        let mut bytes = b"HTTP/1.1 204 No Content\r\n".to_vec();
        for (name, value) in &headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        ctx.stamp.write(&self.chooser.edge.config.cors, &mut bytes);
        bytes.extend_from_slice(if closes { b"Connection: close\r\n\r\n" } else { b"\r\n" });
        self.chooser.done(&mut ctx, 204, None);
        let writing = async {
            conn.device.write_all(&bytes).await?;
            conn.device.flush().await
        };
        let by = Instant::now() + self.chooser.edge.config.timeouts.device.0;
        if !matches!(conn.timer.until(by, writing).await, Some(Ok(()))) {
            return Forwarded::Over;
        }
        if closes {
            device::goodbye(conn.device, self.chooser.edge.config.timeouts.close.0).await;
            return Forwarded::Over;
        }
        head.bytes.advance(head.len);
        Forwarded::Answered(head.bytes)
    }

    /// Asks one region after the other, until one answers or none is left to ask.
    async fn ask_regions(
        &self,
        conn: &mut DeviceConnection<'_>,
        sent: &mut BytesMut,
        asked: &Asked,
        ctx: &mut Ctx,
    ) -> RoundResult {
        // Whether the next attempt is a retry. It comes out of the budget when the edge makes it.
        let mut is_retry = false;
        let mut worse = None;
        loop {
            let wanted = Demand {
                has_connection: true,
                is_extra: is_retry || ctx.choice.retries > 0,
            };
            let Some((decision, in_flight)) = self.chooser.choose(ctx, &asked.requester, wanted) else {
                if worse.is_none()
                    && let Some(pause) = self.chooser.another_round(&mut ctx.choice)
                {
                    is_retry = false;
                    match pause_watching(conn, sent, asked.end, pause).await {
                        Ok(()) => continue,
                        Err(gone) => return RoundResult::Gone(gone),
                    }
                }
                break;
            };
            ctx.choice.in_flight = Some(in_flight);
            if std::mem::take(&mut is_retry) {
                let Some(pause) = self.chooser.retry(&mut ctx.choice) else {
                    break;
                };
                if let Err(gone) = pause_watching(conn, sent, asked.end, pause).await {
                    return RoundResult::Gone(gone);
                }
            }
            let began = Instant::now();
            match self.ask_region(conn, sent, asked, ctx, &decision).await {
                Ok(Reply::Answer(answering)) => {
                    let client = asked.requester.client;
                    let could_be_better =
                        self.chooser
                            .judge(ctx.route, &decision, &answering.response, began.elapsed(), client);
                    ctx.choice.tried.stack(&decision.region, decision.stack);
                    if !could_be_better || asked.repeat == Repeat::Never {
                        ctx.choice.decision = Some(decision);
                        return RoundResult::Answer(answering);
                    }
                    worse = Some((decision, answering));
                    is_retry = true;
                }
                Ok(Reply::Silent(region, read)) => {
                    ctx.choice.tried.region(&decision.region);
                    let Some(in_flight) = ctx.choice.in_flight.take() else {
                        break;
                    };
                    return RoundResult::Silent(Box::new(Waiting {
                        decision,
                        in_flight,
                        region,
                        read,
                        began,
                    }));
                }
                Err(gone) if gone.is_of_device() => return RoundResult::Gone(gone),
                Err(failure) => {
                    self.chooser
                        .note_failure(ctx, &decision, &failure, asked.requester.client);
                    if failure.is_local() || (failure.at == At::Sent && asked.repeat == Repeat::Never) {
                        break;
                    }
                    is_retry = failure.at == At::Sent;
                    ctx.choice.tried.stack(&decision.region, decision.stack);
                }
            }
            ctx.choice.in_flight = None;
        }
        ctx.choice.in_flight = None;
        match worse {
            Some((decision, answering)) => {
                ctx.choice.decision = Some(decision);
                RoundResult::Answer(answering)
            }
            None => RoundResult::Nobody(ctx.choice.nowhere()),
        }
    }

    /// Sends a request to a region and waits for the head of its answer.
    async fn ask_region(
        &self,
        conn: &mut DeviceConnection<'_>,
        sent: &mut BytesMut,
        asked: &Asked,
        ctx: &mut Ctx,
        decision: &Decision,
    ) -> Result<Reply, Failure> {
        let mut kept = conn.pool.take(&decision.region, decision.stack);
        loop {
            let was_kept = kept.is_some();
            let mut region = match kept.take() {
                Some(region) => region,
                None => self.connect(conn, decision).await?,
            };
            if let Some(in_flight) = &mut ctx.choice.in_flight {
                in_flight.connected();
            }
            let mut read = BytesMut::with_capacity(FIRST_READ_BYTES);
            match self.exchange(conn, sent, asked, &mut region, &mut read).await {
                Err(failure) if failure.is_kept_closed() && was_kept && asked.repeat != Repeat::Never => {}
                Err(failure) if failure.is_kept_closed() && !was_kept => return Err(Failure::ended()),
                // A slow region is not dead: speech takes time.
                Err(failure) if failure.is_timeout() && asked.repeat == Repeat::Slow => {
                    return Ok(Reply::Silent(region, read));
                }
                Err(failure) => return Err(failure),
                Ok(response) => return Ok(Reply::Answer(Answering { region, response, read })),
            }
        }
    }

    async fn connect(&self, conn: &mut DeviceConnection<'_>, decision: &Decision) -> Result<Link, Failure> {
        let began = Instant::now();
        let limit = self.chooser.edge.config.timeouts.connect.0;
        let edge = &self.chooser.edge;
        let connecting = edge.dial(&decision.region, decision.stack, Speaks::Http1);
        // In a box: most requests find a connection in the pool.
        match conn.timer.until(began + limit, Box::pin(connecting)).await {
            Some(Ok(link)) => {
                self.chooser.connected(decision, began.elapsed());
                Ok(link)
            }
            Some(Err(error)) => Err(Failure::io(At::Connect, &error)),
            None => Err(Failure::timed_out(&self.chooser.edge, At::Connect, limit)),
        }
    }

    async fn exchange(
        &self,
        conn: &mut DeviceConnection<'_>,
        sent: &mut BytesMut,
        asked: &Asked,
        region: &mut Link,
        read: &mut BytesMut,
    ) -> Result<Response, Failure> {
        let limit = self.chooser.silence(asked.repeat);
        let by = Instant::now() + limit;
        let timed_out = || Failure::timed_out(&self.chooser.edge, At::Sent, limit);
        let sending = async {
            region.write_all(&asked.message).await?;
            region.flush().await
        };
        match conn.timer.until(by, sending).await {
            Some(Err(error)) if Cause::of(&error) == Cause::Local => return Err(Failure::io(At::Sent, &error)),
            // A region that closes may have sent the reason before; the edge reads that first, and then the end.
            Some(_) => {}
            None => return Err(timed_out()),
        }
        loop {
            match read_watching(conn, sent, asked.end, region, read, by, FIRST_READ_BYTES).await {
                Ok(Some(0)) if read.is_empty() => return Err(Failure::kept_closed()),
                Err(failure) if read.is_empty() && failure.may_be_kept_closed() => {
                    return Err(Failure::kept_closed());
                }
                Ok(Some(0)) => return Err(Failure::ended()),
                Ok(Some(_)) => {}
                Ok(None) => return Err(timed_out()),
                Err(failure) => return Err(failure),
            }
            if let Some(response) =
                head_of_answer(read, asked.is_head, self.chooser.edge.config.limits.header_bytes_max)?
            {
                return Ok(response);
            }
        }
    }
}
