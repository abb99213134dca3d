//! The path of a request through pingora: HTTP/2 towards devices, gRPC, and operators' upstreams.
//!
//! pingora calls the methods of one trait, which stand here in the order of a request.

mod arrival;
mod peers;

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use pingora_core::{
    Error, ErrorSource, ErrorType, Result, RetryType,
    modules::http::HttpModules,
    protocols::{Digest, http::ServerSession},
    upstreams::peer::HttpPeer,
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use routing::retry::Progress;
use wire::{LOAD_HEADER, VERSION};

use crate::{
    answer::Answer,
    edge::Failed,
    fault::{Cause, Event, Facts},
    http1,
    request::attempts::Attempts,
    request::chooser::Chooser,
    request::ctx::Ctx,
    request::downstream::{names_one_host, peer_of, write, write_preflight},
    request::exchange::{At, Failure},
    request::grpc,
    request::pingora_requester::asking_of,
    request::route::Route,
    request::upload::{self, Awaited, BodyClock},
    request_id::REQUEST_ID,
    stamp::Stamp,
    texts,
};

tokio::task_local! {
    /// The context of a request that the edge began before pingora got it. pingora calls `new_ctx` without an argument and offers
    /// no other way to pass a context in, so it waits here while this task serves the request.
    static BEGUN: Cell<Option<Box<Ctx>>>;
}

/// Serves a request by pingora that the edge began.
pub(crate) async fn serve_begun<F: Future>(begun: Box<Ctx>, serving: F) -> F::Output {
    BEGUN.scope(Cell::new(Some(begun)), serving).await
}

/// The requests that pingora serves.
pub struct Pingora {
    pub(crate) chooser: Chooser,
}

impl Pingora {
    /// The facts about a region in an error of pingora.
    fn failure_of(&self, at: At, e: &Error) -> Failure {
        let facts = match e.etype() {
            ErrorType::ConnectTimedout => Facts::timed_out(
                self.chooser
                    .edge
                    .lag
                    .is_late_for(self.chooser.edge.config.timeouts.connect.0),
            ),
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => Facts::timed_out(
                self.chooser
                    .edge
                    .lag
                    .is_late_for(self.chooser.edge.config.timeouts.answer.0),
            ),
            ErrorType::ConnectionClosed => Event::Ended.into(),
            ErrorType::InvalidHTTPHeader | ErrorType::InvalidH2 | ErrorType::H2Error => Event::Nonsense.into(),
            _ => Event::Io(Cause::within(e.root_cause())).into(),
        };
        let why = e.etype().as_str().to_owned();
        Failure { at, facts, why }
    }

    /// Writes the headers of a request for its region or an operator's server.
    fn sign_request(&self, session: &Session, request: &mut RequestHeader, ctx: &Ctx) -> Result<()> {
        let device = &session.req_header().headers;
        let connection = device.get_all(http::header::CONNECTION);
        let named: Vec<&[u8]> = connection.iter().map(http::HeaderValue::as_bytes).collect();
        // pingora frames the body, and writes the headers of its hop. The edge has answered `Expect`.
        let of_pingora = ["content-length", "transfer-encoding", "connection", "te"];
        for name in device.keys() {
            if !of_pingora.contains(&name.as_str()) && !http1::headers::is_forwarded(name.as_str(), &named) {
                request.remove_header(name);
            }
        }
        if self.chooser.edge.access.is_some() && ctx.proxied.group.is_none() {
            request.remove_header(&http::header::AUTHORIZATION);
            request.remove_header(&http::header::SEC_WEBSOCKET_PROTOCOL);
        }
        if let Some(admitted) = &ctx.admission.device {
            request.insert_header(wire::TENANT_HEADER, &*admitted.device.tenant)?;
        }
        if let Some(device) = peer_of(session) {
            request.insert_header("X-Forwarded-For", device.ip().to_string())?;
            request.insert_header("X-Forwarded-Proto", device.scheme())?;
        }
        request.insert_header(LOAD_HEADER, VERSION)?;
        request.insert_header(REQUEST_ID, ctx.stamp.id.as_str())?;
        request.insert_header("Meridian-Edge", self.chooser.edge.id.as_str())
    }
}

#[async_trait]
impl ProxyHttp for Pingora {
    type CTX = Box<Ctx>;

    fn new_ctx(&self) -> Box<Ctx> {
        let begun = BEGUN.try_with(Cell::take).ok().flatten();
        // The edge sees the head of an HTTP/2 request later.
        begun.unwrap_or_else(|| Box::new(self.chooser.begin(self.chooser.edge.sessions.busy(), Stamp::blank())))
    }

    /// Removes pingora's own modules: they would search every answer for something to compress, and the edge compresses nothing.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<bool> {
        // First of all: the device has to take a refusal in time like any other answer.
        arrival::expect_pace(&self.chooser, session);
        let request = session.req_header();
        if session.as_ref().is_http2() {
            let value = |name: &str| request.headers.get(name).map(http::HeaderValue::as_bytes);
            ctx.stamp = self.chooser.edge.stamp(value(REQUEST_ID), value("origin"));
        }
        let path = request.uri.path();
        let is_grpc = grpc::is_grpc(&request.headers);
        ctx.is_grpc = is_grpc && session.as_ref().is_http2();
        ctx.route = Route::of(path, is_grpc);
        if ctx.route == Route::Nothing {
            ctx.proxied.group = self.chooser.requests.group(path);
            ctx.route = ctx.proxied.group.as_ref().map_or(Route::Nothing, |_| Route::Upstream);
        }
        let path = path.to_owned();
        // A browser's preflight has no credentials.
        let preflight = names_one_host(session).ok();
        let preflight = preflight.and_then(|()| arrival::answer_to_preflight(&self.chooser, session, ctx));
        // A refusal below counts for the rate of its client like an answer.
        let admitted = arrival::admit(&self.chooser, session, ctx);
        if admitted.is_ok()
            && let Some(answer) = preflight
        {
            match answer {
                Ok(headers) => write_preflight(&self.chooser.edge, session, ctx, headers).await?,
                Err(answer) => {
                    self.chooser.edge.refused("origin", &ctx.stamp.id);
                    write(&self.chooser.edge, session, ctx, &answer).await?;
                }
            }
            return Ok(true);
        }
        let answer = match ctx.route {
            _ if let Err((reason, answer)) = admitted => {
                self.chooser.edge.refused(reason, &ctx.stamp.id);
                answer
            }
            _ if let Err(what) = names_one_host(session) => {
                self.chooser.edge.refused("malformed", &ctx.stamp.id);
                Answer::bad_request(what)
            }

            _ if http1::request::has_dot_segments(&path) => Answer::bad_request(http1::request::DOT_SEGMENTS),
            Route::Nothing => Answer::not_found(&path),
            Route::Realtime => Answer::upgrade_required(),
            _ if is_grpc && !ctx.is_grpc => Answer::bad_request(texts::GRPC_NEEDS_HTTP2),
            Route::VoiceGrpc | Route::Upstream => match arrival::hold_body(&self.chooser, session, ctx).await? {
                Some(answer) => answer,
                None => return Ok(false),
            },
            _ => {
                let attempts = Attempts { chooser: &self.chooser };
                let asking = asking_of(&self.chooser, session, ctx);
                Box::pin(attempts.attempt(session, ctx, asking)).await?;
                return Ok(true);
            }
        };
        write(&self.chooser.edge, session, ctx, &answer).await?;
        Ok(true)
    }

    /// Counts the bytes of a body. `admit` has refused bodies whose `Content-Length` is too large.
    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        let length = body.as_ref().map_or(0, Bytes::len);
        ctx.took(length);
        if end_of_stream {
            ctx.admission.upload = None;
        }
        if let Some(clock) = &ctx.proxied.clock {
            let waited = clock.waited_for_device();
            if !end_of_stream && waited > ctx.proxied.pace.remaining() {
                self.chooser.edge.refused("body-too-slow", &ctx.stamp.id);
                return Err(Error::new(ErrorType::ReadTimedout).into_down());
            }
            ctx.proxied.pace.waited(waited, length);
            clock.given(length, ctx.proxied.pace.remaining());
            if end_of_stream {
                clock.await_server();
            }
        }
        if ctx.body_bytes > self.chooser.edge.config.limits.body_bytes_max {
            self.chooser.edge.refused("body-too-large", &ctx.stamp.id);
            // An error of the device: after any other error pingora waits for the answer and holds the region's slot.
            return Err(Error::explain(ErrorType::HTTPStatus(413), "the body is too large").into_down());
        }
        Ok(())
    }

    /// The stack or server of the next attempt.
    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<Box<HttpPeer>> {
        if let Some(pause) = ctx.proxied.pause.take() {
            tokio::time::sleep(pause).await;
        }
        let mut peer = match ctx.proxied.group.clone() {
            Some(group) => peers::server(&self.chooser, ctx, &group),
            None => peers::region(&self.chooser, session, ctx).await,
        }?;
        ctx.proxied.connecting_since = Instant::now();
        ctx.proxied.clock = None;
        if !session.as_mut().is_body_done() {
            let clock = Arc::new(BodyClock::new(
                ctx.proxied.pace.remaining(),
                self.chooser.edge.config.timeouts.answer.0,
            ));
            let proof = ctx.choice.decision.as_ref().zip(self.chooser.edge.identity());
            let proof = proof.map(|(decision, identity)| upload::Proof {
                identity: identity.clone(),
                region: decision.region.clone(),
            });
            upload::watch(&mut peer, &clock, proof);
            ctx.proxied.clock = Some(clock);
        }
        Ok(peer)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        if let Some(in_flight) = &mut ctx.choice.in_flight {
            in_flight.connected();
        }
        if let Some(decision) = &ctx.choice.decision
            && !reused
        {
            self.chooser.connected(decision, ctx.proxied.connecting_since.elapsed());
        }
        Ok(())
    }

    /// The edge had sent nothing, so it may ask another region, whatever the method.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Box<Ctx>,
        mut e: Box<Error>,
    ) -> Box<Error> {
        ctx.choice.in_flight = None;
        let mut may_retry = true;
        if let Some(decision) = ctx.choice.decision.take() {
            let failure = self.failure_of(At::Connect, &e);
            self.chooser.note_failure(ctx, &decision, &failure, None);
            ctx.choice.tried.stack(&decision.region, decision.stack);
            may_retry = !failure.is_local();
        }
        if let Some(mut serving) = ctx.proxied.serving.take() {
            let is_local = Cause::within(e.root_cause()).is_own();
            serving.failed = !is_local;
            ctx.choice.is_edge_full |= is_local;
            may_retry = !is_local;
        }
        e.set_retry(may_retry);
        e
    }

    /// The request was sent. Another attempt is safe for one that only reads, and for one that the region says it never looked
    /// at.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Box<Ctx>,
        _client_reused: bool,
    ) -> Box<Error> {
        match ctx.proxied.clock.as_ref().and_then(|clock| clock.expired()) {
            Some(Awaited::Device) => {
                self.chooser.edge.refused("body-too-slow", &ctx.stamp.id);
                e = Error::new(ErrorType::ReadTimedout).into_down();
            }
            Some(Awaited::Server) => e = Error::new(ErrorType::ReadTimedout).into_up(),
            None => {}
        }
        let progress = match session.response_written() {
            Some(_) => Progress::Answering,
            None if was_refused(&e) => Progress::NotSent,
            None => Progress::Sent,
        };
        let only_reads = matches!(session.req_header().method, Method::GET | Method::HEAD);
        let is_whole = !session.as_ref().retry_buffer_truncated();
        let is_upstream = *e.esource() == ErrorSource::Upstream;
        if let Some(serving) = &mut ctx.proxied.serving {
            serving.failed |= is_upstream;
        }
        ctx.proxied.pause = match progress {
            _ if !is_upstream || !is_whole || !progress.may_repeat(only_reads) => None,
            Progress::NotSent => Some(Duration::ZERO),
            Progress::Sent | Progress::Answering => self.chooser.retry(&mut ctx.choice),
        };
        e.set_retry(ctx.proxied.pause.is_some());
        if ctx.proxied.pause.is_some() {
            (ctx.choice.in_flight, ctx.proxied.serving) = (None, None);
            if let Some(decision) = ctx.choice.decision.take() {
                if progress != Progress::NotSent {
                    let client = peer_of(session).map(|device| device.ip());
                    let failure = self.failure_of(At::Sent, &e);
                    self.chooser.note_failure(ctx, &decision, &failure, client);
                }
                ctx.choice.tried.stack(&decision.region, decision.stack);
            }
        }
        e
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        if ctx.is_grpc {
            // A hop says for itself that it takes trailers; servers of gRPC insist.
            request.insert_header("TE", "trailers")?;
        }
        self.sign_request(session, request, ctx)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "it switched protocols").into_up());
        }
        if let Some(decision) = &ctx.choice.decision
            // An informational answer is not the answer (RFC 9110 §15.2).
            && !response.status.is_informational()
        {
            let load = response.headers.get(LOAD_HEADER);
            let load = load.and_then(|load| load.to_str().ok()?.parse().ok());
            let now = daemon::clock::now();
            let says_full = load.is_some_and(|load| self.chooser.edge.fleet.loaded(decision.stack, load, now));
            let client = peer_of(session).map(|device| device.ip());
            let took = ctx.proxied.connecting_since.elapsed();
            self.chooser
                .judge_status(ctx.route, decision, (response.status.as_u16(), says_full), took, client);
        }
        if let Some(clock) = &ctx.proxied.clock {
            clock.answering();
        }
        self.chooser.sign_response(response, ctx)
    }

    /// The region is done with the last byte of its answer, however slowly the device takes it.
    fn response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Duration>> {
        if end_of_stream {
            (ctx.choice.in_flight, ctx.proxied.serving) = (None, None);
        }
        if let Some(clock) = &ctx.proxied.clock {
            clock.answering();
        }
        Ok(None)
    }

    /// The trailers end the answer to a call.
    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        _trailers: &mut http::HeaderMap,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Bytes>> {
        (ctx.choice.in_flight, ctx.proxied.serving) = (None, None);
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Box<Ctx>) -> FailToProxy {
        let region = ctx.choice.decision.as_ref().map(|decision| decision.region.clone());
        let answer = match (e.etype(), e.esource()) {
            _ if ctx.choice.is_edge_full && *e.esource() != ErrorSource::Downstream => Some(Answer::edge_full()),
            (ErrorType::HTTPStatus(503), _) if ctx.proxied.group.is_some() => {
                Some(Answer::unavailable("no_server", texts::NO_SERVER, 2))
            }
            (ErrorType::HTTPStatus(503), _) | (_, ErrorSource::Upstream)
                if region.is_none() && ctx.proxied.group.is_none() =>
            {
                Some(ctx.choice.nowhere())
            }
            (ErrorType::HTTPStatus(413), _) => {
                Some(Answer::body_too_large(self.chooser.edge.config.limits.body_bytes_max))
            }
            (error, ErrorSource::Upstream) => {
                let whose = region
                    .as_ref()
                    .map_or_else(|| "the server".to_owned(), |region| format!("region {region}"));
                Some(Answer::failed_while_answering(whose, *error == ErrorType::ReadTimedout))
            }
            (ErrorType::ReadTimedout, ErrorSource::Downstream) => Some(Answer::body_too_slow()),
            (ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed, ErrorSource::Downstream) => {
                None
            }
            (_, ErrorSource::Downstream) => Some(Answer::bad_request(format!(
                "the request is not valid: {}",
                e.etype().as_str()
            ))),
            _ => Some(Answer::region_failed(
                http::StatusCode::BAD_GATEWAY,
                texts::NOT_PASSED_ON,
            )),
        };
        if let Some(decision) = &ctx.choice.decision
            && *e.esource() == ErrorSource::Upstream
            // `attempts.rs` counts its own failures.
            && ctx.is_grpc
        {
            let client = peer_of(session).map(|device| device.ip());
            let failure = self.failure_of(At::Sent, e);
            let why = format!("request: {}", failure.why);
            self.chooser.edge.metrics.connect(&decision.region, "broken");
            self.chooser
                .edge
                .blame(decision, Failed::Request { client }, failure.facts, &why);
        }
        let error_code = answer.as_ref().map_or(0, |answer| answer.status.as_u16());
        if let Some(answer) = answer
            && session.response_written().is_none()
            && let Err(error) = write(&self.chooser.edge, session, ctx, &answer).await
        {
            tracing::debug!(request_id = %ctx.stamp.id, %error, "the device left before it got the answer");
        }
        // pingora closes the connection at once, also while the device still sends. One that was too slow gets no more time.
        if let ServerSession::H1(http1) = session.as_mut()
            && !matches!(error_code, 0 | 408)
        {
            (ctx.choice.in_flight, ctx.proxied.serving) = (None, None);
            http1.shutdown().await;
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Box<Ctx>, _error: &Error) -> bool {
        // `logging` below logs it with the edge's fields.
        true
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Box<Ctx>) {
        if let Some(clock) = &ctx.proxied.clock {
            clock.finish();
        }
        let status = session.response_written();
        let error = e.map(ToString::to_string);
        self.chooser.done(
            ctx,
            status.map_or(0, |response| response.status.as_u16()),
            error.as_deref(),
        );
    }
}

/// Whether a region reported that it did not process a call: it goes away, or has no slot for another stream (RFC 9113 §8.7).
/// pingora marks every error after which it would send a request again; this function excludes regions that break the protocol.
fn was_refused(e: &Error) -> bool {
    matches!(e.retry, RetryType::Decided(true)) && !matches!(e.etype(), ErrorType::InvalidH2 | ErrorType::H2Downgrade)
}
