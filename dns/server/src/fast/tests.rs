//! Both ways answer the same questions, and must say the same.

use hickory_proto::{op::Message, rr::rdata::opt::EdnsOption};
use proptest::prelude::*;
use steering::{Geography, Prefix, Settings, Steering};
use topology::{Location, Moment, NodeId, Service, Snapshot, ZoneData, ZoneRecord, fixtures::three_primaries};

use super::*;
use crate::{Reply, Responder, Transport, reply::Received};

const NOW: Moment = Moment(1_700_000_000_000);
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));
const NAMES: [&[u8]; 9] = [
    b"\x05voice\x08meridian\x04test\0",
    b"\x05VoIcE\x08mEridian\x04TEST\0",
    b"\x08edge-iad\x05voice\x08meridian\x04test\0",
    b"\x06nobody\x05voice\x08meridian\x04test\0",
    b"\x01x\x08edge-iad\x05voice\x08meridian\x04test\0",
    b"\x03any\x03lab\x05voice\x08meridian\x04test\0",
    b"\x03lab\x05voice\x08meridian\x04test\0",
    b"\x0f_acme-challenge\x05voice\x08meridian\x04test\0",
    b"\x07example\x03com\0",
];
const KINDS: [u16; 13] = [1, 28, 65, 64, 6, 2, 16, 257, 255, 252, 41, 13, 65_280];

fn snapshot() -> Snapshot {
    let mut snapshot = three_primaries();
    snapshot.topology.service = Some(Service {
        alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
    });
    for edge in snapshot.topology.edges.values_mut() {
        let last = edge.id.as_str().len() as u16;
        edge.addresses
            .push(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, last, 1).into());
        edge.addresses
            .push(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, last, 2).into());
    }
    let record = |name: &str, data| ZoneRecord {
        name: name.to_owned(),
        ttl_s: 60,
        data,
    };
    snapshot.topology.records = vec![
        record("_acme-challenge", ZoneData::Txt("x".repeat(300))),
        record("*.lab", ZoneData::A([192, 0, 2, 9].into())),
        record(
            "@",
            ZoneData::Caa {
                flags: 0,
                tag: "issue".to_owned(),
                value: "ca.example.net".to_owned(),
            },
        ),
    ];
    snapshot
}

fn responder() -> Responder {
    let place = |prefix: &str, length, latitude, longitude| {
        let prefix = Prefix::new(prefix.parse().unwrap(), length).unwrap();
        (prefix, Location { latitude, longitude })
    };
    let geography = Geography::new(
        &[
            place("10.0.0.0", 9, 53.0, -6.0),
            place("10.128.0.0", 9, 39.0, -77.0),
            place("2001:db8::", 33, 39.0, -77.0),
        ],
        [],
    );
    let answers = Steering::new(std::sync::Arc::new(geography), Settings::default()).compile(&snapshot(), NOW);
    Responder::new(answers, &NodeId::new("dns-1").unwrap(), [7; 16])
}

/// A record of an OPT with these options.
fn opt(payload: u16, flags: u8, options: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (code, value) in options {
        data.extend(code.to_be_bytes());
        data.extend((value.len() as u16).to_be_bytes());
        data.extend(value);
    }
    let [high, low] = payload.to_be_bytes();
    let mut record = vec![0, 0, 41, high, low, 0, 0, flags, 0];
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    record
}

fn message(name: &[u8], kind: u16, flags: [u8; 2], opt: Option<Vec<u8>>) -> Vec<u8> {
    let mut message = vec![
        0x12,
        0x67,
        flags[0],
        flags[1],
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        u8::from(opt.is_some()),
    ];
    message.extend(name);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message.extend(opt.unwrap_or_default());
    message
}

fn long_way(responder: &Responder, bytes: &[u8]) -> Option<Reply> {
    responder.reply(&Received {
        message: bytes,
        client: CLIENT,
        transport: Transport::Udp,
        now: NOW,
    })
}

fn short_way(responder: &Responder, bytes: &[u8]) -> Result<(Fast, Vec<u8>), Unusual> {
    let mut out = [0xaa; UDP_BYTES_MAX as usize];
    let seconds = (NOW.0 / 1000) as u32;
    let fast = reply(&responder.load(), responder.terms(), bytes, CLIENT, seconds, &mut out)?;
    Ok((fast, out[..fast.length].to_vec()))
}

/// The parts of a reply in a comparable form. The order of options has no meaning, and neither has the case of a name: the
/// short way points to the question for every name that ends with the zone.
fn parts(bytes: &[u8]) -> String {
    let read = Message::from_vec(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
    let mut options: Vec<String> = read
        .edns
        .iter()
        .flat_map(|edns| &edns.options().options)
        .map(|(code, option)| match option {
            EdnsOption::Unknown(code, data) => format!("{code} {data:?}"),
            other => format!("{code:?} {other:?}"),
        })
        .collect();
    options.sort();
    let edns = read
        .edns
        .as_ref()
        .map(|edns| (edns.max_payload(), edns.version(), edns.flags().dnssec_ok));
    format!(
        "{:?} {:?} {:?} {:?} {:?} {edns:?} {options:?}",
        read.metadata, read.queries, read.answers, read.authorities, read.additionals
    )
    .to_lowercase()
}

/// Returns whether the short way answered.
fn compare(responder: &Responder, bytes: &[u8]) -> bool {
    let Ok((fast, written)) = short_way(responder, bytes) else {
        return false;
    };
    let long = long_way(responder, bytes).expect("a question that the short way answers is no answer");
    assert!(
        !long.truncated,
        "the short way must leave what is cut to the long one: {bytes:?}"
    );
    assert_eq!(parts(&written), parts(&long.bytes), "{bytes:?}");
    assert_eq!(
        (fast.qtype, fast.rcode, fast.is_trusted),
        (long.qtype, long.rcode, long.is_trusted)
    );
    assert!(
        fast.is_trusted || written.len() + 28 <= 3 * (bytes.len() + 28),
        "worth forging: {bytes:?}"
    );
    true
}

#[test]
fn both_ways_say_the_same_to_every_usual_question() {
    let responder = responder();
    let shown = responder
        .terms()
        .secret
        .give(&[1; 8], CLIENT, (NOW.0 / 1000) as u32)
        .unwrap()
        .cookie
        .to_vec();
    let opts = [
        None,
        Some(opt(1232, 0, &[])),
        Some(opt(512, 0x80, &[])),
        Some(opt(65_535, 0, &[(10, vec![1; 8])])),
        Some(opt(1232, 0, &[(10, shown)])),
        Some(opt(1232, 0, &[(8, vec![0, 1, 24, 0, 10, 1, 2])])),
        Some(opt(1232, 0, &[(8, vec![0, 1, 24, 0, 10, 200, 2])])),
        Some(opt(1232, 0, &[(8, vec![0, 1, 0, 0])])),
        Some(opt(
            1232,
            0,
            &[(8, vec![0, 2, 56, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 1]), (10, vec![2; 8])],
        )),
        Some(opt(0, 0, &[(65_001, vec![9; 5])])),
    ];
    let mut short = 0;
    for name in NAMES {
        for kind in KINDS {
            for opt in &opts {
                for flags in [[0, 0], [1, 0], [1, 0x10], [1, 0x20]] {
                    short += usize::from(compare(&responder, &message(name, kind, flags, opt.clone())));
                }
            }
        }
    }
    assert!(short > 2000, "most of these are usual: {short}");
    // All that a resolver asks for the service takes the short way.
    for kind in [1, 28, 65] {
        for opt in &opts {
            let bytes = message(NAMES[0], kind, [1, 0], opt.clone());
            assert!(short_way(&responder, &bytes).is_ok(), "{kind} {opt:?}");
        }
    }
}

#[tokio::test]
async fn both_ways_say_the_same_of_a_signed_zone() {
    let folder = tempfile::tempdir().unwrap();
    let key = crate::signer::tests::key_file(folder.path(), "zone.key");
    let signer = std::sync::Arc::new(crate::Signer::read(&[key], crate::Metrics::default()).unwrap());
    let responder = responder().signed_by(signer.clone());
    let cookie = responder
        .terms()
        .secret
        .give(&[1; 8], CLIENT, (NOW.0 / 1000) as u32)
        .unwrap()
        .cookie
        .to_vec();
    let subnet = |third: u8| (8, vec![0, 1, 24, 0, 10, third, 2]);
    let opts = [
        None,
        Some(opt(1232, 0, &[])),
        Some(opt(1232, 0x80, &[])),
        Some(opt(1232, 0x80, &[(10, cookie.clone())])),
        Some(opt(512, 0x80, &[(10, cookie.clone()), subnet(1)])),
        Some(opt(1232, 0xc0, &[(10, cookie.clone()), subnet(200)])),
    ];
    let trusted = message(NAMES[1], 1, [1, 0], opts[3].clone());
    assert_eq!(
        short_way(&responder, &trusted),
        Err(Unusual),
        "nothing is signed beforehand yet"
    );
    let answers = responder.answers();
    let signed = signer.sign_ahead(&answers, NOW, || false).await.unwrap();
    responder.set_signed(&answers, signed);
    let mut short = 0;
    for name in NAMES {
        for kind in KINDS.into_iter().chain([43, 46, 47, 48, 128]) {
            for opt in &opts {
                short += usize::from(compare(&responder, &message(name, kind, [1, 0x10], opt.clone())));
            }
        }
    }
    assert!(short > 150, "{short}");
    // A resolver with a cookie that validates takes the short way to the service, wherever its clients are.
    for kind in [1, 28, 65] {
        for opt in &opts[3..] {
            let (fast, bytes) = short_way(&responder, &message(NAMES[1], kind, [1, 0], opt.clone())).unwrap();
            let read = Message::from_vec(&bytes).unwrap();
            let last = read.answers.last().unwrap();
            assert_eq!(
                (u16::from(last.record_type()), last.ttl),
                (46, read.answers[0].ttl),
                "{kind}"
            );
            assert_eq!(fast.rcode, Rcode::NoError);
        }
    }
    // Signatures are not taken for ever without another pass, and those of other answers not at all.
    let ahead = signer
        .sign_ahead(&answers, NOW + std::time::Duration::from_secs(90_000), || false)
        .await
        .unwrap();
    responder.set_signed(&answers, ahead);
    assert_eq!(short_way(&responder, &trusted), Err(Unusual));
    responder.set(Steering::default().compile(&snapshot(), NOW));
    let ahead = signer.sign_ahead(&answers, NOW, || false).await.unwrap();
    responder.set_signed(&answers, ahead);
    assert_eq!(short_way(&responder, &trusted), Err(Unusual));
}

#[test]
fn what_is_unusual_is_left_to_the_long_way() {
    let responder = responder();
    let usual = message(NAMES[0], 1, [1, 0], Some(opt(1232, 0, &[])));
    assert!(short_way(&responder, &usual).is_ok());
    let changed = |at: usize, value: u8| {
        let mut bytes = usual.clone();
        bytes[at] = value;
        bytes
    };
    let with = |options: &[(u16, Vec<u8>)]| message(NAMES[0], 1, [1, 0], Some(opt(1232, 0, options)));
    for (what, bytes) in [
        ("an answer", changed(2, 0x80)),
        ("another operation", changed(2, 0x10)),
        ("two questions", changed(5, 2)),
        ("no question", changed(5, 0)),
        ("an answer section", changed(7, 1)),
        ("an authority section", changed(9, 1)),
        ("two more records", changed(11, 2)),
        ("another class", changed(usual.len() - 12, 3)),
        ("a newer EDNS", changed(usual.len() - 5, 1)),
        ("a byte too many", [&usual[..], &[0]].concat()),
        ("a byte too few", usual[..usual.len() - 1].to_vec()),
        ("another zone", message(NAMES[8], 1, [1, 0], None)),
        ("ANY", message(NAMES[0], 255, [1, 0], None)),
        ("the name of the server", with(&[(3, vec![])])),
        ("a broken cookie", with(&[(10, vec![1; 7])])),
        ("two cookies", with(&[(10, vec![1; 8]), (10, vec![1; 8])])),
        ("a broken subnet", with(&[(8, vec![0, 1, 24, 0, 10, 1])])),
        ("two subnets", with(&[(8, vec![0, 1, 0, 0]), (8, vec![0, 1, 0, 0])])),
        ("half an option", with(&[(8, vec![0, 1, 0])])),
        (
            "a long text without a cookie",
            message(NAMES[7], 16, [1, 0], Some(opt(1232, 0, &[]))),
        ),
        ("nothing", Vec::new()),
    ] {
        assert_eq!(short_way(&responder, &bytes), Err(Unusual), "{what}");
    }
}

#[test]
fn a_reply_that_is_cut_keeps_its_question_and_its_opt() {
    let responder = responder();
    for opt in [None, Some(opt(1232, 0x80, &[(10, vec![1; 8])]))] {
        let bytes = message(NAMES[1], 1, [1, 0], opt);
        let mut out = [0; UDP_BYTES_MAX as usize];
        let fast = reply(
            &responder.load(),
            responder.terms(),
            &bytes,
            CLIENT,
            1_700_000_000,
            &mut out,
        )
        .unwrap();
        let length = fast.cut(&mut out);
        let received = Received {
            message: &bytes,
            client: CLIENT,
            transport: Transport::Udp,
            now: NOW,
        };
        let long = responder.cut_reply(&received).unwrap();
        assert_eq!(parts(&out[..length]), parts(&long.bytes));
        assert!(length <= bytes.len() + 24, "a cut reply is worth nothing to a forger");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn both_ways_agree_on_questions_that_were_tampered_with(
        name in 0..NAMES.len(),
        kind in 0..KINDS.len(),
        source in 0_u8..=32,
        address in any::<[u8; 4]>(),
        flags in any::<[u8; 2]>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        thread_local! {
            static RESPONDER: Responder = responder();
        }
        let bits = u32::from_be_bytes(address) & u32::MAX.checked_shl(32 - u32::from(source)).unwrap_or(0);
        let mut subnet = vec![0, 1, source, 0];
        subnet.extend(&bits.to_be_bytes()[..usize::from(source.div_ceil(8))]);
        let mut bytes = message(NAMES[name], KINDS[kind], [flags[0] & 0x07, flags[1]], Some(opt(1232, flags[0] & 0x80, &[(8, subnet)])));
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        RESPONDER.with(|responder| compare(responder, &bytes));
    }
}
