//! Asks the deployment's own name server, as a device behind a resolver without a cache would.

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

/// The name server is on the same machine; one lost packet may be repeated.
const TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 2;

/// Asks one name server, and caches nothing.
#[derive(Clone)]
pub struct Resolver {
    inner: TokioResolver,
    zone: String,
    port: u16,
}

/// The addresses of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// In the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// For how long it may be cached, in seconds.
    pub ttl_s: u32,
    /// How long it took.
    pub took: Duration,
}

impl Resolver {
    /// Asks `dns` for `zone`; the service listens on `port`, which address records do not carry.
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
            // With the final dot: no search list is ever tried.
            zone: format!("{zone}."),
            port,
        })
    }

    /// The edges that the name server names now.
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

    /// The serial number of the zone: it follows the plan.
    pub async fn serial(&self) -> io::Result<u32> {
        let lookup = self.inner.lookup(self.zone.as_str(), RecordType::SOA).await;
        let lookup = lookup.map_err(|error| io::Error::other(format!("{}: {error}", self.zone)))?;
        let serial = lookup.answers().iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        });
        serial.ok_or_else(|| io::Error::other(format!("{} has no SOA record", self.zone)))
    }

    /// Where to call, with the answer turned by `turn` places, so that callers spread over the edges.
    pub async fn callees(&self, turn: usize) -> io::Result<Vec<SocketAddr>> {
        let mut addresses = self.answer().await?.addresses;
        // The order of an answer is nobody's promise; ours is.
        addresses.sort_unstable();
        let places = turn % addresses.len();
        addresses.rotate_left(places);
        Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect())
    }
}
