//! Records as plain data.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// What is asked for.
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
    /// Anything there is, answered minimally (RFC 8482).
    Any,
    /// A type that no name here has.
    Other,
}

/// One resource record, class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Owner: lower case, without the final dot.
    pub name: Arc<str>,
    /// How long it may be kept, in seconds.
    pub ttl_s: u32,
    /// What it says.
    pub data: RecordData,
}

/// What a record says. Names are lower case, without the final dot.
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
    /// Mailbox of whoever runs the zone.
    pub rname: Arc<str>,
    /// The plan's generation; wraps, which serial number arithmetic (RFC 1982) allows.
    pub serial: u32,
    /// For secondaries, of which there are none.
    pub refresh_s: u32,
    /// For secondaries, of which there are none.
    pub retry_s: u32,
    /// For secondaries, of which there are none.
    pub expire_s: u32,
    /// How long "no" may be kept, in seconds (RFC 2308 §4).
    pub minimum_s: u32,
}

/// The labels of a name in its usual form. Names from the wire come as labels already: a dot may be part of one there.
pub fn labels(name: &str) -> Vec<&[u8]> {
    name.split('.')
        .filter(|label| !label.is_empty())
        .map(str::as_bytes)
        .collect()
}
