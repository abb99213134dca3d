//! A message to the name server. hickory parses the reply as a second opinion.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
};

use dns::{Metrics, Received, Reply, Responder, Signer, Transport};
use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, Record, RecordType},
};
use steering::Answers;
use topology::{Moment, NameServer, NodeId, fixtures::three_primaries};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const HEADER_BYTES: usize = 12;
const NOW: Moment = Moment(1_700_000_000_000);

/// A name server for a zone with more name servers and addresses than fit into a datagram.
static RESPONDER: LazyLock<Responder> = LazyLock::new(responder);

/// The key that RFC 6605 §6.1 publishes. It signs the zone of [`SIGNED`].
const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
     MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgGU6SnQ/Ou+xC5Rum\n\
     uIUIuJZteXT2z0O/ok1s38Et6mShRANCAAQaiMiGFdQ3+7i/nhlCoZKfKFYnBq5s\n\
     K9OZ57G/ttHp51uStKpCkXrhxhtwHvA1w/574wCcuv5aL3ExbJAtzw0A\n\
     -----END PRIVATE KEY-----\n";

/// The same zone, signed.
static SIGNED: LazyLock<Responder> = LazyLock::new(|| {
    let signer = Signer::of(KEY, Metrics::default()).expect("it is a good key");
    responder().signed_by(Arc::new(signer))
});

fn responder() -> Responder {
    let mut snapshot = three_primaries();
    for number in 0..40_u8 {
        let id = NodeId::new(&format!("name-server-with-a-long-name-{number}")).expect("it is a good name");
        let address = Ipv4Addr::new(192, 0, 2, number).into();
        snapshot
            .topology
            .name_servers
            .insert(id.clone(), NameServer { id, address });
    }
    for edge in snapshot.topology.edges.values_mut() {
        let addresses = (0..20).map(|host| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host)));
        edge.addresses.extend(addresses);
    }
    let node = NodeId::new("dns-1").expect("it is a good name");
    Responder::new(Answers::compile(&snapshot, NOW), &node, [7; 16])
}

pub(crate) fn answer(message: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let reply = RESPONDER.reply(&Received {
            message,
            client: CLIENT,
            transport,
            now: NOW,
        });
        let is_question = message.len() >= HEADER_BYTES && message[2] & 0x80 == 0;
        assert_eq!(
            reply.is_some(),
            is_question,
            "every question is answered, and nothing else is"
        );
        if let Some(reply) = reply {
            check(message, &reply, transport);
            if transport == Transport::Udp {
                check_short_way(message, &reply);
            }
            let signed = SIGNED.reply(&Received {
                message,
                client: CLIENT,
                transport,
                now: NOW,
            });
            check(message, &signed.expect("signatures change nothing of that"), transport);
        }
    }
}

/// The short way answers as the long one does, if it answers.
fn check_short_way(message: &[u8], reply: &Reply) {
    let received = Received {
        message,
        client: CLIENT,
        transport: Transport::Udp,
        now: NOW,
    };
    let mut out = [0; dns::reply::UDP_BYTES_MAX as usize];
    let Some(length) = RESPONDER.short_reply(&received, &mut out) else {
        return;
    };
    let [short, long] =
        [&out[..length], &reply.bytes].map(|bytes| Message::from_vec(bytes).expect("hickory reads the reply"));
    // The short way points to the question for names that end with the zone, so these have the case of the question.
    let same = |a: &[Record], b: &[Record]| format!("{a:?}").eq_ignore_ascii_case(&format!("{b:?}"));
    assert_eq!(short.metadata, long.metadata);
    assert_eq!(short.queries, long.queries);
    assert!(same(&short.answers, &long.answers));
    assert!(same(&short.authorities, &long.authorities));
    assert!(same(&short.additionals, &long.additionals));
    assert_eq!(short.edns.is_some(), long.edns.is_some());
}

fn check(message: &[u8], reply: &Reply, transport: Transport) {
    let read = Message::from_vec(&reply.bytes).expect("hickory reads the reply");
    assert_eq!(reply.bytes[..2], message[..2], "the id comes back");
    assert_eq!(read.metadata.message_type, MessageType::Response);
    // The reply repeats the opcode and the RD bit of the message; the RA bit stays 0, because there is no recursion.
    assert_eq!(reply.bytes[2] & 0x79, message[2] & 0x79);
    assert_eq!(reply.bytes[3] & 0x80, 0);
    assert_eq!(read.metadata.truncation, reply.truncated);
    let bytes_max = match (transport, &read.edns) {
        (Transport::Udp, None) => 512,
        (Transport::Udp, Some(_)) => 1232,
        (Transport::Tcp, _) => usize::from(u16::MAX),
    };
    assert!(reply.bytes.len() <= bytes_max);
    if let Some(question) = read.queries.first() {
        let question_bytes = question.name().len() + 4;
        let echoed = &reply.bytes[HEADER_BYTES..][..question_bytes];
        assert_eq!(
            echoed,
            &message[HEADER_BYTES..][..question_bytes],
            "the question comes back as it was written"
        );
    }
    if reply.truncated {
        assert!(read.answers.is_empty() && read.authorities.is_empty());
        return;
    }
    check_answer(message, &read);
}

/// If hickory can parse the question too, it must agree on the subject of the reply.
fn check_answer(message: &[u8], reply: &Message) {
    let zone = Name::from_ascii("voice.meridian.test.").expect("it is a good name");
    let (question, [query]) = (Message::from_vec(message), &reply.queries[..]) else {
        return;
    };
    let is_ours = zone.zone_of(query.name());
    for record in &reply.answers {
        assert!(is_ours && record.name.eq_ignore_root(query.name()));
        let is_asked = [query.query_type(), RecordType::RRSIG].contains(&record.record_type())
            || query.query_type() == RecordType::ANY;
        assert!(is_asked, "{} for {}", record.record_type(), query.query_type());
    }
    for record in reply.authorities.iter().chain(&reply.additionals) {
        // hickory keeps the OPT record apart, and a TSIG record of an unknown key has the client's own name.
        assert!(zone.zone_of(&record.name) || record.record_type() == RecordType::TSIG);
    }
    let code = reply.metadata.response_code;
    if matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        assert!(is_ours && reply.metadata.authoritative);
        assert_eq!(
            reply.answers.is_empty(),
            !reply.authorities.is_empty(),
            "an answer, or who says that there is none"
        );
    } else {
        assert!(
            reply.answers.is_empty() && reply.authorities.is_empty() && reply.additionals.is_empty()
                || code == ResponseCode::NotAuth
        );
    }
    if let Ok(question) = question
        && code == ResponseCode::NoError
        && let [asked] = &question.queries[..]
    {
        assert_eq!(asked, query);
        assert_eq!(
            question.edns.is_some(),
            reply.edns.is_some(),
            "EDNS is answered with EDNS"
        );
    }
}
