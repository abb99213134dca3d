//! One look at one stack: is the gateway there, and does a spoken question get its answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use topology::{Component, RegionId, Topology};
use verdict::{Observation, Source};

use crate::{
    Call, CallError, CallOptions, Cause, Lateness, Pacing, Stage, Turn, TurnEnd, Utterance,
    utterance::{PROBE_INTENT, PROBE_TRANSCRIPT},
};

/// Largest `/health` page read; a stack's takes under a kilobyte.
const HEALTH_BYTES_MAX: usize = 64 << 10;
/// A spoken turn gets this many times the patience of one probe. The policy judges ASR latencies above the probe timeout,
/// so a slow turn must be measured rather than cut.
const TURN_PATIENCE: u32 = 2;

/// What was seen, merged to one entry per region and component, and of the gateway per stack.
#[derive(Debug, Default)]
pub(crate) struct Seen(BTreeMap<Key, Observation>);

type Key = (RegionId, Component, Source, Option<SocketAddr>);

impl Seen {
    pub(crate) fn of(&mut self, region: &RegionId, component: Component) -> &mut Observation {
        self.entry(region, component, Source::Probe, None)
    }

    /// The gateway of one stack.
    pub(crate) fn gateway(&mut self, region: &RegionId, stack: SocketAddr) -> &mut Observation {
        self.entry(region, Component::Gateway, Source::Probe, Some(stack))
    }

    pub(crate) fn merge(&mut self, other: &Observation) {
        self.entry(&other.region, other.component, other.source, other.stack)
            .merge(other);
    }

    pub(crate) fn absorb(&mut self, other: &Seen) {
        other.0.values().for_each(|observation| self.merge(observation));
    }

    /// Regions whose gateway was asked and never answered, at none of their stacks.
    pub(crate) fn unanswered(&self) -> BTreeSet<RegionId> {
        let mut answers: BTreeMap<&RegionId, bool> = BTreeMap::new();
        for ((region, component, source, _), seen) in &self.0 {
            if (*component, *source) == (Component::Gateway, Source::Probe) && seen.samples() > 0 {
                *answers.entry(region).or_default() |= seen.succeeded > 0;
            }
        }
        let unanswered = answers.into_iter().filter(|(_, answers)| !answers);
        unanswered.map(|(region, _)| region.clone()).collect()
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

/// Longest time one spoken probe can take: opening the call and the turn.
pub(crate) fn spoken_longest(patience: Duration) -> Duration {
    patience * (1 + TURN_PATIENCE)
}

/// An HTTP client for [`gateway`]: every probe connects anew, because the question is whether that works.
pub(crate) fn http_client() -> reqwest::Client {
    reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .user_agent("meridian-probe")
        .build()
        .expect("a client without TLS and proxies has nothing that can fail to load")
}

/// Asks the gateway for `GET /health`. Returns what it says, and the round-trip time of connecting.
pub(crate) async fn gateway(
    http: &reqwest::Client,
    region: &RegionId,
    stack: SocketAddr,
    patience: Duration,
    lateness: &Lateness,
) -> (Seen, Option<Duration>) {
    let mut seen = Seen::default();
    let started = Instant::now();
    let mut round_trip = None;
    let answer = timeout(patience, ask_health(http, stack, &mut round_trip)).await;
    let took_ms = milliseconds(started.elapsed());
    match answer.unwrap_or(Err(HealthError::TimedOut(patience))) {
        Ok(health) => {
            seen.gateway(region, stack).succeed(took_ms);
            // The other components are judged by the spoken turn; only the store shows nowhere else.
            match health
                .pointer("/components/session-store/status")
                .and_then(Value::as_str)
            {
                Some("ok") => seen.of(region, Component::SessionStore).succeed(took_ms),
                Some(status) => seen
                    .of(region, Component::SessionStore)
                    .fail(&format!("health says {status}")),
                None => {}
            }
        }
        Err(error) if error.is_own(lateness) => not_seen(region, stack, &error),
        Err(error) => seen.gateway(region, stack).fail(&error.to_string()),
    }
    (seen, round_trip)
}

/// The prober itself could not look, so nothing is held against anybody.
fn not_seen(region: &RegionId, stack: SocketAddr, why: &dyn std::fmt::Display) {
    tracing::warn!(%region, %stack, %why, "this node lacks descriptors, ports or time to probe; the probe does not count");
}

/// Why there is no `/health` page.
#[derive(Debug, thiserror::Error)]
enum HealthError {
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("GET /health: {}", innermost(.0))]
    Get(#[source] reqwest::Error),
    #[error("no answer to GET /health within {0:?}")]
    TimedOut(Duration),
    #[error("GET /health: {0}")]
    Answer(String),
}

impl HealthError {
    /// Whether it says something of the prober, and nothing of the stack.
    fn is_own(&self, lateness: &Lateness) -> bool {
        match self {
            Self::TimedOut(waited) => lateness.is_late_for(*waited),
            Self::Connect(_) | Self::Get(_) => Cause::within(self) == Cause::Local,
            Self::Answer(_) => false,
        }
    }
}

/// The `/health` page of a gateway that works; the error says why it does not.
async fn ask_health(
    http: &reqwest::Client,
    stack: SocketAddr,
    round_trip: &mut Option<Duration>,
) -> Result<Value, HealthError> {
    let started = Instant::now();
    TcpStream::connect(stack).await.map_err(HealthError::Connect)?;
    *round_trip = Some(started.elapsed());

    let mut response = http
        .get(format!("http://{stack}/health"))
        .send()
        .await
        .map_err(HealthError::Get)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(HealthError::Get)? {
        body.extend_from_slice(&piece);
        if body.len() > HEALTH_BYTES_MAX {
            let what = format!("the page is over {HEALTH_BYTES_MAX} bytes");
            return Err(HealthError::Answer(what));
        }
    }
    let health = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let gateway_says = health.pointer("/components/gateway/status").and_then(Value::as_str);
    let stack_says = health.pointer("/status").and_then(Value::as_str);
    match (status.as_u16(), stack_says, gateway_says) {
        (200, _, _) => Ok(health),
        // A gateway that works and says that something behind it does not: that is for the other components to show, or
        // a slow trigger would turn into the gateway's fast one.
        (503, Some("failing"), Some("ok")) => Ok(health),
        (code, Some(says), _) => Err(HealthError::Answer(format!("{code}, {says}"))),
        (code, None, _) => Err(HealthError::Answer(code.to_string())),
    }
}

/// Asks what time it is, and judges every component that the answer passed through.
pub(crate) async fn spoken_turn(region: &RegionId, stack: SocketAddr, patience: Duration, lateness: &Lateness) -> Seen {
    let options = CallOptions {
        headers: vec![("user-agent".to_owned(), "meridian-probe".to_owned())],
        connect_timeout: patience,
        turn_timeout: patience * TURN_PATIENCE,
        turn_end: TurnEnd::Commit,
        ..CallOptions::default()
    };
    let started = Instant::now();
    let mut seen = Seen::default();
    match Call::open(stack, &options).await {
        Ok(mut call) => {
            seen.gateway(region, stack).succeed(milliseconds(started.elapsed()));
            let result = call.turn(Utterance::probe(), Pacing::Immediate).await;
            call.hang_up().await;
            match &result {
                Err(error) if is_own(error, lateness) => not_seen(region, stack, error),
                result => judge(&mut seen, region, stack, result),
            }
        }
        Err(error) if is_own(&error, lateness) => not_seen(region, stack, &error),
        Err(error) => seen.gateway(region, stack).fail(&error.to_string()),
    }
    seen
}

/// Whether a call failed for want of something of the caller's own.
fn is_own(error: &CallError, lateness: &Lateness) -> bool {
    match error {
        CallError::ConnectTimeout { waited, .. } | CallError::TurnTimeout { waited, .. } => {
            lateness.is_late_for(*waited)
        }
        error => Cause::within(error) == Cause::Local,
    }
}

fn judge(seen: &mut Seen, region: &RegionId, stack: SocketAddr, result: &Result<Turn, CallError>) {
    match result {
        Ok(turn) => judge_answer(seen, region, turn),
        Err(CallError::TurnTimeout { stage, .. } | CallError::TurnFailed { stage, .. }) => {
            let why = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
            let guilty = match stage {
                Stage::Transcript => Component::Asr,
                Stage::Reply => Component::Skills,
                Stage::Audio | Stage::End => Component::Tts,
            };
            seen.of(region, guilty).fail(&why);
        }
        // The connection itself broke under the turn.
        Err(error) => seen.gateway(region, stack).fail(&error.to_string()),
    }
}

fn judge_answer(seen: &mut Seen, region: &RegionId, turn: &Turn) {
    let understood = turn.intent == PROBE_INTENT;
    let heard_right = turn.transcript.trim().eq_ignore_ascii_case(PROBE_TRANSCRIPT);
    // Without the server's own measurements the caller's is the best there is.
    let fallback = turn.first_audio.map(milliseconds).unwrap_or_default();
    let timings = &turn.timings;

    let asr = seen.of(region, Component::Asr);
    if turn.transcript.trim().is_empty() {
        asr.fail("nothing was heard");
        // What got no words cannot be judged by what it made of them.
        return;
    }
    if understood || heard_right {
        asr.succeed(timings.asr_ms.unwrap_or(fallback));
    } else {
        asr.fail(&format!("heard \"{}\", said \"{PROBE_TRANSCRIPT}\"", turn.transcript));
    }
    if understood {
        seen.of(region, Component::Nlu)
            .succeed(timings.nlu_ms.unwrap_or(fallback));
    } else if heard_right {
        seen.of(region, Component::Nlu)
            .fail(&format!("took \"{PROBE_TRANSCRIPT}\" for \"{}\"", turn.intent));
    }
    let skills = seen.of(region, Component::Skills);
    if turn.reply_text.trim().is_empty() {
        skills.fail("the reply is empty");
        return;
    }
    skills.succeed(timings.skill_ms.unwrap_or(fallback));
    let tts = seen.of(region, Component::Tts);
    if turn.reply_audio.is_empty() {
        tts.fail("the reply has no audio");
    } else {
        tts.succeed(timings.tts_ms.unwrap_or(fallback));
    }
}

/// Probes every region once, at once: what `meridian status` shows before any control plane is asked.
pub async fn probe_once(topology: &Topology, patience: Duration) -> Vec<Observation> {
    let http = http_client();
    let mut probes = JoinSet::new();
    for region in topology.regions.values() {
        for stack in region.stacks.iter().map(|stack| stack.address) {
            let (id, http) = (region.id.clone(), http.clone());
            let lateness = Lateness::default();
            probes.spawn(async move {
                let (mut seen, _) = gateway(&http, &id, stack, patience, &lateness).await;
                let gateway_works = seen.gateway(&id, stack).failed == 0;
                if gateway_works {
                    seen.absorb(&spoken_turn(&id, stack, patience, &lateness).await);
                }
                seen
            });
        }
    }
    let mut all = Seen::default();
    while let Some(result) = probes.join_next().await {
        all.absorb(&result.unwrap_or_default());
    }
    all.into_observations()
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The innermost cause: "connection refused" says more than "error sending request".
fn innermost(error: &reqwest::Error) -> String {
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
        // EMFILE, EADDRNOTAVAIL; ECONNREFUSED is the stack's.
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
        let mut seen = Seen::default();
        assert!(seen.unanswered().is_empty());
        seen.gateway(&region, stack(1)).fail("refused");
        assert_eq!(seen.unanswered(), BTreeSet::from([region.clone()]));
        seen.gateway(&region, stack(2)).succeed(5.0);
        assert!(seen.unanswered().is_empty());
    }
}
