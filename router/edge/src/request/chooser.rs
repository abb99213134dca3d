//! The choice of a region for a request, and the effect of its answer or failure on the next choice. Every path of a request holds
//! a [`Chooser`]: the fast path, the one that races regions, and pingora.
//!
//! When a region takes no connection, the edge asks the next one at once: it had sent nothing. Another attempt, after all regions
//! failed or a request broke, waits longer each time and comes out of a budget. The edge makes one only where running a request
//! twice is the same as running it once, and never once the device has a part of the answer.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use pingora_core::Result;
use pingora_http::ResponseHeader;
use routing::{Affinity, Decision, Table, User, breaker::Demand, user};

use crate::{
    Edge,
    accept::access::Refused,
    answer::Answer,
    cors::{Preflight, PreflightHeaders},
    edge::{Failed, session_key},
    fault::{Facts, Fault},
    http1::credential::{bearer, credential},
    http1::request::{USER, query},
    http1::{Body, Peer, Response, headers, headers::Provenance},
    request::choice::Choice,
    request::ctx::{Ctx, Proxied, RequestAdmission},
    request::exchange::{At, Failure},
    request::limits::{InFlight, Requests},
    request::pool::ConnectionPool,
    request::route::{Repeat, Route},
    request_id::REQUEST_ID,
    session::registry::Busy,
    stamp::{self, Stamp},
};

/// Chooses regions for HTTP requests.
#[derive(Clone)]
pub struct Chooser {
    pub(crate) edge: Arc<Edge>,
    pub(crate) requests: Arc<Requests>,
    /// Connections to regions that wait for the next request.
    pub(crate) pool: Arc<ConnectionPool>,
}

/// The facts about a requester by which the edge chooses a region.
pub(crate) struct RequesterId {
    pub(crate) client: Option<IpAddr>,
    session_key: String,
    affinity: Option<Affinity>,
    /// Empty unless a rollout splits users between versions.
    user: String,
}

impl Chooser {
    /// The chooser of this edge.
    pub fn new(edge: Arc<Edge>, requests: Arc<Requests>, kept_max: usize) -> Self {
        Self {
            requests,
            pool: Arc::new(ConnectionPool::new(kept_max)),
            edge,
        }
    }

    /// A region did not take a request, or broke it. Blames the side at fault, and keeps the answer for the device in case no
    /// region does better.
    pub(crate) fn note_failure(&self, ctx: &mut Ctx, at: &Decision, failure: &Failure, client: Option<IpAddr>) {
        let (failed, outcome, what) = match failure.at {
            At::Connect if failure.is_timeout() => (Failed::ToBegin, "connect-timeout", "connect"),
            At::Connect => (Failed::ToBegin, "connect-failed", "connect"),
            At::Sent => (Failed::Request { client }, "broken", "request"),
        };
        self.edge.metrics.connect(&at.region, outcome);
        let why = format!("{what}: {}", failure.why);
        let fault = self.edge.blame(at, failed, failure.facts, &why);
        let request_id = ctx.stamp.id.as_str();
        tracing::info!(%request_id, region = %at.region, stack = %at.stack, why, fault = fault.as_str(), "a region failed a request");
        ctx.choice.is_edge_full = fault == Fault::Edge;
        if failure.at == At::Sent {
            ctx.choice.failed = Some(failed_answer(at, failure.is_timeout()));
        }
    }

    /// The answer for a device that has nothing yet of the answer that broke off.
    pub(crate) fn region_failed(&self, ctx: &Ctx, failure: &Failure) -> Answer {
        match &ctx.choice.decision {
            Some(decision) => failed_answer(decision, failure.is_timeout()),
            None => ctx.choice.nowhere(),
        }
    }

    /// An answer broke off on its way to the device.
    pub(crate) fn broke_off(&self, ctx: &mut Ctx, status: u16, failure: &Failure, client: Option<IpAddr>) {
        ctx.choice.in_flight = None;
        if let Some(decision) = &ctx.choice.decision
            && failure.is_of_device()
        {
            self.edge.metrics.fault(&decision.region, Fault::Device.as_str());
        } else if let Some(decision) = &ctx.choice.decision {
            self.edge.metrics.connect(&decision.region, "broken");
            let why = format!("request: {}", failure.why);
            self.edge
                .blame(decision, Failed::Request { client }, failure.facts, &why);
        }
        self.done(ctx, status, Some(&failure.why));
    }

    /// Records the head of an answer. Returns whether another region may do better: this one failed, or has no room.
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
            .is_some_and(|load| self.edge.fleet.loaded(at.stack, load, now));
        self.judge_status(route, at, (response.status, says_full), took, client)
    }

    pub(crate) fn judge_status(
        &self,
        route: Route,
        at: &Decision,
        (status, says_full): (u16, bool),
        took: Duration,
        client: Option<IpAddr>,
    ) -> bool {
        let facts = Facts::answered(status, says_full);
        // A stack that reports a failing part of itself answers a question about its health well.
        let is_report = route == Route::Health && status == 503;
        if facts.fault() == Fault::Region && !is_report {
            self.edge.metrics.connect(&at.region, "failed");
            let why = format!("request: answered {status}");
            // The requests of one client may be the cause, and must not eject the stack for all others.
            let is_counted = client.is_some_and(|client| self.edge.fleet.traffic.has_lost(&at.region, client));
            if is_counted {
                self.edge.metrics.fault(&at.region, Fault::Region.as_str());
                self.edge.fleet.traffic.lost(&at.region, at.stack, None, client, &why);
            } else {
                self.edge.blame(at, Failed::Request { client }, facts, &why);
            }
            return true;
        }
        if matches!(status, 429 | 503) {
            // The answer proves only that the stack works. The load in it keeps other requests away.
            self.edge.metrics.connect(&at.region, "full");
            return true;
        }
        // Only an answer proves that the process works: the kernel accepts connections for one that hangs.
        self.answered(at, took);
        false
    }

    /// Longest time until a region begins its answer. After it the edge takes the region for dead, or asks another one as well.
    pub(crate) fn silence(&self, repeat: Repeat) -> Duration {
        let timeouts = &self.edge.config.timeouts;
        match repeat {
            Repeat::Quick | Repeat::Slow => timeouts.upgrade.0,
            Repeat::Never => timeouts.answer.0,
        }
    }

    /// The same where the edge asks another one as well anyway.
    pub(crate) fn silence_of_copy(&self, repeat: Repeat) -> Duration {
        let timeouts = &self.edge.config.timeouts;
        match repeat {
            Repeat::Quick => timeouts.upgrade.0,
            Repeat::Slow | Repeat::Never => timeouts.answer.0,
        }
    }

    /// Reads the requester from the headers and the target of a request.
    pub(crate) fn requester<'h>(
        &self,
        header: impl Fn(&str) -> Option<&'h str>,
        target: &'h str,
        client: Option<IpAddr>,
        table: Option<&Table>,
    ) -> RequesterId {
        let of = |name: &str, parameter: &str| header(name).or_else(|| query(target, parameter));
        let now = daemon::clock::now();
        let affinity =
            of("meridian-affinity", "affinity").and_then(|token| self.edge.affinity_tokens.verify(token, now));
        let address = client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let session_key = session_key(of("meridian-session", "session"), address);
        let user = match table {
            Some(table) if client.is_some() && table.splits_users() => {
                user::name(of(USER, "user"), header("authorization").and_then(bearer), address)
            }
            _ => String::new(),
        };
        RequesterId {
            client,
            session_key,
            affinity,
            user,
        }
    }

    /// Recognises the device of a request for a region, where this edge recognises devices, and counts the request for its tenant.
    pub(crate) fn recognise<'h>(
        &self,
        ctx: &mut Ctx,
        method: &str,
        header: impl Fn(&str) -> Option<&'h str>,
    ) -> std::result::Result<(), Refused> {
        let is_free = match ctx.route {
            // Load balancers have no credential.
            Route::Health => matches!(method, "GET" | "HEAD"),
            Route::Upstream | Route::Preflight | Route::Realtime | Route::Nothing => true,
            _ => false,
        };
        let Some(access) = self
            .edge
            .access
            .as_ref()
            .filter(|_| !is_free && ctx.admission.device.is_none())
        else {
            return Ok(());
        };
        let shown = credential(header("authorization"), std::iter::empty());
        let now = daemon::clock::now();
        let admitted = access.admit(shown, now)?;
        admitted.usage.begin(now)?;
        ctx.admission.device = Some(admitted);
        Ok(())
    }

    /// The facts that the edge adds to a request for its region.
    pub(crate) fn provenance<'c>(&'c self, ctx: &'c Ctx, device: Peer) -> Provenance<'c> {
        Provenance {
            device,
            edge: &self.edge.id,
            id: &ctx.stamp.id,
            tenant: ctx.admission.device.as_ref().map(|admitted| &*admitted.device.tenant),
            keeps_credentials: self.edge.access.is_some(),
        }
    }

    /// A request whose head is known no further than its stamp.
    pub(crate) fn begin(&self, busy: Busy, stamp: Stamp) -> Ctx {
        Ctx {
            _busy: busy,
            stamp,
            route: Route::Nothing,
            is_grpc: false,
            body: Body::Length(0),
            body_bytes: 0,
            is_last: false,
            is_counted: false,
            admission: RequestAdmission::default(),
            choice: Choice::new(self.edge.table(), self.edge.config.limits.regions_tried_max),
            proxied: Proxied::new(self.edge.config.pace()),
        }
    }

    /// Counts and logs the end of a request, so that a device that has its answer finds it counted. Later calls do nothing.
    pub(crate) fn done(&self, ctx: &mut Ctx, status: u16, error: Option<&str>) {
        if std::mem::replace(&mut ctx.is_counted, true) {
            return;
        }
        self.edge.metrics.http(ctx.route.as_str(), status);
        let region = ctx.choice.decision.as_ref().map(|decision| decision.region.as_str());
        let why = ctx.choice.decision.as_ref().map(|decision| decision.why.as_str());
        let (route, tried) = (ctx.route.as_str(), ctx.choice.tried.regions());
        let request_id = ctx.stamp.id.as_str();
        if let Some(error) = error {
            tracing::info!(%request_id, route, status, region, why, ?tried, error, "request failed");
        } else {
            tracing::debug!(%request_id, route, status, region, why, ?tried, "request");
        }
    }

    /// Chooses the next region of this round that has a slot for the request.
    pub(crate) fn choose(
        &self,
        ctx: &mut Ctx,
        requester: &RequesterId,
        wanted: Demand,
    ) -> Option<(Decision, InFlight)> {
        let table = ctx.choice.table.clone()?;
        loop {
            let now = daemon::clock::now();
            let affinity = requester.affinity.as_ref();
            let user = User {
                name: &requester.user,
                version: None,
            };
            let decision =
                self.edge
                    .fleet
                    .pick(&table, &requester.session_key, user, affinity, &ctx.choice.tried, now)?;
            match self.requests.begin(&decision.region, wanted) {
                Ok(mut in_flight) => {
                    self.edge.note_version(&decision, &ctx.stamp.id);
                    in_flight.at_stack = Some(self.edge.begins(&decision));
                    return Some((decision, in_flight));
                }
                Err(limit) => {
                    ctx.choice.overloaded = Some(limit);
                    ctx.choice.tried.region(&decision.region);
                }
            }
        }
    }

    /// Takes a further round out of the budget of retries, after all regions of this one were asked and failed. Returns the
    /// pause before it, or nothing when there is no further round.
    pub(crate) fn another_round(&self, choice: &mut Choice) -> Option<Duration> {
        // No region serves, or all are at their limits, or the edge is out of a resource itself: another round soon would
        // make that worse.
        if choice.tried.regions().is_empty() || choice.overloaded.is_some() || choice.is_edge_full {
            return None;
        }
        let pause = self.retry(choice)?;
        choice.tried.clear();
        Some(pause)
    }

    /// A region accepted a connection.
    pub(crate) fn connected(&self, decision: &Decision, took: Duration) {
        self.edge.metrics.connect(&decision.region, "ok");
        self.edge.metrics.connect_took(&decision.region, took);
        let now = daemon::clock::now();
        self.edge.fleet.reached(&decision.region, decision.stack, took, now);
    }

    /// A region began to answer a request.
    pub(crate) fn answered(&self, decision: &Decision, took: Duration) {
        let now = daemon::clock::now();
        self.edge.fleet.accepted(&decision.region, decision.stack, took, now);
    }

    /// The answer to a browser's preflight; `None` for any other request, and for a preflight to an operator's server.
    pub(crate) fn answer_to_preflight<'h>(
        &self,
        ctx: &mut Ctx,
        (method, path): (&str, &str),
        header: impl Fn(&str) -> Option<&'h str>,
    ) -> Option<std::result::Result<PreflightHeaders, Answer>> {
        let cors = &self.edge.config.cors;
        if method != "OPTIONS" || !cors.is_on() {
            return None;
        }
        let origin = header("origin")?;
        header("access-control-request-method")?;
        if ctx.route == Route::Nothing && self.requests.group(path).is_some() || ctx.route == Route::Upstream {
            return None;
        }
        ctx.route = Route::Preflight;
        let headers = header("access-control-request-headers").unwrap_or("");
        let answer = cors.answer(Preflight { origin, headers });
        Some(answer.ok_or_else(|| Answer::origin_not_allowed(origin)))
    }

    pub(crate) fn sign_response(&self, response: &mut ResponseHeader, ctx: &Ctx) -> Result<()> {
        if ctx.choice.decision.is_none() {
            // An operator's server sends its own headers for browsers.
            response.insert_header(REQUEST_ID, ctx.stamp.id.as_str())?;
        }
        if let Some(decision) = &ctx.choice.decision {
            stamp::clear(response);
            for name in headers::of_edge_in_answers() {
                response.remove_header(name);
            }
            ctx.stamp.insert(&self.edge.config.cors, response)?;
            response.insert_header("Meridian-Region", decision.region.as_str())?;
            let token = self.edge.affinity_tokens.issue(decision, daemon::clock::now());
            response.insert_header("Meridian-Affinity", &*token)?;
        }
        response.insert_header("Meridian-Edge", self.edge.id.as_str())
    }

    /// Takes a retry out of the budget. Returns the pause before it, or nothing when the budget allows none.
    pub(crate) fn retry(&self, choice: &mut Choice) -> Option<Duration> {
        let pause = self.requests.retry(choice.retries, daemon::clock::now())?;
        choice.retries += 1;
        Some(pause)
    }
}

/// The answer that tells how a region failed.
fn failed_answer(at: &Decision, is_timeout: bool) -> Answer {
    Answer::failed_while_answering(format_args!("region {}", at.region), is_timeout)
}
