//! The EDNS option with a client's network (RFC 7871 §6).

use std::net::IpAddr;

use steering::Subnet;

/// Code of the option.
pub(crate) const CODE: u16 = 8;
/// Longest option in a reply, with its code and length: an IPv6 address in full.
pub(crate) const BYTES_MAX: usize = 8 + 16;

/// The option of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ecs {
    /// 1: IPv4. 2: IPv6. 0: the resolver tells nothing, not even the family.
    family: u16,
    source: u8,
    octets: [u8; 16],
}

impl Ecs {
    /// Reads the contents of an option, strictly: an answer for a network that was misread would be cached for the wrong
    /// clients. `None` for anything but a whole address of a known family, cut to its length, with scope 0.
    pub(crate) fn read(data: &[u8]) -> Option<Self> {
        let [family_high, family_low, source, scope, address @ ..] = data else {
            return None;
        };
        let family = u16::from_be_bytes([*family_high, *family_low]);
        let longest = match family {
            0 => 0,
            1 => 32,
            2 => 128,
            _ => return None,
        };
        if *scope != 0 || *source > longest || address.len() != usize::from(source.div_ceil(8)) {
            return None;
        }
        let beyond = address.last().map_or(0, |last| match source % 8 {
            0 => 0,
            used => last & (0xff >> used),
        });
        if beyond != 0 {
            return None;
        }
        let mut octets = [0; 16];
        octets.get_mut(..address.len())?.copy_from_slice(address);
        Some(Self {
            family,
            source: *source,
            octets,
        })
    }

    /// The network, if the resolver tells one.
    pub(crate) fn subnet(&self) -> Option<Subnet> {
        let address = match self.family {
            1 => {
                let [a, b, c, d, ..] = self.octets;
                IpAddr::from([a, b, c, d])
            }
            2 => IpAddr::from(self.octets),
            _ => return None,
        };
        Some(Subnet {
            address,
            source: self.source,
        })
    }

    /// Length of the option in a reply, with its code and length.
    pub(crate) fn reply_bytes(&self) -> usize {
        8 + usize::from(self.source.div_ceil(8))
    }

    /// Writes the option of a reply: what the query said, byte for byte, and the scope (§7.2.1). Returns its length.
    pub(crate) fn write(&self, scope: u8, out: &mut [u8]) -> Option<usize> {
        let length = self.reply_bytes();
        let out = out.get_mut(..length)?;
        out[..2].copy_from_slice(&CODE.to_be_bytes());
        out[2..4].copy_from_slice(&(length as u16 - 4).to_be_bytes());
        out[4..6].copy_from_slice(&self.family.to_be_bytes());
        (out[6], out[7]) = (self.source, scope);
        out[8..].copy_from_slice(&self.octets[..length - 8]);
        Some(length)
    }

    /// The contents of the option of a reply.
    pub(crate) fn contents(&self, scope: u8) -> Vec<u8> {
        let mut bytes = [0; BYTES_MAX];
        let length = self.write(scope, &mut bytes).unwrap_or(4);
        bytes[4..length].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_network_of_a_known_family_is_read() {
        for good in [
            &[0, 1, 24, 0, 192, 0, 2][..],
            &[0, 1, 25, 0, 192, 0, 2, 128],
            &[0, 1, 32, 0, 192, 0, 2, 255],
            &[0, 1, 0, 0],
            &[0, 2, 0, 0],
            &[0, 0, 0, 0],
            &[0, 2, 56, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 1],
            &[0, 1, 3, 0, 0b1110_0000],
        ] {
            let read = Ecs::read(good).unwrap_or_else(|| panic!("{good:?}"));
            let mut expected = good.to_vec();
            expected[3] = 17;
            assert_eq!(
                read.contents(17),
                expected,
                "a reply repeats the query and adds the scope"
            );
        }
        for (bad, why) in [
            (&[][..], "empty"),
            (&[0, 1, 24], "cut"),
            (&[0, 1, 24, 0, 192, 0], "too few bytes of the address"),
            (&[0, 1, 24, 0, 192, 0, 2, 0], "too many"),
            (&[0, 1, 24, 24, 192, 0, 2], "a scope in a query"),
            (&[0, 1, 33, 0, 192, 0, 2, 1, 0], "longer than an address"),
            (&[0, 1, 23, 0, 192, 0, 3], "bits beyond the length"),
            (&[0, 3, 0, 0], "an unknown family"),
            (&[0, 0, 8, 0, 1], "an address of no family"),
            (&[1, 1, 24, 0, 192, 0, 2], "family 257"),
        ] {
            assert_eq!(Ecs::read(bad), None, "{why}");
        }
    }
}
