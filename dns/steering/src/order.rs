//! Chooses the edges that an answer names. The order within an answer has no effect, because resolvers rotate it (RFC
//! 2181 §5), so an answer names only addresses that are all good for this client.

use std::net::IpAddr;

use topology::Location;

/// Most edge addresses in one answer. A device that cannot reach the first address tries the others at once, without
/// waiting until the plan leaves the dead edge out. No device tries more than three.
pub(crate) const NAMED_MAX: usize = 3;
/// An edge counts as near if it is at most this much farther away than the nearest one. 500 km of fibre and back take 5
/// ms, which nobody hears, and a device with two edges survives the loss of one.
const AS_NEAR_KM: f64 = 500.0;

/// The resolver that sends a question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Client {
    /// The resolver's address. Clients spread by address over all edges that are equally good for them.
    pub address: IpAddr,
    /// The resolver's position, if it is known.
    pub location: Option<Location>,
}

/// An edge with its addresses and position.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target<A> {
    pub(crate) addresses: Vec<A>,
    pub(crate) location: Location,
}

/// The addresses for this client, at most [`NAMED_MAX`]: those of the edges near it, or of any edges if its position is
/// unknown. The same client always gets the same addresses, and when an edge goes, only the clients that had it move
/// (rendezvous hashing). The first addresses of different edges come before the second address of one edge.
pub(crate) fn choose<A: Copy + Ord + Into<IpAddr>>(targets: &[Target<A>], client: Client) -> Vec<A> {
    let distance_km = |target: &Target<A>| {
        let from = client.location?;
        Some(target.location.distance_km(from))
    };
    let limit_km = (targets.iter().filter_map(distance_km))
        .min_by(f64::total_cmp)
        .map(|nearest| nearest + AS_NEAR_KM);
    let is_near = |target: &&Target<A>| match (distance_km(target), limit_km) {
        (Some(distance), Some(limit)) => distance <= limit,
        _ => true,
    };
    let client = hash(client_key(client.address));
    let mut ranked: Vec<(u64, &Target<A>)> = (targets.iter().filter(is_near))
        .filter_map(|target| {
            let first = *target.addresses.first()?;
            Some((mix(client, hash(key(first.into()))), target))
        })
        .collect();
    ranked.sort_unstable_by_key(|(rank, target)| (*rank, target.addresses[0]));
    ranked.truncate(NAMED_MAX);
    (0..NAMED_MAX)
        .flat_map(|nth| ranked.iter().filter_map(move |(_, target)| target.addresses.get(nth)))
        .take(NAMED_MAX)
        .copied()
        .collect()
}

fn key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// IPv6 hosts change the lower half of their address every day; the upper half stays.
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

/// The finaliser of SplitMix64, so that neighbouring addresses do not get neighbouring ranks.
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
    const LONDON: Location = Location {
        latitude: 51.5,
        longitude: 0.0,
    };

    /// One address per edge, 192.0.2.1 and up. The edges with even addresses are in Dublin, the others in Ashburn.
    fn targets(count: u8) -> Vec<Target<Ipv4Addr>> {
        (1..=count)
            .map(|last| Target {
                addresses: vec![Ipv4Addr::new(192, 0, 2, last)],
                location: if last % 2 == 0 { DUBLIN } else { ASHBURN },
            })
            .collect()
    }

    fn client(number: u32, location: Option<Location>) -> Client {
        Client {
            address: Ipv4Addr::from_bits(0x0a00_0000 + number).into(),
            location,
        }
    }

    fn last_octets(addresses: &[Ipv4Addr]) -> Vec<u8> {
        addresses.iter().map(|address| address.octets()[3]).collect()
    }

    #[test]
    fn a_client_whose_place_is_known_gets_near_edges_and_no_others() {
        // A resolver may return the addresses in any order, so the answer must not name the edge across the ocean at
        // all.
        assert_eq!(last_octets(&choose(&targets(2), client(1, Some(LONDON)))), [2]);
        for number in 0..100 {
            let named = choose(&targets(10), client(number, Some(LONDON)));
            assert_eq!(named.len(), NAMED_MAX);
            assert!(named.iter().all(|address| address.octets()[3] % 2 == 0), "{named:?}");
        }
    }

    #[test]
    fn the_nearest_edge_is_named_however_far_it_is() {
        let tokyo = Location {
            latitude: 35.7,
            longitude: 139.7,
        };
        let named = choose(&targets(2), client(1, Some(tokyo)));
        assert_eq!(last_octets(&named), [2], "Dublin is 9,600 km away, Ashburn 10,900");
    }

    #[test]
    fn clients_spread_evenly_over_equals_and_each_keeps_its_edges() {
        // Without a position, over all five. In London, over the five in Dublin.
        for (count, location, expected) in [(5, None, 5), (10, Some(LONDON), 5)] {
            let targets = targets(count);
            let mut named = BTreeMap::new();
            for number in 0..5000 {
                for address in choose(&targets, client(number, location)) {
                    *named.entry(address).or_insert(0) += 1;
                }
            }
            assert_eq!(named.len(), expected);
            assert!(named.values().all(|count| (2750..3250).contains(count)), "{named:?}");
            assert_eq!(
                choose(&targets, client(7, location)),
                choose(&targets, client(7, location))
            );
        }
    }

    #[test]
    fn when_an_edge_goes_only_its_clients_move() {
        let (all, fewer) = (targets(5), targets(4));
        for number in 0..500 {
            let client = client(number, None);
            let before = choose(&all, client);
            let after = choose(&fewer, client);
            let kept: Vec<_> = before.iter().filter(|address| address.octets()[3] != 5).collect();
            assert_eq!(after.iter().take(kept.len()).collect::<Vec<_>>(), kept);
        }
    }

    #[test]
    fn two_edges_come_before_two_addresses_of_one() {
        let mut targets = targets(2);
        targets[0]
            .addresses
            .extend([3, 5, 7].map(|last| Ipv4Addr::new(192, 0, 2, last)));
        for number in 0..100 {
            let named = last_octets(&choose(&targets, client(number, None)));
            let (mut first, third) = ([named[0], named[1]], named[2]);
            first.sort_unstable();
            assert_eq!((first, third), ([1, 2], 3));
        }
        assert_eq!(last_octets(&choose(&targets[..1], client(1, None))), [1, 3, 5]);
    }
}
