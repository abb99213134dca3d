//! Requests that are not small, those of HTTP/2, and those whose region did not answer at once: first the body is read, then
//! regions are asked, and the first good answer is the device's.
//!
//! A region sees nothing of a body before it is here, or a good part of it: a device that sends a byte now and then takes up a
//! place on this edge, and none in a region. A transcription that waits long is copied to a second region ([`routing::hedge`]).
//! A region that says nothing for `timeouts.upgrade` may be dead, so what can be asked twice is asked elsewhere while it is
//! still waited for. What can not be held whole is passed on as it comes, to one region.

use std::{
    future::pending,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{Method, StatusCode, Version, header};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use routing::{Decision, breaker::Use};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};
use topology::words;

use crate::{
    answer::Answer,
    edge::Failed,
    exchange::{self, Answering, At, Failure, READ_BYTES, head_of_answer},
    fault::{Cause, Event, Facts},
    head::LINES_MAX,
    http1::{self, Body, Response},
    proxy::{Asker, Ctx, Gateway, Repeat, Route, Waiting, write},
    requests::{BodyMemory, InFlight},
    seen::Heard,
};

/// The body of a request, or its beginning.
struct Gathered {
    bytes: Bytes,
    is_whole: bool,
    /// Its share of `limits.body_buffer_bytes_total_max`.
    memory: BodyMemory,
}

/// One copy of a request, at one region.
struct Flight {
    decision: Decision,
    in_flight: InFlight,
    /// It is a copy that was sent because the first one took long ([`routing::hedge`]).
    is_copy: bool,
}

/// Where a copy flies, for as long as it does.
struct Launched {
    decision: Decision,
    began: Instant,
    heard: Arc<Heard>,
}

struct Landed {
    flight: Flight,
    result: std::result::Result<Answering, Failure>,
    took: Duration,
}

type Flying<'f> = Pin<Box<dyn Future<Output = Landed> + Send + 'f>>;

/// A request as regions get it.
struct Message {
    head: Vec<u8>,
    body: Bytes,
    repeat: Repeat,
    to_head: bool,
}

impl Gateway {
    /// Answers a request.
    ///
    /// # Errors
    ///
    /// There is nobody to answer any more, or the answer broke off.
    pub(crate) async fn attempt(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        let gathered = match self.gather(session, ctx).await? {
            Ok(gathered) => gathered,
            Err((reason, answer)) => {
                self.edge.metrics.refused(reason);
                return write(session, &answer).await;
            }
        };
        let asker = self.asker_of(session, ctx.table.as_deref());
        if !gathered.is_whole {
            return self.stream(session, ctx, &asker, gathered).await;
        }
        let request = session.req_header();
        let message = Message {
            head: self.message(session, Some(gathered.bytes.len())),
            repeat: ctx.route.repeat(request.method.as_str()),
            to_head: request.method == Method::HEAD,
            body: gathered.bytes,
        };
        let answering = self.race(session, ctx, &asker, &message).await?;
        // Nobody is asked any more, however long the device takes its answer.
        drop((message, gathered.memory));
        match answering {
            Some(answering) => self.pass_on(session, ctx, answering, asker.client).await,
            None => {
                ctx.in_flight = None;
                write(session, &self.nowhere(ctx)).await
            }
        }
    }

    /// Reads the body, or as much of it as is held; or says why it is not taken.
    async fn gather(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<std::result::Result<Gathered, (&'static str, Answer)>> {
        let limits = &self.edge.config.limits;
        let mut pace = self.edge.config.pace();
        let mut bytes = BytesMut::new();
        let client = crate::proxy::peer_of(session).map(|device| device.ip());
        let mut memory = self
            .requests
            .memory(client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        let mut is_whole = session.as_mut().is_body_done();
        if !is_whole && session.req_header().headers.contains_key(header::EXPECT) {
            session.as_mut().write_continue_response().await?;
        }
        while !is_whole && bytes.len() < limits.body_buffer_bytes_max {
            let began = Instant::now();
            let reading = session.as_mut().read_request_body();
            match timeout(pace.patience(), reading).await {
                Err(_) => return Ok(Err(("body-too-slow", Answer::body_too_slow()))),
                Ok(Err(error)) if is_malformed(&error) => {
                    return Ok(Err((
                        "malformed",
                        Answer::bad_request("the chunks of the body are malformed"),
                    )));
                }
                Ok(Err(error)) => return Err(error.into_down()),
                Ok(Ok(None)) => is_whole = true,
                Ok(Ok(Some(part))) => {
                    pace.waited(began.elapsed(), part.len());
                    bytes.extend_from_slice(&part);
                    ctx.body_bytes += part.len() as u64;
                    if ctx.body_bytes > limits.body_bytes_max {
                        return Ok(Err(("body-too-large", Answer::body_too_large(limits.body_bytes_max))));
                    }
                    if !memory.grow(part.len()) {
                        break;
                    }
                }
            }
        }
        // Its last byte may be here, and its end not yet seen.
        is_whole |= session.as_mut().is_body_done();
        Ok(Ok(Gathered {
            bytes: bytes.freeze(),
            is_whole,
            memory,
        }))
    }

    /// The head of a request as a region gets it. `None` for a body whose length nobody knows.
    fn message(&self, session: &Session, length: Option<usize>) -> Vec<u8> {
        let request = session.req_header();
        let target = request
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str);
        let mut bytes = format!("{} {target} HTTP/1.1\r\n", request.method).into_bytes();
        if !request.headers.contains_key(header::HOST)
            && let Some(authority) = request.uri.authority()
        {
            bytes.extend_from_slice(format!("Host: {authority}\r\n").as_bytes());
        }
        let connection = request.headers.get_all(header::CONNECTION);
        let named: Vec<&[u8]> = connection.iter().map(header::HeaderValue::as_bytes).collect();
        let lines = request
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        if let Some(device) = crate::proxy::peer_of(session) {
            http1::forward_headers(&mut bytes, lines, &named, device, &self.edge.id);
        }
        let said = request
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok());
        let framing = match (length, said) {
            (Some(0), None) if matches!(request.method, Method::GET | Method::HEAD) => String::new(),
            (Some(length), _) => format!("Content-Length: {length}\r\n"),
            (None, Some(said)) => format!("Content-Length: {said}\r\n"),
            (None, None) => "Transfer-Encoding: chunked\r\n".to_owned(),
        };
        let asks = format!("{framing}{}: {}\r\n\r\n", words::LOAD_HEADER, words::VERSION);
        bytes.extend_from_slice(asks.as_bytes());
        bytes
    }

    /// Asks regions, at times more than one, until there is an answer to pass on; `ctx` says whose it is. `None` when there is
    /// none.
    async fn race(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        asker: &Asker,
        message: &Message,
    ) -> Result<Option<Answering>> {
        let began = Instant::now();
        let silence = self.edge.config.timeouts.upgrade.0;
        let hedge = &self.edge.config.hedge;
        let mut may_copy = ctx.route == Route::Transcription
            && hedge.budget_percent > 0
            && message.body.len() <= hedge.body_bytes_max
            && ctx.waiting.is_none();
        let copy_after = may_copy.then(|| self.requests.hedging().begin(daemon::clock::now()));
        let copy_at = began + copy_after.unwrap_or_default();
        let mut may_rescue = message.repeat == Repeat::Slow;
        let mut rescue_at = began + silence;
        let mut flights: FuturesUnordered<Flying<'_>> = FuturesUnordered::new();
        let mut launched: Vec<Launched> = Vec::new();
        let mut worse: Option<(Flight, Answering)> = None;
        // The next attempt is a retry.
        let mut is_retry = false;
        if let Some(waiting) = ctx.waiting.take() {
            // Its region has been silent already.
            rescue_at = began;
            flights.push(self.fly_on(*waiting, message, &mut launched));
        }
        loop {
            while flights.is_empty() {
                let Some(flight) = self.launch(ctx, asker, is_retry) else {
                    if worse.is_none()
                        && let Some(pause) = self.another_round(ctx)
                    {
                        is_retry = false;
                        sleep_watching(session, ctx, pause).await?;
                        continue;
                    }
                    return Ok(self.settle(ctx, worse));
                };
                if std::mem::take(&mut is_retry) {
                    let Some(pause) = self.again(ctx) else {
                        return Ok(self.settle(ctx, worse));
                    };
                    sleep_watching(session, ctx, pause).await?;
                }
                rescue_at = rescue_at.max(Instant::now() + silence);
                flights.push(self.fly(flight, message, &mut launched));
            }
            let Landed { flight, result, took } = tokio::select! {
                Some(landed) = flights.next() => landed,
                () = sleep_until(copy_at), if may_copy => {
                    may_copy = false;
                    // The region that is slow is not asked again.
                    if self.requests.hedging().try_copy(daemon::clock::now()) {
                        match self.launch(ctx, asker, true) {
                            Some(mut flight) => {
                                self.edge.metrics.hedge("sent");
                                flight.is_copy = true;
                                flights.push(self.fly(flight, message, &mut launched));
                            }
                            None => self.edge.metrics.hedge("nowhere"),
                        }
                    } else {
                        self.edge.metrics.hedge("budget-exhausted");
                    }
                    continue;
                }
                () = sleep_until(rescue_at), if may_rescue => {
                    rescue_at = Instant::now() + silence;
                    let next = self.launch(ctx, asker, true);
                    // The pause before a retry has passed, in silence.
                    may_rescue = next.is_some() && self.again(ctx).is_some();
                    if let Some(flight) = next.filter(|_| may_rescue) {
                        flights.push(self.fly(flight, message, &mut launched));
                    }
                    continue;
                }
                // Nobody waits for the answer any more; dropping the copies cancels them.
                gone = leaves(session, ctx) => return Err(gone),
            };
            launched.retain(|other| other.decision.stack != flight.decision.stack);
            match result {
                Ok(answering) => {
                    let could_be_better =
                        self.judge(ctx.route, &flight.decision, &answering.response, took, asker.client);
                    if !could_be_better || message.repeat == Repeat::Never {
                        // What still flies is cancelled: its connection closes, and its region need not finish.
                        drop(flights);
                        self.note_silent(&launched, asker);
                        if flight.is_copy {
                            self.edge.metrics.hedge("won");
                        } else if copy_after.is_some() {
                            self.requests.hedging().answered(began.elapsed());
                        }
                        return Ok(self.settle(ctx, Some((flight, answering))));
                    }
                    worse.get_or_insert((flight, answering));
                    is_retry = true;
                }
                Err(failure) => {
                    self.note_failure(ctx, &flight.decision, &failure, asker.client);
                    let is_final = failure.is_local() || (failure.at == At::Sent && message.repeat == Repeat::Never);
                    if is_final && flights.is_empty() {
                        return Ok(self.settle(ctx, worse));
                    }
                    if failure.at == At::Connect {
                        // Another stack of the region may be well.
                        ctx.tried.only_stack(&flight.decision.region, flight.decision.stack);
                    } else {
                        is_retry = true;
                    }
                }
            }
        }
    }

    /// The answer that the device gets, or none.
    fn settle(&self, ctx: &mut Ctx, answer: Option<(Flight, Answering)>) -> Option<Answering> {
        let (flight, answering) = answer?;
        ctx.decision = Some(flight.decision);
        ctx.in_flight = Some(flight.in_flight);
        Some(answering)
    }

    /// The next region for a copy; it is not chosen again for this request.
    fn launch(&self, ctx: &mut Ctx, asker: &Asker, is_extra: bool) -> Option<Flight> {
        let wanted = Use {
            has_connection: true,
            is_extra: is_extra || ctx.retries > 0,
        };
        let (decision, in_flight) = self.choose(ctx, asker, wanted)?;
        ctx.tried.region(&decision.region);
        Some(Flight {
            decision,
            in_flight,
            is_copy: false,
        })
    }

    fn note_launch(&self, decision: &Decision, began: Instant, launched: &mut Vec<Launched>) {
        launched.push(Launched {
            decision: decision.clone(),
            began,
            heard: self.edge.seen.heard(decision.stack),
        });
    }

    fn fly<'f>(&'f self, mut flight: Flight, message: &'f Message, launched: &mut Vec<Launched>) -> Flying<'f> {
        let began = Instant::now();
        self.note_launch(&flight.decision, began, launched);
        Box::pin(async move {
            let result = self.ask_copy(&mut flight, message).await;
            let took = began.elapsed();
            Landed { flight, result, took }
        })
    }

    /// Goes on with a request that a region got and has not answered.
    fn fly_on<'f>(&'f self, waiting: Waiting, message: &'f Message, launched: &mut Vec<Launched>) -> Flying<'f> {
        let Waiting {
            decision,
            in_flight,
            mut region,
            read,
            began,
        } = waiting;
        self.note_launch(&decision, began, launched);
        let by = began + self.edge.config.timeouts.answer.0;
        Box::pin(async move {
            let answer = exchange::await_answer(&self.edge, &mut region, read, message.to_head, by).await;
            let result = answer.map(|(response, read)| Answering { region, response, read });
            let flight = Flight {
                decision,
                in_flight,
                is_copy: false,
            };
            let took = began.elapsed();
            Landed { flight, result, took }
        })
    }

    async fn ask_copy(&self, flight: &mut Flight, message: &Message) -> std::result::Result<Answering, Failure> {
        let limit = self.silence_of_copy(message.repeat);
        let stack = flight.decision.stack;
        let mut kept = self.idle.take(stack);
        loop {
            let was_kept = kept.is_some();
            let mut region = match kept.take() {
                Some(region) => region,
                None => self.open(&flight.decision).await?,
            };
            flight.in_flight.connected();
            let parts = (&message.head[..], &message.body[..]);
            match exchange::exchange(&self.edge, &mut region, parts, message.to_head, limit).await {
                // The region closed a connection that waited for the next request; it gets a new one.
                Err(failure) if failure.is_kept_closed() && was_kept && message.repeat != Repeat::Never => {}
                Err(failure) if failure.is_kept_closed() && !was_kept => return Err(Failure::ended()),
                Err(failure) => return Err(failure),
                Ok((response, read)) => return Ok(Answering { region, response, read }),
            }
        }
    }

    async fn open(&self, decision: &Decision) -> std::result::Result<TcpStream, Failure> {
        let began = Instant::now();
        let region = exchange::connect(&self.edge, decision).await?;
        self.connected(decision, began.elapsed());
        Ok(region)
    }

    /// Regions that said nothing while another one answered. One that others hear, or that answers probes, is slow, and slow is
    /// not dead.
    fn note_silent(&self, launched: &[Launched], asker: &Asker) {
        let silence = self.edge.config.timeouts.upgrade.0;
        for Launched { decision, began, heard } in launched {
            if began.elapsed() >= silence && heard.elapsed() >= silence {
                let is_silent = self.edge.seen.is_silent(&decision.region);
                let facts = Facts {
                    edge_is_late: self.edge.lag.is_late_for(silence),
                    ..Event::Outrun { is_silent }.into()
                };
                let failed = Failed::Request { client: asker.client };
                self.edge
                    .blame(decision, failed, facts, "request: silent while another region answered");
                self.edge.metrics.connect(&decision.region, "silent");
            }
        }
    }

    /// Passes an answer on, from its head to its last byte.
    async fn pass_on(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        answering: Answering,
        client: Option<std::net::IpAddr>,
    ) -> Result<()> {
        let Answering {
            region,
            mut response,
            mut read,
        } = answering;
        let head = match self.head_for_device(session, ctx, &response) {
            Ok(head) => head,
            Err(failure) => {
                self.broke_off(ctx, 502, &failure, client);
                let answer = Answer::region_failed(StatusCode::BAD_GATEWAY, "the region's answer cannot be passed on");
                return write(session, &answer).await;
            }
        };
        let answer_limit = self.edge.config.timeouts.answer.0;
        let mut pace = self.edge.config.pace();
        let mut region = Some(region);
        let mut head = Some(head);
        let has_body = !response.body.is_done();
        if !session.as_mut().is_body_done() {
            // What was refused need not be read to its end, however long that is.
            session.set_keepalive(None);
        }
        let watches = session.as_mut().is_body_done();
        loop {
            let data = match response.body.data(&mut read) {
                Ok(data) => data,
                Err(broken) => {
                    return self
                        .break_off(session, ctx, &response, broken.into(), client, head.is_some())
                        .await;
                }
            };
            if response.body.is_done()
                && let Some(region) = region.take()
            {
                self.region_is_done(ctx, region, &response, &read);
            }
            let began = Instant::now();
            let length = data.len();
            let writing = async {
                if let Some(head) = head.take() {
                    session.write_response_header(Box::new(head), !has_body).await?;
                }
                if !data.is_empty() {
                    session.write_response_body(Some(data), false).await?;
                }
                if region.is_none() && has_body {
                    session.write_response_body(None, true).await?;
                }
                Result::<()>::Ok(())
            };
            match timeout(pace.patience(), writing).await {
                Ok(written) => written?,
                Err(_) => {
                    let failure = Failure::device_slow();
                    self.broke_off(ctx, response.status, &failure, client);
                    return Err(Error::explain(ErrorType::WriteTimedout, failure.why).into_down());
                }
            }
            pace.waited(began.elapsed(), length);
            let Some(from) = &mut region else { return Ok(()) };
            read.reserve(READ_BYTES);
            let count = tokio::select! {
                biased;
                count = timeout(answer_limit, from.read_buf(&mut read)) => count,
                // Nobody listens any more; dropping the region's connection tells it.
                gone = leaves(session, ctx), if watches => {
                    self.broke_off(ctx, response.status, &Failure::device_gone(), client);
                    return Err(gone);
                }
            };
            let failure = match count {
                Ok(Ok(0)) if matches!(response.body, Body::UntilClose) => {
                    ctx.in_flight = None;
                    self.done(ctx, response.status, None);
                    let ending = session.write_response_body(None, true);
                    return match timeout(pace.patience(), ending).await {
                        Ok(ended) => ended,
                        Err(_) => Err(Error::new(ErrorType::WriteTimedout).into_down()),
                    };
                }
                Ok(Ok(1..)) => continue,
                Ok(Ok(0)) => Failure::ended(),
                Ok(Err(error)) => Failure::io(At::Sent, &error),
                Err(_) => Failure::timed_out(&self.edge, At::Sent, answer_limit),
            };
            return self.break_off(session, ctx, &response, failure, client, false).await;
        }
    }

    /// The region has done its part, however long the device takes to take it.
    fn region_is_done(&self, ctx: &mut Ctx, region: TcpStream, response: &Response, read: &BytesMut) {
        ctx.in_flight = None;
        self.done(ctx, response.status, None);
        if let Some(decision) = &ctx.decision
            && response.keeps
            && read.is_empty()
        {
            self.idle.put(decision.stack, region);
        }
    }

    /// The answer broke off. The device is told as long as it has nothing of it.
    async fn break_off(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        response: &Response,
        failure: Failure,
        client: Option<std::net::IpAddr>,
        is_untold: bool,
    ) -> Result<()> {
        self.broke_off(ctx, response.status, &failure, client);
        if is_untold {
            return write(session, &self.region_failed(ctx, &failure)).await;
        }
        // What came is given: pingora may hold the beginning of it back.
        let _ = timeout(self.edge.config.timeouts.close.0, session.as_mut().shutdown()).await;
        Err(Error::explain(ErrorType::ConnectionClosed, failure.why).into_up())
    }

    /// The head of an answer as pingora writes it for the device.
    fn head_for_device(
        &self,
        session: &Session,
        ctx: &Ctx,
        response: &Response,
    ) -> std::result::Result<ResponseHeader, Failure> {
        if response.is_coded {
            return Err(Failure::nonsense("its Transfer-Encoding is more than chunked"));
        }
        let nonsense = |_| Failure::nonsense("its head");
        // The edge adds at most one line.
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX + 1];
        let mut parsed = httparse::Response::new(&mut lines);
        let text = [&response.returned[..], b"\r\n"].concat();
        parsed.parse(&text).map_err(|_| Failure::nonsense("its head"))?;
        let mut head = ResponseHeader::build(response.status, Some(parsed.headers.len() + 4)).map_err(nonsense)?;
        for line in parsed.headers.iter() {
            if !line.name.eq_ignore_ascii_case("transfer-encoding") {
                head.append_header(line.name.to_owned(), line.value).map_err(nonsense)?;
            }
        }
        // HTTP/2 has frames, and HTTP/1.0 ends a body by closing.
        let is_http11 = session.req_header().version == Version::HTTP_11;
        if !response.body.is_done() && is_http11 && !matches!(response.body, Body::Length(_)) {
            head.insert_header(header::TRANSFER_ENCODING, "chunked")
                .map_err(nonsense)?;
        }
        self.sign_response(&mut head, ctx).map_err(nonsense)?;
        Ok(head)
    }

    /// Passes a body on that cannot be held whole: to one region, and after it began, to no other.
    async fn stream(&self, session: &mut Session, ctx: &mut Ctx, asker: &Asker, gathered: Gathered) -> Result<()> {
        let head = self.message(session, None);
        let is_chunked = !session.req_header().headers.contains_key(header::CONTENT_LENGTH);
        let mut first = BytesMut::from(&head[..]);
        frame(&mut first, &gathered.bytes, is_chunked);
        drop(gathered.bytes);
        let first = (first.freeze(), gathered.memory);
        if let Some(client) = asker.client {
            match self.edge.admission.upload(client) {
                Ok(place) => ctx.upload = Some(place),
                Err(refusal) => {
                    self.edge.metrics.refused(refusal.as_str());
                    return write(session, &refusal.answer()).await;
                }
            }
        }
        loop {
            let wanted = Use {
                has_connection: true,
                is_extra: ctx.retries > 0,
            };
            let Some((decision, mut in_flight)) = self.choose(ctx, asker, wanted) else {
                match self.another_round(ctx) {
                    Some(pause) => sleep(pause).await,
                    None => return write(session, &self.nowhere(ctx)).await,
                }
                continue;
            };
            let began = Instant::now();
            let mut region = match self.open(&decision).await {
                Ok(region) => region,
                Err(failure) => {
                    self.note_failure(ctx, &decision, &failure, asker.client);
                    if failure.is_local() {
                        return write(session, &self.nowhere(ctx)).await;
                    }
                    ctx.tried.stack(&decision.region, decision.stack);
                    continue;
                }
            };
            in_flight.connected();
            ctx.in_flight = Some(in_flight);
            let sent = self.send(session, ctx, &mut region, first, is_chunked).await?;
            ctx.upload = None;
            return match sent {
                Sent::Answered(response, read) => {
                    self.judge(ctx.route, &decision, &response, began.elapsed(), asker.client);
                    ctx.decision = Some(decision);
                    let answering = Answering { region, response, read };
                    self.pass_on(session, ctx, answering, asker.client).await
                }
                Sent::Refused(reason, answer) => {
                    ctx.in_flight = None;
                    self.edge.metrics.refused(reason);
                    write(session, &answer).await
                }
                Sent::Failed(failure) => {
                    ctx.in_flight = None;
                    self.note_failure(ctx, &decision, &failure, asker.client);
                    write(session, &self.nowhere(ctx)).await
                }
            };
        }
    }

    /// Sends what was gathered and what comes after it, until the region answers.
    async fn send(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        region: &mut TcpStream,
        (mut pending, memory): (Bytes, BodyMemory),
        is_chunked: bool,
    ) -> Result<Sent> {
        let mut memory = Some(memory);
        let limits = &self.edge.config.limits;
        let answer_limit = self.edge.config.timeouts.answer.0;
        let (mut from, mut to) = region.split();
        let mut read = BytesMut::new();
        let mut pace = self.edge.config.pace();
        let mut is_sent = false;
        loop {
            read.reserve(exchange::FIRST_READ_BYTES);
            if pending.is_empty()
                && let Some(memory) = memory.take()
            {
                // What was held is on its way; what is empty would keep it still.
                pending = Bytes::new();
                drop(memory);
            }
            if pending.is_empty() && !is_sent && session.as_mut().is_body_done() {
                is_sent = true;
                pending = end_of_body(is_chunked);
            }
            let began = Instant::now();
            let waits_for_device = pending.is_empty() && !is_sent;
            let limit = if waits_for_device {
                pace.patience()
            } else {
                answer_limit
            };
            let mut is_over = false;
            let mut failed = None;
            tokio::select! {
                biased;
                count = from.read_buf(&mut read) => match count {
                    Ok(count) => is_over = count == 0,
                    Err(error) => failed = Some(Failure::io(At::Sent, &error)),
                },
                // A region that does not take any more may have said why, or will.
                count = to.write(&pending), if !pending.is_empty() => match count {
                    Ok(count) => pending.advance(count),
                    Err(error) if Cause::of(&error) == Cause::Local => {
                        failed = Some(Failure::io(At::Sent, &error));
                    }
                    Err(_) => {
                        pending = Bytes::new();
                        is_sent = true;
                    }
                },
                // Behind the body it waits for nothing but the end of the device.
                part = async {
                    match is_sent {
                        true => Err(leaves(session, ctx).await),
                        false => session.as_mut().read_body_or_idle(false).await,
                    }
                }, if pending.is_empty() => match part {
                    Err(gone) if is_sent => return Err(gone),
                    Ok(Some(part)) => {
                        pace.waited(began.elapsed(), part.len());
                        ctx.body_bytes += part.len() as u64;
                        if ctx.body_bytes > limits.body_bytes_max {
                            let answer = Answer::body_too_large(limits.body_bytes_max);
                            return Ok(Sent::Refused("body-too-large", answer));
                        }
                        let mut framed = BytesMut::new();
                        frame(&mut framed, &part, is_chunked);
                        pending = framed.freeze();
                    }
                    Ok(None) => {
                        is_sent = true;
                        pending = end_of_body(is_chunked);
                    }
                    Err(error) if is_malformed(&error) => {
                        let answer = Answer::bad_request("the chunks of the body are malformed");
                        return Ok(Sent::Refused("malformed", answer));
                    }
                    Err(error) => return Err(error.into_down()),
                },
                () = sleep(limit) => {
                    if waits_for_device {
                        return Ok(Sent::Refused("body-too-slow", Answer::body_too_slow()));
                    }
                    failed = Some(Failure::timed_out(&self.edge, At::Sent, limit));
                }
            }
            if let Some(failure) = failed {
                return Ok(Sent::Failed(failure));
            }
            match head_of_answer(&mut read, false, limits.header_bytes_max) {
                Ok(Some(mut response)) => {
                    // What is left unsent cannot be told from the next request.
                    response.keeps &= is_sent && pending.is_empty();
                    return Ok(Sent::Answered(response, read));
                }
                Ok(None) if is_over => return Ok(Sent::Failed(Failure::ended())),
                Ok(None) => {}
                Err(failure) => return Ok(Sent::Failed(failure)),
            }
        }
    }
}

/// What sending a long body came to.
enum Sent {
    Answered(Response, BytesMut),
    /// The device sent too much, too slowly, or what is no body.
    Refused(&'static str, Answer),
    Failed(Failure),
}

/// What follows the last part of a body.
fn end_of_body(is_chunked: bool) -> Bytes {
    Bytes::from_static(if is_chunked { b"0\r\n\r\n" } else { b"" })
}

/// Adds a part of a body.
fn frame(bytes: &mut BytesMut, part: &[u8], is_chunked: bool) {
    if !is_chunked {
        bytes.extend_from_slice(part);
    } else if !part.is_empty() {
        bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
}

/// Waits before a region is asked; a device that leaves meanwhile takes its question back.
async fn sleep_watching(session: &mut Session, ctx: &mut Ctx, pause: Duration) -> Result<()> {
    tokio::select! {
        () = sleep(pause) => Ok(()),
        gone = leaves(session, ctx) => Err(gone),
    }
}

/// Resolves when a device whose request is all here leaves.
///
/// One that sends its next request ahead is there, and waits for this answer. pingora cannot give back the byte that it
/// looked at, so nothing more is watched, and the connection ends behind this answer.
async fn leaves(session: &mut Session, ctx: &mut Ctx) -> Box<Error> {
    if ctx.has_sent_ahead {
        return pending().await;
    }
    match session.as_mut().read_body_or_idle(true).await {
        Err(error) if *error.etype() == ErrorType::ConnectError => {
            ctx.has_sent_ahead = true;
            session.set_keepalive(None);
            pending().await
        }
        Err(gone) => gone.into_down(),
        Ok(_) => Error::new(ErrorType::ConnectionClosed).into_down(),
    }
}

/// Whether a body could not be read because it is none: see [`crate::transport`].
fn is_malformed(error: &Error) -> bool {
    let io = error.root_cause().downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::InvalidData)
        || matches!(error.etype(), ErrorType::Custom("InvalidChunk"))
}
