//! The addresses of the members: free ones for a new cluster, the same again after a restart.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use serde::{Deserialize, Serialize};

use super::{
    Size,
    error::{EtcdError, failed},
};
use crate::network::Network;

// etcd's default ports. Like the ports of a world they lie below the ephemeral ports, so that no outgoing connection
// takes the port of a member that is down.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const METRICS_PORT: u16 = 2479;

/// Networks to try before giving up. One is enough unless another process listens on one of the ports at all addresses.
pub(super) const ATTEMPTS_MAX: u16 = 16;

/// The addresses at which a member listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Addresses {
    pub(super) client: SocketAddr,
    pub(super) peer: SocketAddr,
    /// Plain text also where clients need a certificate.
    pub(super) metrics: SocketAddr,
}

impl Addresses {
    /// Chooses a random network in which every address is free.
    pub(super) fn choose(size: Size) -> Result<(Vec<Self>, Network), EtcdError> {
        let mut attempt = 0;
        loop {
            let network = Network::claim_any().map_err(|error| failed("claim a loopback network", error))?;
            let [a, b, c] = network.prefix();
            let members = 1..=if size == Size::One { 1 } else { 3 };
            let all: Vec<Self> = members
                .map(|host| {
                    let ip = Ipv4Addr::new(a, b, c, host);
                    let at = |port| (ip, port + 2 * attempt).into();
                    Self {
                        client: at(CLIENT_PORT),
                        peer: at(PEER_PORT),
                        metrics: at(METRICS_PORT),
                    }
                })
                .collect();
            let mut sockets = all
                .iter()
                .flat_map(|member| [member.client, member.peer, member.metrics]);
            attempt += 1;
            match sockets.try_for_each(|address| TcpListener::bind(address).map(drop)) {
                Ok(()) => return Ok((all, network)),
                Err(_) if attempt < ATTEMPTS_MAX => {}
                Err(error) => return Err(failed("find free loopback addresses", error)),
            }
        }
    }
}

/// Claims the network that the cluster used before a restart.
pub(super) fn claim_again(addresses: &[Addresses]) -> Result<Network, EtcdError> {
    let prefix = match addresses.first().map(|member| member.client.ip()) {
        Some(IpAddr::V4(ip)) => ip.octets(),
        Some(IpAddr::V6(_)) | None => Ipv4Addr::LOCALHOST.octets(),
    };
    let [a, b, c, _] = prefix;
    Network::claim([a, b, c]).map_err(|error| failed(format!("claim the network {a}.{b}.{c}.0/24 again"), error))
}
