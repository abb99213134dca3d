//! Connections to stacks that wait for the next request.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{net::TcpStream, time::Instant};

/// Shorter than a stack keeps its end open, so that a request rarely meets a connection that is being closed.
pub const IDLE_MAX: Duration = Duration::from_secs(15);

/// The connections of one worker. No other worker uses its lock, and it is never held across an await.
#[derive(Debug)]
pub struct ConnectionPool {
    stacks: Mutex<HashMap<SocketAddr, VecDeque<Waiting>>>,
    /// To one stack; more are closed when their answer is complete.
    kept_max: usize,
}

#[derive(Debug)]
struct Waiting {
    tcp: TcpStream,
    since: Instant,
}

impl ConnectionPool {
    /// None yet, and never more than so many to one stack.
    pub fn new(kept_max: usize) -> Self {
        let stacks = Mutex::default();
        Self { stacks, kept_max }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, VecDeque<Waiting>>> {
        self.stacks.lock()
    }

    /// The connection to a stack that was used last, if it is still open.
    pub fn take(&self, stack: SocketAddr) -> Option<TcpStream> {
        let mut pool = self.lock();
        let waiting = pool.get_mut(&stack)?;
        while let Some(Waiting { tcp, since }) = waiting.pop_back() {
            // Bytes that come unasked are the end of the connection, or an answer to no request.
            let mut byte = [0];
            let is_quiet = tcp
                .try_read(&mut byte)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            if is_quiet && since.elapsed() < IDLE_MAX {
                return Some(tcp);
            }
        }
        None
    }

    /// A connection waits from now on.
    pub fn put(&self, stack: SocketAddr, tcp: TcpStream) {
        let mut pool = self.lock();
        let waiting = pool.entry(stack).or_default();
        if waiting.len() < self.kept_max {
            let since = Instant::now();
            waiting.push_back(Waiting { tcp, since });
        }
    }

    /// Closes connections that waited for [`IDLE_MAX`]. The rest closes when this is dropped.
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
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn only_open_connections_are_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stack = listener.local_addr().unwrap();
        let pool = ConnectionPool::new(2);
        assert!(pool.take(stack).is_none());
        let connect = async || {
            (
                TcpStream::connect(stack).await.unwrap(),
                listener.accept().await.unwrap().0,
            )
        };
        let (first, _stays) = connect().await;
        let (second, goes) = connect().await;
        let address = first.local_addr().unwrap();
        pool.put(stack, first);
        drop(goes);
        second.readable().await.unwrap();
        pool.put(stack, second);
        assert_eq!(pool.take(stack).unwrap().local_addr().unwrap(), address);
        assert!(pool.take(stack).is_none(), "the stack closed the other one");
        for _ in 0..3 {
            pool.put(stack, connect().await.0);
        }
        assert_eq!(pool.lock()[&stack].len(), 2);
    }

    /// The stack closes its end at some time, and a request on its way just then fails.
    #[tokio::test]
    async fn what_waited_too_long_is_not_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stack = listener.local_addr().unwrap();
        let pool = ConnectionPool::new(2);
        let (first, second) = (TcpStream::connect(stack), TcpStream::connect(stack));
        pool.put(stack, first.await.unwrap());
        pool.put(stack, second.await.unwrap());
        tokio::time::pause();
        tokio::time::advance(IDLE_MAX - std::time::Duration::from_millis(1)).await;
        assert!(pool.take(stack).is_some());
        tokio::time::advance(IDLE_MAX).await;
        assert!(pool.take(stack).is_none());
    }

    #[tokio::test]
    async fn what_waited_too_long_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stack = listener.local_addr().unwrap();
        let pool = ConnectionPool::new(2);
        pool.put(stack, TcpStream::connect(stack).await.unwrap());
        tokio::time::pause();
        tokio::time::advance(IDLE_MAX).await;
        pool.sweep();
        assert!(pool.lock().is_empty());
    }
}
