//! configs/control-plane.toml.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use topology::NodeId;

/// Configuration of a control plane. Paths are relative to the folder of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, also as a vantage.
    #[serde(default = "default_node")]
    pub node: NodeId,
    /// Where edges, DNS responders and operators reach it (gRPC).
    #[serde(default = "loopback")]
    pub listen: SocketAddr,
    /// Where metrics and health are served.
    #[serde(default = "loopback")]
    pub admin_listen: SocketAddr,
    /// The embedded store: one file, made when missing.
    pub store: PathBuf,
    /// The topology document.
    pub topology: PathBuf,
    /// The policy document.
    pub policy: PathBuf,
}

fn default_node() -> NodeId {
    NodeId::new("control-plane").expect("the name is an id")
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

impl Config {
    /// The same with every path made relative to the folder of `config_file`.
    pub fn with_paths_beside(mut self, config_file: &Path) -> Self {
        let folder = config_file.parent().unwrap_or(Path::new("."));
        for path in [&mut self.store, &mut self.topology, &mut self.policy] {
            *path = folder.join(&path);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_configuration_is_read_and_its_documents_are_there() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/control-plane.toml");
        let config: Config = daemon::config::load(&file).unwrap();
        assert!(config.listen.ip().is_loopback() && config.admin_listen.ip().is_loopback());
        let config = config.with_paths_beside(&file);
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        topology::Topology::parse("topology.toml", &read(&config.topology)).unwrap();
        topology::Policy::parse("policy.toml", &read(&config.policy)).unwrap();
    }
}
