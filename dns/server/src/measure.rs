//! Measures how long a connection to each edge takes from here. Resolvers ask the name server that answers them fastest, so
//! for one whose place nobody knows, the edges near the name server are a good guess. This measures and judges nothing: the
//! plan alone says which edges serve.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use topology::{Edge, EdgeId, Snapshot};

/// Pause between two rounds. Distances change when routes do, which is seldom.
const EVERY: Duration = Duration::from_secs(60);
/// Longest wait for a connection. An edge that is farther away is not what a client wants anyway.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Connections at once.
const AT_ONCE: usize = 16;

/// The time to each edge that was reached.
pub type Measured = BTreeMap<EdgeId, Duration>;

/// Measures the edges of the newest snapshot until the sender of snapshots is gone. An edge keeps its best time of the last
/// two rounds, so that one lost packet changes nothing.
pub async fn keep_measuring(mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>, measured: watch::Sender<Measured>) {
    let mut before = Measured::new();
    loop {
        let newest = snapshots.borrow_and_update().clone();
        if let Some(snapshot) = newest {
            let now = measure(&snapshot).await;
            let mut best = before.clone();
            for (edge, time) in &now {
                let known = best.entry(edge.clone()).or_insert(*time);
                *known = (*known).min(*time);
            }
            best.retain(|edge, _| snapshot.topology.edges.contains_key(edge));
            before = now;
            // Equal measurements must not compile all answers again.
            measured.send_if_modified(|known| {
                let is_new = *known != best;
                *known = best;
                is_new
            });
        }
        sleep(EVERY).await;
        if snapshots.has_changed().is_err() {
            return;
        }
    }
}

async fn measure(snapshot: &Snapshot) -> Measured {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut trying = JoinSet::new();
    for edge in snapshot.topology.edges.values().cloned() {
        let places = places.clone();
        trying.spawn(async move {
            let _place = places.acquire_owned().await.ok()?;
            Some((edge.id.clone(), connect(&edge).await?))
        });
    }
    let tried = trying.join_all().await;
    tried.into_iter().flatten().collect()
}

async fn connect(edge: &Edge) -> Option<Duration> {
    let address = SocketAddr::new(*edge.addresses.first()?, edge.port);
    let began = Instant::now();
    timeout(TIMEOUT, TcpStream::connect(address)).await.ok()?.ok()?;
    // Whole milliseconds: less is noise, and would compile all answers again each round.
    Some(Duration::from_millis(began.elapsed().as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use topology::fixtures::three_primaries;

    use super::*;

    #[tokio::test]
    async fn edges_that_take_connections_are_measured_and_others_are_left_out() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut snapshot = three_primaries();
        let [dublin, ashburn] = ["edge-dub", "edge-iad"].map(|id| EdgeId::new(id).unwrap());
        for (edge, listener) in [(&dublin, &listener), (&ashburn, &closed)] {
            let edge = snapshot.topology.edges.get_mut(edge).unwrap();
            let address = listener.local_addr().unwrap();
            (edge.addresses, edge.port) = (vec![address.ip()], address.port());
        }
        drop(closed);
        let (_snapshots, receiver) = watch::channel(Some(Arc::new(snapshot)));
        let (sender, mut measured) = watch::channel(Measured::new());
        let measuring = tokio::spawn(keep_measuring(receiver, sender));
        measured.changed().await.unwrap();
        assert_eq!(measured.borrow().keys().collect::<Vec<_>>(), [&dublin]);
        measuring.abort();
    }
}
