//! From the bytes of a question to the bytes of its reply. No sockets here.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, RecordType,
        rdata::{
            A, AAAA, HINFO, NS, SOA,
            opt::{EdnsCode, EdnsOption, NSIDPayload},
        },
    },
    serialize::binary::{BinDecodable as _, BinDecoder, BinEncodable as _, BinEncoder},
};
use steering::{Answers, Lookup, NoSuchZone, Record, RecordData, Type};

use crate::{
    Networks,
    metrics::{QueryType, Rcode},
};

/// Largest reply over UDP to a client that takes more than plain DNS does; larger ones may be fragmented and lost
/// (RFC 9715).
const UDP_BYTES_MAX: u16 = 1232;
/// Largest reply over UDP without EDNS (RFC 1035 §4.2.1).
const UDP_BYTES_PLAIN: u16 = 512;
/// Length of a message's header (RFC 1035 §4.1.1).
const HEADER_BYTES: usize = 12;

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
    node: NSIDPayload,
}

impl Responder {
    /// Replies from these answers; `node` names this server to those who ask (RFC 5001).
    pub fn new(answers: Answers, networks: Networks, node: &topology::NodeId) -> Self {
        Self {
            answers: ArcSwap::from_pointee(answers),
            networks,
            node: NSIDPayload::new(node.as_str()).expect("an id is at most 63 bytes long"),
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

    /// The reply to a message from `client`. `None` when it deserves none: what is too short to have an id, and what is an
    /// answer itself, which two servers could throw at each other forever.
    pub fn reply(&self, message: &[u8], client: IpAddr, transport: Transport) -> Option<Reply> {
        let header = Header::read(&mut BinDecoder::new(message)).ok()?;
        if message.len() < HEADER_BYTES || header.metadata.message_type == MessageType::Response {
            return None;
        }
        let mut draft = Draft::new(&header.metadata);
        if header.metadata.op_code != OpCode::Query {
            draft.message.metadata.response_code = ResponseCode::NotImp;
            return Some(draft.finish(transport));
        }
        // Checked before the rest is read: 65,535 announced questions would be room made for nothing (RFC 9619).
        if header.counts.queries != 1 {
            draft.message.metadata.response_code = ResponseCode::FormErr;
            return Some(draft.finish(transport));
        }
        // Strangers decide what is malformed, and hickory warns of it: they must not be able to fill our log.
        let read = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
            Message::from_vec(message)
        });
        let Ok(question) = read else {
            draft.message.metadata.response_code = ResponseCode::FormErr;
            return Some(draft.finish(transport));
        };
        self.answer(&question, client, &mut draft);
        Some(draft.finish(transport))
    }

    fn answer(&self, question: &Message, client: IpAddr, draft: &mut Draft) {
        draft.ask(question, &self.node);
        let metadata = &mut draft.message.metadata;
        if question.version() > 0 {
            metadata.response_code = ResponseCode::BADVERS;
            return;
        }
        let Some(query) = question.queries.first() else {
            metadata.response_code = ResponseCode::FormErr;
            return;
        };
        // Zone transfers are for secondaries, which this zone has none of; every server follows the plan itself.
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if transfer || query.query_class() != DNSClass::IN {
            metadata.response_code = ResponseCode::Refused;
            return;
        }
        if query.query_type() == RecordType::OPT {
            metadata.response_code = ResponseCode::FormErr;
            return;
        }
        // One load per question: the whole reply comes from one plan.
        let answers = self.answers.load();
        let labels: Vec<&[u8]> = query.name().iter().collect();
        match answers.lookup(&labels, asked(query.query_type()), self.networks.client(client)) {
            Err(NoSuchZone) => metadata.response_code = ResponseCode::Refused,
            Ok(lookup) => {
                metadata.authoritative = true;
                draft.add(lookup, query);
            }
        }
    }
}

/// A reply in the making.
struct Draft {
    message: Message,
    udp_bytes_max: u16,
    qtype: QueryType,
}

impl Draft {
    fn new(question: &Metadata) -> Self {
        let mut message = Message::response(question.id, question.op_code);
        message.metadata = Metadata::response_from_request(question);
        Self {
            message,
            udp_bytes_max: UDP_BYTES_PLAIN,
            qtype: QueryType::none,
        }
    }

    /// Echoes the question as it was written, and answers EDNS with EDNS (RFC 6891 §6.1.1).
    fn ask(&mut self, question: &Message, node: &NSIDPayload) {
        self.message.queries.clone_from(&question.queries);
        self.qtype = question
            .queries
            .first()
            .map_or(QueryType::none, |query| label(query.query_type()));
        if let Some(theirs) = &question.edns {
            self.udp_bytes_max = theirs.max_payload().clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX);
            let mut ours = Edns::new();
            ours.set_max_payload(UDP_BYTES_MAX)
                .set_version(0)
                .set_dnssec_ok(theirs.flags().dnssec_ok);
            if theirs.option(EdnsCode::NSID).is_some() {
                ours.options_mut().insert(EdnsOption::NSID(node.clone()));
            }
            self.message.set_edns(ours);
        }
    }

    fn add(&mut self, lookup: Lookup, query: &Query) {
        match lookup {
            Lookup::Found { records, additional } => {
                self.message.answers = records
                    .into_iter()
                    .filter_map(|record| {
                        let mut record = wire(record)?;
                        // The owner is the name that was asked for, in the asker's own letters.
                        record.name = query.name().clone();
                        Some(record)
                    })
                    .collect();
                self.message.additionals = additional.into_iter().filter_map(wire).collect();
            }
            Lookup::NoData(soa) => self.message.authorities = wire(soa).into_iter().collect(),
            Lookup::NoSuchName(soa) => {
                self.message.metadata.response_code = ResponseCode::NXDomain;
                self.message.authorities = wire(soa).into_iter().collect();
            }
        }
    }

    fn finish(mut self, transport: Transport) -> Reply {
        let bytes_max = match transport {
            Transport::Udp => self.udp_bytes_max,
            Transport::Tcp => u16::MAX,
        };
        let mut truncated = false;
        let mut bytes = encode(&self.message);
        if bytes.as_ref().is_none_or(|bytes| bytes.len() > bytes_max.into()) {
            // Addresses of name servers are a courtesy; everything else must be whole or asked for again (RFC 2181 §9).
            self.message.additionals.clear();
            bytes = encode(&self.message);
        }
        if bytes.as_ref().is_none_or(|bytes| bytes.len() > bytes_max.into()) {
            truncated = true;
            self.message.metadata.truncation = true;
            self.message.answers.clear();
            self.message.authorities.clear();
            bytes = encode(&self.message);
        }
        Reply {
            rcode: rcode(self.message.metadata.response_code),
            qtype: self.qtype,
            truncated,
            bytes: bytes.unwrap_or_else(|| servfail(self.message.metadata.id)),
        }
    }
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::MAX);
    match message.emit(&mut encoder) {
        Ok(()) => Some(bytes),
        Err(error) => {
            tracing::warn!(%error, "a reply cannot be written");
            None
        }
    }
}

/// The header of a failure, written by hand: it is sent when writing failed.
fn servfail(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![high, low, 0x80, 0x02, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// A record as hickory writes it. `None` for a name that is none, which no topology holds.
fn wire(record: Record) -> Option<hickory_proto::rr::Record> {
    let data = match record.data {
        RecordData::A(address) => RData::A(A(address)),
        RecordData::Aaaa(address) => RData::AAAA(AAAA(address)),
        RecordData::Ns(server) => RData::NS(NS(name(&server)?)),
        RecordData::Soa(soa) => RData::SOA(SOA::new(
            name(&soa.mname)?,
            name(&soa.rname)?,
            soa.serial,
            seconds(soa.refresh_s),
            seconds(soa.retry_s),
            seconds(soa.expire_s),
            soa.minimum_s,
        )),
        RecordData::Hinfo => RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())),
    };
    Some(hickory_proto::rr::Record::from_rdata(
        name(&record.name)?,
        record.ttl_s,
        data,
    ))
}

fn name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn seconds(seconds: u32) -> i32 {
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

fn asked(kind: RecordType) -> Type {
    match kind {
        RecordType::A => Type::A,
        RecordType::AAAA => Type::Aaaa,
        RecordType::NS => Type::Ns,
        RecordType::SOA => Type::Soa,
        RecordType::ANY => Type::Any,
        _ => Type::Other,
    }
}

fn label(kind: RecordType) -> QueryType {
    match asked(kind) {
        Type::A => QueryType::a,
        Type::Aaaa => QueryType::aaaa,
        Type::Ns => QueryType::ns,
        Type::Soa => QueryType::soa,
        Type::Any => QueryType::any,
        Type::Other => QueryType::other,
    }
}

fn rcode(code: ResponseCode) -> Rcode {
    match code {
        ResponseCode::NoError => Rcode::noerror,
        ResponseCode::FormErr => Rcode::formerr,
        ResponseCode::NXDomain => Rcode::nxdomain,
        ResponseCode::NotImp => Rcode::notimp,
        ResponseCode::Refused => Rcode::refused,
        ResponseCode::BADVERS => Rcode::badvers,
        _ => Rcode::servfail,
    }
}

#[cfg(test)]
mod tests {
    use topology::{EdgeId, EdgeState, NodeId, fixtures::three_primaries};

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));
    const ZONE: &str = "voice.meridian.test.";

    fn responder() -> Responder {
        let node = NodeId::new("dns-1").unwrap();
        Responder::new(Answers::compile(&three_primaries()), Networks::default(), &node)
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
        let template = snapshot.topology.edges.values().next().unwrap().clone();
        for number in 0..16_u16 {
            let id = EdgeId::new(&format!("edge-{number}")).unwrap();
            let mut edge = template.clone();
            edge.id = id.clone();
            edge.addresses = vec![std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number).into()];
            snapshot.plan.edges.insert(id.clone(), EdgeState::Serving);
            snapshot.topology.edges.insert(id, edge);
        }
        snapshot.topology.zone = format!("{}.{}", "a".repeat(60), snapshot.topology.zone);
        let name = format!("{}.", snapshot.topology.zone);
        let node = NodeId::new("dns-1").unwrap();
        let responder = Responder::new(Answers::compile(&snapshot), Networks::default(), &node);

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
