//! Who listens where, and the configuration file of every process.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use topology::{Location, RegionId, Role, Topology};

use crate::{
    Engine, Settings, StoreKind,
    network::{Network, random_bytes},
};

/// Name of a control plane that is alone; several are numbered, see [`control_planes`].
pub const CONTROL_PLANE: &str = "control-plane";
/// Control planes that share etcd, and members of etcd: one of either may be lost.
pub const REPLICAS: usize = 3;

/// What exists by default: six regions, two edges, one name server.
const TOPOLOGY: &str = include_str!("../../../configs/topology.toml");

/// Where every process of a world listens.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// What exists, at the addresses of this world.
    pub topology: Topology,
    /// gRPC of each control plane, by process.
    pub control_planes: BTreeMap<String, SocketAddr>,
    /// The name server.
    pub dns: SocketAddr,
    /// Metrics and health, by process.
    pub admin: BTreeMap<String, SocketAddr>,
}

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A regional stack.
    Stack,
    /// The control plane.
    ControlPlane,
    /// A name server.
    Dns,
    /// An edge.
    Edge,
}

impl Kind {
    /// Name of the program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Stack => "meridian-stack",
            Self::ControlPlane => "meridian-control-plane",
            Self::Dns => "meridian-dns",
            Self::Edge => "meridian-edge",
        }
    }
}

// Well below the ephemeral ports (32768 and up): the address of a process that is down cannot be taken by somebody's
// outgoing connection, and a client that keeps trying it cannot connect to itself.
const DEVICE_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9080;
const GRPC_PORT: u16 = 7070;
const DNS_PORT: u16 = 5300;
/// Networks tried before giving up. One suffices unless somebody listens on all addresses at one of the ports.
const ATTEMPTS_MAX: u16 = 64;

// People who press Ctrl-C wait for this; a fleet, which has somewhere to send its sessions, takes more time.
const EDGE_DRAIN: &str = "\n[drain]\nwindow = \"1s\"\nlimit = \"3s\"\n";
const STACK_DRAIN: &str = "\n[limits]\ndrain_seconds_max = 2\n";

/// Why no addresses were found.
#[derive(Debug, thiserror::Error)]
#[error("no free loopback addresses after {ATTEMPTS_MAX} attempts; the last one failed at {address}")]
pub struct NoAddresses {
    address: String,
    #[source]
    source: std::io::Error,
}

/// Names of the control planes of a world.
pub fn control_planes(store: StoreKind) -> Vec<String> {
    match store {
        StoreKind::Embedded => vec![CONTROL_PLANE.to_owned()],
        StoreKind::Etcd => numbered(CONTROL_PLANE),
    }
}

/// Names of the members of etcd.
pub fn etcd_members(store: StoreKind) -> Vec<String> {
    match store {
        StoreKind::Embedded => Vec::new(),
        StoreKind::Etcd => numbered("etcd"),
    }
}

fn numbered(name: &str) -> Vec<String> {
    (1..=REPLICAS).map(|number| format!("{name}-{number}")).collect()
}

impl Layout {
    /// Takes a random network below 127.0.0.0/8 in which every address is free. They are the layout's as long as the network is
    /// held.
    pub(crate) fn choose(store: StoreKind) -> Result<(Self, Network), NoAddresses> {
        let mut attempt = 0;
        loop {
            let network = Network::claim_any().map_err(|source| NoAddresses {
                address: "the whole loopback network".to_owned(),
                source,
            })?;
            // Ports move on with the attempts in case one is taken on all addresses.
            let layout = Self::at(network.prefix(), attempt, store);
            attempt += 1;
            match layout.first_taken() {
                None => return Ok((layout, network)),
                Some(_) if attempt < ATTEMPTS_MAX => {}
                Some((address, source)) => return Err(NoAddresses { address, source }),
            }
        }
    }

    /// The layout in one network.
    fn at(network: [u8; 3], port_shift: u16, store: StoreKind) -> Self {
        let at = |host: usize, port: u16| {
            let [a, b, c] = network;
            let host = u8::try_from(host).expect("a world has fewer than 256 processes");
            SocketAddr::from((Ipv4Addr::new(a, b, c, host), port + port_shift))
        };
        let mut topology =
            Topology::parse("configs/topology.toml", TOPOLOGY).expect("the shipped topology is parsed by a test");
        let mut admin = BTreeMap::new();
        for (index, edge) in topology.edges.values_mut().enumerate() {
            let device = at(1 + index, DEVICE_PORT);
            edge.addresses = vec![device.ip()];
            edge.port = device.port();
            admin.insert(edge.id.to_string(), at(1 + index, ADMIN_PORT));
        }
        for (index, region) in topology.regions.values_mut().enumerate() {
            region.stacks = vec![at(11 + index, DEVICE_PORT).into()];
            admin.insert(region.id.to_string(), at(11 + index, ADMIN_PORT));
        }
        let dns = at(53, DNS_PORT);
        for server in topology.name_servers.values_mut() {
            server.address = dns.ip();
            admin.insert(server.id.to_string(), at(53, ADMIN_PORT));
        }
        let mut replicas = BTreeMap::new();
        for (index, name) in control_planes(store).into_iter().enumerate() {
            admin.insert(name.clone(), at(61 + index, ADMIN_PORT));
            replicas.insert(name, at(61 + index, GRPC_PORT));
        }
        Self {
            topology,
            control_planes: replicas,
            dns,
            admin,
        }
    }

    fn first_taken(&self) -> Option<(String, std::io::Error)> {
        let tcp = self.tcp_addresses();
        let taken = |address: SocketAddr, kind: &str, error| Some((format!("{address}/{kind}"), error));
        for address in tcp {
            if let Err(error) = TcpListener::bind(address) {
                return taken(address, "tcp", error);
            }
        }
        UdpSocket::bind(self.dns)
            .err()
            .and_then(|error| taken(self.dns, "udp", error))
    }

    fn tcp_addresses(&self) -> Vec<SocketAddr> {
        let stacks = self.topology.regions.values().flat_map(|region| &region.stacks);
        let stacks = stacks.map(|stack| stack.address);
        let edges = self.topology.edges.values().flat_map(edge_addresses);
        stacks
            .chain(edges)
            .chain(self.admin.values().copied())
            .chain(self.control_planes.values().copied())
            .chain([self.dns])
            .collect()
    }

    /// All processes in the order in which they start: each finds what it needs.
    pub fn processes(&self) -> Vec<(String, Kind)> {
        let named = |name: &dyn ToString, kind| (name.to_string(), kind);
        let mut all: Vec<_> = (self.topology.regions.keys().map(|id| named(id, Kind::Stack))).collect();
        all.extend(self.control_planes.keys().map(|name| named(name, Kind::ControlPlane)));
        all.extend(self.topology.name_servers.keys().map(|id| named(id, Kind::Dns)));
        all.extend(self.topology.edges.keys().map(|id| named(id, Kind::Edge)));
        all
    }

    /// Base URL of an edge.
    pub fn edge_url(&self, edge: &topology::Edge) -> String {
        edge_addresses(edge)
            .first()
            .map_or_else(String::new, |address| format!("http://{address}"))
    }

    /// Base URL of a region's stack, past the edges.
    pub fn stack_url(&self, region: &RegionId) -> Option<String> {
        let stack = self.topology.regions.get(region)?.stacks.first()?;
        Some(format!("http://{}", stack.address))
    }

    /// gRPC URL of every control plane.
    pub fn control_plane_urls(&self) -> Vec<String> {
        (self.control_planes.values())
            .map(|address| format!("http://{address}"))
            .collect()
    }

    /// Writes the configuration of all processes of some kinds below the state folder; all edges at once, and all stacks,
    /// because they share a key. `etcd` are the members that the control planes share; with none, the one control plane keeps its
    /// decisions in a file.
    pub fn write_configuration(&self, settings: &Settings, kinds: &[Kind], etcd: &[String]) -> std::io::Result<()> {
        let affinity_key = hex::encode(random_bytes::<32>());
        let checkpoint_key = hex::encode(random_bytes::<32>());
        for (name, kind) in self.processes().into_iter().filter(|(_, kind)| kinds.contains(kind)) {
            let folder = settings.state_dir.join(&name);
            // The folders of edges and stacks hold a secret.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let text = match kind {
                Kind::Stack => self.stack_document(&name, settings, &checkpoint_key),
                Kind::ControlPlane => {
                    std::fs::write(folder.join("topology.toml"), topology_document(&self.topology))?;
                    std::fs::write(folder.join("policy.toml"), &settings.policy)?;
                    self.control_plane_document(&name, etcd)
                }
                Kind::Dns => self.node_document(&name, self.dns, &folder),
                Kind::Edge => {
                    let edge = self.topology.edges.iter().find(|(id, _)| id.as_str() == name);
                    let listen = edge.and_then(|(_, edge)| edge_addresses(edge).first().copied());
                    let listen = listen.expect("every edge of the layout has an address");
                    let mut text = self.node_document(&name, listen, &folder);
                    let _ = writeln!(text, "affinity_key = \"{affinity_key}\"");
                    text.push_str(EDGE_DRAIN);
                    text
                }
            };
            std::fs::write(configuration_file(&settings.state_dir, &name, kind), text)?;
        }
        Ok(())
    }

    fn stack_document(&self, name: &str, settings: &Settings, checkpoint_key: &str) -> String {
        let region = self.topology.regions.iter().find(|(id, _)| id.as_str() == name);
        let listen = region.and_then(|(_, region)| region.stacks.first());
        let listen = listen.expect("every region of the layout has a stack").address;
        let engine = match settings.engine {
            Engine::Torch => "torch",
            Engine::Scripted => "scripted",
        };
        format!(
            "region = {}\nlisten = \"{listen}\"\nadmin_listen = \"{}\"\nengine = \"{engine}\"\nmodels_dir = {}\nhome_city = \"{}\"\n\
             checkpoint_key = \"{checkpoint_key}\"\n{STACK_DRAIN}",
            quoted(name),
            self.admin[name],
            quoted(&settings.models_dir.display().to_string()),
            home_city(name),
        )
    }

    fn control_plane_document(&self, name: &str, etcd: &[String]) -> String {
        let store = if etcd.is_empty() {
            "file = \"store.redb\"".to_owned()
        } else {
            format!("etcd = {}", list(etcd))
        };
        format!(
            "node = {}\nlisten = \"{}\"\nadmin_listen = \"{}\"\n\
             topology = \"topology.toml\"\npolicy = \"policy.toml\"\n\n[store]\n{store}\n",
            quoted(name),
            self.control_planes[name],
            self.admin[name],
        )
    }

    fn node_document(&self, name: &str, listen: SocketAddr, folder: &Path) -> String {
        format!(
            "node = {}\nlisten = [\"{listen}\"]\nadmin_listen = \"{}\"\ncontrol_planes = {}\nstate_dir = {}\n",
            quoted(name),
            self.admin[name],
            list(&self.control_plane_urls()),
            quoted(&folder.join("state").display().to_string()),
        )
    }
}

/// Where a process finds its configuration.
pub fn configuration_file(state_dir: &Path, name: &str, kind: Kind) -> std::path::PathBuf {
    let file = match kind {
        Kind::Stack => "stack.toml",
        Kind::ControlPlane => "control-plane.toml",
        Kind::Dns => "dns.toml",
        Kind::Edge => "edge.toml",
    };
    state_dir.join(name).join(file)
}

fn edge_addresses(edge: &topology::Edge) -> Vec<SocketAddr> {
    let with_port = |ip: &IpAddr| SocketAddr::new(*ip, edge.port);
    edge.addresses.iter().map(with_port).collect()
}

/// The clock and the weather of people who live near the region.
fn home_city(region: &str) -> &'static str {
    match region {
        "us-east" => "new_york",
        "us-west" => "seattle",
        "eu-central" => "berlin",
        "ap-south" => "mumbai",
        "ap-northeast" => "tokyo",
        _ => "london",
    }
}

/// A topology as the document it is read from.
fn topology_document(topology: &Topology) -> String {
    let mut text = format!("zone = {}\n", quoted(&topology.zone));
    let place = |location: Location| {
        let Location { latitude, longitude } = location;
        format!("latitude = {latitude:?}\nlongitude = {longitude:?}\n")
    };
    for region in topology.regions.values() {
        let role = match &region.role {
            Role::Primary { backups } => {
                let backups: Vec<String> = backups.iter().map(|id| quoted(id.as_str())).collect();
                format!("role = \"primary\"\nbackups = [{}]\n", backups.join(", "))
            }
            Role::Backup => "role = \"backup\"\n".to_owned(),
        };
        let stacks: Vec<String> = region.stacks.iter().map(ToString::to_string).collect();
        let _ = write!(
            text,
            "\n[[region]]\nid = {}\n{role}{}sessions_max = {}\nstacks = [{}]\n",
            quoted(region.id.as_str()),
            place(region.location),
            region.sessions_max,
            stacks.join(", "),
        );
    }
    for edge in topology.edges.values() {
        let addresses: Vec<String> = edge.addresses.iter().map(|ip| format!("\"{ip}\"")).collect();
        let _ = write!(
            text,
            "\n[[edge]]\nid = {}\naddresses = [{}]\nport = {}\n{}",
            quoted(edge.id.as_str()),
            addresses.join(", "),
            edge.port,
            place(edge.location),
        );
    }
    for server in topology.name_servers.values() {
        let id = quoted(server.id.as_str());
        let _ = write!(text, "\n[[name-server]]\nid = {id}\naddress = \"{}\"\n", server.address);
    }
    text
}

/// A TOML array of strings.
fn list(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", quoted.join(", "))
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_topology_is_read_back_the_same() {
        let layout = Layout::at([127, 9, 7], 0, StoreKind::Embedded);
        let read = Topology::parse("topology.toml", &topology_document(&layout.topology)).unwrap();
        assert_eq!(read, layout.topology);
    }

    #[test]
    fn every_process_has_addresses_of_its_own_on_loopback() {
        let layout = Layout::at([127, 9, 7], 3, StoreKind::Etcd);
        let mut addresses = layout.tcp_addresses();
        assert!(addresses.iter().all(|address| address.ip().is_loopback()));
        let count = addresses.len();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), count);
        assert_eq!(layout.processes().len(), layout.admin.len());
        let alone = Layout::at([127, 9, 7], 3, StoreKind::Embedded);
        assert_eq!(layout.processes().len(), alone.processes().len() + REPLICAS - 1);
        let ports: Vec<u16> = layout.topology.edges.values().map(|edge| edge.port).collect();
        assert_eq!(
            ports,
            [8083, 8083],
            "address records carry no port, so all edges share one"
        );
    }

    #[test]
    fn a_taken_address_is_noticed() {
        let (layout, _network) = Layout::choose(StoreKind::Embedded).unwrap();
        let control_plane = layout.control_planes[CONTROL_PLANE];
        let _taken = TcpListener::bind(control_plane).unwrap();
        assert_eq!(layout.first_taken().unwrap().0, format!("{control_plane}/tcp"));
    }

    #[test]
    fn every_node_follows_every_control_plane_and_these_share_etcd() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            store: StoreKind::Etcd,
            ..Settings::new(folder.path().to_owned())
        };
        let layout = Layout::at([127, 9, 7], 0, settings.store);
        let etcd = ["http://127.9.7.71:2379", "http://127.9.7.72:2379"].map(str::to_owned);
        let kinds = [Kind::ControlPlane, Kind::Dns, Kind::Edge];
        layout.write_configuration(&settings, &kinds, &etcd).unwrap();
        let read = |name: &str, file: &str| -> BTreeMap<String, serde_json::Value> {
            let text = std::fs::read_to_string(folder.path().join(name).join(file)).unwrap();
            daemon::config::parse(file, &text).unwrap()
        };
        let urls = [
            "http://127.9.7.61:7070",
            "http://127.9.7.62:7070",
            "http://127.9.7.63:7070",
        ];
        assert_eq!(layout.control_plane_urls(), urls);
        for (node, file) in [
            ("edge-iad", "edge.toml"),
            ("edge-dub", "edge.toml"),
            ("ns1", "dns.toml"),
        ] {
            assert_eq!(read(node, file)["control_planes"], serde_json::json!(urls), "{node}");
        }
        for (name, url) in layout.control_planes.keys().zip(urls) {
            let document = read(name, "control-plane.toml");
            assert_eq!(document["node"], name.as_str());
            assert_eq!(document["listen"], url.trim_start_matches("http://"));
            assert_eq!(document["store"], serde_json::json!({ "etcd": etcd }));
        }
    }

    #[test]
    fn odd_folder_names_survive_quoting() {
        let folder = "C:\\odd \"name\"\n";
        let read: BTreeMap<String, String> = daemon::config::parse("test", &format!("a = {}", quoted(folder))).unwrap();
        assert_eq!(read["a"], folder);
    }
}
