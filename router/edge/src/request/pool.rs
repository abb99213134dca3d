//! Connections to stacks that wait for the next request.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use identity::Link;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use topology::RegionId;

/// Shorter than a stack keeps its end open, so that a request rarely meets a connection that is being closed.
pub const IDLE_MAX: Duration = Duration::from_secs(15);

/// The connections of one worker. No other worker uses its lock, and nobody holds it across an await.
#[derive(Debug)]
pub struct ConnectionPool {
    stacks: Mutex<HashMap<SocketAddr, VecDeque<Waiting>>>,
    /// Most connections to one stack; the edge closes further ones when their answer is complete.
    kept_max: usize,
}

#[derive(Debug)]
struct Waiting {
    link: Link,
    since: Instant,
}

impl ConnectionPool {
    /// An empty pool, for at most this many connections to one stack.
    pub fn new(kept_max: usize) -> Self {
        let stacks = Mutex::default();
        Self { stacks, kept_max }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, VecDeque<Waiting>>> {
        self.stacks.lock()
    }

    /// The connection to a stack of a region that was used last, if it is still open.
    pub fn take(&self, region: &RegionId, stack: SocketAddr) -> Option<Link> {
        let mut pool = self.lock();
        let waiting = pool.get_mut(&stack)?;
        while let Some(Waiting { mut link, since }) = waiting.pop_back() {
            if since.elapsed() < IDLE_MAX && link.is_ready_for(region) {
                return Some(link);
            }
        }
        None
    }

    /// Puts a connection into the pool.
    pub fn put(&self, stack: SocketAddr, link: Link) {
        let mut pool = self.lock();
        let waiting = pool.entry(stack).or_default();
        if waiting.len() < self.kept_max {
            let since = Instant::now();
            waiting.push_back(Waiting { link, since });
        }
    }

    /// Closes connections that waited for [`IDLE_MAX`]. The others close when the pool is dropped.
    pub fn sweep(&self) {
        self.lock().retain(|_, waiting| {
            waiting.retain(|waiting| waiting.since.elapsed() < IDLE_MAX);
            !waiting.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use identity::Speaks;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    fn region() -> RegionId {
        RegionId::new("us-east").unwrap()
    }

    async fn link(stack: SocketAddr) -> Link {
        identity::dial(None, &region(), stack, Speaks::Http1).await.unwrap()
    }

    #[tokio::test]
    async fn only_open_connections_are_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stack = listener.local_addr().unwrap();
        let pool = ConnectionPool::new(2);
        assert!(pool.take(&region(), stack).is_none());
        let connect = async || (link(stack).await, listener.accept().await.unwrap().0);
        let (first, mut stays) = connect().await;
        let (mut second, goes) = connect().await;
        pool.put(stack, first);
        drop(goes);
        assert_eq!(second.read(&mut [0]).await.unwrap(), 0, "the stack closed it");
        pool.put(stack, second);
        let mut taken = pool.take(&region(), stack).unwrap();
        taken.write_all(b"x").await.unwrap();
        assert_eq!(stays.read_u8().await.unwrap(), b'x');
        assert!(pool.take(&region(), stack).is_none(), "the stack closed the other one");
        for _ in 0..3 {
            pool.put(stack, connect().await.0);
        }
        assert_eq!(pool.lock()[&stack].len(), 2);
    }

    /// The stack closes its end at some time, and a request that is sent just then fails.
    #[tokio::test]
    async fn what_waited_too_long_is_not_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stack = listener.local_addr().unwrap();
        let pool = ConnectionPool::new(2);
        pool.put(stack, link(stack).await);
        pool.put(stack, link(stack).await);
        tokio::time::pause();
        tokio::time::advance(IDLE_MAX - std::time::Duration::from_millis(1)).await;
        assert!(pool.take(&region(), stack).is_some());
        tokio::time::advance(IDLE_MAX).await;
        assert!(pool.take(&region(), stack).is_none());
    }

    #[tokio::test]
    async fn what_waited_too_long_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stack = listener.local_addr().unwrap();
        let pool = ConnectionPool::new(2);
        pool.put(stack, link(stack).await);
        tokio::time::pause();
        tokio::time::advance(IDLE_MAX).await;
        pool.sweep();
        assert!(pool.lock().is_empty());
    }
}
