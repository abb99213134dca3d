//! The edges for every client, compiled from a plan: client space is cut into networks that do not overlap, and each
//! network has a pool of edges.
//!
//! For a client whose place is known, the pool holds the serving edges near it. When more than half of the capacity that
//! is usually near a place is out, edges farther away join until half of it is there again: a failover must not topple
//! the next edge.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use topology::{EdgeId, Location};

use crate::{
    Geography,
    draw::{Candidate, Drawn, FEW, Pool},
    nearest::{Nearest, Seen, within},
    prefix::Key,
    ranges::Both,
};

/// An edge counts as near if it is at most this much farther away than the nearest one. 500 km of fibre and back take 5
/// ms, which nobody hears, and a device with two edges survives the loss of one.
pub(crate) const AS_NEAR_KM: f64 = 500.0;

/// An edge that connects in at most this much more than the fastest one counts as equally good: what
/// [`AS_NEAR_KM`] of fibre take, and the noise of a measurement.
pub(crate) const AS_QUICK: Duration = Duration::from_millis(8);

/// An edge, as far as answers need it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EdgeFacts {
    pub(crate) id: EdgeId,
    pub(crate) name: Arc<str>,
    pub(crate) port: u16,
    pub(crate) location: Location,
    pub(crate) hash: u64,
    pub(crate) weight: u32,
    /// The part of its weight that the edge has now, in percent: less than 100 on its way back.
    pub(crate) percent: u32,
    pub(crate) is_named: bool,
    /// The time to connect to the edge from the name server, if it was measured.
    pub(crate) connects_in: Option<Duration>,
    /// Addresses of no other edge before it.
    pub(crate) v4: Vec<Ipv4Addr>,
    pub(crate) v6: Vec<Ipv6Addr>,
}

impl EdgeFacts {
    pub(crate) fn weight_now(&self) -> u32 {
        self.weight * self.percent
    }

    fn candidate(&self, edge: u16) -> Candidate {
        Candidate {
            edge,
            hash: self.hash,
            weight: self.weight_now().max(1),
        }
    }
}

/// The client of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The address that the question came from: a resolver.
    pub resolver: IpAddr,
    /// The network that the resolver names for its own client (RFC 7871).
    pub subnet: Option<Subnet>,
}

/// A client's network, as a resolver tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The address; bits beyond `source` are 0.
    pub address: IpAddr,
    /// Number of bits that the resolver tells. 0: the resolver asks that the client's address is not used.
    pub source: u8,
}

impl Client {
    /// A client of which only the resolver is known.
    pub fn behind(resolver: IpAddr) -> Self {
        Self { resolver, subnet: None }
    }

    /// The client with this address, as a resolver that tells its clients' networks would ask for it.
    pub fn in_network_of(address: IpAddr) -> Self {
        let key = Key::of(address);
        let subnet = Subnet {
            address: address.to_canonical(),
            source: key.family.cap(),
        };
        Self {
            resolver: address,
            subnet: Some(subnet),
        }
    }

    /// The client's network that counts, if the resolver tells one.
    pub(crate) fn told(&self) -> Option<Key> {
        let subnet = self.subnet.filter(|subnet| subnet.source > 0)?;
        let key = Key::exactly(subnet.address);
        Some(key.masked(subnet.source.min(key.family.cap())))
    }

    /// The network by which the client is told apart from others.
    pub(crate) fn key(&self) -> Key {
        self.told().unwrap_or_else(|| Key::of(self.resolver).client())
    }
}

/// The pool of one client, and the network for which the same answer holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed<'a> {
    pub(crate) pool: &'a Pool,
    /// Length of the largest network around the client in which every client has this pool.
    pub(crate) block: u8,
}

/// The pools for one kind of answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pools {
    /// By place; the last one is that of clients without a place.
    of_place: Vec<u32>,
    /// By the client's network.
    of_subnet: Both,
    pools: Vec<Pool>,
    /// Whether all clients have the same pool.
    is_one: bool,
}

impl Pools {
    /// The pools of the edges for which `is_eligible` holds.
    pub(crate) fn compile(
        edges: &[EdgeFacts],
        geography: &Geography,
        nearest: &Nearest,
        is_eligible: impl Fn(&EdgeFacts) -> bool + Copy,
    ) -> Self {
        let mut known: HashMap<Vec<u16>, u32> = HashMap::new();
        let mut pools = Vec::new();
        let mut of = |mut members: Vec<u16>| {
            members.sort_unstable();
            if let Some(pool) = known.get(&members) {
                return *pool;
            }
            let next = pools.len() as u32;
            let candidate = |edge: &u16| edges[usize::from(*edge)].candidate(*edge);
            pools.push(Pool::new(members.iter().map(candidate).collect()));
            known.insert(members, next);
            next
        };
        let places = 0..geography.places().len();
        let mut of_place: Vec<u32> = places
            .map(|place| of(near(edges, nearest, place, is_eligible)))
            .collect();
        of_place.push(of(anywhere(edges, is_eligible)));
        let nowhere = of_place.len() - 1;
        let of_subnet = geography.subnets(|place| of_place[place.unwrap_or(nowhere)]);
        let is_one = of_subnet.only().is_some();
        Self {
            of_place,
            of_subnet,
            pools,
            is_one,
        }
    }

    /// The pool of a client.
    pub(crate) fn of(&self, client: &Client, geography: &Geography) -> Placed<'_> {
        match client.told() {
            Some(key) => {
                let range = self.of_subnet.find(key);
                // Scope 0 would hold for both families (RFC 7871 §7.2.1), which one family alone cannot say.
                let block = if self.is_one { 0 } else { range.scope(key.bits).max(1) };
                Placed {
                    pool: &self.pools[range.value as usize],
                    block,
                }
            }
            None => {
                let nowhere = self.of_place.len() - 1;
                let place = geography.place_of_resolver(Key::of(client.resolver));
                let pool = self.of_place[place.unwrap_or(nowhere)];
                Placed {
                    pool: &self.pools[pool as usize],
                    block: 0,
                }
            }
        }
    }

    /// Every draw that some client may have: of edges in order, or of edges to name.
    pub(crate) fn draws(&self, is_ordered: bool) -> impl Iterator<Item = Drawn> + '_ {
        self.pools.iter().flat_map(move |pool| pool.draws(is_ordered))
    }

    /// Number of networks and of pools.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.of_subnet.v4.len() + self.of_subnet.v6.len(), self.pools.len())
    }
}

/// The edges for clients without a place: those that are measured to be nearest to the name server, since resolvers ask
/// the name server that answers them fastest; without measurements, all.
fn anywhere(edges: &[EdgeFacts], is_eligible: impl Fn(&EdgeFacts) -> bool) -> Vec<u16> {
    let named = || {
        edges
            .iter()
            .zip(0_u16..)
            .filter(|(edge, _)| edge.is_named && is_eligible(edge))
    };
    let best = named().filter_map(|(edge, _)| edge.connects_in).min();
    let is_quick = |edge: &EdgeFacts| match (edge.connects_in, best) {
        (Some(time), Some(best)) => time <= best + AS_QUICK,
        (None, Some(_)) => false,
        (_, None) => true,
    };
    named().filter(|(edge, _)| is_quick(edge)).map(|(_, at)| at).collect()
}

/// The edges for clients at a place, at most [`FEW`].
fn near(
    edges: &[EdgeFacts],
    nearest: &Nearest,
    place: usize,
    is_eligible: impl Fn(&EdgeFacts) -> bool + Copy,
) -> Vec<u16> {
    let (kept, is_all) = nearest.of(place);
    match near_of(edges, kept, is_all, is_eligible) {
        Some(found) => found,
        None => near_of(edges, &nearest.all_of(place), true, is_eligible).unwrap_or_default(),
    }
}

/// The same from a list of edges, nearest first. `None` if edges that are not in the list may belong to the result.
fn near_of(
    edges: &[EdgeFacts],
    seen: &[Seen],
    is_all: bool,
    is_eligible: impl Fn(&EdgeFacts) -> bool,
) -> Option<Vec<u16>> {
    let facts = |seen: &Seen| &edges[usize::from(seen.0)];
    let eligible = || seen.iter().filter(|seen| is_eligible(facts(seen)));
    let Some(first) = eligible().next() else {
        return is_all.then(Vec::new);
    };
    // The edges that clients of this place have when nothing is out.
    let limit = within(first.1, AS_NEAR_KM);
    let usual: Vec<&Seen> = eligible().take_while(|seen| seen.1 >= limit).take(FEW).collect();
    if !is_all && usual.len() < FEW && seen.last().is_some_and(|last| last.1 >= limit) {
        return None;
    }
    let wanted: u32 = usual.iter().map(|seen| facts(seen).weight * 100).sum::<u32>() / 2;

    let mut named = eligible().filter(|seen| facts(seen).is_named).peekable();
    let Some(first) = named.peek() else {
        return is_all.then(Vec::new);
    };
    let limit = within(first.1, AS_NEAR_KM);
    let (mut found, mut weight) = (Vec::with_capacity(FEW), 0);
    for seen in named {
        if found.len() == FEW || (seen.1 < limit && weight >= wanted) {
            return Some(found);
        }
        found.push(seen.0);
        weight += facts(seen).weight_now();
    }
    // The list ended before the limit.
    is_all.then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(id: &str, latitude: f64, weight: u32) -> EdgeFacts {
        EdgeFacts {
            id: EdgeId::new(id).unwrap(),
            name: id.into(),
            port: 443,
            location: Location {
                latitude,
                longitude: 0.0,
            },
            hash: 0,
            weight,
            percent: 100,
            is_named: true,
            connects_in: None,
            v4: Vec::new(),
            v6: Vec::new(),
        }
    }

    /// Edges on one meridian, a degree is 111 km: two at the equator, one 4 degrees away, two far away.
    fn row() -> Vec<EdgeFacts> {
        vec![
            edge("a", 0.0, 100),
            edge("b", 1.0, 300),
            edge("c", 4.0, 100),
            edge("d", 20.0, 200),
            edge("e", 40.0, 200),
        ]
    }

    fn near_equator(edges: &[EdgeFacts]) -> Vec<u16> {
        let places = [Location {
            latitude: 0.0,
            longitude: 0.0,
        }];
        let locations: Vec<Location> = edges.iter().map(|edge| edge.location).collect();
        near(edges, &Nearest::new(&places, &locations), 0, |_| true)
    }

    #[test]
    fn clients_get_the_edges_near_them_however_far_the_nearest_is() {
        let mut edges = row();
        assert_eq!(near_equator(&edges), [0, 1, 2]);
        for near in &mut edges[..3] {
            near.is_named = false;
        }
        // Nothing near is left. The next edge alone has less than half of the capacity that was here.
        assert_eq!(near_equator(&edges), [3, 4]);
    }

    #[test]
    fn when_most_of_the_capacity_is_out_edges_farther_away_join() {
        let mut edges = row();
        // 200 of 500 are left: the next edge joins, and with it there are 400.
        edges[1].is_named = false;
        assert_eq!(near_equator(&edges), [0, 2, 3]);
        // 400 of 500 are left: nobody has to go far.
        edges[1].is_named = true;
        edges[2].is_named = false;
        assert_eq!(near_equator(&edges), [0, 1]);
    }

    #[test]
    fn an_edge_on_its_way_back_has_company_until_it_carries_its_part() {
        let mut edges = vec![edge("a", 0.0, 100), edge("b", 30.0, 100)];
        edges[0].percent = 1;
        assert_eq!(near_equator(&edges), [0, 1]);
        edges[0].percent = 50;
        assert_eq!(near_equator(&edges), [0]);
    }

    #[test]
    fn clients_without_a_place_get_the_edges_that_are_measured_to_be_quick() {
        let mut edges = row();
        assert_eq!(anywhere(&edges, |_| true), [0, 1, 2, 3, 4]);
        for (edge, ms) in [(0, 90), (1, 20), (3, 26), (4, 29)] {
            edges[edge].connects_in = Some(Duration::from_millis(ms));
        }
        assert_eq!(anywhere(&edges, |_| true), [1, 3]);
        edges[1].is_named = false;
        assert_eq!(anywhere(&edges, |_| true), [3, 4]);
    }

    #[test]
    fn an_edge_behind_many_that_are_out_is_found() {
        let mut edges: Vec<EdgeFacts> = (0..40)
            .map(|nth| edge(&format!("x{nth}"), f64::from(nth), 100))
            .collect();
        for out in &mut edges[..30] {
            out.is_named = false;
        }
        let found = near_equator(&edges);
        assert_eq!(found[0], 30);
        assert!(found.len() <= FEW);
        for edge in &mut edges {
            edge.is_named = false;
        }
        assert!(near_equator(&edges).is_empty());
    }
}
