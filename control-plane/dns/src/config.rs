//! configs/dns.toml.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use topology::NodeId;

use crate::networks::{Network, Networks};

/// Configuration of a DNS responder. Paths are relative to the folder of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name; also its answer to NSID (RFC 5001).
    pub node: NodeId,
    /// Where it answers, UDP and TCP alike; the unspecified address means every address of the machine. Port 0 takes one that is
    /// free for both.
    pub listen: Vec<SocketAddr>,
    /// Where metrics and health are served.
    pub admin_listen: SocketAddr,
    /// Control planes, `http://address:port`, all followed at once. None: the plan on disk is all there is.
    #[serde(default)]
    pub control_planes: Vec<String>,
    /// Folder that keeps the last good plan; made when missing.
    pub state_dir: PathBuf,
    /// Where resolvers stand.
    #[serde(default)]
    pub network: Vec<Network>,
}

impl Config {
    /// What the format alone cannot say, all problems at once.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut problems = Vec::new();
        if self.listen.is_empty() {
            problems.push("listen: name at least one \"address:port\"".to_owned());
        }
        for endpoint in &self.control_planes {
            if !endpoint.starts_with("http://") {
                problems.push(format!("control_planes: \"{endpoint}\" is not http://address:port"));
            }
        }
        if let Err(found) = Networks::new(&self.network) {
            problems.extend(found);
        }
        anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
        Ok(())
    }

    /// The same with every path made relative to the folder of `config_file`.
    pub fn with_paths_beside(mut self, config_file: &Path) -> Self {
        let folder = config_file.parent().unwrap_or(Path::new("."));
        self.state_dir = folder.join(&self.state_dir);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_configuration_is_read() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/dns.toml");
        let config: Config = daemon::config::load(&file).unwrap();
        config.check().unwrap();
        assert!(config.listen.iter().all(|address| address.ip().is_loopback()));
        let config = config.with_paths_beside(&file);
        assert_eq!(config.state_dir, file.parent().unwrap().join("dns-state"));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let text = "node = \"dns-1\"\nlisten = []\nadmin_listen = \"127.0.0.1:0\"\nstate_dir = \"state\"\n\
                    control_planes = [\"127.0.0.1:7100\"]\n\
                    [[network]]\nprefix = \"10.0.0.0/40\"\nlatitude = 0.0\nlongitude = 0.0\n\
                    [[network]]\nprefix = \"::/0\"\nlatitude = 91.0\nlongitude = 0.0\n";
        let config: Config = daemon::config::parse("dns.toml", text).unwrap();
        let error = config.check().unwrap_err().to_string();
        for complaint in ["at least one", "is not http://", "10.0.0.0/40", "-90 to 90"] {
            assert!(error.contains(complaint), "{error}");
        }
    }
}
