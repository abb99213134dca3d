//! Starting a stack, and stopping it in order: it refuses new work, lets current turns end, and cuts the sessions that are left.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use identity::{Acceptor, Event, Expiry, Identity, Link, Mode};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    config::Config,
    http,
    metrics::ConnectionLabels,
    place::Place,
    room::{Meter, Metered},
    stack::{Engines, Stack},
    store::{DurableStore, MemoryStore, SessionStore, Writer},
    texts, wyoming,
};

/// Calls at the same time on one connection; an edge sends no more over one.
const HTTP2_STREAMS_MAX: u32 = 100;
/// Time for a peer to answer a ping; afterwards its calls end.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);

/// The addresses of a stack.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Devices and edges.
    pub http: SocketAddr,
    /// Metrics, health and readiness.
    pub admin: SocketAddr,
    /// Home Assistant, if `[wyoming]` is configured.
    pub wyoming: Option<SocketAddr>,
}

/// Starts a stack as tasks of the process. Returns when its engines work and it takes calls.
pub async fn start(config: Config, engines: Engines, tasks: &mut daemon::Tasks) -> anyhow::Result<Addresses> {
    config.check()?;
    let bind =
        |listen: SocketAddr, what: &str| daemon::listen(listen).with_context(|| texts::cannot_listen(listen, what));
    let service_listener = bind(config.listen, "devices and edges")?;
    let admin_listener = bind(config.admin_listen, "metrics and health")?;
    let satellites = match config.wyoming {
        Some(section) => Some((bind(section.listen, "the Wyoming protocol")?, section.connections_max)),
        None => None,
    };
    let addresses = Addresses {
        http: service_listener.local_addr()?,
        admin: admin_listener.local_addr()?,
        wyoming: satellites
            .as_ref()
            .map(|(listener, _)| listener.local_addr())
            .transpose()?,
    };
    if let Some(address) = addresses.wyoming.filter(|address| !address.ip().is_loopback()) {
        tracing::warn!(%address, "{}", texts::WYOMING_OPEN);
    }

    let identity = own_identity(&config)?;
    let (store, writer) = session_store(&config).await?;
    let expiry = Expiry(identity.as_ref().map(|(identity, _)| identity.clone()));
    let stack = Stack::new(config, engines, store, expiry, tasks.stop_token()).context(texts::NO_THREADS)?;
    let stack = Arc::new(stack);
    stack.readiness.set("engines", false);
    stack.readiness.set("listener", false);

    // The administrative pages outlive the service, so that a drain can be watched to its end.
    let drained = CancellationToken::new();
    let admin = http::admin_router(Arc::clone(&stack));
    let admin_stop = drained.clone();
    if let Some(writer) = writer {
        // The writer's last pass comes after the last session.
        let (metrics, stop) = (stack.metrics.clone(), drained.clone());
        tasks.spawn("sessions on disk", async move {
            writer.run(metrics, stop).await;
            Ok(())
        });
    }
    if let (Some((identity, _)), Some(section)) = (&identity, &stack.config.identity) {
        // The renewal runs until the last session has left, which may take longer than a certificate lives.
        let (identity, stop) = (Arc::clone(identity), drained.clone());
        let control_planes = section.control_planes.clone();
        tasks.spawn("identity", async move {
            let keeping = node::renew::keep_identity(identity, control_planes, daemon::clock::now);
            stop.run_until_cancelled(keeping).await;
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
        result = stack.warm_up() => result.context(texts::ENGINES_FAIL),
        () = stack.draining.cancelled() => Err(anyhow::anyhow!(texts::STOPPED_EARLY)),
    };
    if let Err(error) = warmed_up {
        drained.cancel();
        stack.stop_engines();
        return Err(error);
    }
    stack.readiness.set("engines", true);
    stack.readiness.set("listener", true);
    let connections = stack.metrics.connections.clone();
    let acceptor = Acceptor::new(identity, move |event| {
        let outcome = match event {
            Event::Plain => "plain",
            Event::Proven => "proven",
            Event::Ended => "ended",
            Event::Refused(reason) => reason,
        };
        connections.get_or_create(&ConnectionLabels { outcome }).inc();
    });
    tasks.spawn("service", async move {
        let serve_satellites = async {
            if let Some((listener, connections_max)) = satellites {
                wyoming::serve_until_drained(&stack, listener, connections_max).await;
            }
        };
        tokio::join!(
            serve_until_drained(&stack, service_listener, acceptor),
            serve_satellites
        );
        drained.cancel();
        // This joins threads that may still compute; it must not hold up the other tasks.
        tokio::task::spawn_blocking(move || stack.stop_engines()).await?;
        Ok(())
    });
    Ok(addresses)
}

/// The identity that this stack shows to its callers, and the callers that it lets in; `None` for plain text.
fn own_identity(config: &Config) -> anyhow::Result<Option<(Arc<Identity>, Mode)>> {
    let Some(section) = &config.identity else {
        return Ok(None);
    };
    let identity = Identity::load(section.files(), daemon::clock::now)?;
    identity.must_be_stack_of(&config.region)?;
    if section.mode != Mode::Required {
        tracing::warn!(
            mode = %section.mode,
            "{}", texts::OPEN_TO_ALL
        );
    }
    Ok(Some((identity, section.mode)))
}

/// The store of sessions, with the sessions of an earlier process that the folder holds, and the writer that keeps the folder up to date.
async fn session_store(config: &Config) -> anyhow::Result<(Box<dyn SessionStore>, Option<Writer>)> {
    let limits = config.limits;
    let memory = MemoryStore::new(limits.sessions_kept_max, limits.session_ttl.0);
    let (Some(folder), Some(key)) = (&config.state_dir, &config.checkpoint_key) else {
        return Ok((Box::new(memory), None));
    };
    let (path, keys, home) = (
        folder.clone(),
        (key.clone(), config.state_key.clone()),
        config.home_city,
    );
    let open = move || DurableStore::open(memory, path, keys, home, daemon::clock::now());
    let opened = tokio::task::spawn_blocking(open).await?;
    let (store, writer) = opened.with_context(|| texts::cannot_use_state_dir(folder))?;
    Ok((Box::new(store), Some(writer)))
}

async fn serve_until_drained(stack: &Arc<Stack>, listener: TcpListener, acceptor: Acceptor) {
    let limits = stack.config.limits;
    let router = http::router(Arc::clone(stack));
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let acceptor = Arc::new(acceptor);
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
                // The process is out of file descriptors, usually. A pause lets some close; accepting again at once would only spin.
                tracing::warn!(%error, "{}", texts::CANNOT_ACCEPT);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        connections.spawn(serve_connection(
            Arc::clone(stack),
            socket,
            permit,
            router.clone(),
            Arc::clone(&acceptor),
        ));
    }

    // From here on no new caller gets in. Sessions see `draining` and close after their current turn.
    stack.readiness.set("listener", false);
    drop(listener);
    stack.sessions.close();
    let turns_end = async {
        while connections.join_next().await.is_some() {}
        stack.sessions.wait().await;
    };
    if timeout(limits.drain_max.0, turns_end).await.is_err() {
        tracing::warn!(sessions = stack.sessions.len(), "{}", texts::TURNS_CUT);
        stack.cut.cancel();
        // A cut session only has its Close frame left to send.
        let _ = timeout(Duration::from_secs(2), stack.sessions.wait()).await;
    }
    connections.abort_all();
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<((TcpStream, SocketAddr), OwnedSemaphorePermit)> {
    let permit = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    Ok((listener.accept().await?, permit))
}

async fn serve_connection(
    stack: Arc<Stack>,
    (socket, source): (TcpStream, SocketAddr),
    permit: OwnedSemaphorePermit,
    router: Router,
    acceptor: Arc<Acceptor>,
) {
    let header_limit = stack.config.limits.header_max.0;
    // Audio goes out in small frames, which must not wait for more.
    let _ = socket.set_nodelay(true);
    let begun = tokio::select! {
        begun = timeout(header_limit, begin(&acceptor, socket, source)) => begun,
        () = stack.draining.cancelled() => return,
    };
    let (link, has_http2) = match begun {
        Ok(Some(begun)) => begun,
        Ok(None) => return,
        Err(_) => return tracing::debug!("nothing was said on a connection"),
    };
    let (leaving, closing) = (stack.draining.child_token(), stack.draining.child_token());
    let watch = watch(&link, leaving.clone(), closing.clone());
    let meter = Arc::new(Meter::new(Arc::clone(&stack.long_messages)));
    // The place travels with each request, so that a socket that became a session keeps it until the session ends.
    let place = Place::new(permit, Arc::clone(&meter), leaving, watch);
    let router = router.layer(axum::Extension(place));
    let metered = Metered { socket: link, meter };
    if has_http2 {
        return serve_http2(metered, router, closing).await;
    }
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_limit)
        .serve_connection(TokioIo::new(metered), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

/// Lets a caller in, and finds out whether it speaks HTTP/2.
async fn begin(acceptor: &Acceptor, socket: TcpStream, source: SocketAddr) -> Option<(Link, bool)> {
    let mut link = acceptor.admit_to_stack(socket, source).await?;
    let has_http2 = link.begins_with_http2().await;
    Some((link, has_http2))
}

/// Watches the certificates of a connection, until the guard is dropped. When a certificate ends, the connection closes after its current
/// requests, and its caller proves itself anew on the next connection; sessions stay. When this stack no longer trusts the root of the
/// peer, the sessions of the connection leave too, after their current turn.
fn watch(link: &Link, leaving: CancellationToken, closing: CancellationToken) -> DropGuard {
    let gone = CancellationToken::new();
    if let Some(proof) = link.proof() {
        let until = gone.clone();
        tokio::spawn(async move {
            let watching = async {
                tokio::select! {
                    () = proof.over() => closing.cancel(),
                    () = proof.withdrawn() => {}
                }
                proof.withdrawn().await;
                closing.cancel();
                leaving.cancel();
            };
            until.run_until_cancelled(watching).await;
        });
    }
    gone.drop_guard()
}

async fn serve_http2(socket: Metered, router: Router, closing: CancellationToken) {
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "HTTP/2 connection ended");
    }
}
