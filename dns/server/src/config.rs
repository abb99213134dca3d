//! Reads configs/dns.toml.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use daemon::config::{Problems, Rules};
use serde::Deserialize;
use steering::{AllOut, Settings};
use topology::{EdgeId, NodeId};

use crate::{
    networks::{self, Network},
    reply::AMPLIFICATION,
    serve::RateLimit,
    signer::KEYS_MAX,
    texts, tls,
};

/// Configuration of a DNS responder. Paths are relative to the folder of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this responder, and its answer to NSID (RFC 5001).
    pub node: NodeId,
    /// The addresses for DNS, each UDP and TCP. The unspecified address means every address of the machine. Port 0
    /// takes a port that is free for both.
    pub listen: Vec<SocketAddr>,
    /// The address for metrics and health.
    pub admin_listen: SocketAddr,
    /// URLs of the control planes, `https://address:port` or, without TLS, `http://address:port`. All are followed at once. Without any, the plan on disk stays
    /// in force.
    #[serde(default)]
    pub control_planes: Vec<String>,
    /// The identity that this name server shows to control planes.
    #[serde(default)]
    pub identity: Option<identity::files::Files>,
    /// Folder for the last good plan. It is created if it does not exist.
    pub state_dir: PathBuf,
    /// A database of places in MaxMind's format, read again when it changes.
    #[serde(default)]
    pub geoip_database: Option<PathBuf>,
    /// True if this server measures the time of a connection to each edge, for clients without a place.
    #[serde(default)]
    pub measure_edges: bool,
    /// Seconds of each step in which an edge that returns gets its clients back. 0: all at once.
    #[serde(default = "return_step_s")]
    pub return_step_s: u64,
    /// The edges that answers name when the plan names none.
    #[serde(default)]
    pub all_out: AllOutMode,
    /// The edges of `all_out = "static"`.
    #[serde(default)]
    pub all_out_edges: Vec<EdgeId>,
    /// The secret of all name servers of the zone for cookies (RFC 9018), 32 hexadecimal digits. Without it, each start
    /// makes a new one.
    #[serde(default)]
    pub cookie_secret: Option<String>,
    /// DNS over TLS. Without it there is none.
    #[serde(default)]
    pub tls: Option<tls::Settings>,
    /// The keys of the zone. Without them it is not signed.
    #[serde(default)]
    pub dnssec: Option<Dnssec>,
    /// The limit on replies over UDP.
    #[serde(default)]
    pub rate_limit: RateLimit,
    /// The positions of resolvers and clients, by network.
    #[serde(default)]
    pub network: Vec<Network>,
}

/// The keys with which answers are signed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dnssec {
    /// Files, each with one key, the one that signs first.
    pub keys: Vec<PathBuf>,
}

/// Longest step of an edge that returns, in seconds: an hour and a half until it has all its clients.
const RETURN_STEP_MAX_S: u64 = 1200;
/// Most times that a reply over UDP may be as long as its question: a signed denial and the signatures of two keys fit.
const AMPLIFICATION_MAX: usize = 10;
/// Largest slip. With more, honest clients would hardly ever learn to use TCP.
const SLIP_MAX: u32 = 10;

fn return_step_s() -> u64 {
    Settings::default().return_step.as_secs()
}

/// The edges that answers name when the plan names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllOutMode {
    /// The edges of the last plan that named any.
    #[default]
    LastGood,
    /// Every edge.
    All,
    /// The edges of `all_out_edges`.
    Static,
    /// Nothing.
    NoData,
}

impl Config {
    /// The settings that change answers.
    pub fn settings(&self) -> Settings {
        Settings {
            return_step: Duration::from_secs(self.return_step_s),
            all_out: match self.all_out {
                AllOutMode::LastGood => AllOut::LastGood,
                AllOutMode::All => AllOut::All,
                AllOutMode::Static => AllOut::Static(self.all_out_edges.iter().cloned().collect()),
                AllOutMode::NoData => AllOut::NoData,
            },
        }
    }

    /// The secret for cookies, if there is one.
    pub fn cookie_secret(&self) -> Option<[u8; 16]> {
        let mut secret = [0; 16];
        let digits = self.cookie_secret.as_deref()?;
        hex::decode_to_slice(digits, &mut secret).ok()?;
        Some(secret)
    }
}

impl Rules for Config {
    const EXAMPLE: &'static str = include_str!("../../../configs/dns.toml");

    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        if self.listen.is_empty() {
            problems.add(
                "listen",
                "the list is empty; write at least one, such as [\"0.0.0.0:53\"]",
            );
        }
        for endpoint in &self.control_planes {
            if let Some(text) = api::connect::url_problem(endpoint, self.identity.is_some()) {
                problems.add("control_planes", text);
            }
        }
        if self.cookie_secret.is_some() && self.cookie_secret().is_none() {
            problems.add("cookie_secret", texts::bad_cookie_secret());
        }
        if self.return_step_s > RETURN_STEP_MAX_S {
            problems.add(
                "return_step_s",
                texts::bad_return_step(self.return_step_s, RETURN_STEP_MAX_S),
            );
        }
        match (self.all_out, self.all_out_edges.is_empty()) {
            (AllOutMode::Static, true) => problems.add("all_out", texts::no_static_edges()),
            (AllOutMode::Static, false) | (_, true) => {}
            (_, false) => problems.add("all_out_edges", texts::static_edges_without_mode()),
        }
        if self.rate_limit.slip > SLIP_MAX {
            problems.add("rate_limit.slip", texts::bad_slip());
        }
        if !(AMPLIFICATION..=AMPLIFICATION_MAX).contains(&self.rate_limit.amplification) {
            problems.add("rate_limit.amplification", texts::bad_amplification());
        }
        if let Some(dnssec) = &self.dnssec
            && !(1..=KEYS_MAX).contains(&dnssec.keys.len())
        {
            problems.add("dnssec.keys", texts::bad_keys(KEYS_MAX));
        }
        if self.tls.as_ref().is_some_and(|tls| tls.listen.is_empty()) {
            problems.add("tls.listen", texts::tls_without_addresses());
        }
        if let Err(found) = networks::read(&self.network) {
            problems.extend(found);
        }
        problems
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let identity = self.identity.iter_mut().flat_map(|files| files.paths());
        identity
            .chain([&mut self.state_dir])
            .chain(&mut self.geoip_database)
            .chain(self.tls.iter_mut().flat_map(|tls| [&mut tls.certificate, &mut tls.key]))
            .chain(self.dnssec.iter_mut().flat_map(|dnssec| &mut dnssec.keys))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_shipped_configuration_is_read() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/dns.toml");
        let config: Config = daemon::config::load(&file).unwrap();
        assert!(config.listen.iter().all(|address| address.ip().is_loopback()));
        assert_eq!(config.state_dir, file.parent().unwrap().join("dns-state"));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let text = "node = \"dns-1\"\nlisten = []\nadmin_listen = \"127.0.0.1:0\"\nstate_dir = \"state\"\n\
                    control_planes = [\"127.0.0.1:7100\"]\ncookie_secret = \"abc\"\nreturn_step_s = 9999\n\
                    all_out = \"static\"\n[rate_limit]\nper_s = 5\nslip = 11\namplification = 2\n\
                    [dnssec]\nkeys = []\n[tls]\nlisten = []\ncertificate = \"c\"\nkey = \"k\"\n\
                    [[network]]\nprefix = \"10.0.0.0/40\"\nlatitude = 0.0\nlongitude = 0.0\n\
                    [[network]]\nprefix = \"::/0\"\nlatitude = 91.0\nlongitude = 0.0\n";
        let error = daemon::config::read::<Config>("dns.toml", text)
            .unwrap_err()
            .to_string();
        for complaint in [
            "dns.toml:2: listen: the list is empty; write",
            "control_planes: \"127.0.0.1:7100\" is not the URL of a control plane; write",
            "cookie_secret: write 32 hexadecimal digits",
            "return_step_s: 9999 is out of range; write 0 to 1200 seconds",
            "all_out: all_out = \"static\" names the edges of all_out_edges, and there are none",
            "rate_limit.slip: write 0 to 10",
            "rate_limit.amplification: write 3 to 10",
            "dnssec.keys: write 1 to 2 files",
            "tls.listen: the list is empty",
            "network[0].prefix: \"10.0.0.0/40\" is longer than an address; write a length of at most 32",
            "network[1].latitude: 91 is out of range; write degrees from -90 to 90",
        ] {
            assert!(error.contains(complaint), "{error}");
        }
    }
}
