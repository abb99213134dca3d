//! Reads configs/dns.toml.

use std::{net::SocketAddr, path::PathBuf};

use daemon::config::{Problems, Rules};
use serde::Deserialize;
use topology::NodeId;

use crate::networks::{Network, Networks};

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
    /// The positions of resolvers, by network.
    #[serde(default)]
    pub network: Vec<Network>,
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
        if let Err(found) = Networks::new(&self.network) {
            problems.extend(found);
        }
        problems
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let identity = self.identity.iter_mut().flat_map(|files| files.paths());
        identity.chain([&mut self.state_dir]).collect()
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
                    control_planes = [\"127.0.0.1:7100\"]\n\
                    [[network]]\nprefix = \"10.0.0.0/40\"\nlatitude = 0.0\nlongitude = 0.0\n\
                    [[network]]\nprefix = \"::/0\"\nlatitude = 91.0\nlongitude = 0.0\n";
        let error = daemon::config::read::<Config>("dns.toml", text)
            .unwrap_err()
            .to_string();
        for complaint in [
            "dns.toml:2: listen: the list is empty; write",
            "control_planes: \"127.0.0.1:7100\" is not the URL of a control plane; write",
            "network[0].prefix: \"10.0.0.0/40\" is longer than an address; write a length of at most 32",
            "network[1].latitude: 91 is out of range; write degrees from -90 to 90",
        ] {
            assert!(error.contains(complaint), "{error}");
        }
    }
}
