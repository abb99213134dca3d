//! Claims a part of the loopback network for one world alone.

use std::{
    io::{self, Read as _},
    net::{Ipv4Addr, UdpSocket},
};

/// The claim is a UDP socket at this host and port, which no process of a world uses.
const CLAIM_HOST: u8 = 254;
const CLAIM_PORT: u16 = 1909;
/// Random networks to try. There are 64,768 of them, so even a second attempt is rare.
const ATTEMPTS_MAX: usize = 64;

/// A /24 below 127.0.0.0/8, claimed from the check of its addresses until the world's last process has ended. Without
/// the claim a second world could take addresses that the first has not bound yet, or whose processes are down.
#[derive(Debug)]
pub(crate) struct Network {
    prefix: [u8; 3],
    /// The kernel gives an address to one socket only, and frees it however the process ends.
    _claim: UdpSocket,
}

impl Network {
    /// Claims a random network that is free.
    pub(crate) fn claim_any() -> io::Result<Self> {
        let mut attempts = 0;
        loop {
            let [x, y] = random_bytes();
            attempts += 1;
            // People use 127.0 and 127.1 by hand.
            match Self::claim([127, 2 + x % 253, y]) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts < ATTEMPTS_MAX => {}
                claimed => return claimed,
            }
        }
    }

    /// Claims this network; fails if another world has it.
    pub(crate) fn claim(prefix: [u8; 3]) -> io::Result<Self> {
        let [a, b, c] = prefix;
        let claim = UdpSocket::bind((Ipv4Addr::new(a, b, c, CLAIM_HOST), CLAIM_PORT))?;
        Ok(Self { prefix, _claim: claim })
    }

    pub(crate) fn prefix(&self) -> [u8; 3] {
        self.prefix
    }
}

pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .expect("Linux, the one system a world runs on, has /dev/urandom");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_belongs_to_one_owner_until_it_is_given_back() {
        let first = Network::claim_any().unwrap();
        let second = Network::claim(first.prefix());
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let prefix = first.prefix();
        drop(first);
        Network::claim(prefix).unwrap();
    }
}
