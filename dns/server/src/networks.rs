//! The operator's places of resolvers and clients, by network.

use std::net::IpAddr;

use daemon::config::Problems;
use serde::Deserialize;
use steering::Prefix;
use topology::Location;

/// Most networks. They are compiled into ranges, so their number costs memory and no time per question.
const NETWORKS_MAX: usize = 100_000;

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

/// Reads the networks. The error contains every problem, each with its key.
pub fn read(networks: &[Network]) -> Result<Vec<(Prefix, Location)>, Problems> {
    let mut problems = Problems::default();
    let mut placed = Vec::new();
    for (index, network) in networks.iter().enumerate() {
        match read_one(network) {
            Ok(network) => placed.push(network),
            Err((key, problem)) => problems.add(format!("network[{index}].{key}"), problem),
        }
    }
    if networks.len() > NETWORKS_MAX {
        let text = format!("{} networks are too many; write at most {NETWORKS_MAX}", networks.len());
        problems.add("network", text);
    }
    if problems.is_empty() { Ok(placed) } else { Err(problems) }
}

fn read_one(entry: &Network) -> Result<(Prefix, Location), (&'static str, String)> {
    let prefix = &entry.prefix;
    let (address, length) = prefix
        .split_once('/')
        .and_then(|(address, length)| Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)))
        .ok_or_else(|| {
            let text = format!("\"{prefix}\" is not a network; write address/length, such as \"192.0.2.0/24\"");
            ("prefix", text)
        })?;
    let network = Prefix::new(address, length).ok_or_else(|| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
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
    let location = Location {
        latitude: entry.latitude,
        longitude: entry.longitude,
    };
    Ok((network, location))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(prefix: &str) -> Network {
        Network {
            prefix: prefix.to_owned(),
            latitude: 51.5,
            longitude: 0.0,
        }
    }

    #[test]
    fn networks_of_both_families_are_read() {
        let read = read(&[network("192.0.2.77/24"), network("2001:db8::/32"), network("0.0.0.0/0")]).unwrap();
        let shown: Vec<String> = read.iter().map(|(prefix, _)| prefix.to_string()).collect();
        assert_eq!(shown, ["192.0.2.0/24", "2001:db8::/32", "0.0.0.0/0"]);
    }

    #[test]
    fn a_text_that_is_no_network_is_refused() {
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "/"] {
            assert!(read(&[network(bad)]).is_err(), "{bad}");
        }
    }
}
