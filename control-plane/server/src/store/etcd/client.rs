//! A client of all members of a cluster. It talks to one member at a time and chooses it itself. A balancer would keep sending
//! every other request to a frozen member, whose sockets stay open.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{Channel, Client, ConnectOptions, KvClient, LeaseClient, MaintenanceClient, WatchClient};
use hyper_util::rt::TokioIo;
use identity::{Service, Speaks};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tonic::transport::{Endpoint, Uri};

use super::{
    super::{error::StoreError, limits::TRANSACTION_BYTES_MAX},
    failure::Failure,
};
use crate::texts::store as texts;

/// Entries per page of a listing. Further pages are read at the same revision.
pub(super) const PAGE: usize = 100;
/// Longest answer: a page of the longest values, or as many changes of them.
const ANSWER_BYTES_MAX: usize = PAGE * TRANSACTION_BYTES_MAX + (1 << 20);
/// Silent connections are pinged. etcd closes a connection that is pinged more often than every five seconds.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The addresses and timeouts of a cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Client URLs of all members, `https://address:port`, or `http://address:port` without TLS.
    pub endpoints: Vec<String>,
    /// Deadline for a connection.
    pub connect_timeout: Duration,
    /// Deadline for one member's answer. A request takes at most twice as long, over several members.
    pub request_timeout: Duration,
    /// Longest silence of a watch, progress marks included.
    pub stall_timeout: Duration,
    /// The identity that this process shows to `https://` endpoints.
    pub tls: Option<Arc<Service>>,
}

impl Settings {
    /// Settings with default timeouts, which suit round trips of up to 300 ms.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(6),
            tls: None,
        }
    }
}

/// Connections to one member, which are opened on first use and again after one breaks: with TLS to an `https://` URL. The library's own
/// TLS would read the certificate once and for all.
fn channel(url: &str, settings: &Settings) -> Result<Channel, String> {
    let plain = url.replacen("https://", "http://", 1);
    let endpoint = Endpoint::from_shared(plain).map_err(|error| texts::at(url, error))?;
    let endpoint = endpoint
        .connect_timeout(settings.connect_timeout)
        // Our own timeouts end earlier; this one cleans up after them. It does not limit streams once they have begun.
        .timeout(settings.request_timeout * 2)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(false);
    if !url.starts_with("https://") {
        return Ok(Channel::Tonic(endpoint.connect_lazy()));
    }
    let tls = settings.tls.clone();
    let tls = tls.ok_or_else(|| texts::no_certificate(url))?;
    let connector = tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(open(&tls, &uri).await?)) }
    });
    Ok(Channel::Tonic(endpoint.connect_with_connector_lazy(connector)))
}

/// Opens TLS to a member.
pub(super) async fn open(
    tls: &Service,
    uri: &Uri,
) -> std::io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(PORT))).await?;
    tcp.set_nodelay(true)?;
    tls.connect(host, tcp, Speaks::Http2).await
}

/// etcd's port, for a URL that names none.
const PORT: u16 = 2379;

/// A store in an etcd cluster.
#[derive(Clone)]
pub struct Etcd(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) members: Vec<Member>,
    /// Index of the member in use.
    current: AtomicUsize,
}

/// Clients of one member. They connect on first use, and again after a connection breaks.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    pub(super) lease: LeaseClient,
    pub(super) maintenance: MaintenanceClient,
}

impl Etcd {
    /// Creates a client. Succeeds even while the cluster is out of reach.
    pub async fn connect(settings: Settings) -> Result<Self, StoreError> {
        let options = ConnectOptions::new().with_require_leader(true);
        let mut members = Vec::new();
        for endpoint in &settings.endpoints {
            let channel = channel(endpoint, &settings).map_err(StoreError::Failed)?;
            let client = Client::from_channel(channel, Some(options.clone())).await;
            let client = client.map_err(|error| StoreError::Failed(texts::at(endpoint, error)))?;
            members.push(Member {
                kv: client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX),
                watch: client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX),
                lease: client.lease_client(),
                maintenance: client.maintenance_client(),
            });
        }
        if members.is_empty() {
            return Err(StoreError::Failed(texts::no_endpoints().to_owned()));
        }
        let current = AtomicUsize::new(0);
        Ok(Self(Arc::new(Shared {
            settings,
            members,
            current,
        })))
    }

    /// URL of the member in use.
    pub fn endpoint(&self) -> &str {
        &self.0.settings.endpoints[self.current().0]
    }

    pub(super) fn current(&self) -> (usize, Member) {
        let index = self.0.current.load(Ordering::Relaxed);
        (index, self.0.members[index].clone())
    }

    /// Switches to the next member, unless another task switched already.
    pub(super) fn move_on(&self, from: usize) {
        let next = (from + 1) % self.0.members.len();
        // Relaxed: the index is a hint where to try first, and orders no other memory.
        let moved = self
            .0
            .current
            .compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() && next != from {
            let endpoints = &self.0.settings.endpoints;
            tracing::info!(
                from = endpoints[from],
                to = endpoints[next],
                "moving to another etcd member"
            );
        }
    }

    /// Asks one member after another until one answers. The call may run twice, so it must be safe to repeat.
    pub(super) async fn ask<T, F>(&self, timeout: Duration, call: impl Fn(Member) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.ask_unless(timeout, |_| false, call).await
    }

    /// The same, but does not try another member after a failure for which `is_final` holds.
    pub(super) async fn ask_unless<T, F>(
        &self,
        timeout: Duration,
        is_final: impl Fn(&Failure) -> bool,
        call: impl Fn(Member) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let give_up = Instant::now() + timeout * 2;
        // A single member gets a second attempt too, because its connection may just have broken.
        let attempts = self.0.members.len().max(2);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (index, member) = self.current();
            let wait = timeout.min(give_up.saturating_duration_since(Instant::now()));
            let failure = match tokio::time::timeout(wait, call(member)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => Failure::of(&error),
                Err(_) => Failure::Lost(texts::no_answer(wait)),
            };
            if !failure.is_answer() {
                self.move_on(index);
            }
            let (is_last, ends) = (attempt == attempts || Instant::now() >= give_up, is_final(&failure));
            if failure.is_answer() || is_last || ends {
                return Err(failure.at(&self.0.settings.endpoints[index], ends));
            }
        }
    }
}
