//! The store in an etcd cluster, for several control planes, which elect one of them to decide.
//!
//! A production cluster has three or five members at as many sites, and needs flags that are not etcd's defaults:
//!
//! - `--auto-compaction-mode=periodic --auto-compaction-retention=1h`: without compaction etcd keeps every old value
//!   until it reaches its quota, and then refuses writes.
//! - `--quota-backend-bytes=4294967296`: 2 GiB is the default; alert on the size well before it.
//! - between sites `--heartbeat-interval=300 --election-timeout=3000`: the heartbeat about the longest round trip, the
//!   election ten times that. Leases cannot be shorter than one and a half election timeouts.
//!
//! After [`StoreError::NoSpace`]: compact, defragment every member, then `etcdctl alarm disarm`; see the error's text.
//!
//! A restored snapshot takes revisions back, and epochs with them. A node that saw later plans refuses those of the
//! restored store until their generation is greater. A [`Mirror`](super::Mirror) notices and reports it.
//!
//! The client talks to one member at a time and chooses it itself. A balancer would keep sending every other request to
//! a frozen member, whose sockets stay open.

mod lead;
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use etcd_client::{
    AlarmAction, AlarmType, Channel, Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, KvClient,
    LeaseClient, MaintenanceClient, Txn, TxnOp, TxnOpResponse, WatchClient,
};
use hyper_util::rt::TokioIo;
use identity::{Service, Speaks};
use tokio::{net::TcpStream, task::JoinSet};
use tonic::transport::{Endpoint, Uri};

use super::{
    Candidate, Changes, Entry, Health, LeaderRecord, Leadership, Listing, Outcome, Store, StoreError, Transaction,
    WatchEnd,
};

/// Key of the leader, written once per leadership under a lease. Its create revision is the epoch.
pub const LEADER: &str = "/meridian/v1/leader";

/// Entries per page of a listing. Further pages are read at the same revision.
const PAGE: usize = 100;
/// Longest answer: a page of the longest values, or as many changes of them.
const ANSWER_BYTES_MAX: usize = PAGE * super::TRANSACTION_BYTES_MAX + (1 << 20);
/// Attempts at a listing whose revision is compacted away between two pages.
const LIST_ATTEMPTS: usize = 3;
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
    let endpoint = Endpoint::from_shared(plain).map_err(|error| format!("{url}: {error}"))?;
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
    let tls = tls.ok_or_else(|| {
        format!("{url}: there is no certificate to show; write certificate, key and trust in [store]")
    })?;
    let connector = tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let tcp = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(PORT))).await?;
            tcp.set_nodelay(true)?;
            let stream = tls.connect(&host, tcp, Speaks::Http2).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Ok(Channel::Tonic(endpoint.connect_with_connector_lazy(connector)))
}

/// etcd's port, for a URL that names none.
const PORT: u16 = 2379;

/// A store in an etcd cluster.
#[derive(Clone)]
pub struct Etcd(Arc<Shared>);

struct Shared {
    settings: Settings,
    members: Vec<Member>,
    /// Index of the member in use.
    current: AtomicUsize,
}

/// Clients of one member. They connect on first use, and again after a connection breaks.
#[derive(Clone)]
struct Member {
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    maintenance: MaintenanceClient,
}

impl Etcd {
    /// Creates a client. Succeeds even while the cluster is out of reach.
    pub async fn connect(settings: Settings) -> Result<Self, StoreError> {
        let options = ConnectOptions::new().with_require_leader(true);
        let mut members = Vec::new();
        for endpoint in &settings.endpoints {
            let channel = channel(endpoint, &settings).map_err(StoreError::Failed)?;
            let client = Client::from_channel(channel, Some(options.clone())).await;
            let client = client.map_err(|error| StoreError::Failed(format!("{endpoint}: {error}")))?;
            members.push(Member {
                kv: client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX),
                watch: client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX),
                lease: client.lease_client(),
                maintenance: client.maintenance_client(),
            });
        }
        if members.is_empty() {
            return Err(StoreError::Failed("no etcd endpoints are configured".to_owned()));
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

    fn current(&self) -> (usize, Member) {
        let index = self.0.current.load(Ordering::Relaxed);
        (index, self.0.members[index].clone())
    }

    /// Switches to the next member, unless another task switched already.
    fn move_on(&self, from: usize) {
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
    async fn ask<T, F>(&self, timeout: Duration, call: impl Fn(Member) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.ask_unless(timeout, |_| false, call).await
    }

    /// The same, but does not try another member after a failure for which `is_final` holds.
    async fn ask_unless<T, F>(
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
                Err(_) => Failure::Lost(format!("no answer within {:.1} s", wait.as_secs_f64())),
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

    async fn list_once(&self, prefix: &str) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        let mut from = prefix.to_owned();
        loop {
            let (end, revision) = (after(prefix), listing.revision);
            let page = self
                .ask(self.0.settings.request_timeout, |mut member| {
                    let mut options = GetOptions::new().with_range(end.clone()).with_limit(as_i64(PAGE));
                    if revision > 0 {
                        options = options.with_revision(revision.cast_signed());
                    }
                    let from = from.clone();
                    async move { member.kv.get(from, Some(options)).await }
                })
                .await?;
            if listing.revision == 0 {
                listing.revision = header_revision(page.header())?;
            }
            let mut last = None;
            for found in page.kvs() {
                let (key, entry) = row(found)?;
                last = Some(key.clone());
                listing.entries.insert(key, entry);
            }
            match last {
                // The first key after the last one of this page.
                Some(last) if page.more() => from = last + "\0",
                _ => return Ok(listing),
            }
        }
    }
}

/// The kinds of failure at one member.
#[derive(Debug)]
enum Failure {
    /// The member did not receive the request, or cannot take any.
    NotTaken(String),
    /// The member may have taken the request.
    Lost(String),
    /// The revision is compacted away.
    Compacted,
    /// The quota of the database is used up.
    NoSpace(String),
    /// The member refused the request.
    Refused(String),
}

impl Failure {
    fn of(error: &etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = error else {
            return Self::Lost(error.to_string());
        };
        let text = status.message().to_owned();
        if never_connected(status) {
            return Self::NotTaken(text);
        }
        // etcd reports some errors only in the text.
        if text.contains("database space exceeded") {
            return Self::NoSpace(text);
        }
        if text.contains("has been compacted") {
            return Self::Compacted;
        }
        if text == "etcdserver: no leader" || text == "etcdserver: too many requests" {
            return Self::NotTaken(text);
        }
        match status.code() {
            tonic::Code::InvalidArgument
            | tonic::Code::NotFound
            | tonic::Code::AlreadyExists
            | tonic::Code::PermissionDenied
            | tonic::Code::FailedPrecondition
            | tonic::Code::OutOfRange
            | tonic::Code::Unimplemented
            | tonic::Code::Unauthenticated => Self::Refused(text),
            // Includes the codes of a broken connection: "unknown", "internal", "cancelled".
            _ => Self::Lost(text),
        }
    }

    /// Whether another member would answer the same.
    fn is_answer(&self) -> bool {
        matches!(self, Self::Compacted | Self::NoSpace(_) | Self::Refused(_))
    }

    fn at(self, endpoint: &str, written: bool) -> StoreError {
        match self {
            Self::NotTaken(text) => StoreError::unreachable(format!("{endpoint}: {text}")),
            Self::Lost(text) => StoreError::Unavailable {
                reason: format!("{endpoint}: {text}"),
                outcome: if written {
                    Outcome::Unknown
                } else {
                    Outcome::NothingWritten
                },
            },
            Self::Compacted => StoreError::Failed("the revision is no longer kept".to_owned()),
            Self::NoSpace(text) => StoreError::NoSpace(format!(
                "{text}; compact it (etcdctl compact REVISION), defragment every member (etcdctl defrag --cluster), \
                 then etcdctl alarm disarm"
            )),
            Self::Refused(text) => StoreError::Failed(text),
        }
    }
}

/// Whether the request had no connection to go over.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The first key after all keys with `prefix`; the end of the key space for an empty prefix.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn as_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Converts etcd's signed numbers, which are never negative.
fn as_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Result<u64, StoreError> {
    let revision = header.map(|header| as_u64(header.revision()));
    revision.ok_or_else(|| StoreError::Failed("etcd answered without a revision".to_owned()))
}

fn row(found: &KeyValue) -> Result<(String, Entry), StoreError> {
    let key = found
        .key_str()
        .map_err(|_| StoreError::Failed("a key is no text".to_owned()))?;
    Ok((key.to_owned(), entry_of(found)))
}

fn entry_of(found: &KeyValue) -> Entry {
    Entry {
        value: found.value().to_vec(),
        revision: as_u64(found.mod_revision()),
    }
}

fn txn(transaction: &Transaction) -> Txn {
    // The revision of a missing key is zero.
    let compare = |(key, expected): &(String, Option<u64>)| {
        Compare::mod_revision(key.as_str(), CompareOp::Equal, expected.unwrap_or(0).cast_signed())
    };
    let look = |(key, _): &(String, Option<u64>)| TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only()));
    let puts = transaction
        .put
        .iter()
        .map(|(key, value)| TxnOp::put(key.as_str(), value.as_slice(), None));
    let deletes = transaction.delete.iter().map(|key| TxnOp::delete(key.as_str(), None));
    Txn::new()
        .when(transaction.expect.iter().map(compare).collect::<Vec<_>>())
        .and_then(puts.chain(deletes).collect::<Vec<_>>())
        .or_else(transaction.expect.iter().map(look).collect::<Vec<_>>())
}

/// The first expectation that failed, from the keys that the transaction read instead.
fn conflict(transaction: Transaction, found: &[TxnOpResponse]) -> StoreError {
    let found = found.iter().map(|response| match response {
        TxnOpResponse::Get(response) => response.kvs().first().map(|found| as_u64(found.mod_revision())),
        _ => None,
    });
    let mut unmet = transaction.expect.into_iter().zip(found);
    match unmet.find(|((_, expected), found)| expected != found) {
        Some(((key, expected), found)) => StoreError::Conflict { key, found, expected },
        None => StoreError::Failed("etcd refused a transaction whose expectations are met".to_owned()),
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let found = self
            .ask(self.0.settings.request_timeout, |mut member| async move {
                member.kv.get(key, None).await
            })
            .await?;
        Ok(found.kvs().first().map(entry_of))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let mut attempt = 1;
        loop {
            match self.list_once(prefix).await {
                // The revision was compacted away between two pages. An error of another cause will come again.
                Err(StoreError::Failed(_)) if attempt < LIST_ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        transaction.check()?;
        let may_be_written = |failure: &Failure| matches!(failure, Failure::Lost(_));
        let request = txn(&transaction);
        let answer = self
            .ask_unless(self.0.settings.request_timeout, may_be_written, |mut member| {
                let request = request.clone();
                async move { member.kv.txn(request).await }
            })
            .await?;
        if !answer.succeeded() {
            return Err(conflict(transaction, &answer.op_responses()));
        }
        header_revision(answer.header())
    }

    async fn watch(&self, prefix: &str, after_revision: u64) -> Result<Changes, WatchEnd> {
        watch::open(self, prefix, after_revision).await
    }

    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        lead::campaign(self, candidate).await
    }

    async fn leader(&self) -> Result<Option<LeaderRecord>, StoreError> {
        Ok(lead::read(self).await?.0)
    }

    async fn health(&self) -> Result<Health, StoreError> {
        // A quorum answers this, unlike a member's status.
        let alarms = self
            .ask(self.0.settings.request_timeout, |mut member| async move {
                member.maintenance.alarm(AlarmAction::Get, AlarmType::None, None).await
            })
            .await?;
        if alarms.alarms().iter().any(|alarm| alarm.alarm() == AlarmType::Nospace) {
            let text = "a member raised the alarm NOSPACE".to_owned();
            return Err(Failure::NoSpace(text).at("", false));
        }
        let revision = self.list(LEADER).await?.revision;
        let timeout = self.0.settings.request_timeout;
        let mut asked = JoinSet::new();
        for (mut member, endpoint) in self.0.members.iter().cloned().zip(self.0.settings.endpoints.clone()) {
            asked.spawn(async move {
                (
                    endpoint,
                    tokio::time::timeout(timeout, member.maintenance.status()).await,
                )
            });
        }
        let (mut bytes, mut unreachable) = (0, Vec::new());
        while let Some(Ok((endpoint, status))) = asked.join_next().await {
            match status {
                Ok(Ok(status)) => bytes = bytes.max(as_u64(status.db_size())),
                _ => unreachable.push(endpoint),
            }
        }
        unreachable.sort();
        Ok(Health {
            revision,
            bytes,
            unreachable,
        })
    }
}
