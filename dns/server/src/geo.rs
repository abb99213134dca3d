//! Reads a database of places in MaxMind's format (GeoLite2 City, DB-IP City Lite, or one's own).

use std::{net::IpAddr, path::Path};

use anyhow::Context as _;
use maxminddb::{Reader, WithinOptions};
use serde::Deserialize;
use steering::Prefix;
use topology::Location;

use crate::texts;

/// Largest database, in bytes. The largest free ones have 130 MB.
const DATABASE_BYTES_MAX: u64 = 1 << 30;

/// The part of a database's record that steering needs.
#[derive(Debug, Deserialize)]
struct City {
    location: Option<Coordinates>,
}

#[derive(Debug, Deserialize)]
struct Coordinates {
    latitude: Option<f64>,
    longitude: Option<f64>,
}

/// All networks of a database with a position. The whole file is read once and is not needed afterwards.
pub fn read(file: &Path) -> anyhow::Result<Vec<(Prefix, Location)>> {
    let what = || format!("geoip_database {}", file.display());
    let bytes = std::fs::metadata(file).with_context(what)?.len();
    anyhow::ensure!(
        bytes <= DATABASE_BYTES_MAX,
        texts::database_too_long(&what(), bytes, DATABASE_BYTES_MAX)
    );
    let reader = Reader::open_readfile(file).with_context(what)?;
    let mut found = Vec::new();
    for entry in reader.networks(WithinOptions::default()).with_context(what)? {
        let entry = entry.with_context(what)?;
        // A record of another kind, such as one that only knows the country, has no position.
        let Some(City { location: Some(at) }) = entry.decode().with_context(what)? else {
            continue;
        };
        let network = entry.network().with_context(what)?;
        let (Some(latitude), Some(longitude)) = (at.latitude, at.longitude) else {
            continue;
        };
        let location = Location { latitude, longitude };
        if let Some(prefix) = prefix(network.ip(), network.prefix()).filter(|_| is_on_earth(location)) {
            found.push((prefix, location));
        }
    }
    anyhow::ensure!(!found.is_empty(), texts::database_without_places(&what()));
    Ok(found)
}

/// The network as steering has it. IPv4 networks of a database for both families may come as `::a.b.c.d/96+n`.
fn prefix(address: IpAddr, length: u8) -> Option<Prefix> {
    match address {
        IpAddr::V6(v6) if length >= 96 && v6.segments()[..6] == [0; 6] => {
            let v4 = std::net::Ipv4Addr::from_bits(v6.to_bits() as u32);
            Prefix::new(v4.into(), length - 96)
        }
        address => Prefix::new(address, length),
    }
}

fn is_on_earth(location: Location) -> bool {
    (-90.0..=90.0).contains(&location.latitude) && (-180.0..=180.0).contains(&location.longitude)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Writes a database of IPv4 networks in MaxMind's format (spec 2.0): a search tree with records of 24 bits, a data
    /// section, and the metadata.
    pub(crate) fn database(networks: &[(&str, u8, f64, f64)]) -> Vec<u8> {
        #[derive(Default, Clone, Copy)]
        struct Node([Option<Next>; 2]);
        #[derive(Clone, Copy)]
        enum Next {
            Node(usize),
            Data(usize),
        }
        let mut nodes = vec![Node::default()];
        let mut data = Vec::new();
        for (address, length, latitude, longitude) in networks {
            let bits = address.parse::<std::net::Ipv4Addr>().unwrap().to_bits();
            let mut at = 0;
            for depth in 0..*length {
                let side = (bits >> (31 - depth) & 1) as usize;
                if depth + 1 == *length {
                    nodes[at].0[side] = Some(Next::Data(data.len()));
                } else {
                    at = match nodes[at].0[side] {
                        Some(Next::Node(next)) => next,
                        _ => {
                            nodes.push(Node::default());
                            let next = nodes.len() - 1;
                            nodes[at].0[side] = Some(Next::Node(next));
                            next
                        }
                    };
                }
            }
            let place = [("latitude", *latitude), ("longitude", *longitude)];
            data.push(0xe1);
            text(&mut data, "location");
            data.push(0xe2);
            for (key, degrees) in place {
                text(&mut data, key);
                data.push(0x68);
                data.extend(degrees.to_be_bytes());
            }
        }
        let mut file = Vec::new();
        for node in &nodes {
            for next in node.0 {
                let record = match next {
                    None => nodes.len(),
                    Some(Next::Node(node)) => node,
                    Some(Next::Data(at)) => nodes.len() + 16 + at,
                };
                file.extend(&(record as u32).to_be_bytes()[1..]);
            }
        }
        file.extend([0; 16]);
        file.extend(data);
        file.extend(b"\xab\xcd\xefMaxMind.com");
        let numbers: BTreeMap<&str, u16> = BTreeMap::from([
            ("binary_format_major_version", 2),
            ("binary_format_minor_version", 0),
            ("ip_version", 4),
            ("record_size", 24),
        ]);
        file.push(0xe0 | 9);
        for (key, number) in numbers {
            text(&mut file, key);
            file.push(0xa2);
            file.extend(number.to_be_bytes());
        }
        text(&mut file, "node_count");
        file.push(0xc4);
        file.extend((nodes.len() as u32).to_be_bytes());
        text(&mut file, "build_epoch");
        file.extend([0x08, 2]);
        file.extend(1_700_000_000_u64.to_be_bytes());
        text(&mut file, "database_type");
        text(&mut file, "Test-City");
        text(&mut file, "languages");
        file.extend([0x00, 4]);
        text(&mut file, "description");
        file.push(0xe0);
        file
    }

    fn text(out: &mut Vec<u8>, text: &str) {
        out.push(0x40 | text.len() as u8);
        out.extend(text.as_bytes());
    }

    #[test]
    fn every_network_with_a_position_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("city.mmdb");
        let networks = [("10.0.0.0", 8, 51.5, -0.1), ("192.0.2.0", 24, 40.7, -74.0)];
        std::fs::write(&file, database(&networks)).unwrap();
        let read: Vec<String> = read(&file)
            .unwrap()
            .iter()
            .map(|(prefix, location)| format!("{prefix} {} {}", location.latitude, location.longitude))
            .collect();
        assert_eq!(read, ["10.0.0.0/8 51.5 -0.1", "192.0.2.0/24 40.7 -74"]);
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("city.mmdb");
        for contents in [&b""[..], b"no database", &database(&[("10.0.0.0", 8, 500.0, 0.0)])] {
            std::fs::write(&file, contents).unwrap();
            let error = format!("{:#}", read(&file).unwrap_err());
            assert!(error.contains("city.mmdb"), "{error}");
        }
        assert!(read(&folder.path().join("nothing")).is_err());
    }
}
