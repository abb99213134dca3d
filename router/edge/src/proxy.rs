//! HTTP requests: the same choice of region as for sessions, carried by pingora.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::{
    Error, ErrorSource, ErrorType, Result,
    modules::http::HttpModules,
    protocols::Digest,
    upstreams::peer::{H1UpgradePolicy, HttpPeer, HttpUpstreamRequestPolicy},
};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use routing::{Decision, Table, User, user};
use topology::RegionId;

use crate::{
    Edge,
    answer::Answer,
    head::{REALTIME, USER, bearer, query},
    sessions::Busy,
};

/// Chooses regions for pingora's HTTP proxy.
pub struct Gateway(pub Arc<Edge>);

/// One request. It holds one plan from beginning to end.
pub struct Ctx {
    _busy: Busy,
    table: Option<Arc<Table>>,
    route: Route,
    decision: Option<Decision>,
    tried: Vec<RegionId>,
    connecting_since: Instant,
    body_bytes: u64,
}

impl Gateway {
    /// Whether a request is let in; if not, for what reason and with which answer.
    fn admit(&self, session: &Session) -> std::result::Result<(), (&'static str, Answer)> {
        let client = session.client_addr().and_then(|client| client.as_inet());
        if let Some(client) = client {
            let admitted = self.0.admission.request(client.ip());
            admitted.map_err(|refusal| (refusal.as_str(), refusal.answer()))?;
        }
        let bytes_max = self.0.config.limits.body_bytes_max;
        let length = session.req_header().headers.get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > bytes_max) {
            return Err(("body-too-large", Answer::body_too_large(bytes_max)));
        }
        Ok(())
    }
}

/// What is proxied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Audio,
    Models,
    Voice,
    Health,
    Realtime,
    Nothing,
}

impl Route {
    fn of(path: &str) -> Self {
        match path {
            "/health" => Self::Health,
            "/v1/models" => Self::Models,
            REALTIME => Self::Realtime,
            _ if path.starts_with("/v1/audio/") => Self::Audio,
            _ if path.starts_with("/v1/models/") => Self::Models,
            _ if path.starts_with("/api/v1/voice/") => Self::Voice,
            _ => Self::Nothing,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Models => "models",
            Self::Voice => "voice",
            Self::Health => "health",
            Self::Realtime => "realtime",
            Self::Nothing => "nothing",
        }
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx {
            _busy: self.0.sessions.busy(),
            table: self.0.table(),
            route: Route::Nothing,
            decision: None,
            tried: Vec::new(),
            connecting_since: Instant::now(),
            body_bytes: 0,
        }
    }

    /// None of pingora's: it would look at every answer for something to compress, and nothing is compressed here.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let path = session.req_header().uri.path();
        ctx.route = Route::of(path);
        let answer = match ctx.route {
            Route::Nothing => Answer::not_found(path),
            Route::Realtime => Answer::upgrade_required(),
            Route::Audio | Route::Models | Route::Voice | Route::Health => match self.admit(session) {
                Ok(()) => return Ok(false),
                Err((reason, answer)) => {
                    self.0.metrics.refused(reason);
                    answer
                }
            },
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
        ctx: &mut Ctx,
    ) -> Result<()> {
        ctx.body_bytes += body.as_ref().map_or(0, Bytes::len) as u64;
        if ctx.body_bytes > self.0.config.limits.body_bytes_max {
            self.0.metrics.refused("body-too-large");
            return Err(Error::explain(ErrorType::HTTPStatus(413), "the body is too large"));
        }
        Ok(())
    }

    /// Asked again for every attempt; what was tried is never tried again.
    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let edge = &self.0;
        let now = daemon::clock::now();
        let address = session.client_addr().and_then(|client| client.as_inet()).copied();
        let client = session.client_addr().map(ToString::to_string).unwrap_or_default();
        let request = session.req_header();
        let target = request.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
        let of = |header: &str, parameter: &str| {
            let value = request.headers.get(header).and_then(|value| value.to_str().ok());
            value.or_else(|| query(target, parameter)).map(str::to_owned)
        };
        let affinity = of("meridian-affinity", "affinity").and_then(|token| edge.affinity(&token, now));
        let session_key = of("meridian-session", "session").unwrap_or(client);
        let token = || {
            let value = request.headers.get("authorization")?.to_str().ok()?;
            bearer(value).map(str::to_owned)
        };
        let name = match (&ctx.table, address) {
            (Some(table), Some(client)) if table.splits_users() => {
                user::name(of(USER, "user").as_deref(), token().as_deref(), client.ip())
            }
            _ => String::new(),
        };
        let user = User {
            name: &name,
            version: None,
        };
        let decision = ctx
            .table
            .as_ref()
            .filter(|_| ctx.tried.len() < edge.config.limits.regions_tried_max)
            .and_then(|table| {
                edge.seen
                    .pick(table, &session_key, user, affinity.as_ref(), &ctx.tried, now)
            })
            .ok_or_else(|| Error::explain(ErrorType::HTTPStatus(503), "no region took the request"))?;
        let timeouts = &edge.config.timeouts;
        let mut peer = HttpPeer::new(decision.stack, false, String::new());
        peer.options.connection_timeout = Some(timeouts.connect.0);
        peer.options.total_connection_timeout = Some(timeouts.connect.0);
        peer.options.read_timeout = Some(timeouts.answer.0);
        peer.options.write_timeout = Some(timeouts.answer.0);
        // Shorter than a stack keeps its end open, so that a request rarely meets a connection that is being closed.
        peer.options.idle_timeout = Some(Duration::from_secs(15));
        peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy {
            // Sessions have a tunnel of their own; no other request becomes one.
            h1_upgrade: H1UpgradePolicy::Deny,
            ..HttpUpstreamRequestPolicy::standard()
        };
        edge.note_version(&decision);
        ctx.decision = Some(decision);
        ctx.connecting_since = Instant::now();
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if let Some(decision) = &ctx.decision
            && !reused
        {
            let took = ctx.connecting_since.elapsed();
            self.0.metrics.connect(&decision.region, "ok");
            self.0.metrics.connect_took(&decision.region, took);
            self.0.seen.reached(&decision.region, took);
            self.0.seen.answered(&decision.region, took);
        }
        Ok(())
    }

    /// Nothing was sent, so another region may be asked, whatever the method.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        if let Some(decision) = ctx.decision.take() {
            let timed_out = matches!(e.etype(), ErrorType::ConnectTimedout);
            let outcome = if timed_out { "connect-timeout" } else { "connect-failed" };
            self.0.metrics.connect(&decision.region, outcome);
            self.0
                .region_failed(&decision.region, &format!("connect: {}", e.etype().as_str()));
            tracing::info!(region = %decision.region, stack = %decision.stack, error = %e, "region did not take a request");
            ctx.tried.push(decision.region);
        }
        e.set_retry(true);
        e
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _ctx: &mut Ctx,
    ) -> Result<()> {
        // What a device says about where it comes from is no evidence.
        request.remove_header("X-Forwarded-For");
        if let Some(client) = session.client_addr().and_then(|client| client.as_inet()) {
            request.insert_header("X-Forwarded-For", client.ip().to_string())?;
        }
        request.insert_header("Meridian-Edge", self.0.id.as_str())
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if let Some(decision) = &ctx.decision {
            response.insert_header("Meridian-Region", decision.region.as_str())?;
            let token = self
                .0
                .config
                .affinity_key
                .0
                .issue(&decision.region, daemon::clock::now());
            response.insert_header("Meridian-Affinity", token)?;
        }
        response.insert_header("Meridian-Edge", self.0.id.as_str())
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let region = ctx.decision.as_ref().map(|decision| decision.region.clone());
        let answer = match (e.etype(), e.esource()) {
            (ErrorType::HTTPStatus(503), _) | (_, ErrorSource::Upstream) if region.is_none() => {
                let message = "no region could take the request; try again";
                Some(Answer::unavailable("no_region", message, 2))
            }
            (ErrorType::HTTPStatus(413), _) => Some(Answer::body_too_large(self.0.config.limits.body_bytes_max)),
            (error, ErrorSource::Upstream) => {
                let region = region.as_ref().map_or("", RegionId::as_str);
                let (status, what) = match error {
                    ErrorType::ReadTimedout => (http::StatusCode::GATEWAY_TIMEOUT, "did not answer in time"),
                    _ => (http::StatusCode::BAD_GATEWAY, "failed while it answered"),
                };
                Some(Answer::region_failed(status, format!("region {region} {what}")))
            }
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
        if let Some(region) = &region
            && *e.esource() == ErrorSource::Upstream
        {
            self.0.metrics.connect(region, "broken");
            self.0
                .region_failed(region, &format!("request: {}", e.etype().as_str()));
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

    fn suppress_error_log(&self, _session: &Session, _ctx: &Ctx, _error: &Error) -> bool {
        // `logging` below says it, with our words.
        true
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Ctx) {
        let status = session
            .response_written()
            .map_or(0, |response| response.status.as_u16());
        self.0.metrics.http(ctx.route.as_str(), status);
        let region = ctx.decision.as_ref().map(|decision| decision.region.as_str());
        let why = ctx.decision.as_ref().map(|decision| decision.why.as_str());
        let (route, tried) = (ctx.route.as_str(), &ctx.tried);
        if let Some(error) = e {
            tracing::info!(route, status, region, why, ?tried, %error, "request failed");
        } else {
            tracing::debug!(route, status, region, why, ?tried, "request");
        }
    }
}

async fn write(session: &mut Session, answer: &Answer) -> Result<()> {
    let body = answer.body();
    let mut head = ResponseHeader::build(answer.status, Some(4))?;
    head.insert_header("Content-Type", "application/json")?;
    head.insert_header("Content-Length", body.len())?;
    for (name, value) in &answer.headers {
        head.insert_header(*name, value)?;
    }
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(body), true).await
}
