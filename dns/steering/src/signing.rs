//! The bytes that signatures of DNSSEC cover (RFC 4034 §3.1.8.1), and the records that deny what does not exist. Keys and
//! signatures belong to the responder.
//!
//! Names that do not exist are denied compactly (RFC 9824): one NSEC record says that the name is there and has nothing. It tells
//! nobody the other names of the zone.

use crate::{RecordData, Type, ttl::STEADY_MAX_S, wire};

/// ECDSA on P-256 with SHA-256 (RFC 6605).
pub const ALGORITHM: u8 = 13;
/// SHA-256 as the hash of a DS record (RFC 4509).
pub const DS_HASH: u8 = 2;
/// Zone key and secure entry point: one key signs all sets, and the parent's DS record names it.
const KEY_FLAGS: u16 = 257;
/// The only value (RFC 4034 §2.1.2).
const KEY_PROTOCOL: u8 = 3;
/// Longest name, in bytes on the wire (RFC 1035 §3.1).
const NAME_BYTES_MAX: usize = 255;

/// The public half of a key of the zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneKey {
    data: [u8; 68],
}

impl ZoneKey {
    /// The key with this point of the curve: x, then y.
    pub fn new(point: &[u8; 64]) -> Self {
        let mut data = [0; 68];
        data[..2].copy_from_slice(&KEY_FLAGS.to_be_bytes());
        (data[2], data[3]) = (KEY_PROTOCOL, ALGORITHM);
        data[4..].copy_from_slice(point);
        Self { data }
    }

    /// The contents of its DNSKEY record.
    pub fn contents(&self) -> RecordData {
        RecordData::Opaque(Type::DNSKEY, self.data[..].into())
    }

    /// The point.
    pub fn point(&self) -> &[u8] {
        &self.data[4..]
    }

    /// The flags, the protocol and the algorithm, as a DNSKEY record shows them before the point.
    pub fn shown(&self) -> (u16, u8, u8) {
        (KEY_FLAGS, KEY_PROTOCOL, ALGORITHM)
    }

    /// The number by which signatures and the parent name the key (RFC 4034 appendix B). It may not be unique.
    pub fn tag(&self) -> u16 {
        let sum: u32 = self
            .data
            .iter()
            .enumerate()
            .map(|(at, byte)| u32::from(*byte) << (8 * (1 - at % 2)))
            .sum();
        (sum + (sum >> 16)) as u16
    }

    /// The bytes whose hash is the contents of the parent's DS record (RFC 4034 §5.1.4).
    pub fn hashed_for_parent(&self, zone: &str) -> Vec<u8> {
        let mut bytes = wire::name(zone);
        bytes.extend(self.data);
        bytes
    }
}

/// The time in which a signature counts, in seconds since 1970. 32 bits wrap in 2106, which RFC 4034 §3.1.5 allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// The first second.
    pub from_s: u32,
    /// The last second.
    pub until_s: u32,
}

/// A set of records of one name and type in the form that is signed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SetToSign {
    kind: Type,
    labels: u8,
    ttl_s: u32,
    /// The records in order (RFC 4034 §6.3).
    records: Box<[u8]>,
}

impl SetToSign {
    /// The set of these records under `owner`, the bytes of a name. `ttl_s` is the TTL in the reply.
    ///
    /// TTLs of the service differ by client and change with the pace. Each is signed as the longest one: a resolver takes any that is
    /// not longer (RFC 4035 §5.3.3), and a signature outlives all changes of TTLs.
    pub fn new(owner: &[u8], ttl_s: u32, records: &[&RecordData]) -> Self {
        let owner = owner.to_ascii_lowercase();
        let ttl_s = ttl_s.max(STEADY_MAX_S);
        let kind = records.first().map_or(Type::ANY, |record| record.kind());
        debug_assert!(
            records.iter().all(|record| record.kind() == kind),
            "one set has one type"
        );
        let mut contents: Vec<Vec<u8>> = records.iter().map(|record| wire::uncompressed(record)).collect();
        contents.sort_unstable();
        contents.dedup();
        let mut bytes = Vec::new();
        for contents in contents {
            wire::head(&mut bytes, &owner, kind, ttl_s);
            bytes.extend((contents.len() as u16).to_be_bytes());
            bytes.extend(contents);
        }
        Self {
            kind,
            labels: labels(&owner),
            ttl_s,
            records: bytes.into(),
        }
    }

    /// The contents of the RRSIG record without its signature. The signature covers these bytes and [`SetToSign::records`].
    pub fn head(&self, key: &ZoneKey, zone: &str, period: Period) -> Vec<u8> {
        let mut head = Vec::with_capacity(18 + zone.len() + 2 + 64);
        head.extend(self.kind.0.to_be_bytes());
        head.extend([ALGORITHM, self.labels]);
        head.extend(self.ttl_s.to_be_bytes());
        head.extend(period.until_s.to_be_bytes());
        head.extend(period.from_s.to_be_bytes());
        head.extend(key.tag().to_be_bytes());
        head.extend(wire::name(zone));
        head
    }

    /// The records as they are signed.
    pub fn records(&self) -> &[u8] {
        &self.records
    }
}

/// Number of labels, as a signature counts them (RFC 4034 §3.1.3).
fn labels(name: &[u8]) -> u8 {
    let mut rest = name;
    let mut count = 0;
    while let Some((&length, after)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let is_wildcard = count == 0 && name.starts_with(b"\x01*") && rest.len() == name.len();
        count += u8::from(!is_wildcard);
        rest = after.get(usize::from(length)..).unwrap_or_default();
    }
    count
}

/// An NSEC record: `owner` has these types and no others, and no name comes between it and the next possible one.
pub fn denial(owner: &[u8], types: &[Type]) -> RecordData {
    let mut contents = next_name(&owner.to_ascii_lowercase());
    bitmap(&mut contents, types);
    RecordData::Opaque(Type::NSEC, contents.into())
}

/// The first name that may come after `name` in the order of DNSSEC (RFC 4034 §6.1): a label of one zero byte below it. A name that
/// is too long for that gets a last byte that is one higher instead (RFC 4471 §3.1.1).
fn next_name(name: &[u8]) -> Vec<u8> {
    if name.len() + 2 <= NAME_BYTES_MAX {
        return [b"\x01\0", name].concat();
    }
    let mut rest = name;
    while let Some((&length, after)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, parent) = after.split_at_checked(usize::from(length)).unwrap_or((after, &[]));
        if let Some(last) = label.iter().rposition(|byte| *byte != 0xff) {
            let mut next = vec![last as u8 + 1];
            next.extend(&label[..last]);
            // A letter is lower case in this order, so none may become upper case.
            next.push(if label[last] == b'@' { b'[' } else { label[last] + 1 });
            next.extend(parent);
            return next;
        }
        rest = parent;
    }
    // No name of the zone is made of the highest byte alone: a topology has letters, digits and hyphens.
    name.to_vec()
}

/// Types as bits, in blocks of 256 (RFC 4034 §4.1.2).
fn bitmap(out: &mut Vec<u8>, types: &[Type]) {
    let mut numbers: Vec<u16> = types.iter().map(|kind| kind.0).collect();
    numbers.sort_unstable();
    for block in numbers.chunk_by(|a, b| a >> 8 == b >> 8) {
        let mut bits = [0_u8; 32];
        let mut bytes = 0;
        for number in block {
            let [_, low] = number.to_be_bytes();
            bits[usize::from(low / 8)] |= 0x80 >> (low % 8);
            bytes = usize::from(low / 8) + 1;
        }
        out.extend([(block[0] >> 8) as u8, bytes as u8]);
        out.extend(&bits[..bytes]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6605 §6.1: the key of example.net, its tag and the bytes behind its DS record.
    #[test]
    fn a_key_has_the_tag_that_the_rfc_shows() {
        let base64 = "GojIhhXUN/u4v54ZQqGSnyhWJwaubCvTmeexv7bR6edbkrSqQpF64cYbcB7wNcP+e+MAnLr+Wi9xMWyQLc8NAA==";
        let key = ZoneKey::new(&decoded(base64).try_into().unwrap());
        assert_eq!(key.tag(), 55648);
        assert_eq!(key.shown(), (257, 3, 13));
        assert!(
            key.hashed_for_parent("Example.net")
                .starts_with(b"\x07example\x03net\0\x01\x01\x03\x0d")
        );
    }

    fn decoded(base64: &str) -> Vec<u8> {
        let value = |letter: u8| match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
        for letter in base64.bytes().filter(|letter| *letter != b'=') {
            bits = bits << 6 | u32::from(value(letter));
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
            }
        }
        bytes
    }

    /// RFC 4034 §4.3: A, MX, RRSIG, NSEC and TYPE1234 of alfa.example.com.
    #[test]
    fn a_bitmap_is_the_one_that_the_rfc_shows() {
        let mut bytes = Vec::new();
        bitmap(&mut bytes, &[Type(1234), Type::NSEC, Type::A, Type(15), Type::RRSIG]);
        let mut expected = vec![0, 6, 0x40, 1, 0, 0, 0, 3, 4, 27];
        expected.extend([0; 26]);
        expected.push(0x20);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_next_name_is_directly_behind_a_name_of_any_length() {
        assert_eq!(next_name(b"\x01a\x02zz\0"), b"\x01\0\x01a\x02zz\0");
        let long = |last: &[u8]| {
            let mut name = vec![60 + last.len() as u8];
            name.extend([b'x'; 60]);
            name.extend(last);
            for _ in 0..3 {
                name.push(61);
                name.extend([b'y'; 61]);
            }
            name.extend([4, b't', b'e', b's', b't', 0]);
            name
        };
        assert!((254..=255).contains(&long(b"ab").len()), "{}", long(b"ab").len());
        for (last, next) in [
            (&b"ab"[..], &b"ac"[..]),
            (b"a\xff", b"b"),
            (b"a@", b"a["),
            (b"\xff\xff", b""),
        ] {
            let (name, next) = (next_name(&long(last)), long(next));
            if last == b"\xff\xff" {
                // The byte before them counts.
                assert_eq!(name[..61], [&[60][..], &[b'x'; 59], b"y"].concat());
            } else {
                assert_eq!(name, next);
            }
        }
    }

    #[test]
    fn a_set_is_signed_in_one_form_whatever_its_order_case_and_ttl() {
        let addresses = [1_u8, 9, 5].map(|last| RecordData::A([192, 0, 2, last].into()));
        let mut some: Vec<&RecordData> = addresses.iter().collect();
        let set = SetToSign::new(b"\x02EU\x04test\0", 5, &some);
        some.reverse();
        some.push(&addresses[0]);
        assert_eq!(set, SetToSign::new(b"\x02eu\x04test\0", 30, &some));
        assert_ne!(set, SetToSign::new(b"\x02eu\x04test\0", 31, &some));
        let lasts: Vec<u8> = set
            .records()
            .chunks(9 + 10 + 4)
            .filter_map(|record| record.last().copied())
            .collect();
        assert_eq!(lasts, [1, 5, 9]);
        for (name, expected) in [
            (&b"\0"[..], 0),
            (b"\x04test\0", 1),
            (b"\x01*\x04test\0", 1),
            (b"\x01a\x01*\0", 2),
        ] {
            assert_eq!(labels(name), expected);
        }
    }
}
