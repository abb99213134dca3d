//! Accepting devices, and stopping. The edge claims its addresses at start and accepts connections once it has a plan. A stopping edge
//! goes on accepting until its last session has left, so that late devices get an answer and not a reset.

use std::{
    future::Future,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use daemon::admin::Readiness;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, Edge,
    accept::handover::{Name, Predecessor, Successor},
    accept::tls::Tls,
    accept::workers::Workers,
    answer::Answer,
    stamp::Stamp,
    texts,
};

/// Pause after a failed accept. Accepting fails when descriptors or memory ran out; a loop without a pause would take the processor
/// from sessions.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The part of readiness that says whether devices are accepted.
pub const READINESS: &str = "devices";

/// Addresses that are claimed and not yet listened on: the kernel refuses a device that comes too early, and it goes to another edge.
/// The sockets of a predecessor listen already.
pub struct Claimed(Vec<(Name, Claim, Option<Arc<Tls>>)>);

enum Claim {
    Bound(TcpSocket),
    Listening(std::net::TcpListener),
}

pub struct Listener {
    name: Name,
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
}

/// Claims the addresses of an edge, so that a taken port shows at start.
pub fn claim(
    config: &Config,
    tls: Option<&Arc<Tls>>,
    mut predecessor: Option<&mut Predecessor>,
) -> anyhow::Result<Claimed> {
    let mut claim = |name: Name, tls: Option<&Arc<Tls>>| {
        let taken = predecessor.as_mut().and_then(|it| it.take(&name));
        let claim = match taken {
            Some(listener) => Claim::Listening(listener),
            None => {
                let bound = daemon::listen::bind(name.address, config.reuse_port);
                let is_taken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
                let remedy = match &bound {
                    Err(error) if is_taken(error) => "; --take-over replaces an edge that runs there",
                    _ => "",
                };
                let bound = bound.with_context(|| format!("cannot listen on {} for devices{remedy}", name.address));
                Claim::Bound(bound?)
            }
        };
        Ok((name, claim, tls.cloned()))
    };
    let plain = config.listen.iter().map(|address| (Name::new("http", *address), None));
    let secure = config
        .tls
        .listen
        .iter()
        .map(|address| (Name::new("https", *address), tls));
    let claimed = plain.chain(secure).map(|(name, tls)| claim(name, tls));
    Ok(Claimed(claimed.collect::<anyhow::Result<_>>()?))
}

impl Claimed {
    /// Begins to listen, in the order of the configuration, plaintext first.
    pub fn listen(self) -> anyhow::Result<Vec<Listener>> {
        let listen = |(name, claim, tls)| {
            let tcp = match claim {
                Claim::Bound(socket) => socket.listen(daemon::listen::BACKLOG),
                Claim::Listening(listener) => TcpListener::from_std(listener),
            }?;
            std::io::Result::Ok(Listener { name, tcp, tls })
        };
        let listening = self.0.into_iter().map(listen).collect::<std::io::Result<_>>();
        listening.context("cannot listen for devices")
    }
}

impl Listener {
    /// The purpose: "http" or "https".
    pub fn purpose(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The bound address, with its port.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// A second descriptor of the socket, for a successor.
    pub fn to_hand_over(&self) -> std::io::Result<(Name, OwnedFd)> {
        Ok((self.name.clone(), self.tcp.as_fd().try_clone_to_owned()?))
    }
}

enum Ending {
    /// The process was told to stop.
    Stop,
    /// Another process accepts devices now.
    Succeeded(Successor),
}

/// Accepts devices until `stop`, or until there is a successor, then drains.
pub async fn serve(
    edge: Arc<Edge>,
    workers: Workers,
    listeners: Vec<Listener>,
    readiness: Readiness,
    stop: CancellationToken,
    succeeded: impl Future<Output = Successor>,
) {
    let workers = Arc::new(workers);
    let slots = Arc::new(Semaphore::new(edge.config.limits.connections_max));
    let connections = TaskTracker::new();
    let accepting = CancellationToken::new();
    for listener in listeners {
        let accept = accept(
            listener,
            workers.clone(),
            edge.clone(),
            slots.clone(),
            connections.clone(),
        );
        connections.spawn(accepting.clone().run_until_cancelled_owned(accept));
    }
    readiness.set(READINESS, true);
    let ending = tokio::select! {
        () = stop.cancelled() => Ending::Stop,
        successor = succeeded => Ending::Succeeded(successor),
    };

    readiness.set(READINESS, false);
    if let Ending::Succeeded(successor) = ending {
        // The successor accepts the connections that wait in the sockets.
        accepting.cancel();
        let sessions = edge.sessions.clone();
        tokio::select! {
            () = left_to_successor(&edge, &connections) => {}
            () = successor.tell(move || sessions.count()) => {}
            // Tasks wait for this token.
            () = stop.cancelled() => drain(&edge).await,
        }
    } else {
        drain(&edge).await;
    }
    // The remaining connections wait for requests that the edge will not serve.
    accepting.cancel();
    workers.stop();
    connections.close();
    connections.wait().await;
}

/// Lets sessions leave, and cuts those that are left after `drain.limit`.
async fn drain(edge: &Edge) {
    let window = edge.config.drain.window.0;
    edge.sessions.begin_drain(window);
    left_within(edge, window).await;
}

/// The same at the pace of an upgrade.
async fn left_to_successor(edge: &Edge, connections: &TaskTracker) {
    let window = edge.config.drain.upgrade_window.0;
    edge.sessions.begin_drain_to_successor(window);
    // This process serves the connections that it accepted, for a bounded time.
    edge.sessions.all_arrived().await;
    left_within(edge, window).await;
    // To close a connection may lose a request that the device is just sending. So each connection closes with its next answer, or
    // after the time that it may wait for a request anyway.
    connections.close();
    let _ = tokio::time::timeout(edge.config.timeouts.keep_alive.0, connections.wait()).await;
}

async fn left_within(edge: &Edge, window: Duration) {
    let drain = &edge.config.drain;
    let limit = window + drain.limit.0.saturating_sub(drain.window.0);
    tracing::info!(sessions = edge.sessions.count(), ?window, "draining");
    if tokio::time::timeout(limit, edge.sessions.idle()).await.is_err() {
        tracing::warn!(sessions = edge.sessions.count(), ?limit, "{}", texts::CUT_AFTER_DRAIN);
    }
    edge.sessions.http2_ended(edge.config.timeouts.close.0).await;
}

async fn accept(
    listener: Listener,
    workers: Arc<Workers>,
    edge: Arc<Edge>,
    slots: Arc<Semaphore>,
    connections: TaskTracker,
) {
    loop {
        let (tcp, client) = match listener.tcp.accept().await {
            Ok(accepted) => accepted,
            // The device left while it waited.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!(%error, "{}", texts::CANNOT_ACCEPT);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            refuse(&edge, &tcp, &listener, ("full", &Answer::edge_full()));
            continue;
        };
        let connected = match edge.admission.connect(client.ip()) {
            Ok(connected) => connected,
            Err(refusal) => {
                refuse(&edge, &tcp, &listener, (refusal.as_str(), &refusal.answer()));
                continue;
            }
        };
        let tls = listener.tls.clone();
        let worker = workers.least_loaded();
        let (server, counted) = (worker.server.clone(), worker.connections.clone());
        // The connection moves to the event loop of a worker, which wraps it again.
        let Ok(tcp) = tcp.into_std() else { continue };
        let connection = async move {
            let Ok(tcp) = TcpStream::from_std(tcp) else { return };
            server.serve(tcp, client, tls.as_deref()).await;
            drop((slot, connected, counted));
        };
        connections.spawn_on(connection, &worker.event_loop);
    }
}

/// Refuses a connection without a task: the socket's empty buffer takes the few bytes of the answer at once.
///
/// With TLS the edge could answer only after a handshake, for which it has no slot: the connection just ends.
fn refuse(edge: &Edge, tcp: &TcpStream, listener: &Listener, (reason, answer): (&'static str, &Answer)) {
    let stamp = Stamp::blank();
    edge.refused(reason, &stamp.id);
    if listener.tls.is_none() {
        let _ = tcp.try_write(&answer.bytes(&stamp, &edge.config.cors));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = include_str!("../../../../configs/edge.toml").replace("127.0.0.1:8080", "127.0.0.1:0");
        daemon::config::parse("edge.toml", &text).unwrap()
    }

    #[tokio::test]
    async fn a_claimed_address_refuses_until_it_is_listened_on() {
        let claimed = claim(&config(), None, None).unwrap();
        let Claim::Bound(socket) = &claimed.0[0].1 else {
            panic!("there is no predecessor");
        };
        let address = socket.local_addr().unwrap();
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let listeners = claimed.listen().unwrap();
        assert_eq!(listeners[0].address().unwrap(), address);
        TcpStream::connect(address).await.unwrap();
    }

    #[tokio::test]
    async fn edges_share_a_port_only_when_all_of_them_say_so() {
        let shares = |address: SocketAddr| Config {
            listen: vec![address],
            reuse_port: true,
            ..config()
        };
        let first = claim(&shares("127.0.0.1:0".parse().unwrap()), None, None).unwrap();
        let first = first.listen().unwrap();
        let address = first[0].address().unwrap();
        let alone = Config {
            reuse_port: false,
            ..shares(address)
        };
        assert!(claim(&alone, None, None).is_err());
        let second = claim(&shares(address), None, None).unwrap().listen().unwrap();
        assert_eq!(second[0].address().unwrap(), address);
    }
}
