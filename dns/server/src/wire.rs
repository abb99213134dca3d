//! Parses a query, as far as it is readable (RFC 1035 §4).
//!
//! hickory reads a whole message or nothing. An error reply must still carry the question and the OPT record, or a
//! resolver concludes that the server has no EDNS (RFC 6891 §7). So this parser keeps the parts that it read before the
//! message went wrong. hickory writes the replies (`draft.rs`).
//!
//! Why it is so: docs/decisions/02-dns-reads-queries-itself.md.

use steering::Type;

use crate::{
    cookie,
    ecs::{self, Ecs},
};

/// Longest name in bytes, including the lengths of its labels and its end (RFC 1035 §3.1).
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;
/// Length of the header of every message (RFC 1035 §4.1.1).
pub(crate) const HEADER_BYTES: usize = 12;

/// Classes (RFC 1035 §3.2.4).
pub(crate) mod class {
    pub(crate) const IN: u16 = 1;
    pub(crate) const ANY: u16 = 255;
}

/// EDNS options that this server answers. It skips all others (RFC 6891 §6.1.2).
pub(crate) mod option {
    pub(crate) const NSID: u16 = 3;
    /// Extended errors (RFC 8914), in replies only.
    pub(crate) const ERROR: u16 = 15;
}

/// A query, as far as it was readable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query<'a> {
    pub(crate) id: u16,
    pub(crate) opcode: u8,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    /// The number of questions in the header.
    pub(crate) questions: u16,
    /// The first question.
    pub(crate) question: Option<Question<'a>>,
    pub(crate) edns: Option<Edns<'a>>,
    pub(crate) tsig: Option<Tsig<'a>>,
    /// Bytes of the questions, if they were readable.
    pub(crate) questions_bytes: usize,
    /// Whether the whole message is well formed. If not, the other fields hold the parts before the first error.
    pub(crate) is_well_formed: bool,
}

/// The question of a query, as the client wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    /// The labels of the name, from the left.
    pub(crate) name: Vec<&'a [u8]>,
    pub(crate) kind: Type,
    pub(crate) class: u16,
}

/// An OPT record (RFC 6891 §6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edns<'a> {
    /// Largest datagram that the client accepts, in bytes.
    pub(crate) payload: u16,
    pub(crate) version: u8,
    pub(crate) dnssec_ok: bool,
    /// Whether the client knows compact denials, so that it may hear NXDOMAIN with one (RFC 9824 §5.1).
    pub(crate) compact_ok: bool,
    /// Whether the client asks for the name of the server (RFC 5001).
    pub(crate) nsid: bool,
    /// The client's half of a cookie, and the server's half if the client has one (RFC 7873 §4).
    pub(crate) cookie: Option<&'a [u8]>,
    /// The network of the resolver's own client.
    pub(crate) subnet: Option<Ecs>,
}

/// The parts of a TSIG record (RFC 8945 §4.2) that the reply repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tsig<'a> {
    /// The labels of the key's name, from the left.
    pub(crate) key: Vec<&'a [u8]>,
    /// The labels of the algorithm's name, from the left.
    pub(crate) algorithm: Vec<&'a [u8]>,
    /// Seconds since 1970, 48 bits.
    pub(crate) time: u64,
    /// Permitted difference from `time`, in seconds.
    pub(crate) fudge: u16,
    pub(crate) original_id: u16,
}

impl<'a> Query<'a> {
    /// Reads a message. `None` when it must not be answered: it is too short for a header, or is an answer itself,
    /// which two servers could send to each other for ever.
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

    /// `None` at the first error. The sender chooses the counts, so no memory is reserved by them, and the end of the
    /// message ends each loop.
    fn read_sections(&mut self, reader: &mut Reader<'a>, counts: [u16; 4]) -> Option<()> {
        let [questions, answers, authorities, additionals] = counts;
        for _ in 0..questions {
            let question = reader.question()?;
            self.question.get_or_insert(question);
        }
        self.questions_bytes = reader.at - HEADER_BYTES;
        for _ in 0..u32::from(answers) + u32::from(authorities) {
            let record = reader.record()?;
            // OPT and TSIG belong to the additional section only.
            if matches!(record.kind, Type::OPT | Type::TSIG) {
                return None;
            }
        }
        for _ in 0..additionals {
            let record = reader.record()?;
            // TSIG is the last record (RFC 8945 §5.1), and OPT occurs once (RFC 6891 §6.1.1).
            if self.tsig.is_some() {
                return None;
            }
            match record.kind {
                Type::OPT if self.edns.is_some() => return None,
                Type::OPT => self.read_edns(&record)?,
                Type::TSIG => self.tsig = Some(Tsig::read(&record)?),
                _ => {}
            }
        }
        (reader.at == reader.message.len()).then_some(())
    }

    fn read_edns(&mut self, record: &RawRecord<'a>) -> Option<()> {
        let [_, version, flags, _] = record.ttl.to_be_bytes();
        // Kept even if its options are broken: the sender understands EDNS.
        let edns = self.edns.insert(Edns {
            payload: record.class,
            version,
            dnssec_ok: flags & 0x80 != 0,
            compact_ok: flags & 0x40 != 0,
            nsid: false,
            cookie: None,
            subnet: None,
        });
        if record.owner != [0] {
            return None;
        }
        // The format of options in other versions is unknown.
        if version != 0 {
            return Some(());
        }
        let mut options = Reader {
            message: record.data,
            at: 0,
        };
        let mut shown = None;
        while options.at < options.message.len() {
            let (code, length) = (options.u16()?, options.u16()?);
            let data = options.bytes(length.into())?;
            match code {
                option::NSID => edns.nsid = true,
                // The first one counts (RFC 7873 §5.2).
                cookie::CODE => shown = shown.or(Some(data)),
                // Two networks would have two answers.
                ecs::CODE if edns.subnet.is_some() => return None,
                ecs::CODE => edns.subnet = Some(Ecs::read(data)?),
                _ => {}
            }
        }
        if let Some(shown) = shown {
            // The client's half alone, or with a server's half of 8 to 32 bytes (RFC 7873 §5.2.2).
            if !matches!(shown.len(), 8 | 16..=40) {
                return None;
            }
            edns.cookie = Some(shown);
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
        let time = u64::from(reader.u16()?) << 32 | u64::from(reader.u32()?);
        let fudge = reader.u16()?;
        let mac_bytes = reader.u16()?;
        reader.bytes(mac_bytes.into())?;
        let (original_id, _error, other_bytes) = (reader.u16()?, reader.u16()?, reader.u16()?);
        reader.bytes(other_bytes.into())?;
        let is_whole = reader.at == record.data.len() && is_plain_name(algorithm);
        is_whole.then_some(Self {
            key: labels(record.owner),
            algorithm: labels(algorithm),
            time,
            fudge,
            original_id,
        })
    }
}

/// A record of any type, with uninterpreted contents.
struct RawRecord<'a> {
    owner: &'a [u8],
    kind: Type,
    class: u16,
    ttl: u32,
    data: &'a [u8],
}

/// Reads a message from the front. Every step returns `None` past the end.
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

    /// Skips a name and returns its bytes. Pointers (RFC 1035 §4.1.4) are not followed: no name that is needed here may
    /// contain one.
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
                // Reserved label types.
                64..=0xbf => return None,
            }
        }
        let name = &self.message[start..self.at];
        (name.len() <= NAME_BYTES_MAX).then_some(name)
    }

    fn question(&mut self) -> Option<Question<'a>> {
        let name = self.name()?;
        let (kind, class) = (Type(self.u16()?), self.u16()?);
        // Only the header comes before the first name, so no pointer there can lead to a name.
        is_plain_name(name).then(|| Question {
            name: labels(name),
            kind,
            class,
        })
    }

    fn record(&mut self) -> Option<RawRecord<'a>> {
        let owner = self.name()?;
        let (kind, class, ttl) = (Type(self.u16()?), self.u16()?, self.u32()?);
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

/// Whether a skipped name ends with its own zero byte and not with a pointer.
fn is_plain_name(name: &[u8]) -> bool {
    // The second byte of a pointer may be zero, so the last byte alone does not decide.
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
