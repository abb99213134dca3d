//! HTTP requests and gRPC calls: the same choice of region as for sessions, carried by pingora.
//!
//! A region that takes no connection is passed over at once: nothing was sent, and the next one was not asked yet. Asking
//! again, after all regions failed or a request broke, waits longer each time and comes out of a budget; it is done only
//! where doing twice is like doing once, and never once the device has a part of the answer.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use pingora_core::{
    Error, ErrorSource, ErrorType, Result, RetryType,
    connectors::http::Connector,
    modules::http::HttpModules,
    protocols::{ALPN, Digest, http::ServerSession},
    server::configuration::ServerConf,
    upstreams::peer::{H1UpgradePolicy, HttpPeer, HttpUpstreamRequestPolicy},
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use routing::{
    Affinity, Decision, Table, Tried, User,
    breaker::{Limit, Use},
    retry::Progress,
    user,
};
use topology::words::{LOAD_HEADER, VERSION};

use crate::{
    Edge,
    answer::Answer,
    edge::session_key,
    grpc,
    head::{REALTIME, USER, bearer, query},
    hedge, http1,
    requests::{Group, InFlight, Requests, Serving},
    sessions::Busy,
};

/// gRPC calls at the same time on one connection to a stack. More take another connection.
const GRPC_STREAMS_MAX: usize = 100;
/// A connection of HTTP/2 to a stack that does not answer a ping within this time is closed: its calls would wait for the
/// whole `timeouts.answer`.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Chooses regions for HTTP requests.
#[derive(Clone)]
pub struct Gateway {
    pub(crate) edge: Arc<Edge>,
    pub(crate) requests: Arc<Requests>,
    /// For what pingora's proxy cannot do: two copies of one request.
    pub(crate) connector: Arc<Connector>,
}

tokio::task_local! {
    /// A request that was begun before pingora got it.
    static BEGUN: Cell<Option<Box<Ctx>>>;
}

/// Lets pingora go on with a request.
pub(crate) async fn going_on<F: Future>(begun: Box<Ctx>, serving: F) -> F::Output {
    BEGUN.scope(Cell::new(Some(begun)), serving).await
}

/// One request. It holds one plan from beginning to end.
pub struct Ctx {
    _busy: Busy,
    pub(crate) table: Option<Arc<Table>>,
    pub(crate) route: Route,
    is_grpc: bool,
    /// It was let in, and counted.
    pub(crate) is_admitted: bool,
    pub(crate) decision: Option<Decision>,
    /// What was asked in this round.
    pub(crate) tried: Tried,
    /// Its place in the region it is at.
    pub(crate) in_flight: Option<InFlight>,
    /// The limit that kept it from a region that might have served it.
    pub(crate) overloaded: Option<Limit>,
    /// Instead of regions: the group of servers behind its path, the one it is at, and those that failed it.
    group: Option<Arc<Group>>,
    serving: Option<Serving>,
    servers_tried: Vec<usize>,
    pub(crate) retries: u32,
    /// Before the next attempt.
    pub(crate) pause: Option<Duration>,
    connecting_since: Instant,
    body_bytes: u64,
}

impl Gateway {
    /// Whether a request is let in; if not, for what reason and with which answer.
    fn admit(&self, session: &Session) -> std::result::Result<(), (&'static str, Answer)> {
        let client = session.client_addr().and_then(|client| client.as_inet());
        if let Some(client) = client {
            let admitted = self.edge.admission.request(client.ip());
            admitted.map_err(|refusal| (refusal.as_str(), refusal.answer()))?;
        }
        let bytes_max = self.edge.config.limits.body_bytes_max;
        let length = session.req_header().headers.get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > bytes_max) {
            return Err(("body-too-large", Answer::body_too_large(bytes_max)));
        }
        Ok(())
    }
}

/// Who asks, as far as the choice of a region goes.
pub(crate) struct Asker {
    session_key: String,
    affinity: Option<Affinity>,
    /// Empty while it does not matter.
    user: String,
}

/// What is proxied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Speech to text, of the OpenAI API or our own.
    Transcription,
    Audio,
    Models,
    Voice,
    VoiceGrpc,
    Health,
    Realtime,
    /// A path of the operator's.
    Upstream,
    Nothing,
}

impl Route {
    pub(crate) fn of(path: &str, is_grpc: bool) -> Self {
        match path {
            "/health" => Self::Health,
            "/v1/models" => Self::Models,
            REALTIME => Self::Realtime,
            "/v1/audio/transcriptions" | "/api/v1/voice/transcribe" => Self::Transcription,
            _ if path.starts_with(grpc::VOICE) && is_grpc => Self::VoiceGrpc,
            _ if path.starts_with("/v1/audio/") => Self::Audio,
            _ if path.starts_with("/v1/models/") => Self::Models,
            _ if path.starts_with("/api/v1/voice/") => Self::Voice,
            _ => Self::Nothing,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Transcription => "transcription",
            Self::Audio => "audio",
            Self::Models => "models",
            Self::Voice => "voice",
            Self::VoiceGrpc => "voice-grpc",
            Self::Health => "health",
            Self::Realtime => "realtime",
            Self::Upstream => "upstream",
            Self::Nothing => "nothing",
        }
    }
}

/// Whether a path is served by regions, so that no operator's group of servers can take it.
pub fn is_ours(path: &str) -> bool {
    path.starts_with(grpc::VOICE) || Route::of(path, false) != Route::Nothing
}

impl Gateway {
    /// A request broke in a region.
    pub(crate) fn request_failed(&self, at: &Decision, why: &str) {
        self.edge.metrics.connect(&at.region, "broken");
        let why = format!("request: {why}");
        self.edge.stack_lost(&at.region, at.stack, None, &why);
    }

    /// A gateway of this edge.
    pub fn new(edge: Arc<Edge>, requests: Arc<Requests>, conf: &ServerConf) -> Self {
        Self {
            requests,
            connector: Arc::new(hedge::connector(conf)),
            edge,
        }
    }

    /// Who asks, by the headers and the target of a request.
    pub(crate) fn asker<'h>(
        &self,
        header: impl Fn(&str) -> Option<&'h str>,
        target: &'h str,
        client: Option<SocketAddr>,
        table: Option<&Table>,
    ) -> Asker {
        let of = |name: &str, parameter: &str| header(name).or_else(|| query(target, parameter));
        let now = daemon::clock::now();
        let affinity = of("meridian-affinity", "affinity").and_then(|token| self.edge.affinity(token, now));
        let address = client.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |client| client.ip());
        let session_key = session_key(of("meridian-session", "session"), address);
        let user = match table {
            Some(table) if client.is_some() && table.splits_users() => {
                user::name(of(USER, "user"), header("authorization").and_then(bearer), address)
            }
            _ => String::new(),
        };
        Asker {
            session_key,
            affinity,
            user,
        }
    }

    pub(crate) fn asker_of(&self, session: &Session, table: Option<&Table>) -> Asker {
        let request = session.req_header();
        let target = request.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
        let client = session.client_addr().and_then(|client| client.as_inet()).copied();
        self.asker(|name| request.headers.get(name)?.to_str().ok(), target, client, table)
    }

    /// A request begins.
    pub(crate) fn begin(&self, busy: Busy) -> Ctx {
        Ctx {
            _busy: busy,
            table: self.edge.table(),
            route: Route::Nothing,
            is_grpc: false,
            is_admitted: false,
            decision: None,
            tried: Tried::up_to(self.edge.config.limits.regions_tried_max),
            in_flight: None,
            overloaded: None,
            group: None,
            serving: None,
            servers_tried: Vec::new(),
            retries: 0,
            pause: None,
            connecting_since: Instant::now(),
            body_bytes: 0,
        }
    }

    /// A request is over.
    pub(crate) fn done(&self, ctx: &Ctx, status: u16, error: Option<&str>) {
        self.edge.metrics.http(ctx.route.as_str(), status);
        let region = ctx.decision.as_ref().map(|decision| decision.region.as_str());
        let why = ctx.decision.as_ref().map(|decision| decision.why.as_str());
        let (route, tried) = (ctx.route.as_str(), ctx.tried.regions());
        if let Some(error) = error {
            tracing::info!(route, status, region, why, ?tried, error, "request failed");
        } else {
            tracing::debug!(route, status, region, why, ?tried, "request");
        }
    }

    /// The next region of this round that has a place for the request.
    pub(crate) fn choose(&self, ctx: &mut Ctx, asker: &Asker, wanted: Use) -> Option<(Decision, InFlight)> {
        let table = ctx.table.clone()?;
        loop {
            let now = daemon::clock::now();
            let affinity = asker.affinity.as_ref();
            let user = User {
                name: &asker.user,
                version: None,
            };
            let decision = self
                .edge
                .seen
                .pick(&table, &asker.session_key, user, affinity, &ctx.tried, now)?;
            match self.requests.begin(&decision.region, wanted) {
                Ok(mut in_flight) => {
                    self.edge.note_version(&decision);
                    in_flight.at_stack = Some(self.edge.begins(&decision));
                    return Some((decision, in_flight));
                }
                Err(limit) => {
                    ctx.overloaded = Some(limit);
                    ctx.tried.region(&decision.region);
                }
            }
        }
    }

    /// What a device is told when no region is left.
    pub(crate) fn nowhere(&self, ctx: &Ctx) -> Answer {
        match ctx.overloaded {
            Some(limit) => {
                let message = format!("every region is at its limit of {}; try again", limit.as_str());
                Answer::unavailable("overloaded", message, 1)
            }
            None => Answer::unavailable("no_region", "no region could take the request; try again", 2),
        }
    }

    pub(crate) fn peer(&self, address: SocketAddr, is_grpc: bool) -> Box<HttpPeer> {
        let timeouts = &self.edge.config.timeouts;
        let mut peer = HttpPeer::new(address, false, String::new());
        let options = &mut peer.options;
        options.connection_timeout = Some(timeouts.connect.0);
        options.total_connection_timeout = Some(timeouts.connect.0);
        options.read_timeout = Some(timeouts.answer.0);
        options.write_timeout = Some(timeouts.answer.0);
        // Shorter than a stack keeps its end open, so that a request rarely meets a connection that is being closed.
        options.idle_timeout = Some(Duration::from_secs(15));
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy {
            // Sessions have a tunnel of their own; no other request becomes one.
            h1_upgrade: H1UpgradePolicy::Deny,
            ..HttpUpstreamRequestPolicy::standard()
        };
        if is_grpc {
            options.alpn = ALPN::H2;
            options.max_h2_streams = GRPC_STREAMS_MAX;
            options.h2_ping_interval = Some(PING_INTERVAL);
        }
        Box::new(peer)
    }

    /// A region accepted a connection.
    pub(crate) fn connected(&self, decision: &Decision, took: Duration) {
        self.edge.metrics.connect(&decision.region, "ok");
        self.edge.metrics.connect_took(&decision.region, took);
        let now = daemon::clock::now();
        self.edge.seen.reached(&decision.region, decision.stack, took, now);
    }

    /// A region began to answer a request.
    pub(crate) fn answered(&self, decision: &Decision, took: Duration) {
        let now = daemon::clock::now();
        self.edge.seen.accepted(&decision.region, decision.stack, took, now);
    }

    pub(crate) fn connect_failed(&self, decision: &Decision, timed_out: bool, why: &str) {
        let outcome = if timed_out { "connect-timeout" } else { "connect-failed" };
        self.edge.metrics.connect(&decision.region, outcome);
        self.edge
            .stack_failed(&decision.region, decision.stack, &format!("connect: {why}"));
        tracing::info!(region = %decision.region, stack = %decision.stack, why, "region did not take a request");
    }

    pub(crate) fn sign_request(&self, session: &Session, request: &mut RequestHeader) -> Result<()> {
        for name in http1::HEARSAY {
            request.remove_header(name);
        }
        if let Some(client) = session.client_addr().and_then(|client| client.as_inet()) {
            request.insert_header("X-Forwarded-For", client.ip().to_string())?;
        }
        request.insert_header(LOAD_HEADER, VERSION)?;
        request.insert_header("Meridian-Edge", self.edge.id.as_str())
    }

    pub(crate) fn sign_response(&self, response: &mut ResponseHeader, ctx: &Ctx) -> Result<()> {
        if let Some(decision) = &ctx.decision {
            // It is for us and not for the device.
            let load = response.remove_header(LOAD_HEADER);
            if let Some(load) = load.and_then(|load| load.to_str().ok()?.parse().ok()) {
                self.edge.seen.loaded(decision.stack, load, daemon::clock::now());
            }
            response.insert_header("Meridian-Region", decision.region.as_str())?;
            let token = self.edge.affinity_token(decision, daemon::clock::now());
            response.insert_header("Meridian-Affinity", &*token)?;
        }
        response.insert_header("Meridian-Edge", self.edge.id.as_str())
    }

    /// What only reads is answered at once by a region that lives, and can be asked elsewhere if it is not.
    fn in_time(&self, session: &Session, mut peer: Box<HttpPeer>) -> Box<HttpPeer> {
        if matches!(session.req_header().method, Method::GET | Method::HEAD) {
            peer.options.read_timeout = Some(self.edge.config.timeouts.upgrade.0);
        }
        peer
    }

    /// A region for the next attempt. When all have been asked and failed, they are asked again later, a few times.
    async fn region(&self, session: &Session, ctx: &mut Box<Ctx>) -> Result<Box<HttpPeer>> {
        let asker = self.asker_of(session, ctx.table.as_deref());
        loop {
            let wanted = Use {
                has_connection: !ctx.is_grpc,
                is_extra: ctx.retries > 0,
            };
            if let Some((decision, in_flight)) = self.choose(ctx, &asker, wanted) {
                let peer = self.in_time(session, self.peer(decision.stack, ctx.is_grpc));
                (ctx.decision, ctx.in_flight) = (Some(decision), Some(in_flight));
                return Ok(peer);
            }
            // Nobody serves, or those that do are at their limits: asking again soon would make that worse.
            let failed = !ctx.tried.regions().is_empty() && ctx.overloaded.is_none();
            match self.again(ctx) {
                Some(pause) if failed => tokio::time::sleep(pause).await,
                _ => return Err(Error::explain(ErrorType::HTTPStatus(503), "no region took the request")),
            }
            ctx.tried.clear();
        }
    }

    /// The pause before a retry, if there may be one.
    pub(crate) fn again(&self, ctx: &mut Box<Ctx>) -> Option<Duration> {
        let pause = self.requests.retry(ctx.retries, daemon::clock::now())?;
        ctx.retries += 1;
        Some(pause)
    }

    /// One of the operator's servers for the next attempt.
    fn server(&self, ctx: &mut Ctx, group: &Arc<Group>) -> Result<Box<HttpPeer>> {
        let serving = group
            .pick(&ctx.servers_tried, daemon::clock::now())
            .ok_or_else(|| Error::explain(ErrorType::HTTPStatus(503), "no server took the request"))?;
        ctx.servers_tried.push(serving.index);
        let peer = self.peer(serving.address, ctx.is_grpc);
        ctx.serving = Some(serving);
        Ok(peer)
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Box<Ctx>;

    fn new_ctx(&self) -> Box<Ctx> {
        let begun = BEGUN.try_with(Cell::take).ok().flatten();
        begun.unwrap_or_else(|| Box::new(self.begin(self.edge.sessions.busy())))
    }

    /// None of pingora's: it would look at every answer for something to compress, and nothing is compressed here.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<bool> {
        let request = session.req_header();
        let path = request.uri.path();
        let is_grpc = grpc::is_grpc(&request.headers);
        ctx.is_grpc = is_grpc && session.as_ref().is_http2();
        ctx.route = Route::of(path, is_grpc);
        if ctx.route == Route::Nothing {
            ctx.group = self.requests.group(path);
            ctx.route = ctx.group.as_ref().map_or(Route::Nothing, |_| Route::Upstream);
        }
        let answer = match ctx.route {
            Route::Nothing => Answer::not_found(path),
            Route::Realtime => Answer::upgrade_required(),
            _ if is_grpc && !ctx.is_grpc => Answer::bad_request("gRPC needs HTTP/2"),
            _ if !ctx.is_admitted
                && let Err((reason, answer)) = self.admit(session) =>
            {
                self.edge.metrics.refused(reason);
                answer
            }
            _ => {
                if !ctx.is_admitted {
                    self.requests.asked(daemon::clock::now());
                }
                if ctx.route == Route::Transcription
                    && let Some(length) = hedge::length(session.req_header(), &self.edge.config.hedge)
                    && let Some(memory) = self.requests.hedged_bytes(length)
                {
                    Box::pin(self.hedge(session, ctx, length, memory)).await?;
                    return Ok(true);
                }
                return Ok(false);
            }
        };
        write(session, &answer).await?;
        Ok(true)
    }

    /// The length a body says it has was looked at before; this counts the body that does not say.
    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        ctx.body_bytes += body.as_ref().map_or(0, Bytes::len) as u64;
        if ctx.body_bytes > self.edge.config.limits.body_bytes_max {
            self.edge.metrics.refused("body-too-large");
            return Err(Error::explain(ErrorType::HTTPStatus(413), "the body is too large"));
        }
        Ok(())
    }

    /// Asked again for every attempt.
    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<Box<HttpPeer>> {
        if let Some(pause) = ctx.pause.take() {
            tokio::time::sleep(pause).await;
        }
        let peer = match ctx.group.clone() {
            Some(group) => self.server(ctx, &group),
            None => self.region(session, ctx).await,
        };
        ctx.connecting_since = Instant::now();
        peer
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
        if let Some(in_flight) = &mut ctx.in_flight {
            in_flight.connected();
        }
        if let Some(decision) = &ctx.decision
            && !reused
        {
            self.connected(decision, ctx.connecting_since.elapsed());
        }
        Ok(())
    }

    /// Nothing was sent, so another region may be asked, whatever the method.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Box<Ctx>,
        mut e: Box<Error>,
    ) -> Box<Error> {
        ctx.in_flight = None;
        if let Some(decision) = ctx.decision.take() {
            let timed_out = matches!(e.etype(), ErrorType::ConnectTimedout);
            self.connect_failed(&decision, timed_out, e.etype().as_str());
            ctx.tried.stack(&decision.region, decision.stack);
        }
        if let Some(mut serving) = ctx.serving.take() {
            serving.failed = true;
        }
        e.set_retry(true);
        e
    }

    /// It was sent. Once more is fine for what only reads, and for what the region says it never looked at.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Box<Ctx>,
        _client_reused: bool,
    ) -> Box<Error> {
        let progress = match session.response_written() {
            Some(_) => Progress::Answering,
            None if was_refused(&e) => Progress::NotSent,
            None => Progress::Sent,
        };
        let only_reads = matches!(session.req_header().method, Method::GET | Method::HEAD);
        let is_whole = !session.as_ref().retry_buffer_truncated();
        let is_upstream = *e.esource() == ErrorSource::Upstream && !waits_for_body(session, &e);
        if let Some(serving) = &mut ctx.serving {
            serving.failed |= is_upstream;
        }
        ctx.pause = match progress {
            _ if !is_upstream || !is_whole || !progress.may_repeat(only_reads) => None,
            Progress::NotSent => Some(Duration::ZERO),
            Progress::Sent | Progress::Answering => self.again(ctx),
        };
        e.set_retry(ctx.pause.is_some());
        if ctx.pause.is_some() {
            (ctx.in_flight, ctx.serving) = (None, None);
            if let Some(decision) = ctx.decision.take() {
                if progress != Progress::NotSent {
                    self.request_failed(&decision, e.etype().as_str());
                }
                ctx.tried.stack(&decision.region, decision.stack);
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
        self.sign_request(session, request)
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        if let Some(decision) = &ctx.decision {
            // Only now it is known that somebody is there: the kernel accepts connections for a process that hangs.
            self.answered(decision, ctx.connecting_since.elapsed());
        }
        self.sign_response(response, ctx)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Box<Ctx>) -> FailToProxy {
        let region = ctx.decision.as_ref().map(|decision| decision.region.clone());
        let answer = match (e.etype(), e.esource()) {
            (ErrorType::HTTPStatus(503), _) if ctx.group.is_some() => {
                let message = "no server of this path could take the request; try again";
                Some(Answer::unavailable("no_server", message, 2))
            }
            (ErrorType::HTTPStatus(503), _) | (_, ErrorSource::Upstream) if region.is_none() && ctx.group.is_none() => {
                Some(self.nowhere(ctx))
            }
            (ErrorType::ReadTimedout, ErrorSource::Upstream) if waits_for_body(session, e) => {
                Some(Answer::body_too_slow())
            }
            (ErrorType::HTTPStatus(413), _) => Some(Answer::body_too_large(self.edge.config.limits.body_bytes_max)),
            (error, ErrorSource::Upstream) => {
                let whose = region
                    .as_ref()
                    .map_or_else(|| "the server".to_owned(), |region| format!("region {region}"));
                let (status, what) = match error {
                    ErrorType::ReadTimedout => (http::StatusCode::GATEWAY_TIMEOUT, "did not answer in time"),
                    _ => (http::StatusCode::BAD_GATEWAY, "failed while it answered"),
                };
                Some(Answer::region_failed(status, format!("{whose} {what}")))
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
                "the request could not be passed on",
            )),
        };
        if let Some(decision) = &ctx.decision
            && *e.esource() == ErrorSource::Upstream
            && !waits_for_body(session, e)
        {
            self.request_failed(decision, e.etype().as_str());
        }
        let error_code = answer.as_ref().map_or(0, |answer| answer.status.as_u16());
        if let Some(answer) = answer
            && session.response_written().is_none()
            && let Err(error) = write(session, &answer).await
        {
            tracing::debug!(%error, "the device left before it was told");
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Box<Ctx>, _error: &Error) -> bool {
        // `logging` below says it, with our words.
        true
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Box<Ctx>) {
        let status = session.response_written();
        let error = e.map(ToString::to_string);
        self.done(
            ctx,
            status.map_or(0, |response| response.status.as_u16()),
            error.as_deref(),
        );
    }
}

/// Whether a region said of a call that it did nothing for it: it is going away, or has no place for another stream
/// (RFC 9113 §8.7). pingora marks what may be sent again whatever it is; a region that speaks nonsense is not meant here.
fn was_refused(e: &Error) -> bool {
    matches!(e.retry, RetryType::Decided(true)) && !matches!(e.etype(), ErrorType::InvalidH2 | ErrorType::H2Downgrade)
}

/// Whether a region did not answer in time because the device has not sent all of its body: nobody's fault but the device's.
fn waits_for_body(session: &mut Session, e: &Error) -> bool {
    *e.etype() == ErrorType::ReadTimedout && !session.as_mut().is_body_done()
}

/// Answers with an error, in the terms of who asks.
pub(crate) async fn write(session: &mut Session, answer: &Answer) -> Result<()> {
    let is_grpc = grpc::is_grpc(&session.req_header().headers);
    if let ServerSession::H2(http2) = session.as_mut()
        && is_grpc
    {
        return grpc::refuse(http2, answer);
    }
    let body = answer.body();
    let mut head = ResponseHeader::build(answer.status, Some(4))?;
    head.insert_header("Content-Type", "application/json")?;
    head.insert_header("Content-Length", body.len())?;
    for (name, value) in &answer.headers {
        // HTTP/2 knows no upgrades (RFC 9113 §8.2.2).
        if *name != "Upgrade" || !session.as_ref().is_http2() {
            head.insert_header(*name, value)?;
        }
    }
    if !session.as_mut().is_body_done() {
        // What was refused need not be read to its end, however long that is.
        session.set_keepalive(None);
    }
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(body), true).await
}
