//! Hedged transcriptions: a recording that waits long for its text is sent to a second region as well. The first good
//! answer is the device's; the other copy is cancelled and never seen.
//!
//! Both copies need the whole recording, so only those of known and bounded length are hedged. All others are streamed
//! through pingora's proxy.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, Method, header};
use pingora_core::{
    Error, ErrorType, Result,
    connectors::{ConnectorOptions, http::Connector},
    protocols::http::client::HttpSession,
    server::configuration::ServerConf,
    upstreams::peer::{HttpPeer, Peer as _},
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use routing::{Decision, breaker::Use};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    answer::Answer,
    config,
    proxy::{Asker, Ctx, Gateway, write},
    requests::InFlight,
};

/// Headers that concern one hop only (RFC 9110 §7.6.1).
const HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The length of a recording that may be hedged.
pub fn length(request: &RequestHeader, config: &config::Hedge) -> Option<u32> {
    let headers = &request.headers;
    // Who wants to be asked before the body is sent is better served by the region itself.
    if config.budget_percent == 0 || request.method != Method::POST || headers.contains_key(header::EXPECT) {
        return None;
    }
    let length: u32 = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    (length as usize <= config.body_bytes_max).then_some(length)
}

/// One copy of a request, at one region.
struct Flight {
    decision: Decision,
    in_flight: InFlight,
    is_second: bool,
}

/// A region's answer whose body is still to come. Dropping it closes its connection.
struct Answering {
    session: HttpSession,
    peer: Box<HttpPeer>,
    head: ResponseHeader,
}

enum FlightError {
    /// No connection: another region may be asked at once.
    Connect(Box<Error>),
    /// It broke before there was an answer.
    Broken(Box<Error>),
}

struct Landed {
    flight: Flight,
    result: std::result::Result<Answering, FlightError>,
}

impl Gateway {
    /// Answers one transcription. The body's share of memory is held until it is over.
    pub(crate) async fn hedge(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        length: u32,
        _memory: OwnedSemaphorePermit,
    ) -> Result<()> {
        let Some(body) = self.read_body(session, length).await? else {
            return write(session, &Answer::body_too_slow()).await;
        };
        let asker = self.asker_of(session, ctx.table.as_deref());
        let request = self.copied(session, length)?;
        let began = Instant::now();
        let copy_at = began + self.requests.hedging().begin(daemon::clock::now());
        let mut may_copy = true;
        let mut flights = FuturesUnordered::new();
        let mut bad = None;
        match self.launch(ctx, &asker, false) {
            Some(flight) => flights.push(self.fly(flight, &request, &body)),
            None => return write(session, &self.nowhere(ctx)).await,
        }
        let winner = loop {
            let landed = tokio::select! {
                Some(landed) = flights.next() => landed,
                () = sleep_until(copy_at), if may_copy => {
                    may_copy = false;
                    // The region that is slow is not asked again.
                    if self.requests.hedging().try_copy(daemon::clock::now()) {
                        match self.launch(ctx, &asker, true) {
                            Some(flight) => {
                                self.edge.metrics.hedge("sent");
                                flights.push(self.fly(flight, &request, &body));
                            }
                            None => self.edge.metrics.hedge("nowhere"),
                        }
                    } else {
                        self.edge.metrics.hedge("budget-exhausted");
                    }
                    continue;
                }
                // Nobody waits for the answer any more; dropping the copies cancels them.
                gone = session.as_mut().read_body_or_idle(true) => {
                    return Err(gone.err().unwrap_or_else(|| Error::new(ErrorType::ConnectionClosed)).into_down());
                }
            };
            let Landed { flight, result } = landed;
            let was_sent = match result {
                Ok(answering) if !answering.head.status.is_server_error() => break Some((flight, answering)),
                Ok(answering) => {
                    bad = Some((flight, answering));
                    true
                }
                Err(FlightError::Connect(error)) => {
                    let timed_out = matches!(error.etype(), ErrorType::ConnectTimedout);
                    self.connect_failed(&flight.decision, timed_out, error.etype().as_str());
                    // Another stack of the region may be well.
                    let Decision { region, stack, .. } = &flight.decision;
                    ctx.tried.only_stack(region, *stack);
                    false
                }
                Err(FlightError::Broken(error)) => {
                    self.request_failed(&flight.decision, error.etype().as_str());
                    true
                }
            };
            if !flights.is_empty() {
                continue;
            }
            // A recording is heard twice at no harm, so it may be sent again even when it was sent before.
            if was_sent {
                let Some(pause) = self.requests.retry(ctx.retries, daemon::clock::now()) else {
                    break bad;
                };
                ctx.retries += 1;
                tokio::time::sleep(pause).await;
            }
            let next = loop {
                let next = self.launch(ctx, &asker, was_sent);
                if next.is_some() || was_sent || ctx.overloaded.is_some() {
                    break next;
                }
                // Nobody took it, and nothing was sent: all are asked again a little later, a few times.
                let Some(pause) = self.requests.retry(ctx.retries, daemon::clock::now()) else {
                    break None;
                };
                ctx.retries += 1;
                tokio::time::sleep(pause).await;
                ctx.tried.clear();
            };
            match next {
                Some(flight) => flights.push(self.fly(
                    Flight {
                        is_second: false,
                        ..flight
                    },
                    &request,
                    &body,
                )),
                None => break bad,
            }
        };
        // What still flies is cancelled: its connection closes, and its region need not finish.
        drop(flights);
        let Some((flight, answering)) = winner else {
            return write(session, &self.nowhere(ctx)).await;
        };
        if flight.is_second {
            self.edge.metrics.hedge("won");
        } else {
            self.requests.hedging().answered(began.elapsed());
        }
        self.answered(&flight.decision, began.elapsed());
        ctx.decision = Some(flight.decision);
        ctx.in_flight = Some(flight.in_flight);
        self.pass_on(session, ctx, answering).await
    }

    /// The whole body; `None` when it did not come in time.
    async fn read_body(&self, session: &mut Session, length: u32) -> Result<Option<Bytes>> {
        let mut body = BytesMut::with_capacity(length as usize);
        let read = timeout(self.edge.config.timeouts.answer.0, async {
            while let Some(bytes) = session.as_mut().read_request_body().await? {
                body.extend_from_slice(&bytes);
            }
            Result::<()>::Ok(())
        });
        match read.await {
            Ok(read) => read.map(|()| Some(body.freeze())).map_err(Error::into_down),
            Err(_) => Ok(None),
        }
    }

    /// The next region for a copy; it is not chosen again for this request.
    fn launch(&self, ctx: &mut Ctx, asker: &Asker, is_second: bool) -> Option<Flight> {
        let wanted = Use {
            has_connection: true,
            is_extra: is_second,
        };
        let (decision, in_flight) = self.choose(ctx, asker, wanted)?;
        ctx.tried.region(&decision.region);
        Some(Flight {
            decision,
            in_flight,
            is_second,
        })
    }

    async fn fly(&self, mut flight: Flight, request: &RequestHeader, body: &Bytes) -> Landed {
        let peer = self.peer(flight.decision.stack, false);
        let result = self.ask(&mut flight, peer, request, body).await;
        Landed { flight, result }
    }

    async fn ask(
        &self,
        flight: &mut Flight,
        peer: Box<HttpPeer>,
        request: &RequestHeader,
        body: &Bytes,
    ) -> std::result::Result<Answering, FlightError> {
        let mut may_repeat = true;
        loop {
            let began = Instant::now();
            let (mut session, reused) = self
                .connector
                .get_http_session(&*peer)
                .await
                .map_err(FlightError::Connect)?;
            session.set_read_timeout(peer.options.read_timeout);
            session.set_write_timeout(peer.options.write_timeout);
            flight.in_flight.connected();
            if !reused {
                self.connected(&flight.decision, began.elapsed());
            }
            match exchange(&mut session, request, body).await {
                Ok(head) => return Ok(Answering { session, peer, head }),
                // The region closed a connection that waited for the next request; it has others, or gets a new one. One
                // that does not answer in time is another matter.
                Err(error) if reused && may_repeat && !is_timeout(&error) => may_repeat = false,
                Err(error) => return Err(FlightError::Broken(error)),
            }
        }
    }

    /// The request as a region gets it.
    fn copied(&self, session: &Session, length: u32) -> Result<RequestHeader> {
        let device = session.req_header();
        let target = device.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let mut request = RequestHeader::build(Method::POST, target.as_bytes(), Some(device.headers.len() + 4))?;
        copy_headers(&device.headers, |name, value| {
            request.append_header(name.clone(), value.clone()).map(drop)
        })?;
        if !device.headers.contains_key(header::HOST)
            && let Some(authority) = device.uri.authority()
        {
            request.insert_header(header::HOST, authority.as_str())?;
        }
        request.insert_header(header::CONTENT_LENGTH, length)?;
        self.sign_request(session, &mut request)?;
        Ok(request)
    }

    /// Passes the winner's answer on, from its head to its last byte.
    async fn pass_on(&self, session: &mut Session, ctx: &Ctx, answering: Answering) -> Result<()> {
        let Answering {
            session: mut region,
            peer,
            head: answered,
        } = answering;
        let mut head = ResponseHeader::build(answered.status, Some(answered.headers.len() + 4))?;
        copy_headers(&answered.headers, |name, value| {
            head.append_header(name.clone(), value.clone()).map(drop)
        })?;
        let has_body = !matches!(answered.status.as_u16(), 204 | 304);
        // HTTP/2 has frames, and HTTP/1.0 ends a body by closing.
        let is_http11 = session.req_header().version == http::Version::HTTP_11;
        if has_body && is_http11 && !answered.headers.contains_key(header::CONTENT_LENGTH) {
            head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        }
        self.sign_response(&mut head, ctx)?;
        session.write_response_header(Box::new(head), !has_body).await?;
        while has_body && let Some(bytes) = region.read_response_body().await.map_err(Error::into_up)? {
            session.write_response_body(Some(bytes), false).await?;
        }
        if has_body {
            session.write_response_body(None, true).await?;
        }
        let idle = peer.idle_timeout();
        self.connector.release_http_session(region, &*peer, idle).await;
        Ok(())
    }
}

/// Sends the request and waits for the head of its answer.
async fn exchange(session: &mut HttpSession, request: &RequestHeader, body: &Bytes) -> Result<ResponseHeader> {
    session.write_request_header(Box::new(request.clone())).await?;
    session.write_request_body(body.clone(), true).await?;
    session.finish_request_body().await?;
    loop {
        session.read_response_header().await?;
        let head = session.response_header();
        let head = head.ok_or_else(|| Error::new_str("an answer without a head"))?;
        // What is said on the way is not the answer (RFC 9110 §15.2).
        if head.status.is_informational() {
            continue;
        }
        let head = head.clone();
        if let HttpSession::H1(http1) = session {
            http1.respect_keepalive();
        }
        return Ok(head);
    }
}

fn copy_headers(
    headers: &HeaderMap,
    mut copy: impl FnMut(&header::HeaderName, &header::HeaderValue) -> Result<()>,
) -> Result<()> {
    let named: Vec<&str> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let is_of_hop = |name: &str| HOP.contains(&name) || named.iter().any(|other| other.eq_ignore_ascii_case(name));
    headers
        .iter()
        .filter(|(name, _)| !is_of_hop(name.as_str()))
        .try_for_each(|(name, value)| copy(name, value))
}

/// Keeps connections to regions for copies; pingora's proxy keeps its own.
pub fn connector(conf: &ServerConf) -> Connector {
    Connector::new(Some(ConnectorOptions::from_server_conf(conf)))
}

fn is_timeout(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout)
}
