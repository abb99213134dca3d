//! The zone that every server of the bench answers for: its plan, and questions about it.

use std::{fmt::Write as _, net::Ipv4Addr};

use topology::{EdgeState, Moment, Snapshot};

/// The zone of the bench.
pub(crate) const ZONE: &str = "voice.bench.test";
/// Names below the zone.
pub(crate) const NAMES: usize = 100;
/// Edges of the large map.
pub(crate) const EDGES: usize = 1000;

/// A snapshot with so many edges, of which the first two serve; or all of them, if there are as many as the large map has.
pub(crate) fn snapshot(edges: usize, created_at: Moment) -> anyhow::Result<Snapshot> {
    let mut text = format!(
        "zone = \"{ZONE}\"\n[[region]]\nid = \"one\"\nrole = \"primary\"\nlatitude = 45.0\nlongitude = 8.0\nsessions_max = 1\n\
         stacks = [\"127.0.0.1:1\"]\n[[name-server]]\nid = \"ns1\"\naddress = \"127.0.0.1\"\n"
    );
    for edge in 0..edges {
        let address = Ipv4Addr::from_bits(0xc000_0201 + edge as u32);
        // Spread over the globe; the first two stand on two continents.
        let (latitude, longitude) = match edge {
            0 => (45.0, 8.0),
            1 => (45.0, -77.0),
            other => ((other * 37 % 120) as f64 - 60.0, (other * 91 % 340) as f64 - 170.0),
        };
        let _ = write!(
            text,
            "[[edge]]\nid = \"edge-{edge}\"\naddresses = [\"{address}\"]\nport = 443\nlatitude = {latitude:.1}\nlongitude = {longitude:.1}\n"
        );
    }
    let mut snapshot = bench::first_snapshot(&text, created_at)?;
    if edges != EDGES {
        for edge in snapshot.plan.edges.values_mut().skip(2) {
            *edge = EdgeState::Drained;
        }
    }
    Ok(snapshot)
}

/// A question of class IN without EDNS.
pub(crate) fn question(name: &str, id: u16, kind: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut bytes = vec![high, low, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}
