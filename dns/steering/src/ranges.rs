//! A family of addresses cut into ranges that do not overlap, each with a value.

use crate::prefix::{Family, Key, Prefix};

/// Bits of an address that choose where the search for its range begins.
const INDEX_BITS: u32 = 16;

/// All addresses of one family, cut into ranges. Neighbouring ranges have different values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// First address of each range, ascending. The first one is 0.
    starts: Vec<u64>,
    values: Vec<u32>,
    /// For each value of the first [`INDEX_BITS`] bits, the range of its first address.
    index: Vec<u32>,
}

/// The range of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) value: u32,
    start: u64,
    /// Inclusive.
    end: u64,
}

impl Range {
    /// The length of the largest network that holds the address and lies inside the range. Networks found this way do
    /// not overlap: every address of such a network leads to the same network.
    pub(crate) fn scope(self, address: u64) -> u8 {
        let differs_at = |outside: u64| (address ^ outside).leading_zeros() as u8 + 1;
        let below = self.start.checked_sub(1).map_or(0, differs_at);
        let above = self.end.checked_add(1).map_or(0, differs_at);
        below.max(above)
    }
}

impl Ranges {
    /// Ranges by their first addresses, ascending from 0. Equal neighbours become one range.
    fn of_starts(mut found: Vec<(u64, u32)>) -> Self {
        debug_assert!(
            found.first().is_some_and(|first| first.0 == 0),
            "the first range begins at 0"
        );
        debug_assert!(found.is_sorted_by(|a, b| a.0 < b.0), "ranges ascend");
        found.dedup_by_key(|(_, value)| *value);
        let (starts, values): (Vec<u64>, Vec<u32>) = found.into_iter().unzip();
        // A small list is searched faster than an index is read.
        let index = if starts.len() < 64 { Vec::new() } else { index(&starts) };
        Self { starts, values, index }
    }

    /// The ranges of these networks, which may lie in each other. `over` says which of two values counts where a network
    /// lies in another: it gets the outer value and the inner one. Addresses in no network have the value `outside`.
    pub(crate) fn of_networks(mut networks: Vec<(Prefix, u32)>, outside: u32, over: impl Fn(u32, u32) -> u32) -> Self {
        networks.sort_by_key(|(prefix, _)| (prefix.key.bits, prefix.length));
        let mut found: Vec<(u64, u32)> = vec![(0, outside)];
        let set = |found: &mut Vec<(u64, u32)>, start: u64, value: u32| match found.last_mut() {
            Some(last) if last.0 == start => last.1 = value,
            _ => found.push((start, value)),
        };
        // The networks that hold the current address, from the outside in: last address and value in force.
        let mut open: Vec<(u64, u32)> = Vec::new();
        for (prefix, value) in networks {
            while let Some((end, _)) = open.last().copied().filter(|(end, _)| *end < prefix.key.bits) {
                open.pop();
                let around = open.last().map_or(outside, |(_, value)| *value);
                set(&mut found, end + 1, around);
            }
            let value = open.last().map_or(value, |(_, outer)| over(*outer, value));
            open.push((prefix.end(), value));
            set(&mut found, prefix.key.bits, value);
        }
        while let Some((end, _)) = open.pop() {
            let around = open.last().map_or(outside, |(_, value)| *value);
            if let Some(next) = end.checked_add(1) {
                set(&mut found, next, around);
            }
        }
        Self::of_starts(found)
    }

    /// The same ranges with other values. Ranges that get equal values become one.
    pub(crate) fn map(&self, value: impl Fn(u32) -> u32) -> Self {
        let found = self.starts.iter().zip(&self.values);
        Self::of_starts(found.map(|(start, old)| (*start, value(*old))).collect())
    }

    pub(crate) fn find(&self, address: u64) -> Range {
        let (from, to) = match self.index.as_slice() {
            [] => (0, self.starts.len()),
            index => {
                let slot = (address >> (64 - INDEX_BITS)) as usize;
                (index[slot] as usize, index[slot + 1] as usize + 1)
            }
        };
        let after = from + self.starts[from..to].partition_point(|start| *start <= address);
        let at = after.saturating_sub(1);
        Range {
            value: self.values[at],
            start: self.starts[at],
            end: self.starts.get(after).map_or(u64::MAX, |next| next - 1),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.starts.iter().copied().zip(self.values.iter().copied())
    }
}

fn index(starts: &[u64]) -> Vec<u32> {
    let slots = 1_usize << INDEX_BITS;
    let mut index = Vec::with_capacity(slots + 1);
    let mut at = 0;
    for slot in 0..slots {
        let first = (slot as u64) << (64 - INDEX_BITS);
        while starts.get(at + 1).is_some_and(|next| *next <= first) {
            at += 1;
        }
        index.push(at as u32);
    }
    index.push(starts.len() as u32 - 1);
    index
}

/// Ranges of both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Both {
    pub(crate) v4: Ranges,
    pub(crate) v6: Ranges,
}

impl Both {
    pub(crate) fn of_networks(
        networks: &[(Prefix, u32)],
        length_max: impl Fn(Family) -> u8,
        outside: u32,
        over: impl Fn(u32, u32) -> u32 + Copy,
    ) -> Self {
        let of = |family: Family| {
            let counts = |prefix: &Prefix| prefix.key.family == family && prefix.length <= length_max(family);
            let networks = networks.iter().filter(|(prefix, _)| counts(prefix)).copied().collect();
            Ranges::of_networks(networks, outside, over)
        };
        Self {
            v4: of(Family::V4),
            v6: of(Family::V6),
        }
    }

    pub(crate) fn map(&self, value: impl Fn(u32) -> u32 + Copy) -> Self {
        Self {
            v4: self.v4.map(value),
            v6: self.v6.map(value),
        }
    }

    pub(crate) fn find(&self, key: Key) -> Range {
        match key.family {
            Family::V4 => self.v4.find(key.bits),
            Family::V6 => self.v6.find(key.bits),
        }
    }

    /// The value of every address, if there is only one.
    pub(crate) fn only(&self) -> Option<u32> {
        let single = self.v4.len() == 1 && self.v6.len() == 1 && self.v4.values == self.v6.values;
        single.then(|| self.v4.values[0])
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    fn bits(address: &str) -> u64 {
        Key::of(address.parse::<IpAddr>().unwrap()).bits
    }

    fn inner(_: u32, inner: u32) -> u32 {
        inner
    }

    #[test]
    fn the_innermost_network_counts_and_the_outer_one_goes_on_behind_it() {
        let networks = vec![
            (prefix("10.1.2.0/24"), 3),
            (prefix("10.0.0.0/8"), 1),
            (prefix("10.1.0.0/16"), 2),
            (prefix("255.0.0.0/8"), 4),
        ];
        let ranges = Ranges::of_networks(networks, 0, inner);
        for (address, expected) in [
            ("9.255.255.255", 0),
            ("10.0.0.0", 1),
            ("10.1.0.0", 2),
            ("10.1.2.0", 3),
            ("10.1.2.255", 3),
            ("10.1.3.0", 2),
            ("10.2.0.0", 1),
            ("11.0.0.0", 0),
            ("255.255.255.255", 4),
        ] {
            assert_eq!(ranges.find(bits(address)).value, expected, "{address}");
        }
    }

    #[test]
    fn equal_neighbours_are_one_range_and_scopes_are_as_wide_as_they_can_be() {
        let networks = vec![
            (prefix("10.0.0.0/9"), 1),
            (prefix("10.128.0.0/9"), 1),
            (prefix("10.77.0.0/16"), 1),
        ];
        let ranges = Ranges::of_networks(networks, 0, inner);
        assert_eq!(
            ranges.iter().collect::<Vec<_>>(),
            [(0, 0), (bits("10.0.0.0"), 1), (bits("11.0.0.0"), 0)]
        );
        let scope = |address: &str| ranges.find(bits(address)).scope(bits(address));
        assert_eq!(scope("10.77.1.1"), 8);
        // 11.0.0.0/8 is all that can be said without 10.0.0.0/8; 12.0.0.0/6 goes on behind it.
        assert_eq!((scope("11.1.1.1"), scope("13.1.1.1"), scope("200.1.1.1")), (8, 6, 1));
    }

    #[test]
    fn many_networks_are_found_by_index() {
        let networks = (0..5000_u32).map(|nth| {
            let address = IpAddr::from((nth * 65_536 + 256).to_be_bytes());
            (Prefix::new(address, 24).unwrap(), nth + 1)
        });
        let ranges = Ranges::of_networks(networks.collect(), 0, inner);
        for nth in [0_u32, 1, 77, 4999] {
            let inside = u64::from(nth * 65_536 + 300) << 32;
            assert_eq!(ranges.find(inside).value, nth + 1);
            assert_eq!(ranges.find(inside - (256 << 32)).value, 0);
            assert_eq!(ranges.find(inside).scope(inside), 24);
        }
        assert_eq!(ranges.find(u64::MAX).value, 0);
    }
}
