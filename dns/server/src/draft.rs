//! The contents of a reply, which hickory writes.

use std::sync::Arc;

use hickory_proto::{
    ProtoError,
    op::{self, Message, OpCode, ResponseCode},
    rr::{
        self, DNSClass, Name, RData, RecordType,
        rdata::{
            A, AAAA, HINFO, HTTPS, NS, NULL, SOA, SVCB, TSIG, TXT,
            opt::{EdnsOption, NSIDPayload},
            svcb::{Alpn, IpHint, SvcParamKey, SvcParamValue},
            tsig::{TsigAlgorithm, TsigError},
        },
    },
    serialize::binary::{BinEncodable as _, BinEncoder},
};
use steering::{Binding, Record, RecordData, Type};

use crate::{
    cookie,
    ecs::{self, Ecs},
    wire::{Query, Tsig, option},
};

/// The flag of EDNS for compact denials (RFC 9824 §5.1).
const COMPACT_OK: u16 = 0x4000;

/// The contents of a reply. [`Draft::write`] copies the repeated parts from the query.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) code: ResponseCode,
    pub(crate) is_authoritative: bool,
    pub(crate) is_truncated: bool,
    /// Written under the name in the question, also for a record of another owner.
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    /// Denials for the authority section, written under the name in the question.
    pub(crate) denials: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    pub(crate) edns: Option<ReplyEdns>,
    /// Whether to report that the key of the query's TSIG record is unknown (RFC 8945 §5.2.1).
    pub(crate) is_bad_key: bool,
}

/// The OPT record of a reply.
#[derive(Debug, Clone)]
pub(crate) struct ReplyEdns {
    pub(crate) payload: u16,
    pub(crate) dnssec_ok: bool,
    /// As in [`crate::wire::Edns`], if this server knows them too.
    pub(crate) compact_ok: bool,
    pub(crate) nsid: Option<Arc<[u8]>>,
    pub(crate) cookie: Option<cookie::Given>,
    /// The network of the query, and the length of the network for which the answer holds.
    pub(crate) subnet: Option<(Ecs, u8)>,
    /// The code of an extended error (RFC 8914 §4).
    pub(crate) error: Option<u16>,
}

impl Draft {
    pub(crate) fn new(edns: Option<ReplyEdns>) -> Self {
        Self {
            code: ResponseCode::NoError,
            is_authoritative: false,
            is_truncated: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            denials: Vec::new(),
            additionals: Vec::new(),
            edns,
            is_bad_key: false,
        }
    }

    /// Leaves out all records.
    pub(crate) fn clear(&mut self) {
        self.answers.clear();
        self.authorities.clear();
        self.denials.clear();
        self.additionals.clear();
    }

    /// Adds an extended error, if the client has EDNS.
    pub(crate) fn tell(&mut self, error: u16) {
        if let Some(edns) = &mut self.edns {
            edns.error = Some(error);
        }
    }

    /// The bytes of the message. Fails on an invalid name, which no topology contains.
    pub(crate) fn write(&self, query: &Query<'_>) -> Result<Vec<u8>, ProtoError> {
        let mut message = Message::response(query.id, OpCode::from_u8(query.opcode));
        message.metadata.authoritative = self.is_authoritative;
        message.metadata.truncation = self.is_truncated;
        message.metadata.recursion_desired = query.recursion_desired;
        message.metadata.checking_disabled = query.checking_disabled;
        message.metadata.response_code = self.code;
        if let Some(question) = &query.question {
            // The question and the owners of the answers use upper and lower case as the client did.
            let name = Name::from_labels(question.name.iter().copied())?;
            for record in &self.answers {
                message
                    .answers
                    .push(rr::Record::from_rdata(name.clone(), record.ttl_s, data(record)?));
            }
            for record in &self.denials {
                message
                    .authorities
                    .push(rr::Record::from_rdata(name.clone(), record.ttl_s, data(record)?));
            }
            let mut asked = op::Query::query(name, RecordType::from(question.kind.0));
            asked.set_query_class(DNSClass::from(question.class));
            message.add_query(asked);
        }
        let authorities = self.authorities.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        message.authorities.splice(0..0, authorities);
        message.additionals = self.additionals.iter().map(record).collect::<Result<_, _>>()?;
        if let Some(edns) = &self.edns {
            message.set_edns(edns.write());
        }
        if let Some(tsig) = query.tsig.as_ref().filter(|_| self.is_bad_key) {
            message.signature = Some(Box::new(bad_key(tsig)?));
        }
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::MAX);
        message.emit(&mut encoder)?;
        Ok(bytes)
    }
}

impl ReplyEdns {
    fn write(&self) -> op::Edns {
        let mut edns = op::Edns::new();
        edns.set_max_payload(self.payload)
            .set_version(0)
            .set_dnssec_ok(self.dnssec_ok);
        if self.compact_ok {
            edns.flags_mut().z |= COMPACT_OK;
        }
        // An id has at most 63 bytes, so it always fits.
        if let Some(node) = self.nsid.as_deref().and_then(|node| NSIDPayload::new(node).ok()) {
            edns.options_mut().insert(EdnsOption::NSID(node));
        }
        let mut put = |code, contents| edns.options_mut().insert(EdnsOption::Unknown(code, contents));
        if let Some(given) = &self.cookie {
            put(cookie::CODE, given.cookie.to_vec());
        }
        if let Some((subnet, scope)) = &self.subnet {
            put(ecs::CODE, subnet.contents(*scope));
        }
        if let Some(error) = self.error {
            put(option::ERROR, error.to_be_bytes().to_vec());
        }
        edns
    }
}

fn bad_key(tsig: &Tsig<'_>) -> Result<rr::Record<TSIG>, ProtoError> {
    let algorithm = TsigAlgorithm::Unknown(Name::from_labels(tsig.algorithm.iter().copied())?);
    let (mac, error, other) = (Vec::new(), Some(TsigError::BadKey), Vec::new());
    let data = TSIG::new(algorithm, tsig.time, tsig.fudge, mac, tsig.original_id, error, other);
    let mut record = rr::Record::from_rdata(Name::from_labels(tsig.key.iter().copied())?, 0, data);
    record.dns_class = DNSClass::ANY;
    Ok(record)
}

fn record(record: &Record) -> Result<rr::Record, ProtoError> {
    Ok(rr::Record::from_rdata(name(&record.name)?, record.ttl_s, data(record)?))
}

fn data(record: &Record) -> Result<RData, ProtoError> {
    Ok(match &record.data {
        RecordData::A(address) => RData::A(A(*address)),
        RecordData::Aaaa(address) => RData::AAAA(AAAA(*address)),
        RecordData::Ns(server) => RData::NS(NS(name(server)?)),
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
        RecordData::Txt(pieces) => RData::TXT(TXT::from_bytes(pieces.iter().map(|piece| &**piece).collect())),
        // hickory writes only the CAA records that it can interpret.
        RecordData::Caa(caa) => {
            let tag = caa.tag.as_bytes();
            let contents = [&[caa.flags, tag.len() as u8], tag, &*caa.value].concat();
            RData::Unknown {
                code: RecordType::from(Type::CAA.0),
                rdata: NULL::with(contents),
            }
        }
        RecordData::Opaque(kind, contents) => RData::Unknown {
            code: RecordType::from(kind.0),
            rdata: NULL::with(contents.to_vec()),
        },
        RecordData::Https(it) => RData::HTTPS(HTTPS(binding(it)?)),
        RecordData::Svcb(it) => RData::SVCB(binding(it)?),
    })
}

fn binding(binding: &Binding) -> Result<SVCB, ProtoError> {
    let alpn = Alpn(binding.alpn.iter().map(ToString::to_string).collect());
    let mut parameters = vec![
        (SvcParamKey::Alpn, SvcParamValue::Alpn(alpn)),
        (SvcParamKey::Port, SvcParamValue::Port(binding.port)),
    ];
    if !binding.v4.is_empty() {
        let hints = IpHint(binding.v4.iter().copied().map(A).collect());
        parameters.push((SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(hints)));
    }
    if !binding.v6.is_empty() {
        let hints = IpHint(binding.v6.iter().copied().map(AAAA).collect());
        parameters.push((SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(hints)));
    }
    Ok(SVCB::new(binding.priority, name(&binding.target)?, parameters))
}

fn name(text: &str) -> Result<Name, ProtoError> {
    let mut name = Name::from_ascii(text)?;
    name.set_fqdn(true);
    Ok(name)
}

fn seconds(seconds: u32) -> i32 {
    i32::try_from(seconds).unwrap_or(i32::MAX)
}
