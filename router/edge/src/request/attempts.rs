//! Requests that are not small, requests of HTTP/2, and those whose region did not answer at once. The edge first reads the
//! body, then asks regions, and passes the first good answer on.
//!
//! The edge holds the body, or a good part of it, before it asks a region: a device that sends a byte now and then takes a slot
//! at this edge and none in a region. The edge copies a transcription that waits long to a second region ([`routing::hedge`]). A
//! region that says nothing for `timeouts.upgrade` may be dead, so the edge asks another region for a repeatable request while it
//! still waits for the first. It passes a body that is too long to hold on as it comes, to one region.
//!
//! Why it is so: docs/decisions/05-the-edge-reads-bodies-first.md and docs/decisions/10-retries-and-second-copies.md.

use std::{
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use identity::Link;
use routing::{Decision, breaker::Demand};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    answer::Answer,
    edge::Failed,
    fault::{Event, Facts},
    request::chooser::{Chooser, RequesterId},
    request::choice::Waiting,
    request::ctx::Ctx,
    request::exchange::{self, Answering, At, Failure},
    request::limits::{BodyMemory, InFlight},
    request::long_body::{Sent, frame, send},
    request::requester::{Asking, Requester, Unread},
    request::route::{Repeat, Route},
    stacks::fleet_view::LastHeard,
};

/// The body of a request, or its beginning.
struct Gathered {
    bytes: Bytes,
    is_whole: bool,
    memory: BodyMemory,
}

/// One copy of a request, at one region.
struct Flight {
    decision: Decision,
    in_flight: InFlight,
    /// Whether the edge sent it because the first copy took long ([`routing::hedge`]).
    is_copy: bool,
}

/// A copy in flight.
struct Launched {
    decision: Decision,
    began: Instant,
    heard: Arc<LastHeard>,
}

struct Landed {
    flight: Flight,
    result: Result<Answering, Failure>,
    took: Duration,
}

type Flying<'f> = Pin<Box<dyn Future<Output = Landed> + Send + 'f>>;

/// A request for regions.
struct Message {
    head: Vec<u8>,
    body: Bytes,
    repeat: Repeat,
    to_head: bool,
}

/// The head of a request with the line that marks a second copy.
fn marked_as_copy(head: &[u8]) -> Vec<u8> {
    let lines = head.strip_suffix(b"\r\n").unwrap_or(head);
    [lines, wire::COPY_HEADER.as_bytes(), b": 1\r\n\r\n"].concat()
}

/// Asks regions for one request.
pub(crate) struct Attempts<'a> {
    pub(crate) chooser: &'a Chooser,
}

impl Attempts<'_> {
    /// Answers a request.
    ///
    /// # Errors
    ///
    /// The device left, or the answer broke off.
    pub(crate) async fn attempt<R: Requester>(
        &self,
        device: &mut R,
        ctx: &mut Ctx,
        asking: Asking,
    ) -> Result<(), R::Gone> {
        let gathered = match self.gather(device, ctx, &asking).await? {
            Ok(gathered) => gathered,
            Err((reason, answer)) => {
                self.chooser.edge.refused(reason, &ctx.stamp.id);
                return device.refuse(self.chooser, ctx, &answer).await;
            }
        };
        if !gathered.is_whole {
            return self.stream(device, ctx, &asking, gathered).await;
        }
        let message = Message {
            head: asking.head(Some(gathered.bytes.len())),
            repeat: asking.repeat,
            to_head: asking.to_head,
            body: gathered.bytes,
        };
        let answering = self.race(device, ctx, &asking.requester, &message).await?;
        // The edge asks no further region, however long the device takes its answer.
        drop((message, gathered.memory));
        match answering {
            Some(answering) => {
                device
                    .pass_on(self.chooser, ctx, answering, asking.requester.client)
                    .await
            }
            None => {
                ctx.choice.in_flight = None;
                let answer = ctx.choice.nowhere();
                device.refuse(self.chooser, ctx, &answer).await
            }
        }
    }

    /// Reads the body, or as much of it as the edge holds. Returns the reason and the answer of a refused body.
    async fn gather<R: Requester>(
        &self,
        device: &mut R,
        ctx: &mut Ctx,
        asking: &Asking,
    ) -> Result<Result<Gathered, (&'static str, Answer)>, R::Gone> {
        let limits = &self.chooser.edge.config.limits;
        let mut pace = self.chooser.edge.config.pace();
        let mut bytes = BytesMut::new();
        let client = asking.requester.client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut memory = self.chooser.requests.memory(client);
        let mut is_whole = device.is_body_done();
        if !is_whole && asking.expects {
            match timeout(pace.remaining(), device.go_on()).await {
                Ok(told) => told?,
                Err(_) => return Ok(Err(("body-too-slow", Answer::body_too_slow()))),
            }
        }
        while !is_whole && bytes.len() < limits.body_buffer_bytes_max {
            let began = Instant::now();
            match timeout(pace.remaining(), device.read_body()).await {
                Err(_) => return Ok(Err(("body-too-slow", Answer::body_too_slow()))),
                Ok(Err(Unread::Malformed)) => return Ok(Err(("malformed", Answer::malformed_body()))),
                Ok(Err(Unread::Gone(gone))) => return Err(gone),
                Ok(Ok(None)) => is_whole = true,
                Ok(Ok(Some(part))) => {
                    pace.waited(began.elapsed(), part.len());
                    bytes.extend_from_slice(&part);
                    ctx.took(part.len());
                    if ctx.body_bytes > limits.body_bytes_max {
                        return Ok(Err(("body-too-large", Answer::body_too_large(limits.body_bytes_max))));
                    }
                    if !memory.grow(part.len()) {
                        break;
                    }
                }
            }
        }
        // The last byte may be here before its end is seen.
        is_whole |= device.is_body_done();
        Ok(Ok(Gathered {
            bytes: bytes.freeze(),
            is_whole,
            memory,
        }))
    }

    /// Asks regions, at times several at once, until one has an answer to pass on. `ctx` then has its decision. `None` when no
    /// region answered.
    async fn race<R: Requester>(
        &self,
        device: &mut R,
        ctx: &mut Ctx,
        requester: &RequesterId,
        message: &Message,
    ) -> Result<Option<Answering>, R::Gone> {
        let began = Instant::now();
        let silence = self.chooser.edge.config.timeouts.upgrade.0;
        let hedge = &self.chooser.edge.config.hedge;
        let mut may_copy = ctx.route == Route::Transcription
            && hedge.budget_percent > 0
            && message.body.len() <= hedge.body_bytes_max
            && ctx.choice.waiting.is_none();
        let copy_after = may_copy.then(|| self.chooser.requests.hedging().begin(daemon::clock::now()));
        let copy_at = began + copy_after.unwrap_or_default();
        let mut may_rescue = message.repeat == Repeat::Slow;
        let mut rescue_at = began + silence;
        let mut flights: FuturesUnordered<Flying<'_>> = FuturesUnordered::new();
        let mut launched: Vec<Launched> = Vec::new();
        let mut worse: Option<(Flight, Answering)> = None;
        // The next attempt is a retry.
        let mut is_retry = false;
        if let Some(waiting) = ctx.choice.waiting.take() {
            // Its region has been silent already.
            rescue_at = began;
            flights.push(self.fly_on(*waiting, message, &mut launched));
        }
        loop {
            while flights.is_empty() {
                let Some(flight) = self.launch(ctx, requester, is_retry) else {
                    if worse.is_none()
                        && let Some(pause) = self.chooser.another_round(&mut ctx.choice)
                    {
                        is_retry = false;
                        sleep_watching(device, pause).await?;
                        continue;
                    }
                    return Ok(self.settle(ctx, worse));
                };
                if std::mem::take(&mut is_retry) {
                    let Some(pause) = self.chooser.retry(&mut ctx.choice) else {
                        return Ok(self.settle(ctx, worse));
                    };
                    sleep_watching(device, pause).await?;
                }
                rescue_at = rescue_at.max(Instant::now() + silence);
                flights.push(self.fly(flight, message, &mut launched));
            }
            let Landed { flight, result, took } = tokio::select! {
                Some(landed) = flights.next() => landed,
                () = sleep_until(copy_at), if may_copy => {
                    may_copy = false;
                    // The slow region is not among those that `launch` chooses from.
                    if self.chooser.requests.hedging().try_copy(daemon::clock::now()) {
                        match self.launch(ctx, requester, true) {
                            Some(mut flight) => {
                                self.chooser.edge.metrics.hedge("sent");
                                flight.is_copy = true;
                                flights.push(self.fly(flight, message, &mut launched));
                            }
                            None => self.chooser.edge.metrics.hedge("nowhere"),
                        }
                    } else {
                        self.chooser.edge.metrics.hedge("budget-exhausted");
                    }
                    continue;
                }
                () = sleep_until(rescue_at), if may_rescue => {
                    rescue_at = Instant::now() + silence;
                    let next = self.launch(ctx, requester, true);
                    // The pause before a retry has passed, in silence.
                    may_rescue = next.is_some() && self.chooser.retry(&mut ctx.choice).is_some();
                    if let Some(flight) = next.filter(|_| may_rescue) {
                        flights.push(self.fly(flight, message, &mut launched));
                    }
                    continue;
                }
                // The device left; dropping the copies cancels them.
                gone = device.leaves() => return Err(gone),
            };
            launched.retain(|other| other.decision.stack != flight.decision.stack);
            match result {
                Ok(answering) => {
                    let could_be_better =
                        self.chooser
                            .judge(ctx.route, &flight.decision, &answering.response, took, requester.client);
                    if !could_be_better || message.repeat == Repeat::Never {
                        // The other copies are cancelled: their connections close, and their regions need not finish.
                        drop(flights);
                        self.note_silent(&launched, requester);
                        if flight.is_copy {
                            self.chooser.edge.metrics.hedge("won");
                        } else if copy_after.is_some() {
                            self.chooser.requests.hedging().answered(began.elapsed());
                        }
                        return Ok(self.settle(ctx, Some((flight, answering))));
                    }
                    worse.get_or_insert((flight, answering));
                    is_retry = true;
                }
                Err(failure) => {
                    self.chooser
                        .note_failure(ctx, &flight.decision, &failure, requester.client);
                    let is_final = failure.is_local() || (failure.at == At::Sent && message.repeat == Repeat::Never);
                    if is_final && flights.is_empty() {
                        return Ok(self.settle(ctx, worse));
                    }
                    if failure.at == At::Connect {
                        // Another stack of the region may be well.
                        ctx.choice.tried.only_stack(&flight.decision.region, flight.decision.stack);
                    } else {
                        is_retry = true;
                    }
                }
            }
        }
    }

    /// Records whose answer the device gets.
    fn settle(&self, ctx: &mut Ctx, answer: Option<(Flight, Answering)>) -> Option<Answering> {
        let (flight, answering) = answer?;
        ctx.choice.decision = Some(flight.decision);
        ctx.choice.in_flight = Some(flight.in_flight);
        Some(answering)
    }

    /// The next region for a copy. This request does not choose it again.
    fn launch(&self, ctx: &mut Ctx, requester: &RequesterId, is_extra: bool) -> Option<Flight> {
        let wanted = Demand {
            has_connection: true,
            is_extra: is_extra || ctx.choice.retries > 0,
        };
        let (decision, in_flight) = self.chooser.choose(ctx, requester, wanted)?;
        ctx.choice.tried.region(&decision.region);
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
            heard: self.chooser.edge.fleet.heard(decision.stack),
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

    /// Goes on waiting for a region that has the request.
    fn fly_on<'f>(&'f self, waiting: Waiting, message: &'f Message, launched: &mut Vec<Launched>) -> Flying<'f> {
        let Waiting {
            decision,
            in_flight,
            mut region,
            read,
            began,
        } = waiting;
        self.note_launch(&decision, began, launched);
        let by = began + self.chooser.edge.config.timeouts.answer.0;
        Box::pin(async move {
            let answer = exchange::await_answer(&self.chooser.edge, &mut region, read, message.to_head, by).await;
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

    async fn ask_copy(&self, flight: &mut Flight, message: &Message) -> Result<Answering, Failure> {
        let limit = self.chooser.silence_of_copy(message.repeat);
        let stack = flight.decision.stack;
        let marked = flight.is_copy.then(|| marked_as_copy(&message.head));
        let mut kept = self.chooser.pool.take(&flight.decision.region, stack);
        loop {
            let was_kept = kept.is_some();
            let mut region = match kept.take() {
                Some(region) => region,
                None => self.open(&flight.decision).await?,
            };
            flight.in_flight.connected();
            let parts = (marked.as_deref().unwrap_or(&message.head), &message.body[..]);
            match exchange::exchange(&self.chooser.edge, &mut region, parts, message.to_head, limit).await {
                // The region closed a connection of the pool; the edge opens a new one.
                Err(failure) if failure.is_kept_closed() && was_kept && message.repeat != Repeat::Never => {}
                Err(failure) if failure.is_kept_closed() && !was_kept => return Err(Failure::ended()),
                Err(failure) => return Err(failure),
                Ok((response, read)) => return Ok(Answering { region, response, read }),
            }
        }
    }

    async fn open(&self, decision: &Decision) -> Result<Link, Failure> {
        let began = Instant::now();
        let region = exchange::connect(&self.chooser.edge, decision).await?;
        self.chooser.connected(decision, began.elapsed());
        Ok(region)
    }

    /// Blames regions that said nothing while another one answered. A region that other requests hear, or that answers probes, is
    /// slow, and slow is not dead.
    fn note_silent(&self, launched: &[Launched], requester: &RequesterId) {
        let silence = self.chooser.edge.config.timeouts.upgrade.0;
        for Launched { decision, began, heard } in launched {
            if began.elapsed() >= silence && heard.elapsed() >= silence {
                let is_silent = self.chooser.edge.fleet.is_silent(&decision.region);
                let facts = Facts {
                    edge_is_late: self.chooser.edge.lag.is_late_for(silence),
                    ..Event::Outrun { is_silent }.into()
                };
                let failed = Failed::Request {
                    client: requester.client,
                };
                self.chooser
                    .edge
                    .blame(decision, failed, facts, "request: silent while another region answered");
                self.chooser.edge.metrics.connect(&decision.region, "silent");
            }
        }
    }

    /// Passes a body on that the edge cannot hold whole: to one region, and to no other once a part of it was sent.
    async fn stream<R: Requester>(
        &self,
        device: &mut R,
        ctx: &mut Ctx,
        asking: &Asking,
        gathered: Gathered,
    ) -> Result<(), R::Gone> {
        let client = asking.requester.client;
        let is_chunked = asking.length.is_none();
        let mut first = BytesMut::from(&asking.head(None)[..]);
        frame(&mut first, &gathered.bytes, is_chunked);
        drop(gathered.bytes);
        let first = (first.freeze(), gathered.memory);
        if let Some(client) = client {
            match self.chooser.edge.admission.upload(client) {
                Ok(slot) => ctx.upload = Some(slot),
                Err(refusal) => {
                    self.chooser.edge.refused(refusal.as_str(), &ctx.stamp.id);
                    return device.refuse(self.chooser, ctx, &refusal.answer()).await;
                }
            }
        }
        loop {
            let wanted = Demand {
                has_connection: true,
                is_extra: ctx.choice.retries > 0,
            };
            let Some((decision, mut in_flight)) = self.chooser.choose(ctx, &asking.requester, wanted) else {
                let Some(pause) = self.chooser.another_round(&mut ctx.choice) else {
                    break;
                };
                sleep(pause).await;
                continue;
            };
            let began = Instant::now();
            let mut region = match self.open(&decision).await {
                Ok(region) => region,
                Err(failure) => {
                    self.chooser.note_failure(ctx, &decision, &failure, client);
                    if failure.is_local() {
                        break;
                    }
                    ctx.choice.tried.stack(&decision.region, decision.stack);
                    continue;
                }
            };
            in_flight.connected();
            ctx.choice.in_flight = Some(in_flight);
            let edge = &self.chooser.edge;
            let sent = send(edge, device, ctx, &mut region, first, (is_chunked, asking.to_head)).await?;
            ctx.upload = None;
            match sent {
                Sent::Answered(response, read) => {
                    self.chooser
                        .judge(ctx.route, &decision, &response, began.elapsed(), client);
                    ctx.choice.decision = Some(decision);
                    let answering = Answering { region, response, read };
                    return device.pass_on(self.chooser, ctx, answering, client).await;
                }
                Sent::Refused(reason, answer) => {
                    ctx.choice.in_flight = None;
                    self.chooser.edge.refused(reason, &ctx.stamp.id);
                    return device.refuse(self.chooser, ctx, &answer).await;
                }
                Sent::Failed(failure) => {
                    ctx.choice.in_flight = None;
                    self.chooser.note_failure(ctx, &decision, &failure, client);
                    break;
                }
            }
        }
        let answer = ctx.choice.nowhere();
        device.refuse(self.chooser, ctx, &answer).await
    }
}

/// Waits before the edge asks a region. A device that leaves meanwhile cancels its request.
async fn sleep_watching<R: Requester>(device: &mut R, pause: Duration) -> Result<(), R::Gone> {
    tokio::select! {
        () = sleep(pause) => Ok(()),
        gone = device.leaves() => Err(gone),
    }
}
