//! One probe of one stack: its gateway must answer, and a spoken question must get the right reply.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use identity::{Identity, Peer, Speaks};
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use topology::{Component, RegionId, Topology};
use verdict::{Observation, Source};

use client::{
    Call, CallError, CallOptions, Pacing, Stage, Turn, TurnEnd, Utterance,
    utterance::{PROBE_INTENT, PROBE_TRANSCRIPT},
};

use crate::{Cause, Lateness, texts};

/// Largest `/health` page, in bytes. A stack's page takes less than a kilobyte.
const HEALTH_BYTES_MAX: usize = 64 << 10;
/// The deadline of a spoken turn, as a multiple of the deadline of one probe. The policy judges ASR latencies above the
/// probe's deadline, so a slow turn must be measured and not cut.
const TURN_DEADLINES: u32 = 2;

/// The observations of one tick, merged to one entry per region, component, source and stack.
#[derive(Debug, Default)]
pub(crate) struct Observed(BTreeMap<Key, Observation>);

type Key = (RegionId, Component, Source, Option<SocketAddr>);

impl Observed {
    /// The observation of a component of one stack.
    pub(crate) fn of(&mut self, region: &RegionId, stack: SocketAddr, component: Component) -> &mut Observation {
        self.entry(region, component, Source::Probe, Some(stack))
    }

    /// The observation of the gateway of one stack.
    pub(crate) fn gateway(&mut self, region: &RegionId, stack: SocketAddr) -> &mut Observation {
        self.of(region, stack, Component::Gateway)
    }

    pub(crate) fn merge(&mut self, other: &Observation) {
        self.entry(&other.region, other.component, other.source, other.stack)
            .merge(other);
    }

    pub(crate) fn absorb(&mut self, other: &Observed) {
        other.0.values().for_each(|observation| self.merge(observation));
    }

    /// Regions whose gateways were probed and gave no successful answer on any stack.
    pub(crate) fn unanswered(&self) -> BTreeSet<RegionId> {
        let mut answers: BTreeMap<&RegionId, bool> = BTreeMap::new();
        for ((region, component, source, _), observed) in &self.0 {
            if (*component, *source) == (Component::Gateway, Source::Probe) && observed.samples() > 0 {
                *answers.entry(region).or_default() |= observed.succeeded > 0;
            }
        }
        let unanswered = answers.into_iter().filter(|(_, answers)| !answers);
        unanswered.map(|(region, _)| region.clone()).collect()
    }

    /// Stacks whose gateways gave a successful answer.
    pub(crate) fn answering(&self) -> BTreeSet<SocketAddr> {
        let answered = |((_, component, source, stack), observed): (&Key, &Observation)| {
            let answers = (*component, *source) == (Component::Gateway, Source::Probe) && observed.succeeded > 0;
            stack.filter(|_| answers)
        };
        self.0.iter().filter_map(answered).collect()
    }

    pub(crate) fn into_observations(self) -> Vec<Observation> {
        self.0.into_values().collect()
    }

    fn entry(
        &mut self,
        region: &RegionId,
        component: Component,
        source: Source,
        stack: Option<SocketAddr>,
    ) -> &mut Observation {
        let key = (region.clone(), component, source, stack);
        self.0.entry(key).or_insert_with(|| Observation {
            stack,
            ..Observation::new(region.clone(), component, source)
        })
    }
}

/// Longest time that one spoken probe can take: opening the call, and the turn.
pub(crate) fn spoken_longest(deadline: Duration) -> Duration {
    deadline * (1 + TURN_DEADLINES)
}

/// The identity that this prober shows to stacks; `None` for plain text.
pub(crate) type Shows<'a> = Option<&'a Arc<Identity>>;

/// The facts about the connection of a probe, also of one whose answer did not come.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    /// The round-trip time of connecting.
    pub(crate) round_trip: Option<Duration>,
    /// The stack with the certificate that it showed.
    pub(crate) shown: Option<(SocketAddr, Peer)>,
}

/// Sends `GET /health` to the gateway. Returns the observations from the answer, and the facts about the connection.
pub(crate) async fn gateway(
    shows: Shows<'_>,
    region: &RegionId,
    stack: SocketAddr,
    deadline: Duration,
    lateness: &Lateness,
) -> (Observed, Reached) {
    let mut observed = Observed::default();
    let started = Instant::now();
    let mut reached = Reached::default();
    let answer = timeout(deadline, ask_health(shows, region, stack, &mut reached)).await;
    let took_ms = milliseconds(started.elapsed());
    match answer.unwrap_or(Err(HealthError::TimedOut(deadline))) {
        Ok(health) => {
            observed.gateway(region, stack).succeed(took_ms);
            // The spoken turn judges the other components. The session store is visible only here.
            match health
                .pointer("/components/session-store/status")
                .and_then(Value::as_str)
            {
                Some("ok") => observed.of(region, stack, Component::SessionStore).succeed(took_ms),
                Some(status) => observed
                    .of(region, stack, Component::SessionStore)
                    .fail(&texts::health_status(status)),
                None => {}
            }
        }
        Err(error) if error.is_own(lateness) => not_seen(region, stack, &error),
        Err(error) => observed.gateway(region, stack).fail(&error.to_string()),
    }
    (observed, reached)
}

/// Logs a probe that failed on the prober's side. It does not count against the stack.
fn not_seen(region: &RegionId, stack: SocketAddr, why: &dyn std::fmt::Display) {
    tracing::warn!(%region, %stack, %why, "{}", texts::NOT_COUNTED);
}

/// The reason for which there is no usable `/health` page.
#[derive(Debug, thiserror::Error)]
enum HealthError {
    #[error("{}", texts::cannot_connect(.0))]
    Connect(#[source] io::Error),
    #[error("{}", texts::health_page(innermost(.0)))]
    Get(#[source] hyper::Error),
    #[error("{}", texts::health_late(*.0))]
    TimedOut(Duration),
    #[error("{}", texts::health_page(.0))]
    Answer(String),
    #[error("{}", texts::WANTS_PROOF)]
    WantsProof,
}

impl HealthError {
    /// Whether the prober is at fault, so that the error says nothing about the stack.
    fn is_own(&self, lateness: &Lateness) -> bool {
        match self {
            Self::TimedOut(waited) => lateness.is_late_for(*waited),
            Self::Connect(_) | Self::Get(_) => Cause::within(self).is_own(),
            Self::Answer(_) => false,
            Self::WantsProof => true,
        }
    }
}

/// The `/health` page of a working gateway. The error says why the gateway does not work. Every probe opens a new connection, because
/// it must show whether that works.
async fn ask_health(
    shows: Shows<'_>,
    region: &RegionId,
    stack: SocketAddr,
    reached: &mut Reached,
) -> Result<Value, HealthError> {
    let started = Instant::now();
    let tcp = TcpStream::connect(stack).await.map_err(HealthError::Connect)?;
    reached.round_trip = Some(started.elapsed());
    let link = identity::secure(shows, tcp, region, stack, Speaks::Http1).await;
    let link = link.map_err(HealthError::Connect)?;
    reached.shown = link.peer().map(|peer| (stack, peer.clone()));

    let (mut asking, connection) = http1::handshake(TokioIo::new(link)).await.map_err(HealthError::Get)?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get("/health")
        .header(http::header::HOST, stack.to_string())
        .header(http::header::USER_AGENT, wire::PROBE_AGENT)
        .body(Empty::<Bytes>::new())
        .expect("all parts of this request are valid");
    let mut response = asking.send_request(request).await.map_err(HealthError::Get)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(frame) = response.frame().await {
        let frame = frame.map_err(HealthError::Get)?;
        body.extend_from_slice(frame.data_ref().map_or(&[], |piece| piece));
        if body.len() > HEALTH_BYTES_MAX {
            let what = texts::health_too_long(HEALTH_BYTES_MAX);
            return Err(HealthError::Answer(what));
        }
    }
    let health = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let gateway_says = health.pointer("/components/gateway/status").and_then(Value::as_str);
    let stack_says = health.pointer("/status").and_then(Value::as_str);
    match (status.as_u16(), stack_says, gateway_says) {
        (200, _, _) => Ok(health),
        // The gateway works and reports a failing component. The observations of that component must show it; if the
        // gateway counted as failed, the gateway's fast trigger would fire in place of the component's slow one.
        (503, Some("failing"), Some("ok")) => Ok(health),
        // A stack that asks for proof is well; the rest of the fleet has to follow it.
        (426, ..) if shows.is_none() => Err(HealthError::WantsProof),
        (code, Some(says), _) => Err(HealthError::Answer(texts::code_and_status(code, says))),
        (code, None, _) => Err(HealthError::Answer(code.to_string())),
    }
}

/// Asks the stack for the time in speech, and judges every component that the answer passed through.
pub(crate) async fn spoken_turn(
    shows: Shows<'_>,
    region: &RegionId,
    stack: SocketAddr,
    deadline: Duration,
    lateness: &Lateness,
) -> Observed {
    let options = CallOptions {
        headers: vec![("user-agent".to_owned(), wire::PROBE_AGENT.to_owned())],
        connect_timeout: deadline,
        turn_timeout: deadline * TURN_DEADLINES,
        turn_end: TurnEnd::Commit,
        ..CallOptions::default()
    };
    let started = Instant::now();
    let mut observed = Observed::default();
    let connecting = identity::dial(shows, region, stack, Speaks::Http1);
    match Call::open_by(stack, &options, connecting).await {
        Ok(mut call) => {
            observed.gateway(region, stack).succeed(milliseconds(started.elapsed()));
            let result = call.turn(Utterance::probe(), Pacing::Immediate).await;
            call.hang_up().await;
            match &result {
                Err(error) if is_own(error, lateness) => not_seen(region, stack, error),
                result => judge(&mut observed, region, stack, result),
            }
        }
        Err(error) if is_own(&error, lateness) => not_seen(region, stack, &error),
        Err(error) => observed.gateway(region, stack).fail(&error.to_string()),
    }
    observed
}

/// Whether a call failed for a reason on the caller's side.
fn is_own(error: &CallError, lateness: &Lateness) -> bool {
    match error {
        CallError::ConnectTimeout { waited, .. } | CallError::TurnTimeout { waited, .. } => {
            lateness.is_late_for(*waited)
        }
        error => Cause::within(error).is_own(),
    }
}

fn judge(observed: &mut Observed, region: &RegionId, stack: SocketAddr, result: &Result<Turn, CallError>) {
    match result {
        Ok(turn) => judge_answer(observed, region, stack, turn),
        Err(CallError::TurnTimeout { stage, .. } | CallError::TurnFailed { stage, .. }) => {
            let why = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            let guilty = match stage {
                Stage::Transcript => Component::Asr,
                Stage::Reply => Component::Skills,
                Stage::Audio | Stage::End => Component::Tts,
            };
            observed.of(region, stack, guilty).fail(&why);
        }
        // The connection broke during the turn.
        Err(error) => observed.gateway(region, stack).fail(&error.to_string()),
    }
}

fn judge_answer(observed: &mut Observed, region: &RegionId, stack: SocketAddr, turn: &Turn) {
    let understood = turn.intent == PROBE_INTENT;
    let heard_right = turn.transcript.trim().eq_ignore_ascii_case(PROBE_TRANSCRIPT);
    // If the server sent no measurements of its own, the caller's measurement is the best available.
    let fallback = turn.first_audio.map(milliseconds).unwrap_or_default();
    let timings = &turn.timings;

    let asr = observed.of(region, stack, Component::Asr);
    if turn.transcript.trim().is_empty() {
        asr.fail(texts::NO_TRANSCRIPT);
        // A component that got no words cannot be judged by its result.
        return;
    }
    if understood || heard_right {
        asr.succeed(timings.asr_ms.unwrap_or(fallback));
    } else {
        asr.fail(&texts::other_transcript(&turn.transcript, PROBE_TRANSCRIPT));
    }
    if understood {
        observed
            .of(region, stack, Component::Nlu)
            .succeed(timings.nlu_ms.unwrap_or(fallback));
    } else if heard_right {
        let why = texts::other_intent(PROBE_TRANSCRIPT, &turn.intent, PROBE_INTENT);
        observed.of(region, stack, Component::Nlu).fail(&why);
    }
    let skills = observed.of(region, stack, Component::Skills);
    if turn.reply_text.trim().is_empty() {
        skills.fail(texts::NO_REPLY);
        return;
    }
    skills.succeed(timings.skill_ms.unwrap_or(fallback));
    let tts = observed.of(region, stack, Component::Tts);
    if turn.reply_audio.is_empty() {
        tts.fail(texts::NO_AUDIO);
    } else {
        tts.succeed(timings.tts_ms.unwrap_or(fallback));
    }
}

/// Probes every region once, all in parallel, as the holder of `identity`.
pub async fn probe_once(topology: &Topology, deadline: Duration, identity: Option<Arc<Identity>>) -> Vec<Observation> {
    let mut probes = JoinSet::new();
    for region in topology.regions.values() {
        for stack in region.stacks.iter().map(|stack| stack.address) {
            let (id, identity) = (region.id.clone(), identity.clone());
            let lateness = Lateness::default();
            probes.spawn(async move {
                let (mut observed, _) = gateway(identity.as_ref(), &id, stack, deadline, &lateness).await;
                let gateway_works = observed.gateway(&id, stack).failed == 0;
                if gateway_works {
                    observed.absorb(&spoken_turn(identity.as_ref(), &id, stack, deadline, &lateness).await);
                }
                observed
            });
        }
    }
    let mut all = Observed::default();
    while let Some(result) = probes.join_next().await {
        all.absorb(&result.unwrap_or_default());
    }
    all.into_observations()
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The innermost cause: "connection refused" says more than "error sending request".
fn innermost(error: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prober_that_lacks_descriptors_or_time_has_seen_nothing() {
        let errno = |number| io::Error::from_raw_os_error(number);
        let connect = |number| HealthError::Connect(errno(number));
        let call = |number| CallError::Connect {
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            source: errno(number),
        };
        let (on_time, late) = (Lateness::default(), Lateness::new(|_| true));
        // EMFILE and EADDRNOTAVAIL are the prober's fault; ECONNREFUSED is the stack's.
        for (number, own) in [(24, true), (99, true), (111, false)] {
            assert_eq!(connect(number).is_own(&on_time), own, "{number}");
            assert_eq!(is_own(&call(number), &on_time), own, "{number}");
            assert_eq!(connect(number).is_own(&late), own, "{number}: it was not waited for");
        }
        let silent = HealthError::TimedOut(Duration::from_secs(2));
        assert!(!silent.is_own(&on_time) && silent.is_own(&late));
        let answered = HealthError::Answer("500".to_owned());
        assert!(!answered.is_own(&late));
    }

    #[test]
    fn a_region_is_silent_when_none_of_its_stacks_answers() {
        let region = RegionId::new("us-east").unwrap();
        let stack = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut observed = Observed::default();
        assert!(observed.unanswered().is_empty());
        observed.gateway(&region, stack(1)).fail("refused");
        assert_eq!(observed.unanswered(), BTreeSet::from([region.clone()]));
        assert!(observed.answering().is_empty());
        observed.gateway(&region, stack(2)).succeed(5.0);
        assert!(observed.unanswered().is_empty());
        assert_eq!(observed.answering(), BTreeSet::from([stack(2)]));
    }
}
