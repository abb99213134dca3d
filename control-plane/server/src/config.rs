//! The configuration of a control plane (configs/control-plane.toml).

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use daemon::config::{Problems, Rules};
use identity::{Grant, Mode, ToStacks, files::Files};
use serde::Deserialize;
use topology::{NodeId, document::Span};

use crate::grpc::certificates::Issuer;

/// Configuration of a control plane. Paths are relative to the folder of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name, also as a vantage. Each control plane of a deployment has its own.
    #[serde(default = "default_node")]
    pub node: NodeId,
    /// Address for edges, name servers and operators (gRPC).
    #[serde(default = "loopback")]
    pub listen: SocketAddr,
    /// The URL at which the others send operators while this one leads, `https://address:port` or, without TLS,
    /// `http://address:port`; by default the address it listens at.
    #[serde(default)]
    pub advertise: Option<Advertise>,
    /// Address of metrics and health.
    #[serde(default = "loopback")]
    pub admin_listen: SocketAddr,
    /// File of the topology document.
    pub topology: PathBuf,
    /// File of the policy document.
    pub policy: PathBuf,
    /// Its identity, and the peers that it lets in. Without this section it speaks plain text, and believes names.
    #[serde(default)]
    pub identity: Option<IdentitySection>,
    /// The operators whom it gives certificates.
    #[serde(default)]
    pub operators: OperatorsSection,
    /// The audit log outside of the store.
    #[serde(default)]
    pub audit: AuditSection,
    /// The store of decisions; see [`Config::store`].
    store: StoreSection,
}

/// `[identity]`: the certificate of this control plane, and the peers that it lets in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentitySection {
    /// The peers that it lets in.
    #[serde(default)]
    pub mode: Mode,
    /// As in [`Files`].
    pub certificate: PathBuf,
    /// As in [`Files`].
    pub key: PathBuf,
    /// As in [`Files`].
    pub trust: PathBuf,
    /// Whether the stacks that it probes prove their region.
    #[serde(default)]
    pub stacks: ToStacks,
    /// The issuer with which this control plane renews the certificates of processes, its own too; without it, they are renewed
    /// elsewhere.
    #[serde(default)]
    pub issuer_certificate: Option<PathBuf>,
    /// The issuer's key.
    #[serde(default)]
    pub issuer_key: Option<PathBuf>,
}

/// `[audit]`: the audit log outside of the store.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSection {
    /// The folder into which this control plane writes signed heads. Without it only `meridian audit head` exports them.
    #[serde(default)]
    pub heads: Option<PathBuf>,
}

/// `[operators]`: who logs in at this control plane.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorsSection {
    /// The file with the hashes of tokens, operators.toml. Without it no token logs in.
    #[serde(default)]
    pub tokens: Option<PathBuf>,
    /// The identity provider of people. Without it they log in where the authority's key is.
    #[serde(default)]
    pub oidc: Option<OidcSection>,
}

/// `[operators.oidc]`: the identity provider, and what its groups allow.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcSection {
    /// Its address, as it calls itself in tokens.
    issuer: String,
    /// The name of this deployment there.
    client_id: String,
    #[serde(default = "default_scope")]
    scope: String,
    /// The roots under which it proves its name, in PEM. Without it, those of the machine count.
    #[serde(default)]
    trust: Option<PathBuf>,
    /// The claim with the operator's name: one that nobody can choose or inherit.
    #[serde(default = "default_name_claim")]
    name_claim: String,
    /// The claim with the list of groups.
    #[serde(default = "default_groups_claim")]
    groups_claim: String,
    /// The roles of each group.
    role: Vec<GroupRoles>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupRoles {
    group: String,
    roles: String,
}

impl OidcSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        if !oidc::is_private(&self.issuer) {
            let text = format!(
                "\"{:.100}\" is not the address of an issuer; write \"https://id.example\"",
                self.issuer
            );
            problems.add("operators.oidc.issuer", text);
        }
        if self.role.is_empty() {
            let text =
                "the list is empty, and nobody may do anything; add [[operators.oidc.role]] with group and roles";
            problems.add("operators.oidc.role", text);
        }
        for (at, GroupRoles { roles, .. }) in self.role.iter().enumerate() {
            if let Err(text) = Grant::list_to_log_in(roles) {
                problems.add(format!("operators.oidc.role[{at}].roles"), text);
            }
        }
        problems
    }

    /// The provider's settings; [`OidcSection::problems`] has been asked before.
    pub(crate) fn settings(&self) -> oidc::Settings {
        let mut roles = BTreeMap::<String, Vec<Grant>>::new();
        for GroupRoles { group, roles: text } in &self.role {
            let grants = Grant::list_to_log_in(text).unwrap_or_default();
            roles.entry(group.clone()).or_default().extend(grants);
        }
        oidc::Settings {
            issuer: self.issuer.clone(),
            client_id: self.client_id.clone(),
            scope: self.scope.clone(),
            trust: self.trust.clone(),
            rules: oidc::Rules {
                name_claim: self.name_claim.clone(),
                groups_claim: self.groups_claim.clone(),
                roles,
            },
        }
    }
}

fn default_scope() -> String {
    "openid groups".to_owned()
}

fn default_name_claim() -> String {
    "sub".to_owned()
}

fn default_groups_claim() -> String {
    "groups".to_owned()
}

impl IdentitySection {
    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let own = [&mut self.certificate, &mut self.key, &mut self.trust];
        own.into_iter()
            .chain(&mut self.issuer_certificate)
            .chain(&mut self.issuer_key)
    }

    /// The files of the issuer.
    pub(crate) fn issuer(&self) -> Option<Issuer> {
        Some(Issuer {
            certificate: self.issuer_certificate.clone()?,
            key: self.issuer_key.clone()?,
        })
    }

    /// The files.
    pub fn files(&self) -> Files {
        Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            trust: self.trust.clone(),
        }
    }
}

/// The store of decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// One file, created if missing, for a single control plane.
    Embedded {
        /// The file's path.
        file: PathBuf,
    },
    /// An etcd cluster, shared by all control planes.
    Etcd {
        /// URLs of its members, `https://address:port`, or `http://address:port` without TLS.
        endpoints: Vec<String>,
        /// The identity that this control plane shows to them; `None` for plain text.
        files: Option<Files>,
        /// Another control plane takes over after the leader was silent for this long.
        lease_ttl: Duration,
    },
}

/// An election takes a few seconds; a leader that is merely busy keeps its lease for this long.
const LEASE_TTL_DEFAULT: Duration = Duration::from_secs(5);
/// Below the minimum, one slow write of etcd's disk costs the leadership. Above the maximum, no control plane decides for longer
/// than a failover may take.
const LEASE_TTL_MIN: Duration = Duration::from_secs(2);
const LEASE_TTL_MAX: Duration = Duration::from_secs(60);

/// `[store]` as it stands in the file: either `file`, or `etcd`.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a section: [store] with file = \"meridian.redb\", or with etcd = [\"http://address:port\"]"
)]
pub struct StoreSection {
    file: Option<PathBuf>,
    etcd: Option<Vec<String>>,
    lease_ttl: Option<Span>,
    /// The certificate that this control plane shows to etcd, and the authority of etcd's members.
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    trust: Option<PathBuf>,
}

impl StoreSection {
    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let own = [&mut self.file, &mut self.certificate, &mut self.key, &mut self.trust];
        own.into_iter().flatten()
    }

    fn files(&self) -> Option<Files> {
        Some(Files {
            certificate: self.certificate.clone()?,
            key: self.key.clone()?,
            trust: self.trust.clone()?,
        })
    }

    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        let has_tls = self.files().is_some();
        let named = [&self.certificate, &self.key, &self.trust]
            .into_iter()
            .flatten()
            .count();
        if named > 0 && (!has_tls || self.etcd.is_none()) {
            let text = "certificate, key and trust belong together, and to etcd; write all three with etcd, or none";
            problems.add("store", text);
        }
        match (&self.file, &self.etcd) {
            (Some(file), None) => {
                if file.as_os_str().is_empty() {
                    problems.add("store.file", "the path is empty; write file = \"meridian.redb\"");
                }
                if self.lease_ttl.is_some() {
                    let text = "a control plane with a file has no lease; remove it, or write etcd instead of file";
                    problems.add("store.lease_ttl", text);
                }
            }
            (None, Some(endpoints)) => {
                if endpoints.is_empty() {
                    let text = "the list is empty; write at least one member, such as [\"http://10.0.0.1:2379\"]";
                    problems.add("store.etcd", text);
                }
                for (index, endpoint) in endpoints.iter().enumerate() {
                    let is_secure = endpoint.starts_with("https://");
                    let text = match is_url(&endpoint.replacen("https://", "http://", 1)) {
                        true if is_secure == has_tls => continue,
                        true if is_secure => format!(
                            "\"{endpoint}\" needs a certificate to show; write certificate, key and trust in [store], or http://"
                        ),
                        true => format!("\"{endpoint}\" is plain text, and [store] has a certificate; write https://"),
                        false => format!(
                            "\"{endpoint}\" is not the URL of a member; write \"https://address:port\", or http:// without TLS"
                        ),
                    };
                    problems.add(format!("store.etcd[{index}]"), text);
                }
                let lease_ttl = self.lease_ttl();
                if !(LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(&lease_ttl) || lease_ttl.subsec_nanos() != 0 {
                    let text = format!(
                        "\"{}\" is out of range; write whole seconds from \"2s\" to \"60s\"",
                        Span(lease_ttl)
                    );
                    problems.add("store.lease_ttl", text);
                }
            }
            (Some(_), Some(_)) => problems.add("store", "file and etcd exclude each other; remove one of them"),
            (None, None) => {
                let text = "file and etcd are missing; write file for one control plane, or etcd for several";
                problems.add("store", text);
            }
        }
        problems
    }

    fn lease_ttl(&self) -> Duration {
        self.lease_ttl.map_or(LEASE_TTL_DEFAULT, |span| span.0)
    }
}

/// A URL at which others reach this control plane.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Advertise(String);

impl TryFrom<String> for Advertise {
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        if is_url(&url.replacen("https://", "http://", 1)) {
            Ok(Self(url))
        } else {
            Err(format!(
                "\"{url}\" is not a URL; write \"https://address:port\", or http:// without TLS"
            ))
        }
    }
}

fn is_url(text: &str) -> bool {
    let parts = text.strip_prefix("http://").and_then(|rest| rest.rsplit_once(':'));
    parts.is_some_and(|(host, port)| {
        // This check finds text pasted into the wrong place. A host that does not exist shows when a client connects.
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

impl Rules for Config {
    const EXAMPLE: &'static str = include_str!("../../../configs/control-plane.toml");

    fn problems(&self) -> Problems {
        let mut problems = self.store.problems();
        if let Some(identity) = &self.identity
            && identity.issuer_certificate.is_some() != identity.issuer_key.is_some()
        {
            let text = "issuer_certificate and issuer_key belong together; write both, or neither";
            problems.add("identity", text);
        }
        let signs = self.identity.as_ref().is_some_and(|it| it.issuer_certificate.is_some());
        if let Some(oidc) = &self.operators.oidc {
            problems.extend(oidc.problems());
        }
        if (self.operators.tokens.is_some() || self.operators.oidc.is_some()) && !signs {
            let text = "whoever logs in gets a certificate, which this control plane cannot sign; write issuer_certificate and issuer_key in [identity]";
            problems.add("operators", text);
        }
        if self.audit.heads.is_some() && self.identity.is_none() {
            let text = "heads are signed with the key of this control plane's certificate, and it has none; write [identity], or remove it";
            problems.add("audit.heads", text);
        }
        if self.mode() == Mode::Required
            && let Some(Advertise(url)) = &self.advertise
            && !url.starts_with("https://")
        {
            let text = format!("\"{url}\" speaks plain text, which identity.mode does not let in; write https://");
            problems.add("advertise", text);
        }
        if self.store.etcd.is_some() && self.advertise.is_none() && self.listen.ip().is_unspecified() {
            let text = format!(
                "missing, and operators cannot be sent to {}; write the URL of this control plane, such as \
                 advertise = \"http://10.0.0.1:7100\"",
                self.listen
            );
            problems.add("advertise", text);
        }
        problems
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let documents = [&mut self.topology, &mut self.policy];
        let identity = self.identity.iter_mut().flat_map(IdentitySection::paths);
        let provider = self.operators.oidc.iter_mut().flat_map(|oidc| &mut oidc.trust);
        let operators = self.operators.tokens.iter_mut().chain(provider);
        documents
            .into_iter()
            .chain(self.store.paths())
            .chain(identity)
            .chain(operators)
            .chain(&mut self.audit.heads)
            .collect()
    }
}

impl Config {
    /// The peers that it lets in.
    pub fn mode(&self) -> Mode {
        self.identity.as_ref().map_or(Mode::Off, |identity| identity.mode)
    }

    /// The URL for operators while this control plane leads; `bound` is the address that it listens at.
    pub fn advertised(&self, bound: SocketAddr) -> String {
        match &self.advertise {
            Some(Advertise(url)) => url.clone(),
            None => match self.mode() {
                Mode::Off => format!("http://{bound}"),
                Mode::Permissive | Mode::Required => format!("https://{bound}"),
            },
        }
    }

    /// The store of decisions.
    pub fn store(&self) -> StoreConfig {
        match &self.store.etcd {
            Some(endpoints) => StoreConfig::Etcd {
                endpoints: endpoints.clone(),
                files: self.store.files(),
                lease_ttl: self.store.lease_ttl(),
            },
            None => StoreConfig::Embedded {
                file: self.store.file.clone().unwrap_or_default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shipped(name: &str) -> Config {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name);
        let config: Config = daemon::config::load(&file).unwrap();
        assert!(config.listen.ip().is_loopback() && config.admin_listen.ip().is_loopback());
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        topology::Topology::parse("topology.toml", &read(&config.topology)).unwrap();
        topology::Policy::parse("policy.toml", &read(&config.policy)).unwrap();
        config
    }

    #[test]
    fn the_shipped_configurations_are_read_and_their_documents_are_there() {
        let alone = shipped("control-plane.toml");
        assert!(matches!(alone.store(), StoreConfig::Embedded { file } if file.ends_with("configs/meridian.redb")));
        let bound = "127.0.0.1:7100".parse().unwrap();
        assert_eq!(alone.advertised(bound), "http://127.0.0.1:7100");

        let one_of_three = shipped("control-plane-etcd.toml");
        let StoreConfig::Etcd {
            endpoints, lease_ttl, ..
        } = one_of_three.store()
        else {
            panic!("{:?}", one_of_three.store);
        };
        assert_eq!((endpoints.len(), lease_ttl), (3, LEASE_TTL_DEFAULT));
        assert_eq!(one_of_three.advertised(loopback()), "http://127.0.0.1:7110");
    }

    fn parse(head: &str, store: &str) -> Result<Config, String> {
        let text = format!("topology = \"t\"\npolicy = \"p\"\n{head}\n{store}\n");
        daemon::config::read::<Config>("control-plane.toml", &text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_store_is_a_file_or_etcd_and_everything_else_is_explained() {
        let etcd = "[store]\netcd = [\"http://10.0.0.1:2379\"]\n";
        for (store, complaint) in [
            ("", "store: missing; add the section [store]"),
            ("store = \"meridian.redb\"", "[store] with file = "),
            ("[store]", "write file for one control plane, or etcd for several"),
            ("[store]\nfile = \"f\"\netcd = [\"http://a:1\"]", "remove one of them"),
            (
                "[store]\nfile = \"\"",
                "store.file: the path is empty; write file = \"meridian.redb\"",
            ),
            ("[store]\nfile = \"f\"\nlease_ttl = \"5s\"", "has no lease; remove it"),
            ("[store]\netcd = []", "write at least one member"),
            (
                "[store]\netcd = [\"http://a:1\", \"10.0.0.1:2379\"]",
                "\"10.0.0.1:2379\" is not the URL of a member; write",
            ),
            (&format!("{etcd}lease_ttl = \"1s\""), "write whole seconds from"),
            (&format!("{etcd}lease_ttl = \"61s\""), "write whole seconds from"),
            (
                &format!("{etcd}lease_ttl = \"2500ms\""),
                "\"2500ms\" is out of range; write whole seconds",
            ),
            (
                &format!("{etcd}leas_ttl = \"5s\""),
                "store.leas_ttl: unknown key; write lease_ttl, or remove it",
            ),
        ] {
            let error = parse("", store).unwrap_err();
            assert!(error.contains(complaint), "{store}: {error}");
        }
        for ttl in ["2s", "60s", "1m"] {
            parse("", &format!("{etcd}lease_ttl = \"{ttl}\"")).unwrap();
        }
    }

    #[test]
    fn only_a_control_plane_that_signs_lets_operators_log_in() {
        let store = "[store]\nfile = \"f\"\n[operators]\ntokens = \"operators.toml\"\n";
        let error = parse("", store).unwrap_err();
        assert!(
            error.contains("operators: whoever logs in gets a certificate"),
            "{error}"
        );
        let files = "certificate = \"c\"\nkey = \"k\"\ntrust = \"t\"\nissuer_certificate = \"i\"\nissuer_key = \"k\"\n";
        parse("", &format!("{store}[identity]\n{files}")).unwrap();
    }

    #[test]
    fn only_a_control_plane_with_a_certificate_signs_heads() {
        let store = "[store]\nfile = \"f\"\n[audit]\nheads = \"heads\"\n";
        let error = parse("", store).unwrap_err();
        assert!(error.contains("audit.heads: heads are signed with the key"), "{error}");
        let files = "[identity]\ncertificate = \"c\"\nkey = \"k\"\ntrust = \"t\"\n";
        parse("", &format!("{store}{files}")).unwrap();
    }

    #[test]
    fn others_are_told_an_address_they_can_reach() {
        let etcd = "[store]\netcd = [\"http://10.0.0.1:2379\"]\n";
        for nonsense in ["10.0.0.1:1", "http://", "http://10.0.0.1", "http://a/b:1", "http://a:0"] {
            let error = parse(&format!("advertise = \"{nonsense}\""), etcd).unwrap_err();
            assert!(error.contains("is not a URL; write"), "{nonsense}: {error}");
        }
        let everywhere = "listen = \"0.0.0.0:7100\"";
        let error = parse(everywhere, etcd).unwrap_err();
        assert!(
            error.contains("advertise: missing, and operators cannot be sent to 0.0.0.0:7100; write"),
            "{error}"
        );
        let named = format!("{everywhere}\nadvertise = \"http://cp-1:7100\"");
        let config = parse(&named, etcd).unwrap();
        assert_eq!(config.advertised(config.listen), "http://cp-1:7100");
        parse(everywhere, "[store]\nfile = \"f\"").unwrap();
    }
}
