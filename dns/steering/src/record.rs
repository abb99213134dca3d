//! DNS records as plain data.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// The type that a question asks for, by its number (RFC 1035 §3.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Type(pub u16);

impl Type {
    /// IPv4 address.
    pub const A: Self = Self(1);
    /// Name server.
    pub const NS: Self = Self(2);
    /// Start of authority.
    pub const SOA: Self = Self(6);
    /// The minimal answer to ANY (RFC 8482 §4.2).
    pub const HINFO: Self = Self(13);
    /// Text.
    pub const TXT: Self = Self(16);
    /// IPv6 address.
    pub const AAAA: Self = Self(28);
    /// Pseudo-record of EDNS (RFC 6891). Nobody may ask for it.
    pub const OPT: Self = Self(41);
    /// Digest of a key, in the parent zone (RFC 4034 §5).
    pub const DS: Self = Self(43);
    /// Signature of a set of records (RFC 4034 §3).
    pub const RRSIG: Self = Self(46);
    /// The types of a name, and the next name (RFC 4034 §4).
    pub const NSEC: Self = Self(47);
    /// Key of a zone (RFC 4034 §2).
    pub const DNSKEY: Self = Self(48);
    /// Service binding (RFC 9460).
    pub const SVCB: Self = Self(64);
    /// Service binding for HTTP and WebSockets (RFC 9460 §9).
    pub const HTTPS: Self = Self(65);
    /// Stands in NSEC records of names that do not exist (RFC 9824 §2). Nobody may ask for it.
    pub const NXNAME: Self = Self(128);
    /// Signature of a message (RFC 8945).
    pub const TSIG: Self = Self(250);
    /// Incremental zone transfer.
    pub const IXFR: Self = Self(251);
    /// Zone transfer.
    pub const AXFR: Self = Self(252);
    /// All types of a name, answered minimally (RFC 8482).
    pub const ANY: Self = Self(255);
    /// The authorities that may issue certificates for the name (RFC 8659).
    pub const CAA: Self = Self(257);

    /// The type with this name, as `dig` writes it.
    pub fn of_name(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let known = KNOWN.iter().find(|(known, _)| *known == upper).map(|(_, kind)| *kind);
        known.or_else(|| upper.strip_prefix("TYPE")?.parse().ok().map(Self))
    }

    /// Whether this type exists only in questions or as a part of the protocol (RFC 6895 §3.1), so that no name can have
    /// a record of it.
    pub fn is_meta(self) -> bool {
        matches!(self.0, 0 | 41 | 128..=255)
    }
}

const KNOWN: [(&str, Type); 14] = [
    ("A", Type::A),
    ("NS", Type::NS),
    ("SOA", Type::SOA),
    ("HINFO", Type::HINFO),
    ("TXT", Type::TXT),
    ("AAAA", Type::AAAA),
    ("DS", Type::DS),
    ("RRSIG", Type::RRSIG),
    ("NSEC", Type::NSEC),
    ("DNSKEY", Type::DNSKEY),
    ("SVCB", Type::SVCB),
    ("HTTPS", Type::HTTPS),
    ("ANY", Type::ANY),
    ("CAA", Type::CAA),
];

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KNOWN.iter().find(|(_, kind)| kind == self) {
            Some((name, _)) => f.pad(name),
            // RFC 3597 §5.
            None => f.pad(&format!("TYPE{}", self.0)),
        }
    }
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
    /// Text: its pieces, at most 255 bytes each.
    Txt(Arc<[Box<[u8]>]>),
    /// An authority that may issue certificates (RFC 8659 §4.1).
    Caa(Caa),
    /// Service binding for HTTP.
    Https(Binding),
    /// The same binding under the general type.
    Svcb(Binding),
    /// Contents that are bytes to this server: keys, signatures and denials.
    Opaque(Type, Arc<[u8]>),
}

impl RecordData {
    /// The type of the record.
    pub fn kind(&self) -> Type {
        match self {
            Self::A(_) => Type::A,
            Self::Aaaa(_) => Type::AAAA,
            Self::Ns(_) => Type::NS,
            Self::Soa(_) => Type::SOA,
            Self::Hinfo => Type::HINFO,
            Self::Txt(_) => Type::TXT,
            Self::Caa(_) => Type::CAA,
            Self::Https(_) => Type::HTTPS,
            Self::Svcb(_) => Type::SVCB,
            Self::Opaque(kind, _) => *kind,
        }
    }
}

impl fmt::Display for RecordData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(address) => write!(f, "{address}"),
            Self::Aaaa(address) => write!(f, "{address}"),
            Self::Ns(name) => write!(f, "{name}."),
            Self::Soa(soa) => write!(
                f,
                "{}. {}. {} {} {} {} {}",
                soa.mname, soa.rname, soa.serial, soa.refresh_s, soa.retry_s, soa.expire_s, soa.minimum_s
            ),
            Self::Hinfo => f.write_str("\"RFC8482\" \"\""),
            Self::Txt(pieces) => {
                for (index, piece) in pieces.iter().enumerate() {
                    let space = if index == 0 { "" } else { " " };
                    write!(f, "{space}\"{}\"", piece.escape_ascii())?;
                }
                Ok(())
            }
            Self::Caa(caa) => write!(f, "{} {} \"{}\"", caa.flags, caa.tag, caa.value.escape_ascii()),
            Self::Https(binding) | Self::Svcb(binding) => write!(f, "{binding}"),
            // RFC 3597 §5.
            Self::Opaque(_, bytes) => {
                write!(f, "\\# {} ", bytes.len())?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
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

/// An authority that may issue certificates (RFC 8659 §4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caa {
    /// 128 when an issuer that does not know the tag must not issue; 0 otherwise.
    pub flags: u8,
    /// `issue`, `issuewild` or `iodef`.
    pub tag: Arc<str>,
    /// The authority, or an address for reports.
    pub value: Arc<[u8]>,
}

/// A service binding (RFC 9460 §2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Clients try smaller numbers first.
    pub priority: u16,
    /// The host that serves.
    pub target: Arc<str>,
    /// The protocols that the host speaks, such as `h2`.
    pub alpn: Arc<[Box<str>]>,
    /// The TCP port of the host.
    pub port: u16,
    /// IPv4 addresses of the host, so that the client need not ask for them.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6 addresses of the host.
    pub v6: Vec<Ipv6Addr>,
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}. alpn=\"{}\" port={}",
            self.priority,
            self.target,
            self.alpn.join(","),
            self.port
        )?;
        let text = |addresses: Vec<String>| addresses.join(",");
        if !self.v4.is_empty() {
            write!(
                f,
                " ipv4hint={}",
                text(self.v4.iter().map(ToString::to_string).collect())
            )?;
        }
        if !self.v6.is_empty() {
            write!(
                f,
                " ipv6hint={}",
                text(self.v6.iter().map(ToString::to_string).collect())
            )?;
        }
        Ok(())
    }
}

/// The labels of a name in its usual form. Names from the wire arrive as labels, because on the wire a label may
/// contain a dot.
pub fn labels(name: &str) -> Vec<&[u8]> {
    name.split('.')
        .filter(|label| !label.is_empty())
        .map(str::as_bytes)
        .collect()
}
