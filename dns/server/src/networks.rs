//! The positions of resolvers, by network. A resolver usually stands near its clients.

use std::net::IpAddr;

use daemon::config::Problems;
use ipnet::IpNet;
use serde::Deserialize;
use steering::Client;
use topology::Location;

/// Most networks. Every question is compared with each of them.
const NETWORKS_MAX: usize = 1000;

/// One network and its position.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The network as `address/length`, IPv4 or IPv6.
    pub prefix: String,
    /// Degrees north, -90..=90.
    pub latitude: f64,
    /// Degrees east, -180..=180.
    pub longitude: f64,
}

/// All networks with a known position.
#[derive(Debug, Clone, Default)]
pub struct Networks(Vec<Placed>);

#[derive(Debug, Clone, Copy)]
struct Placed {
    network: IpNet,
    location: Location,
}

impl Networks {
    /// Reads the networks. The error contains every problem, each with its key.
    pub fn new(networks: &[Network]) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut placed = Vec::new();
        for (index, network) in networks.iter().enumerate() {
            match read(network) {
                Ok(network) => placed.push(network),
                Err((key, problem)) => problems.add(format!("network[{index}].{key}"), problem),
            }
        }
        if networks.len() > NETWORKS_MAX {
            let text = format!("{} networks are too many; write at most {NETWORKS_MAX}", networks.len());
            problems.add("network", text);
        }
        // Longest prefix first, so that the first match is the best one.
        placed.sort_by_key(|placed| std::cmp::Reverse(placed.network.prefix_len()));
        if problems.is_empty() {
            Ok(Self(placed))
        } else {
            Err(problems)
        }
    }

    /// The client with this address, and its position if it is known.
    pub fn client(&self, address: IpAddr) -> Client {
        let address = address.to_canonical();
        let placed = (self.0.iter()).find(|placed| placed.network.contains(&address));
        Client {
            address,
            location: placed.map(|placed| placed.location),
        }
    }
}

fn read(entry: &Network) -> Result<Placed, (&'static str, String)> {
    let prefix = &entry.prefix;
    let (address, length) = prefix
        .split_once('/')
        .and_then(|(address, length)| Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)))
        .ok_or_else(|| {
            let text = format!("\"{prefix}\" is not a network; write address/length, such as \"192.0.2.0/24\"");
            ("prefix", text)
        })?;
    let network = IpNet::new(address, length).map_err(|_| {
        let longest = IpNet::from(address).prefix_len();
        let text = format!("\"{prefix}\" is longer than an address; write a length of at most {longest}");
        ("prefix", text)
    })?;
    for (key, degrees, limit) in [
        ("latitude", entry.latitude, 90.0),
        ("longitude", entry.longitude, 180.0),
    ] {
        if !(-limit..=limit).contains(&degrees) {
            let text = format!("{degrees} is out of range; write degrees from -{limit} to {limit}");
            return Err((key, text));
        }
    }
    Ok(Placed {
        network,
        location: Location {
            latitude: entry.latitude,
            longitude: entry.longitude,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(prefix: &str, latitude: f64) -> Network {
        Network {
            prefix: prefix.to_owned(),
            latitude,
            longitude: 0.0,
        }
    }

    #[test]
    fn the_longest_prefix_counts() {
        let networks = Networks::new(&[
            network("0.0.0.0/0", 1.0),
            network("10.0.0.0/8", 2.0),
            network("10.1.2.3/32", 3.0),
            network("2001:db8::/32", 4.0),
        ])
        .unwrap();
        for (address, expected) in [
            ("192.0.2.1", Some(1.0)),
            ("10.9.9.9", Some(2.0)),
            ("10.1.2.3", Some(3.0)),
            ("::ffff:10.1.2.3", Some(3.0)),
            ("2001:db8:1::1", Some(4.0)),
            ("2001:db9::1", None),
        ] {
            let client = networks.client(address.parse().unwrap());
            let latitude = client.location.map(|location| location.latitude);
            assert_eq!(latitude, expected, "{address}");
        }
    }

    #[test]
    fn a_text_that_is_no_network_is_refused() {
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "/"] {
            assert!(Networks::new(&[network(bad, 0.0)]).is_err(), "{bad}");
        }
    }
}
