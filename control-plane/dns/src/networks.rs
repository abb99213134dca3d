//! Where resolvers stand, by their network. A resolver mostly stands near those who ask it.

use std::net::IpAddr;

use serde::Deserialize;
use steering::Client;
use topology::Location;

/// Networks kept; each is compared with every question.
const NETWORKS_MAX: usize = 1000;

/// One network and its place.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// `address/length`.
    pub prefix: String,
    /// North is positive, -90..=90.
    pub latitude: f64,
    /// East is positive, -180..=180.
    pub longitude: f64,
}

/// All networks whose place is known.
#[derive(Debug, Clone, Default)]
pub struct Networks(Vec<Placed>);

#[derive(Debug, Clone, Copy)]
struct Placed {
    network: IpAddr,
    length: u8,
    location: Location,
}

impl Networks {
    /// Reads them; the error names every problem.
    pub fn new(networks: &[Network]) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut placed: Vec<Placed> = networks
            .iter()
            .filter_map(|network| match read(network) {
                Ok(placed) => Some(placed),
                Err(problem) => {
                    problems.push(format!("network \"{}\": {problem}", network.prefix));
                    None
                }
            })
            .collect();
        if networks.len() > NETWORKS_MAX {
            problems.push(format!(
                "network: {} are more than the {NETWORKS_MAX} compared with every question",
                networks.len()
            ));
        }
        // The longest prefix first, so that the first match counts.
        placed.sort_by_key(|placed| std::cmp::Reverse(placed.length));
        if problems.is_empty() {
            Ok(Self(placed))
        } else {
            Err(problems)
        }
    }

    /// What is known of a client.
    pub fn client(&self, address: IpAddr) -> Client {
        let address = address.to_canonical();
        let placed = (self.0.iter()).find(|placed| holds(placed.network, placed.length, address));
        Client {
            address,
            location: placed.map(|placed| placed.location),
        }
    }
}

fn read(network: &Network) -> Result<Placed, String> {
    let (address, length) = network
        .prefix
        .split_once('/')
        .and_then(|(address, length)| Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)))
        .ok_or("write it as address/length")?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if length > longest {
        return Err(format!("the length is at most {longest}"));
    }
    if !(-90.0..=90.0).contains(&network.latitude) || !(-180.0..=180.0).contains(&network.longitude) {
        return Err("latitude lies in -90 to 90 and longitude in -180 to 180 degrees".to_owned());
    }
    Ok(Placed {
        network: address,
        length,
        location: Location {
            latitude: network.latitude,
            longitude: network.longitude,
        },
    })
}

fn holds(network: IpAddr, length: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            // Shifting by the full width is no shift at all; length 0 matches everything.
            let shift = 32 - u32::from(length);
            network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let shift = 128 - u32::from(length);
            network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
        }
        _ => false,
    }
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
    fn what_is_no_network_is_refused() {
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "/"] {
            assert!(Networks::new(&[network(bad, 0.0)]).is_err(), "{bad}");
        }
    }
}
