use std::{net::IpAddr, time::Duration};

use topology::{
    EdgeId, EdgeState, NameServer, NodeId, Service, ZoneData, ZoneRecord, fixtures::three_primaries, snapshot::digest,
};

use super::*;
use crate::{AllOut, Settings, compile::NAME_SERVER_TTL_S, draw::NAMED_MAX, labels, zone::ADDRESSES_MAX};

const ZONE: &str = "voice.meridian.test";
/// Long after the plan of the fixture, so that its TTLs are those of a calm day.
const LATER: Moment = Moment(1_000_000_000);

fn anyone() -> Client {
    Client::behind("198.51.100.7".parse().unwrap())
}

/// A snapshot with IPv6 at one edge, a second name server, and records of the operator.
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
    let record = |name: &str, data| ZoneRecord {
        name: name.to_owned(),
        ttl_s: 60,
        data,
    };
    snapshot.topology.records = vec![
        record("_acme-challenge", ZoneData::Txt("x".repeat(300))),
        record(
            "@",
            ZoneData::Caa {
                flags: 0,
                tag: "issue".to_owned(),
                value: "ca.example.net".to_owned(),
            },
        ),
        record("*.lab", ZoneData::A([192, 0, 2, 9].into())),
        record("a.b.lab", ZoneData::Aaaa("2001:db8::9".parse().unwrap())),
    ];
    snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
    snapshot
}

fn with_bindings() -> Snapshot {
    let mut snapshot = world();
    snapshot.topology.service = Some(Service {
        alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
    });
    snapshot
}

fn compiled(snapshot: &Snapshot) -> Answers {
    Answers::compile(snapshot, LATER)
}

/// The answer in one line, addresses sorted: `name ttl data, …  + additional`. TTLs of the service show as `ttl`.
fn rendered(answers: &Answers, name: &str, kind: Type) -> String {
    let line = |record: &Record| {
        let owner = record.name.strip_suffix(ZONE).expect("the record is in the zone");
        let data = record.data.to_string().replace(&format!("{ZONE}."), "@");
        let is_service = owner.is_empty() && [Type::A, Type::AAAA, Type::HTTPS].contains(&record.data.kind());
        let range = answers.ttl().low_s..=answers.ttl().high_s;
        match is_service && range.contains(&record.ttl_s) {
            true => format!("@ ttl {data}"),
            false => format!("{owner}@ {} {data}", record.ttl_s),
        }
    };
    let lines = |records: &[Record]| {
        let mut lines: Vec<String> = records.iter().map(line).collect();
        lines.sort();
        lines.join(", ")
    };
    match answers
        .lookup(&labels(name), kind, &anyone(), usize::MAX)
        .map(|answer| answer.lookup)
    {
        Err(NoSuchZone) => "refused".to_owned(),
        Ok(Lookup::NoSuchName(soa)) => format!("no such name: {}", line(&soa)),
        Ok(Lookup::NoData(soa)) => format!("no data: {}", line(&soa)),
        Ok(Lookup::Found { records, additional }) if additional.is_empty() => lines(&records),
        Ok(Lookup::Found { records, additional }) => format!("{} + {}", lines(&records), lines(&additional)),
    }
}

#[test]
fn every_question_has_its_answer() {
    let answers = compiled(&world());
    let soa = "ns1.@ hostmaster.@ 42 3600 600 604800 15";
    let no_data = format!("no data: @ 15 {soa}");
    let no_such_name = format!("no such name: @ 15 {soa}");
    let other = Type(65_280);
    for (name, kind, expected) in [
        (ZONE, Type::A, "@ ttl 127.0.1.1, @ ttl 127.0.1.2".to_owned()),
        (
            "VOICE.Meridian.tesT.",
            Type::A,
            "@ ttl 127.0.1.1, @ ttl 127.0.1.2".to_owned(),
        ),
        (ZONE, Type::AAAA, "@ ttl 2001:db8::2".to_owned()),
        (ZONE, Type::SOA, format!("@ 15 {soa}")),
        (
            ZONE,
            Type::NS,
            "@ 300 ns1.@, @ 300 ns2.@ + ns1.@ 300 127.0.0.1, ns2.@ 300 2001:db8::53".to_owned(),
        ),
        (ZONE, Type::CAA, "@ 60 0 issue \"ca.example.net\"".to_owned()),
        (ZONE, Type::ANY, "@ 3600 \"RFC8482\" \"\"".to_owned()),
        // Without [service] there are no bindings.
        (ZONE, Type::HTTPS, no_data.clone()),
        (ZONE, other, no_data.clone()),
        (
            "edge-iad.voice.meridian.test",
            Type::A,
            "edge-iad.@ 15 127.0.1.1".to_owned(),
        ),
        (
            "EDGE-iad.voice.meridian.test",
            Type::A,
            "edge-iad.@ 15 127.0.1.1".to_owned(),
        ),
        ("edge-iad.voice.meridian.test", Type::AAAA, no_data.clone()),
        ("edge-iad.voice.meridian.test", Type::NS, no_data.clone()),
        (
            "edge-iad.voice.meridian.test",
            Type::ANY,
            "edge-iad.@ 3600 \"RFC8482\" \"\"".to_owned(),
        ),
        (
            "ns2.voice.meridian.test",
            Type::AAAA,
            "ns2.@ 300 2001:db8::53".to_owned(),
        ),
        ("ns2.voice.meridian.test", Type::A, no_data.clone()),
        ("us-east.voice.meridian.test", Type::A, no_such_name.clone()),
        ("nobody.voice.meridian.test", Type::ANY, no_such_name.clone()),
        ("x.edge-iad.voice.meridian.test", Type::A, no_such_name.clone()),
        ("*.voice.meridian.test", Type::A, no_such_name.clone()),
        ("a.b.c.d.e.voice.meridian.test", Type::SOA, no_such_name.clone()),
        // Wildcards and empty non-terminals (RFC 4592, RFC 8020).
        (
            "any.lab.voice.meridian.test",
            Type::A,
            "*.lab.@ 60 192.0.2.9".to_owned(),
        ),
        ("any.lab.voice.meridian.test", Type::AAAA, no_data.clone()),
        ("lab.voice.meridian.test", Type::A, no_data.clone()),
        ("b.lab.voice.meridian.test", Type::A, no_data),
        ("x.b.lab.voice.meridian.test", Type::A, no_such_name),
        (
            "a.b.lab.voice.meridian.test",
            Type::AAAA,
            "a.b.lab.@ 60 2001:db8::9".to_owned(),
        ),
        ("meridian.test", Type::A, "refused".to_owned()),
        ("voice.meridian.example", Type::A, "refused".to_owned()),
        ("xvoice.meridian.test", Type::A, "refused".to_owned()),
        (".", Type::NS, "refused".to_owned()),
    ] {
        assert_eq!(rendered(&answers, name, kind), expected, "{name} {kind}");
    }
    let text = rendered(&answers, "_acme-challenge.voice.meridian.test", Type::TXT);
    assert_eq!(
        text,
        format!("_acme-challenge.@ 60 \"{}\" \"{}\"", "x".repeat(255), "x".repeat(45))
    );
}

#[test]
fn bindings_name_the_choice_first_and_its_alternates_behind_it() {
    let answers = compiled(&with_bindings());
    for kind in [Type::HTTPS, Type::SVCB] {
        let Ok(Answer {
            lookup: Lookup::Found { records, .. },
            ..
        }) = answers.lookup(&labels(ZONE), kind, &anyone(), usize::MAX)
        else {
            panic!("no {kind} records");
        };
        let bindings = records.iter().map(|record| match &record.data {
            RecordData::Https(binding) | RecordData::Svcb(binding) => binding,
            other => panic!("{other}"),
        });
        let bindings: Vec<&crate::Binding> = bindings.collect();
        assert_eq!(bindings.iter().map(|it| it.priority).collect::<Vec<_>>(), [1, 2]);
        let dublin = bindings
            .iter()
            .find(|it| &*it.target == "edge-dub.voice.meridian.test")
            .unwrap();
        assert_eq!((dublin.port, dublin.v4.len(), dublin.v6.len()), (8080, 1, 1));
        assert!(
            dublin
                .to_string()
                .contains("alpn=\"h2,http/1.1\" port=8080 ipv4hint=127.0.1.2 ipv6hint=2001:db8::2")
        );
    }
    // Different clients have different first choices.
    let first = |last: u8| {
        let client = Client::behind(IpAddr::from([198, 51, last, 1]));
        let answer = answers.lookup(&labels(ZONE), Type::HTTPS, &client, usize::MAX).unwrap();
        match answer.lookup {
            Lookup::Found { records, .. } => records[0].data.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!((0..100).any(|last| first(last) != first(200)));
}

/// A label that contains a dot is one label, also when its bytes look like the zone.
#[test]
fn a_dot_inside_a_label_does_not_make_it_two() {
    let answers = compiled(&world());
    let tricky: [&[u8]; 3] = [b"x.voice", b"meridian", b"test"];
    assert_eq!(answers.lookup(&tricky, Type::A, &anyone(), usize::MAX), Err(NoSuchZone));
}

#[test]
fn a_drained_edge_is_never_part_of_the_service_and_keeps_its_name() {
    let mut snapshot = world();
    let dublin = EdgeId::new("edge-dub").unwrap();
    snapshot.plan.edges.insert(dublin, EdgeState::Drained);
    snapshot.validate().unwrap();
    let answers = compiled(&snapshot);
    assert_eq!(rendered(&answers, ZONE, Type::A), "@ ttl 127.0.1.1");
    assert!(rendered(&answers, ZONE, Type::AAAA).starts_with("no data"));
    assert_eq!(
        rendered(&answers, "edge-dub.voice.meridian.test", Type::A),
        "edge-dub.@ 7 127.0.1.2"
    );
    // A change is likely while an edge is out.
    assert_eq!(
        (answers.pace(), answers.ttl()),
        (Pace::Changing, Ttl { low_s: 5, high_s: 7 })
    );
}

#[test]
fn answers_are_kept_for_longer_when_nothing_changed_for_a_while() {
    let mut steering = Steering::default();
    let mut snapshot = world();
    snapshot.plan.created_at = Moment(1_000_000);
    let now = Moment(1_000_000);
    let changing = steering.compile(&snapshot, now);
    assert_eq!(
        (changing.pace(), changing.holds_until()),
        (Pace::Changing, Some(now + crate::CALM_AFTER))
    );
    let steady = steering.compile(&snapshot, now + crate::CALM_AFTER);
    assert_eq!((steady.pace(), steady.holds_until()), (Pace::Steady, None));
    assert_eq!(steady.ttl(), Ttl { low_s: 12, high_s: 15 });
}

/// Its clock says that the plan comes from the future; no edge may wait for that time.
#[test]
fn a_name_server_whose_clock_is_behind_counts_from_the_arrival_of_the_plan() {
    let mut steering = Steering::default();
    let mut snapshot = world();
    snapshot.plan.created_at = Moment(3_600_000);
    steering.compile(&snapshot, Moment(0));
    let answers = steering.compile(&snapshot, Moment(0) + crate::CALM_AFTER);
    assert_eq!(answers.pace(), Pace::Steady);
}

#[test]
fn the_negative_ttl_is_short_whatever_the_ttl() {
    for (ttl_s, expected) in [(5, 5), (3600, 30)] {
        let mut snapshot = world();
        snapshot.dns_ttl_s = ttl_s;
        let answers = compiled(&snapshot);
        let answer = answers.lookup(&labels("x.voice.meridian.test"), Type::A, &anyone(), usize::MAX);
        let Ok(Lookup::NoSuchName(soa)) = answer.map(|it| it.lookup) else {
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
        edge.addresses = (0..20).map(|host| IpAddr::from([192, 0, number, host])).collect();
        snapshot.plan.edges.insert(id.clone(), EdgeState::Serving);
        snapshot.topology.edges.insert(id, edge);
    }
    let answers = compiled(&snapshot);
    for (name, expected) in [(ZONE, NAMED_MAX), ("edge-7.voice.meridian.test", ADDRESSES_MAX)] {
        let answer = answers.lookup(&labels(name), Type::A, &anyone(), usize::MAX).unwrap();
        let Lookup::Found { records, .. } = answer.lookup else {
            panic!("{name} is gone");
        };
        assert_eq!(records.len(), expected, "{name}");
    }
}

#[test]
fn two_edges_at_one_address_are_one_record() {
    let mut snapshot = world();
    let [ashburn, dublin] = ["edge-iad", "edge-dub"].map(|id| EdgeId::new(id).unwrap());
    let both = snapshot.topology.edges[&ashburn].addresses.clone();
    snapshot.topology.edges.get_mut(&dublin).unwrap().addresses = both;
    assert_eq!(rendered(&compiled(&snapshot), ZONE, Type::A), "@ ttl 127.0.1.1");
}

/// Documents from before ids had to be unique may name one machine as both. All records of one name and type have one
/// TTL (RFC 2181 §5.2), and neither kind of address may be cached for longer than its own TTL allows.
#[test]
fn a_machine_that_is_edge_and_name_server_has_the_shorter_ttl() {
    let mut snapshot = world();
    let both = NodeId::new("edge-iad").unwrap();
    snapshot.topology.name_servers.insert(
        both.clone(),
        NameServer {
            id: both,
            address: "192.0.2.53".parse().unwrap(),
        },
    );
    let text = rendered(&compiled(&snapshot), "edge-iad.voice.meridian.test", Type::A);
    assert_eq!(text, "edge-iad.@ 15 127.0.1.1, edge-iad.@ 15 192.0.2.53");
    const { assert!(NAME_SERVER_TTL_S > 15) };
}

#[test]
fn a_zone_without_name_servers_says_so() {
    let mut snapshot = world();
    snapshot.topology.name_servers.clear();
    let answers = compiled(&snapshot);
    assert!(rendered(&answers, ZONE, Type::NS).starts_with("no data"));
    assert!(rendered(&answers, ZONE, Type::SOA).contains("@ 15 @ hostmaster.@ 42"));
}

#[test]
fn an_edge_that_returns_is_named_to_few_clients_first() {
    let mut steering = Steering::new(
        Arc::default(),
        Settings {
            return_step: Duration::from_secs(10),
            ..Settings::default()
        },
    );
    let dublin = EdgeId::new("edge-dub").unwrap();
    let mut snapshot = world();
    let mut plan = |state, at: u64| {
        snapshot.plan.generation += 1;
        snapshot.plan.created_at = Moment(at);
        snapshot.plan.edges.insert(dublin.clone(), state);
        snapshot.clone()
    };
    let named = |answers: &Answers| {
        let names = |third: u32| {
            let client = Client::behind(IpAddr::from(((10 << 24) + (third << 8)).to_be_bytes()));
            let answer = answers.lookup(&labels(ZONE), Type::A, &client, usize::MAX).unwrap();
            match answer.lookup {
                Lookup::Found { records, .. } => records.iter().any(|it| it.data.to_string() == "127.0.1.2"),
                other => panic!("{other:?}"),
            }
        };
        (0..4000).filter(|third| names(*third)).count()
    };
    steering.compile(&plan(EdgeState::Drained, 1000), Moment(1000));
    let back = plan(EdgeState::Serving, 100_000);
    let mut seen = Vec::new();
    let mut now = Moment(100_000);
    loop {
        let answers = steering.compile(&back, now);
        seen.push(named(&answers) / 40);
        match answers.holds_until().filter(|until| *until < Moment(200_000)) {
            Some(until) => now = until,
            None => break,
        }
    }
    // In percent: of clients that get one edge, its part by weight; in the end all clients get both.
    let [one, five, quarter, half, all] = seen[..] else {
        panic!("{seen:?}");
    };
    assert!(one <= 2 && (3..=7).contains(&five), "{seen:?}");
    assert!(
        (17..=23).contains(&quarter) && (30..=37).contains(&half) && all == 100,
        "{seen:?}"
    );
}

#[test]
fn when_no_edge_serves_the_answer_is_the_one_that_was_asked_for() {
    let world = world();
    let mut none = world.clone();
    none.plan.generation += 1;
    none.plan
        .edges
        .values_mut()
        .for_each(|state| *state = EdgeState::Drained);
    let mut one = world;
    let [ashburn, dublin] = ["edge-iad", "edge-dub"].map(|id| EdgeId::new(id).unwrap());
    one.plan.edges.insert(dublin.clone(), EdgeState::Drained);
    for (all_out, before, expected) in [
        (AllOut::LastGood, Some(&one), "@ ttl 127.0.1.1"),
        (AllOut::LastGood, None, "@ ttl 127.0.1.1, @ ttl 127.0.1.2"),
        (AllOut::All, Some(&one), "@ ttl 127.0.1.1, @ ttl 127.0.1.2"),
        (AllOut::Static([dublin].into()), Some(&one), "@ ttl 127.0.1.2"),
        (AllOut::Static([ashburn].into()), None, "@ ttl 127.0.1.1"),
        (
            AllOut::NoData,
            Some(&one),
            "no data: @ 7 ns1.@ hostmaster.@ 43 3600 600 604800 7",
        ),
    ] {
        let settings = Settings {
            all_out: all_out.clone(),
            ..Settings::default()
        };
        let mut steering = Steering::new(Arc::default(), settings);
        if let Some(before) = before {
            steering.compile(before, LATER);
        }
        assert_eq!(
            rendered(&steering.compile(&none, LATER), ZONE, Type::A),
            expected,
            "{all_out:?}"
        );
    }
}

#[test]
fn answers_name_fewer_edges_when_a_reply_must_stay_small() {
    let answers = compiled(&with_bindings());
    let count = |kind, room| match answers.lookup(&labels(ZONE), kind, &anyone(), room).unwrap().lookup {
        Lookup::Found { records, .. } => records.len(),
        _ => 0,
    };
    assert_eq!((count(Type::A, 0), count(Type::A, 31), count(Type::A, 32)), (1, 1, 2));
    assert_eq!((count(Type::HTTPS, 0), count(Type::HTTPS, 1000)), (1, 2));
}

#[test]
fn an_explanation_tells_every_step() {
    let mut snapshot = world();
    snapshot.topology.edges.values_mut().for_each(|edge| edge.weight = 50);
    let london = topology::Location {
        latitude: 51.5,
        longitude: -0.1,
    };
    let network = crate::Prefix::new("192.0.2.0".parse().unwrap(), 24).unwrap();
    let geography = Geography::new(&[(network, london)], []);
    let answers = Steering::new(Arc::new(geography), Settings::default()).compile(&snapshot, LATER);
    let client = Client::in_network_of("192.0.2.77".parse().unwrap());
    let explained = answers.explain("Voice.meridian.test.", Type::A, &client).unwrap();
    assert_eq!(explained.client.to_string(), "192.0.2.0/24");
    assert_eq!(explained.place, Some((london, crate::Source::Operator)));
    let [dublin, ashburn] = &explained.edges[..] else {
        panic!("{:?}", explained.edges);
    };
    assert_eq!((dublin.is_candidate, dublin.rank, dublin.weight), (true, Some(1), 50));
    assert_eq!(
        (ashburn.is_candidate, ashburn.rank, ashburn.is_named),
        (false, None, true)
    );
    assert!(ashburn.distance_km.unwrap() > 5000.0 && dublin.distance_km.unwrap() < 500.0);
    assert_eq!(explained.holds_for.unwrap().to_string(), "192.0.2.0/24");
    // A name that is the same for everybody has nothing to choose.
    let host = answers
        .explain("edge-iad.voice.meridian.test", Type::A, &client)
        .unwrap();
    assert!(host.edges.is_empty() && host.holds_for.is_none());
}
