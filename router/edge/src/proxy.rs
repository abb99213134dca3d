//! HTTP requests and gRPC calls: the same choice of region as for sessions. Here is what the ways of a request share, and the
//! part of pingora: HTTP/2 towards devices, gRPC, and operators' upstreams.
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
use bytes::{Bytes, BytesMut};
use http::Method;
use pingora_core::{
    Error, ErrorSource, ErrorType, Result, RetryType,
    modules::http::HttpModules,
    protocols::{ALPN, Digest, http::ServerSession},
    upstreams::peer::{H1UpgradePolicy, HttpPeer, HttpUpstreamRequestPolicy},
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use routing::{
    Affinity, Decision, Table, Tried, User,
    admit::ClientPlace,
    breaker::{Limit, Use},
    pace::Pace,
    retry::Progress,
    user,
};
use tokio::net::TcpStream;
use topology::words::{LOAD_HEADER, VERSION};

use crate::{
    Edge,
    answer::Answer,
    edge::{Failed, session_key},
    exchange::{At, Failure},
    fault::{Cause, Event, Facts, Fault},
    grpc,
    head::{REALTIME, USER, bearer, query},
    http1::{self, Peer, Response},
    idle::Idle,
    requests::{Group, InFlight, Requests, Serving},
    sessions::Busy,
};

/// gRPC calls at the same time on one connection to a stack. More take another connection.
const GRPC_STREAMS_MAX: usize = 100;
/// A connection of HTTP/2 to a stack that does not answer a ping within this time is closed: its calls would wait for the
/// whole `timeouts.answer`.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Of a call so much is read before a region is asked: pingora sends again what it has of a body, and has up to 64 KiB. Frames
/// are of 16 KiB at most.
const CALL_BYTES_HELD: usize = 32 << 10;

/// Chooses regions for HTTP requests.
#[derive(Clone)]
pub struct Gateway {
    pub(crate) edge: Arc<Edge>,
    pub(crate) requests: Arc<Requests>,
    /// Connections to regions that wait for the next request.
    pub(crate) idle: Arc<Idle>,
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
    /// Its body is chunked.
    pub(crate) is_chunked: bool,
    /// Its device sent something behind it, which is lost: its connection ends with it.
    pub(crate) has_sent_ahead: bool,
    /// Its connection ends with it.
    pub(crate) is_last: bool,
    is_counted: bool,
    /// Its place among those of its client, once it was let in.
    pub(crate) place: Option<ClientPlace>,
    /// Its place among the long bodies of its client, while it is passed on as it comes.
    pub(crate) upload: Option<ClientPlace>,
    pub(crate) decision: Option<Decision>,
    /// What was asked in this round.
    pub(crate) tried: Tried,
    /// Its place in the region it is at.
    pub(crate) in_flight: Option<InFlight>,
    /// The limit that kept it from a region that might have served it.
    pub(crate) overloaded: Option<Limit>,
    /// This edge is out of something itself.
    is_edge_full: bool,
    /// How the last region failed it.
    failed: Option<Answer>,
    /// A region that got it and says nothing yet.
    pub(crate) waiting: Option<Box<Waiting>>,
    /// Instead of regions: the group of servers behind its path, the one it is at, and those that failed it.
    group: Option<Arc<Group>>,
    serving: Option<Serving>,
    servers_tried: Vec<usize>,
    pub(crate) retries: u32,
    /// Before the next attempt.
    pub(crate) pause: Option<Duration>,
    connecting_since: Instant,
    pub(crate) body_bytes: u64,
    /// How the body keeps pace, on pingora's way, and since when more of it is waited for.
    pace: Pace,
    body_awaited_since: Instant,
}

/// A region that got a request and says nothing yet.
pub(crate) struct Waiting {
    pub(crate) decision: Decision,
    pub(crate) in_flight: InFlight,
    pub(crate) region: TcpStream,
    /// What came of its answer.
    pub(crate) read: BytesMut,
    pub(crate) began: tokio::time::Instant,
}

/// Whether a request may be asked of a region after another one got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads, and a region that lives answers at once.
    Quick,
    /// A recording is heard twice, or a text spoken twice, at no harm. It takes its time.
    Slow,
    /// Doing it twice may not be like doing it once.
    Never,
}

impl Gateway {
    /// Lets a request in; if not, says for what reason and with which answer.
    fn admit(&self, session: &Session, ctx: &mut Ctx) -> std::result::Result<(), (&'static str, Answer)> {
        if ctx.place.is_none()
            && let Some(device) = peer_of(session)
        {
            let admitted = self.edge.admission.request(device.ip());
            ctx.place = Some(admitted.map_err(|refusal| (refusal.as_str(), refusal.answer()))?);
            self.requests.asked(daemon::clock::now());
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

/// The device of a request.
pub(crate) fn peer_of(session: &Session) -> Option<Peer> {
    let digest = session.as_ref().digest();
    let has_tls = digest.is_some_and(|digest| digest.ssl_digest.is_some());
    let address = *session.client_addr()?.as_inet()?;
    Some(Peer { address, has_tls })
}

/// Who asks, as far as the choice of a region goes.
pub(crate) struct Asker {
    pub(crate) client: Option<IpAddr>,
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
    /// Text to speech, of the OpenAI API or our own.
    Speech,
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
            "/v1/audio/speech" | "/api/v1/voice/synthesize" => Self::Speech,
            _ if path.starts_with(grpc::VOICE) && is_grpc => Self::VoiceGrpc,
            _ if path.starts_with("/v1/audio/") => Self::Audio,
            _ if path.starts_with("/v1/models/") => Self::Models,
            _ if path.starts_with("/api/v1/voice/") => Self::Voice,
            _ => Self::Nothing,
        }
    }

    /// Whether a request of this method may be asked of a region after another one got it.
    pub(crate) fn repeat(self, method: &str) -> Repeat {
        match (method, self) {
            ("GET" | "HEAD", _) => Repeat::Quick,
            ("POST", Self::Transcription | Self::Speech) => Repeat::Slow,
            _ => Repeat::Never,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Transcription => "transcription",
            Self::Audio | Self::Speech => "audio",
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
    /// From now on the device has to keep pace, also where pingora reads and writes.
    fn expect_pace(&self, session: &mut Session) {
        let timeouts = &self.edge.config.timeouts;
        match session.as_mut() {
            ServerSession::H1(http1) => {
                http1.set_read_timeout(Some(timeouts.device.0));
                http1.set_write_timeout(Some(timeouts.device.0));
            }
            ServerSession::H2(http2) => http2.set_write_timeout(Some(timeouts.device.0)),
            _ => {}
        }
        session.as_mut().set_total_drain_timeout(Some(timeouts.device.0));
    }

    /// Reads what pingora can hold of a call before a region is asked; or says why it is not taken.
    async fn hold_call(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Option<Answer>> {
        let http = session.as_mut();
        http.enable_retry_buffering();
        let mut held = 0;
        while held < CALL_BYTES_HELD && !http.is_body_done() {
            let began = Instant::now();
            match tokio::time::timeout(ctx.pace.patience(), http.read_request_body()).await {
                Err(_) => {
                    self.edge.metrics.refused("body-too-slow");
                    return Ok(Some(Answer::body_too_slow()));
                }
                Ok(Err(error)) => return Err(error.into_down()),
                Ok(Ok(None)) => break,
                Ok(Ok(Some(part))) => {
                    ctx.pace.waited(began.elapsed(), part.len());
                    held += part.len();
                }
            }
        }
        if !session.as_mut().is_body_done()
            && let Some(device) = peer_of(session)
        {
            match self.edge.admission.upload(device.ip()) {
                Ok(place) => ctx.upload = Some(place),
                Err(refusal) => {
                    self.edge.metrics.refused(refusal.as_str());
                    return Ok(Some(refusal.answer()));
                }
            }
        }
        Ok(None)
    }

    /// What an error of pingora says of a region.
    fn failure_of(&self, at: At, e: &Error) -> Failure {
        let facts = match e.etype() {
            ErrorType::ConnectTimedout => {
                Facts::timed_out(self.edge.lag.is_late_for(self.edge.config.timeouts.connect.0))
            }
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => {
                Facts::timed_out(self.edge.lag.is_late_for(self.edge.config.timeouts.answer.0))
            }
            ErrorType::ConnectionClosed => Event::Ended.into(),
            ErrorType::InvalidHTTPHeader | ErrorType::InvalidH2 | ErrorType::H2Error => Event::Nonsense.into(),
            _ => Event::Io(Cause::within(e.root_cause())).into(),
        };
        let why = e.etype().as_str().to_owned();
        Failure { at, facts, why }
    }

    /// A gateway of this edge.
    pub fn new(edge: Arc<Edge>, requests: Arc<Requests>, kept_max: usize) -> Self {
        Self {
            requests,
            idle: Arc::new(Idle::new(kept_max)),
            edge,
        }
    }

    /// A region did not take a request, or broke it: who is to blame, and what the device is told if nobody does better.
    pub(crate) fn note_failure(&self, ctx: &mut Ctx, at: &Decision, failure: &Failure, client: Option<IpAddr>) {
        let (failed, outcome, what) = match failure.at {
            At::Connect if failure.is_timeout() => (Failed::ToBegin, "connect-timeout", "connect"),
            At::Connect => (Failed::ToBegin, "connect-failed", "connect"),
            At::Sent => (Failed::Request { client }, "broken", "request"),
        };
        self.edge.metrics.connect(&at.region, outcome);
        let why = format!("{what}: {}", failure.why);
        let fault = self.edge.blame(at, failed, failure.facts, &why);
        tracing::info!(region = %at.region, stack = %at.stack, why, fault = fault.as_str(), "a region failed a request");
        ctx.is_edge_full = fault == Fault::Edge;
        if failure.at == At::Sent {
            ctx.failed = Some(self.failed_answer(at, failure.is_timeout()));
        }
    }

    fn failed_answer(&self, at: &Decision, is_timeout: bool) -> Answer {
        let (status, what) = match is_timeout {
            true => (http::StatusCode::GATEWAY_TIMEOUT, "did not answer in time"),
            false => (http::StatusCode::BAD_GATEWAY, "failed while it answered"),
        };
        Answer::region_failed(status, format!("region {} {what}", at.region))
    }

    /// What a device is told of an answer of which it has nothing.
    pub(crate) fn region_failed(&self, ctx: &Ctx, failure: &Failure) -> Answer {
        match &ctx.decision {
            Some(decision) => self.failed_answer(decision, failure.is_timeout()),
            None => self.nowhere(ctx),
        }
    }

    /// An answer broke off on its way to the device.
    pub(crate) fn broke_off(&self, ctx: &mut Ctx, status: u16, failure: &Failure, client: Option<IpAddr>) {
        ctx.in_flight = None;
        if let Some(decision) = &ctx.decision
            && !failure.is_of_device()
        {
            self.edge.metrics.connect(&decision.region, "broken");
            let why = format!("request: {}", failure.why);
            self.edge
                .blame(decision, Failed::Request { client }, failure.facts, &why);
        }
        self.done(ctx, status, Some(&failure.why));
    }

    /// Takes note of the head of an answer. Whether another region may do better: this one failed, or has no room.
    pub(crate) fn judge(
        &self,
        route: Route,
        at: &Decision,
        response: &Response,
        took: Duration,
        client: Option<IpAddr>,
    ) -> bool {
        let now = daemon::clock::now();
        let says_full = response
            .load
            .is_some_and(|load| self.edge.seen.loaded(at.stack, load, now));
        self.judge_status(route, at, (response.status, says_full), took, client)
    }

    fn judge_status(
        &self,
        route: Route,
        at: &Decision,
        (status, says_full): (u16, bool),
        took: Duration,
        client: Option<IpAddr>,
    ) -> bool {
        let facts = Facts::answered(status, says_full);
        // A stack that says of itself that a part of it is ill answers that question well.
        let is_report = route == Route::Health && status == 503;
        if facts.fault() == Fault::Region && !is_report {
            self.edge.metrics.connect(&at.region, "failed");
            let why = format!("request: answered {status}");
            // What one client asks for may be what fails, and must not cost all others the stack.
            let is_counted = client.is_some_and(|client| self.edge.seen.traffic.has_lost(&at.region, client));
            if is_counted {
                self.edge.metrics.fault(&at.region, Fault::Region.as_str());
                self.edge.seen.traffic.lost(&at.region, None, client, &why);
            } else {
                self.edge.blame(at, Failed::Request { client }, facts, &why);
            }
            return true;
        }
        if matches!(status, 429 | 503) {
            // It works, and that is all it proves: what it says of its load keeps others away.
            self.edge.metrics.connect(&at.region, "full");
            return true;
        }
        // Only now it is known that somebody is there: the kernel accepts connections for a process that hangs.
        self.answered(at, took);
        false
    }

    /// How long a region may take to begin its answer before it is taken for dead, or another one is asked beside it.
    pub(crate) fn silence(&self, repeat: Repeat) -> Duration {
        let timeouts = &self.edge.config.timeouts;
        match repeat {
            Repeat::Quick | Repeat::Slow => timeouts.upgrade.0,
            Repeat::Never => timeouts.answer.0,
        }
    }

    /// The same where another one is asked beside it anyway.
    pub(crate) fn silence_of_copy(&self, repeat: Repeat) -> Duration {
        let timeouts = &self.edge.config.timeouts;
        match repeat {
            Repeat::Quick => timeouts.upgrade.0,
            Repeat::Slow | Repeat::Never => timeouts.answer.0,
        }
    }

    /// Who asks, by the headers and the target of a request.
    pub(crate) fn asker<'h>(
        &self,
        header: impl Fn(&str) -> Option<&'h str>,
        target: &'h str,
        client: Option<IpAddr>,
        table: Option<&Table>,
    ) -> Asker {
        let of = |name: &str, parameter: &str| header(name).or_else(|| query(target, parameter));
        let now = daemon::clock::now();
        let affinity = of("meridian-affinity", "affinity").and_then(|token| self.edge.affinity(token, now));
        let address = client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let session_key = session_key(of("meridian-session", "session"), address);
        let user = match table {
            Some(table) if client.is_some() && table.splits_users() => {
                user::name(of(USER, "user"), header("authorization").and_then(bearer), address)
            }
            _ => String::new(),
        };
        Asker {
            client,
            session_key,
            affinity,
            user,
        }
    }

    pub(crate) fn asker_of(&self, session: &Session, table: Option<&Table>) -> Asker {
        let request = session.req_header();
        let target = request.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
        let client = peer_of(session).map(|device| device.ip());
        self.asker(|name| request.headers.get(name)?.to_str().ok(), target, client, table)
    }

    /// A request begins.
    pub(crate) fn begin(&self, busy: Busy) -> Ctx {
        Ctx {
            _busy: busy,
            table: self.edge.table(),
            route: Route::Nothing,
            is_grpc: false,
            is_chunked: false,
            has_sent_ahead: false,
            is_last: false,
            is_counted: false,
            place: None,
            upload: None,
            decision: None,
            tried: Tried::up_to(self.edge.config.limits.regions_tried_max),
            in_flight: None,
            overloaded: None,
            is_edge_full: false,
            failed: None,
            waiting: None,
            group: None,
            serving: None,
            servers_tried: Vec::new(),
            retries: 0,
            pause: None,
            connecting_since: Instant::now(),
            body_bytes: 0,
            pace: self.edge.config.pace(),
            body_awaited_since: Instant::now(),
        }
    }

    /// A request is over, as far as it is counted: a device that has its answer finds it counted. Later calls do nothing.
    pub(crate) fn done(&self, ctx: &mut Ctx, status: u16, error: Option<&str>) {
        if std::mem::replace(&mut ctx.is_counted, true) {
            return;
        }
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
        if ctx.is_edge_full {
            return Answer::edge_full();
        }
        match (ctx.overloaded, &ctx.failed) {
            (Some(limit), _) => {
                let message = format!("every region is at its limit of {}; try again", limit.as_str());
                Answer::unavailable("overloaded", message, 1)
            }
            (None, Some(failed)) => failed.clone(),
            (None, None) => Answer::unavailable("no_region", "no region could take the request; try again", 2),
        }
    }

    /// All regions of this round were asked and failed: the pause before the next round, if there is one. It comes out of the
    /// budget of retries now, and not before it is known that it will be made.
    pub(crate) fn another_round(&self, ctx: &mut Ctx) -> Option<Duration> {
        // Nobody serves, or those that do are at their limits, or the edge is out of something itself: asking again soon would
        // make that worse.
        if ctx.tried.regions().is_empty() || ctx.overloaded.is_some() || ctx.is_edge_full {
            return None;
        }
        let pause = self.again(ctx)?;
        ctx.tried.clear();
        Some(pause)
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

    /// The headers of a request on pingora's way as a region, or an operator's server, gets them.
    fn sign_request(&self, session: &Session, request: &mut RequestHeader) -> Result<()> {
        let device = &session.req_header().headers;
        let connection = device.get_all(http::header::CONNECTION);
        let named: Vec<&[u8]> = connection.iter().map(http::HeaderValue::as_bytes).collect();
        // pingora frames the body, and writes the headers of its hop.
        let of_pingora = ["content-length", "transfer-encoding", "connection", "te", "expect"];
        for name in device.keys() {
            if !of_pingora.contains(&name.as_str()) && !http1::is_forwarded(name.as_str(), &named) {
                request.remove_header(name);
            }
        }
        if let Some(device) = peer_of(session) {
            request.insert_header("X-Forwarded-For", device.ip().to_string())?;
            request.insert_header("X-Forwarded-Proto", device.scheme())?;
        }
        request.insert_header(LOAD_HEADER, VERSION)?;
        request.insert_header("Meridian-Edge", self.edge.id.as_str())
    }

    pub(crate) fn sign_response(&self, response: &mut ResponseHeader, ctx: &Ctx) -> Result<()> {
        if let Some(decision) = &ctx.decision {
            // It is for us and not for the device.
            response.remove_header(LOAD_HEADER);
            response.insert_header("Meridian-Region", decision.region.as_str())?;
            let token = self.edge.affinity_token(decision, daemon::clock::now());
            response.insert_header("Meridian-Affinity", &*token)?;
        }
        response.insert_header("Meridian-Edge", self.edge.id.as_str())
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
                let peer = self.peer(decision.stack, ctx.is_grpc);
                (ctx.decision, ctx.in_flight) = (Some(decision), Some(in_flight));
                return Ok(peer);
            }
            match self.another_round(ctx) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(Error::explain(ErrorType::HTTPStatus(503), "no region took the request")),
            }
        }
    }

    /// The pause before a retry, if there may be one.
    pub(crate) fn again(&self, ctx: &mut Ctx) -> Option<Duration> {
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
        // First of all: a refusal has to be taken in time like any other answer.
        self.expect_pace(session);
        let request = session.req_header();
        let path = request.uri.path();
        let is_grpc = grpc::is_grpc(&request.headers);
        ctx.is_grpc = is_grpc && session.as_ref().is_http2();
        ctx.route = Route::of(path, is_grpc);
        if ctx.route == Route::Nothing {
            ctx.group = self.requests.group(path);
            ctx.route = ctx.group.as_ref().map_or(Route::Nothing, |_| Route::Upstream);
        }
        let path = path.to_owned();
        // What is refused below costs its client as much as what is served.
        let admitted = self.admit(session, ctx);
        let answer = match ctx.route {
            _ if let Err((reason, answer)) = admitted => {
                self.edge.metrics.refused(reason);
                answer
            }
            _ if let Err(what) = names_one_host(session) => {
                self.edge.metrics.refused("malformed");
                Answer::bad_request(what)
            }
            _ if http1::has_dot_segments(&path) => Answer::bad_request(http1::DOT_SEGMENTS),
            Route::Nothing => Answer::not_found(&path),
            Route::Realtime => Answer::upgrade_required(),
            _ if is_grpc && !ctx.is_grpc => Answer::bad_request("gRPC needs HTTP/2"),
            Route::VoiceGrpc | Route::Upstream => {
                if ctx.is_grpc
                    && let Some(answer) = self.hold_call(session, ctx).await?
                {
                    answer
                } else {
                    ctx.body_awaited_since = Instant::now();
                    return Ok(false);
                }
            }
            _ => {
                Box::pin(self.attempt(session, ctx)).await?;
                return Ok(true);
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
        end_of_stream: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        let length = body.as_ref().map_or(0, Bytes::len);
        ctx.body_bytes += length as u64;
        if end_of_stream {
            ctx.upload = None;
        }
        let waited = ctx.body_awaited_since.elapsed();
        if !end_of_stream && waited > ctx.pace.patience() {
            self.edge.metrics.refused("body-too-slow");
            return Err(Error::new(ErrorType::ReadTimedout).into_down());
        }
        ctx.pace.waited(waited, length);
        ctx.body_awaited_since = Instant::now();
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
        let mut may_retry = true;
        if let Some(decision) = ctx.decision.take() {
            let failure = self.failure_of(At::Connect, &e);
            self.note_failure(ctx, &decision, &failure, None);
            ctx.tried.stack(&decision.region, decision.stack);
            may_retry = !failure.is_local();
        }
        if let Some(mut serving) = ctx.serving.take() {
            let is_local = Cause::within(e.root_cause()) == Cause::Local;
            serving.failed = !is_local;
            ctx.is_edge_full |= is_local;
            may_retry = !is_local;
        }
        e.set_retry(may_retry);
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
                    let client = peer_of(session).map(|device| device.ip());
                    let failure = self.failure_of(At::Sent, &e);
                    self.note_failure(ctx, &decision, &failure, client);
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
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "it switched protocols").into_up());
        }
        if let Some(decision) = &ctx.decision
            // What is said on the way is not the answer (RFC 9110 §15.2).
            && !response.status.is_informational()
        {
            let load = response.headers.get(LOAD_HEADER);
            let load = load.and_then(|load| load.to_str().ok()?.parse().ok());
            let now = daemon::clock::now();
            let says_full = load.is_some_and(|load| self.edge.seen.loaded(decision.stack, load, now));
            let client = peer_of(session).map(|device| device.ip());
            let took = ctx.connecting_since.elapsed();
            self.judge_status(ctx.route, decision, (response.status.as_u16(), says_full), took, client);
        }
        self.sign_response(response, ctx)
    }

    /// The region has done its part with the last byte of its answer, however long the device takes to take it.
    fn response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Duration>> {
        if end_of_stream {
            (ctx.in_flight, ctx.serving) = (None, None);
        }
        Ok(None)
    }

    /// Of a call, the trailers are the last.
    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        _trailers: &mut http::HeaderMap,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Bytes>> {
        (ctx.in_flight, ctx.serving) = (None, None);
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Box<Ctx>) -> FailToProxy {
        let region = ctx.decision.as_ref().map(|decision| decision.region.clone());
        let answer = match (e.etype(), e.esource()) {
            _ if ctx.is_edge_full && *e.esource() != ErrorSource::Downstream => Some(Answer::edge_full()),
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
            // What `attempts.rs` gave up was counted there.
            && ctx.is_grpc
        {
            let client = peer_of(session).map(|device| device.ip());
            let failure = self.failure_of(At::Sent, e);
            let why = format!("request: {}", failure.why);
            self.edge.metrics.connect(&decision.region, "broken");
            self.edge
                .blame(decision, Failed::Request { client }, failure.facts, &why);
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

/// Whether a request says in one way which host it is for. Those of HTTP/1 were looked at when their head was read.
fn names_one_host(session: &Session) -> std::result::Result<(), &'static str> {
    if !session.as_ref().is_http2() {
        return Ok(());
    }
    let request = session.req_header();
    let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let hosts = request.headers.get_all(http::header::HOST);
    let host = hosts.iter().next_back().map(http::HeaderValue::as_bytes);
    http1::check_host(authority, host, hosts.iter().count())
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
    let is_head = session.req_header().method == Method::HEAD;
    if !session.as_mut().is_body_done() {
        // What was refused need not be read to its end, however long that is.
        session.set_keepalive(None);
    }
    session.write_response_header(Box::new(head), is_head).await?;
    if is_head {
        // RFC 9110 §9.3.2.
        return Ok(());
    }
    session.write_response_body(Some(body), true).await
}
