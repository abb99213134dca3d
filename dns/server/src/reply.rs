//! Turns the bytes of a question into the bytes of its reply. This module opens no socket.

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
    texts,
    wire::{Edns, Query, Question, class, kind},
};

/// Largest reply over UDP to a client with EDNS, in bytes. Larger datagrams may be fragmented and lost (RFC 9715).
const UDP_BYTES_MAX: u16 = 1232;
/// Largest reply over UDP without EDNS, in bytes (RFC 1035 §4.2.1).
const UDP_BYTES_PLAIN: u16 = 512;
/// Length of the server's half of a cookie, in bytes: the shortest one allowed (RFC 7873 §4.2). Guessing a cookie gains
/// nothing, because clients with a cookie have no more rights than others.
const SERVER_COOKIE_BYTES: usize = 8;

/// The transport of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram. The size of the reply is limited.
    Udp,
    /// A stream. A reply may have 65,535 bytes.
    Tcp,
}

/// A reply, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The bytes of the message.
    pub bytes: Vec<u8>,
    /// The type of the question.
    pub qtype: QueryType,
    /// The response code.
    pub rcode: Rcode,
    /// Whether the reply tells the client to ask again over TCP.
    pub truncated: bool,
}

/// Answers questions from the newest compiled answers.
#[derive(Debug)]
pub struct Responder {
    answers: ArcSwap<Answers>,
    networks: Networks,
    node: Arc<[u8]>,
    cookie_key: [u8; 32],
}

impl Responder {
    /// Replies from these answers. `node` is the name of this server for NSID (RFC 5001); `cookie_key` is random.
    pub fn new(answers: Answers, networks: Networks, node: &topology::NodeId, cookie_key: [u8; 32]) -> Self {
        Self {
            answers: ArcSwap::from_pointee(answers),
            networks,
            node: node.as_str().as_bytes().into(),
            cookie_key,
        }
    }

    /// Replies from `answers` from now on. Ignores answers that are not newer than those in force.
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

    /// The reply to a message from `client`. `None` when the message must not be answered: it is too short for a
    /// header, or is an answer itself.
    pub fn reply(&self, message: &[u8], client: IpAddr, transport: Transport) -> Option<Reply> {
        let query = Query::read(message)?;
        // Loaded once per question, so that the whole reply comes from one plan.
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
                .map_or(QueryType::None, |question| label(question.kind)),
            rcode,
            truncated: draft.is_truncated,
        })
    }

    fn answer(&self, query: &Query<'_>, client: IpAddr, answers: &Answers, draft: &mut Draft) -> Rcode {
        /// The opcode of a query. All other opcodes change or announce something (RFC 1035 §4.1.1).
        const QUERY: u8 = 0;
        if query.opcode != QUERY && !query.is_well_formed {
            // Other opcodes may have another format.
            return Rcode::NotImp;
        }
        if !query.is_well_formed {
            return Rcode::FormErr;
        }
        // This server has no keys. A client would discard an unsigned answer as forged.
        if query.tsig.is_some() {
            draft.is_bad_key = true;
            return Rcode::NotAuth;
        }
        if query.opcode != QUERY {
            return Rcode::NotImp;
        }
        if query.edns.as_ref().is_some_and(|edns| edns.version > 0) {
            return Rcode::BadVers;
        }
        let question = match (&query.question, query.questions) {
            (Some(question), 1) => question,
            // A client that only asks for a cookie (RFC 7873 §5.4).
            (None, 0) if query.edns.as_ref().is_some_and(|edns| edns.cookie.is_some()) => return Rcode::NoError,
            // Two questions have no common answer (RFC 9619).
            _ => return Rcode::FormErr,
        };
        if question.kind == kind::OPT {
            return Rcode::FormErr;
        }
        // Zone transfers are for secondaries. This zone has none, because every server follows the plan itself.
        if matches!(question.kind, kind::AXFR | kind::IXFR) || question.class != class::IN {
            return Rcode::Refused;
        }
        self.look_up(question, client, answers, draft)
    }

    fn look_up(&self, question: &Question<'_>, client: IpAddr, answers: &Answers, draft: &mut Draft) -> Rcode {
        let client = self.networks.client(client);
        let lookup = match answers.lookup(&question.name, asked(question.kind), client) {
            Ok(lookup) => lookup,
            Err(NoSuchZone) => return Rcode::Refused,
        };
        draft.is_authoritative = true;
        match lookup {
            Lookup::Found { records, additional } => {
                (draft.answers, draft.additionals) = (records, additional);
                Rcode::NoError
            }
            Lookup::NoData(soa) => {
                draft.authorities = vec![soa];
                Rcode::NoError
            }
            Lookup::NoSuchName(soa) => {
                draft.authorities = vec![soa];
                Rcode::NxDomain
            }
        }
    }

    /// A query with EDNS gets a reply with EDNS (RFC 6891 §6.1.1).
    fn edns(&self, theirs: &Edns<'_>, client: IpAddr) -> ReplyEdns {
        ReplyEdns {
            payload: UDP_BYTES_MAX,
            dnssec_ok: theirs.dnssec_ok,
            nsid: theirs.nsid.then(|| self.node.clone()),
            cookie: theirs.cookie.map(|cookie| self.cookie(cookie, client)),
        }
    }

    /// The client's half of a cookie followed by the server's half. Only the client gains: a forged reply lacks the
    /// client's half (RFC 7873 §3).
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

/// Writes a reply of at most `bytes_max` bytes.
fn write(draft: &mut Draft, query: &Query<'_>, bytes_max: usize) -> Vec<u8> {
    let fits = |draft: &Draft| {
        let written = draft.write(query);
        let written = written.inspect_err(|error| tracing::warn!(%error, "{}", texts::CANNOT_WRITE_REPLY));
        written.ok().filter(|bytes| bytes.len() <= bytes_max)
    };
    if let Some(bytes) = fits(draft) {
        return bytes;
    }
    // Addresses of name servers are a courtesy. Everything else must be complete or asked for again (RFC 2181 §9).
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
    // The name of a key may have 255 bytes.
    draft.is_bad_key = false;
    fits(draft).unwrap_or_else(|| bare(query.id, draft.code))
}

/// A header alone, written by hand, for when hickory could not write the reply.
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
        Type::A => QueryType::A,
        Type::Aaaa => QueryType::Aaaa,
        Type::Ns => QueryType::Ns,
        Type::Soa => QueryType::Soa,
        Type::Any => QueryType::Any,
        Type::Other => QueryType::Other,
    }
}

fn code(code: Rcode) -> ResponseCode {
    match code {
        Rcode::NoError => ResponseCode::NoError,
        Rcode::FormErr => ResponseCode::FormErr,
        Rcode::NxDomain => ResponseCode::NXDomain,
        Rcode::NotImp => ResponseCode::NotImp,
        Rcode::Refused => ResponseCode::Refused,
        Rcode::NotAuth => ResponseCode::NotAuth,
        Rcode::BadVers => ResponseCode::BADVERS,
    }
}

#[cfg(test)]
mod tests;
