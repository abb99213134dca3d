//! The configuration of an edge (configs/edge.toml).
//!
//! One file, although it is long: each key stands here once, with its default, its rule and its unit.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use daemon::{
    config::{Problems, Rules},
    secrets::Secrets,
};
use identity::{ToStacks, files::Files};
use routing::pace::{Pace, Rate};
use serde::{Deserialize, Deserializer};
use topology::{EdgeId, document::Span};

use crate::{accept::access::Auth, cors::Cors};

/// Everything an edge is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The id of this edge in the topology.
    pub node: EdgeId,
    /// Where devices connect. Port 0 takes any free one.
    pub listen: Vec<SocketAddr>,
    /// Whether other edges on this machine may listen there too (`SO_REUSEPORT`): the kernel deals devices out among them.
    #[serde(default)]
    pub reuse_port: bool,
    /// Threads that serve devices; 0 for one on each processor.
    #[serde(default)]
    pub workers: usize,
    /// Where devices connect with TLS, and with which certificate.
    #[serde(default)]
    pub tls: Tls,
    /// `/metrics`, `/health`, `/ready`, `/sessions` and `/explain`.
    pub admin_listen: SocketAddr,
    /// Control planes, `https://address:port` or, without TLS, `http://address:port`, all followed and reported to at once.
    pub control_planes: Vec<String>,
    /// The identity that this edge shows to control planes and stacks; relative to the configuration file.
    #[serde(default)]
    pub identity: Option<IdentitySection>,
    /// Where the last good plan is kept; relative to the configuration file.
    pub state_dir: PathBuf,
    /// Signs affinity tokens; the same on all edges.
    pub affinity_key: AffinityKey,
    /// How much is accepted.
    #[serde(default)]
    pub limits: Limits,
    /// How long is waited.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How the edge stops.
    #[serde(default)]
    pub drain: Drain,
    /// How sessions survive the loss of their region.
    #[serde(default)]
    pub continuity: Continuity,
    /// When requests are made again.
    #[serde(default)]
    pub retry: Retry,
    /// When transcriptions are sent to a second region.
    #[serde(default)]
    pub hedge: Hedge,
    /// How much of one region HTTP requests may use at once.
    #[serde(default)]
    pub breaker: routing::breaker::Limits,
    /// Other services behind the same public URL.
    #[serde(default)]
    pub upstream: Vec<Upstream>,
    /// How regions and stacks are chosen.
    #[serde(default)]
    pub picking: Picking,
    /// The pages that may call from a browser.
    #[serde(default)]
    pub cors: Cors,
    /// The devices that may use this edge.
    #[serde(default)]
    pub auth: Auth,
}

/// `[identity]`: the certificate of this edge.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentitySection {
    /// As in [`Files`].
    pub certificate: PathBuf,
    /// As in [`Files`].
    pub key: PathBuf,
    /// As in [`Files`].
    pub trust: PathBuf,
    /// Whether stacks prove their region, and this edge its id to them.
    #[serde(default)]
    pub stacks: ToStacks,
}

impl IdentitySection {
    /// The files.
    pub fn files(&self) -> Files {
        Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            trust: self.trust.clone(),
        }
    }
}

/// When requests are made again.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// For one request. Going on to a region that was not asked yet is none.
    pub retries_max: u32,
    /// Pause before the first, which doubles with each, times 0.5 to 1.5.
    pub base: Span,
    /// No pause is based on more.
    pub cap: Span,
    /// Of the requests of the last ten seconds, in percent, so many may be retries.
    pub budget_percent: u32,
    /// So many retries in ten seconds are allowed however few requests there are.
    pub budget_min: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            retries_max: 3,
            base: Span(Duration::from_millis(100)),
            cap: Span(Duration::from_secs(5)),
            budget_percent: 20,
            // Three a second.
            budget_min: 30,
        }
    }
}

/// How regions and stacks are chosen: [`routing::Policy`] as it is written, where each default has its reason.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Picking {
    /// See [`routing::Policy::failures_in_a_row`].
    pub failures_in_a_row: u32,
    /// See [`routing::Policy::window`].
    pub window: Span,
    /// See [`routing::Policy::success_percent_min`].
    pub success_percent_min: u8,
    /// See [`routing::Policy::volume_min`].
    pub volume_min: u32,
    /// See [`routing::Policy::ejected_percent_max`].
    pub ejected_percent_max: u8,
    /// See [`routing::Policy::ejection`].
    pub ejection: Span,
    /// See [`routing::Policy::ejection_max`].
    pub ejection_max: Span,
    /// See [`routing::Policy::panic_percent`].
    pub panic_percent: u8,
    /// See [`routing::Policy::slow_start`].
    pub slow_start: Span,
    /// See [`routing::Policy::slow_start_percent`].
    pub slow_start_percent: u8,
    /// See [`routing::Policy::full_percent`].
    pub full_percent: u8,
    /// See [`routing::Policy::load_age_max`].
    pub load_age_max: Span,
}

impl Default for Picking {
    fn default() -> Self {
        let routing::Policy {
            failures_in_a_row,
            window,
            success_percent_min,
            volume_min,
            ejected_percent_max,
            ejection,
            ejection_max,
            panic_percent,
            slow_start,
            slow_start_percent,
            full_percent,
            load_age_max,
        } = routing::Policy::DEFAULT;
        Self {
            failures_in_a_row,
            window: Span(window),
            success_percent_min,
            volume_min,
            ejected_percent_max,
            ejection: Span(ejection),
            ejection_max: Span(ejection_max),
            panic_percent,
            slow_start: Span(slow_start),
            slow_start_percent,
            full_percent,
            load_age_max: Span(load_age_max),
        }
    }
}

/// When transcriptions are sent to a second region.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hedge {
    /// After this time, or the median of what was measured if that is longer.
    pub after: Span,
    /// Of the transcriptions of the last ten seconds, in percent, so many may be copied, and always one. 0 copies none.
    pub budget_percent: u32,
    /// Longer recordings, in bytes, are not copied.
    pub body_bytes_max: usize,
}

impl Default for Hedge {
    fn default() -> Self {
        Self {
            after: Span(Duration::from_millis(100)),
            budget_percent: 10,
            // A minute of 16 kHz, 16 bit.
            body_bytes_max: 2 << 20,
        }
    }
}

/// Servers behind a path of the public URL, as with nginx's `upstream` and `location`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Requests whose path begins like this go there, as they are. The longest that fits wins.
    pub path: String,
    /// Asked are those with the fewest requests in flight.
    pub servers: Vec<SocketAddr>,
    /// A server that fails so many requests within `fail_timeout` is not asked for that long. 0: it always is.
    #[serde(default = "max_fails")]
    pub max_fails: u32,
    /// See `max_fails`.
    #[serde(default = "fail_timeout")]
    pub fail_timeout: Span,
}

fn max_fails() -> u32 {
    3
}

fn fail_timeout() -> Span {
    Span(Duration::from_secs(30))
}

impl Picking {
    /// As routing takes it.
    pub fn policy(&self) -> routing::Policy {
        routing::Policy {
            failures_in_a_row: self.failures_in_a_row,
            window: self.window.0,
            success_percent_min: self.success_percent_min,
            volume_min: self.volume_min,
            ejected_percent_max: self.ejected_percent_max,
            ejection: self.ejection.0,
            ejection_max: self.ejection_max.0,
            panic_percent: self.panic_percent,
            slow_start: self.slow_start.0,
            slow_start_percent: self.slow_start_percent,
            full_percent: self.full_percent,
            load_age_max: self.load_age_max.0,
        }
    }

    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        problems.add_if_zero("picking.failures_in_a_row", self.failures_in_a_row.into());
        for (name, percent, least) in [
            ("success_percent_min", self.success_percent_min, 0),
            ("ejected_percent_max", self.ejected_percent_max, 0),
            ("panic_percent", self.panic_percent, 0),
            // Nothing would come back before everything does.
            ("slow_start_percent", self.slow_start_percent, 1),
            // An empty stack would be full.
            ("full_percent", self.full_percent, 1),
        ] {
            if !(least..=100).contains(&percent) {
                let text = format!("{percent} is out of range; write {least} to 100 (percent)");
                problems.add(format!("picking.{name}"), text);
            }
        }
        // Ten buckets, each of a millisecond at least.
        if self.window.0 < Duration::from_millis(10) {
            let text = format!("\"{}\" is out of range; write \"10ms\" or more", self.window);
            problems.add("picking.window", text);
        }
        if self.ejection_max.0 < self.ejection.0 {
            let text = format!(
                "\"{}\" is shorter than picking.ejection (\"{}\"); write at least that",
                self.ejection_max, self.ejection
            );
            problems.add("picking.ejection_max", text);
        }
        problems
    }
}

/// How sessions survive the loss of their region.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Continuity {
    /// Bytes of the device's messages that are kept in one session. A session that loses its region beyond it goes on,
    /// but the device has to repeat what it said last. 0 keeps no session alive.
    pub replay_bytes_max: usize,
    /// The same for all sessions together. Those of one client keep no more than they leave to others.
    pub replay_bytes_total_max: usize,
    /// Last checkpoints of sessions whose devices left, in bytes of all together. 0 keeps none.
    pub parked_bytes_max: usize,
    /// A region that owes something and from which nothing comes for this long is taken for dead.
    pub silence_busy: Span,
    /// The same while the device is active and nothing is owed.
    pub silence_active: Span,
    /// The same while nobody says anything.
    pub silence_idle: Span,
    /// Longest search for another region. After it the device is told to reconnect.
    pub deadline: Span,
}

impl Default for Continuity {
    fn default() -> Self {
        Self {
            // Sixteen seconds of speech in Base64; people rarely speak longer at once.
            replay_bytes_max: 1 << 20,
            // Messages are kept while a turn lasts: enough for thousands of people who talk at the same moment.
            replay_bytes_total_max: 256 << 20,
            // Some ten thousand of them.
            parked_bytes_max: 32 << 20,
            silence_busy: Span(Duration::from_secs(1)),
            silence_active: Span(Duration::from_secs(30)),
            silence_idle: Span(Duration::from_secs(60)),
            deadline: Span(Duration::from_secs(10)),
        }
    }
}

/// TLS towards devices.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Where devices connect with TLS. Port 0 takes any free one.
    pub listen: Vec<SocketAddr>,
    /// The certificate and those that lead to its issuer, in this order, as PEM; relative to the configuration file.
    pub certificate: Option<PathBuf>,
    /// Its private key as PEM; relative to the configuration file.
    pub key: Option<PathBuf>,
    /// Both files are looked at this often, and on SIGHUP.
    pub reload: Span,
    /// Handshakes at the same time; further ones wait within `timeouts.handshake`.
    pub handshakes_max: usize,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            certificate: None,
            key: None,
            reload: Span(Duration::from_secs(10)),
            // A handshake takes well under a millisecond of processor and a round trip of waiting: this is some thousands
            // a second, more than the processors of one edge can sign.
            handshakes_max: 512,
        }
    }
}

/// How much is accepted.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections of devices; those above are answered 503 at once.
    pub connections_max: usize,
    /// Largest request header, in bytes; larger ones are answered 431.
    pub header_bytes_max: usize,
    /// Largest WebSocket frame, in bytes; larger ones close the session with 1009. Frames pass through in pieces, so their size
    /// takes no memory here. Above what stacks take, so that they can say what is wrong.
    pub frame_bytes_max: u64,
    /// Regions tried for one session or request before it is answered 503.
    pub regions_tried_max: usize,
    /// Live sessions; the device of one more is answered 503.
    pub sessions_max: usize,
    /// Sessions being opened at the same moment; the device of one more is answered 503.
    pub handshakes_max: usize,
    /// Of both, in percent, what is kept for devices that reconnect with a valid affinity token.
    pub returning_percent: u8,
    /// Connections of one client (an IPv4 address, or an IPv6 /64); more are answered 429. 0 for any number.
    pub client_connections_max: u32,
    /// Requests and session openings of one client a second, over time; more are answered 429. 0 for any rate.
    pub client_requests_per_s: u32,
    /// How many of them may come at once after a pause.
    pub client_burst: u32,
    /// Requests of one client that are in flight at once; more are answered 429. 0 for any number. See
    /// [`Config::client_in_flight_max`] for the default.
    pub client_in_flight_max: Option<u32>,
    /// Bodies of one client, longer than `body_buffer_bytes_max`, that are passed on at once; more are answered 429. 0 for any
    /// number.
    pub client_uploads_max: u32,
    /// Largest body of an HTTP request, in bytes; larger ones are answered 413.
    pub body_bytes_max: u64,
    /// So much of a body, in bytes, is read before a region is asked. A longer one is passed on from then on as it comes.
    pub body_buffer_bytes_max: usize,
    /// Memory for all such bodies together. When it is used up, bodies are passed on from there.
    pub body_buffer_bytes_total_max: usize,
    /// A device that sends a body or a frame, or takes an answer or events, slower than this for longer than `timeouts.device` is cut
    /// off.
    pub device_bytes_per_s_min: u32,
    /// Memory of this process, in bytes. From 90 % of it newcomers are answered 503, from 95 % everybody new, and at 100 %
    /// quiet sessions are told to reconnect, those in a turn after it. 0 for no limit.
    pub memory_max: u64,
}

/// How long is waited.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a device to complete a TLS handshake, from its first byte on or before.
    pub handshake: Span,
    /// For a device to send a request header.
    pub header: Span,
    /// For the next request on the same connection.
    pub keep_alive: Span,
    /// For a region to accept a connection.
    pub connect: Span,
    /// For a region to answer an upgrade.
    pub upgrade: Span,
    /// For a region to begin or continue an HTTP answer.
    pub answer: Span,
    /// For a device that falls behind `limits.device_bytes_per_s_min`: with a body or an answer, and in a session with a frame that
    /// it began or with what waits for it. A session is then closed with 1008; meanwhile its region is not judged.
    pub device: Span,
    /// For any byte of one direction of a session; heartbeats keep it alive. A region that takes what the device says slower than
    /// that minimum rate may stay behind as long.
    pub idle: Span,
    /// For a peer to take part in closing; at least 5 s for a device that took nothing before.
    pub close: Span,
    /// An affinity token counts this long.
    pub affinity: Span,
    /// A device whose session no stack remembers is told that its token expired when it is older than this.
    pub resume: Span,
}

/// How the edge stops.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// Live sessions are told to reconnect spread over this time, or less when they are few.
    pub window: Span,
    /// Sessions and requests that are left after this time are cut.
    pub limit: Span,
    /// As `window`, when a successor took over: nothing waits for that.
    pub upgrade_window: Span,
}

impl Config {
    /// How many requests of one client are in flight at once; 0 for any number. Unless it is written, it is a quarter of what
    /// a region's breaker lets through by default, so that no client fills a region, and never more than half of a breaker
    /// that was made smaller. 256 are more than 200 a second come to unless each takes longer than a second.
    pub fn client_in_flight_max(&self) -> u32 {
        // A breaker for one request leaves no half; 0 would be no limit.
        let default = (self.breaker.max_requests / 2).clamp(1, 256);
        self.limits.client_in_flight_max.unwrap_or(default)
    }

    /// How slow a device may be.
    pub fn pace(&self) -> Pace {
        self.pace_within(self.timeouts.device.0)
    }

    /// How slow a peer may be that may stay behind for so long.
    pub fn pace_within(&self, behind_max: Duration) -> Pace {
        Pace::new(Rate {
            behind_max,
            bytes_per_s_min: self.limits.device_bytes_per_s_min,
        })
    }
}

impl Drain {
    /// How long a session may finish its turn when its place in the window has come, so that it is told why it ends before
    /// the limit.
    pub fn turn(&self, close: Duration) -> Duration {
        self.limit.0.saturating_sub(self.window.0).saturating_sub(close)
    }
}

/// The secret that signs affinity tokens, written in hex, or two of them: the first signs, both verify. It never shows in `Debug`
/// output.
#[derive(Clone)]
pub struct AffinityKey(pub routing::Key);

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Two descriptors a session; 20,000 is what the common limit on open files allows with room for the rest.
            connections_max: 9_000,
            // Requests of devices carry a bearer token and little else; 16 KiB is what browsers and other proxies allow.
            header_bytes_max: 16 << 10,
            // A second of 24 kHz PCM in Base64 takes 64 kB; a mebibyte is more than any sane client sends at once.
            frame_bytes_max: 32 << 20,
            // Home, overflow and backup. Each costs up to connect + upgrade; a device waits no longer than that.
            regions_tried_max: 3,
            // The other connections are for requests, and for telling devices that there is no place.
            sessions_max: 8_500,
            // A handshake takes a round trip to its region: this many of 100 ms each are 10,000 sessions a second.
            handshakes_max: 1_000,
            returning_percent: 10,
            // Thousands of phones may share the address of a mobile network.
            client_connections_max: 2_000,
            client_requests_per_s: 200,
            client_burst: 2_000,
            client_in_flight_max: None,
            // Each holds one of the 32 places for uploads of a stack for as long as the device likes, a minute at most: one
            // client gets an eighth of them.
            client_uploads_max: 4,
            // The OpenAI API takes 25 MB of audio.
            body_bytes_max: 32 << 20,
            // A minute of 16 kHz, 16 bit.
            body_buffer_bytes_max: 2 << 20,
            body_buffer_bytes_total_max: 64 << 20,
            // Apache's mod_reqtimeout (body=20,MinRate=500). Speech needs four times as much at the very least.
            device_bytes_per_s_min: 500,
            memory_max: 0,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = |s| Span(Duration::from_secs(s));
        Self {
            handshake: seconds(5),
            header: seconds(5),
            keep_alive: seconds(60),
            connect: seconds(1),
            upgrade: seconds(3),
            answer: seconds(60),
            // A phone in a lift or between two cells takes and sends nothing for some seconds and is back. Later nobody listens to
            // that reply any more, and its place in the region is worth more to others.
            device: seconds(20),
            idle: seconds(120),
            close: seconds(1),
            affinity: seconds(86_400),
            // A device that stays connected keeps the token that it began with.
            resume: seconds(30 * 86_400),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            window: Span(Duration::from_secs(10)),
            limit: Span(Duration::from_secs(20)),
            upgrade_window: Span(Duration::from_secs(300)),
        }
    }
}

impl<'de> Deserialize<'de> for AffinityKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secrets = Secrets::deserialize(deserializer)?;
        let key = routing::Key::new(&secrets.signs).and_then(|key| match &secrets.also_accepted {
            Some(also) => key.also_accepting(also),
            None => Ok(key),
        });
        key.map(Self).map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Debug for AffinityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AffinityKey(secret)")
    }
}

impl Config {
    /// Fails with all problems, for a configuration that no file contains.
    pub fn check(&self) -> anyhow::Result<()> {
        Ok(self.problems().into_result()?)
    }
}

impl Rules for Config {
    const EXAMPLE: &'static str = include_str!("../../../configs/edge.toml");
    const RENAMED: &'static [(&'static str, &'static str)] = &[("continuity.patience", "continuity.deadline")];

    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        let (tls, limits, timeouts) = (&self.tls, &self.limits, &self.timeouts);
        if self.listen.is_empty() && tls.listen.is_empty() {
            let text = "listen and tls.listen are empty; write at least one address, such as [\"0.0.0.0:8080\"]";
            problems.add("listen", text);
        }
        if !tls.listen.is_empty() && (tls.certificate.is_none() || tls.key.is_none()) {
            let text = "TLS needs a certificate and its key; write tls.certificate and tls.key, or remove tls.listen";
            problems.add("tls.listen", text);
        }
        problems.extend(self.upstream_problems());
        for (name, percent) in [
            ("retry", self.retry.budget_percent),
            ("hedge", self.hedge.budget_percent),
        ] {
            if percent > 100 {
                let text = format!("{percent} is out of range; write 0 to 100 (percent)");
                problems.add(format!("{name}.budget_percent"), text);
            }
        }
        if u32::try_from(limits.body_buffer_bytes_max).is_err() {
            let text = format!(
                "{} is out of range; write at most {}",
                limits.body_buffer_bytes_max,
                u32::MAX
            );
            problems.add("limits.body_buffer_bytes_max", text);
        }
        let buffers_max = usize::MAX >> 3;
        if limits.body_buffer_bytes_total_max > buffers_max {
            let text = format!(
                "{} is out of range; write at most {buffers_max}",
                limits.body_buffer_bytes_total_max
            );
            problems.add("limits.body_buffer_bytes_total_max", text);
        }
        if self.hedge.body_bytes_max > limits.body_buffer_bytes_max {
            let text = format!(
                "{} is more than limits.body_buffer_bytes_max ({}), and the edge copies only bodies that it buffers whole; \
                 write at most that",
                self.hedge.body_bytes_max, limits.body_buffer_bytes_max
            );
            problems.add("hedge.body_bytes_max", text);
        }
        if let Some(written) = limits.client_in_flight_max
            && written > self.breaker.max_requests / 2
        {
            let text = format!(
                "{written} is more than half of breaker.max_requests ({}), so two clients could fill a region; write at \
                 most {}, raise breaker.max_requests, or write 0 for no limit",
                self.breaker.max_requests,
                self.breaker.max_requests / 2
            );
            problems.add("limits.client_in_flight_max", text);
        }
        for endpoint in &self.control_planes {
            if let Some(text) = api::connect::url_problem(endpoint, self.identity.is_some()) {
                problems.add("control_planes", text);
            }
        }
        for (key, value) in [
            ("tls.handshakes_max", tls.handshakes_max as u64),
            ("breaker.max_connections", u64::from(self.breaker.max_connections)),
            (
                "breaker.max_pending_requests",
                u64::from(self.breaker.max_pending_requests),
            ),
            ("breaker.max_requests", u64::from(self.breaker.max_requests)),
            ("limits.connections_max", limits.connections_max as u64),
            ("limits.header_bytes_max", limits.header_bytes_max as u64),
            ("limits.frame_bytes_max", limits.frame_bytes_max),
            ("limits.regions_tried_max", limits.regions_tried_max as u64),
            ("limits.sessions_max", limits.sessions_max as u64),
            ("limits.handshakes_max", limits.handshakes_max as u64),
            ("limits.client_burst", u64::from(limits.client_burst)),
            ("limits.body_bytes_max", limits.body_bytes_max),
            ("limits.body_buffer_bytes_max", limits.body_buffer_bytes_max as u64),
            (
                "limits.device_bytes_per_s_min",
                u64::from(limits.device_bytes_per_s_min),
            ),
        ] {
            problems.add_if_zero(key, value);
        }
        if limits.returning_percent > 90 {
            let text = format!(
                "{} leaves less than a tenth to new devices; write 0 to 90 (percent)",
                limits.returning_percent
            );
            problems.add("limits.returning_percent", text);
        }
        let continuity = &self.continuity;
        for (key, span) in [
            ("tls.reload", tls.reload),
            ("continuity.silence_busy", continuity.silence_busy),
            ("continuity.silence_active", continuity.silence_active),
            ("continuity.silence_idle", continuity.silence_idle),
            ("continuity.deadline", continuity.deadline),
            ("timeouts.handshake", timeouts.handshake),
            ("timeouts.header", timeouts.header),
            ("timeouts.keep_alive", timeouts.keep_alive),
            ("timeouts.connect", timeouts.connect),
            ("timeouts.upgrade", timeouts.upgrade),
            ("timeouts.answer", timeouts.answer),
            ("timeouts.device", timeouts.device),
            ("timeouts.idle", timeouts.idle),
            ("timeouts.close", timeouts.close),
        ] {
            problems.add_if_instant(key, span.0);
        }
        problems.extend(self.picking.problems());
        problems.extend(self.cors.problems());
        problems.extend(self.auth.problems());
        let least = self.drain.window.0.saturating_add(timeouts.close.0);
        if self.drain.limit.0 < least {
            let text = format!(
                "\"{}\" is shorter than drain.window and timeouts.close together; write \"{}\" or more",
                self.drain.limit,
                Span(least)
            );
            problems.add("drain.limit", text);
        }
        problems
    }
}

impl Config {
    fn upstream_problems(&self) -> Problems {
        let mut problems = Problems::default();
        for (index, Upstream { path, servers, .. }) in self.upstream.iter().enumerate() {
            let key = format!("upstream[{index}].path");
            if !path.starts_with('/') || path.contains(['?', '#']) {
                problems.add(key, format!("\"{path}\" is not a path; write one such as \"/skills/\""));
            } else if crate::request::route::is_ours(path) || path == "/" {
                let text = format!("\"{path}\" is served by the regions; write another path, such as \"/skills/\"");
                problems.add(key, text);
            } else if self.upstream.iter().filter(|other| other.path == *path).count() > 1 {
                problems.add(key, format!("\"{path}\" is written twice; write each path once"));
            }
            if servers.is_empty() {
                let text = "the list is empty; write at least one server, such as [\"10.0.0.1:8080\"]";
                problems.add(format!("upstream[{index}].servers"), text);
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests;
