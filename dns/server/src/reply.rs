//! Turns the bytes of a question into the bytes of its reply. This module opens no socket.
//!
//! There are two ways. The usual questions go the short one (`fast.rs`), which copies what was written when the answers
//! were compiled. Everything else goes the long one here, which takes records and lets hickory write them.

use std::{net::IpAddr, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use hickory_proto::op::ResponseCode;
use steering::{Answers, Client, Lookup, NoSuchZone, Record, RecordData, SetToSign, Type};
use tokio::sync::watch;
use topology::Moment;

use crate::{
    cookie::{self, Secret},
    draft::{Draft, ReplyEdns},
    fast,
    metrics::{QueryType, Rcode},
    signer::{self, Ahead, Reuse, Signer},
    texts,
    wire::{Edns, HEADER_BYTES, Query, Question, class},
};

/// Largest reply over UDP to a client with EDNS, in bytes. Larger datagrams may be fragmented and lost (RFC 9715).
pub const UDP_BYTES_MAX: u16 = 1232;
/// Largest reply over UDP without EDNS, in bytes (RFC 1035 §4.2.1).
pub(crate) const UDP_BYTES_PLAIN: u16 = 512;
/// Length of an OPT record without options.
pub(crate) const OPT_BYTES: usize = 11;
/// A reply is at most this many times as long as its question when its client did not show that the address is its own, unless the
/// configuration allows more.
pub(crate) const AMPLIFICATION: usize = 3;
/// Bytes of the IP and UDP headers around a message.
const AROUND_BYTES: usize = 28;

/// Codes of extended errors (RFC 8914 §5.2).
mod extended {
    pub(super) const PROHIBITED: u16 = 18;
    pub(super) const NOT_AUTHORITATIVE: u16 = 20;
    pub(super) const NOT_SUPPORTED: u16 = 21;
    pub(super) const INVALID_TYPE: u16 = 30;
}

/// The transport of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram. The size of the reply is limited.
    Udp,
    /// A stream. A reply may have 65,535 bytes.
    Tcp,
}

/// A message and what is known about it.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// The bytes of the message.
    pub message: &'a [u8],
    /// The address that it came from.
    pub client: IpAddr,
    /// The way by which it came.
    pub transport: Transport,
    /// The time.
    pub now: Moment,
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
    /// True if the client showed that it owns its address: by a cookie, or by a connection.
    pub is_trusted: bool,
}

/// Answers questions from the newest compiled answers.
#[derive(Debug)]
pub struct Responder {
    in_force: ArcSwap<InForce>,
    changes: watch::Sender<()>,
    node: Arc<[u8]>,
    terms: Terms,
    signer: Option<Arc<Signer>>,
}

/// The answers in force, and their signatures as far as they were made beforehand.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(crate) answers: Arc<Answers>,
    pub(crate) signed: Option<Ahead>,
}

/// The rules for all replies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) secret: Secret,
    /// Whether the zone is signed.
    pub(crate) is_signed: bool,
    /// A reply over UDP is at most this many times as long as its question, unless the client showed a good cookie.
    pub(crate) amplification: usize,
}

impl Responder {
    /// Replies from these answers. `node` is the name of this server for NSID (RFC 5001). All name servers of a zone share
    /// `cookie_secret` (RFC 9018), or it is random.
    pub fn new(answers: Answers, node: &topology::NodeId, cookie_secret: [u8; 16]) -> Self {
        Self {
            in_force: ArcSwap::from_pointee(InForce {
                answers: Arc::new(answers),
                signed: None,
            }),
            changes: watch::Sender::new(()),
            node: node.as_str().as_bytes().into(),
            terms: Terms {
                secret: Secret(cookie_secret),
                is_signed: false,
                amplification: AMPLIFICATION,
            },
            signer: None,
        }
    }

    /// Signs answers for clients that ask for it.
    #[must_use]
    pub fn signed_by(mut self, signer: Arc<Signer>) -> Self {
        self.terms.is_signed = true;
        self.signer = Some(signer);
        self
    }

    /// Allows replies over UDP that are this many times as long as their question.
    #[must_use]
    pub fn amplifying(mut self, times: usize) -> Self {
        self.terms.amplification = times;
        self
    }

    /// Tells of each change of the answers.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Replies from `answers` from now on. Ignores answers of an older plan than the one in force. Returns whether they
    /// count.
    pub fn set(&self, answers: Answers) -> bool {
        let number = answers.number();
        let next = Arc::new(InForce {
            answers: Arc::new(answers),
            signed: None,
        });
        // The same plan has new answers when time passes: its TTLs grow.
        let before = self.in_force.rcu(|current| {
            if number >= current.answers.number() {
                next.clone()
            } else {
                current.clone()
            }
        });
        let counts = number >= before.answers.number();
        if counts {
            self.changes.send_replace(());
        }
        counts
    }

    /// Takes signatures that were made beforehand for these answers. Others are in force by now: the signatures count for nothing.
    pub(crate) fn set_signed(&self, answers: &Arc<Answers>, signed: Ahead) {
        let next = Arc::new(InForce {
            answers: answers.clone(),
            signed: Some(signed),
        });
        self.in_force.rcu(|current| {
            if Arc::ptr_eq(&current.answers, answers) {
                next.clone()
            } else {
                current.clone()
            }
        });
    }

    /// The answers in force.
    pub fn answers(&self) -> Arc<Answers> {
        self.in_force.load().answers.clone()
    }

    /// The answers in force, for a batch of questions.
    pub(crate) fn load(&self) -> Guard<Arc<InForce>> {
        self.in_force.load()
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The reply to a message. `None` when the message must not be answered: it is too short for a header, or is an answer
    /// itself.
    pub fn reply(&self, received: &Received<'_>) -> Option<Reply> {
        self.reply_by(received, false)
    }

    /// The reply to a datagram by the short way, written into `out`. Returns its length, or `None` if the question needs
    /// the long one.
    pub fn short_reply(&self, received: &Received<'_>, out: &mut [u8; UDP_BYTES_MAX as usize]) -> Option<usize> {
        let in_force = self.in_force.load();
        let (message, now_s) = (received.message, seconds(received.now));
        fast::reply(&in_force, &self.terms, message, received.client, now_s, out)
            .ok()
            .map(|fast| fast.length)
    }

    /// A reply without records that tells the client to ask again over TCP.
    pub(crate) fn cut_reply(&self, received: &Received<'_>) -> Option<Reply> {
        self.reply_by(received, true)
    }

    fn reply_by(&self, received: &Received<'_>, is_cut: bool) -> Option<Reply> {
        let query = Query::read(received.message)?;
        // Loaded once per question, so that the whole reply comes from one plan.
        let in_force = self.in_force.load();
        let answers = &in_force.answers;
        let mut draft = Draft::new(query.edns.as_ref().map(|edns| self.edns(edns, received)));
        let shown = draft.edns.as_ref().and_then(|edns| edns.cookie);
        let is_trusted = received.transport == Transport::Tcp || shown.is_some_and(|given| given.is_good);
        let bytes_max = match (received.transport, &query.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, edns) => {
                let payload = edns.as_ref().map(|edns| edns.payload);
                let times = if is_trusted {
                    usize::MAX
                } else {
                    self.terms.amplification
                };
                datagram_bytes_max(payload, received.message.len(), times)
            }
        };
        let room = bytes_max.saturating_sub(HEADER_BYTES + query.questions_bytes + edns_bytes(&draft));
        let asked = Asked {
            query: &query,
            received,
            room,
            is_trusted,
            is_cut,
        };
        let rcode = self.answer(&asked, answers, &mut draft);
        draft.code = code(rcode);
        draft.is_truncated |= is_cut;
        if draft.is_truncated {
            draft.clear();
        }
        Some(Reply {
            bytes: write(&mut draft, &query, bytes_max),
            qtype: query
                .question
                .as_ref()
                .map_or(QueryType::None, |question| QueryType::of(question.kind)),
            rcode,
            truncated: draft.is_truncated,
            is_trusted,
        })
    }

    fn answer(&self, asked: &Asked<'_>, answers: &Answers, draft: &mut Draft) -> Rcode {
        /// The opcode of a query. All other opcodes change or announce something (RFC 1035 §4.1.1).
        const QUERY: u8 = 0;
        let query = asked.query;
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
            draft.tell(extended::NOT_SUPPORTED);
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
        if question.kind == Type::OPT {
            return Rcode::FormErr;
        }
        // Zone transfers are for secondaries. This zone has none, because every server follows the plan itself.
        if matches!(question.kind, Type::AXFR | Type::IXFR) {
            draft.tell(extended::PROHIBITED);
            return Rcode::Refused;
        }
        if question.class != class::IN {
            draft.tell(extended::NOT_AUTHORITATIVE);
            return Rcode::Refused;
        }
        if question.kind == Type::NXNAME {
            draft.tell(extended::INVALID_TYPE);
            return Rcode::FormErr;
        }
        let client = Client {
            resolver: asked.received.client,
            subnet: query.edns.as_ref().and_then(|edns| edns.subnet?.subnet()),
        };
        match &self.signer {
            None => look_up(question, &client, asked.room, answers, draft),
            Some(signer) => look_up_signed(signer, asked, question, &client, answers, draft),
        }
    }

    /// A query with EDNS gets a reply with EDNS (RFC 6891 §6.1.1).
    fn edns(&self, theirs: &Edns<'_>, received: &Received<'_>) -> ReplyEdns {
        let give = |shown| self.terms.secret.give(shown, received.client, seconds(received.now));
        ReplyEdns {
            payload: UDP_BYTES_MAX,
            dnssec_ok: theirs.dnssec_ok,
            compact_ok: self.terms.is_signed && theirs.dnssec_ok && theirs.compact_ok,
            nsid: theirs.nsid.then(|| self.node.clone()),
            cookie: theirs.cookie.and_then(give),
            subnet: theirs.subnet.map(|subnet| (subnet, 0)),
            error: None,
        }
    }
}

fn look_up(question: &Question<'_>, client: &Client, room: usize, answers: &Answers, draft: &mut Draft) -> Rcode {
    let answer = match answers.lookup(&question.name, question.kind, client, room) {
        Ok(answer) => answer,
        Err(NoSuchZone) => {
            draft.tell(extended::NOT_AUTHORITATIVE);
            return Rcode::Refused;
        }
    };
    if let Some((_, scope)) = draft.edns.as_mut().and_then(|edns| edns.subnet.as_mut()) {
        *scope = answer.scope;
    }
    draft.is_authoritative = true;
    match answer.lookup {
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

/// A query and the limits of its reply.
struct Asked<'a> {
    query: &'a Query<'a>,
    received: &'a Received<'a>,
    /// Bytes for records.
    room: usize,
    is_trusted: bool,
    /// Whether the reply goes out without records, so that signatures would be made for nothing.
    is_cut: bool,
}

/// Looks up in a zone that is signed.
fn look_up_signed(
    signer: &Signer,
    asked: &Asked<'_>,
    question: &Question<'_>,
    client: &Client,
    answers: &Answers,
    draft: &mut Draft,
) -> Rcode {
    let wants_signatures = draft.edns.as_ref().is_some_and(|edns| edns.dnssec_ok);
    // An answer that is cut to fit would need a signature of its own. A client that wants signatures asks over TCP instead.
    let room = if wants_signatures { usize::MAX } else { asked.room };
    let rcode = look_up(question, client, room, answers, draft);
    if !matches!(rcode, Rcode::NoError | Rcode::NxDomain) {
        return rcode;
    }
    let name = name_bytes(question);
    let mut signing = Signing {
        signer,
        zone: answers.zone().into(),
        reuse: if answers.is_own(&name) {
            Reuse::Likely
        } else {
            Reuse::Unlikely
        },
        name,
        now: asked.received.now,
        is_trusted: asked.is_trusted,
        is_over: false,
    };
    let denial_ttl_s = answers.negative_ttl_s();
    let denial = || signer::denial_of(answers, &signing.name, client);
    // The types that only the signer has.
    let own = match question.kind {
        Type::DNSKEY if signer::is_zone(answers, &signing.name) => Some((signer.keys(), signer::KEYS_TTL_S)),
        Type::NSEC => Some((vec![denial()], denial_ttl_s)),
        // As short as the answer to ANY (RFC 8482 §7).
        Type::RRSIG => {
            let denial = denial();
            Some((signing.of_name(denial_ttl_s, &[&denial]), denial_ttl_s))
        }
        _ => None,
    };
    if let Some((contents, ttl_s)) = own.filter(|_| rcode == Rcode::NoError) {
        draft.authorities.clear();
        let record = |data| record_of(&signing.zone, ttl_s, data);
        draft.answers = contents.into_iter().map(record).collect();
    }
    if wants_signatures && draft.answers.is_empty() {
        let denial = signer::denial_of(answers, &signing.name, client);
        draft.denials = vec![record_of(&signing.zone, denial_ttl_s, denial)];
    }
    if wants_signatures && !asked.is_cut {
        signing.add_to(draft);
    }
    if signing.is_over {
        draft.is_truncated = true;
        return Rcode::NoError;
    }
    if !wants_signatures {
        return rcode;
    }
    let knows_compact = draft.edns.as_ref().is_some_and(|edns| edns.compact_ok);
    match rcode {
        // A resolver that does not know compact denials would take NXDOMAIN with a proof of NODATA for forged.
        Rcode::NxDomain if !knows_compact => Rcode::NoError,
        rcode => rcode,
    }
}

fn record_of(name: &Arc<str>, ttl_s: u32, data: RecordData) -> Record {
    Record {
        name: name.clone(),
        ttl_s,
        data,
    }
}

/// The signatures of one reply.
struct Signing<'a> {
    signer: &'a Signer,
    zone: Arc<str>,
    /// The name in the question.
    name: Vec<u8>,
    /// Whether signatures of that name are worth keeping.
    reuse: Reuse,
    now: Moment,
    is_trusted: bool,
    /// Whether this reply needs a signature that strangers may not ask for any more in this second.
    is_over: bool,
}

impl Signing<'_> {
    /// Signatures of a set under the name in the question.
    fn of_name(&mut self, ttl_s: u32, records: &[&RecordData]) -> Vec<RecordData> {
        if self.reuse == Reuse::Unlikely && !self.is_trusted {
            self.is_over |= !self.signer.take_denial(self.now);
        }
        if self.is_over {
            return Vec::new();
        }
        self.signatures(&SetToSign::new(&self.name, ttl_s, records), records, self.reuse)
    }

    fn signatures(&self, set: &SetToSign, records: &[&RecordData], reuse: Reuse) -> Vec<RecordData> {
        let is_key_set = records.first().is_some_and(|first| first.kind() == Type::DNSKEY);
        self.signer.signatures(set, &self.zone, self.now, reuse, is_key_set)
    }

    /// Adds signatures to all sets of a draft.
    fn add_to(&mut self, draft: &mut Draft) {
        for section in [&mut draft.answers, &mut draft.denials] {
            // Records of the question's name have one type. Signatures themselves are not signed.
            let data: Vec<&RecordData> = section.iter().map(|record| &record.data).collect();
            let Some(first) = section.first().filter(|first| first.data.kind() != Type::RRSIG) else {
                continue;
            };
            let (name, ttl_s) = (first.name.clone(), first.ttl_s);
            let signatures = self.of_name(ttl_s, &data);
            section.extend(signatures.into_iter().map(|data| record_of(&name, ttl_s, data)));
        }
        for section in [&mut draft.authorities, &mut draft.additionals] {
            let mut signed = Vec::with_capacity(2 * section.len());
            for set in section.chunk_by(|a, b| a.name == b.name && a.data.kind() == b.data.kind()) {
                let Some(first) = set.first() else { continue };
                let data: Vec<&RecordData> = set.iter().map(|record| &record.data).collect();
                let set_to_sign = SetToSign::new(&steering::name_bytes(&first.name), first.ttl_s, &data);
                let signatures = self.signatures(&set_to_sign, &data, Reuse::Likely);
                signed.extend_from_slice(set);
                signed.extend(
                    signatures
                        .into_iter()
                        .map(|data| record_of(&first.name, first.ttl_s, data)),
                );
            }
            *section = signed;
        }
    }
}

/// The name of a question as bytes.
fn name_bytes(question: &Question<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in &question.name {
        // The parser took no label of more than 63 bytes.
        bytes.push(label.len() as u8);
        bytes.extend(*label);
    }
    bytes.push(0);
    bytes
}

/// The time as cookies have it.
pub(crate) fn seconds(now: Moment) -> u32 {
    (now.0 / 1000) as u32
}

/// Most bytes of a reply over UDP. `payload` is the limit that the client names, if it has EDNS. A client that did not show
/// a cookie may be the victim of a forger, so its replies are no weapon: they are at most `times` as long as the question.
pub(crate) fn datagram_bytes_max(payload: Option<u16>, question_bytes: usize, times: usize) -> usize {
    let named = payload.map_or(UDP_BYTES_PLAIN, |payload| payload.clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX));
    let most = times.saturating_mul(question_bytes + AROUND_BYTES) - AROUND_BYTES;
    usize::from(named).min(most)
}

/// Length of the OPT record of a reply, before an extended error is added.
fn edns_bytes(draft: &Draft) -> usize {
    let Some(edns) = &draft.edns else { return 0 };
    let nsid = edns.nsid.as_ref().map_or(0, |node| 4 + node.len());
    let cookie = edns.cookie.map_or(0, |_| cookie::REPLY_BYTES);
    let subnet = edns.subnet.map_or(0, |(subnet, _)| subnet.reply_bytes());
    OPT_BYTES + nsid + cookie + subnet
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
    draft.clear();
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
