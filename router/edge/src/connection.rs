//! One connection of a device, from its first byte to its last: HTTP requests go to pingora, one after the other, and an
//! upgrade to the Realtime WebSocket goes to the tunnel.
//!
//! The head of every request is read here and not by pingora, so that limits of size and time are ours, and so that
//! upgrades never take pingora's own path, which may close a session whose region answers at once
//! (cloudflare/pingora#946) and ends any session after a minute of silence.

use std::{net::SocketAddr, os::fd::AsRawFd as _, sync::Arc, time::Duration};

use pingora_core::{
    apps::HttpServerApp as _,
    protocols::{GetSocketDigest as _, SocketDigest, Stream, http::ServerSession, l4},
    server::configuration::ServerConf,
};
use pingora_proxy::{HttpProxy, http_proxy};
use tokio::{net::TcpStream, sync::watch};

use crate::{
    Edge,
    answer::Answer,
    head::{self, Bounds, Head, HeadError, Kind, Upgrade},
    proxy::Gateway,
    relay::Io,
    tunnel,
};

/// Serves connections.
pub struct Server {
    edge: Arc<Edge>,
    proxy: Arc<HttpProxy<Gateway>>,
    /// Never set: pingora would only stop keeping connections alive, which `edge.sessions` decides here.
    shutdown: watch::Sender<bool>,
}

impl Server {
    /// A server of this edge.
    pub fn new(edge: Arc<Edge>) -> Self {
        let conf = Arc::new(ServerConf::default());
        let proxy = Arc::new(http_proxy(&conf, Gateway(edge.clone())));
        Self {
            edge,
            proxy,
            shutdown: watch::Sender::new(false),
        }
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, mut tcp: TcpStream, client: SocketAddr) {
        // As in the tunnel: frames must not wait for more.
        let _ = tcp.set_nodelay(true);
        let header = self.edge.config.timeouts.header.0;
        let Some(head) = self.head(&mut tcp, header).await else {
            return;
        };
        let Some(head) = self.tunnel(&mut tcp, head, client).await else {
            return;
        };
        Box::pin(self.requests(tcp, head, client)).await;
    }

    /// Serves HTTP requests, beginning with the one whose head was read, until the connection ends or becomes a session.
    async fn requests(&self, tcp: TcpStream, mut head: Head, client: SocketAddr) {
        let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        let mut stream = l4::stream::Stream::from(tcp);
        stream.set_socket_digest(digest);
        let mut stream: Stream = Box::new(stream);
        let mut settings = None;
        loop {
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings.take() {
                pingora_core::apps::HttpPersistentSettings::apply_to_session(settings, &mut session);
            }
            let keep_alive = self.edge.config.timeouts.keep_alive.0;
            let keep_alive_s = (!self.edge.sessions.is_draining()).then_some(keep_alive.as_secs().max(1));
            session.set_keepalive(keep_alive_s);
            session.set_pipelined_prefix(head.bytes);
            let Some(reusable) = self.proxy.process_new_http(session, &self.shutdown.subscribe()).await else {
                return;
            };
            (stream, settings) = reusable.consume();
            let next = tokio::select! {
                next = self.head(&mut stream, keep_alive) => next,
                // A stopping edge has nothing to say to a device that asks nothing.
                _ = self.edge.sessions.draining() => return,
            };
            let Some(next) = next else { return };
            match self.tunnel(&mut stream, next, client).await {
                Some(next) => head = next,
                None => return,
            }
        }
    }

    /// Reads the head of a request; answers what cannot be one.
    async fn head(&self, io: &mut (impl Io + 'static), first: Duration) -> Option<Head> {
        let bytes_max = self.edge.config.limits.header_bytes_max;
        let bounds = Bounds {
            first,
            rest: self.edge.config.timeouts.header.0,
            bytes_max,
        };
        let (reason, answer) = match head::read(io, Kind::Request, bounds).await {
            Ok(head) => return Some(head),
            Err(HeadError::Gone | HeadError::Quiet) => return None,
            Err(HeadError::TooSlow) => ("header-too-slow", Answer::too_slow()),
            Err(HeadError::TooLarge) => ("header-too-large", Answer::header_too_large(bytes_max)),
            Err(error @ HeadError::Malformed(_)) => ("malformed", Answer::bad_request(error.to_string())),
        };
        self.edge.metrics.refused(reason);
        tunnel::decline(&self.edge, io, &answer).await;
        None
    }

    /// Serves an upgrade to its end; gives back the head of anything else.
    async fn tunnel(&self, io: &mut (impl Io + 'static), head: Head, client: SocketAddr) -> Option<Head> {
        match Upgrade::parse(&head) {
            Ok(None) => return Some(head),
            Ok(Some(upgrade)) => {
                let mut bytes = head.bytes;
                let early = bytes.split_off(head.len);
                drop(bytes);
                // In a box: a session lives for hours and a connection that never becomes one should not pay for it.
                Box::pin(tunnel::serve(&self.edge, io, upgrade, early, client)).await;
            }
            Err(answer) => {
                self.edge.metrics.refused("malformed");
                tunnel::decline(&self.edge, io, &answer).await;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, metrics::Metrics};
    use prometheus_client::registry::Registry;

    /// Most connections are sessions in which nothing happens. What one holds of our memory is the future below and the
    /// box in which its tunnel is; both together are a fraction of the kernel's two sockets.
    #[tokio::test]
    async fn a_quiet_session_is_small() {
        let text = include_str!("../../../configs/edge.toml");
        let config: Config = daemon::config::parse("edge.toml", text).unwrap();
        let edge = Arc::new(Edge::new(config, Metrics::new(&mut Registry::default())));
        let server = Server::new(edge.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = listener.local_addr().unwrap();
        let mut tcp = TcpStream::connect(client).await.unwrap();
        let bytes = "GET /v1/realtime HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: k\r\n\r\n";
        let head = Head {
            bytes: bytes.into(),
            len: bytes.len(),
        };
        let upgrade = Upgrade::parse(&head).unwrap().unwrap();
        let tunnel = size_of_val(&tunnel::serve(&edge, &mut tcp, upgrade, head.bytes, client));
        let connection = size_of_val(&server.serve(tcp, client));
        println!("tunnel {tunnel}, connection {connection}");
        assert!(tunnel + connection < 4_096, "tunnel {tunnel}, connection {connection}");
    }
}
