//! The addresses of all processes of a world, and their configuration files.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use identity::{Mode, ToStacks};
use topology::{Location, RegionId, Role, Topology};

use crate::{
    Engine, Settings, StoreKind,
    network::{Network, random_bytes},
    texts,
};

/// Name of the only control plane of an embedded store. With etcd there are several, numbered; see [`control_planes`].
pub const CONTROL_PLANE: &str = "control-plane";
/// Number of control planes that share etcd, and of etcd's members. One of each may fail.
pub const REPLICAS: usize = 3;

/// The default topology: six regions, two edges, one name server.
const TOPOLOGY: &str = include_str!("../../../configs/topology.toml");

/// The addresses of every process of a world.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The topology with the addresses of this world.
    pub topology: Topology,
    /// gRPC addresses of the control planes, by process name.
    pub control_planes: BTreeMap<String, SocketAddr>,
    /// Address of the name server.
    pub dns: SocketAddr,
    /// Addresses of metrics and health, by process name.
    pub admin: BTreeMap<String, SocketAddr>,
}

/// The kinds of process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A region's voice stack.
    Stack,
    /// A control plane.
    ControlPlane,
    /// A name server.
    Dns,
    /// An edge router: sessions and requests of devices.
    Edge,
}

impl Kind {
    /// The name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Stack => "meridian-stack",
            Self::ControlPlane => "meridian-control-plane",
            Self::Dns => "meridian-dns",
            Self::Edge => "meridian-edge",
        }
    }
}

// Well below the ephemeral ports (32768 and up): no outgoing connection can take the address of a process that is down,
// and a client that retries such an address cannot connect to itself.
const DEVICE_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9080;
const GRPC_PORT: u16 = 7070;
const DNS_PORT: u16 = 5300;
/// Networks to try before giving up. One is enough unless another process listens on one of the ports at all addresses.
const ATTEMPTS_MAX: u16 = 64;

// Short, because a person who pressed Ctrl-C waits for it. A fleet drains for longer, since its sessions have somewhere
// to go.
/// On one machine nothing has to warm up, and people who watch an edge return do not wait for two minutes.
const DNS_RETURN: &str = "return_step_s = 1\n";
const EDGE_DRAIN: &str = "\n[drain]\nwindow = \"1s\"\nlimit = \"3s\"\n";
const STACK_DRAIN: &str = "\n[limits]\ndrain_max = \"2s\"\n";

/// Every process has its files in its own folder.
const IDENTITY: &str = "\n[identity]\ncertificate = \"identity.crt\"\nkey = \"identity.key\"\ntrust = \"trust.crt\"\n";

/// No network with free addresses was found.
#[derive(Debug, thiserror::Error)]
#[error("{}", texts::no_addresses(ATTEMPTS_MAX, address))]
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

/// Names of etcd's members; none for the embedded store.
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
    /// Takes a random network below 127.0.0.0/8 in which every address is free. The addresses belong to the layout
    /// while the network is claimed.
    pub(crate) fn choose(store: StoreKind) -> Result<(Self, Network), NoAddresses> {
        let mut attempt = 0;
        loop {
            let network = Network::claim_any().map_err(|source| NoAddresses {
                address: "the whole loopback network".to_owned(),
                source,
            })?;
            // Each attempt also shifts the ports, in case another process listens on one of them at all addresses.
            let layout = Self::at(network.prefix(), attempt, store);
            attempt += 1;
            match layout.first_taken() {
                None => return Ok((layout, network)),
                Some(_) if attempt < ATTEMPTS_MAX => {}
                Some((address, source)) => return Err(NoAddresses { address, source }),
            }
        }
    }

    /// The layout at the addresses of one network.
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

    /// All processes in the order of their start: each finds those it depends on.
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

    /// Base URL of a region's stack. It serves those that prove to be an edge or a control plane, unless
    /// [`Settings::stacks_admit`] is lower.
    pub fn stack_url(&self, region: &RegionId) -> Option<String> {
        let stack = self.topology.regions.get(region)?.stacks.first()?;
        Some(format!("https://{}", stack.address))
    }

    /// gRPC URLs of all control planes.
    pub fn control_plane_urls(&self) -> Vec<String> {
        (self.control_planes.values())
            .map(|address| format!("https://{address}"))
            .collect()
    }

    /// Writes the configuration of all processes of these kinds into the state folder. Edges share a key, and so do
    /// stacks, so all processes of a kind are written in one call. `etcd` holds the members' client URLs; if it is
    /// empty, the one control plane keeps its decisions in a file.
    pub fn write_configuration(&self, settings: &Settings, kinds: &[Kind], etcd: &[String]) -> std::io::Result<()> {
        let affinity_key = hex::encode(random_bytes::<32>());
        let checkpoint_key = hex::encode(random_bytes::<32>());
        let to_stacks = match settings.stacks_admit {
            Mode::Off => ToStacks::Off,
            Mode::Permissive | Mode::Required => ToStacks::Required,
        };
        for (name, kind) in self.processes().into_iter().filter(|(_, kind)| kinds.contains(kind)) {
            let folder = settings.state_dir.join(&name);
            // The files of edges and stacks contain a secret key; others read neither them nor their folder.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let text = match kind {
                Kind::Stack => self.stack_document(&name, settings, &checkpoint_key),
                Kind::ControlPlane => {
                    std::fs::write(folder.join("topology.toml"), topology_document(&self.topology))?;
                    std::fs::write(folder.join("policy.toml"), &settings.policy)?;
                    self.control_plane_document(&name, etcd, to_stacks)
                }
                Kind::Dns => self.node_document(&name, self.dns, &folder) + DNS_RETURN + IDENTITY,
                Kind::Edge => {
                    let edge = self.topology.edges.iter().find(|(id, _)| id.as_str() == name);
                    let listen = edge.and_then(|(_, edge)| edge_addresses(edge).first().copied());
                    let listen = listen.expect("every edge of the layout has an address");
                    let mut text = self.node_document(&name, listen, &folder);
                    let _ = writeln!(text, "affinity_key = \"{affinity_key}\"");
                    text.push_str(EDGE_DRAIN);
                    text.push_str(IDENTITY);
                    let _ = writeln!(text, "stacks = \"{to_stacks}\"");
                    if !settings.origins.is_empty() {
                        let _ = writeln!(text, "\n[cors]\norigins = {}", list(&settings.origins));
                    }
                    text
                }
            };
            write_private(&configuration_file(&settings.state_dir, &name, kind), &text)?;
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
             checkpoint_key = \"{checkpoint_key}\"\nstate_dir = \"state\"\nstate_key = \"{}\"\n{STACK_DRAIN}{IDENTITY}mode = \"{}\"\ncontrol_planes = {}\n",
            quoted(name),
            self.admin[name],
            quoted(&settings.models_dir.display().to_string()),
            home_city(name),
            hex::encode(random_bytes::<32>()),
            settings.stacks_admit,
            list(&self.control_plane_urls()),
        )
    }

    fn control_plane_document(&self, name: &str, etcd: &[String], to_stacks: ToStacks) -> String {
        let store = if etcd.is_empty() {
            "file = \"store.redb\"".to_owned()
        } else {
            format!(
                "etcd = {}\ncertificate = \"etcd/identity.crt\"\nkey = \"etcd/identity.key\"\ntrust = \"etcd/trust.crt\"",
                list(etcd)
            )
        };
        format!(
            "node = {}\nlisten = \"{}\"\nadmin_listen = \"{}\"\n\
             topology = \"topology.toml\"\npolicy = \"policy.toml\"\n\n[store]\n{store}\n{IDENTITY}mode = \"required\"\nstacks = \"{to_stacks}\"\nissuer_certificate = \"../identity/issuer.crt\"\nissuer_key = \"../identity/issuer.key\"\n",
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

/// Writes a file that only its owner may read.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file?.write_all(text.as_bytes())
}

/// Path of a process's configuration file.
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

/// The city whose clock and weather the region's stack uses, for users near the region.
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

/// Writes a topology as the TOML document that it is parsed from.
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
        let zone = region
            .time_zone
            .as_deref()
            .map(|zone| format!("time_zone = {}\n", quoted(zone)));
        let _ = write!(
            text,
            "\n[[region]]\nid = {}\n{role}{}{}sessions_max = {}\nstacks = [{}]\n",
            quoted(region.id.as_str()),
            place(region.location),
            zone.unwrap_or_default(),
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
        let etcd = ["https://127.9.7.71:2379", "https://127.9.7.72:2379"].map(str::to_owned);
        let kinds = [Kind::ControlPlane, Kind::Dns, Kind::Edge];
        layout.write_configuration(&settings, &kinds, &etcd).unwrap();
        let read = |name: &str, file: &str| -> BTreeMap<String, serde_json::Value> {
            let text = std::fs::read_to_string(folder.path().join(name).join(file)).unwrap();
            daemon::config::parse(file, &text).unwrap()
        };
        let urls = [
            "https://127.9.7.61:7070",
            "https://127.9.7.62:7070",
            "https://127.9.7.63:7070",
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
            assert_eq!(document["listen"], url.trim_start_matches("https://"));
            let store = serde_json::json!({
                "etcd": etcd,
                "certificate": "etcd/identity.crt",
                "key": "etcd/identity.key",
                "trust": "etcd/trust.crt",
            });
            assert_eq!(document["store"], store);
        }
    }

    #[test]
    fn edges_and_control_planes_talk_to_stacks_in_the_way_that_these_admit() {
        let layout = Layout::at([127, 9, 7], 0, StoreKind::Embedded);
        for (stacks_admit, mode, stacks) in [
            (Mode::Off, "off", "off"),
            (Mode::Permissive, "permissive", "required"),
            (Mode::Required, "required", "required"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let settings = Settings {
                stacks_admit,
                ..Settings::new(folder.path().to_owned())
            };
            let kinds = [Kind::Stack, Kind::ControlPlane, Kind::Edge];
            layout.write_configuration(&settings, &kinds, &[]).unwrap();
            let identity = |name: &str, kind: Kind| -> serde_json::Value {
                let text = std::fs::read_to_string(configuration_file(folder.path(), name, kind)).unwrap();
                let document: BTreeMap<String, serde_json::Value> = daemon::config::parse(name, &text).unwrap();
                document["identity"].clone()
            };
            assert_eq!(identity("us-east", Kind::Stack)["mode"], mode);
            assert_eq!(identity("edge-iad", Kind::Edge)["stacks"], stacks);
            let control_plane = identity(CONTROL_PLANE, Kind::ControlPlane);
            assert_eq!(
                (&control_plane["mode"], &control_plane["stacks"]),
                (&"required".into(), &stacks.into())
            );
        }
    }

    #[test]
    fn odd_folder_names_survive_quoting() {
        let folder = "C:\\odd \"name\"\n";
        let read: BTreeMap<String, String> = daemon::config::parse("test", &format!("a = {}", quoted(folder))).unwrap();
        assert_eq!(read["a"], folder);
    }
}
