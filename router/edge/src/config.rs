//! The configuration of an edge (configs/edge.toml).

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer};
use topology::{EdgeId, document::Span};

/// Everything an edge is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which edge of the topology this is.
    pub node: EdgeId,
    /// Where devices connect. Port 0 takes any free one.
    pub listen: Vec<SocketAddr>,
    /// Whether other edges on this machine may listen there too (`SO_REUSEPORT`): the kernel deals devices out among them.
    #[serde(default)]
    pub reuse_port: bool,
    /// `/metrics`, `/health`, `/ready`, `/sessions` and `/explain`.
    pub admin_listen: SocketAddr,
    /// Control planes, `http://address:port`, all followed and reported to at once.
    pub control_planes: Vec<String>,
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
}

/// How sessions survive the loss of their region.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Continuity {
    /// What is kept of the device's messages in one session, in bytes. A session that loses its region beyond it goes on,
    /// but the device has to repeat what it said last. 0 keeps no session alive.
    pub replay_bytes_max: usize,
    /// The same for all sessions together.
    pub replay_bytes_total_max: usize,
    /// A region that owes something and from which nothing comes for this long is taken for dead.
    pub silence_busy: Span,
    /// The same while the device is active and nothing is owed.
    pub silence_active: Span,
    /// The same while nobody says anything.
    pub silence_idle: Span,
    /// How long another region is looked for before the device is told to reconnect.
    pub patience: Span,
}

impl Default for Continuity {
    fn default() -> Self {
        Self {
            // Sixteen seconds of speech in Base64; people rarely speak longer at once.
            replay_bytes_max: 1 << 20,
            // What is kept is what is being said: thousands of people talking at the same moment.
            replay_bytes_total_max: 256 << 20,
            silence_busy: Span(Duration::from_secs(1)),
            silence_active: Span(Duration::from_secs(30)),
            silence_idle: Span(Duration::from_secs(60)),
            patience: Span(Duration::from_secs(10)),
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
    /// Largest WebSocket frame, in bytes; larger ones close the session with 1009.
    pub frame_bytes_max: u64,
    /// Regions tried for one session or request before it is answered 503.
    pub regions_tried_max: usize,
}

/// How long is waited.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
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
    /// For any byte of one direction of a session; heartbeats keep it alive.
    pub idle: Span,
    /// For a peer to take part in closing.
    pub close: Span,
    /// An affinity token counts this long.
    pub affinity: Span,
}

/// How the edge stops.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// Live sessions are told to reconnect spread over this time, or less when they are few.
    pub window: Span,
    /// What is left after this time is cut.
    pub limit: Span,
}

/// The secret that signs affinity tokens, written in hex. It never shows in `Debug` output.
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
            frame_bytes_max: 1 << 20,
            // Home, overflow and backup. Each costs up to connect + upgrade; a device waits no longer than that.
            regions_tried_max: 3,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = |s| Span(Duration::from_secs(s));
        Self {
            header: seconds(5),
            keep_alive: seconds(60),
            connect: seconds(1),
            upgrade: seconds(3),
            answer: seconds(60),
            idle: seconds(120),
            close: seconds(1),
            affinity: seconds(86_400),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            window: Span(Duration::from_secs(10)),
            limit: Span(Duration::from_secs(20)),
        }
    }
}

impl<'de> Deserialize<'de> for AffinityKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = String::deserialize(deserializer)?;
        // The secret is not repeated in the error: errors are logged.
        let secret = hex::decode(&text).map_err(|_| D::Error::custom("affinity_key is not hexadecimal"))?;
        routing::Key::new(&secret).map(Self).map_err(D::Error::custom)
    }
}

impl std::fmt::Debug for AffinityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AffinityKey(secret)")
    }
}

impl Config {
    /// The rules that span keys. All problems are reported together.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut problems = Vec::new();
        if self.listen.is_empty() {
            problems.push("listen: name at least one address, as in [\"0.0.0.0:8080\"]".to_owned());
        }
        for endpoint in &self.control_planes {
            let uri = endpoint.parse::<http::Uri>().ok();
            if uri.is_none_or(|uri| uri.scheme_str() != Some("http") || uri.host().is_none()) {
                problems.push(format!(
                    "control_planes: \"{endpoint}\" is not of the form http://address:port"
                ));
            }
        }
        for (name, value) in [
            ("limits.connections_max", self.limits.connections_max as u64),
            ("limits.header_bytes_max", self.limits.header_bytes_max as u64),
            ("limits.frame_bytes_max", self.limits.frame_bytes_max),
            ("limits.regions_tried_max", self.limits.regions_tried_max as u64),
        ] {
            if value == 0 {
                problems.push(format!("{name}: 0 would refuse everything"));
            }
        }
        let continuity = &self.continuity;
        for (name, span) in [
            ("silence_busy", continuity.silence_busy),
            ("silence_active", continuity.silence_active),
            ("silence_idle", continuity.silence_idle),
            ("patience", continuity.patience),
        ] {
            if span.0.is_zero() {
                problems.push(format!("continuity.{name}: must be longer than nothing"));
            }
        }
        let timeouts = &self.timeouts;
        for (name, span) in [
            ("header", timeouts.header),
            ("keep_alive", timeouts.keep_alive),
            ("connect", timeouts.connect),
            ("upgrade", timeouts.upgrade),
            ("answer", timeouts.answer),
            ("idle", timeouts.idle),
            ("close", timeouts.close),
        ] {
            if span.0.is_zero() {
                problems.push(format!("timeouts.{name}: must be longer than nothing"));
            }
        }
        if self.drain.limit.0 < self.drain.window.0 + timeouts.close.0 {
            problems.push("drain.limit: must leave room for drain.window and timeouts.close".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            anyhow::bail!("{}", problems.join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../configs/edge.toml");

    #[test]
    fn the_example_is_valid_and_shows_the_defaults() {
        let config: Config = daemon::config::parse("edge.toml", EXAMPLE).unwrap();
        config.check().unwrap();
        assert!(!config.reuse_port);
        assert_eq!(format!("{:?}", config.limits), format!("{:?}", Limits::default()));
        assert_eq!(format!("{:?}", config.timeouts), format!("{:?}", Timeouts::default()));
        assert_eq!(format!("{:?}", config.drain), format!("{:?}", Drain::default()));
        assert_eq!(
            format!("{:?}", config.continuity),
            format!("{:?}", Continuity::default())
        );
    }

    #[test]
    fn what_contradicts_is_reported_together_and_the_key_stays_secret() {
        let text = EXAMPLE
            .replace("header_bytes_max = 16384", "header_bytes_max = 0")
            .replace("limit = \"20s\"", "limit = \"1s\"")
            .replace("\"http://127.0.0.1:7100\"", "\"seven\", \"http://127.0.0.1:7000\"");
        let config: Config = daemon::config::parse("edge.toml", &text).unwrap();
        let error = config.check().unwrap_err().to_string();
        for complaint in ["header_bytes_max", "drain.limit", "\"seven\""] {
            assert!(error.contains(complaint), "{error}");
        }
        assert!(format!("{config:?}").contains("AffinityKey(secret)"));
        let short = EXAMPLE.replace("00112233", "");
        let error = daemon::config::parse::<Config>("edge.toml", &short)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("at least 32 bytes") && !error.contains("445566"),
            "{error}"
        );
    }
}
