//! DNS records as plain data.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// The type that a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// IPv4 address.
    A,
    /// IPv6 address.
    Aaaa,
    /// Name server.
    Ns,
    /// Start of authority.
    Soa,
    /// All types of a name, answered minimally (RFC 8482).
    Any,
    /// A type that no name in this zone has.
    Other,
}

/// One resource record, class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Owner name in lower case, without the final dot.
    pub name: Arc<str>,
    /// Time for which a resolver may cache the record, in seconds.
    pub ttl_s: u32,
    /// The type and contents of the record.
    pub data: RecordData,
}

/// The type and contents of a record. Names are in lower case, without the final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordData {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// Name server.
    Ns(Arc<str>),
    /// Start of authority.
    Soa(Soa),
    /// The minimal answer to ANY (RFC 8482 §4.2).
    Hinfo,
}

/// Start of authority (RFC 1035 §3.3.13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soa {
    /// Primary name server.
    pub mname: Arc<str>,
    /// Mailbox of the operator of the zone.
    pub rname: Arc<str>,
    /// Generation of the plan. It wraps, which serial number arithmetic (RFC 1982) allows.
    pub serial: u32,
    /// Refresh interval of secondaries, in seconds. The zone has no secondaries.
    pub refresh_s: u32,
    /// Retry interval of secondaries, in seconds. The zone has no secondaries.
    pub retry_s: u32,
    /// Time after which secondaries discard the zone, in seconds. The zone has no secondaries.
    pub expire_s: u32,
    /// Time for which a resolver may cache a negative answer, in seconds (RFC 2308 §4).
    pub minimum_s: u32,
}

/// The labels of a name in its usual form. Names from the wire arrive as labels, because on the wire a label may
/// contain a dot.
pub fn labels(name: &str) -> Vec<&[u8]> {
    name.split('.')
        .filter(|label| !label.is_empty())
        .map(str::as_bytes)
        .collect()
}
