//! From the bytes of a question to the bytes of its reply. No sockets here.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use steering::{Answers, Lookup, NoSuchZone, Type};

use crate::{
    Networks,
    draft::{Draft, ReplyEdns},
    metrics::{QueryType, Rcode},
    wire::{Edns, Query, Question, class, kind},
};

/// Largest reply over UDP to a client that takes more than plain DNS does; larger ones may be fragmented and lost
/// (RFC 9715).
const UDP_BYTES_MAX: u16 = 1232;
/// Largest reply over UDP without EDNS (RFC 1035 §4.2.1).
const UDP_BYTES_PLAIN: u16 = 512;
/// The server's half of a cookie: the shortest there is (RFC 7873 §4.2). Guessing it is no use, because nothing is allowed to
/// those who have one and refused to others.
const SERVER_COOKIE_BYTES: usize = 8;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram; the reply's size is limited.
    Udp,
    /// A stream; a reply may have 65,535 bytes.
    Tcp,
}

/// A reply ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message.
    pub bytes: Vec<u8>,
    /// What was asked for.
    pub qtype: QueryType,
    /// What came of it.
    pub rcode: Rcode,
    /// Whether the client must ask again over TCP.
    pub truncated: bool,
}

/// Replies to questions from the newest answers.
#[derive(Debug)]
pub struct Responder {
    answers: ArcSwap<Answers>,
    networks: Networks,
    node: Arc<[u8]>,
    cookie_key: [u8; 32],
}

impl Responder {
    /// Replies from these answers; `node` names this server to those who ask (RFC 5001), `cookie_key` is random.
    pub fn new(answers: Answers, networks: Networks, node: &topology::NodeId, cookie_key: [u8; 32]) -> Self {
        Self {
            answers: ArcSwap::from_pointee(answers),
            networks,
            node: node.as_str().as_bytes().into(),
            cookie_key,
        }
    }

    /// From now on replies come from `answers`. Older ones are ignored, whoever hands them in.
    pub fn set(&self, answers: Answers) {
        let answers = Arc::new(answers);
        self.answers.rcu(|current| {
            if answers.number() > current.number() {
                answers.clone()
            } else {
                current.clone()
            }
        });
    }

    /// The answers in force.
    pub fn answers(&self) -> Arc<Answers> {
        self.answers.load_full()
    }

    /// The reply to a message from `client`. `None` when it deserves none: it is too short to have a header, or an
    /// answer itself.
    pub fn reply(&self, message: &[u8], client: IpAddr, transport: Transport) -> Option<Reply> {
        let query = Query::read(message)?;
        // One load per question: the whole reply comes from one plan.
        let answers = self.answers.load();
        let mut draft = Draft::new(query.edns.as_ref().map(|edns| self.edns(edns, client)));
        let rcode = self.answer(&query, client, &answers, &mut draft);
        draft.code = code(rcode);
        let bytes_max = match (transport, &query.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => UDP_BYTES_PLAIN,
            (Transport::Udp, Some(edns)) => edns.payload.clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX),
        };
        Some(Reply {
            bytes: write(&mut draft, &query, bytes_max.into()),
            qtype: query
                .question
                .as_ref()
                .map_or(QueryType::none, |question| label(question.kind)),
            rcode,
            truncated: draft.is_truncated,
        })
    }

    fn answer(&self, query: &Query<'_>, client: IpAddr, answers: &Answers, draft: &mut Draft) -> Rcode {
        /// The operation that asks; all others change or announce something (RFC 1035 §4.1.1).
        const QUERY: u8 = 0;
        if query.opcode != QUERY && !query.is_well_formed {
            // Its format may be another one.
            return Rcode::notimp;
        }
        if !query.is_well_formed {
            return Rcode::formerr;
        }
        // Nobody has a key here. An answer as if the question were unsigned would be thrown away as forged.
        if query.tsig.is_some() {
            draft.is_bad_key = true;
            return Rcode::notauth;
        }
        if query.opcode != QUERY {
            return Rcode::notimp;
        }
        if query.edns.as_ref().is_some_and(|edns| edns.version > 0) {
            return Rcode::badvers;
        }
        let question = match (&query.question, query.questions) {
            (Some(question), 1) => question,
            // A client that only wants a cookie (RFC 7873 §5.4).
            (None, 0) if query.edns.as_ref().is_some_and(|edns| edns.cookie.is_some()) => return Rcode::noerror,
            // Two questions have no common answer (RFC 9619).
            _ => return Rcode::formerr,
        };
        if question.kind == kind::OPT {
            return Rcode::formerr;
        }
        // Zone transfers are for secondaries, which this zone has none of; every server follows the plan itself.
        if matches!(question.kind, kind::AXFR | kind::IXFR) || question.class != class::IN {
            return Rcode::refused;
        }
        self.look_up(question, client, answers, draft)
    }

    fn look_up(&self, question: &Question<'_>, client: IpAddr, answers: &Answers, draft: &mut Draft) -> Rcode {
        let client = self.networks.client(client);
        let lookup = match answers.lookup(&question.name, asked(question.kind), client) {
            Ok(lookup) => lookup,
            Err(NoSuchZone) => return Rcode::refused,
        };
        draft.is_authoritative = true;
        match lookup {
            Lookup::Found { records, additional } => {
                (draft.answers, draft.additionals) = (records, additional);
                Rcode::noerror
            }
            Lookup::NoData(soa) => {
                draft.authorities = vec![soa];
                Rcode::noerror
            }
            Lookup::NoSuchName(soa) => {
                draft.authorities = vec![soa];
                Rcode::nxdomain
            }
        }
    }

    /// EDNS is answered with EDNS (RFC 6891 §6.1.1).
    fn edns(&self, theirs: &Edns<'_>, client: IpAddr) -> ReplyEdns {
        ReplyEdns {
            payload: UDP_BYTES_MAX,
            dnssec_ok: theirs.dnssec_ok,
            nsid: theirs.nsid.then(|| self.node.clone()),
            cookie: theirs.cookie.map(|cookie| self.cookie(cookie, client)),
        }
    }

    /// The client's half of a cookie and ours. Only the client gains: a forged reply lacks its half (RFC 7873 §3).
    fn cookie(&self, theirs: &[u8; 8], client: IpAddr) -> Vec<u8> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.cookie_key).expect("a key of HMAC may have any length");
        mac.update(theirs);
        match client.to_canonical() {
            IpAddr::V4(v4) => mac.update(&v4.octets()),
            IpAddr::V6(v6) => mac.update(&v6.octets()),
        }
        let ours = mac.finalize().into_bytes();
        [&theirs[..], &ours[..SERVER_COOKIE_BYTES]].concat()
    }
}

/// Writes a reply of at most `bytes_max`.
fn write(draft: &mut Draft, query: &Query<'_>, bytes_max: usize) -> Vec<u8> {
    let fits = |draft: &Draft| {
        let written = draft.write(query);
        let written = written.inspect_err(|error| tracing::warn!(%error, "a reply cannot be written"));
        written.ok().filter(|bytes| bytes.len() <= bytes_max)
    };
    if let Some(bytes) = fits(draft) {
        return bytes;
    }
    // Addresses of name servers are a courtesy; everything else must be whole or asked for again (RFC 2181 §9).
    draft.additionals.clear();
    if let Some(bytes) = fits(draft) {
        return bytes;
    }
    draft.is_truncated = true;
    draft.answers.clear();
    draft.authorities.clear();
    if let Some(bytes) = fits(draft) {
        return bytes;
    }
    // A key may have a name of 255 bytes.
    draft.is_bad_key = false;
    fits(draft).unwrap_or_else(|| bare(query.id, draft.code))
}

/// A header alone, written by hand: it is sent when writing failed.
fn bare(id: u16, code: ResponseCode) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![high, low, 0x80, code.low(), 0, 0, 0, 0, 0, 0, 0, 0]
}

fn asked(kind: u16) -> Type {
    match kind {
        kind::A => Type::A,
        kind::AAAA => Type::Aaaa,
        kind::NS => Type::Ns,
        kind::SOA => Type::Soa,
        kind::ANY => Type::Any,
        _ => Type::Other,
    }
}

fn label(kind: u16) -> QueryType {
    match asked(kind) {
        Type::A => QueryType::a,
        Type::Aaaa => QueryType::aaaa,
        Type::Ns => QueryType::ns,
        Type::Soa => QueryType::soa,
        Type::Any => QueryType::any,
        Type::Other => QueryType::other,
    }
}

fn code(code: Rcode) -> ResponseCode {
    match code {
        Rcode::noerror => ResponseCode::NoError,
        Rcode::formerr => ResponseCode::FormErr,
        Rcode::nxdomain => ResponseCode::NXDomain,
        Rcode::notimp => ResponseCode::NotImp,
        Rcode::refused => ResponseCode::Refused,
        Rcode::notauth => ResponseCode::NotAuth,
        Rcode::badvers => ResponseCode::BADVERS,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
        rr::{
            Name, RecordType,
            rdata::opt::{EdnsCode, EdnsOption, NSIDPayload},
        },
    };
    use topology::{EdgeId, NameServer, NodeId, Snapshot, fixtures::three_primaries};

    use super::{Answers, IpAddr, Networks, Rcode, Responder, Transport, UDP_BYTES_MAX};

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));
    const ZONE: &str = "voice.meridian.test.";

    fn responder() -> Responder {
        responder_of(&three_primaries())
    }

    fn responder_of(snapshot: &Snapshot) -> Responder {
        let node = NodeId::new("dns-1").unwrap();
        Responder::new(Answers::compile(snapshot), Networks::default(), &node, [7; 32])
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
        let reply = responder.reply(&question.to_vec().unwrap(), CLIENT, transport).unwrap();
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
            // No as an answer is kept no longer than the SOA's minimum says.
            for soa in &reply.authorities {
                assert_eq!(soa.ttl, 15, "{what}");
            }
        }
    }

    #[test]
    fn the_question_comes_back_in_its_own_letters_and_so_does_the_owner() {
        let name = "vOiCe.MERIDIAN.tEsT.";
        let reply = ask(&responder(), &question(name, RecordType::A), Transport::Udp);
        assert_eq!(reply.queries[0].name().to_ascii(), name);
        assert_eq!(reply.answers[0].name.to_ascii(), name);
        let bytes = responder()
            .reply(&question(name, RecordType::A).to_vec().unwrap(), CLIENT, Transport::Udp)
            .unwrap()
            .bytes;
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
        // 16 is BADVERS here and BADSIG in signed messages; hickory reads the latter.
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
    fn what_does_not_fit_is_asked_again_over_tcp_and_keeps_its_opt() {
        let mut snapshot = three_primaries();
        // Sixteen IPv6 addresses under a long name: over 512 bytes.
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
        let reply = ask(&responder, &with_edns(plain.clone(), 600), Transport::Udp);
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
            let reply = responder
                .reply(&question.to_vec().unwrap(), CLIENT, Transport::Udp)
                .unwrap();
            assert!(reply.truncated && reply.bytes.len() <= 1232, "{payload}");
            let reply = ask(&responder, &question, Transport::Tcp);
            assert_eq!(reply.answers.len(), 61);
        }
    }

    #[test]
    fn an_answer_for_the_service_is_not_worth_reflecting() {
        // Nobody limits the rate of replies (docs/dns.md), so none may be much longer than its question.
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
                let reply = responder.reply(&question, CLIENT, Transport::Udp).unwrap();
                assert!(reply.bytes.len() < 3 * question.len(), "{name} {kind}");
            }
        }
    }

    /// A good message with something done to it: header, question, OPT.
    fn message(flags: u16, counts: [u16; 4], sections: &[&[u8]]) -> Vec<u8> {
        let mut message = 4711_u16.to_be_bytes().to_vec();
        for field in [flags].iter().chain(&counts) {
            message.extend(field.to_be_bytes());
        }
        message.extend(sections.concat());
        message
    }

    /// A question about the service's A records.
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
        let long_option = b"\0\0\x29\x04\xd0\0\0\0\0\0\x04\0\x03\0\x09";
        let elsewhere = b"\x07example\x03com\0\0\x01\0\x01";
        let opt_asked = b"\x05voice\x08meridian\x04test\0\0\x29\0\x01";
        let chaos = b"\x07version\x04bind\0\0\x10\0\x03";
        for (what, bytes, expected) in [
            (
                "another operation",
                message(STATUS, [1, 0, 0, 1], &[SERVICE, &plain]),
                Rcode::notimp,
            ),
            (
                "an update",
                message(UPDATE, [1, 0, 0, 1], &[SERVICE, &plain]),
                Rcode::notimp,
            ),
            (
                "another zone",
                message(0, [1, 0, 0, 1], &[elsewhere, &plain]),
                Rcode::refused,
            ),
            (
                "another class",
                message(0, [1, 0, 0, 1], &[chaos, &plain]),
                Rcode::refused,
            ),
            (
                "OPT as a type",
                message(0, [1, 0, 0, 1], &[opt_asked, &plain]),
                Rcode::formerr,
            ),
            (
                "a newer EDNS",
                message(0, [1, 0, 0, 1], &[SERVICE, version_1]),
                Rcode::badvers,
            ),
            (
                "two OPT records",
                message(0, [1, 0, 0, 2], &[SERVICE, &plain, &plain]),
                Rcode::formerr,
            ),
            (
                "a cookie of 7 bytes",
                message(0, [1, 0, 0, 1], &[SERVICE, &short_cookie]),
                Rcode::formerr,
            ),
            (
                "an option past its record",
                message(0, [1, 0, 0, 1], &[SERVICE, long_option]),
                Rcode::formerr,
            ),
            (
                "two questions",
                message(0, [2, 0, 0, 1], &[SERVICE, SERVICE, &plain]),
                Rcode::formerr,
            ),
            (
                "trailing bytes",
                message(0, [1, 0, 0, 1], &[SERVICE, &plain, b"?"]),
                Rcode::formerr,
            ),
            (
                "a record that is not there",
                message(0, [1, 0, 0, 2], &[SERVICE, &plain]),
                Rcode::formerr,
            ),
        ] {
            let reply = responder.reply(&bytes, CLIENT, Transport::Udp).unwrap();
            assert_eq!(reply.rcode, expected, "{what}");
            let read = Message::from_vec(&reply.bytes).unwrap();
            assert_eq!(read.queries.len(), 1, "{what}");
            assert_eq!(reply.bytes[12..][..10], bytes[12..][..10], "{what}");
            let edns = read
                .edns
                .unwrap_or_else(|| panic!("{what}: a reply without OPT means no EDNS"));
            assert_eq!((edns.version(), edns.max_payload()), (0, 1232), "{what}");
        }
        // Nothing can be repeated of what was never readable.
        let cut = message(0, [1, 0, 0, 1], &[&SERVICE[..9]]);
        let reply = responder.reply(&cut, CLIENT, Transport::Udp).unwrap();
        assert_eq!((reply.rcode, reply.bytes.len()), (Rcode::formerr, 12));
    }

    #[test]
    fn options_that_mean_nothing_here_are_skipped() {
        let responder = responder();
        // A client subnet of a family that does not exist, a number nobody assigned, a padding of nothing.
        let options = opt(&[(8, &[0, 3, 24, 0, 1, 2, 3]), (65_001, b"?"), (12, b"")]);
        let bytes = message(0, [1, 0, 0, 1], &[SERVICE, &options]);
        let reply = responder.reply(&bytes, CLIENT, Transport::Udp).unwrap();
        assert_eq!(reply.rcode, Rcode::noerror);
        let read = Message::from_vec(&reply.bytes).unwrap();
        assert_eq!(read.answers.len(), 2);
        assert!(read.edns.unwrap().options().options.is_empty(), "nor are they repeated");
    }

    #[test]
    fn a_cookie_comes_back_with_the_servers_half_also_without_a_question() {
        let responder = responder();
        let cookie_of = |bytes: &[u8], client| {
            let reply = responder.reply(bytes, client, Transport::Udp).unwrap();
            assert_eq!(reply.rcode, Rcode::noerror);
            let edns = Message::from_vec(&reply.bytes).unwrap().edns.unwrap();
            match edns.option(EdnsCode::Cookie) {
                Some(EdnsOption::Unknown(10, cookie)) => cookie.clone(),
                other => panic!("{other:?}"),
            }
        };
        let theirs = [1, 2, 3, 4, 5, 6, 7, 8];
        let alone = message(0, [0, 0, 0, 1], &[&opt(&[(10, &theirs)])]);
        let cookie = cookie_of(&alone, CLIENT);
        assert_eq!((&cookie[..8], cookie.len()), (&theirs[..], 16));
        // With a question, and with the server's half: the same cookie, for the same client only.
        let with_question = message(0, [1, 0, 0, 1], &[SERVICE, &opt(&[(10, &cookie), (10, b"?")])]);
        assert_eq!(cookie_of(&with_question, CLIENT), cookie);
        let other = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 8));
        assert_ne!(cookie_of(&with_question, other), cookie);

        // No question and no cookie: there is nothing to say.
        let nothing = message(0, [0, 0, 0, 1], &[&opt(&[])]);
        let reply = responder.reply(&nothing, CLIENT, Transport::Udp).unwrap();
        assert_eq!(reply.rcode, Rcode::formerr);
        assert!(Message::from_vec(&reply.bytes).unwrap().edns.is_some());
    }

    /// A TSIG record of a key called "k.", with `mac` as its MAC.
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
        let reply = responder.reply(&signed, CLIENT, Transport::Udp).unwrap();
        assert_eq!(reply.rcode, Rcode::notauth);
        assert!(Message::from_vec(&reply.bytes).is_ok());
        // The same record, without a MAC and with the error BADKEY (17), after the OPT record.
        let mut unsigned = tsig(&[]);
        let error = unsigned.len() - 4;
        unsigned[error..error + 2].copy_from_slice(&[0, 17]);
        assert!(reply.bytes.ends_with(&unsigned), "{:?}", reply.bytes);
        assert_eq!(reply.bytes[..4], [0x12, 0x67, 0x80, 9]);
        assert_eq!(reply.bytes[4..12], [0, 1, 0, 0, 0, 0, 0, 2]);

        // TSIG comes last, once, and in one piece (RFC 8945 §5.1).
        for sections in [
            [SERVICE, &tsig(&[])[..], &opt(&[])[..]],
            [SERVICE, &tsig(&[]), &tsig(&[])],
            [SERVICE, &opt(&[]), b"\x01k\0\0\xfa\0\xff\0\0\0\0\0\x02\0\0"],
        ] {
            let reply = responder.reply(&message(0, [1, 0, 0, 2], &sections), CLIENT, Transport::Udp);
            assert_eq!(reply.unwrap().rcode, Rcode::formerr);
        }
        // A name of 255 bytes does not fit into a plain datagram twice.
        let long = [&[63; 64][..], &[63; 64], &[63; 64], &[61; 62], &[0]].concat();
        let algorithm = [&long[..], &[0; 16]].concat();
        let record = [&long[..], b"\0\xfa\0\xff\0\0\0\0", &[1, 15], &algorithm].concat();
        let reply = responder.reply(&message(0, [1, 0, 0, 1], &[SERVICE, &record]), CLIENT, Transport::Udp);
        let reply = reply.unwrap();
        assert_eq!(reply.rcode, Rcode::notauth);
        assert!(reply.truncated && reply.bytes.len() <= 512);
    }

    #[test]
    fn malformed_messages_get_an_error_or_nothing_and_never_a_panic() {
        let responder = responder();
        let reply = |bytes: &[u8]| responder.reply(bytes, CLIENT, Transport::Udp);
        let code = |bytes: &[u8]| reply(bytes).map(|reply| reply.rcode);
        let good = with_edns(question(ZONE, RecordType::A), 1232).to_vec().unwrap();
        assert_eq!(code(&good), Some(Rcode::noerror));

        assert_eq!(code(&[]), None);
        assert_eq!(code(&good[..11]), None);
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(code(&answer), None, "answers are not answered");
        for opcode in [1_u8, 2, 4, 5, 15] {
            let mut other = good.clone();
            other[2] = opcode << 3;
            assert_eq!(code(&other), Some(Rcode::notimp), "opcode {opcode}");
        }
        let mut crowd = good.clone();
        [crowd[4], crowd[5]] = [0xff, 0xff];
        assert_eq!(code(&crowd), Some(Rcode::formerr));
        [crowd[4], crowd[5]] = [0, 0];
        assert_eq!(code(&crowd), Some(Rcode::formerr));
        assert_eq!(code(&good[..20]), Some(Rcode::formerr));
        let mut twice = good.clone();
        twice.extend_from_slice(&good[good.len() - 11..]);
        twice[11] = 2;
        assert_eq!(code(&twice), Some(Rcode::formerr), "two OPT records");

        // Every byte of a good message with every value: errors are fine, panics are not.
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
        responder.set(Answers::compile(&newer));
        assert_eq!(responder.answers().number().generation, 5);
        responder.set(Answers::compile(&three_primaries()));
        assert_eq!(responder.answers().number().generation, 5);
    }
}
