//! configs/control-plane.toml.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use topology::{NodeId, document::Span};

/// Configuration of a control plane. Paths are relative to the folder of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, also as a vantage; several control planes have different ones.
    #[serde(default = "default_node")]
    pub node: NodeId,
    /// Where edges, DNS responders and operators reach it (gRPC).
    #[serde(default = "loopback")]
    pub listen: SocketAddr,
    /// Where operators are sent when it leads, `http://address:port`; where it listens when left out.
    #[serde(default)]
    pub advertise: Option<Advertise>,
    /// Where metrics and health are served.
    #[serde(default = "loopback")]
    pub admin_listen: SocketAddr,
    /// The topology document.
    pub topology: PathBuf,
    /// The policy document.
    pub policy: PathBuf,
    /// Where decisions are kept.
    pub store: StoreConfig,
}

/// Where decisions are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "StoreSection")]
pub enum StoreConfig {
    /// In one file, made when missing; for a control plane that is alone.
    Embedded {
        /// Which file.
        file: PathBuf,
    },
    /// In etcd, shared by all control planes.
    Etcd {
        /// Its members, `http://address:port`.
        endpoints: Vec<String>,
        /// Another control plane takes over when the one that leads has not been heard of for so long.
        lease_ttl: Duration,
    },
}

/// An election takes a few seconds; a process that is merely busy keeps its lease.
const LEASE_TTL_DEFAULT: Duration = Duration::from_secs(5);
/// Below, one slow write of etcd's disk costs the lead; above, nobody decides for longer than a failover may take.
const LEASE_TTL_MIN: Duration = Duration::from_secs(2);
const LEASE_TTL_MAX: Duration = Duration::from_secs(60);

/// `[store]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a section: [store] with file = \"meridian.redb\", or with etcd = [\"http://address:port\"]"
)]
struct StoreSection {
    file: Option<PathBuf>,
    etcd: Option<Vec<String>>,
    lease_ttl: Option<Span>,
}

impl TryFrom<StoreSection> for StoreConfig {
    type Error = String;

    fn try_from(section: StoreSection) -> Result<Self, String> {
        let StoreSection { file, etcd, lease_ttl } = section;
        let mut problems = Vec::new();
        let store = match (file, etcd) {
            (Some(file), None) => {
                if file.as_os_str().is_empty() {
                    problems.push("store.file: it is empty".to_owned());
                }
                if lease_ttl.is_some() {
                    problems.push("store.lease_ttl: only control planes that share etcd take turns".to_owned());
                }
                Some(Self::Embedded { file })
            }
            (None, Some(endpoints)) => {
                if endpoints.is_empty() {
                    problems.push("store.etcd: name at least one member".to_owned());
                }
                for endpoint in endpoints.iter().filter(|endpoint| !is_url(endpoint)) {
                    problems.push(format!(
                        "store.etcd: \"{endpoint}\" is not of the form http://address:port"
                    ));
                }
                let lease_ttl = lease_ttl.map_or(LEASE_TTL_DEFAULT, |span| span.0);
                if !(LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(&lease_ttl) || lease_ttl.subsec_nanos() != 0 {
                    problems.push("store.lease_ttl: it must be 2s to 60s, in whole seconds".to_owned());
                }
                Some(Self::Etcd { endpoints, lease_ttl })
            }
            (Some(_), Some(_)) => {
                problems.push("store: give either file or etcd, not both".to_owned());
                None
            }
            (None, None) => {
                problems.push("store: give file (one control plane) or etcd (several)".to_owned());
                None
            }
        };
        store.filter(|_| problems.is_empty()).ok_or_else(|| problems.join("; "))
    }
}

/// A URL that others reach us by.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Advertise(String);

impl TryFrom<String> for Advertise {
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        if is_url(&url) {
            Ok(Self(url))
        } else {
            Err(format!("advertise: \"{url}\" is not of the form http://address:port"))
        }
    }
}

fn is_url(text: &str) -> bool {
    let parts = text.strip_prefix("http://").and_then(|rest| rest.rsplit_once(':'));
    parts.is_some_and(|(host, port)| {
        // Whatever is no host is found when it is connected to; this finds what was pasted into the wrong place.
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/?#@\"".contains(c);
        !host.is_empty() && !host.contains(odd) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn default_node() -> NodeId {
    NodeId::new("control-plane").expect("the name is an id")
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

impl Config {
    /// What the format alone cannot say.
    pub fn check(&self) -> anyhow::Result<()> {
        let shared = matches!(self.store, StoreConfig::Etcd { .. });
        anyhow::ensure!(
            !shared || self.advertise.is_some() || !self.listen.ip().is_unspecified(),
            "advertise: {} is no address that other control planes could send operators to; give the URL they reach \
             this one by",
            self.listen
        );
        Ok(())
    }

    /// The URL operators are sent to when it leads; `bound` is where it listens.
    pub fn advertised(&self, bound: SocketAddr) -> String {
        match &self.advertise {
            Some(Advertise(url)) => url.clone(),
            None => format!("http://{bound}"),
        }
    }

    /// The same with every path made relative to the folder of `config_file`.
    pub fn with_paths_beside(mut self, config_file: &Path) -> Self {
        let folder = config_file.parent().unwrap_or(Path::new("."));
        let mut paths = vec![&mut self.topology, &mut self.policy];
        if let StoreConfig::Embedded { file } = &mut self.store {
            paths.push(file);
        }
        for path in paths {
            *path = folder.join(&path);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped(name: &str) -> Config {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name);
        let config: Config = daemon::config::load(&file).unwrap();
        config.check().unwrap();
        assert!(config.listen.ip().is_loopback() && config.admin_listen.ip().is_loopback());
        let config = config.with_paths_beside(&file);
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        topology::Topology::parse("topology.toml", &read(&config.topology)).unwrap();
        topology::Policy::parse("policy.toml", &read(&config.policy)).unwrap();
        config
    }

    #[test]
    fn the_shipped_configurations_are_read_and_their_documents_are_there() {
        let alone = shipped("control-plane.toml");
        assert!(matches!(&alone.store, StoreConfig::Embedded { file } if file.ends_with("configs/meridian.redb")));
        let bound = "127.0.0.1:7100".parse().unwrap();
        assert_eq!(alone.advertised(bound), "http://127.0.0.1:7100");

        let one_of_three = shipped("control-plane-etcd.toml");
        let StoreConfig::Etcd { endpoints, lease_ttl } = &one_of_three.store else {
            panic!("{:?}", one_of_three.store);
        };
        assert_eq!((endpoints.len(), *lease_ttl), (3, LEASE_TTL_DEFAULT));
        assert_eq!(one_of_three.advertised(loopback()), "http://127.0.0.1:7110");
    }

    fn parse(head: &str, store: &str) -> Result<Config, String> {
        let text = format!("topology = \"t\"\npolicy = \"p\"\n{head}\n{store}\n");
        daemon::config::parse::<Config>("control-plane.toml", &text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_store_is_a_file_or_etcd_and_everything_else_is_explained() {
        let etcd = "[store]\netcd = [\"http://10.0.0.1:2379\"]\n";
        for (store, complaint) in [
            ("", "missing field `store`"),
            ("store = \"meridian.redb\"", "[store] with file = "),
            ("[store]", "give file (one control plane) or etcd (several)"),
            ("[store]\nfile = \"f\"\netcd = [\"http://a:1\"]", "not both"),
            ("[store]\nfile = \"\"", "store.file: it is empty"),
            ("[store]\nfile = \"f\"\nlease_ttl = \"5s\"", "take turns"),
            ("[store]\netcd = []", "at least one member"),
            (
                "[store]\netcd = [\"http://a:1\", \"10.0.0.1:2379\"]",
                "\"10.0.0.1:2379\" is not",
            ),
            (&format!("{etcd}lease_ttl = \"1s\""), "2s to 60s"),
            (&format!("{etcd}lease_ttl = \"61s\""), "2s to 60s"),
            (&format!("{etcd}lease_ttl = \"2500ms\""), "whole seconds"),
            (&format!("{etcd}leas_ttl = \"5s\""), "unknown field `leas_ttl`"),
        ] {
            let error = parse("", store).unwrap_err();
            assert!(error.contains(complaint), "{store}: {error}");
        }
        for ttl in ["2s", "60s", "1m"] {
            parse("", &format!("{etcd}lease_ttl = \"{ttl}\"")).unwrap();
        }
    }

    #[test]
    fn others_are_told_an_address_they_can_reach() {
        let etcd = "[store]\netcd = [\"http://10.0.0.1:2379\"]\n";
        for nonsense in ["10.0.0.1:1", "http://", "http://10.0.0.1", "http://a/b:1", "http://a:0"] {
            let error = parse(&format!("advertise = \"{nonsense}\""), etcd).unwrap_err();
            assert!(error.contains("is not of the form"), "{nonsense}: {error}");
        }
        let everywhere = "listen = \"0.0.0.0:7100\"";
        let error = parse(everywhere, etcd).unwrap().check().unwrap_err().to_string();
        assert!(error.contains("advertise: 0.0.0.0:7100 is no address"), "{error}");
        let named = format!("{everywhere}\nadvertise = \"http://cp-1:7100\"");
        let config = parse(&named, etcd).unwrap();
        config.check().unwrap();
        assert_eq!(config.advertised(config.listen), "http://cp-1:7100");
        parse(everywhere, "[store]\nfile = \"f\"").unwrap().check().unwrap();
    }
}
