//! Records as bytes (RFC 1035 §4.1). Everything here is written when answers are compiled; a reply copies it.
//!
//! The owner of a record is a pointer to the question, which stands behind the header of every message. So the owner has
//! upper and lower case as the client wrote it, and a wildcard's record has the name that was asked for.

use crate::{RecordData, Type};

/// A pointer to the name in the question.
const TO_QUESTION: [u8; 2] = [0xc0, HEADER_BYTES as u8];
/// Length of a message's header.
pub(crate) const HEADER_BYTES: usize = 12;
/// Place of the TTL in a record whose owner is a pointer.
pub const TTL_AT: usize = 6;
const CLASS_IN: [u8; 2] = [0, 1];

/// The bytes of a name: its labels with their lengths, in lower case.
pub fn name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 2);
    for label in text.split('.').filter(|label| !label.is_empty()) {
        debug_assert!(label.len() < 64, "labels were checked with the document");
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    bytes.push(0);
    bytes
}

/// A record owned by the name in the question. `zone` is the zone's name if it is the question: names in the record then
/// point to it.
pub(crate) fn record(out: &mut Vec<u8>, ttl_s: u32, data: &RecordData, zone: Option<&str>) {
    head(out, &TO_QUESTION, data.kind(), ttl_s);
    sized(out, |out| contents(out, data, zone));
}

pub(crate) fn head(out: &mut Vec<u8>, owner: &[u8], kind: Type, ttl_s: u32) {
    out.extend(owner);
    out.extend(kind.0.to_be_bytes());
    out.extend(CLASS_IN);
    out.extend(ttl_s.to_be_bytes());
}

/// A record of another name below the zone, while the zone is the question.
pub(crate) fn record_below(out: &mut Vec<u8>, owner: &str, ttl_s: u32, data: &RecordData, zone: &str) {
    let mut bytes = Vec::new();
    compressed(&mut bytes, owner, Some(zone));
    head(out, &bytes, data.kind(), ttl_s);
    sized(out, |out| contents(out, data, Some(zone)));
}

/// The contents of a record without pointers, as signatures cover them.
pub(crate) fn uncompressed(data: &RecordData) -> Vec<u8> {
    let mut bytes = Vec::new();
    contents(&mut bytes, data, None);
    bytes
}

/// Writes contents behind their length.
fn sized(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0, 0]);
    write(out);
    let length = (out.len() - at - 2) as u16;
    out[at..at + 2].copy_from_slice(&length.to_be_bytes());
}

/// A name whose end is a pointer to the question if that is the zone.
fn compressed(out: &mut Vec<u8>, text: &str, zone: Option<&str>) {
    let below = zone.and_then(|zone| text.strip_suffix(zone));
    match below {
        Some(below) if below.is_empty() || below.ends_with('.') => {
            let labels = name(below);
            out.extend(&labels[..labels.len() - 1]);
            out.extend(TO_QUESTION);
        }
        _ => out.extend(name(text)),
    }
}

/// A record without names that could be shortened, owned by the name in the question, with a TTL that the reply sets.
pub fn opaque_record(kind: Type, contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12 + contents.len());
    head(&mut bytes, &TO_QUESTION, kind, 0);
    sized(&mut bytes, |out| out.extend(contents));
    bytes
}

fn contents(out: &mut Vec<u8>, data: &RecordData, zone: Option<&str>) {
    match data {
        RecordData::A(address) => out.extend(address.octets()),
        RecordData::Aaaa(address) => out.extend(address.octets()),
        RecordData::Ns(server) => compressed(out, server, zone),
        RecordData::Soa(soa) => {
            compressed(out, &soa.mname, zone);
            compressed(out, &soa.rname, zone);
            for number in [soa.serial, soa.refresh_s, soa.retry_s, soa.expire_s, soa.minimum_s] {
                out.extend(number.to_be_bytes());
            }
        }
        RecordData::Hinfo => out.extend(b"\x07RFC8482\0"),
        RecordData::Txt(pieces) => pieces.iter().for_each(|piece| text(out, piece)),
        RecordData::Caa(caa) => {
            out.push(caa.flags);
            text(out, caa.tag.as_bytes());
            out.extend(&*caa.value);
        }
        RecordData::Opaque(_, bytes) => out.extend(&**bytes),
        RecordData::Https(binding) | RecordData::Svcb(binding) => {
            out.extend(binding.priority.to_be_bytes());
            // Never compressed (RFC 9460 §2.2).
            out.extend(name(&binding.target));
            parameter(out, 1, |out| {
                binding.alpn.iter().for_each(|id| text(out, id.as_bytes()));
            });
            parameter(out, 3, |out| out.extend(binding.port.to_be_bytes()));
            if !binding.v4.is_empty() {
                parameter(out, 4, |out| {
                    binding.v4.iter().for_each(|hint| out.extend(hint.octets()));
                });
            }
            if !binding.v6.is_empty() {
                parameter(out, 6, |out| {
                    binding.v6.iter().for_each(|hint| out.extend(hint.octets()));
                });
            }
        }
    }
}

/// A text behind its length; longer ones were refused with their document.
fn text(out: &mut Vec<u8>, text: &[u8]) {
    let text = &text[..text.len().min(255)];
    out.push(text.len() as u8);
    out.extend(text);
}

fn parameter(out: &mut Vec<u8>, key: u16, value: impl FnOnce(&mut Vec<u8>)) {
    out.extend(key.to_be_bytes());
    sized(out, value);
}

/// The SOA of negative answers, for any question in the zone: all names in it point to the zone's part of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Negative {
    bytes: Box<[u8]>,
    /// Places of the pointers to the zone.
    pointers: [usize; 3],
}

impl Negative {
    pub(crate) fn new(ttl_s: u32, soa: &crate::Soa, zone: &str) -> Self {
        let mut bytes = Vec::new();
        let data = RecordData::Soa(soa.clone());
        record(&mut bytes, ttl_s, &data, Some(zone));
        let mname_at = 12;
        let before = |name: &str| name.len().saturating_sub(zone.len());
        // A label and its length take as many bytes as a label and its dot.
        let first = mname_at + before(&soa.mname);
        let second = first + 2 + before(&soa.rname);
        let pointers = [0, first, second];
        debug_assert!(
            pointers.iter().all(|at| bytes[*at..*at + 2] == TO_QUESTION),
            "names end with the zone"
        );
        Self {
            bytes: bytes.into(),
            pointers,
        }
    }

    /// Writes the record for a question in which the zone's name begins at `zone_at` of the message. Returns its length.
    pub(crate) fn write(&self, zone_at: usize, out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..self.bytes.len())?;
        out.copy_from_slice(&self.bytes);
        let pointer = (0xc000 | zone_at as u16).to_be_bytes();
        for at in self.pointers {
            out[at..at + 2].copy_from_slice(&pointer);
        }
        Some(self.bytes.len())
    }
}
