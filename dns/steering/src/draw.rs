//! Draws the edges of a client by weight. Each client keeps its edges: the draw is a hash of client and edge, so when an
//! edge comes, goes or changes its weight, only the clients that it gains or loses move (rendezvous hashing).
//!
//! Resolvers rotate the addresses of an answer (RFC 2181 §5), so every edge that an answer names gets an equal part of its
//! devices. Weights therefore decide how often an edge is named, and an answer names only as many edges as the weights
//! allow: beside an edge of weight 1, one of weight 100 must stand alone in 99 of 100 answers.
//!
//! No function of a mathematics library is used, so that every name server draws the same.

use crate::prefix::{Family, Key};

/// Most edges in one answer. A device that cannot reach the first address tries the others at once, without waiting until
/// the plan leaves the dead edge out. No device tries more than three.
pub(crate) const NAMED_MAX: usize = 3;
/// Most edges that are drawn from for one client. Eight edges near a place are plenty, and the draw takes part in every
/// question.
pub(crate) const FEW: usize = 8;
/// Number of groups of clients when there are more than [`FEW`] edges: each group has its edges drawn beforehand.
const GROUPS: usize = 4096;
/// Bits of a logarithm after the point.
const FRACTION_BITS: u32 = 24;

/// Edges in the order of a draw: the choice, and its alternates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Drawn {
    edges: [u16; NAMED_MAX],
    count: u8,
}

impl Drawn {
    pub(crate) fn as_slice(&self) -> &[u16] {
        &self.edges[..usize::from(self.count)]
    }

    fn push(&mut self, edge: u16) {
        self.edges[usize::from(self.count)] = edge;
        self.count += 1;
    }
}

/// One edge that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Candidate {
    pub(crate) edge: u16,
    /// The hash of the edge's id, equal on every machine.
    pub(crate) hash: u64,
    /// Its part of the clients relative to the others, 1..=100,000.
    pub(crate) weight: u32,
}

/// The edges of one group of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    candidates: Box<[Candidate]>,
    /// Number of edges that an answer may name at random places of it.
    named: usize,
    /// Whether all weights are equal.
    is_even: bool,
    /// Filled when there are more than [`FEW`] candidates: the edges in order, and those to name.
    groups: Box<[(Drawn, Drawn)]>,
}

impl Pool {
    /// A pool of candidates, ordered by edge.
    pub(crate) fn new(candidates: Vec<Candidate>) -> Self {
        debug_assert!(
            candidates.is_sorted_by(|a, b| a.edge < b.edge),
            "each edge once, in order"
        );
        let total: u64 = candidates.iter().map(|it| u64::from(it.weight)).sum();
        let most = candidates.iter().map(|it| u64::from(it.weight)).max().unwrap_or(1);
        let mut pool = Self {
            // No edge can be in more than all answers.
            named: NAMED_MAX.min(candidates.len()).min((total / most) as usize),
            is_even: candidates.iter().all(|it| u64::from(it.weight) == most),
            candidates: candidates.into(),
            groups: Box::default(),
        };
        if pool.candidates.len() > FEW {
            let group = |group| (pool.draw_in_order(spread(group)), pool.draw_to_name(spread(group)));
            pool.groups = (0..GROUPS as u64).map(group).collect();
        }
        pool
    }

    pub(crate) fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Number of edges that an answer names when their order has no meaning.
    pub(crate) fn named(&self) -> usize {
        self.named
    }

    /// Whether two clients may get different edges.
    pub(crate) fn varies(&self) -> bool {
        self.candidates.len() > self.named
    }

    /// Whether two clients may get the edges in different orders.
    pub(crate) fn varies_in_order(&self) -> bool {
        self.candidates.len() > 1
    }

    /// The edges of a client for an answer whose order has no meaning: the same order for all clients that get the same
    /// edges.
    pub(crate) fn named_for(&self, client: Key) -> Drawn {
        if self.varies() {
            let hash = client_hash(client);
            return match self.groups.is_empty() {
                true => self.draw_to_name(hash),
                false => self.groups[(hash >> 32) as usize % GROUPS].1,
            };
        }
        let mut all = Drawn::default();
        for candidate in &self.candidates {
            all.push(candidate.edge);
        }
        all
    }

    /// Every draw of some client, and perhaps more.
    pub(crate) fn draws(&self, is_ordered: bool) -> Vec<Drawn> {
        if !self.groups.is_empty() {
            let of = |(in_order, to_name): &(Drawn, Drawn)| if is_ordered { *in_order } else { *to_name };
            return self.groups.iter().map(of).collect();
        }
        let count = if is_ordered {
            NAMED_MAX.min(self.candidates.len())
        } else {
            self.named
        };
        let mut draws = vec![Drawn::default()];
        for _ in 0..count {
            let longer = |drawn: &Drawn| {
                let drawn = *drawn;
                let rest = self
                    .candidates
                    .iter()
                    .filter(move |it| !drawn.as_slice().contains(&it.edge));
                rest.map(move |candidate| {
                    let mut longer = drawn;
                    longer.push(candidate.edge);
                    longer
                })
            };
            draws = draws.iter().flat_map(longer).collect();
        }
        draws
    }

    /// The choice for a client, and its alternates in order.
    pub(crate) fn drawn_for(&self, client: Key) -> Drawn {
        let hash = client_hash(client);
        match self.groups.is_empty() {
            true => self.draw_in_order(hash),
            false => self.groups[(hash >> 32) as usize % GROUPS].0,
        }
    }

    /// Draws in order: the first one exactly by weight. An exponential variate divided by the weight is the smallest for
    /// each edge as often as its weight asks for.
    fn draw_in_order(&self, client: u64) -> Drawn {
        let mut best = [(u64::MAX, 0_u16); NAMED_MAX];
        for candidate in &self.candidates {
            let time = u64::from(cost(mix(client, candidate.hash)));
            let mut entry = ((time << 32) / u64::from(candidate.weight), candidate.edge);
            for place in &mut best {
                if entry < *place {
                    std::mem::swap(place, &mut entry);
                }
            }
        }
        Drawn {
            edges: best.map(|(_, edge)| edge),
            count: self.candidates.len().min(NAMED_MAX) as u8,
        }
    }

    /// Draws the edges to name, each exactly as often as its weight asks for (Brewer 1975): with `left` edges still to be
    /// drawn from edges of weight `total`, an edge is next in proportion to w(total - w)/(total - left·w).
    fn draw_to_name(&self, client: u64) -> Drawn {
        if self.is_even || self.named < 2 {
            let mut drawn = self.draw_in_order(client);
            drawn.count = drawn.count.min(self.named as u8);
            return drawn;
        }
        let mut drawn = Drawn::default();
        let mut total: f64 = self.candidates.iter().map(|it| f64::from(it.weight)).sum();
        for left in (1..=self.named as u32).rev() {
            let mut best = (f64::INFINITY, None);
            for candidate in self.candidates.iter().filter(|it| !drawn.as_slice().contains(&it.edge)) {
                let weight = f64::from(candidate.weight);
                let rest = total - f64::from(left) * weight;
                let time = f64::from(cost(mix(client ^ u64::from(left).rotate_right(8), candidate.hash)));
                // Without a rest the edge is in every answer.
                let score = if rest > 0.0 {
                    time * rest / (weight * (total - weight))
                } else {
                    -1.0
                };
                if score < best.0 {
                    best = (score, Some(candidate));
                }
            }
            let Some(candidate) = best.1 else { break };
            drawn.push(candidate.edge);
            total -= f64::from(candidate.weight);
        }
        drawn
    }
}

/// The negative binary logarithm of `part` as a fraction of 2^64, with [`FRACTION_BITS`] bits after the point.
fn cost(part: u64) -> u32 {
    let zeros = part.leading_zeros();
    let Some(mantissa) = part.checked_shl(zeros) else {
        return 64 << FRACTION_BITS;
    };
    let step = (mantissa >> 55) as usize & 0xff;
    let between = mantissa >> 31 & 0xff_ffff;
    let (low, high) = (LOGARITHMS[step], LOGARITHMS[step + 1]);
    let logarithm = low + ((u64::from(high - low) * between) >> 24) as u32;
    ((zeros + 1) << FRACTION_BITS) - logarithm
}

/// The binary logarithms of 256/256 to 512/256.
static LOGARITHMS: [u32; 257] = logarithms();

const fn logarithms() -> [u32; 257] {
    let mut table = [0; 257];
    let mut step = 0;
    while step < 256 {
        // 1 is 2^31. Squaring doubles the logarithm, so each square shows its next bit.
        let mut x: u64 = (256 + step as u64) << 23;
        let mut bit = FRACTION_BITS;
        while bit > 0 {
            bit -= 1;
            x = (x * x) >> 31;
            if x >= 1 << 32 {
                x >>= 1;
                table[step] |= 1 << bit;
            }
        }
        step += 1;
    }
    table[256] = 1 << FRACTION_BITS;
    table
}

/// The hash of a name, equal on every machine (FNV-1a).
pub(crate) fn hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The hash of a client's network.
pub(crate) fn client_hash(client: Key) -> u64 {
    let family = match client.family {
        Family::V4 => 0x9e37_79b9_7f4a_7c15,
        Family::V6 => 0xd1b5_4a32_d192_ed03,
    };
    spread(client.bits ^ family)
}

/// The finaliser of SplitMix64: neighbouring numbers get unrelated hashes.
fn spread(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn mix(client: u64, edge: u64) -> u64 {
    spread(client ^ edge.rotate_left(32))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use super::*;

    const CLIENTS: u32 = 60_000;

    fn pool(weights: &[u32]) -> Pool {
        let candidates = weights.iter().enumerate().filter(|(_, weight)| **weight > 0);
        let candidate = |(edge, weight): (usize, &u32)| Candidate {
            edge: edge as u16,
            hash: hash(format!("edge-{edge}").as_bytes()),
            weight: *weight,
        };
        Pool::new(candidates.map(candidate).collect())
    }

    fn client(number: u32) -> Key {
        Key::of(Ipv4Addr::from_bits(0x0a00_0000 + number * 256).into())
    }

    /// Each edge's part of the devices, in percent, when a device takes any of the edges that its answer names.
    fn parts(pool: &Pool) -> BTreeMap<u16, f64> {
        let mut parts = BTreeMap::new();
        for number in 0..CLIENTS {
            let drawn = pool.named_for(client(number));
            for edge in drawn.as_slice() {
                *parts.entry(*edge).or_insert(0.0) += 100.0 / f64::from(CLIENTS) / f64::from(drawn.count);
            }
        }
        parts
    }

    #[test]
    fn logarithms_are_those_of_the_machine() {
        for part in [
            1,
            2,
            3,
            77,
            1 << 20,
            (1 << 40) + 12_345,
            u64::MAX / 3,
            u64::MAX / 2,
            u64::MAX,
        ] {
            let expected = 64.0 - (part as f64).log2();
            let found = f64::from(cost(part)) / f64::from(1 << FRACTION_BITS);
            assert!((found - expected).abs() < 1e-4, "{part}: {found}, not {expected}");
        }
        assert_eq!(cost(0), 64 << FRACTION_BITS);
    }

    #[test]
    fn weights_hold() {
        for weights in [
            &[100, 100, 100, 100, 100][..],
            &[100, 50],
            &[100, 1],
            &[100, 100, 1],
            &[100, 100, 25],
            &[100, 100, 100, 100, 1],
            &[100, 100, 100, 50],
            &[300, 100, 100, 100, 50, 50],
            &[1000, 10, 10],
            &[100, 90, 80, 70, 60, 50, 40, 30, 20, 10],
            &[100; 40],
        ] {
            let total: u32 = weights.iter().sum();
            let parts = parts(&pool(weights));
            for (edge, weight) in weights.iter().enumerate() {
                let wanted = f64::from(*weight) * 100.0 / f64::from(total);
                let found = parts.get(&(edge as u16)).copied().unwrap_or_default();
                assert!(
                    (found - wanted).abs() < 0.12 * wanted + 0.4,
                    "{weights:?} edge {edge}: {found} %, not {wanted} %"
                );
            }
        }
    }

    #[test]
    fn answers_name_as_many_edges_as_the_weights_allow() {
        for (weights, named) in [
            (&[100][..], 1),
            (&[100, 100], 2),
            (&[100, 99], 1),
            (&[100, 100, 1], 2),
            (&[100, 100, 25], 2),
            (&[100; 3], 3),
            (&[100; 30], 3),
            (&[100, 1, 1], 1),
            (&[], 0),
        ] {
            let pool = pool(weights);
            let count = pool.named_for(client(7)).as_slice().len();
            assert_eq!(count, named, "{weights:?}");
        }
    }

    #[test]
    fn when_an_edge_goes_only_its_clients_move() {
        let (all, fewer) = (pool(&[100; 5]), pool(&[100, 100, 100, 100]));
        for number in 0..500 {
            let before = all.drawn_for(client(number));
            let after = fewer.drawn_for(client(number));
            let kept: Vec<u16> = before.as_slice().iter().filter(|edge| **edge != 4).copied().collect();
            assert_eq!(&after.as_slice()[..kept.len()], kept);
        }
    }

    #[test]
    fn a_weight_that_grows_moves_clients_to_its_edge_alone() {
        let steps = [1, 5, 25, 50, 100].map(|percent| pool(&[1000, 1000, 1000, percent * 10]));
        for pair in steps.windows(2) {
            let (mut moved, mut elsewhere) = (0, 0);
            for number in 0..2000 {
                let [before, after] = [&pair[0], &pair[1]].map(|pool| pool.drawn_for(client(number)).as_slice()[0]);
                moved += u32::from(before != after);
                elsewhere += u32::from(before != after && after != 3);
            }
            assert!(
                moved > 0 && elsewhere == 0,
                "{elsewhere} of {moved} clients went to an edge whose weight did not grow"
            );
        }
    }

    #[test]
    fn a_client_is_told_apart_by_its_network_alone() {
        let pool = pool(&[100; 6]);
        let of = |address: &str| pool.drawn_for(Key::of(address.parse().unwrap()).client());
        assert_eq!(of("192.0.2.1"), of("192.0.2.254"));
        assert_eq!(of("2001:db8:0:12::1"), of("2001:db8:0:77:abcd::"));
    }
}
