//! Real etcd clusters for tests, and waits for their effects.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use server::store::{Candidate, Etcd, Store, StoreError, Transaction, etcd::Settings};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use topology::NodeId;
use world::etcd::{EtcdCluster, EtcdSettings, Size};

/// Limit on every wait, long enough on a machine that compiles at the same time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster and its folder.
pub(crate) struct Cluster {
    pub(crate) etcd: EtcdCluster,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) async fn cluster(size: Size) -> Cluster {
    cluster_with(size, |_| {}).await
}

pub(crate) async fn cluster_with(size: Size, change: impl FnOnce(&mut EtcdSettings)) -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = EtcdSettings::for_tests(size, folder.path());
    change(&mut settings);
    let etcd = EtcdCluster::start(settings).await.unwrap();
    Cluster { etcd, folder }
}

impl Cluster {
    /// A store that uses all members, beginning with the first.
    pub(crate) async fn store(&self) -> Etcd {
        store(self.etcd.endpoints()).await
    }

    /// A store that uses one member first, and then those after it.
    pub(crate) async fn store_at(&self, index: usize) -> Etcd {
        let mut endpoints = self.etcd.endpoints();
        endpoints.rotate_left(index);
        store(endpoints).await
    }

    /// A store that never uses one member.
    pub(crate) async fn store_without(&self, index: usize) -> Etcd {
        let mut endpoints = self.etcd.endpoints();
        endpoints.remove(index);
        store(endpoints).await
    }

    pub(crate) async fn leader(&self) -> usize {
        eventually("the members elect a leader", || self.etcd.leader()).await
    }
}

pub(crate) async fn store(endpoints: Vec<String>) -> Etcd {
    let settings = Settings {
        stall_timeout: Duration::from_secs(3),
        ..Settings::new(endpoints)
    };
    Etcd::connect(settings).await.unwrap()
}

pub(crate) fn put(key: &str, value: &str, expected: Option<u64>) -> Transaction {
    Transaction {
        expect: vec![(key.to_owned(), expected)],
        put: vec![(key.to_owned(), value.as_bytes().to_vec())],
        delete: vec![],
    }
}

pub(crate) fn candidate(name: &str, lease_ttl: Duration) -> Candidate {
    Candidate {
        node: NodeId::new(name).unwrap(),
        url: format!("http://{name}:7070"),
        lease_ttl,
    }
}

/// The address of a proxy that delays every answer by `delay`.
pub(crate) async fn answering_late(endpoint: &str, delay: Duration) -> String {
    let target = endpoint.trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(&target).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            // Bytes under way: read at once, written when they are due.
            let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(1_024);
            tokio::spawn(async move {
                let mut buffer = vec![0; 16 << 10];
                while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                    if sender
                        .send((Instant::now() + delay, buffer[..length].to_vec()))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
            tokio::spawn(async move {
                while let Some((due, bytes)) = under_way.recv().await {
                    tokio::time::sleep_until(due.into()).await;
                    if to_client.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("http://{address}")
}

/// Repeats a call until there is an answer.
pub(crate) async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < DEADLINE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a result that must come.
pub(crate) async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(DEADLINE, wait).await;
    waited.unwrap_or_else(|_| panic!("in vain: {what}"))
}

/// Writes a key once, even if answers are lost. Returns the revision that wrote it.
pub(crate) async fn write_once(store: &dyn Store, key: &str, value: &str) -> u64 {
    eventually("a write goes through", || async {
        match store.commit(put(key, value, None)).await {
            Ok(revision) => Some(revision),
            Err(StoreError::Unavailable { .. }) => None,
            // An attempt whose answer was lost wrote it.
            Err(StoreError::Conflict { found: Some(found), .. }) => Some(found),
            Err(error) => panic!("{error}"),
        }
    })
    .await
}
