//! What exists: regions, edges and name servers, and the document they are written in (configs/topology.toml).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    Component, EdgeId, NodeId, Problem, Problems, RegionId, Stack,
    document::{self, Section},
};

/// Everything that exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// The DNS zone devices ask for, lower case, without the final dot. Its apex names the healthy edges.
    pub zone: String,
    /// All regions.
    pub regions: BTreeMap<RegionId, Region>,
    /// All edges.
    pub edges: BTreeMap<EdgeId, Edge>,
    /// The zone's name servers.
    pub name_servers: BTreeMap<NodeId, NameServer>,
}

/// A place with a full regional stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Its name.
    pub id: RegionId,
    /// Primary with its backups in order, or backup.
    pub role: Role,
    /// Where it stands.
    pub location: Location,
    /// Sessions it can hold at once.
    pub sessions_max: u32,
    /// New connections it can take per second; none when it is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connects_per_s_max: Option<u32>,
    /// Sessions that single components can serve at once, where that is fewer than `sessions_max`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<Component, u32>,
    /// Its stacks (gateways), at least one. The version of the first is the one in service: stacks of another wait for a
    /// rollout.
    pub stacks: Vec<Stack>,
}

/// What a region is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Role {
    /// Has sessions of its own.
    Primary {
        /// Where they go when it fails, first choice first.
        backups: Vec<RegionId>,
    },
    /// Takes sessions of failed primaries.
    Backup,
}

/// A point of presence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// Its name.
    pub id: EdgeId,
    /// Where devices reach it; IPv4 and IPv6 alike, at least one.
    pub addresses: Vec<IpAddr>,
    /// TCP port of its device side.
    pub port: u16,
    /// Where it stands.
    pub location: Location,
}

/// A name server of the zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameServer {
    /// Its name: the label below the zone.
    pub id: NodeId,
    /// Where it answers.
    pub address: IpAddr,
}

/// A place on Earth, in degrees.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// North is positive, -90..=90.
    pub latitude: f64,
    /// East is positive, -180..=180.
    pub longitude: f64,
}

impl Location {
    /// Great-circle distance in kilometres (haversine formula, mean Earth radius 6371 km).
    pub fn distance_km(self, other: Location) -> f64 {
        let (a, b) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half_latitude = ((b - a) / 2.0).sin();
        let half_longitude = ((other.longitude - self.longitude).to_radians() / 2.0).sin();
        let h = half_latitude.powi(2) + a.cos() * b.cos() * half_longitude.powi(2);
        2.0 * 6371.0 * h.min(1.0).sqrt().asin()
    }
}

impl Topology {
    /// Reads a topology document; `file` only names it in problems.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        document::read(file, text, read_topology)
    }

    /// Reads a topology document that is in force, also where an older version took what this one refuses. The problems
    /// name what it would refuse.
    pub fn parse_stored(file: &str, text: &str) -> Result<(Self, Vec<Problem>), Problems> {
        document::read_stored(file, text, read_topology)
    }

    /// The primaries, by name.
    pub fn primaries(&self) -> impl Iterator<Item = &Region> {
        self.regions
            .values()
            .filter(|region| matches!(region.role, Role::Primary { .. }))
    }

    /// The backups of `region` in order; none when it is no primary.
    pub fn backups_of(&self, region: &RegionId) -> &[RegionId] {
        match self.regions.get(region).map(|region| &region.role) {
            Some(Role::Primary { backups }) => backups,
            Some(Role::Backup) | None => &[],
        }
    }
}

fn read_topology(root: &mut Section<'_>) -> Option<Topology> {
    let zone: Option<String> = root.required("zone");
    if let Some(zone) = &zone
        && !is_domain_name(zone)
    {
        root.report_at(
            "zone",
            &format!("zone: \"{zone}\" is not a lower-case domain name without a final dot"),
        );
    }

    let mut regions = BTreeMap::new();
    let mut sections = Vec::new();
    for mut section in root.sections("region") {
        let region = read_region(&mut section);
        sections.push((region.as_ref().map(|region| region.id.clone()), section));
        if let Some(region) = region
            && let Some(twice) = regions.insert(region.id.clone(), region)
            && let Some((_, section)) = sections.last()
        {
            section.report_at("id", &format!("region {} is defined twice", twice.id));
        }
    }
    for (id, section) in sections {
        for problem in id.iter().flat_map(|id| backup_problems(&regions, id)) {
            section.report_at("backups", &problem);
        }
        section.finish();
    }
    let mut edges = BTreeMap::new();
    for mut section in root.sections("edge") {
        if let Some(edge) = read_edge(&mut section)
            && let Some(twice) = edges.insert(edge.id.clone(), edge)
        {
            section.report_at("id", &format!("edge {} is defined twice", twice.id));
        }
        section.finish();
    }
    let mut name_servers = BTreeMap::new();
    for mut section in root.sections("name-server") {
        let (id, address) = (section.required::<NodeId>("id"), section.required::<IpAddr>("address"));
        if let (Some(id), Some(address)) = (id, address)
            && let Some(twice) = name_servers.insert(id.clone(), NameServer { id, address })
        {
            section.report_at("id", &format!("name server {} is defined twice", twice.id));
        }
        section.finish();
    }

    let topology = Topology {
        zone: zone?,
        regions,
        edges,
        name_servers,
    };
    for problem in cross_checks(&topology) {
        root.report(&problem);
    }
    for problem in shared_names(&topology).into_iter().chain(shared_stacks(&topology)) {
        root.report_rule("", &problem);
    }
    Some(topology)
}

fn read_region(section: &mut Section<'_>) -> Option<Region> {
    let id = section.required("id");
    let role: Option<String> = section.required("role");
    let backups: Vec<RegionId> = section.optional("backups", Vec::new());
    let role = match role.as_deref() {
        Some("primary") => Some(Role::Primary { backups }),
        Some("backup") if backups.is_empty() => Some(Role::Backup),
        Some("backup") => {
            section.report_at("backups", "a backup has no backups of its own");
            None
        }
        Some(other) => {
            section.report_at(
                "role",
                &format!("\"{other}\" is not a role; write \"primary\" or \"backup\""),
            );
            None
        }
        None => None,
    };
    let location = read_location(section);
    let sessions_max = section.required("sessions_max");
    if sessions_max == Some(0) {
        section.report_at("sessions_max", "a region that can hold no session is of no use");
    }
    let connects_per_s_max: Option<u32> = section.optional("connects_per_s_max", None);
    if connects_per_s_max == Some(0) {
        section.report_at("connects_per_s_max", "a region that takes no connection is of no use");
    }
    let mut capacity = BTreeMap::new();
    if let Some(mut limits) = section.section("capacity") {
        for component in Component::ALL {
            if let Some(limit) = limits.optional::<Option<u32>>(component.as_str(), None) {
                capacity.insert(component, limit);
            }
        }
        limits.finish();
    }
    let stacks: Option<Vec<Stack>> = section.required_each("stacks");
    for problem in stacks.iter().flat_map(|stacks| stack_problems(stacks)) {
        section.report_at("stacks", &problem);
    }
    Some(Region {
        id: id?,
        role: role?,
        location: location?,
        sessions_max: sessions_max?,
        connects_per_s_max,
        capacity,
        stacks: stacks?,
    })
}

fn stack_problems(stacks: &[Stack]) -> Vec<String> {
    if stacks.is_empty() {
        return vec!["name at least one stack as \"address:port\"".to_owned()];
    }
    let mut versions: BTreeMap<SocketAddr, &str> = BTreeMap::new();
    let clashes = stacks.iter().filter_map(|stack| {
        let known = *versions.entry(stack.address).or_insert(stack.version());
        let (address, version) = (stack.address, stack.version());
        (known != version).then(|| format!("stack {address} is of version {known} and of version {version}"))
    });
    clashes.collect()
}

fn read_edge(section: &mut Section<'_>) -> Option<Edge> {
    let id = section.required("id");
    let addresses: Option<Vec<IpAddr>> = section.required("addresses");
    if addresses.as_ref().is_some_and(Vec::is_empty) {
        section.report_at("addresses", "name at least one address");
    }
    let port = section.required("port");
    let location = read_location(section);
    Some(Edge {
        id: id?,
        addresses: addresses?,
        port: port?,
        location: location?,
    })
}

fn read_location(section: &mut Section<'_>) -> Option<Location> {
    let latitude = section.required("latitude");
    let longitude = section.required("longitude");
    for (key, value, limit) in [("latitude", latitude, 90.0), ("longitude", longitude, 180.0)] {
        if value.is_some_and(|degrees: f64| !(-limit..=limit).contains(&degrees)) {
            section.report_at(key, &format!("{key} lies in -{limit} to {limit} degrees"));
        }
    }
    Some(Location {
        latitude: latitude?,
        longitude: longitude?,
    })
}

fn cross_checks(topology: &Topology) -> Vec<String> {
    let mut problems = Vec::new();
    if topology.primaries().next().is_none() {
        problems.push("there is no primary region; add [[region]] with role = \"primary\"".to_owned());
    }
    if topology.edges.is_empty() {
        problems.push("there is no edge; add [[edge]]".to_owned());
    }
    problems
}

/// Reports, acknowledgements and commands name nodes and regions alike, so one name is one thing.
fn shared_names(topology: &Topology) -> Vec<String> {
    let regions = topology.regions.keys().map(|id| (id.as_str(), "a region"));
    let edges = topology.edges.keys().map(|id| (id.as_str(), "an edge"));
    let name_servers = topology.name_servers.keys().map(|id| (id.as_str(), "a name server"));
    let mut known: BTreeMap<&str, &str> = BTreeMap::new();
    let names = regions.chain(edges).chain(name_servers);
    let shared = names.filter_map(|(name, kind)| {
        let before = known.insert(name, kind)?;
        Some(format!(
            "\"{name}\" is {before} and {kind}; give each a name of its own"
        ))
    });
    shared.collect()
}

/// Sessions that leave a region for another one with the same stack go nowhere.
fn shared_stacks(topology: &Topology) -> Vec<String> {
    let mut known: BTreeMap<SocketAddr, &RegionId> = BTreeMap::new();
    let mut shared = Vec::new();
    for region in topology.regions.values() {
        for stack in &region.stacks {
            match known.insert(stack.address, &region.id) {
                Some(before) if *before == region.id => shared.push(format!(
                    "stack {} is named twice in {before}; name it once",
                    stack.address
                )),
                Some(before) => shared.push(format!(
                    "stack {} is in {before} and in {}; each stack is in one region",
                    stack.address, region.id
                )),
                None => {}
            }
        }
    }
    shared
}

fn backup_problems(regions: &BTreeMap<RegionId, Region>, id: &RegionId) -> Vec<String> {
    let Some(Role::Primary { backups }) = regions.get(id).map(|region| &region.role) else {
        return Vec::new();
    };
    let mut problems = Vec::new();
    for (index, backup) in backups.iter().enumerate() {
        let problem = match regions.get(backup) {
            None => "does not exist",
            Some(_) if backup == id => "is the region itself",
            Some(_) if backups[..index].contains(backup) => "is named twice",
            // It is sized for its own peak, so it has no room for anybody else's.
            Some(it) if it.role != Role::Backup => {
                "is a primary, whose capacity is for its own sessions; name regions with role = \"backup\""
            }
            Some(_) => continue,
        };
        problems.push(format!("backup {backup} of region {id} {problem}"));
    }
    problems
}

fn is_domain_name(name: &str) -> bool {
    name.len() <= 253
        && name.contains('.')
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = include_str!("../testdata/small.toml");

    #[test]
    fn a_small_world_is_read() {
        let topology = Topology::parse("small.toml", SMALL).unwrap();
        let us_east = RegionId::new("us-east").unwrap();
        assert_eq!(topology.primaries().count(), 1);
        assert_eq!(topology.backups_of(&us_east), [RegionId::new("us-west").unwrap()]);
    }

    #[test]
    fn all_problems_are_reported_at_once_each_with_its_line() {
        let broken = SMALL
            .replace("role = \"primary\"", "role = \"boss\"")
            .replace("latitude = 38.9", "latitude = 138.9\ncolour = \"red\"")
            .replace("port = 8080", "port = 99999");
        let problems = Topology::parse("small.toml", &broken).unwrap_err();
        let text = problems.to_string();
        for complaint in [
            "small.toml:5: region: \"boss\" is not a role; write \"primary\" or \"backup\"",
            "small.toml:7: region: latitude lies in -90 to 90 degrees",
            "small.toml:8: region.colour: unknown key; known here: backups, capacity,",
            "edge.port",
        ] {
            assert!(text.contains(complaint), "{complaint}\nnot in\n{text}");
        }
        assert!(problems.0.is_sorted());
    }

    #[test]
    fn what_must_agree_is_checked() {
        let lost = SMALL.replace(
            "backups = [\"us-west\"]",
            "backups = [\"us-west\", \"us-west\", \"mars\", \"us-east\"]",
        );
        let text = Topology::parse("t", &lost).unwrap_err().to_string();
        for complaint in [
            "us-west of region us-east is named twice",
            "mars of region us-east does not exist",
            "is the region itself",
        ] {
            assert!(text.contains(complaint), "{text}");
        }
        let guests = SMALL.replace("role = \"backup\"", "role = \"primary\"");
        let text = Topology::parse("t", &guests).unwrap_err().to_string();
        let complaint = "t:6: region: backup us-west of region us-east is a primary, whose capacity";
        assert!(text.contains(complaint), "{text}");
        let text = Topology::parse("t", "zone = \"voice.example\"")
            .unwrap_err()
            .to_string();
        assert!(text.contains("no primary region") && text.contains("no edge"), "{text}");
    }

    #[test]
    fn one_name_is_one_thing_and_one_stack_is_in_one_region() {
        let stack = SMALL.replace("127.0.0.1:9002", "127.0.0.1:9001");
        let text = Topology::parse("t", &stack).unwrap_err().to_string();
        assert!(
            text.contains("stack 127.0.0.1:9001 is in us-east and in us-west"),
            "{text}"
        );
        let twice = SMALL.replace("[\"127.0.0.1:9001\"]", "[\"127.0.0.1:9001\", \"127.0.0.1:9001\"]");
        let text = Topology::parse("t", &twice).unwrap_err().to_string();
        assert!(
            text.contains("stack 127.0.0.1:9001 is named twice in us-east"),
            "{text}"
        );
        let server = format!("{SMALL}\n[[name-server]]\nid = \"us-west\"\naddress = \"127.0.0.1\"\n");
        let text = Topology::parse("t", &server).unwrap_err().to_string();
        assert!(text.contains("\"us-west\" is a region and a name server"), "{text}");
        // Earlier versions took them, and what they stored must not stop this one from deciding.
        for stored in [stack, twice, server] {
            let (_, told) = Topology::parse_stored("t", &stored).unwrap();
            assert_eq!(told.len(), 1, "{told:?}");
        }
        Topology::parse_stored("t", "zone = \"voice.example\"").unwrap_err();
    }

    #[test]
    fn a_stack_may_name_its_version_and_every_wrong_one_is_reported() {
        let stacks = |list: &str| {
            let text = SMALL.replace("[\"127.0.0.1:9001\"]", list);
            Topology::parse("t", &text)
                .map(|topology| topology.regions[&RegionId::new("us-east").unwrap()].stacks.clone())
        };
        let two = stacks(r#"["127.0.0.1:9001", { address = "127.0.0.1:9011", version = "2.4.0" }]"#).unwrap();
        assert_eq!(
            two.iter().map(Stack::version).collect::<Vec<_>>(),
            [crate::stack::CURRENT, "2.4.0"]
        );
        let wrong = r#"["nowhere",
            { address = "127.0.0.1:9011", version = "2 4" },
            { address = "127.0.0.1:9012", colour = "red" },
            { version = "2.4.0" }, 7]"#;
        let text = stacks(wrong).unwrap_err().to_string();
        for complaint in [
            "t:10: region.stacks: invalid socket address",
            "t:11: region.stacks: \"2 4\" is no version",
            "t:12: region.stacks: unknown field `colour`",
            "t:13: region.stacks: missing field `address`",
            "t:13: region.stacks: invalid type: integer `7`, expected \"address:port\" or { address, version }",
        ] {
            assert!(text.contains(complaint), "{complaint}\nnot in\n{text}");
        }
        let twice = r#"["127.0.0.1:9001", { address = "127.0.0.1:9001", version = "2.4.0" }]"#;
        let text = stacks(twice).unwrap_err().to_string();
        let complaint = "t:10: region: stack 127.0.0.1:9001 is of version current and of version 2.4.0";
        assert!(text.contains(complaint), "{text}");
        assert!(
            stacks("[]")
                .unwrap_err()
                .to_string()
                .contains("name at least one stack")
        );
    }

    #[test]
    fn distances_are_those_of_the_globe() {
        let ashburn = Location {
            latitude: 39.04,
            longitude: -77.49,
        };
        let dublin = Location {
            latitude: 53.35,
            longitude: -6.26,
        };
        let distance = ashburn.distance_km(dublin);
        assert!((5400.0..5500.0).contains(&distance), "{distance}");
        assert!(ashburn.distance_km(ashburn) < 1e-6);
    }
}
