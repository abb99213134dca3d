//! Networks of clients. Both families share one form, so that all code below exists once.

use std::{fmt, net::IpAddr};

/// The family of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, also in its mapped form.
    V4,
    /// IPv6. Only the upper half of an address counts; a host chooses the lower half freely.
    V6,
}

impl Family {
    /// Longest prefix that an answer may depend on, in bits: /24 and /56. Longer ones would name single households (RFC
    /// 7871 §11.1 asks for at most these).
    pub fn cap(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 56,
        }
    }

    /// Length of an address as far as it counts here, in bits.
    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 64,
        }
    }
}

/// An address as the top bits of a number: IPv4 uses the upper 32 of 64 bits, IPv6 the upper half of the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) family: Family,
    pub(crate) bits: u64,
}

impl Key {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self {
                family: Family::V4,
                bits: u64::from(v4.to_bits()) << 32,
            },
            IpAddr::V6(v6) => Self {
                family: Family::V6,
                bits: (v6.to_bits() >> 64) as u64,
            },
        }
    }

    /// The same without the step from a mapped address to IPv4: a network that a resolver told is of the family that it
    /// told, and so is the length of the scope that it gets back.
    pub(crate) fn exactly(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::of(address),
            IpAddr::V6(v6) => Self {
                family: Family::V6,
                bits: (v6.to_bits() >> 64) as u64,
            },
        }
    }

    /// The network of this length that holds the address.
    pub(crate) fn masked(self, length: u8) -> Self {
        Self {
            family: self.family,
            bits: self.bits & mask(length),
        }
    }

    /// The network by which clients are told apart: all addresses in it are one client.
    pub(crate) fn client(self) -> Self {
        self.masked(self.family.cap())
    }
}

/// The bits of a prefix of this length.
pub(crate) fn mask(length: u8) -> u64 {
    u64::MAX.checked_shl(64 - u32::from(length.min(64))).unwrap_or(0)
}

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    pub(crate) key: Key,
    pub(crate) length: u8,
}

impl Prefix {
    /// The network of this length that holds `address`. `None` when the length is longer than an address. IPv6 prefixes
    /// longer than /64 count as /64.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (address, length) = match (address, address.to_canonical()) {
            // A mapped network: ::ffff:192.0.2.0/120 is 192.0.2.0/24.
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) => (v4, length.checked_sub(96)?),
            (_, address) => (address, length),
        };
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if length > longest {
            return None;
        }
        let key = Key::of(address);
        let length = length.min(key.family.bits());
        Some(Self {
            key: key.masked(length),
            length,
        })
    }

    /// Last number of the network, inclusive.
    pub(crate) fn end(self) -> u64 {
        self.key.bits | !mask(self.length)
    }

    /// Whether the network holds `address`.
    pub fn contains(self, address: IpAddr) -> bool {
        Key::of(address).masked(self.length) == self.key
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = match self.key.family {
            Family::V4 => IpAddr::V4(((self.key.bits >> 32) as u32).into()),
            Family::V6 => IpAddr::V6((u128::from(self.key.bits) << 64).into()),
        };
        write!(f, "{address}/{}", self.length)
    }
}
