//! Starting a stack, and stopping it in order: refuse new work, let current turns end, cut what is left.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    http,
    place::Place,
    room::{Meter, Metered},
    stack::{Engines, Stack},
    store::{DurableStore, MemoryStore, SessionStore, Writer},
};

/// Calls at the same time on one connection; an edge sends as many over one.
const HTTP2_STREAMS_MAX: u32 = 100;
/// A peer that does not answer a ping is gone, and so are its calls.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);

/// Where a stack listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Devices and edges.
    pub http: SocketAddr,
    /// Metrics, health and readiness.
    pub admin: SocketAddr,
}

/// Starts a stack as tasks of the process. Returns when its engines work and it takes calls.
pub async fn start(config: Config, engines: Engines, tasks: &mut daemon::Tasks) -> anyhow::Result<Addresses> {
    config.check()?;
    let bind = |listen: SocketAddr, what: &str| {
        daemon::listen(listen).with_context(|| format!("cannot listen on {listen} for {what}"))
    };
    let service_listener = bind(config.listen, "devices and edges")?;
    let admin_listener = bind(config.admin_listen, "metrics and health")?;
    let addresses = Addresses {
        http: service_listener.local_addr()?,
        admin: admin_listener.local_addr()?,
    };

    let (store, writer) = session_store(&config).await?;
    let stack = Stack::new(config, engines, store, tasks.stop_token()).context("cannot start engine threads")?;
    let stack = Arc::new(stack);
    stack.readiness.set("engines", false);
    stack.readiness.set("listener", false);

    // The administrative pages outlive the service, so that a drain can be watched to its end.
    let drained = CancellationToken::new();
    let admin = http::admin_router(Arc::clone(&stack));
    let admin_stop = drained.clone();
    if let Some(writer) = writer {
        // Its last pass comes behind the last session.
        let (metrics, stop) = (stack.metrics.clone(), drained.clone());
        tasks.spawn("sessions on disk", async move {
            writer.run(metrics, stop).await;
            Ok(())
        });
    }
    tasks.spawn("admin", async move {
        axum::serve(admin_listener, admin)
            .with_graceful_shutdown(admin_stop.cancelled_owned())
            .await?;
        Ok(())
    });

    let warmed_up = tokio::select! {
        result = stack.warm_up() => result.context("the speech engines do not work"),
        () = stack.draining.cancelled() => Err(anyhow::anyhow!("told to stop while the engines were starting")),
    };
    if let Err(error) = warmed_up {
        drained.cancel();
        stack.stop_engines();
        return Err(error);
    }
    stack.readiness.set("engines", true);
    stack.readiness.set("listener", true);
    tasks.spawn("service", async move {
        serve_until_drained(&stack, service_listener).await;
        drained.cancel();
        // Joins threads that may be computing; that must not hold up the other tasks.
        tokio::task::spawn_blocking(move || stack.stop_engines()).await?;
        Ok(())
    });
    Ok(addresses)
}

/// The store of sessions, with those that a folder holds from before, and the writer that keeps the folder up to date.
async fn session_store(config: &Config) -> anyhow::Result<(Box<dyn SessionStore>, Option<Writer>)> {
    let limits = config.limits;
    let memory = MemoryStore::new(limits.sessions_kept_max, limits.session_ttl.0);
    let (Some(folder), Some(key)) = (&config.state_dir, &config.checkpoint_key) else {
        return Ok((Box::new(memory), None));
    };
    let (path, key, home) = (folder.clone(), key.clone(), config.home_city);
    let open = move || DurableStore::open(memory, path, key, home, daemon::clock::now());
    let opened = tokio::task::spawn_blocking(open).await?;
    let (store, writer) = opened.with_context(|| format!("cannot use state_dir {}", folder.display()))?;
    Ok((Box::new(store), Some(writer)))
}

async fn serve_until_drained(stack: &Arc<Stack>, listener: TcpListener) {
    let limits = stack.config.limits;
    let router = http::router(Arc::clone(stack));
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let header_limit = limits.header_max.0;
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stack.draining.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        let (socket, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, usually. Waiting lets some close; accepting again at once would only spin.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let meter = Arc::new(Meter::new(Arc::clone(&stack.long_messages)));
        connections.spawn(serve_connection(
            Metered { socket, meter },
            permit,
            router.clone(),
            header_limit,
            stack.draining.clone(),
        ));
    }

    // From here on nobody new gets in. Sessions have seen `draining` and close after their current turn.
    stack.readiness.set("listener", false);
    drop(listener);
    stack.sessions.close();
    let turns_end = async {
        while connections.join_next().await.is_some() {}
        stack.sessions.wait().await;
    };
    if timeout(limits.drain_max.0, turns_end).await.is_err() {
        tracing::warn!(sessions = stack.sessions.len(), "turns cut: the drain took too long");
        stack.cut.cancel();
        // A cut session only has its Close frame left to send.
        let _ = timeout(Duration::from_secs(2), stack.sessions.wait()).await;
    }
    connections.abort_all();
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (socket, _) = listener.accept().await?;
    Ok((socket, permit))
}

async fn serve_connection(
    metered: Metered,
    permit: OwnedSemaphorePermit,
    router: Router,
    header_limit: Duration,
    draining: CancellationToken,
) {
    // Audio goes out in small frames; waiting to fill packets would only delay it.
    let _ = metered.socket.set_nodelay(true);
    // The place travels with each request, so that a socket that became a session keeps it until the session ends.
    let place = Place::new(permit, Arc::clone(&metered.meter));
    let router = router.layer(axum::Extension(place.clone()));
    let begun = tokio::select! {
        begun = timeout(header_limit, begins_with_http2(&metered.socket)) => begun,
        () = draining.cancelled() => return,
    };
    match begun {
        Ok(true) => return serve_http2(metered.socket, router, draining).await,
        Ok(false) => {}
        Err(_) => return tracing::debug!("nothing was said on a connection"),
    }
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_limit)
        .serve_connection(TokioIo::new(metered), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

/// gRPC clients, and edges for them, begin with HTTP/2 at once (RFC 9113 §3.3). Two bytes tell its preface, `PRI`, from any
/// method of HTTP/1.1; nobody sends them apart.
async fn begins_with_http2(socket: &TcpStream) -> bool {
    let mut first = [0; 2];
    matches!(socket.peek(&mut first).await, Ok(2)) && &first == b"PR"
}

async fn serve_http2(socket: TcpStream, router: Router, draining: CancellationToken) {
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "HTTP/2 connection ended");
    }
}
