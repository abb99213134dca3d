//! Requests as most of them are, passed on by the edge itself: HTTP/1.1, small or no body, to a region that answers. What is
//! special about any other, and what remains to be done when a region fails, is pingora's part.
//!
//! Through pingora a request costs three times the processor time that nginx takes; this way it is on a par
//! (docs/benchmarks.md). Which region is asked, and when again, is decided by the same code.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use http::StatusCode;
use routing::{Decision, breaker::Use};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::{
    answer::Answer,
    head::{self, Head, LINES_MAX},
    http1::{Body, Broken, Request, Response},
    idle::Idle,
    patience::Patience,
    proxy::{Asker, Ctx, Gateway, Route},
    relay::{self, Io},
    sessions::Busy,
    tunnel,
};

/// Bodies up to this length are read whole before a region is chosen: the text of a long reply fits.
const BODY_BYTES_MAX: usize = 16 << 10;
/// One read of an answer.
const READ_BYTES: usize = 16 << 10;
/// Most answers to such requests fit into this.
const FIRST_READ_BYTES: usize = 2 << 10;
/// Of the next request so much is read while this one waits for its answer.
const AHEAD_BYTES_MAX: usize = 4 << 10;

/// What became of a request.
pub(crate) enum Forwarded {
    /// It was answered, and the device may ask again: what was read of that.
    Answered(BytesMut),
    /// Its connection is over.
    Over,
    /// Pingora has to see to it. What was done for it already is not done again.
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
    only_reads: bool,
    is_head: bool,
    is_last: bool,
}

/// A region's answer, of which the body is still to come.
struct Answering {
    region: TcpStream,
    response: Response,
    /// What came after the head.
    read: BytesMut,
    /// How much of that is its body.
    begun: usize,
}

/// Why there is no answer, or not all of it.
enum Failure {
    /// No connection: nothing was sent.
    Connect { timed_out: bool, why: String },
    /// The region closed its connection, or sent what is no answer.
    Broken(String),
    /// The region closed a connection that it had kept, as the request came: nobody's fault.
    Closed,
    /// The region did not answer in time.
    TooSlow,
    /// Nobody waits for the answer any more.
    DeviceGone,
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken.to_string())
    }
}

impl Failure {
    fn broken(error: &std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }

    /// What happened, for logs.
    fn as_str(&self) -> &str {
        match self {
            Self::Connect { why, .. } | Self::Broken(why) => why,
            Self::Closed => "the region closed a connection that had been kept",
            Self::TooSlow => "the region did not answer in time",
            Self::DeviceGone => "the device left",
        }
    }

    /// What the region did wrong, if it was the region.
    fn fault_of_region(&self) -> Option<&str> {
        match self {
            Self::Broken(_) | Self::TooSlow => Some(self.as_str()),
            Self::Connect { .. } | Self::Closed | Self::DeviceGone => None,
        }
    }
}

impl Gateway {
    /// Answers a request, unless there is something special about it.
    pub(crate) async fn forward(
        &self,
        mut line: Line<'_>,
        mut head: Head,
        client: SocketAddr,
        busy: Busy,
    ) -> Forwarded {
        let mut ctx = Box::new(self.begin(busy));
        let mut asked = match self.usual(&head, client, &mut ctx) {
            Ok(Some(asked)) => asked,
            Ok(None) => return Forwarded::Unusual(head, ctx),
            Err(what) => {
                self.edge.metrics.refused("malformed");
                self.done(&ctx, StatusCode::BAD_REQUEST.as_u16(), Some(what));
                tunnel::decline(&self.edge, line.device, &Answer::bad_request(what)).await;
                return Forwarded::Over;
            }
        };
        if self.edge.admission.request(client.ip()).is_err() {
            // Who is refused is asked once more, and told why.
            return Forwarded::Unusual(head, ctx);
        }
        ctx.is_admitted = true;
        self.requests.asked(daemon::clock::now());
        let complete_by = Instant::now() + self.edge.config.timeouts.answer.0;
        while head.bytes.len() < asked.end {
            let reading = line.device.read_buf(&mut head.bytes);
            match line.patience.until(complete_by, reading).await {
                Some(Ok(1..)) => {}
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
        let wanted = Use {
            has_connection: true,
            is_extra: false,
        };
        let Some((decision, in_flight)) = self.choose(&mut ctx, &asked.asker, wanted) else {
            return Forwarded::Unusual(head, ctx);
        };
        ctx.in_flight = Some(in_flight);
        match self
            .ask_region(&mut line, &mut head.bytes, &asked, &mut ctx, &decision)
            .await
        {
            Ok(answering) => {
                ctx.decision = Some(decision);
                self.give(line, &mut ctx, &asked, answering, head.bytes).await
            }
            Err(failure) => {
                if let Failure::Connect { timed_out, why } = &failure {
                    self.connect_failed(&decision, *timed_out, why);
                } else if let Some(fault) = failure.fault_of_region() {
                    self.request_failed(&decision, fault);
                    if asked.only_reads {
                        ctx.pause = self.again(&mut ctx);
                    }
                }
                ctx.tried.stack(&decision.region, decision.stack);
                if matches!(failure, Failure::Connect { .. }) || ctx.pause.is_some() {
                    ctx.in_flight = None;
                    return Forwarded::Unusual(head, ctx);
                }
                let (status, what) = match failure {
                    Failure::TooSlow => (StatusCode::GATEWAY_TIMEOUT, "did not answer in time"),
                    _ => (StatusCode::BAD_GATEWAY, "failed while it answered"),
                };
                let answer = Answer::region_failed(status, format!("region {} {what}", decision.region));
                ctx.decision = Some(decision);
                let answer = (!matches!(failure, Failure::DeviceGone)).then_some(answer);
                self.failed(line, &mut ctx, &asked, answer, failure.as_str()).await
            }
        }
    }

    /// Reads a request that has nothing special about it.
    fn usual(&self, head: &Head, client: SocketAddr, ctx: &mut Ctx) -> Result<Option<Asked>, &'static str> {
        let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
        let Some(request) = Request::parse(&head.bytes[..head.len], &mut lines)? else {
            return Ok(None);
        };
        ctx.route = Route::of(request.path(), false);
        let is_usual = matches!(ctx.route, Route::Audio | Route::Models | Route::Voice | Route::Health);
        let body_bytes_max = self.edge.config.limits.body_bytes_max.min(BODY_BYTES_MAX as u64);
        if !is_usual || request.body_bytes() as u64 > body_bytes_max || request.is_grpc() {
            return Ok(None);
        }
        Ok(Some(Asked {
            message: request.forwarded(client.ip(), &self.edge.id),
            end: head.len + request.body_bytes(),
            asker: self.asker(
                |name| request.header(name),
                request.target,
                Some(client),
                ctx.table.as_deref(),
            ),
            only_reads: request.only_reads(),
            is_head: request.is_head(),
            is_last: request.is_last,
        }))
    }

    /// Sends a request to a region and waits for the head of its answer.
    async fn ask_region(
        &self,
        line: &mut Line<'_>,
        sent: &mut BytesMut,
        asked: &Asked,
        ctx: &mut Ctx,
        decision: &Decision,
    ) -> Result<Answering, Failure> {
        let mut kept = line.idle.take(decision.stack);
        loop {
            let was_kept = kept.is_some();
            let began = Instant::now();
            let mut region = match kept.take() {
                Some(region) => region,
                None => self.connect(line, decision).await?,
            };
            if let Some(in_flight) = &mut ctx.in_flight {
                in_flight.connected();
            }
            match self.exchange(line, sent, asked, &mut region).await {
                Err(Failure::Closed) if was_kept && asked.only_reads => {}
                Err(Failure::Closed) if !was_kept => {
                    return Err(Failure::Broken("the region closed the connection".to_owned()));
                }
                Err(failure) => return Err(failure),
                Ok((mut response, read)) => {
                    // As long as the device has nothing of it, another region may answer.
                    let begun = response.body.take(&read)?;
                    // Only now it is known that somebody is there: the kernel accepts connections for a process that hangs.
                    self.answered(decision, began.elapsed());
                    return Ok(Answering {
                        region,
                        response,
                        read,
                        begun,
                    });
                }
            }
        }
    }

    async fn connect(&self, line: &mut Line<'_>, decision: &Decision) -> Result<TcpStream, Failure> {
        let began = Instant::now();
        let connecting = TcpStream::connect(decision.stack);
        let by = began + self.edge.config.timeouts.connect.0;
        let (timed_out, why) = match line.patience.until(by, connecting).await {
            Some(Ok(tcp)) => {
                // A request is written at once, and nothing follows that it could wait for.
                let _ = tcp.set_nodelay(true);
                self.connected(decision, began.elapsed());
                return Ok(tcp);
            }
            Some(Err(error)) => (false, error.to_string()),
            None => (true, "not connected in time".to_owned()),
        };
        Err(Failure::Connect { timed_out, why })
    }

    /// How long a region may take to begin its answer. What only reads is answered at once by a region that lives, and can be
    /// asked elsewhere if it is not.
    fn silence(&self, asked: &Asked) -> Duration {
        let timeouts = &self.edge.config.timeouts;
        if asked.only_reads {
            timeouts.upgrade.0
        } else {
            timeouts.answer.0
        }
    }

    async fn exchange(
        &self,
        line: &mut Line<'_>,
        sent: &mut BytesMut,
        asked: &Asked,
        region: &mut TcpStream,
    ) -> Result<(Response, BytesMut), Failure> {
        let by = Instant::now() + self.silence(asked);
        match line.patience.until(by, region.write_all(&asked.message)).await {
            Some(written) => written.map_err(|_| Failure::Closed)?,
            None => return Err(Failure::TooSlow),
        }
        let mut read = BytesMut::with_capacity(FIRST_READ_BYTES);
        loop {
            match read_watching(line, sent, asked.end, region, &mut read, by, FIRST_READ_BYTES).await {
                Ok(0) | Err(Failure::Broken(_)) if read.is_empty() => return Err(Failure::Closed),
                Ok(0) => return Err(Failure::Broken("the region closed the connection".to_owned())),
                Ok(_) => {}
                Err(failure) => return Err(failure),
            }
            while let Some(response) = Response::parse(&read, asked.is_head)? {
                read.advance(response.len);
                match response.status {
                    101 => return Err(Failure::Broken("the region switched protocols".to_owned())),
                    // What is said on the way is not the answer (RFC 9110 §15.2).
                    100..200 => {}
                    _ => return Ok((response, read)),
                }
            }
            if read.len() > self.edge.config.limits.header_bytes_max {
                return Err(Failure::Broken("the head of the answer is too large".to_owned()));
            }
        }
    }

    /// Gives the device its answer, to the last byte.
    async fn give(
        &self,
        mut line: Line<'_>,
        ctx: &mut Ctx,
        asked: &Asked,
        mut answering: Answering,
        mut sent: BytesMut,
    ) -> Forwarded {
        let closes =
            asked.is_last || self.edge.sessions.is_draining() || matches!(answering.response.body, Body::UntilClose);
        if let Some(decision) = &ctx.decision {
            self.sign(&mut answering.response, decision, closes);
        }
        let status = answering.response.status;
        let relayed = self.relay(&mut line, &mut sent, asked, &mut answering).await;
        // The region has done its part, however long the device takes to go.
        ctx.in_flight = None;
        if let Err(failure) = relayed {
            if let (Some(decision), Some(fault)) = (&ctx.decision, failure.fault_of_region()) {
                self.request_failed(decision, fault);
            }
            // The device has a part of it, and nothing but the end of its connection tells that there is no more.
            self.done(ctx, status, Some(failure.as_str()));
            return Forwarded::Over;
        }
        self.done(ctx, status, None);
        let Answering {
            region, response, read, ..
        } = answering;
        if response.keeps
            && read.is_empty()
            && let Some(decision) = &ctx.decision
        {
            line.idle.put(decision.stack, region);
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
        if let Some(load) = response.load {
            self.edge.seen.loaded(decision.stack, load, daemon::clock::now());
        }
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

    async fn relay(
        &self,
        line: &mut Line<'_>,
        sent: &mut BytesMut,
        asked: &Asked,
        answering: &mut Answering,
    ) -> Result<(), Failure> {
        let Answering {
            region,
            response,
            read,
            begun,
        } = answering;
        // Mostly that is all of it, and one packet.
        response.returned.extend_from_slice(&read[..*begun]);
        read.advance(*begun);
        self.write(line, &response.returned).await?;
        while !response.body.is_done() {
            let by = Instant::now() + self.edge.config.timeouts.answer.0;
            if read_watching(line, sent, asked.end, region, read, by, READ_BYTES).await? == 0 {
                if matches!(response.body, Body::UntilClose) {
                    break;
                }
                return Err(Failure::Broken("the region closed the connection".to_owned()));
            }
            let taken = response.body.take(read)?;
            self.write(line, &read[..taken]).await?;
            read.advance(taken);
        }
        Ok(())
    }

    /// A device that does not take its answer is as good as gone.
    async fn write(&self, line: &mut Line<'_>, bytes: &[u8]) -> Result<(), Failure> {
        let Line { device, patience, .. } = line;
        let by = Instant::now() + self.edge.config.timeouts.answer.0;
        let written = patience.until(by, async {
            device.write_all(bytes).await?;
            device.flush().await
        });
        match written.await {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => Err(Failure::DeviceGone),
        }
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
        ctx.in_flight = None;
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

/// Reads of a region while its device is watched: one that leaves takes its question back.
async fn read_watching(
    line: &mut Line<'_>,
    sent: &mut BytesMut,
    end: usize,
    region: &mut TcpStream,
    read: &mut BytesMut,
    by: Instant,
    room: usize,
) -> Result<usize, Failure> {
    read.reserve(room);
    let mut reading = pin!(region.read_buf(read));
    let Line { device, patience, .. } = line;
    poll_fn(|cx| {
        if let Poll::Ready(count) = reading.as_mut().poll(cx) {
            return Poll::Ready(count.map_err(|error| Failure::broken(&error)));
        }
        while sent.len() - end < AHEAD_BYTES_MAX {
            let mut ahead = [0; 512];
            let mut ahead = ReadBuf::new(&mut ahead);
            match Pin::new(&mut **device).poll_read(cx, &mut ahead) {
                Poll::Ready(Ok(())) if !ahead.filled().is_empty() => sent.extend_from_slice(ahead.filled()),
                Poll::Ready(_) => return Poll::Ready(Err(Failure::DeviceGone)),
                Poll::Pending => break,
            }
        }
        patience.poll(by, cx).map(|()| Err(Failure::TooSlow))
    })
    .await
}
