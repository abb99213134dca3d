//! The threads that serve devices. Each has an event loop of its own and connections that never leave it, as in nginx and
//! HAProxy: a connection wakes only tasks on its own thread, so no other processor is interrupted. On two cores that took two
//! fifths off the processor time of a request (docs/decisions/03-a-connection-stays-on-its-thread.md).

use std::{io, num::NonZero, sync::Arc, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::{Edge, accept::connection::Server, request::limits::Requests};

/// Most connections to a stack in the pools of all workers together: each takes a slot at the stack.
const KEPT_MAX: usize = 128;
/// Least number of them for each worker.
const KEPT_MIN: usize = 4;

pub struct Workers {
    first: Worker,
    others: Vec<Worker>,
    stop: CancellationToken,
}

pub struct Worker {
    pub event_loop: Handle,
    pub server: Arc<Server>,
    /// Each connection of the worker has a copy, so the count shows how many there are.
    pub connections: Arc<()>,
}

impl Workers {
    /// Starts the configured number of workers, or one for each processor that this process may use.
    pub fn start(edge: &Arc<Edge>) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let requests = Arc::new(Requests::new(&edge.config, &edge.metrics));
        let count = match edge.config.workers {
            0 => thread::available_parallelism().map_or(1, NonZero::get),
            count => count,
        };
        let kept_max = (KEPT_MAX / count).max(KEPT_MIN);
        let start = |index| {
            let server = Server::new(edge.clone(), requests.clone(), kept_max);
            Worker::start(index, edge.clone(), server, stop.clone())
        };
        Ok(Self {
            first: start(0)?,
            others: (1..count).map(start).collect::<io::Result<_>>()?,
            stop,
        })
    }

    /// Ends the workers and their connections.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// The worker that has the fewest connections: sessions last for hours, so taking turns would not keep workers even.
    pub fn least_loaded(&self) -> &Worker {
        let load = |worker: &&Worker| Arc::strong_count(&worker.connections);
        let others = self.others.iter().min_by_key(load);
        others.filter(|it| load(it) < load(&&self.first)).unwrap_or(&self.first)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Worker {
    fn start(index: usize, edge: Arc<Edge>, server: Server, stop: CancellationToken) -> io::Result<Self> {
        let event_loop = Builder::new_current_thread().enable_all().build()?;
        let worker = Self {
            event_loop: event_loop.handle().clone(),
            server: Arc::new(server),
            connections: Arc::default(),
        };
        let keeper = worker.server.clone();
        thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let keeping = async { tokio::join!(keeper.sweep(), edge.lag.watch()) };
            event_loop.block_on(stop.run_until_cancelled(keeping))
        })?;
        Ok(worker)
    }
}
