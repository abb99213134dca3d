//! The regions, edges and name servers of a deployment, and the document that lists them (configs/topology.toml).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    Component, EdgeId, NodeId, Problem, Problems, RegionId, Stack,
    document::{self, Section},
    zone::{self, Service, ZoneRecord},
};

/// The stacks of a region as a document writes them, in problems.
const STACKS_EXAMPLE: &str = "[\"10.0.0.1:9000\"]";

/// All regions, edges and name servers of a deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// The DNS zone that devices look up, in lower case and without the final dot. Its apex names the healthy edges.
    pub zone: String,
    /// Every region, by id.
    pub regions: BTreeMap<RegionId, Region>,
    /// Every edge, by id.
    pub edges: BTreeMap<EdgeId, Edge>,
    /// The name servers of the zone, by id.
    pub name_servers: BTreeMap<NodeId, NameServer>,
    /// What edges serve. `None`: the zone has no HTTPS and SVCB records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Records that the operator adds to the zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<ZoneRecord>,
}

/// A location with a full regional stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Unique among regions, edges and name servers.
    pub id: RegionId,
    /// A primary with its ordered backups, or a backup.
    pub role: Role,
    /// Position on the globe, from which edges estimate distance.
    pub location: Location,
    /// Most sessions that the region can hold at once, at least 1.
    pub sessions_max: u32,
    /// Most new connections per second. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connects_per_s_max: Option<u32>,
    /// Most sessions that a single component can serve at once, where that is fewer than `sessions_max`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<Component, u32>,
    /// The time zone of the devices whose home the region is, a name of the IANA database, for those that name none. Only
    /// a primary is a home. `None`: they hear the time of the region that serves them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// The stacks of the region (gateways), at least one. The version of the first stack is in service; stacks of any
    /// other version get no sessions until a rollout sends users to them.
    pub stacks: Vec<Stack>,
}

/// The part that a region plays in a failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Role {
    /// Serves users of its own.
    Primary {
        /// The regions that take its sessions when it fails, first choice first.
        backups: Vec<RegionId>,
    },
    /// Takes the sessions of primaries that fail.
    Backup,
}

/// A point of presence that devices connect to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// Unique among regions, edges and name servers.
    pub id: EdgeId,
    /// The addresses that devices connect to, IPv4 or IPv6, at least one.
    pub addresses: Vec<IpAddr>,
    /// The TCP port that devices connect to.
    pub port: u16,
    /// Position on the globe, from which DNS finds the edge nearest to a device.
    pub location: Location,
    /// The part of its clients that DNS gives it, relative to other edges as near: 1..=1000.
    #[serde(default = "zone::default_weight", skip_serializing_if = "zone::is_default_weight")]
    pub weight: u16,
}

/// A name server of the zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameServer {
    /// The host name below the zone; unique among regions, edges and name servers.
    pub id: NodeId,
    /// The address at which it answers DNS queries.
    pub address: IpAddr,
}

/// A position on Earth, in degrees.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// Degrees north, -90..=90.
    pub latitude: f64,
    /// Degrees east, -180..=180.
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
    /// Reads a topology document. `file` is only the name that problems mention.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        document::read(file, text, read_topology)
    }

    /// Reads a topology document that is in force, even when an older version accepted a value that this version
    /// rejects. The problems name each such value.
    pub fn parse_stored(file: &str, text: &str) -> Result<(Self, Vec<Problem>), Problems> {
        document::read_stored(file, text, read_topology)
    }

    /// The primaries, ordered by id.
    pub fn primaries(&self) -> impl Iterator<Item = &Region> {
        self.regions
            .values()
            .filter(|region| matches!(region.role, Role::Primary { .. }))
    }

    /// The backups of `region`, first choice first. Empty unless `region` is a primary.
    pub fn backups_of(&self, region: &RegionId) -> &[RegionId] {
        match self.regions.get(region).map(|region| &region.role) {
            Some(Role::Primary { backups }) => backups,
            Some(Role::Backup) | None => &[],
        }
    }
}

fn read_topology(root: &mut Section<'_>) -> Option<Topology> {
    let zone: Option<String> = root.required("zone", "\"voice.example.com\"");
    if let Some(zone) = &zone
        && !is_domain_name(zone)
    {
        root.report_at(
            "zone",
            &format!(
                "\"{zone}\" is not a domain name; write at least two labels in lower case and no final dot, such as \
                 \"voice.example.com\""
            ),
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
            section.report_at("id", &twice_defined(twice.id.as_str()));
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
            section.report_at("id", &twice_defined(twice.id.as_str()));
        }
        section.finish();
    }
    let mut name_servers = BTreeMap::new();
    for mut section in root.sections("name-server") {
        let (id, address) = (
            section.required::<NodeId>("id", "\"ns1\""),
            section.required::<IpAddr>("address", "\"192.0.2.53\""),
        );
        if let (Some(id), Some(address)) = (id, address)
            && let Some(twice) = name_servers.insert(id.clone(), NameServer { id, address })
        {
            section.report_at("id", &twice_defined(twice.id.as_str()));
        }
        section.finish();
    }

    let service = zone::read_service(root);
    let ids = edges.keys().map(EdgeId::as_str);
    let ids: Vec<&str> = ids.chain(name_servers.keys().map(NodeId::as_str)).collect();
    let records = zone::read_records(root, &ids);

    let topology = Topology {
        zone: zone?,
        regions,
        edges,
        name_servers,
        service,
        records,
    };
    for problem in cross_checks(&topology) {
        root.report(&problem);
    }
    for problem in shared_names(&topology).into_iter().chain(shared_stacks(&topology)) {
        root.report_rule("", &problem);
    }
    Some(topology)
}

fn twice_defined(id: &str) -> String {
    format!("\"{id}\" is defined twice; write each id once")
}

fn read_region(section: &mut Section<'_>) -> Option<Region> {
    let id = section.required("id", "\"us-east\"");
    let role: Option<String> = section.required("role", "\"primary\"");
    let backups: Vec<RegionId> = section.optional("backups", Vec::new(), "[\"us-west\"]");
    let role = match role.as_deref() {
        Some("primary") => Some(Role::Primary { backups }),
        Some("backup") if backups.is_empty() => Some(Role::Backup),
        Some("backup") => {
            section.report_at(
                "backups",
                "a backup cannot have backups; remove them, or write role = \"primary\"",
            );
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
    let sessions_max = section.required("sessions_max", "1000");
    let connects_per_s_max: Option<u32> = section.optional("connects_per_s_max", None, "100");
    for (key, value) in [
        ("sessions_max", sessions_max),
        ("connects_per_s_max", connects_per_s_max),
    ] {
        if value == Some(0) {
            section.report_at(key, "0 is out of range; write 1 or more");
        }
    }
    let mut capacity = BTreeMap::new();
    if let Some(mut limits) = section.section("capacity") {
        for component in Component::ALL {
            if let Some(limit) = limits.optional::<Option<u32>>(component.as_str(), None, "500") {
                capacity.insert(component, limit);
            }
        }
        limits.finish();
    }
    let time_zone: Option<String> = section.optional("time_zone", None, "\"Europe/Dublin\"");
    if let Some(unknown) = time_zone.as_ref().filter(|name| !is_time_zone(name)) {
        section.report_at(
            "time_zone",
            &format!("\"{unknown}\" is no time zone; write a name of the IANA database such as \"Europe/Dublin\""),
        );
    }
    let stacks: Option<Vec<Stack>> = section.required_each("stacks", STACKS_EXAMPLE);
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
        time_zone,
        stacks: stacks?,
    })
}

fn is_time_zone(name: &str) -> bool {
    jiff::tz::TimeZone::get(name).is_ok_and(|zone| !zone.is_unknown())
}

fn stack_problems(stacks: &[Stack]) -> Vec<String> {
    if stacks.is_empty() {
        return vec![format!("the list is empty; write stacks = {STACKS_EXAMPLE}")];
    }
    let mut versions: BTreeMap<SocketAddr, &str> = BTreeMap::new();
    let clashes = stacks.iter().filter_map(|stack| {
        let known = *versions.entry(stack.address).or_insert(stack.version());
        let (address, version) = (stack.address, stack.version());
        (known != version).then(|| format!(
            "stack {address} has the versions \"{known}\" and \"{version}\"; write each stack once, with its version"
        ))
    });
    clashes.collect()
}

fn read_edge(section: &mut Section<'_>) -> Option<Edge> {
    let id = section.required("id", "\"edge-iad\"");
    let addresses: Option<Vec<IpAddr>> = section.required("addresses", "[\"192.0.2.1\"]");
    if addresses.as_ref().is_some_and(Vec::is_empty) {
        section.report_at("addresses", "the list is empty; write addresses = [\"192.0.2.1\"]");
    }
    let port = section.required("port", "443");
    let location = read_location(section);
    let weight = section.in_range("weight", zone::WEIGHT, 1..=zone::WEIGHT_MAX);
    Some(Edge {
        id: id?,
        addresses: addresses?,
        port: port?,
        location: location?,
        weight,
    })
}

fn read_location(section: &mut Section<'_>) -> Option<Location> {
    let latitude = section.required("latitude", "38.9");
    let longitude = section.required("longitude", "-77.4");
    for (key, value, limit) in [("latitude", latitude, 90.0), ("longitude", longitude, 180.0)] {
        if let Some(degrees) = value.filter(|degrees: &f64| !(-limit..=limit).contains(degrees)) {
            section.report_at(
                key,
                &format!("{degrees} is out of range; write degrees from -{limit} to {limit}"),
            );
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
        problems.push("the topology has no primary region; add [[region]] with role = \"primary\"".to_owned());
    }
    if topology.edges.is_empty() {
        problems.push("the topology has no edge; add [[edge]]".to_owned());
    }
    problems
}

/// Reports, acknowledgements and commands name nodes and regions alike, so a name must mean one thing only.
fn shared_names(topology: &Topology) -> Vec<String> {
    let regions = topology.regions.keys().map(|id| (id.as_str(), "a region"));
    let edges = topology.edges.keys().map(|id| (id.as_str(), "an edge"));
    let name_servers = topology.name_servers.keys().map(|id| (id.as_str(), "a name server"));
    let mut known: BTreeMap<&str, &str> = BTreeMap::new();
    let names = regions.chain(edges).chain(name_servers);
    let shared = names.filter_map(|(name, kind)| {
        let before = known.insert(name, kind)?;
        Some(format!("\"{name}\" is {before} and {kind}; give each its own id"))
    });
    shared.collect()
}

/// Each stack belongs to one region: sessions that leave a region for another one with the same stack would stay where
/// they are.
fn shared_stacks(topology: &Topology) -> Vec<String> {
    let mut known: BTreeMap<SocketAddr, &RegionId> = BTreeMap::new();
    let mut shared = Vec::new();
    for region in topology.regions.values() {
        for stack in &region.stacks {
            match known.insert(stack.address, &region.id) {
                Some(before) if *before == region.id => shared.push(format!(
                    "stack {} is named twice in {before}; write it once",
                    stack.address
                )),
                Some(before) => shared.push(format!(
                    "stack {} is in {before} and in {}; remove it from one of them",
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
            None => "does not exist; add the region, or remove it here",
            Some(_) if backup == id => "is the region itself; remove it",
            Some(_) if backups[..index].contains(backup) => "is named twice; write it once",
            // A primary is sized for the peak of its own users, so it has no room for the sessions of another region.
            Some(it) if it.role != Role::Backup => {
                "is a primary, and its capacity is for its own sessions; write regions with role = \"backup\""
            }
            Some(_) => continue,
        };
        problems.push(format!("backup \"{backup}\" of {id} {problem}"));
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
            "small.toml:5: region.role: \"boss\" is not a role; write \"primary\" or \"backup\"",
            "small.toml:7: region.latitude: 138.9 is out of range; write degrees from -90 to 90",
            "small.toml:8: region.colour: unknown key; remove it, or write one of backups, capacity,",
            "small.toml:24: edge.port: invalid value: integer `99999`, expected u16; write port = 443",
        ] {
            assert!(text.contains(complaint), "{complaint}\nnot in\n{text}");
        }
        assert!(problems.0.is_sorted());
    }

    #[test]
    fn parts_that_must_agree_are_checked() {
        let lost = SMALL.replace(
            "backups = [\"us-west\"]",
            "backups = [\"us-west\", \"us-west\", \"mars\", \"us-east\"]",
        );
        let text = Topology::parse("t", &lost).unwrap_err().to_string();
        for complaint in [
            "t:6: region.backups: backup \"us-west\" of us-east is named twice; write it once",
            "backup \"mars\" of us-east does not exist",
            "is the region itself; remove it",
        ] {
            assert!(text.contains(complaint), "{text}");
        }
        let guests = SMALL.replace("role = \"backup\"", "role = \"primary\"");
        let text = Topology::parse("t", &guests).unwrap_err().to_string();
        let complaint = "t:6: region.backups: backup \"us-west\" of us-east is a primary, and its capacity";
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
        // Earlier versions accepted these documents. A stored one must not stop this version from deciding.
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
            "t:10: region.stacks: \"nowhere\" is not an address; write \"IP:PORT\", such as \"10.0.0.1:9000\"",
            "t:11: region.stacks: \"2 4\" is not a version; write 1 to 64 visible ASCII characters",
            "t:12: region.stacks: unknown field `colour`",
            "t:13: region.stacks: missing field `address`",
            "t:13: region.stacks: invalid type: integer `7`, expected \"IP:PORT\" or { address, version }",
        ] {
            assert!(text.contains(complaint), "{complaint}\nnot in\n{text}");
        }
        let twice = r#"["127.0.0.1:9001", { address = "127.0.0.1:9001", version = "2.4.0" }]"#;
        let text = stacks(twice).unwrap_err().to_string();
        let complaint = "t:10: region.stacks: stack 127.0.0.1:9001 has the versions \"current\" and \"2.4.0\"";
        assert!(text.contains(complaint), "{text}");
        assert!(
            stacks("[]")
                .unwrap_err()
                .to_string()
                .contains("t:10: region.stacks: the list is empty; write stacks = [")
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
