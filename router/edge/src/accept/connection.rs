//! One connection of a device, from its first byte to its last. The edge serves its HTTP requests one after the other, on the fast
//! path or by pingora; an upgrade to the Realtime WebSocket becomes a session.
//!
//! The edge reads the head of every HTTP/1.1 request here, without pingora. So it sets the limits of size and time, and no upgrade
//! takes pingora's own path, which may close a session whose region answers at once (cloudflare/pingora#946) and ends any session
//! after a minute of silence. pingora reads HTTP/2 from its first byte.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, RawFd},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use pingora_core::{
    apps::{HttpServerApp as _, HttpServerOptions, ServerApp as _},
    protocols::{
        Stream,
        http::{ServerSession, v2::server::H2Options},
    },
    server::configuration::ServerConf,
};
use pingora_proxy::{HttpProxy, http_proxy};
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::watch, time::timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    Config, Edge,
    accept::tls::{self, HandshakeError, Tls},
    accept::transport::{Gate, Transport},
    answer::Answer,
    deadline::Deadline,
    device::{self, Io},
    http1::head::{self, Bounds, Head, HeadError, Kind},
    http1::upgrade::Upgrade,
    http1::{Body, Peer},
    request::chooser::Chooser,
    request::ctx::Ctx,
    request::device_connection::{DeviceConnection, Forwarded},
    request::fast_path::FastPath,
    request::limits::Requests,
    request::pingora::{self, Pingora},
    request::pool::IDLE_MAX,
    session::open::{self, Arrived},
    session::registry::Busy,
    stamp::Stamp,
    texts,
};

/// Most requests at the same time on one connection of HTTP/2: the default of pingora and nginx.
const HTTP2_STREAMS_MAX: u32 = 100;
/// Length of the connection preface of HTTP/2 (RFC 9113 §3.4).
const HTTP2_PREFACE_BYTES: usize = 24;

pub struct Server {
    edge: Arc<Edge>,
    fast_path: FastPath,
    proxy: Arc<HttpProxy<Pingora>>,
    /// Set when the edge begins to stop. Connections of HTTP/2 say so then; those of HTTP/1.1 ask `edge.sessions`.
    shutdown: watch::Sender<bool>,
}

/// The route of a vantage that checks whether it reaches this edge. It comes in every tick, is no device, and counts for no client's
/// rate: the other routes show an operator devices with a wrong port or path. A device that pretends to be one gets an error and
/// loses its connection.
const PROBE_ROUTE: &str = "probe";

/// Whether the peer is a vantage that checks whether it reaches this edge.
async fn is_probe(tcp: &TcpStream) -> bool {
    let mut first = [0; probe::EDGE_PROBE_REQUEST.len()];
    tcp.peek(&mut first).await.is_ok() && first == *probe::EDGE_PROBE_REQUEST
}

/// A connection that can be moved into pingora and back.
trait Device: Io + std::fmt::Debug + 'static {}
impl<T: Io + std::fmt::Debug + 'static> Device for T {}

impl Server {
    /// A server of this edge.
    ///
    /// Its pool keeps up to `kept_max` connections to a stack for the next requests.
    pub fn new(edge: Arc<Edge>, requests: Arc<Requests>, kept_max: usize) -> Self {
        let conf = Arc::new(ServerConf {
            upstream_keepalive_pool_size: kept_max,
            ..ServerConf::default()
        });
        let chooser = Chooser::new(edge.clone(), requests, kept_max);
        let mut proxy = http_proxy(
            &conf,
            Pingora {
                chooser: chooser.clone(),
            },
        );
        proxy.h2_options = Some(http2_options(&edge.config));
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(edge.config.timeouts.keep_alive.0);
        proxy.server_options = Some(options);
        Self {
            edge,
            fast_path: FastPath { chooser },
            proxy: Arc::new(proxy),
            shutdown: watch::Sender::new(false),
        }
    }

    /// Closes idle connections to regions, until it is dropped.
    pub async fn sweep(&self) {
        let mut tick = tokio::time::interval(IDLE_MAX / 3);
        loop {
            tick.tick().await;
            self.fast_path.chooser.pool.sweep();
        }
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, tcp: TcpStream, client: SocketAddr, tls: Option<&Tls>) {
        let device = Peer {
            address: client,
            has_tls: tls.is_some(),
        };
        let arriving = self.edge.sessions.arrives();
        // Frames must not wait for more bytes.
        let _ = tcp.set_nodelay(true);
        let fd = tcp.as_raw_fd();
        let Some(tls) = tls else {
            return self.talk(tcp, fd, device, arriving).await;
        };
        // In boxes: a handshake ends long before its session does, and the state of TLS is large to move.
        match Box::pin(self.handshake(tls, tcp)).await {
            Some(stream) if tls::is_http2(&stream) => {
                Box::pin(self.http2(stream, fd, device, BytesMut::new(), arriving)).await;
            }
            Some(stream) => Box::pin(self.talk(stream, fd, device, arriving)).await,
            None => {}
        }
    }

    async fn handshake(&self, tls: &Tls, tcp: TcpStream) -> Option<Box<tokio_rustls::server::TlsStream<TcpStream>>> {
        let limit = self.edge.config.timeouts.handshake.0;
        let (outcome, error) = match timeout(limit, tls.accept(tcp)).await {
            Ok(Ok(stream)) => return Some(Box::new(stream)),
            Ok(Err(HandshakeError::Gone)) => return None,
            Ok(Err(HandshakeError::NotTls(mut tcp))) => {
                let is_probe = is_probe(&tcp).await;
                if is_probe {
                    self.edge.metrics.http(PROBE_ROUTE, 400);
                }
                let answer = Answer::bad_request(texts::TLS_ONLY);
                decline(&self.edge, &mut tcp, &Stamp::blank(), &answer).await;
                if is_probe {
                    return None;
                }
                ("not-tls", "the device does not speak TLS".to_owned())
            }
            Ok(Err(HandshakeError::Failed(error))) => ("failed", error.to_string()),
            Err(_) => ("too-slow", format!("not complete within {limit:?}")),
        };
        self.edge.metrics.handshake(outcome);
        tracing::debug!(outcome, error, "no handshake");
        None
    }

    /// Serves a connection that speaks HTTP, plain or inside of TLS.
    async fn talk(&self, mut io: impl Device, fd: RawFd, device: Peer, arriving: TaskTrackerToken) {
        let header = self.edge.config.timeouts.header.0;
        // In a box: the edge reads it once, and a session would keep the memory for hours.
        let mut timer = Deadline::default();
        let reading = Box::pin(self.head(&mut io, device, header, &mut timer, BytesMut::new()));
        let Some(head) = reading.await else { return };
        if head.is_http2() {
            return Box::pin(self.http2(io, fd, device, head.bytes, arriving)).await;
        }
        if *head.bytes == *probe::EDGE_PROBE_REQUEST {
            self.edge.metrics.http(PROBE_ROUTE, 404);
            return decline(&self.edge, &mut io, &Stamp::blank(), &Answer::not_found("/")).await;
        }
        // From here on the request or session keeps the process busy.
        let busy = self.edge.sessions.busy();
        drop(arriving);
        let head = match self.unless_upgrade(&mut io, head, device) {
            Ok(head) => head,
            Err(session) => return session.await,
        };
        Box::pin(self.requests(io, fd, device, head, busy)).await;
    }

    /// Serves HTTP/2 until the connection ends. When the edge stops, it tells the device to open no more streams, and finishes those
    /// that are open.
    ///
    /// `read` has the bytes that were read already. pingora would wait for the rest of the preface (RFC 9113 §3.4) without a deadline,
    /// so this function waits for it.
    async fn http2(
        &self,
        mut io: impl Device,
        fd: RawFd,
        device: Peer,
        mut read: BytesMut,
        arriving: TaskTrackerToken,
    ) {
        let preface = async {
            while read.len() < HTTP2_PREFACE_BYTES && io.read_buf(&mut read).await? > 0 {}
            std::io::Result::Ok(())
        };
        let limit = self.edge.config.timeouts.header.0;
        if !matches!(timeout(limit, preface).await, Ok(Ok(()))) || read.len() < HTTP2_PREFACE_BYTES {
            return self.edge.metrics.refused("header-too-slow");
        }
        // A stopping edge waits a little for the connection too, so that the last answer reaches the device.
        let _token = self.edge.sessions.speaks_http2();
        drop(arriving);
        let shutdown = self.shutdown.subscribe();
        let transport = Transport::http2(io, fd, device, read, &self.edge.config);
        let mut serving = pin!(self.proxy.process_new(Box::new(transport), &shutdown));
        tokio::select! {
            _ = &mut serving => return,
            _ = self.edge.sessions.draining() => {}
        }
        self.shutdown.send_replace(true);
        serving.await;
    }

    /// Serves HTTP requests, the first of which has this head, until the connection ends or becomes a session.
    async fn requests(&self, mut io: impl Device, fd: RawFd, device: Peer, head: Head, busy: Busy) {
        let mut timer = Deadline::default();
        let Some(mut for_pingora) = self.serve_fast(&mut io, &mut timer, device, head, Some(busy)).await else {
            return;
        };
        let gate = Gate::default();
        let mut stream: Stream = Box::new(Transport::http1(io, fd, device, gate.clone(), &self.edge.config));
        let mut settings = None;
        loop {
            let (Head { bytes: mut head, len }, mut begun) = for_pingora;
            let mut body = head.split_off(len);
            if gate
                .begin(std::mem::replace(&mut begun.body, Body::Length(0)), &mut body)
                .is_err()
            {
                let refused = ("malformed", Answer::malformed_body());
                let (reason, answer) = self.edge.admission.refuse(device.ip(), refused);
                self.edge.refused(reason, &begun.stamp.id);
                return decline(&self.edge, &mut stream, &begun.stamp, &answer).await;
            }
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings.take() {
                pingora_core::apps::HttpPersistentSettings::apply_to_session(settings, &mut session);
            }
            let keep_alive = self.edge.config.timeouts.keep_alive.0;
            let keep_alive_s =
                (!begun.is_last && !self.edge.sessions.is_draining()).then_some(keep_alive.as_secs().max(1));
            session.set_keepalive(keep_alive_s);
            head.unsplit(body);
            session.set_pipelined_prefix(head);
            let shutdown = self.shutdown.subscribe();
            let serving = self.proxy.process_new_http(session, &shutdown);
            let Some(reusable) = pingora::serve_begun(begun, serving).await else {
                return;
            };
            (stream, settings) = reusable.consume();
            let refusing = self.edge.sessions.refusing();
            let Some(head) = self.next(&mut stream, device, &mut timer, gate.end(), refusing).await else {
                return;
            };
            let head = match self.unless_upgrade(&mut stream, head, device) {
                Ok(head) => head,
                Err(session) => return session.await,
            };
            match self.serve_fast(&mut stream, &mut timer, device, head, None).await {
                Some(next) => for_pingora = next,
                None => return,
            }
        }
    }

    /// Serves requests on the fast path. Returns the first request that pingora has to serve, or none when the connection ended.
    async fn serve_fast(
        &self,
        io: &mut (impl Io + 'static),
        timer: &mut Deadline,
        device: Peer,
        mut head: Head,
        mut busy: Option<Busy>,
    ) -> Option<(Head, Box<Ctx>)> {
        // One future for all requests: to subscribe costs more than to poll again.
        let mut refusing = pin!(self.edge.sessions.refusing());
        loop {
            let conn = DeviceConnection {
                device: io,
                timer,
                pool: &self.fast_path.chooser.pool,
                owes_body: false,
            };
            let busy = busy.take().unwrap_or_else(|| self.edge.sessions.busy());
            let rest = match self.fast_path.forward(conn, head, device, busy).await {
                Forwarded::Answered(rest) => rest,
                Forwarded::Over => return None,
                Forwarded::ForPingora(head, begun) => return Some((head, begun)),
            };
            let next = self.next(io, device, timer, rest, refusing.as_mut()).await?;
            head = match self.unless_upgrade(io, next, device) {
                Ok(head) => head,
                Err(session) => {
                    session.await;
                    return None;
                }
            };
        }
    }

    /// Reads the head of the next request on a connection, of which `read` came already.
    async fn next(
        &self,
        io: &mut (impl Io + 'static),
        device: Peer,
        timer: &mut Deadline,
        read: BytesMut,
        refusing: impl Future<Output = ()>,
    ) -> Option<Head> {
        tokio::select! {
            biased;
            next = self.head(io, device, self.edge.config.timeouts.keep_alive.0, timer, read) => next,
            // A stopping edge closes a connection without a request. An edge that was taken over waits for the next request: its answer
            // is the last, and has `Connection: close`.
            () = refusing => None,
        }
    }

    /// Reads the head of a request, and refuses bytes that are none.
    async fn head(
        &self,
        io: &mut (impl Io + 'static),
        device: Peer,
        first: Duration,
        timer: &mut Deadline,
        read: BytesMut,
    ) -> Option<Head> {
        let bytes_max = self.edge.config.limits.header_bytes_max;
        let bounds = Bounds {
            first,
            rest: self.edge.config.timeouts.header.0,
            bytes_max,
        };
        let refused = match head::read_on(io, Kind::Request, bounds, timer, read).await {
            Ok(head) => return Some(head),
            Err(HeadError::Gone | HeadError::Quiet) => return None,
            Err(HeadError::TooSlow) => ("header-too-slow", Answer::too_slow()),
            Err(HeadError::TooLarge) => ("header-too-large", Answer::header_too_large(bytes_max)),
            Err(error @ HeadError::Malformed(_)) => ("malformed", Answer::bad_request(error.to_string())),
        };
        let (reason, answer) = self.edge.admission.refuse(device.ip(), refused);
        let stamp = Stamp::blank();
        self.edge.refused(reason, &stamp.id);
        decline(&self.edge, io, &stamp, &answer).await;
        None
    }

    /// The head of a request, unless it is an upgrade: then a future that serves its session to the end.
    ///
    /// In a box: a connection that never becomes a session should not have the memory of one.
    fn unless_upgrade<'s>(
        &'s self,
        io: &'s mut (impl Io + 'static),
        head: Head,
        device: Peer,
    ) -> Result<Head, SessionToEnd<'s>> {
        match Upgrade::parse(&head, device) {
            Ok(None) => Ok(head),
            Ok(Some(upgrade)) => {
                let mut early = head.bytes;
                let arrived = Box::new(Arrived {
                    upgrade,
                    // A copy: a part of the head's buffer would keep all of it in memory.
                    early: BytesMut::from(&early.split_off(head.len)[..]),
                    client: device.address,
                });
                Err(Box::pin(open::serve(&self.edge, io, arrived)))
            }
            Err(error) => {
                let (reason, answer) = self
                    .edge
                    .admission
                    .refuse(device.ip(), ("malformed", Answer::from(error)));
                let stamp = Stamp::of_head(&self.edge.config.cors, &head);
                self.edge.refused(reason, &stamp.id);
                Err(Box::pin(async move {
                    device::decline(&self.edge, io, &stamp, &answer).await;
                }))
            }
        }
    }
}

/// Serves a session, or refuses it, to the end of the connection.
type SessionToEnd<'s> = Pin<Box<dyn Future<Output = ()> + Send + 's>>;

/// In a box: most connections are never declined and should not have the memory for it.
async fn decline(edge: &Edge, io: &mut dyn Io, stamp: &Stamp, answer: &Answer) {
    Box::pin(device::decline(edge, io, stamp, answer)).await;
}

fn http2_options(config: &Config) -> H2Options {
    let mut options = pingora_core::protocols::http::v2::server::default_h2_options();
    options.max_concurrent_streams(HTTP2_STREAMS_MAX);
    options.max_header_list_size(u32::try_from(config.limits.header_bytes_max).unwrap_or(u32::MAX));
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, metrics::Metrics};
    use prometheus_client::registry::Registry;

    /// Most connections are sessions in which nothing happens. The memory of one is the future below and the
    /// box in which its session is served; both together are a fraction of the kernel's two sockets.
    #[tokio::test]
    async fn a_quiet_session_is_small() {
        let text = include_str!("../../../../configs/edge.toml");
        let config: Config = daemon::config::parse("edge.toml", text).unwrap();
        let edge = Arc::new(Edge::new(config, Metrics::new(&mut Registry::default())));
        let requests = Arc::new(Requests::new(&edge.config, &edge.metrics));
        let server = Server::new(edge.clone(), requests, 1);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = listener.local_addr().unwrap();
        let mut tcp = TcpStream::connect(client).await.unwrap();
        let bytes = "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: k\r\n\r\n";
        let head = Head {
            bytes: bytes.into(),
            len: bytes.len(),
        };
        let device = Peer {
            address: client,
            has_tls: false,
        };
        let arrived = Arrived {
            upgrade: Upgrade::parse(&head, device).unwrap().unwrap(),
            early: BytesMut::new(),
            client,
        };
        let session = size_of_val(&open::serve(&edge, &mut tcp, Box::new(arrived)));
        let connection = size_of_val(&server.serve(tcp, client, None));
        println!("session {session}, connection {connection}");
        assert!(
            session + connection < 2_048,
            "session {session}, connection {connection}"
        );
    }
}
