//! Every step of one choice, for people.

use topology::{EdgeId, Location};

use crate::{Answer, Answers, Client, NoSuchZone, Prefix, Source, Type, labels, prefix::Key};

/// The steps that lead to one answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// The network by which the client is told apart from others.
    pub client: Prefix,
    /// Whether the resolver told the client's network. If not, the resolver's own address counts.
    pub is_subnet: bool,
    /// The place of that network and the source that knows it.
    pub place: Option<(Location, Source)>,
    /// Every edge. Empty if the answer does not depend on the client.
    pub edges: Vec<ExplainedEdge>,
    /// Number of edges that one answer may name beside each other without changing their parts.
    pub named_max: usize,
    /// The networks in which every client gets these records.
    pub holds_for: Option<Prefix>,
    /// The answer.
    pub answer: Answer,
}

/// One edge, as a client's choice sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplainedEdge {
    /// The edge.
    pub id: EdgeId,
    /// Whether the plan lets DNS name it.
    pub is_named: bool,
    /// The distance from the client's place.
    pub distance_km: Option<f64>,
    /// The weight of the topology.
    pub weight: u32,
    /// The part of its weight that it has now, in percent.
    pub percent: u32,
    /// Whether the edge is near enough to be drawn for this client.
    pub is_candidate: bool,
    /// The place in this client's order, from 1.
    pub rank: Option<usize>,
}

impl Answers {
    /// The steps that lead to the answer for a name in its usual form.
    pub fn explain(&self, name: &str, kind: Type, client: &Client) -> Result<Explained, NoSuchZone> {
        let answer = self.lookup(&labels(name), kind, client, usize::MAX)?;
        let key = client.key();
        let is_subnet = client.told().is_some();
        let is_service = name.trim_end_matches('.').eq_ignore_ascii_case(&self.zone);
        let chosen = self.choose(kind, client).filter(|_| is_service);
        let looked_up = if is_subnet { key } else { Key::of(client.resolver) };
        let place = self.geography.explain(looked_up, is_subnet);
        let mut edges = Vec::new();
        if let Some(chosen) = &chosen {
            let pool = chosen.placed.pool;
            let order = pool.drawn_for(key);
            for (edge, at) in self.edges.iter().zip(0_u16..) {
                edges.push(ExplainedEdge {
                    id: edge.id.clone(),
                    is_named: edge.is_named,
                    distance_km: place.map(|(place, _)| place.distance_km(edge.location)),
                    weight: edge.weight,
                    percent: edge.percent,
                    is_candidate: pool.candidates().iter().any(|candidate| candidate.edge == at),
                    rank: order
                        .as_slice()
                        .iter()
                        .position(|drawn| *drawn == at)
                        .map(|rank| rank + 1),
                });
            }
        }
        let holds_for = (is_subnet && chosen.is_some()).then(|| prefix(key, answer.scope));
        Ok(Explained {
            client: prefix(key, key.family.cap()),
            is_subnet,
            place,
            named_max: chosen.as_ref().map_or(0, |chosen| chosen.placed.pool.named()),
            edges,
            holds_for,
            answer,
        })
    }

    /// The names of the zone with the types of their records, for pages.
    pub fn names(&self) -> Vec<(String, Vec<Type>)> {
        self.names
            .types()
            .into_iter()
            .map(|(name, types)| (name.to_string(), types))
            .collect()
    }
}

fn prefix(key: Key, length: u8) -> Prefix {
    Prefix {
        key: key.masked(length),
        length,
    }
}
