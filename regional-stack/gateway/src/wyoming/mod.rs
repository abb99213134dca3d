//! The Wyoming protocol, by which Home Assistant has satellites heard, answered and spoken to.
//!
//! It is plain TCP without a login, and it knows no sessions: Home Assistant makes a connection for each request. Its work goes to the same
//! engines as every other, as that of live callers. docs/clients.md says how Home Assistant is pointed here.
//!
//! Why it is so: docs/decisions/31-clients-in-their-own-protocols.md.

mod assistant;
mod connection;
mod describing;
pub(crate) mod event;
mod hearing;

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};

use self::connection::Connection;
use crate::{stack::Stack, texts};

/// Serves connections until the stack drains. Requests that are under way then have `drain_max` to end.
pub(crate) async fn serve_until_drained(stack: &Arc<Stack>, listener: TcpListener, connections_max: usize) {
    let places = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stack.draining.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((socket, place)) => {
                connections.spawn(serve(Arc::clone(stack), socket, place));
            }
            Err(error) => {
                // The process is out of file descriptors, usually.
                tracing::warn!(%error, "{}", texts::CANNOT_ACCEPT);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let all_end = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(stack.config.limits.drain_max.0, all_end).await;
    connections.abort_all();
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (socket, _) = listener.accept().await?;
    Ok((socket, place))
}

async fn serve(stack: Arc<Stack>, socket: TcpStream, _place: OwnedSemaphorePermit) {
    // Audio goes out in small events, which must not wait for more.
    let _ = socket.set_nodelay(true);
    let _connected = Connected::count(&stack);
    let ended = Connection::new(&stack, socket).run().await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a Wyoming connection ended");
    }
}

/// A connection in the gauge of connections.
struct Connected<'a>(&'a Stack);

impl<'a> Connected<'a> {
    fn count(stack: &'a Stack) -> Self {
        stack.metrics.wyoming_connections.inc();
        Self(stack)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.metrics.wyoming_connections.dec();
    }
}
