//! The configuration of an edge (configs/edge.toml).
//!
//! One file, although it is long: each key stands here once, with its default, its rule and its unit. Only sections that
//! another file applies alone stand with it.

mod upstream;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use daemon::{
    config::{Problems, Rules},
    secrets::Secrets,
};
use identity::{ToStacks, files::Files};
use routing::pace::{Pace, Rate};
use serde::{Deserialize, Deserializer};
use topology::{EdgeId, document::Span};

pub use upstream::Upstream;

use crate::{accept::auth_config::Auth, cors::Cors};

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The id of this edge in the topology.
    pub node: EdgeId,
    /// The addresses to which devices connect. Port 0 takes any free port.
    pub listen: Vec<SocketAddr>,
    /// Whether other edges on this machine may listen on the same addresses (`SO_REUSEPORT`): the kernel deals the devices out.
    #[serde(default)]
    pub reuse_port: bool,
    /// Threads that serve devices; 0 for one on each processor.
    #[serde(default)]
    pub workers: usize,
    /// TLS towards devices.
    #[serde(default)]
    pub tls: Tls,
    /// `/metrics`, `/health`, `/ready`, `/sessions` and `/explain`.
    pub admin_listen: SocketAddr,
    /// Control planes, `https://address:port` or, without TLS, `http://address:port`. The edge follows all of them at once, and
    /// reports to all of them.
    pub control_planes: Vec<String>,
    /// The identity that this edge shows to control planes and stacks; relative to the configuration file.
    #[serde(default)]
    pub identity: Option<IdentitySection>,
    /// The folder of the last good plan; relative to the configuration file.
    pub state_dir: PathBuf,
    /// Signs affinity tokens; the same on all edges.
    pub affinity_key: AffinityKey,
    /// Bounds of everything that devices may use.
    #[serde(default)]
    pub limits: Limits,
    /// The deadlines.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// The order and the limits of a stop.
    #[serde(default)]
    pub drain: Drain,
    /// The survival of sessions that lose their region.
    #[serde(default)]
    pub continuity: Continuity,
    /// Retries of requests.
    #[serde(default)]
    pub retry: Retry,
    /// Second copies of transcriptions.
    #[serde(default)]
    pub hedge: Hedge,
    /// Most uses of one region by HTTP requests at once.
    #[serde(default)]
    pub breaker: routing::breaker::Limits,
    /// Other services behind the same public URL.
    #[serde(default)]
    pub upstream: Vec<Upstream>,
    /// The numbers by which the edge chooses regions and stacks.
    #[serde(default)]
    pub picking: routing::Policy,
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
    /// [`Files::certificate`].
    pub certificate: PathBuf,
    /// [`Files::key`].
    pub key: PathBuf,
    /// [`Files::trust`].
    pub trust: PathBuf,
    /// Whether stacks prove their region, and this edge its id to them.
    #[serde(default)]
    pub stacks: ToStacks,
}

impl IdentitySection {
    /// The three files.
    pub fn files(&self) -> Files {
        Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            trust: self.trust.clone(),
        }
    }
}

/// Retries of requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Most retries of one request. The first attempt at a further region is not a retry.
    pub retries_max: u32,
    /// Pause before the first retry. It doubles with each, and a random factor from 0.5 to 1.5 spreads it.
    pub base: Span,
    /// The pause stops doubling here.
    pub cap: Span,
    /// Most retries, in percent of the requests of the last ten seconds.
    pub budget_percent: u32,
    /// Retries that are allowed in ten seconds however few requests there are.
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

/// Second copies of transcriptions.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hedge {
    /// The edge sends a copy to a second region after this time, or after the median answer time if that is longer.
    pub after: Span,
    /// Most copies, in percent of the transcriptions of the last ten seconds, and always one. 0 copies none.
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

/// The survival of sessions that lose their region.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Continuity {
    /// Bytes of the device's messages that the edge keeps for one session. A session that loses its region beyond this limit
    /// goes on, but the user has to repeat the last words. 0 moves no session.
    pub replay_bytes_max: usize,
    /// The same for all sessions together. The sessions of one client keep no more than they leave to others.
    pub replay_bytes_total_max: usize,
    /// Bytes of the last checkpoints of all sessions whose devices left. 0 keeps none.
    pub parked_bytes_max: usize,
    /// The edge takes a region for dead that owes an answer and says nothing for this long.
    pub silence_busy: Span,
    /// The same while the device is active and the region owes nothing.
    pub silence_active: Span,
    /// The same while neither side says anything.
    pub silence_idle: Span,
    /// Longest search for another region. After it the edge tells the device to reconnect.
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
    /// The addresses to which devices connect with TLS. Port 0 takes any free port.
    pub listen: Vec<SocketAddr>,
    /// The certificate and those that lead to its issuer, in this order, as PEM; relative to the configuration file.
    pub certificate: Option<PathBuf>,
    /// Its private key as PEM; relative to the configuration file.
    pub key: Option<PathBuf>,
    /// The edge looks at both files this often, and on SIGHUP.
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

/// Bounds of everything that devices may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections of devices; the edge answers further ones 503 at once.
    pub connections_max: usize,
    /// Largest request header, in bytes; the edge answers larger ones 431.
    pub header_bytes_max: usize,
    /// Largest WebSocket frame, in bytes; larger ones close the session with 1009. Frames pass through in pieces, so their size
    /// takes no memory here. The limit is above that of stacks, so that a stack can tell the device what is wrong.
    pub frame_bytes_max: u64,
    /// Regions that the edge asks for one session or request before it answers 503.
    pub regions_tried_max: usize,
    /// Live sessions; the edge answers the device of one more 503.
    pub sessions_max: usize,
    /// Sessions that open at the same moment; the edge answers the device of one more 503.
    pub handshakes_max: usize,
    /// Percentage of both that is reserved for devices that reconnect with a valid affinity token.
    pub returning_percent: u8,
    /// Connections of one client (an IPv4 address, or an IPv6 /64); the edge answers more of them 429. 0 for any number.
    pub client_connections_max: u32,
    /// Requests and session openings of one client a second, over time; the edge answers more of them 429. 0 for any rate.
    pub client_requests_per_s: u32,
    /// Most of them that may come at once after a pause.
    pub client_burst: u32,
    /// Requests of one client in flight at once; the edge answers more of them 429. 0 for any number. See
    /// [`Config::client_in_flight_max`] for the default.
    pub client_in_flight_max: Option<u32>,
    /// Bodies of one client, longer than `body_buffer_bytes_max`, that the edge passes on at once; it answers more of them 429. 0
    /// for any number.
    pub client_uploads_max: u32,
    /// Largest body of an HTTP request, in bytes; the edge answers larger ones 413.
    pub body_bytes_max: u64,
    /// The edge reads this many bytes of a body before it asks a region. It passes the rest of a longer one on as it comes.
    pub body_buffer_bytes_max: usize,
    /// Memory for all such bodies together. When it is used up, the edge passes bodies on as they come.
    pub body_buffer_bytes_total_max: usize,
    /// The edge cuts a device off that sends a body or a frame, or takes an answer or events, slower than this for longer than
    /// `timeouts.device`.
    pub device_bytes_per_s_min: u32,
    /// Memory of this process, in bytes. From 90 % of it the edge answers newcomers 503, from 95 % every new session, and at
    /// 100 % it tells quiet sessions to reconnect, and sessions in a turn after that turn. 0 for no limit.
    pub memory_max: u64,
}

/// The deadlines.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a device to complete a TLS handshake, counted from the accepted connection.
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
    /// it began or with bytes that wait for it. The edge then closes a session with 1008; until then it does not judge the region.
    pub device: Span,
    /// For any byte of one direction of a session; heartbeats keep it alive. A region that takes the device's bytes slower than that
    /// minimum rate may stay behind as long.
    pub idle: Span,
    /// For a peer to take part in closing; at least 5 s for a device that took nothing before.
    pub close: Span,
    /// Lifetime of an affinity token.
    pub affinity: Span,
    /// When no stack remembers a session whose id is older than this, the edge tells its device that the id expired.
    pub resume: Span,
}

/// The order and the limits of a stop.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// The edge tells live sessions to reconnect over this time, or faster when they are few.
    pub window: Span,
    /// The edge cuts sessions and requests that are left after this time.
    pub limit: Span,
    /// The same as `window` after a successor took over: no restart waits for the old process.
    pub upgrade_window: Span,
}

impl Config {
    /// Most requests of one client in flight at once; 0 for any number. Unless the operator writes it, it is a quarter of the
    /// requests that a region's breaker lets through by default, so that no client fills a region, and at most half of a breaker
    /// that the operator made smaller. At 200 requests a second, 256 are in flight only when each takes longer than a second.
    pub fn client_in_flight_max(&self) -> u32 {
        // A breaker for one request leaves no half; 0 would be no limit.
        let default = (self.breaker.max_requests / 2).clamp(1, 256);
        self.limits.client_in_flight_max.unwrap_or(default)
    }

    /// The slowest pace that a device may keep.
    pub fn pace(&self) -> Pace {
        self.pace_within(self.timeouts.device.0)
    }

    /// The slowest pace of a peer that may stay behind for this long.
    pub fn pace_within(&self, behind_max: Duration) -> Pace {
        Pace::new(Rate {
            behind_max,
            bytes_per_s_min: self.limits.device_bytes_per_s_min,
        })
    }
}

impl Drain {
    /// The time in which a session may finish its turn after its place in the window came. It leaves enough of the limit to tell
    /// the device why the session ends.
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
            // The other connections are for requests, and for the answer 503.
            sessions_max: 8_500,
            // A handshake takes a round trip to its region: this many of 100 ms each are 10,000 sessions a second.
            handshakes_max: 1_000,
            returning_percent: 10,
            // Thousands of phones may share the address of a mobile network.
            client_connections_max: 2_000,
            client_requests_per_s: 200,
            client_burst: 2_000,
            client_in_flight_max: None,
            // Each holds one of a stack's 32 upload slots for as long as the device likes, a minute at most: one client gets an
            // eighth of them.
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
            // A phone in a lift or between two cells takes and sends nothing for some seconds and is back. After 20 seconds the user
            // no longer listens to that reply, and another session can use the slot in the region.
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

/// The faults of `[picking]`.
fn picking_problems(picking: &routing::Policy) -> Problems {
    let mut problems = Problems::default();
    problems.add_if_zero("picking.failures_in_a_row", picking.failures_in_a_row.into());
    for (name, percent, least) in [
        ("success_percent_min", picking.success_percent_min, 0),
        ("ejected_percent_max", picking.ejected_percent_max, 0),
        ("panic_percent", picking.panic_percent, 0),
        // Nothing would come back before everything does.
        ("slow_start_percent", picking.slow_start_percent, 1),
        // An empty stack would be full.
        ("full_percent", picking.full_percent, 1),
    ] {
        if !(least..=100).contains(&percent) {
            let text = format!("{percent} is out of range; write {least} to 100 (percent)");
            problems.add(format!("picking.{name}"), text);
        }
    }
    // Ten buckets, each of a millisecond at least.
    if picking.window < Duration::from_millis(10) {
        let text = format!("\"{}\" is out of range; write \"10ms\" or more", Span(picking.window));
        problems.add("picking.window", text);
    }
    if picking.ejection_max < picking.ejection {
        let text = format!(
            "\"{}\" is shorter than picking.ejection (\"{}\"); write at least that",
            Span(picking.ejection_max),
            Span(picking.ejection)
        );
        problems.add("picking.ejection_max", text);
    }
    problems
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
        problems.extend(upstream::problems(&self.upstream));
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
        problems.extend(picking_problems(&self.picking));
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

#[cfg(test)]
mod tests;
