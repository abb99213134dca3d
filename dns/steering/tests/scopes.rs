//! The promise behind client subnets (RFC 7871): every client inside a returned scope gets the same answer, scopes do not
//! overlap, and both forms of an answer agree.

#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use proptest::prelude::*;
use steering::{
    Answer, Answers, Client, Geography, Lookup, Prefix, Question, Settings, Steering, Subnet, Type, labels,
};
use topology::{EdgeId, EdgeState, Location, Moment, Service, Snapshot, fixtures::three_primaries};

const ZONE: &str = "voice.meridian.test";
const TYPES: [Type; 4] = [Type::A, Type::AAAA, Type::HTTPS, Type::TXT];

fn place(number: u8) -> Location {
    Location {
        latitude: f64::from(number % 12) * 12.0 - 66.0,
        longitude: f64::from(number / 12) * 17.0 - 170.0,
    }
}

/// Edges in up to ten places, some drained, some with IPv6, with different weights.
fn world(edges: &[(u8, u8)]) -> Snapshot {
    let mut snapshot = three_primaries();
    let template = snapshot.topology.edges.values().next().unwrap().clone();
    snapshot.topology.edges.clear();
    snapshot.plan.edges.clear();
    snapshot.topology.service = Some(Service {
        alpn: vec!["h2".to_owned()],
    });
    for (number, (at, traits)) in edges.iter().enumerate() {
        let mut edge = template.clone();
        edge.id = EdgeId::new(&format!("edge-{number}")).unwrap();
        edge.location = place(*at);
        edge.addresses = vec![IpAddr::from([192, 0, 2, number as u8])];
        if traits & 1 != 0 {
            edge.addresses
                .push(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16).into());
        }
        edge.weight = [100, 100, 50, 300][usize::from(traits >> 1 & 3)];
        let state = if number > 0 && traits & 8 != 0 {
            EdgeState::Drained
        } else {
            EdgeState::Serving
        };
        snapshot.plan.edges.insert(edge.id.clone(), state);
        snapshot.topology.edges.insert(edge.id.clone(), edge);
    }
    snapshot
}

fn geography(networks: &[(u32, u8, u8)], v6: &[(u16, u8, u8)]) -> Geography {
    let v4 = networks.iter().map(|(bits, length, at)| {
        // Networks that lie near each other touch and nest.
        let address = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 | (bits & 0x00ff_ffff)));
        (Prefix::new(address, 8 + length % 25).unwrap(), place(*at))
    });
    let v6 = v6.iter().map(|(bits, length, at)| {
        let address = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, *bits, bits.rotate_left(5), 0, 0, 0, 0));
        (Prefix::new(address, 32 + length % 33).unwrap(), place(*at))
    });
    let all: Vec<_> = v4.chain(v6).collect();
    let (entries, database) = all.split_at(all.len() / 3);
    Geography::new(entries, database.iter().copied())
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).into()
        }
        IpAddr::V6(v6) => {
            Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).into()
        }
    }
}

fn within(address: IpAddr, length: u8, random: u128) -> IpAddr {
    match (masked(address, length), address) {
        (IpAddr::V4(v4), _) => {
            let host = (random as u32) & !u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() | host).into()
        }
        (IpAddr::V6(v6), _) => {
            let host = random & !u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() | host).into()
        }
    }
}

fn told(address: IpAddr, source: u8) -> Client {
    Client {
        resolver: "198.51.100.7".parse().unwrap(),
        subnet: Some(Subnet {
            address: masked(address, source),
            source,
        }),
    }
}

fn answer(answers: &Answers, kind: Type, client: &Client) -> Answer {
    answers.lookup(&labels(ZONE), kind, client, usize::MAX).unwrap()
}

fn wire_name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in labels(text) {
        bytes.push(label.len() as u8);
        bytes.extend(label);
    }
    bytes.push(0);
    bytes
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(0x0a00_0000 | (bits & 0x00ff_ffff)).into()),
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u64>().prop_map(|bits| Ipv6Addr::from_bits(u128::from(bits) << 32 | 0x2001_0db8_u128 << 96).into()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_client_inside_a_scope_gets_the_same_answer(
        edges in prop::collection::vec((0_u8..240, any::<u8>()), 1..10),
        networks in prop::collection::vec((any::<u32>(), any::<u8>(), 0_u8..240), 0..40),
        v6 in prop::collection::vec((any::<u16>(), any::<u8>(), 0_u8..240), 0..20),
        asked in prop::collection::vec((addresses(), any::<u8>(), any::<u128>()), 1..20),
    ) {
        let snapshot = world(&edges);
        let mut steering = Steering::new(Arc::new(geography(&networks, &v6)), Settings::default());
        let answers = steering.compile(&snapshot, Moment(1_000_000_000));
        for (address, source, random) in asked {
            let (longest, cap) = if address.is_ipv4() { (32, 24) } else { (128, 56) };
            let source = 1 + source % longest;
            for kind in TYPES {
                let first = answer(&answers, kind, &told(address, source));
                prop_assert!(first.scope <= cap);
                // What resolvers cache it for is the shorter of the two (RFC 7871 §7.3.1), around the network they told.
                let network = masked(address, source);
                let neighbour = within(network, first.scope, random);
                let second = answer(&answers, kind, &told(neighbour, longest));
                prop_assert_eq!(&first, &second, "{} {}/{} and {}", kind, network, source, neighbour);
                if first.scope == 0 {
                    let other: IpAddr = if address.is_ipv4() { "2001:db8::1".parse().unwrap() } else { "10.0.0.1".parse().unwrap() };
                    prop_assert_eq!(&answer(&answers, kind, &told(other, 24)), &first, "scope 0 holds for both families");
                }
            }
        }
    }

    #[test]
    fn bytes_and_records_agree(
        edges in prop::collection::vec((0_u8..240, any::<u8>()), 1..10),
        networks in prop::collection::vec((any::<u32>(), any::<u8>(), 0_u8..240), 0..40),
        address in addresses(),
        source in 0_u8..=24,
        room in 0_usize..400,
    ) {
        let snapshot = world(&edges);
        let mut steering = Steering::new(Arc::new(geography(&networks, &[])), Settings::default());
        let answers = steering.compile(&snapshot, Moment(1_000_000_000));
        let client = told(address, source);
        for kind in TYPES {
            for text in [ZONE, "edge-0.voice.meridian.test", "nobody.voice.meridian.test"] {
                let records = answers.lookup(&labels(text), kind, &client, room).unwrap();
                let name = wire_name(text);
                let question = Question { name: &name, kind, client: &client, room };
                let mut bytes = [0; 2048];
                let written = answers.write(question, &mut bytes).unwrap();
                prop_assert_eq!(written.scope, records.scope);
                let counts = (written.answers as usize, written.authorities as usize, written.no_such_name);
                let expected = match &records.lookup {
                    Lookup::Found { records, .. } => (records.len(), 0, false),
                    Lookup::NoData(_) => (0, 1, false),
                    Lookup::NoSuchName(_) => (0, 1, true),
                };
                prop_assert_eq!(counts, expected);
            }
        }
    }
}

#[test]
fn the_scope_is_as_wide_as_the_answer_allows() {
    // One edge in Europe, one in America: each client has one edge, so only geography cuts the client space.
    let mut snapshot = world(&[(100, 0), (20, 0)]);
    snapshot.topology.service = None;
    let entry = |prefix: &str, length, at| (Prefix::new(prefix.parse().unwrap(), length).unwrap(), place(at));
    let geography = Geography::new(
        &[
            entry("0.0.0.0", 0, 100),
            entry("::", 0, 100),
            entry("10.64.0.0", 10, 20),
            entry("10.128.0.0", 9, 20),
        ],
        // The database knows the same place by many networks; all of them become one.
        (0..64_u8).map(|third| entry(&format!("11.0.{third}.0"), 24, 100)),
    );
    let answers = Steering::new(Arc::new(geography), Settings::default()).compile(&snapshot, Moment(1_000_000_000));
    let scope = |address: &str| answer(&answers, Type::A, &told(address.parse().unwrap(), 24)).scope;
    let scopes = ["10.64.1.1", "10.200.1.1", "10.1.1.1", "11.0.7.7", "200.1.1.1"].map(scope);
    assert_eq!(scopes, [10, 9, 10, 8, 1]);
    // No edge has IPv6, for nobody.
    assert_eq!(
        answer(&answers, Type::AAAA, &told("10.64.1.1".parse().unwrap(), 24)).scope,
        0
    );
}

#[test]
fn a_resolver_that_asks_not_to_use_the_subnet_is_answered_by_its_own_address() {
    let snapshot = world(&[(100, 0), (20, 0)]);
    let entry = |prefix: &str, at| (Prefix::new(prefix.parse().unwrap(), 8).unwrap(), place(at));
    let geography = Geography::new(&[entry("10.0.0.0", 100), entry("198.0.0.0", 20)], []);
    let answers = Steering::new(Arc::new(geography), Settings::default()).compile(&snapshot, Moment(1_000_000_000));
    let client = told("10.1.1.0".parse().unwrap(), 0);
    let here = answer(&answers, Type::A, &client);
    assert_eq!(
        here,
        answer(&answers, Type::A, &Client::behind("198.51.100.7".parse().unwrap()))
    );
    assert_eq!(here.scope, 0);
    assert_ne!(
        here.lookup,
        answer(&answers, Type::A, &told("10.1.1.0".parse().unwrap(), 24)).lookup
    );
}

#[test]
fn clients_of_one_place_spread_over_its_edges_by_weight() {
    let snapshot = world(&[(100, 4), (100, 0), (100, 0), (100, 0), (20, 0)]);
    let entry = (Prefix::new("10.0.0.0".parse().unwrap(), 8).unwrap(), place(100));
    let answers = Steering::new(Arc::new(Geography::new(&[entry], [])), Settings::default())
        .compile(&snapshot, Moment(1_000_000_000));
    let mut parts: BTreeMap<String, f64> = BTreeMap::new();
    for number in 0..10_000_u32 {
        let client = Client::behind(Ipv4Addr::from_bits(0x0a00_0000 + number * 256).into());
        let Lookup::Found { records, .. } = answer(&answers, Type::A, &client).lookup else {
            panic!("no answer");
        };
        for record in &records {
            *parts.entry(record.data.to_string()).or_default() += 1.0 / records.len() as f64 / 100.0;
        }
    }
    // Weights 50, 100, 100, 100.
    let percent: Vec<f64> = parts.values().copied().collect();
    assert_eq!(parts.len(), 4, "{parts:?}");
    for (found, wanted) in percent.iter().zip([14.3, 28.6, 28.6, 28.6]) {
        assert!((found - wanted).abs() < 1.5, "{parts:?}");
    }
}
