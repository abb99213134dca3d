//! All DNS answers of one snapshot.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use topology::{EdgeState, Location, PlanNumber, Snapshot};

use crate::{
    Client, Record, RecordData, Soa, Type,
    order::{Target, choose},
};

/// Most addresses of one name below the zone. Sixteen IPv6 addresses still fit into the 512 bytes of plain DNS over
/// UDP.
const ADDRESSES_MAX: usize = 16;
/// TTL of the name servers and their addresses, in seconds. They change with the topology, not with health.
const NAME_SERVER_TTL_S: u32 = 300;
/// Longest time that resolvers cache a negative answer, in seconds, so that a name looked up too early does not stay
/// unknown.
const NEGATIVE_TTL_MAX_S: u32 = 30;
/// TTL of the answer to ANY, in seconds. It never changes.
const ANY_TTL_S: u32 = 3600;

/// The answers of the responder while a snapshot is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    number: PlanNumber,
    zone: Arc<str>,
    /// From the root down, in the order of comparison: `["test", "meridian", "voice"]`.
    zone_labels: Vec<Box<[u8]>>,
    soa: Soa,
    ttl_s: u32,
    service: Service,
    name_servers: Vec<Arc<str>>,
    /// By the one label below the zone.
    hosts: BTreeMap<Box<[u8]>, Host>,
}

/// One name below the zone.
#[derive(Debug, Clone, PartialEq)]
struct Host {
    name: Arc<str>,
    ttl_s: u32,
    addresses: Addresses,
}

/// All addresses of a host, each once.
#[derive(Debug, Clone, PartialEq, Default)]
struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

impl Addresses {
    fn add(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) if !self.v4.contains(&address) => self.v4.push(address),
            IpAddr::V6(address) if !self.v6.contains(&address) => self.v6.push(address),
            // A repeated address would be a duplicate record, which RFC 2181 §5 forbids.
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
    }

    fn of_type(&self, asked: Type) -> Vec<RecordData> {
        let mut data: Vec<RecordData> = match asked {
            Type::A => self.v4.iter().copied().map(RecordData::A).collect(),
            Type::Aaaa => self.v6.iter().copied().map(RecordData::Aaaa).collect(),
            _ => Vec::new(),
        };
        data.truncate(ADDRESSES_MAX);
        data
    }
}

/// The serving edges.
#[derive(Debug, Clone, PartialEq, Default)]
struct Service {
    v4: Vec<Target<Ipv4Addr>>,
    v6: Vec<Target<Ipv6Addr>>,
}

impl Service {
    fn add(&mut self, addresses: &Addresses, location: Location) {
        fn target<A: Copy + PartialEq>(known: &mut Vec<Target<A>>, addresses: &[A], location: Location) {
            // For the same reason, two edges cannot add the same address.
            let is_new = |address: &&A| known.iter().all(|target| !target.addresses.contains(address));
            let addresses: Vec<A> = addresses.iter().filter(is_new).copied().collect();
            if !addresses.is_empty() {
                known.push(Target { addresses, location });
            }
        }
        target(&mut self.v4, &addresses.v4, location);
        target(&mut self.v6, &addresses.v6, location);
    }

    fn of_type(&self, asked: Type, client: Client) -> Vec<RecordData> {
        match asked {
            Type::A => choose(&self.v4, client).into_iter().map(RecordData::A).collect(),
            Type::Aaaa => choose(&self.v6, client).into_iter().map(RecordData::Aaaa).collect(),
            _ => Vec::new(),
        }
    }
}

fn records(name: &Arc<str>, ttl_s: u32, data: Vec<RecordData>) -> Vec<Record> {
    let record = |data| Record {
        name: name.clone(),
        ttl_s,
        data,
    };
    data.into_iter().map(record).collect()
}

/// The answer to a question inside the zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The name has records of the type.
    Found {
        /// Those records.
        records: Vec<Record>,
        /// Addresses of the name servers in `records`.
        additional: Vec<Record>,
    },
    /// The name exists and has no record of the type. The TTL of the SOA limits how long a resolver may cache this (RFC
    /// 2308 §3).
    NoData(Record),
    /// Neither the name nor any name below it exists.
    NoSuchName(Record),
}

/// The question is not about this zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchZone;

impl Answers {
    /// Compiles every answer that `snapshot` gives. A drained edge keeps its own name but is no part of the service.
    pub fn compile(snapshot: &Snapshot) -> Self {
        let Snapshot {
            plan,
            topology,
            dns_ttl_s,
            ..
        } = snapshot;
        let zone: Arc<str> = topology.zone.as_str().into();
        let host_name = |label: &str| -> Arc<str> { format!("{label}.{zone}").into() };

        let (mut service, mut hosts) = (Service::default(), BTreeMap::<Box<[u8]>, Host>::new());
        for edge in topology.edges.values() {
            let host = hosts.entry(edge.id.as_str().as_bytes().into()).or_insert_with(|| Host {
                name: host_name(edge.id.as_str()),
                ttl_s: *dns_ttl_s,
                addresses: Addresses::default(),
            });
            for address in &edge.addresses {
                host.addresses.add(*address);
            }
            if plan.edges.get(&edge.id) == Some(&EdgeState::Serving) {
                service.add(&host.addresses, edge.location);
            }
        }
        for server in topology.name_servers.values() {
            // One machine may be both. Its name then has both addresses and the shorter TTL.
            let host = hosts
                .entry(server.id.as_str().as_bytes().into())
                .or_insert_with(|| Host {
                    name: host_name(server.id.as_str()),
                    ttl_s: NAME_SERVER_TTL_S,
                    addresses: Addresses::default(),
                });
            host.ttl_s = host.ttl_s.min(NAME_SERVER_TTL_S);
            host.addresses.add(server.address);
        }
        let name_servers: Vec<Arc<str>> = topology.name_servers.keys().map(|id| host_name(id.as_str())).collect();
        let soa = Soa {
            mname: name_servers.first().unwrap_or(&zone).clone(),
            rname: host_name("hostmaster"),
            // Serial numbers have 32 bits, so only the low half of the generation is used.
            serial: plan.generation as u32,
            refresh_s: 3600,
            retry_s: 600,
            expire_s: 604_800,
            minimum_s: NEGATIVE_TTL_MAX_S.min(*dns_ttl_s),
        };
        Self {
            number: plan.number(),
            zone_labels: topology.zone.rsplit('.').map(|label| label.as_bytes().into()).collect(),
            zone,
            soa,
            ttl_s: *dns_ttl_s,
            service,
            name_servers,
            hosts,
        }
    }

    /// The plan from which the answers were compiled.
    pub fn number(&self) -> PlanNumber {
        self.number
    }

    /// The zone in lower case, without the final dot.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Answers a question. `name` is its labels from the left, in any case (RFC 4343).
    pub fn lookup(&self, name: &[&[u8]], asked: Type, client: Client) -> Result<Lookup, NoSuchZone> {
        let below = name.len().checked_sub(self.zone_labels.len()).ok_or(NoSuchZone)?;
        let zone_asked = name[below..].iter().rev();
        if !zone_asked
            .zip(&self.zone_labels)
            .all(|(asked, ours)| asked.eq_ignore_ascii_case(ours))
        {
            return Err(NoSuchZone);
        }
        let host = match &name[..below] {
            [] => return Ok(self.at_apex(asked, client)),
            [label] => self.hosts.get(label.to_ascii_lowercase().as_slice()),
            // No name lies below a host.
            [_, ..] => None,
        };
        let Some(host) = host else {
            return Ok(Lookup::NoSuchName(self.negative()));
        };
        let records = match asked {
            Type::Any => vec![any(&host.name)],
            _ => records(&host.name, host.ttl_s, host.addresses.of_type(asked)),
        };
        Ok(self.found(records, Vec::new()))
    }

    fn at_apex(&self, asked: Type, client: Client) -> Lookup {
        let record = |ttl_s, data| Record {
            name: self.zone.clone(),
            ttl_s,
            data,
        };
        match asked {
            Type::A | Type::Aaaa => {
                let records = records(&self.zone, self.ttl_s, self.service.of_type(asked, client));
                self.found(records, Vec::new())
            }
            Type::Soa => self.found(vec![record(self.ttl_s, RecordData::Soa(self.soa.clone()))], Vec::new()),
            Type::Ns => {
                let servers = self
                    .name_servers
                    .iter()
                    .map(|name| record(NAME_SERVER_TTL_S, RecordData::Ns(name.clone())))
                    .collect();
                self.found(servers, self.glue())
            }
            Type::Any => self.found(vec![any(&self.zone)], Vec::new()),
            Type::Other => self.found(Vec::new(), Vec::new()),
        }
    }

    fn glue(&self) -> Vec<Record> {
        self.hosts
            .values()
            .filter(|host| self.name_servers.contains(&host.name))
            .flat_map(|host| {
                [Type::A, Type::Aaaa].map(|kind| records(&host.name, host.ttl_s, host.addresses.of_type(kind)))
            })
            .flatten()
            .collect()
    }

    fn found(&self, records: Vec<Record>, additional: Vec<Record>) -> Lookup {
        if records.is_empty() {
            Lookup::NoData(self.negative())
        } else {
            Lookup::Found { records, additional }
        }
    }

    /// The SOA of a negative answer. Its TTL is the smaller of its own TTL and its minimum (RFC 2308 §3).
    fn negative(&self) -> Record {
        Record {
            name: self.zone.clone(),
            ttl_s: self.ttl_s.min(self.soa.minimum_s),
            data: RecordData::Soa(self.soa.clone()),
        }
    }
}

fn any(name: &Arc<str>) -> Record {
    Record {
        name: name.clone(),
        ttl_s: ANY_TTL_S,
        data: RecordData::Hinfo,
    }
}

#[cfg(test)]
mod tests {
    use topology::{EdgeId, NameServer, NodeId, fixtures::three_primaries, snapshot::digest};

    use super::*;
    use crate::{labels, order::NAMED_MAX};

    const ANYONE: Client = Client {
        address: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
        location: None,
    };

    /// A snapshot with IPv6 at one edge and a second name server.
    fn world() -> Snapshot {
        let mut snapshot = three_primaries();
        snapshot.plan.generation = 42;
        let dublin = EdgeId::new("edge-dub").unwrap();
        let edge = snapshot.topology.edges.get_mut(&dublin).unwrap();
        edge.addresses.push("2001:db8::2".parse().unwrap());
        let second = NodeId::new("ns2").unwrap();
        snapshot.topology.name_servers.insert(
            second.clone(),
            NameServer {
                id: second,
                address: "2001:db8::53".parse().unwrap(),
            },
        );
        snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
        snapshot
    }

    /// The answer in one line, addresses sorted: `name ttl data, …  + additional`.
    fn rendered(answers: &Answers, name: &str, asked: Type) -> String {
        let line = |record: &Record| {
            let data = match &record.data {
                RecordData::A(address) => address.to_string(),
                RecordData::Aaaa(address) => address.to_string(),
                RecordData::Ns(name) => format!("ns {name}"),
                RecordData::Soa(soa) => format!("soa {} {} {} {}", soa.mname, soa.rname, soa.serial, soa.minimum_s),
                RecordData::Hinfo => "hinfo".to_owned(),
            };
            let owner = record
                .name
                .strip_suffix("voice.meridian.test")
                .expect("the record is in the zone");
            format!("{owner}@ {} {data}", record.ttl_s)
        };
        let lines = |records: &[Record]| {
            let mut lines: Vec<String> = records.iter().map(line).collect();
            lines.sort();
            lines.join(", ")
        };
        match answers.lookup(&labels(name), asked, ANYONE) {
            Err(NoSuchZone) => "refused".to_owned(),
            Ok(Lookup::NoSuchName(soa)) => format!("no such name: {}", line(&soa)),
            Ok(Lookup::NoData(soa)) => format!("no data: {}", line(&soa)),
            Ok(Lookup::Found { records, additional }) if additional.is_empty() => lines(&records),
            Ok(Lookup::Found { records, additional }) => format!("{} + {}", lines(&records), lines(&additional)),
        }
    }

    #[test]
    fn every_question_has_its_answer() {
        use Type::{A, Aaaa, Any, Ns, Other, Soa};
        let answers = Answers::compile(&world());
        let soa = "soa ns1.voice.meridian.test hostmaster.voice.meridian.test 42 15";
        let no_data = format!("no data: @ 15 {soa}");
        let no_such_name = format!("no such name: @ 15 {soa}");
        let zone = "voice.meridian.test";
        for (name, asked, expected) in [
            (zone, A, "@ 15 127.0.1.1, @ 15 127.0.1.2".to_owned()),
            ("VOICE.Meridian.tesT.", A, "@ 15 127.0.1.1, @ 15 127.0.1.2".to_owned()),
            (zone, Aaaa, "@ 15 2001:db8::2".to_owned()),
            (zone, Soa, format!("@ 15 {soa}")),
            (
                zone,
                Ns,
                "@ 300 ns ns1.voice.meridian.test, @ 300 ns ns2.voice.meridian.test + ns1.@ 300 127.0.0.1, \
                 ns2.@ 300 2001:db8::53"
                    .to_owned(),
            ),
            (zone, Any, "@ 3600 hinfo".to_owned()),
            (zone, Other, no_data.clone()),
            ("edge-iad.voice.meridian.test", A, "edge-iad.@ 15 127.0.1.1".to_owned()),
            ("EDGE-iad.voice.meridian.test", A, "edge-iad.@ 15 127.0.1.1".to_owned()),
            ("edge-iad.voice.meridian.test", Aaaa, no_data.clone()),
            ("edge-iad.voice.meridian.test", Ns, no_data.clone()),
            ("edge-iad.voice.meridian.test", Any, "edge-iad.@ 3600 hinfo".to_owned()),
            ("ns2.voice.meridian.test", Aaaa, "ns2.@ 300 2001:db8::53".to_owned()),
            ("ns2.voice.meridian.test", A, no_data),
            ("us-east.voice.meridian.test", A, no_such_name.clone()),
            ("nobody.voice.meridian.test", Any, no_such_name.clone()),
            ("x.edge-iad.voice.meridian.test", A, no_such_name.clone()),
            ("*.voice.meridian.test", A, no_such_name.clone()),
            ("a.b.c.d.e.voice.meridian.test", Soa, no_such_name),
            ("meridian.test", A, "refused".to_owned()),
            ("voice.meridian.example", A, "refused".to_owned()),
            ("xvoice.meridian.test", A, "refused".to_owned()),
            (".", Ns, "refused".to_owned()),
        ] {
            assert_eq!(rendered(&answers, name, asked), expected, "{name} {asked:?}");
        }
    }

    #[test]
    fn a_dot_inside_a_label_does_not_make_a_name_ours() {
        let answers = Answers::compile(&world());
        let tricky: [&[u8]; 3] = [b"x.voice", b"meridian", b"test"];
        assert_eq!(answers.lookup(&tricky, Type::A, ANYONE), Err(NoSuchZone));
    }

    #[test]
    fn a_drained_edge_is_never_part_of_the_service_and_keeps_its_name() {
        let mut snapshot = world();
        let dublin = EdgeId::new("edge-dub").unwrap();
        snapshot.plan.edges.insert(dublin, EdgeState::Drained);
        snapshot.validate().unwrap();
        let answers = Answers::compile(&snapshot);
        assert_eq!(rendered(&answers, "voice.meridian.test", Type::A), "@ 15 127.0.1.1");
        assert!(rendered(&answers, "voice.meridian.test", Type::Aaaa).starts_with("no data"));
        assert_eq!(
            rendered(&answers, "edge-dub.voice.meridian.test", Type::A),
            "edge-dub.@ 15 127.0.1.2"
        );
    }

    #[test]
    fn the_negative_ttl_is_short_whatever_the_ttl() {
        for (ttl_s, expected) in [(5, 5), (3600, 30)] {
            let mut snapshot = world();
            snapshot.dns_ttl_s = ttl_s;
            let answers = Answers::compile(&snapshot);
            let Ok(Lookup::NoSuchName(soa)) = answers.lookup(&labels("x.voice.meridian.test"), Type::A, ANYONE) else {
                panic!("a name that does not exist was found");
            };
            assert_eq!(soa.ttl_s, expected);
        }
    }

    #[test]
    fn a_crowd_of_edges_is_answered_with_three_and_a_crowd_of_addresses_with_sixteen() {
        let mut snapshot = world();
        let template = snapshot.topology.edges.values().next().unwrap().clone();
        for number in 0..100_u8 {
            let id = EdgeId::new(&format!("edge-{number}")).unwrap();
            let mut edge = template.clone();
            edge.id = id.clone();
            edge.addresses = (0..20).map(|host| Ipv4Addr::new(192, 0, number, host).into()).collect();
            snapshot.plan.edges.insert(id.clone(), EdgeState::Serving);
            snapshot.topology.edges.insert(id, edge);
        }
        let answers = Answers::compile(&snapshot);
        for (name, expected) in [
            ("voice.meridian.test", NAMED_MAX),
            ("edge-7.voice.meridian.test", ADDRESSES_MAX),
        ] {
            let Ok(Lookup::Found { records, .. }) = answers.lookup(&labels(name), Type::A, ANYONE) else {
                panic!("{name} is gone");
            };
            assert_eq!(records.len(), expected, "{name}");
        }
    }

    #[test]
    fn two_edges_at_one_address_are_one_record() {
        let mut snapshot = world();
        let [ashburn, dublin] = ["edge-iad", "edge-dub"].map(|id| EdgeId::new(id).unwrap());
        let shared = snapshot.topology.edges[&ashburn].addresses.clone();
        snapshot.topology.edges.get_mut(&dublin).unwrap().addresses = shared;
        let answers = Answers::compile(&snapshot);
        assert_eq!(rendered(&answers, "voice.meridian.test", Type::A), "@ 15 127.0.1.1");
    }

    /// Documents from before ids had to be unique may name one machine as both. All records of one name and type have one
    /// TTL (RFC 2181 §5.2), and neither kind of address may be cached for longer than its own TTL allows.
    #[test]
    fn a_machine_that_is_edge_and_name_server_has_the_shorter_ttl() {
        for (edge_ttl_s, expected) in [(15, 15), (3600, NAME_SERVER_TTL_S)] {
            let mut snapshot = world();
            snapshot.dns_ttl_s = edge_ttl_s;
            let both = NodeId::new("edge-iad").unwrap();
            snapshot.topology.name_servers.insert(
                both.clone(),
                NameServer {
                    id: both,
                    address: "192.0.2.53".parse().unwrap(),
                },
            );
            let answers = Answers::compile(&snapshot);
            assert_eq!(
                rendered(&answers, "edge-iad.voice.meridian.test", Type::A),
                format!("edge-iad.@ {expected} 127.0.1.1, edge-iad.@ {expected} 192.0.2.53")
            );
        }
    }

    #[test]
    fn a_zone_without_name_servers_says_so() {
        let mut snapshot = world();
        snapshot.topology.name_servers.clear();
        let answers = Answers::compile(&snapshot);
        assert!(rendered(&answers, "voice.meridian.test", Type::Ns).starts_with("no data"));
        assert!(rendered(&answers, "voice.meridian.test", Type::Soa).contains("soa voice.meridian.test"));
    }
}
