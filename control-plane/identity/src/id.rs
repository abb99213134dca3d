//! The name of a process or a person: a SPIFFE id, as in `spiffe://voice.example/edge/edge-dub`.

use std::{fmt, str::FromStr};

use crate::texts;

/// The scheme of a SPIFFE id (SPIFFE-ID §2).
const SCHEME: &str = "spiffe://";
/// Longest name in an id, in bytes: as in the topology.
const NAME_BYTES_MAX: usize = 64;
/// Longest trust domain, in bytes (SPIFFE-ID §2.1).
const ZONE_BYTES_MAX: usize = 255;

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    /// The trust domain: the zone of the deployment. Ids of another zone mean nothing here.
    pub zone: String,
    /// The process or person in it.
    pub role: Role,
}

/// The kind of a process or person, with its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A control plane, `/control-plane/NAME`.
    ControlPlane(String),
    /// An edge, `/edge/NAME`; the name is its id in the topology.
    Edge(String),
    /// A name server, `/dns/NAME`; the name is its id in the topology.
    Dns(String),
    /// A stack, `/stack/REGION/NAME`.
    Stack {
        /// The region that it serves.
        region: String,
        /// Its name in the region.
        name: String,
    },
    /// A member of etcd, `/etcd/NAME`. An authority of its own issues it.
    Etcd(String),
    /// A person or a tool, `/operator/NAME`.
    Operator(String),
}

/// The text is not an id of this deployment's kinds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::not_an_id(.0))]
pub struct BadId(pub String);

impl PeerId {
    /// The id of a role in a zone.
    ///
    /// # Errors
    ///
    /// The zone or a name has characters that SPIFFE does not allow, or is too long.
    pub fn new(zone: &str, role: Role) -> Result<Self, BadId> {
        Self {
            zone: zone.to_owned(),
            role,
        }
        .to_string()
        .parse()
    }
}

impl Role {
    /// The name without its kind, as in reports and requests.
    pub fn name(&self) -> &str {
        match self {
            Self::ControlPlane(name)
            | Self::Edge(name)
            | Self::Dns(name)
            | Self::Etcd(name)
            | Self::Operator(name)
            | Self::Stack { name, .. } => name,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlPlane(name) => write!(f, "control-plane/{name}"),
            Self::Edge(name) => write!(f, "edge/{name}"),
            Self::Dns(name) => write!(f, "dns/{name}"),
            Self::Stack { region, name } => write!(f, "stack/{region}/{name}"),
            Self::Etcd(name) => write!(f, "etcd/{name}"),
            Self::Operator(name) => write!(f, "operator/{name}"),
        }
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.zone, self.role)
    }
}

impl FromStr for Role {
    type Err = BadId;

    /// Reads `edge/edge-dub` and the like.
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId(text.to_owned());
        let mut parts = text.split('/');
        let kind = parts.next().ok_or_else(bad)?;
        let mut name = || parts.next().filter(|name| is_name(name)).map(str::to_owned);
        let role = match kind {
            "control-plane" => name().map(Self::ControlPlane),
            "edge" => name().map(Self::Edge),
            "dns" => name().map(Self::Dns),
            "etcd" => name().map(Self::Etcd),
            "operator" => name().map(Self::Operator),
            "stack" => name().zip(name()).map(|(region, name)| Self::Stack { region, name }),
            _ => None,
        };
        match (role, parts.next()) {
            (Some(role), None) => Ok(role),
            _ => Err(bad()),
        }
    }
}

impl FromStr for PeerId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId(text.to_owned());
        let rest = text.strip_prefix(SCHEME).ok_or_else(bad)?;
        let (zone, role) = rest.split_once('/').ok_or_else(bad)?;
        let role = role.parse().map_err(|_| bad())?;
        // SPIFFE-ID §2.1: lower-case letters, digits, dots, dashes and underscores.
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        if zone.is_empty() || zone.len() > ZONE_BYTES_MAX || !zone.chars().all(allowed) {
            return Err(bad());
        }
        Ok(Self {
            zone: zone.to_owned(),
            role,
        })
    }
}

/// SPIFFE-ID §2.2: a path segment is not empty, not `.` or `..`, and has letters, digits, dots, dashes and underscores.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !["", ".", ".."].contains(&name) && name.len() <= NAME_BYTES_MAX && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_they_are_read() {
        for text in [
            "spiffe://voice.example/control-plane/cp-1",
            "spiffe://voice.example/edge/edge-dub",
            "spiffe://voice.example/dns/ns1",
            "spiffe://voice.example/etcd/etcd-1",
            "spiffe://voice.example/stack/us-east/stack-3",
            "spiffe://voice.example/operator/alice.b",
        ] {
            assert_eq!(text.parse::<PeerId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_id_that_could_be_read_in_two_ways_is_none() {
        let long = format!("spiffe://z/edge/{}", "a".repeat(65));
        for text in [
            "",
            "spiffe://",
            "spiffe:///edge/a",
            "spiffe://z/edge",
            "spiffe://z/edge/",
            "spiffe://z/edge//a",
            "spiffe://z/edge/a/b",
            "spiffe://z/edge/a/",
            "spiffe://z/edge/..",
            "spiffe://z/edge/a%2fb",
            "spiffe://z/edge/a b",
            "spiffe://Z/edge/a",
            "spiffe://z:443/edge/a",
            "spiffe://u@z/edge/a",
            "spiffe://z/edge/a?b",
            "spiffe://z/stack/us-east",
            "spiffe://z/king/arthur",
            "https://z/edge/a",
            &long,
        ] {
            assert_eq!(text.parse::<PeerId>(), Err(BadId(text.to_owned())));
        }
        assert!(
            PeerId::new("z", Role::Edge("a/b".to_owned())).is_err(),
            "one name, not two"
        );
    }
}
