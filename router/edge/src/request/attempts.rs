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
    request::choice::Waiting,
    request::chooser::{Chooser, RequesterId},
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
struct Attempt {
    decision: Decision,
    in_flight: InFlight,
    /// Whether the edge sent it because the first copy took long ([`routing::hedge`]).
    is_copy: bool,
}

/// An attempt that has not ended.
struct Underway {
    decision: Decision,
    began: Instant,
    heard: Arc<LastHeard>,
}

struct Finished {
    attempt: Attempt,
    result: Result<Answering, Failure>,
    took: Duration,
}

type RunningAttempt<'f> = Pin<Box<dyn Future<Output = Finished> + Send + 'f>>;

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
        let mut running: FuturesUnordered<RunningAttempt<'_>> = FuturesUnordered::new();
        let mut underway: Vec<Underway> = Vec::new();
        let mut worse: Option<(Attempt, Answering)> = None;
        // The next attempt is a retry.
        let mut is_retry = false;
        if let Some(waiting) = ctx.choice.waiting.take() {
            // Its region has been silent already.
            rescue_at = began;
            running.push(self.go_on_waiting(*waiting, message, &mut underway));
        }
        loop {
            while running.is_empty() {
                let Some(attempt) = self.next_attempt(ctx, requester, is_retry) else {
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
                running.push(self.start(attempt, message, &mut underway));
            }
            let Finished { attempt, result, took } = tokio::select! {
                Some(finished) = running.next() => finished,
                () = sleep_until(copy_at), if may_copy => {
                    may_copy = false;
                    // The slow region is not among those that `next_attempt` chooses from.
                    if self.chooser.requests.hedging().try_copy(daemon::clock::now()) {
                        match self.next_attempt(ctx, requester, true) {
                            Some(mut attempt) => {
                                self.chooser.edge.metrics.hedge("sent");
                                attempt.is_copy = true;
                                running.push(self.start(attempt, message, &mut underway));
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
                    let next = self.next_attempt(ctx, requester, true);
                    // The pause before a retry has passed, in silence.
                    may_rescue = next.is_some() && self.chooser.retry(&mut ctx.choice).is_some();
                    if let Some(attempt) = next.filter(|_| may_rescue) {
                        running.push(self.start(attempt, message, &mut underway));
                    }
                    continue;
                }
                // The device left; dropping the copies cancels them.
                gone = device.leaves() => return Err(gone),
            };
            underway.retain(|other| other.decision.stack != attempt.decision.stack);
            match result {
                Ok(answering) => {
                    let could_be_better = self.chooser.judge(
                        ctx.route,
                        &attempt.decision,
                        &answering.response,
                        took,
                        requester.client,
                    );
                    if !could_be_better || message.repeat == Repeat::Never {
                        // The other copies are cancelled: their connections close, and their regions need not finish.
                        drop(running);
                        self.note_silent(&underway, requester);
                        if attempt.is_copy {
                            self.chooser.edge.metrics.hedge("won");
                        } else if copy_after.is_some() {
                            self.chooser.requests.hedging().answered(began.elapsed());
                        }
                        return Ok(self.settle(ctx, Some((attempt, answering))));
                    }
                    worse.get_or_insert((attempt, answering));
                    is_retry = true;
                }
                Err(failure) => {
                    self.chooser
                        .note_failure(ctx, &attempt.decision, &failure, requester.client);
                    let is_final = failure.is_local() || (failure.at == At::Sent && message.repeat == Repeat::Never);
                    if is_final && running.is_empty() {
                        return Ok(self.settle(ctx, worse));
                    }
                    if failure.at == At::Connect {
                        // Another stack of the region may be well.
                        ctx.choice
                            .tried
                            .only_stack(&attempt.decision.region, attempt.decision.stack);
                    } else {
                        is_retry = true;
                    }
                }
            }
        }
    }

    /// Records whose answer the device gets.
    fn settle(&self, ctx: &mut Ctx, answer: Option<(Attempt, Answering)>) -> Option<Answering> {
        let (attempt, answering) = answer?;
        ctx.choice.decision = Some(attempt.decision);
        ctx.choice.in_flight = Some(attempt.in_flight);
        Some(answering)
    }

    /// The next region for a copy. This request does not choose it again.
    fn next_attempt(&self, ctx: &mut Ctx, requester: &RequesterId, is_extra: bool) -> Option<Attempt> {
        let wanted = Demand {
            has_connection: true,
            is_extra: is_extra || ctx.choice.retries > 0,
        };
        let (decision, in_flight) = self.chooser.choose(ctx, requester, wanted)?;
        ctx.choice.tried.region(&decision.region);
        Some(Attempt {
            decision,
            in_flight,
            is_copy: false,
        })
    }

    fn note_underway(&self, decision: &Decision, began: Instant, underway: &mut Vec<Underway>) {
        underway.push(Underway {
            decision: decision.clone(),
            began,
            heard: self.chooser.edge.fleet.heard(decision.stack),
        });
    }

    fn start<'f>(
        &'f self,
        mut attempt: Attempt,
        message: &'f Message,
        underway: &mut Vec<Underway>,
    ) -> RunningAttempt<'f> {
        let began = Instant::now();
        self.note_underway(&attempt.decision, began, underway);
        Box::pin(async move {
            let result = self.ask_copy(&mut attempt, message).await;
            let took = began.elapsed();
            Finished { attempt, result, took }
        })
    }

    /// Goes on waiting for a region that has the request.
    fn go_on_waiting<'f>(
        &'f self,
        waiting: Waiting,
        message: &'f Message,
        underway: &mut Vec<Underway>,
    ) -> RunningAttempt<'f> {
        let Waiting {
            decision,
            in_flight,
            mut region,
            read,
            began,
        } = waiting;
        self.note_underway(&decision, began, underway);
        let by = began + self.chooser.edge.config.timeouts.answer.0;
        Box::pin(async move {
            let answer = exchange::await_answer(&self.chooser.edge, &mut region, read, message.to_head, by).await;
            let result = answer.map(|(response, read)| Answering { region, response, read });
            let attempt = Attempt {
                decision,
                in_flight,
                is_copy: false,
            };
            let took = began.elapsed();
            Finished { attempt, result, took }
        })
    }

    async fn ask_copy(&self, attempt: &mut Attempt, message: &Message) -> Result<Answering, Failure> {
        let limit = self.chooser.silence_of_copy(message.repeat);
        let stack = attempt.decision.stack;
        let marked = attempt.is_copy.then(|| marked_as_copy(&message.head));
        let mut kept = self.chooser.pool.take(&attempt.decision.region, stack);
        loop {
            let was_kept = kept.is_some();
            let mut region = match kept.take() {
                Some(region) => region,
                None => self.open(&attempt.decision).await?,
            };
            attempt.in_flight.connected();
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
    fn note_silent(&self, underway: &[Underway], requester: &RequesterId) {
        let silence = self.chooser.edge.config.timeouts.upgrade.0;
        for Underway { decision, began, heard } in underway {
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
                Ok(slot) => ctx.admission.upload = Some(slot),
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
            ctx.admission.upload = None;
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
