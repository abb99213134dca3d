//! The format of DNS messages (RFC 1035 §4): what can be read of a question, and how a reply is written.
//!
//! Our own, because a library that reads all or nothing cannot answer what it cannot read: an error must still carry the
//! question and the OPT record, or a resolver takes it for "no EDNS here" (RFC 6891 §7). The tests hold hickory against it.

use std::sync::Arc;

use steering::{Record, RecordData};

/// Length of a message's header (RFC 1035 §4.1.1).
pub(crate) const HEADER_BYTES: usize = 12;
/// Longest name, with the lengths of its labels and its end (RFC 1035 §3.1).
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;

/// Types (RFC 1035 §3.2.2) that this server treats in a way of their own.
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const HINFO: u16 = 13;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const TSIG: u16 = 250;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// Classes.
pub(crate) mod class {
    pub(crate) const IN: u16 = 1;
    pub(crate) const ANY: u16 = 255;
}

/// EDNS options that are answered; all others are skipped (RFC 6891 §6.1.2).
mod option {
    pub(super) const NSID: u16 = 3;
    pub(super) const COOKIE: u16 = 10;
}

/// Error of a TSIG record whose key nobody here knows (RFC 8945 §3).
const BADKEY: u16 = 17;

/// What a message asks, as far as it could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query<'a> {
    pub(crate) id: u16,
    pub(crate) opcode: u8,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    /// How many questions the header announces.
    pub(crate) questions: u16,
    /// The first one.
    pub(crate) question: Option<Question<'a>>,
    pub(crate) edns: Option<Edns<'a>>,
    pub(crate) tsig: Option<Tsig<'a>>,
    /// Whether the message ends where and as it should. What is above was read before it went wrong.
    pub(crate) is_well_formed: bool,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    /// As it was written: name, type, class.
    pub(crate) bytes: &'a [u8],
    /// The labels of its name, from the left.
    pub(crate) name: Vec<&'a [u8]>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
}

/// An OPT record (RFC 6891 §6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edns<'a> {
    /// Largest datagram that the client takes.
    pub(crate) payload: u16,
    pub(crate) version: u8,
    pub(crate) dnssec_ok: bool,
    /// Whether it asks for the server's name (RFC 5001).
    pub(crate) nsid: bool,
    /// The client's half of a cookie (RFC 7873 §4.1).
    pub(crate) cookie: Option<&'a [u8; 8]>,
}

/// A TSIG record (RFC 8945 §4.2): what its answer repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tsig<'a> {
    key: &'a [u8],
    algorithm: &'a [u8],
    time_and_fudge: &'a [u8],
    original_id: u16,
}

impl<'a> Query<'a> {
    /// Reads a message. `None` when it deserves no answer: it is too short to have a header, or an answer itself, which two
    /// servers could throw at each other for ever.
    pub(crate) fn read(message: &'a [u8]) -> Option<Self> {
        let mut reader = Reader { message, at: 0 };
        let (id, flags) = (reader.u16()?, reader.u16()?);
        let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        if flags & 0x8000 != 0 {
            return None;
        }
        let mut query = Self {
            id,
            opcode: (flags >> 11 & 0xf) as u8,
            recursion_desired: flags & 0x0100 != 0,
            checking_disabled: flags & 0x0010 != 0,
            questions: counts[0],
            ..Self::default()
        };
        query.is_well_formed = query.read_sections(&mut reader, counts).is_some();
        Some(query)
    }

    /// `None` at the first thing that is wrong. The counts are the sender's word: what they announce takes no room before it
    /// is there, and the end of the message ends each loop.
    fn read_sections(&mut self, reader: &mut Reader<'a>, counts: [u16; 4]) -> Option<()> {
        let [questions, answers, authorities, additionals] = counts;
        for _ in 0..questions {
            let question = reader.question()?;
            self.question.get_or_insert(question);
        }
        for _ in 0..u32::from(answers) + u32::from(authorities) {
            let record = reader.record()?;
            // Both belong to the additional section only.
            if matches!(record.kind, kind::OPT | kind::TSIG) {
                return None;
            }
        }
        for _ in 0..additionals {
            let record = reader.record()?;
            // TSIG is the last record (RFC 8945 §5.1), and OPT is there once (RFC 6891 §6.1.1).
            if self.tsig.is_some() {
                return None;
            }
            match record.kind {
                kind::OPT if self.edns.is_some() => return None,
                kind::OPT => self.read_edns(&record)?,
                kind::TSIG => self.tsig = Some(Tsig::read(&record)?),
                _ => {}
            }
        }
        (reader.at == reader.message.len()).then_some(())
    }

    fn read_edns(&mut self, record: &RawRecord<'a>) -> Option<()> {
        let [_, version, flags, _] = record.ttl.to_be_bytes();
        // Kept also when its options are broken: whoever sent it understands EDNS.
        let edns = self.edns.insert(Edns {
            payload: record.class,
            version,
            dnssec_ok: flags & 0x80 != 0,
            nsid: false,
            cookie: None,
        });
        if record.owner != [0] {
            return None;
        }
        // Nobody knows how options of another version look.
        if version != 0 {
            return Some(());
        }
        let mut options = Reader {
            message: record.data,
            at: 0,
        };
        let mut cookie = None;
        while options.at < options.message.len() {
            let (code, length) = (options.u16()?, options.u16()?);
            let data = options.bytes(length.into())?;
            match code {
                option::NSID => edns.nsid = true,
                // The first one counts (RFC 7873 §5.2).
                option::COOKIE => cookie = cookie.or(Some(data)),
                _ => {}
            }
        }
        if let Some(cookie) = cookie {
            // The client's half alone, or with a server's half of 8 to 32 bytes (RFC 7873 §5.2.2).
            if !matches!(cookie.len(), 8 | 16..=40) {
                return None;
            }
            edns.cookie = cookie.first_chunk();
        }
        Some(())
    }
}

impl<'a> Tsig<'a> {
    fn read(record: &RawRecord<'a>) -> Option<Self> {
        if record.class != class::ANY || record.ttl != 0 || !is_plain_name(record.owner) {
            return None;
        }
        let mut reader = Reader {
            message: record.data,
            at: 0,
        };
        let algorithm = reader.name()?;
        let time_and_fudge = reader.bytes(8)?;
        let mac_bytes = reader.u16()?;
        reader.bytes(mac_bytes.into())?;
        let (original_id, _error, other_bytes) = (reader.u16()?, reader.u16()?, reader.u16()?);
        reader.bytes(other_bytes.into())?;
        let is_whole = reader.at == record.data.len() && is_plain_name(algorithm);
        is_whole.then_some(Self {
            key: record.owner,
            algorithm,
            time_and_fudge,
            original_id,
        })
    }
}

/// A record of any type.
struct RawRecord<'a> {
    owner: &'a [u8],
    kind: u16,
    class: u16,
    ttl: u32,
    data: &'a [u8],
}

/// Takes a message apart from the front. Every step is `None` past the end.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.message.get(self.at..)?.get(..count)?;
        self.at += count;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(*self.bytes(2)?.first_chunk()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.bytes(4)?.first_chunk()?))
    }

    /// Steps over a name and returns its bytes. Pointers (RFC 1035 §4.1.4) are not followed: no name that is needed here
    /// may have one.
    fn name(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        loop {
            let length = self.u8()?;
            match length {
                0 => break,
                1..=63 => drop(self.bytes(length.into())?),
                0xc0..=0xff => {
                    self.u8()?;
                    break;
                }
                // Reserved.
                64..=0xbf => return None,
            }
        }
        let name = &self.message[start..self.at];
        (name.len() <= NAME_BYTES_MAX).then_some(name)
    }

    fn question(&mut self) -> Option<Question<'a>> {
        let start = self.at;
        let name = self.name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        // Before the first name there is only the header, so a pointer leads to none.
        is_plain_name(name).then(|| Question {
            bytes: &self.message[start..self.at],
            name: labels(name),
            kind,
            class,
        })
    }

    fn record(&mut self) -> Option<RawRecord<'a>> {
        let owner = self.name()?;
        let (kind, class, ttl) = (self.u16()?, self.u16()?, self.u32()?);
        let length = self.u16()?;
        let data = self.bytes(length.into())?;
        Some(RawRecord {
            owner,
            kind,
            class,
            ttl,
            data,
        })
    }
}

/// Whether a name that was stepped over ends by itself and not with a pointer.
fn is_plain_name(name: &[u8]) -> bool {
    // The second to last byte of a pointer is no length, so the end alone does not tell.
    let mut rest = name;
    while let Some((&length, after)) = rest.split_first() {
        if length == 0 {
            return after.is_empty();
        }
        match after.get(length.into()..) {
            Some(next) if usize::from(length) <= LABEL_BYTES_MAX => rest = next,
            _ => return false,
        }
    }
    false
}

fn labels(name: &[u8]) -> Vec<&[u8]> {
    let mut labels = Vec::new();
    let mut rest = name;
    while let Some((&length, after)) = rest.split_first() {
        let Some((label, next)) = after.split_at_checked(length.into()).filter(|_| length > 0) else {
            break;
        };
        labels.push(label);
        rest = next;
    }
    labels
}

/// What a reply says. It repeats of the query what a reply repeats.
#[derive(Debug, Clone, Default)]
pub(crate) struct Draft {
    pub(crate) code: u16,
    pub(crate) is_authoritative: bool,
    pub(crate) is_truncated: bool,
    /// Of the name that was asked for, whatever their owner.
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    pub(crate) edns: Option<ReplyEdns>,
    /// Whether to say that the key of the query's TSIG record is unknown (RFC 8945 §5.2.1).
    pub(crate) is_bad_key: bool,
}

/// The OPT record of a reply.
#[derive(Debug, Clone)]
pub(crate) struct ReplyEdns {
    pub(crate) payload: u16,
    pub(crate) dnssec_ok: bool,
    pub(crate) nsid: Option<Arc<[u8]>>,
    /// Both halves.
    pub(crate) cookie: Option<Vec<u8>>,
}

impl Draft {
    /// The message. `None` when a name cannot be written, which no topology has.
    pub(crate) fn write(&self, query: &Query<'_>, zone: &str) -> Option<Vec<u8>> {
        let mut writer = Writer {
            bytes: Vec::with_capacity(512),
            zone,
            zone_at: zone_in(query.question.as_ref(), zone),
        };
        let flag = |bit: u16, is_set: bool| if is_set { bit } else { 0 };
        let flags = 0x8000
            | u16::from(query.opcode) << 11
            | flag(0x0400, self.is_authoritative)
            | flag(0x0200, self.is_truncated)
            | flag(0x0100, query.recursion_desired)
            | flag(0x0010, query.checking_disabled)
            | self.code & 0xf;
        let tsig = query.tsig.as_ref().filter(|_| self.is_bad_key);
        let extra = usize::from(self.edns.is_some()) + usize::from(tsig.is_some());
        for field in [query.id, flags, u16::from(query.question.is_some())] {
            writer.u16(field);
        }
        for count in [
            self.answers.len(),
            self.authorities.len(),
            self.additionals.len() + extra,
        ] {
            writer.u16(u16::try_from(count).ok()?);
        }
        if let Some(question) = &query.question {
            writer.bytes.extend(question.bytes);
        }
        for record in &self.answers {
            // The name that was asked for, in the asker's own letters.
            writer.pointer(HEADER_BYTES);
            writer.record(record)?;
        }
        for record in self.authorities.iter().chain(&self.additionals) {
            writer.name(&record.name)?;
            writer.record(record)?;
        }
        if let Some(edns) = &self.edns {
            writer.edns(edns, (self.code >> 4) as u8)?;
        }
        if let Some(tsig) = tsig {
            writer.bad_key(tsig)?;
        }
        Some(writer.bytes)
    }
}

/// Where the zone's name begins in a message with this question, when the question is about the zone.
fn zone_in(question: Option<&Question<'_>>, zone: &str) -> Option<usize> {
    let question = question?;
    let ours = zone.split('.').count();
    let below = question.name.len().checked_sub(ours)?;
    let is_ours = (question.name[below..].iter())
        .zip(zone.split('.'))
        .all(|(asked, label)| asked.eq_ignore_ascii_case(label.as_bytes()));
    let before: usize = question.name[..below].iter().map(|label| label.len() + 1).sum();
    is_ours.then_some(HEADER_BYTES + before)
}

struct Writer<'a> {
    bytes: Vec<u8>,
    zone: &'a str,
    zone_at: Option<usize>,
}

impl Writer<'_> {
    fn u16(&mut self, value: u16) {
        self.bytes.extend(value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_be_bytes());
    }

    /// "Go on reading at `offset`", which lies in the question and so within 14 bits.
    fn pointer(&mut self, offset: usize) {
        self.u16(0xc000 | offset as u16);
    }

    /// A name; the zone in it is a pointer to the question.
    fn name(&mut self, name: &str) -> Option<()> {
        let (mut rest, zone_at) = match (name.strip_suffix(self.zone), self.zone_at) {
            (Some(below), Some(zone_at)) if below.is_empty() || below.ends_with('.') => (below, Some(zone_at)),
            _ => (name, None),
        };
        while !rest.is_empty() {
            let (label, after) = rest.split_once('.').unwrap_or((rest, ""));
            if !(1..=LABEL_BYTES_MAX).contains(&label.len()) {
                return None;
            }
            self.bytes.push(label.len() as u8);
            self.bytes.extend(label.as_bytes());
            rest = after;
        }
        match zone_at {
            Some(zone_at) => self.pointer(zone_at),
            None => self.bytes.push(0),
        }
        Some(())
    }

    /// Everything of a record but its owner.
    fn record(&mut self, record: &Record) -> Option<()> {
        self.u16(match record.data {
            RecordData::A(_) => kind::A,
            RecordData::Aaaa(_) => kind::AAAA,
            RecordData::Ns(_) => kind::NS,
            RecordData::Soa(_) => kind::SOA,
            RecordData::Hinfo => kind::HINFO,
        });
        self.u16(class::IN);
        self.u32(record.ttl_s);
        self.with_length(|writer| match &record.data {
            RecordData::A(address) => {
                writer.bytes.extend(address.octets());
                Some(())
            }
            RecordData::Aaaa(address) => {
                writer.bytes.extend(address.octets());
                Some(())
            }
            RecordData::Ns(server) => writer.name(server),
            RecordData::Soa(soa) => {
                writer.name(&soa.mname)?;
                writer.name(&soa.rname)?;
                for number in [soa.serial, soa.refresh_s, soa.retry_s, soa.expire_s, soa.minimum_s] {
                    writer.u32(number);
                }
                Some(())
            }
            RecordData::Hinfo => {
                writer.bytes.extend(b"\x07RFC8482\0");
                Some(())
            }
        })
    }

    fn edns(&mut self, edns: &ReplyEdns, code_high: u8) -> Option<()> {
        self.bytes.push(0);
        self.u16(kind::OPT);
        self.u16(edns.payload);
        self.bytes
            .extend([code_high, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0]);
        self.with_length(|writer| {
            let options = [
                (option::NSID, edns.nsid.as_deref()),
                (option::COOKIE, edns.cookie.as_deref()),
            ];
            for (code, data) in options {
                if let Some(data) = data {
                    writer.u16(code);
                    writer.u16(u16::try_from(data.len()).ok()?);
                    writer.bytes.extend(data);
                }
            }
            Some(())
        })
    }

    fn bad_key(&mut self, tsig: &Tsig<'_>) -> Option<()> {
        self.bytes.extend(tsig.key);
        self.u16(kind::TSIG);
        self.u16(class::ANY);
        self.u32(0);
        self.with_length(|writer| {
            writer.bytes.extend(tsig.algorithm);
            writer.bytes.extend(tsig.time_and_fudge);
            let (mac_bytes, other_bytes) = (0, 0);
            for field in [mac_bytes, tsig.original_id, BADKEY, other_bytes] {
                writer.u16(field);
            }
            Some(())
        })
    }

    /// Writes data with its length before it.
    fn with_length(&mut self, write: impl FnOnce(&mut Self) -> Option<()>) -> Option<()> {
        let at = self.bytes.len();
        self.u16(0);
        write(self)?;
        let length = u16::try_from(self.bytes.len() - at - 2).ok()?;
        self.bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        Some(())
    }
}
