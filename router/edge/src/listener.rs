//! Accepting devices, and stopping: addresses are claimed at start, connections are accepted once there is a plan, and
//! a stopping edge keeps accepting until its last session has left, so that latecomers get an answer and not a reset.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use daemon::admin::Readiness;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Edge, answer::Answer, connection::Server};

/// Connections the kernel completes before we accept them; it caps this to its own limit. A reconnect storm of a whole
/// edge's devices is absorbed by accepting, not by waiting.
const BACKLOG: u32 = 4096;
/// Pause after a failed accept. Failures mean that descriptors or memory ran out; trying again at once would only burn
/// the processor that sessions need.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The part of readiness that says whether devices are accepted.
pub const READINESS: &str = "devices";

/// Addresses that are claimed and not yet listened on: a device that comes too early is refused by the kernel and goes
/// to another edge.
pub struct Claimed(Vec<TcpSocket>);

/// Claims addresses, so that a port that is taken is known at start. With `reuse_port` it may be taken by another edge that
/// says the same.
pub fn claim(addresses: &[SocketAddr], reuse_port: bool) -> anyhow::Result<Claimed> {
    let claim = |address: &SocketAddr| {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // Or a restarted edge would wait for the connections of its predecessor to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(reuse_port)?;
        socket.bind(*address)?;
        std::io::Result::Ok(socket)
    };
    let sockets = addresses
        .iter()
        .map(|address| claim(address).with_context(|| format!("cannot claim {address} for devices")))
        .collect::<anyhow::Result<_>>()?;
    Ok(Claimed(sockets))
}

impl Claimed {
    /// Begins to listen; the addresses, with ports.
    pub fn listen(self) -> anyhow::Result<(Vec<TcpListener>, Vec<SocketAddr>)> {
        let listen = |socket: TcpSocket| {
            let listener = socket.listen(BACKLOG)?;
            let address = listener.local_addr()?;
            std::io::Result::Ok((listener, address))
        };
        let listening = self.0.into_iter().map(listen).collect::<std::io::Result<Vec<_>>>();
        Ok(listening.context("cannot listen for devices")?.into_iter().unzip())
    }
}

/// Accepts devices until `stop`, then drains.
pub async fn serve(edge: Arc<Edge>, listeners: Vec<TcpListener>, readiness: Readiness, stop: CancellationToken) {
    let server = Arc::new(Server::new(edge.clone()));
    let places = Arc::new(Semaphore::new(edge.config.limits.connections_max));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    for listener in listeners {
        let accept = accept(
            listener,
            server.clone(),
            edge.clone(),
            places.clone(),
            connections.clone(),
            cut.clone(),
        );
        connections.spawn(cut.clone().run_until_cancelled_owned(accept));
    }
    readiness.set(READINESS, true);
    stop.cancelled().await;

    readiness.set(READINESS, false);
    let limit = edge.config.drain.limit.0;
    tracing::info!(sessions = edge.sessions.count(), window = ?edge.config.drain.window.0, "draining");
    edge.sessions.begin_drain(edge.config.drain.window.0);
    if tokio::time::timeout(limit, edge.sessions.idle()).await.is_err() {
        tracing::warn!(sessions = edge.sessions.count(), ?limit, "cut after the drain limit");
    }
    // What is left now waits for a request that will not be served.
    cut.cancel();
    connections.close();
    connections.wait().await;
}

async fn accept(
    listener: TcpListener,
    server: Arc<Server>,
    edge: Arc<Edge>,
    places: Arc<Semaphore>,
    connections: TaskTracker,
    cut: CancellationToken,
) {
    loop {
        let (tcp, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            // A device that left while it waited is its own affair.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            edge.metrics.refused("full");
            refuse(&tcp);
            continue;
        };
        let server = server.clone();
        connections.spawn(cut.clone().run_until_cancelled_owned(async move {
            server.serve(tcp, client).await;
            drop(place);
        }));
    }
}

/// Says that there is no place, without spending a task on it: the socket's empty buffer takes the few bytes at once.
fn refuse(tcp: &TcpStream) {
    let full = Answer::unavailable("edge_full", "this edge has no place; connect again to reach another", 1);
    let _ = tcp.try_write(&full.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_claimed_address_refuses_until_it_is_listened_on() {
        let claimed = claim(&["127.0.0.1:0".parse().unwrap()], false).unwrap();
        let address = claimed.0[0].local_addr().unwrap();
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let (_listeners, addresses) = claimed.listen().unwrap();
        assert_eq!(addresses, [address]);
        TcpStream::connect(address).await.unwrap();
    }

    #[tokio::test]
    async fn edges_share_a_port_only_when_all_of_them_say_so() {
        let first = claim(&["127.0.0.1:0".parse().unwrap()], true).unwrap();
        let (_listeners, addresses) = first.listen().unwrap();
        assert!(claim(&addresses, false).is_err());
        let second = claim(&addresses, true).unwrap();
        assert_eq!(second.listen().unwrap().1, addresses);
    }
}
