//! In which order a client gets the addresses. Most clients use the first.

use std::net::IpAddr;

use topology::Location;

/// What is known of who asks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Client {
    /// Where it stands: nearest edges first.
    At(Location),
    /// Only its address: an order of its own, so that the clients spread over all edges.
    From(IpAddr),
}

/// An address, and the edge's place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Target<A> {
    pub(crate) address: A,
    pub(crate) location: Location,
}

/// The addresses as this client gets them: the same client always the same, and when an edge goes, the others keep their
/// order (rendezvous hashing), so that nobody moves who did not have to.
pub(crate) fn order<A: Copy + Ord + Into<IpAddr>>(targets: &[Target<A>], client: Client) -> Vec<A> {
    let mut ranked: Vec<(u64, A)> = targets
        .iter()
        .map(|target| {
            let rank = match client {
                // Whole kilometres: edges in one city are equal, and their addresses decide.
                Client::At(location) => target.location.distance_km(location) as u64,
                Client::From(address) => mix(hash(client_key(address)), hash(key(target.address.into()))),
            };
            (rank, target.address)
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, address)| address).collect()
}

fn key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// IPv6 hosts choose the lower half of their address anew every day; the upper half stays.
fn client_key(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V6(v6) => v6.to_bits() >> 64,
        v4 => key(v4),
    }
}

/// FNV-1a: small, and equal on every machine.
fn hash(key: u128) -> u64 {
    key.to_be_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finisher of SplitMix64: neighbouring addresses must not get neighbouring ranks.
fn mix(client: u64, target: u64) -> u64 {
    let mut z = client ^ target.rotate_left(32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use super::*;

    const ASHBURN: Location = Location {
        latitude: 39.0,
        longitude: -77.5,
    };
    const DUBLIN: Location = Location {
        latitude: 53.3,
        longitude: -6.3,
    };

    fn targets(count: u8) -> Vec<Target<Ipv4Addr>> {
        (1..=count)
            .map(|last| Target {
                address: Ipv4Addr::new(192, 0, 2, last),
                location: if last % 2 == 0 { DUBLIN } else { ASHBURN },
            })
            .collect()
    }

    fn from(number: u32) -> Client {
        Client::From(Ipv4Addr::from_bits(0x0a00_0000 + number).into())
    }

    #[test]
    fn a_client_whose_place_is_known_gets_the_nearest_first() {
        let near_london = Client::At(Location {
            latitude: 51.5,
            longitude: 0.0,
        });
        let ordered = order(&targets(4), near_london);
        assert_eq!(ordered.map_last_octets(), [2, 4, 1, 3]);
    }

    #[test]
    fn other_clients_spread_evenly_and_each_keeps_its_order() {
        let targets = targets(5);
        let mut firsts = BTreeMap::new();
        for client in 0..5000 {
            *firsts.entry(order(&targets, from(client))[0]).or_insert(0) += 1;
        }
        assert!(firsts.values().all(|count| (850..1150).contains(count)), "{firsts:?}");
        assert_eq!(order(&targets, from(7)), order(&targets, from(7)));
    }

    #[test]
    fn when_an_edge_goes_only_its_clients_move() {
        let (all, fewer) = (targets(5), targets(4));
        for client in (0..500).map(from) {
            let mut expected = order(&all, client);
            expected.retain(|address| address.octets()[3] != 5);
            assert_eq!(order(&fewer, client), expected);
        }
    }

    trait LastOctets {
        fn map_last_octets(&self) -> Vec<u8>;
    }

    impl LastOctets for Vec<Ipv4Addr> {
        fn map_last_octets(&self) -> Vec<u8> {
            self.iter().map(|address| address.octets()[3]).collect()
        }
    }
}
