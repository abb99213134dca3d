//! One probe of one edge from outside, at the addresses to which devices connect.
//!
//! An edge hears itself and the control plane. It cannot know that a firewall, a route or a balancer keeps devices out.
//! Therefore the other vantages try its public addresses as a device would.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::io::Errno;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use topology::{Edge, EdgeId, NodeId};
use verdict::{EdgeProbe, FAILURE_LENGTH_MAX};

use crate::{Cause, Lateness, texts};

/// Most edges that each vantage tries in a tick. Because vantages share the work evenly, each edge is also tried by
/// that many vantages, however large the fleet is.
pub(crate) const EDGES_MAX: usize = 16;

/// The request that a probe sends. Every edge answers it: on a plaintext port with a page or an error, on a TLS port
/// with the hint that the port speaks TLS. The edge recognises a probe by these bytes, and does not count it as a
/// device on the wrong port.
pub const QUESTION: &[u8] =
    b"HEAD / HTTP/1.1\r\nHost: meridian-probe\r\nUser-Agent: meridian-probe\r\nConnection: close\r\n\r\n";

/// The edges that this vantage tries: those after it in the order of names, cyclically, never the vantage itself.
pub(crate) fn to_try<'e>(vantage: &NodeId, edges: impl Iterator<Item = &'e Edge>) -> Vec<&'e Edge> {
    let others: Vec<&Edge> = edges.filter(|edge| edge.id.as_str() != vantage.as_str()).collect();
    let first = others.partition_point(|edge| edge.id.as_str() < vantage.as_str());
    let (before, after) = others.split_at(first);
    after.iter().chain(before).take(EDGES_MAX).copied().collect()
}

/// Tries all addresses of an edge at once; one that answers is enough. Returns `None` when nothing can be told: the
/// prober itself could not connect, or the other side accepted the connection and closed it. The other side may then be
/// a full edge, which cannot answer newcomers behind TLS, or a balancer whose edge is gone; other nodes notice that the
/// edge is silent.
pub(crate) async fn probe_edge(
    (id, addresses, port): (EdgeId, Vec<IpAddr>, u16),
    deadline: Duration,
    lateness: &Lateness,
) -> Option<EdgeProbe> {
    let mut edge_probes = tokio::task::JoinSet::new();
    for address in addresses {
        let address = SocketAddr::new(address, port);
        edge_probes.spawn(async move {
            let answer = timeout(deadline, ask(address)).await;
            (address, answer.unwrap_or(Err(EdgeProbeError::TimedOut(deadline))))
        });
    }
    let (mut failure, mut is_taken) = (None, false);
    while let Some(probed) = edge_probes.join_next().await {
        match probed {
            Ok((_, Ok(()))) => {
                return Some(EdgeProbe {
                    edge: id,
                    reached: true,
                    failure: String::new(),
                });
            }
            Ok((_, Err(EdgeProbeError::Closed))) => is_taken = true,
            Ok((address, Err(error))) if error.is_own(address, lateness) => {
                tracing::debug!(edge = %id, %address, %error, "this node could not probe an edge, so the probe does not count");
            }
            Ok((address, Err(error))) => failure = Some(texts::at_address(address, error)),
            Err(_) => {}
        }
    }
    failure = failure.filter(|_| !is_taken);
    Some(EdgeProbe {
        edge: id,
        reached: false,
        failure: failure?.chars().take(FAILURE_LENGTH_MAX).collect(),
    })
}

/// The reason for which no answer came.
#[derive(Debug, thiserror::Error)]
enum EdgeProbeError {
    #[error("{}", texts::cannot_connect(.0))]
    Connect(#[source] io::Error),
    #[error("{}", texts::edge_broke(.0))]
    Broke(#[source] io::Error),
    #[error("{}", texts::EDGE_CLOSED)]
    Closed,
    #[error("{}", texts::edge_late(*.0))]
    TimedOut(Duration),
}

impl EdgeProbeError {
    /// Whether the prober is at fault, so that the error says nothing about the edge. A prober without a route has no
    /// IPv6 or no network.
    fn is_own(&self, to: SocketAddr, lateness: &Lateness) -> bool {
        match self {
            Self::TimedOut(waited) => lateness.is_late_for(*waited),
            Self::Connect(error) | Self::Broke(error) => Cause::of_connecting(error, to).is_own(),
            Self::Closed => false,
        }
    }

    /// An error after the connection was accepted. A peer that closes a connection with unread data in it causes a
    /// reset.
    fn after_connecting(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::CONNRESET | Errno::PIPE) => Self::Closed,
            _ => Self::Broke(error),
        }
    }
}

async fn ask(address: SocketAddr) -> Result<(), EdgeProbeError> {
    let mut tcp = TcpStream::connect(address).await.map_err(EdgeProbeError::Connect)?;
    tcp.write_all(QUESTION)
        .await
        .map_err(EdgeProbeError::after_connecting)?;
    // A kernel or a balancer accepts connections for servers that are gone. Only a byte proves that a process answers.
    match tcp.read(&mut [0]).await {
        Ok(0) => Err(EdgeProbeError::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(EdgeProbeError::after_connecting(error)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use topology::fixtures::three_primaries;

    use super::*;

    /// Deadline for an edge that does something: only one that hangs reaches it.
    const PATIENT: Duration = Duration::from_secs(5);
    const SHORT: Duration = Duration::from_millis(300);

    /// Starts a server that accepts connections and passes each to `treat`. Returns its port.
    async fn edge<F>(treat: impl Fn(TcpStream) -> F + Send + 'static) -> u16
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(treat(tcp));
            }
        });
        port
    }

    async fn probed(addresses: &[&str], port: u16, lateness: &Lateness) -> Option<(bool, String)> {
        probed_within(PATIENT, addresses, port, lateness).await
    }

    async fn probed_within(
        deadline: Duration,
        addresses: &[&str],
        port: u16,
        lateness: &Lateness,
    ) -> Option<(bool, String)> {
        let addresses = addresses.iter().map(|it| it.parse().unwrap()).collect();
        let id = EdgeId::new("edge-dub").unwrap();
        let seen = probe_edge((id, addresses, port), deadline, lateness).await?;
        Some((seen.reached, seen.failure))
    }

    #[tokio::test]
    async fn an_edge_is_reached_when_one_of_its_addresses_answers() {
        let answers = edge(async |mut tcp: TcpStream| {
            let mut question = vec![0; QUESTION.len()];
            tcp.read_exact(&mut question).await.unwrap();
            let _ = tcp.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").await;
        })
        .await;
        let on_time = Lateness::default();
        let reached = Some((true, String::new()));
        assert_eq!(probed(&["127.0.0.1"], answers, &on_time).await, reached);
        assert_eq!(probed(&["127.0.0.9", "127.0.0.1"], answers, &on_time).await, reached);
        let (reached, failure) = probed(&["127.0.0.9"], answers, &on_time).await.unwrap();
        assert!(
            !reached && failure.contains("127.0.0.9") && failure.contains("refused"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn an_address_that_accepts_and_stays_silent_is_not_reached() {
        let on_time = Lateness::default();
        let hangs = edge(async |tcp: TcpStream| {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(tcp);
        })
        .await;
        let (reached, failure) = probed_within(SHORT, &["127.0.0.1"], hangs, &on_time).await.unwrap();
        assert!(!reached && failure.contains("no answer within"), "{failure}");
        // If the prober itself was late, the missed deadline proves nothing.
        assert_eq!(
            probed_within(SHORT, &["127.0.0.1"], hangs, &Lateness::new(|_| true)).await,
            None
        );
    }

    /// Otherwise a full edge would leave DNS; the next edge would get its devices, become full too, and leave as well.
    #[tokio::test]
    async fn an_edge_that_closes_a_connection_may_be_full_and_is_no_evidence() {
        let on_time = Lateness::default();
        let closes = edge(async |mut tcp: TcpStream| {
            let mut question = vec![0; QUESTION.len()];
            tcp.read_exact(&mut question).await.unwrap();
        })
        .await;
        // Like an edge without a free handshake slot. The unread bytes make the close a reset.
        let resets = edge(async |tcp: TcpStream| {
            tcp.readable().await.unwrap();
            drop(tcp);
        })
        .await;
        for port in [closes, resets] {
            assert_eq!(probed(&["127.0.0.1"], port, &on_time).await, None);
            // One address refuses connections; the other one accepts and closes them.
            assert_eq!(probed(&["127.0.0.9", "127.0.0.1"], port, &on_time).await, None);
        }
    }

    #[test]
    fn a_shortage_of_the_prober_says_nothing_of_an_edge() {
        let on_time = Lateness::default();
        let own = |errno: Errno| {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            EdgeProbeError::Connect(error).is_own(([127, 0, 0, 1], 9).into(), &on_time)
        };
        for errno in [Errno::MFILE, Errno::ADDRNOTAVAIL, Errno::NETDOWN, Errno::PERM] {
            assert!(own(errno), "{errno}");
        }
        for errno in [
            Errno::CONNREFUSED,
            Errno::HOSTUNREACH,
            // This machine has a route there, so a router on the way has none.
            Errno::NETUNREACH,
            Errno::TIMEDOUT,
            Errno::CONNRESET,
        ] {
            assert!(!own(errno), "{errno}");
        }
    }

    #[test]
    fn every_edge_is_tried_by_as_many_others_and_none_tries_itself() {
        let mut topology = three_primaries().topology;
        let one = topology.edges.values().next().unwrap().clone();
        topology.edges = (0..40)
            .map(|n| {
                let id = EdgeId::new(&format!("edge-{n}")).unwrap();
                (id.clone(), Edge { id, ..one.clone() })
            })
            .collect();
        let mut tried = std::collections::BTreeMap::new();
        for vantage in topology.edges.keys() {
            let them = to_try(&NodeId::from(vantage), topology.edges.values());
            assert!(them.iter().all(|edge| edge.id != *vantage));
            for edge in them {
                *tried.entry(edge.id.clone()).or_insert(0) += 1;
            }
        }
        assert_eq!(tried.len(), 40);
        assert!(tried.values().all(|times| *times == EDGES_MAX), "{tried:?}");
        let few = three_primaries().topology;
        let control_plane = NodeId::new("control-plane-1").unwrap();
        assert_eq!(to_try(&control_plane, few.edges.values()).len(), few.edges.len());
    }
}
