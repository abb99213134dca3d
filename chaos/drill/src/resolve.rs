//! Asks the deployment's own name server, as a device with an uncached resolver does.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::{RData, RecordType},
};

/// The name server is on this machine, so one second is long. A second attempt covers a lost packet.
const TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 2;

/// A resolver that asks one name server and caches nothing.
#[derive(Clone)]
pub struct Resolver {
    inner: TokioResolver,
    zone: String,
    port: u16,
}

/// The name server's answer for the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The edges' addresses, in the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// Time for which the answer may be cached, in seconds.
    pub ttl_s: u32,
    /// Time from question to answer.
    pub took: Duration,
}

impl Resolver {
    /// A resolver that asks `dns` for `zone`. Address records carry no port, so the service's `port` is given here.
    pub fn new(dns: SocketAddr, zone: &str, port: u16) -> io::Result<Self> {
        let on_port = |mut connection: ConnectionConfig| {
            connection.port = dns.port();
            connection
        };
        let connections = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
        let server = NameServerConfig::new(dns.ip(), true, connections);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.cache_size = 0;
        options.timeout = TIMEOUT;
        options.attempts = ATTEMPTS;
        options.use_hosts_file = ResolveHosts::Never;
        options.recursion_desired = false;
        let inner = builder.build().map_err(io::Error::other)?;
        Ok(Self {
            inner,
            // The final dot makes the name absolute: the resolver tries no search list.
            zone: format!("{zone}."),
            port,
        })
    }

    /// The addresses of the edges that DNS names now.
    pub async fn answer(&self) -> io::Result<Answer> {
        let asked = Instant::now();
        let lookup = self
            .inner
            .lookup(self.zone.as_str(), RecordType::A)
            .await
            .map_err(|error| io::Error::other(format!("{}: {error}", self.zone)))?;
        let records = lookup.answers();
        let addresses: Vec<IpAddr> = (records.iter())
            .filter_map(|record| match &record.data {
                RData::A(address) => Some(IpAddr::V4(address.0)),
                _ => None,
            })
            .collect();
        if addresses.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{} has no address", self.zone),
            ));
        }
        Ok(Answer {
            addresses,
            ttl_s: records.iter().map(|record| record.ttl).min().unwrap_or_default(),
            took: asked.elapsed(),
        })
    }

    /// The serial number of the zone, which follows the plan's generation.
    pub async fn serial(&self) -> io::Result<u32> {
        let lookup = self.inner.lookup(self.zone.as_str(), RecordType::SOA).await;
        let lookup = lookup.map_err(|error| io::Error::other(format!("{}: {error}", self.zone)))?;
        let serial = lookup.answers().iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        });
        serial.ok_or_else(|| io::Error::other(format!("{} has no SOA record", self.zone)))
    }

    /// Addresses to call, rotated by `turn` places so that callers spread over the edges.
    pub async fn callees(&self, turn: usize) -> io::Result<Vec<SocketAddr>> {
        let mut addresses = self.answer().await?.addresses;
        // A name server may answer in any order; sort, so that `turn` decides.
        addresses.sort_unstable();
        let places = turn % addresses.len();
        addresses.rotate_left(places);
        Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect())
    }
}
