//! The process: its tasks, and the order in which they start and stop.
//!
//! Start: follow plans → first plan → listen → announce. Stop: refuse new sessions → let the live ones leave → then, and
//! only then, stop everything else, so that plans, metrics and readiness are there to the end. An edge that was taken over
//! accepts no devices and reports nothing: it only follows plans, for its remaining sessions.

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use api::v1::NodeKind;
use daemon::{Process, Tasks, admin::Readiness};
use node::{Contact, Follower, LastGood};
use probe::{Lateness, Probed};
use prometheus_client::registry::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use topology::{NodeId, Snapshot};

use crate::{
    Config, Edge,
    accept::documents::Documents,
    accept::handover::{self, Name, Predecessor, Successor},
    accept::listener,
    accept::tls::{self, Tls},
    accept::workers::Workers,
    metrics::Metrics,
    texts,
};

/// The part of readiness that says whether there is a plan.
const READINESS: &str = "plan";
/// About how long a probe waits for its answer.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// The frame cuts tasks this long after the drain limit: a safety net that a working drain never touches.
const GRACE: Duration = Duration::from_secs(5);

/// Options besides those of every process.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
pub struct Options {
    /// Take the listening sockets over from the edge that runs with the same state_dir, as an upgrade does: no device is
    /// refused, and the other one ends when its sessions have left it.
    #[arg(long)]
    pub take_over: bool,
}

/// Runs an edge until it is told to stop.
pub async fn run(process: Process, options: Options, config: Config) -> anyhow::Result<()> {
    raise_open_files();
    let folder = process.config_path().parent().unwrap_or(Path::new("")).to_owned();
    let grace = config.drain.limit.0 + GRACE;
    let tasks = start(config, &folder, options.take_over, move |addresses| {
        process.announce(addresses)
    });
    tasks.await?.run(grace).await
}

/// Asks for as many open files as the system allows: a session takes two, and the usual soft limit of 1,024 comes from the times of
/// `select`.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "{}", texts::OPEN_FILES_FIXED);
    }
}

/// Descriptors beside the connections of devices: listening sockets, probes, control planes, the event loops, files, and pooled
/// connections to stacks.
const FILES_RESERVED: u64 = 256;

/// The number of connections for which the open files of this process suffice: each may need a second one to a region. An edge that
/// accepts more cannot reach a region for those that it accepted.
fn connections_allowed(files: Option<u64>, wanted: usize) -> usize {
    let Some(files) = files else { return wanted };
    // With very few files only a part is reserved, so that the edge can serve at all.
    let free = files - FILES_RESERVED.min(files / 4);
    wanted.min(usize::try_from(free / 2).unwrap_or(usize::MAX)).max(1)
}

/// Lowers the limit on connections to the number for which there are open files.
fn clamp_connections(config: &mut Config) {
    let files = getrlimit(Resource::Nofile).current;
    let limits = &mut config.limits;
    let (configured, allowed) = (
        limits.connections_max,
        connections_allowed(files, limits.connections_max),
    );
    if allowed < configured {
        tracing::warn!(configured, allowed, open_files = files, "{}", texts::OPEN_FILES_TOO_FEW);
    }
    limits.connections_max = allowed;
    limits.sessions_max = limits.sessions_max.min(allowed);
}

/// Starts all tasks of an edge. `announce` is called once devices are accepted, with the addresses by purpose.
pub async fn start(
    mut config: Config,
    folder: &Path,
    takes_over: bool,
    announce: impl FnOnce(&[(&str, SocketAddr)]) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Tasks> {
    config.check()?;
    clamp_connections(&mut config);
    let state_dir = folder.join(&config.state_dir);
    std::fs::create_dir_all(&state_dir).with_context(|| format!("cannot create state_dir {}", state_dir.display()))?;
    let mut predecessor = None;
    if takes_over {
        let asked = state_dir.clone();
        predecessor = Some(tokio::task::spawn_blocking(move || Predecessor::ask(&asked)).await??);
    }
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let section = config.identity.clone();
    let proves_to_stacks = section
        .as_ref()
        .is_some_and(|section| section.stacks == identity::ToStacks::Required);
    let files = section.map(|section| section.files().relative_to(folder));
    let identity = identity::Identity::load_if(files, daemon::clock::now)?;
    if let Some(identity) = &identity {
        identity.must_be(&identity::Role::Edge(config.node.to_string()))?;
    }
    let to_stacks = identity.clone().filter(|_| proves_to_stacks);
    if to_stacks.is_none() {
        tracing::warn!("{}", texts::NO_IDENTITY);
    }
    registry.register_collector(Box::new(identity::Expiry(identity.clone())));
    metrics.connections_max(config.limits.connections_max);
    let tls = Tls::load(&config.tls, folder, metrics.clone())?.map(Arc::new);
    let claimed = listener::claim(&config, tls.as_ref(), predecessor.as_mut())?;
    let admin = claim_admin(config.admin_listen, predecessor.as_mut()).await?;
    for path in config.auth.paths() {
        *path = folder.join(&*path);
    }
    let documents = Documents::load(&config.auth, &state_dir, metrics.clone())?;
    let edge = Arc::new(
        Edge::new(config, metrics)
            .with_access(documents.as_ref().map(Documents::access))
            .with_identity(to_stacks.clone()),
    );
    let workers = Workers::start(&edge).context("cannot start the threads that serve devices")?;
    let node = NodeId::from(&edge.id);
    let mut tasks = Tasks::new();
    let stop = tasks.stop_token();
    // Cancelled when the last session has left: the tasks that serve sessions stop after it.
    let left = CancellationToken::new();
    // Cancelled when the last session has left, or a successor took over.
    let succeeded = left.child_token();
    let readiness = Readiness::default();
    readiness.set(READINESS, false);
    readiness.set(listener::READINESS, false);
    let admin_socket = admin.as_fd().try_clone_to_owned()?;
    // A predecessor answers there until this edge accepts devices.
    let serves = CancellationToken::new();
    if predecessor.is_none() {
        serves.cancel();
    }
    let admin = serve_admin(
        &mut tasks,
        &edge,
        registry,
        readiness.clone(),
        admin,
        (&serves, &succeeded, &left),
    )?;

    let (current, snapshots) = watch::channel(None);
    let follower = Follower {
        endpoints: edge.config.control_planes.clone(),
        node: node.clone(),
        kind: NodeKind::Edge,
        last_good: LastGood::at(state_dir.join("plan")),
        contact: Contact::default(),
        identity: identity.clone(),
    };
    if let Some(identity) = identity.clone() {
        let (stopping, endpoints) = (left.clone(), edge.config.control_planes.clone());
        tasks.spawn("identity", async move {
            let keeping = node::renew::keep_identity(identity, endpoints, daemon::clock::now);
            stopping.run_until_cancelled(keeping).await;
            Ok(())
        });
    }
    let (contact, metrics, stopping) = (follower.contact.clone(), edge.metrics.clone(), left.clone());
    tasks.spawn("staleness", async move {
        stopping.run_until_cancelled(tell_staleness(&contact, &metrics)).await;
        Ok(())
    });
    let stopping = left.clone();
    tasks.spawn("plans", async move {
        follower.run(current, stopping.cancelled()).await;
        Ok(())
    });

    let (reports, reporter) = node::report_queue(edge.config.control_planes.clone(), identity, daemon::clock::now);
    let (stopping, gone) = (succeeded.clone(), left.clone());
    tasks.spawn("reports", async move {
        reporter.run(stopping.cancelled()).await;
        gone.cancelled().await;
        Ok(())
    });
    let (results, probed) = watch::channel(Probed::default());
    let looker = edge.clone();
    let settings = probe::Settings {
        vantage: node,
        reports,
        results: Some(results),
        lateness: Lateness::new(move |wait| looker.lag.is_late_for(wait)),
        identity: to_stacks,
    };
    let (observer, probing, stopping, gone) = (edge.clone(), snapshots.clone(), succeeded.clone(), left.clone());
    tasks.spawn("probes", async move {
        probe::run(settings, probing, move || observer.passive(), stopping).await;
        gone.cancelled().await;
        Ok(())
    });
    let (observer, stopping) = (edge.clone(), left.clone());
    tasks.spawn("probed", async move {
        stopping.run_until_cancelled(take_probes(&observer, probed)).await;
        Ok(())
    });

    if let Some(tls) = tls {
        let (hangup, stopping) = (tls::hangup()?, left.clone());
        let period = edge.config.tls.reload.0;
        tasks.spawn("certificate", async move {
            stopping.run_until_cancelled(tls.keep_current(period, hangup)).await;
            Ok(())
        });
    }

    let (applier, applied, stopping) = (edge.clone(), readiness.clone(), left.clone());
    let (has_plan, planned) = watch::channel(false);
    tasks.spawn("table", async move {
        stopping
            .run_until_cancelled(apply_plans(&applier, snapshots, |ready| {
                applied.set(READINESS, ready);
                has_plan.send_replace(ready);
            }))
            .await;
        Ok(())
    });

    if let Some(documents) = documents {
        let (devices, stopping) = (edge.clone(), left.clone());
        tasks.spawn("access", async move {
            stopping.run_until_cancelled(documents.follow(devices)).await;
            Ok(())
        });
    }

    let (watched, stopping) = (edge.clone(), left.clone());
    tasks.spawn("memory", async move {
        stopping
            .run_until_cancelled(crate::accept::memory::watch_memory(&watched))
            .await;
        Ok(())
    });

    tasks.spawn("devices", async move {
        // The other tasks may end when this one has ended for any reason.
        let _left = left.drop_guard();
        if !first_plan(planned, &stop).await {
            return Ok(());
        }
        let listeners = claimed.listen()?;
        let mut purposes = vec![("admin", admin)];
        let mut sockets = vec![(Name::new("admin", edge.config.admin_listen), admin_socket)];
        for listener in &listeners {
            // The first of each is announced.
            if purposes.iter().all(|(purpose, _)| *purpose != listener.purpose()) {
                purposes.push((listener.purpose(), listener.address()?));
            }
            sockets.push(listener.to_hand_over()?);
        }
        // Logged here: the other tasks end with this one, and the process reports only the first that ended.
        announce(&purposes)
            .inspect_err(|error| tracing::error!(error = format!("{error:#}"), "{}", texts::CANNOT_ANNOUNCE))?;
        let ends = stop.clone();
        let metrics = edge.metrics.clone();
        serves.cancel();
        let handed_over = async move {
            let relieved = async {
                if let Some(predecessor) = predecessor {
                    relieve(predecessor, &metrics).await;
                }
                std::future::pending().await
            };
            // An edge that has just taken over may be replaced as well; the ones before it do not wait for each other.
            let successor = tokio::select! {
                successor = relieved => successor,
                successor = hand_over(&state_dir, sockets) => successor,
            };
            tracing::info!("another process accepts devices now");
            succeeded.cancel();
            successor
        };
        listener::serve(edge, workers, listeners, readiness, stop, handed_over).await;
        // The process ends in order, whether it was told to stop or relieved.
        ends.cancel();
        Ok(())
    });
    Ok(tasks)
}

/// Tells the predecessor that this edge accepts devices, and waits until it ends.
async fn relieve(predecessor: Predecessor, metrics: &Metrics) {
    let counted = predecessor.relieve(|sessions| metrics.predecessor(sessions)).await;
    match counted {
        Ok(()) => tracing::info!("the predecessor of this edge ended"),
        Err(error) => tracing::warn!(error = format!("{error:#}"), "{}", texts::PREDECESSOR_NOT_TOLD),
    }
}

/// Waits for a successor. An edge that cannot offer its sockets serves all the same.
async fn hand_over(state_dir: &Path, sockets: Vec<(Name, OwnedFd)>) -> Successor {
    match handover::offer(state_dir, sockets).await {
        Ok(successor) => successor,
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "{}", texts::CANNOT_HAND_OVER);
            std::future::pending().await
        }
    }
}

/// Whether a plan came before the edge was told to stop.
async fn first_plan(mut planned: watch::Receiver<bool>, stop: &CancellationToken) -> bool {
    let first = stop.run_until_cancelled(planned.wait_for(|ready| *ready)).await;
    matches!(first, Some(Ok(_)))
}

/// Puts every plan that comes in force.
async fn apply_plans(edge: &Edge, mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>, has_plan: impl Fn(bool)) {
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if let Some(snapshot) = snapshot {
            edge.apply(&snapshot);
            has_plan(edge.table().is_some());
        }
        if snapshots.changed().await.is_err() {
            // The follower stops with this task or just before it.
            return std::future::pending::<()>().await;
        }
    }
}

/// Reports again and again for how long the plan in force may have been out of date.
async fn tell_staleness(contact: &Contact, metrics: &Metrics) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        metrics.contact(contact.count(), contact.stale_for());
    }
}

/// Takes the results of each tick's probes. Those of an edge that was late itself prove nothing: they measure its own lateness.
async fn take_probes(edge: &Edge, mut probed: watch::Receiver<Probed>) {
    while probed.changed().await.is_ok() {
        if !edge.lag.is_late_for(PROBE_LIMIT) {
            edge.fleet.probed(&probed.borrow_and_update());
        }
    }
    // The probes stop with this task or just before it.
    std::future::pending::<()>().await;
}

/// The administrative address, or the socket that the predecessor has there.
async fn claim_admin(address: SocketAddr, predecessor: Option<&mut Predecessor>) -> anyhow::Result<TcpListener> {
    let taken = predecessor.and_then(|it| it.take(&Name::new("admin", address)));
    let listener = match taken {
        Some(listener) => TcpListener::from_std(listener),
        None => TcpListener::bind(address).await,
    };
    listener.with_context(|| format!("cannot listen on {address} for metrics and health"))
}

/// The administrative listener. It outlives the stop signal, unlike that of a process without sessions: operators look most at an edge
/// that drains. It begins with the first token, ends with the second, and its task ends with the third.
fn serve_admin(
    tasks: &mut Tasks,
    edge: &Arc<Edge>,
    registry: Registry,
    readiness: Readiness,
    listener: TcpListener,
    (serves, succeeded, left): (&CancellationToken, &CancellationToken, &CancellationToken),
) -> anyhow::Result<SocketAddr> {
    let (serves, succeeded, left) = (serves.clone(), succeeded.clone(), left.clone());
    let bound = listener.local_addr()?;
    let router = daemon::admin::router(Arc::new(registry), readiness).merge(crate::admin::router(edge.clone()));
    tasks.spawn("admin", async move {
        // Not the graceful way: a scraper that keeps its connection open must not keep the process.
        let serving = async {
            serves.cancelled().await;
            axum::serve(listener, router).await
        };
        let served = succeeded.run_until_cancelled(serving).await;
        served.transpose().context("administrative listener")?;
        left.cancelled().await;
        Ok(())
    });
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_accepts_only_connections_for_which_it_has_open_files() {
        for (files, wanted, allowed) in [
            (None, 9_000, 9_000),
            (Some(20_000), 9_000, 9_000),
            (Some(1_024), 9_000, 384),
            (Some(100), 9_000, 37),
            (Some(0), 9_000, 1),
            (Some(u64::MAX), 9_000, 9_000),
        ] {
            assert_eq!(connections_allowed(files, wanted), allowed, "{files:?}");
        }
    }
}
