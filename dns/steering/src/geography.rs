//! The places of clients, by network. An operator's entry counts above the database, and among entries of one source the
//! longest network counts.

use std::collections::HashMap;

use topology::Location;

use crate::{
    prefix::{Family, Key, Prefix},
    ranges::Both,
};

/// Locations of the database are rounded to this many parts of a degree. A quarter of a degree is at most 28 km, and an
/// edge is near within 500 km more than the nearest; a database has half a million networks and far fewer such places.
const PARTS_OF_A_DEGREE: f64 = 4.0;
/// Value of an address without a place.
const NOWHERE: u32 = u32::MAX;
/// Bit of a value that says that an operator's entry gave the place.
const BY_OPERATOR: u32 = 1;

/// The places of clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Geography {
    places: Vec<Location>,
    /// By the address of the resolver that asks.
    resolvers: Both,
    /// By the network that a resolver names for its client. Networks longer than [`Family::cap`] do not count here, or
    /// an answer would depend on more of an address than a resolver may tell.
    subnets: Both,
}

/// The source of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An entry of the configuration.
    Operator,
    /// The database.
    Database,
}

impl Default for Geography {
    fn default() -> Self {
        Self::new(&[], [])
    }
}

impl Geography {
    /// The places by an operator's entries, and below them by a database.
    pub fn new(entries: &[(Prefix, Location)], database: impl IntoIterator<Item = (Prefix, Location)>) -> Self {
        let mut places = Vec::new();
        let mut known: HashMap<(u64, u64), u32> = HashMap::new();
        let mut place = |location: Location| {
            // A shift keeps one bit for the source, and NOWHERE is never reached.
            let next = places.len() as u32;
            *known
                .entry((location.latitude.to_bits(), location.longitude.to_bits()))
                .or_insert_with(|| {
                    places.push(location);
                    next
                })
        };
        let rounded = |degrees: f64| (degrees * PARTS_OF_A_DEGREE).round() / PARTS_OF_A_DEGREE;
        let mut networks: Vec<(Prefix, u32)> = Vec::new();
        for (prefix, location) in database {
            let location = Location {
                latitude: rounded(location.latitude),
                longitude: rounded(location.longitude),
            };
            networks.push((prefix, place(location) << 1));
        }
        for (prefix, location) in entries {
            networks.push((*prefix, place(*location) << 1 | BY_OPERATOR));
        }
        let over = |outer: u32, inner: u32| {
            if outer & BY_OPERATOR == 1 && inner & BY_OPERATOR == 0 {
                outer
            } else {
                inner
            }
        };
        let resolvers = Both::of_networks(&networks, |_| u8::MAX, NOWHERE, over);
        let subnets = Both::of_networks(&networks, Family::cap, NOWHERE, over);
        Self {
            places,
            resolvers,
            subnets,
        }
    }

    /// The distinct places.
    pub(crate) fn places(&self) -> &[Location] {
        &self.places
    }

    /// The number of networks that do not overlap, of both families.
    pub fn networks(&self) -> usize {
        self.resolvers.v4.len() + self.resolvers.v6.len()
    }

    /// The place of a resolver, as an index into [`Self::places`].
    pub(crate) fn place_of_resolver(&self, key: Key) -> Option<usize> {
        place(self.resolvers.find(key).value)
    }

    /// The subnets of clients, each with the value that `of_place` gives for its place.
    pub(crate) fn subnets(&self, of_place: impl Fn(Option<usize>) -> u32 + Copy) -> Both {
        self.subnets.map(|value| of_place(place(value)))
    }

    /// The place of an address and the source that knows it.
    pub(crate) fn explain(&self, key: Key, is_subnet: bool) -> Option<(Location, Source)> {
        let both = if is_subnet { &self.subnets } else { &self.resolvers };
        let value = both.find(key).value;
        let source = if value & BY_OPERATOR == 1 {
            Source::Operator
        } else {
            Source::Database
        };
        Some((self.places[place(value)?], source))
    }
}

fn place(value: u32) -> Option<usize> {
    (value != NOWHERE).then_some((value >> 1) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(prefix: &str, latitude: f64) -> (Prefix, Location) {
        let (address, length) = prefix.split_once('/').unwrap();
        let location = Location {
            latitude,
            longitude: 0.0,
        };
        (
            Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap(),
            location,
        )
    }

    fn latitude(geography: &Geography, address: &str) -> Option<f64> {
        let place = geography.place_of_resolver(Key::of(address.parse().unwrap()))?;
        Some(geography.places()[place].latitude)
    }

    #[test]
    fn the_longest_network_counts() {
        let geography = Geography::new(
            &[
                entry("0.0.0.0/0", 1.0),
                entry("10.0.0.0/8", 2.0),
                entry("10.1.2.3/32", 3.0),
                entry("2001:db8::/32", 4.0),
            ],
            [],
        );
        for (address, expected) in [
            ("192.0.2.1", Some(1.0)),
            ("10.9.9.9", Some(2.0)),
            ("10.1.2.3", Some(3.0)),
            ("::ffff:10.1.2.3", Some(3.0)),
            ("2001:db8:1::1", Some(4.0)),
            ("2001:db9::1", None),
        ] {
            assert_eq!(latitude(&geography, address), expected, "{address}");
        }
    }

    #[test]
    fn an_operators_entry_counts_above_longer_networks_of_the_database() {
        let database = [
            entry("10.1.0.0/16", 50.1),
            entry("10.1.2.0/24", 51.2),
            entry("11.0.0.0/8", 52.3),
        ];
        let geography = Geography::new(&[entry("10.0.0.0/8", 2.0), entry("11.2.0.0/16", 3.0)], database);
        for (address, expected) in [
            ("10.1.2.3", 2.0),
            ("10.1.9.9", 2.0),
            ("10.200.0.1", 2.0),
            ("11.2.0.1", 3.0),
            ("11.3.0.1", 52.25),
        ] {
            assert_eq!(latitude(&geography, address), Some(expected), "{address}");
        }
        let explained = geography.explain(Key::of("11.3.0.1".parse().unwrap()), false).unwrap();
        assert_eq!(explained.1, Source::Database);
    }

    #[test]
    fn a_subnet_is_placed_by_no_more_than_the_bits_that_a_resolver_may_tell() {
        let geography = Geography::new(&[entry("10.1.2.0/25", 1.0), entry("10.0.0.0/8", 2.0)], []);
        let key = Key::of("10.1.2.0".parse().unwrap());
        let latitude = |is_subnet| geography.explain(key, is_subnet).unwrap().0.latitude;
        assert_eq!((latitude(false), latitude(true)), (1.0, 2.0));
    }
}
