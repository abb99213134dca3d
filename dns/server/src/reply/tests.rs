use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RecordType,
        rdata::opt::{EdnsCode, EdnsOption, NSIDPayload},
    },
};
use topology::{EdgeId, NameServer, NodeId, Snapshot, fixtures::three_primaries};

use super::{Answers, IpAddr, Moment, Rcode, Received, Reply, Responder, Transport, UDP_BYTES_MAX, seconds};

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));
const ZONE: &str = "voice.meridian.test.";

fn responder() -> Responder {
    responder_of(&three_primaries())
}

fn responder_of(snapshot: &Snapshot) -> Responder {
    let node = NodeId::new("dns-1").unwrap();
    Responder::new(Answers::compile(snapshot, NOW), &node, [7; 16])
}

/// Long after the plan of the fixture.
const NOW: Moment = Moment(1_700_000_000_000);

fn reply_to(responder: &Responder, message: &[u8], client: IpAddr, transport: Transport) -> Option<Reply> {
    responder.reply(&Received {
        message,
        client,
        transport,
        now: NOW,
    })
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

fn ask(responder: &Responder, question: &Message, transport: Transport) -> Message {
    let reply = reply_to(responder, &question.to_vec().unwrap(), CLIENT, transport).unwrap();
    Message::from_vec(&reply.bytes).unwrap()
}

#[test]
fn replies_follow_the_rfcs() {
    use RecordType::{A, AAAA, ANY, AXFR, MX, NS, OPT, SOA};
    let responder = responder();
    // name, type → code, authoritative, answers, authorities, additionals
    for (name, kind, code, authoritative, counts) in [
        (ZONE, A, ResponseCode::NoError, true, (2, 0, 0)),
        (ZONE, AAAA, ResponseCode::NoError, true, (0, 1, 0)),
        (ZONE, NS, ResponseCode::NoError, true, (1, 0, 1)),
        (ZONE, SOA, ResponseCode::NoError, true, (1, 0, 0)),
        (ZONE, ANY, ResponseCode::NoError, true, (1, 0, 0)),
        (ZONE, MX, ResponseCode::NoError, true, (0, 1, 0)),
        (ZONE, AXFR, ResponseCode::Refused, false, (0, 0, 0)),
        (ZONE, OPT, ResponseCode::FormErr, false, (0, 0, 0)),
        (
            ZONE,
            RecordType::Unknown(65_280),
            ResponseCode::NoError,
            true,
            (0, 1, 0),
        ),
        (
            "nobody.voice.meridian.test.",
            A,
            ResponseCode::NXDomain,
            true,
            (0, 1, 0),
        ),
        (
            "x.edge-iad.voice.meridian.test.",
            A,
            ResponseCode::NXDomain,
            true,
            (0, 1, 0),
        ),
        ("meridian.test.", A, ResponseCode::Refused, false, (0, 0, 0)),
        (".", NS, ResponseCode::Refused, false, (0, 0, 0)),
    ] {
        let reply = ask(&responder, &question(name, kind), Transport::Udp);
        let what = format!("{name} {kind}");
        assert_eq!(reply.metadata.response_code, code, "{what}");
        assert_eq!(reply.metadata.authoritative, authoritative, "{what}");
        let sections = (reply.answers.len(), reply.authorities.len(), reply.additionals.len());
        assert_eq!(sections, counts, "{what}");
        assert_eq!(reply.metadata.id, 4711);
        assert!(reply.metadata.recursion_desired && !reply.metadata.recursion_available);
        assert!(reply.edns.is_none(), "no OPT without being asked");
        // A negative answer may be cached no longer than the minimum in the SOA.
        for soa in &reply.authorities {
            assert_eq!(soa.ttl, 15, "{what}");
        }
        for address in reply.answers.iter().filter(|_| kind == A) {
            assert!((12..=15).contains(&address.ttl), "{what}");
        }
    }
}

#[test]
fn the_question_comes_back_in_its_own_letters_and_so_does_the_owner() {
    let name = "vOiCe.MERIDIAN.tEsT.";
    let reply = ask(&responder(), &question(name, RecordType::A), Transport::Udp);
    assert_eq!(reply.queries[0].name().to_ascii(), name);
    assert_eq!(reply.answers[0].name.to_ascii(), name);
    let asked = question(name, RecordType::A).to_vec().unwrap();
    let bytes = reply_to(&responder(), &asked, CLIENT, Transport::Udp).unwrap().bytes;
    // Header, question, and two addresses whose owner is a pointer to the question: 2+2+2+4+2+4 bytes each.
    assert_eq!(bytes.len(), 12 + (21 + 4) + 2 * 16);
}

#[test]
fn edns_is_answered_with_edns() {
    let responder = responder();
    let reply = ask(
        &responder,
        &with_edns(question(ZONE, RecordType::A), 65_535),
        Transport::Udp,
    );
    let edns = reply.edns.unwrap();
    assert_eq!(
        (edns.max_payload(), edns.version(), edns.flags().dnssec_ok),
        (1232, 0, true)
    );
    assert!(edns.option(EdnsCode::NSID).is_none());

    let mut version = with_edns(question(ZONE, RecordType::A), 1232);
    version.edns.as_mut().unwrap().set_version(1);
    let reply = ask(&responder, &version, Transport::Udp);
    // 16 is BADVERS here and BADSIG in signed messages; hickory decodes it as BADSIG.
    assert_eq!(
        u16::from(reply.metadata.response_code),
        u16::from(ResponseCode::BADVERS)
    );
    assert_eq!((reply.answers.len(), reply.edns.unwrap().version()), (0, 0));

    let mut who = with_edns(question(ZONE, RecordType::A), 1232);
    let nothing = NSIDPayload::new(Vec::new()).unwrap();
    who.edns
        .as_mut()
        .unwrap()
        .options_mut()
        .insert(EdnsOption::NSID(nothing));
    let reply = ask(&responder, &who, Transport::Udp);
    match reply.edns.unwrap().option(EdnsCode::NSID) {
        Some(EdnsOption::NSID(name)) => assert_eq!(name.as_ref(), b"dns-1"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_that_does_not_fit_is_asked_again_over_tcp_and_keeps_its_opt() {
    let mut snapshot = three_primaries();
    // Sixteen IPv6 addresses under a long name: more than 512 bytes.
    let edge = EdgeId::new("edge-iad").unwrap();
    snapshot.topology.edges.get_mut(&edge).unwrap().addresses = (0..16)
        .map(|number| std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number).into())
        .collect();
    snapshot.topology.zone = format!("{}.{}", "a".repeat(60), snapshot.topology.zone);
    let name = format!("edge-iad.{}.", snapshot.topology.zone);
    let responder = responder_of(&snapshot);

    let plain = question(&name, RecordType::AAAA);
    let reply = ask(&responder, &plain, Transport::Udp);
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    // Without a cookie the client may be the victim of a forger.
    let reply = ask(&responder, &with_edns(plain.clone(), 1232), Transport::Udp);
    assert!(reply.metadata.truncation && reply.answers.is_empty() && reply.edns.is_some());
    let shown = responder
        .terms
        .secret
        .give(&[1; 8], CLIENT, seconds(NOW))
        .unwrap()
        .cookie;
    let mut known = with_edns(plain.clone(), 640);
    let options = known.edns.as_mut().unwrap().options_mut();
    options.insert(EdnsOption::Unknown(10, shown.to_vec()));
    let reply = ask(&responder, &known, Transport::Udp);
    assert!(!reply.metadata.truncation && reply.answers.len() == 16);
    let reply = ask(&responder, &with_edns(plain.clone(), 10), Transport::Udp);
    assert!(reply.metadata.truncation && reply.edns.is_some(), "the OPT stays");
    let reply = ask(&responder, &plain, Transport::Tcp);
    assert!(!reply.metadata.truncation && reply.answers.len() == 16);
}

#[test]
fn no_datagram_is_larger_than_1232_bytes_whatever_the_client_takes() {
    let mut snapshot = three_primaries();
    for number in 0..60_u8 {
        let id = NodeId::new(&format!("name-server-with-a-long-name-{number}")).unwrap();
        let address = std::net::Ipv4Addr::new(192, 0, 2, number).into();
        snapshot
            .topology
            .name_servers
            .insert(id.clone(), NameServer { id, address });
    }
    let responder = responder_of(&snapshot);
    for payload in [1233, 4096, 65_535] {
        let question = with_edns(question(ZONE, RecordType::NS), payload);
        let reply = reply_to(&responder, &question.to_vec().unwrap(), CLIENT, Transport::Udp).unwrap();
        assert!(reply.truncated && reply.bytes.len() <= 1232, "{payload}");
        let reply = ask(&responder, &question, Transport::Tcp);
        assert_eq!(reply.answers.len(), 61);
    }
}

#[test]
fn an_answer_for_the_service_is_not_worth_reflecting() {
    let mut snapshot = three_primaries();
    for edge in snapshot.topology.edges.values_mut() {
        edge.addresses = (0..16)
            .map(|number| std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number).into())
            .collect();
    }
    let responder = responder_of(&snapshot);
    for kind in [RecordType::A, RecordType::AAAA, RecordType::SOA, RecordType::ANY] {
        for name in [ZONE, "nobody.voice.meridian.test."] {
            let question = with_edns(question(name, kind), 4096).to_vec().unwrap();
            let reply = reply_to(&responder, &question, CLIENT, Transport::Udp).unwrap();
            assert!(reply.bytes.len() < 3 * question.len(), "{name} {kind}");
        }
    }
}

/// A valid message with the given flags, counts and sections.
fn message(flags: u16, counts: [u16; 4], sections: &[&[u8]]) -> Vec<u8> {
    let mut message = 4711_u16.to_be_bytes().to_vec();
    for field in [flags].iter().chain(&counts) {
        message.extend(field.to_be_bytes());
    }
    message.extend(sections.concat());
    message
}

/// A question for the A records of the service.
const SERVICE: &[u8] = b"\x05voice\x08meridian\x04test\0\0\x01\0\x01";

/// An OPT record of version 0 with these options.
fn opt(options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (code, value) in options {
        data.extend(code.to_be_bytes());
        data.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        data.extend(*value);
    }
    let mut record = b"\0\0\x29\x10\0\0\0\0\0".to_vec();
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    record
}

#[test]
fn every_refusal_carries_the_question_and_the_opt_of_its_query() {
    const STATUS: u16 = 2 << 11;
    const UPDATE: u16 = 5 << 11;
    let responder = responder();
    let plain = opt(&[]);
    let version_1 = b"\0\0\x29\x04\xd0\0\x01\0\0\0\0";
    let short_cookie = opt(&[(10, &[1; 7])]);
    let strange_subnet = opt(&[(8, &[0, 3, 24, 0, 1, 2, 3])]);
    let two_subnets = opt(&[(8, &[0, 1, 0, 0]), (8, &[0, 1, 0, 0])]);
    let long_option = b"\0\0\x29\x04\xd0\0\0\0\0\0\x04\0\x03\0\x09";
    let elsewhere = b"\x07example\x03com\0\0\x01\0\x01";
    let opt_asked = b"\x05voice\x08meridian\x04test\0\0\x29\0\x01";
    let chaos = b"\x07version\x04bind\0\0\x10\0\x03";
    for (what, bytes, expected) in [
        (
            "another operation",
            message(STATUS, [1, 0, 0, 1], &[SERVICE, &plain]),
            Rcode::NotImp,
        ),
        (
            "an update",
            message(UPDATE, [1, 0, 0, 1], &[SERVICE, &plain]),
            Rcode::NotImp,
        ),
        (
            "another zone",
            message(0, [1, 0, 0, 1], &[elsewhere, &plain]),
            Rcode::Refused,
        ),
        (
            "another class",
            message(0, [1, 0, 0, 1], &[chaos, &plain]),
            Rcode::Refused,
        ),
        (
            "OPT as a type",
            message(0, [1, 0, 0, 1], &[opt_asked, &plain]),
            Rcode::FormErr,
        ),
        (
            "a newer EDNS",
            message(0, [1, 0, 0, 1], &[SERVICE, version_1]),
            Rcode::BadVers,
        ),
        (
            "two OPT records",
            message(0, [1, 0, 0, 2], &[SERVICE, &plain, &plain]),
            Rcode::FormErr,
        ),
        (
            "a cookie of 7 bytes",
            message(0, [1, 0, 0, 1], &[SERVICE, &short_cookie]),
            Rcode::FormErr,
        ),
        (
            "a subnet of an unknown family",
            message(0, [1, 0, 0, 1], &[SERVICE, &strange_subnet]),
            Rcode::FormErr,
        ),
        (
            "two subnets",
            message(0, [1, 0, 0, 1], &[SERVICE, &two_subnets]),
            Rcode::FormErr,
        ),
        (
            "an option past its record",
            message(0, [1, 0, 0, 1], &[SERVICE, long_option]),
            Rcode::FormErr,
        ),
        (
            "two questions",
            message(0, [2, 0, 0, 1], &[SERVICE, SERVICE, &plain]),
            Rcode::FormErr,
        ),
        (
            "trailing bytes",
            message(0, [1, 0, 0, 1], &[SERVICE, &plain, b"?"]),
            Rcode::FormErr,
        ),
        (
            "a record that is not there",
            message(0, [1, 0, 0, 2], &[SERVICE, &plain]),
            Rcode::FormErr,
        ),
    ] {
        let reply = reply_to(&responder, &bytes, CLIENT, Transport::Udp).unwrap();
        assert_eq!(reply.rcode, expected, "{what}");
        let read = Message::from_vec(&reply.bytes).unwrap();
        assert_eq!(read.queries.len(), 1, "{what}");
        assert_eq!(reply.bytes[12..][..10], bytes[12..][..10], "{what}");
        let edns = read
            .edns
            .unwrap_or_else(|| panic!("{what}: a reply without OPT means no EDNS"));
        assert_eq!((edns.version(), edns.max_payload()), (0, 1232), "{what}");
    }
    // A reply cannot repeat a part that was never readable.
    let cut = message(0, [1, 0, 0, 1], &[&SERVICE[..9]]);
    let reply = reply_to(&responder, &cut, CLIENT, Transport::Udp).unwrap();
    assert_eq!((reply.rcode, reply.bytes.len()), (Rcode::FormErr, 12));
}

#[test]
fn options_that_mean_nothing_here_are_skipped() {
    let responder = responder();
    // An unassigned option, and an empty padding.
    let options = opt(&[(65_001, b"?"), (12, b"")]);
    let bytes = message(0, [1, 0, 0, 1], &[SERVICE, &options]);
    let reply = reply_to(&responder, &bytes, CLIENT, Transport::Udp).unwrap();
    assert_eq!(reply.rcode, Rcode::NoError);
    let read = Message::from_vec(&reply.bytes).unwrap();
    assert_eq!(read.answers.len(), 2);
    assert!(read.edns.unwrap().options().options.is_empty(), "nor are they repeated");
}

#[test]
fn a_cookie_comes_back_with_the_servers_half_also_without_a_question() {
    let responder = responder();
    let cookie_of = |bytes: &[u8], client| {
        let reply = reply_to(&responder, bytes, client, Transport::Udp).unwrap();
        assert_eq!(reply.rcode, Rcode::NoError);
        let edns = Message::from_vec(&reply.bytes).unwrap().edns.unwrap();
        match edns.option(EdnsCode::Cookie) {
            Some(EdnsOption::Unknown(10, cookie)) => cookie.clone(),
            other => panic!("{other:?}"),
        }
    };
    let theirs = [1, 2, 3, 4, 5, 6, 7, 8];
    let alone = message(0, [0, 0, 0, 1], &[&opt(&[(10, &theirs)])]);
    let cookie = cookie_of(&alone, CLIENT);
    assert_eq!((&cookie[..8], cookie.len()), (&theirs[..], 24));
    // With a question, and with the server's half: the same cookie, but only for the same client.
    let with_question = message(0, [1, 0, 0, 1], &[SERVICE, &opt(&[(10, &cookie), (10, b"?")])]);
    assert_eq!(cookie_of(&with_question, CLIENT), cookie);
    let other = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 8));
    assert_ne!(cookie_of(&with_question, other), cookie);

    // Without a question and without a cookie there is nothing to answer.
    let nothing = message(0, [0, 0, 0, 1], &[&opt(&[])]);
    let reply = reply_to(&responder, &nothing, CLIENT, Transport::Udp).unwrap();
    assert_eq!(reply.rcode, Rcode::FormErr);
    assert!(Message::from_vec(&reply.bytes).unwrap().edns.is_some());
}

/// A TSIG record with the key name "k." and this MAC.
fn tsig(mac: &[u8]) -> Vec<u8> {
    let mut data = b"\x0bhmac-sha256\0\0\0\x65\x43\x21\0\x01\x2c".to_vec();
    data.extend(u16::try_from(mac.len()).unwrap().to_be_bytes());
    data.extend(mac);
    data.extend(b"\x12\x67\0\0\0\0");
    let mut record = b"\x01k\0\0\xfa\0\xff\0\0\0\0".to_vec();
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    record
}

#[test]
fn a_signature_of_an_unknown_key_is_said_to_be_one() {
    let responder = responder();
    let signed = message(0, [1, 0, 0, 2], &[SERVICE, &opt(&[]), &tsig(&[9; 32])]);
    let reply = reply_to(&responder, &signed, CLIENT, Transport::Udp).unwrap();
    assert_eq!(reply.rcode, Rcode::NotAuth);
    assert!(Message::from_vec(&reply.bytes).is_ok());
    // The same record, without its MAC and with the error BADKEY (17), after the OPT record.
    let mut unsigned = tsig(&[]);
    let error = unsigned.len() - 4;
    unsigned[error..error + 2].copy_from_slice(&[0, 17]);
    assert!(reply.bytes.ends_with(&unsigned), "{:?}", reply.bytes);
    assert_eq!(reply.bytes[..4], [0x12, 0x67, 0x80, 9]);
    assert_eq!(reply.bytes[4..12], [0, 1, 0, 0, 0, 0, 0, 2]);

    // TSIG comes last, once, and complete (RFC 8945 §5.1).
    for sections in [
        [SERVICE, &tsig(&[])[..], &opt(&[])[..]],
        [SERVICE, &tsig(&[]), &tsig(&[])],
        [SERVICE, &opt(&[]), b"\x01k\0\0\xfa\0\xff\0\0\0\0\0\x02\0\0"],
    ] {
        let reply = reply_to(&responder, &message(0, [1, 0, 0, 2], &sections), CLIENT, Transport::Udp);
        assert_eq!(reply.unwrap().rcode, Rcode::FormErr);
    }
    // A name of 255 bytes does not fit twice into a plain datagram.
    let long = [&[63; 64][..], &[63; 64], &[63; 64], &[61; 62], &[0]].concat();
    let algorithm = [&long[..], &[0; 16]].concat();
    let record = [&long[..], b"\0\xfa\0\xff\0\0\0\0", &[1, 15], &algorithm].concat();
    let reply = reply_to(
        &responder,
        &message(0, [1, 0, 0, 1], &[SERVICE, &record]),
        CLIENT,
        Transport::Udp,
    );
    let reply = reply.unwrap();
    assert_eq!(reply.rcode, Rcode::NotAuth);
    assert!(reply.truncated && reply.bytes.len() <= 512);
}

#[test]
fn malformed_messages_get_an_error_or_nothing_and_never_a_panic() {
    let responder = responder();
    let reply = |bytes: &[u8]| reply_to(&responder, bytes, CLIENT, Transport::Udp);
    let code = |bytes: &[u8]| reply(bytes).map(|reply| reply.rcode);
    let good = with_edns(question(ZONE, RecordType::A), 1232).to_vec().unwrap();
    assert_eq!(code(&good), Some(Rcode::NoError));

    assert_eq!(code(&[]), None);
    assert_eq!(code(&good[..11]), None);
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert_eq!(code(&answer), None, "answers are not answered");
    for opcode in [1_u8, 2, 4, 5, 15] {
        let mut other = good.clone();
        other[2] = opcode << 3;
        assert_eq!(code(&other), Some(Rcode::NotImp), "opcode {opcode}");
    }
    let mut crowd = good.clone();
    [crowd[4], crowd[5]] = [0xff, 0xff];
    assert_eq!(code(&crowd), Some(Rcode::FormErr));
    [crowd[4], crowd[5]] = [0, 0];
    assert_eq!(code(&crowd), Some(Rcode::FormErr));
    assert_eq!(code(&good[..20]), Some(Rcode::FormErr));
    let mut twice = good.clone();
    twice.extend_from_slice(&good[good.len() - 11..]);
    twice[11] = 2;
    assert_eq!(code(&twice), Some(Rcode::FormErr), "two OPT records");

    // Every byte of a valid message with every value: errors are fine, panics are not.
    for position in 0..good.len() {
        for value in 0..=255 {
            let mut bytes = good.clone();
            bytes[position] = value;
            if let Some(reply) = reply(&bytes) {
                assert_eq!(reply.bytes[..2], bytes[..2], "the id comes back");
                assert!(reply.bytes.len() <= usize::from(UDP_BYTES_MAX));
            }
        }
        let _ = reply(&good[..position]);
    }
}

#[test]
fn answers_only_get_newer() {
    let responder = responder();
    let mut newer = three_primaries();
    newer.plan.generation = 5;
    responder.set(Answers::compile(&newer, NOW));
    assert_eq!(responder.answers().number().generation, 5);
    responder.set(Answers::compile(&three_primaries(), NOW));
    assert_eq!(responder.answers().number().generation, 5);
}

#[test]
fn a_subnet_comes_back_with_the_network_for_which_the_answer_holds() {
    let responder = responder();
    for subnet in [
        &[0, 1, 24, 0, 192, 0, 2][..],
        &[0, 1, 0, 0],
        &[0, 0, 0, 0],
        &[0, 2, 32, 0, 0x20, 1, 0xd, 0xb8],
    ] {
        let bytes = message(0, [1, 0, 0, 1], &[SERVICE, &opt(&[(8, subnet)])]);
        let reply = reply_to(&responder, &bytes, CLIENT, Transport::Udp).unwrap();
        assert_eq!(reply.rcode, Rcode::NoError);
        // Both edges are named to everybody, so the scope is 0 as in the question.
        assert!(
            reply.bytes.windows(subnet.len()).any(|window| window == subnet),
            "{subnet:?}"
        );
    }
}

#[test]
fn errors_say_more_to_those_who_have_edns() {
    let responder = responder();
    let elsewhere = b"\x07example\x03com\0\0\x01\0\x01";
    let transfer = b"\x05voice\x08meridian\x04test\0\0\xfc\0\x01";
    for (question, code) in [(&elsewhere[..], 20_u16), (transfer, 18)] {
        let bytes = message(0, [1, 0, 0, 1], &[question, &opt(&[])]);
        let reply = reply_to(&responder, &bytes, CLIENT, Transport::Udp).unwrap();
        let [high, low] = code.to_be_bytes();
        assert!(
            reply.bytes.ends_with(&[0, 15, 0, 2, high, low]),
            "{code}: {:?}",
            reply.bytes
        );
        let plain = message(0, [1, 0, 0, 0], &[question]);
        let reply = reply_to(&responder, &plain, CLIENT, Transport::Udp).unwrap();
        assert_eq!((reply.rcode, reply.bytes.len()), (Rcode::Refused, plain.len()));
    }
}

#[test]
fn the_same_plan_may_have_newer_answers() {
    let responder = responder();
    let calm = responder.answers().ttl();
    let mut recent = three_primaries();
    recent.plan.created_at = NOW;
    responder.set(Answers::compile(&recent, NOW));
    assert!(responder.answers().ttl().high_s < calm.high_s);
}
