//! The process: its tasks, and the order in which they start and stop.
//!
//! Start: follow plans → first plan → listen → announce. Stop: refuse new sessions → let the live ones leave → then, and
//! only then, stop everything else, so that plans, metrics and readiness are there to the end.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use api::{Follower, LastGood, v1::NodeKind};
use daemon::{Process, Tasks, admin::Readiness};
use prometheus_client::registry::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use topology::{NodeId, RegionId, Snapshot};

use crate::{Config, Edge, listener, metrics::Metrics};

/// The part of readiness that says whether there is a plan.
const READINESS: &str = "plan";
/// The frame cuts tasks this long after the drain limit: a safety net that a working drain never touches.
const GRACE: Duration = Duration::from_secs(5);

/// Runs an edge until it is told to stop.
pub async fn run(process: Process, config: Config) -> anyhow::Result<()> {
    raise_open_files(config.limits.connections_max);
    let folder = process.config_path().parent().unwrap_or(Path::new("")).to_owned();
    let grace = config.drain.limit.0 + GRACE;
    let tasks = start(config, &folder, move |addresses| process.announce(addresses)).await?;
    tasks.run(grace).await
}

/// Asks for as many open files as the system allows: a session takes two, and the usual soft limit of 1,024 is from a time
/// of `select`.
fn raise_open_files(connections_max: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    let needed = 2 * connections_max as u64;
    if let Some(current) = getrlimit(Resource::Nofile).current
        && current < needed
    {
        tracing::warn!(
            limit = current,
            needed,
            "too few open files are allowed for limits.connections_max"
        );
    }
}

/// Starts all tasks of an edge. `announce` is called once devices are accepted, with the addresses by purpose.
pub async fn start(
    config: Config,
    folder: &Path,
    announce: impl FnOnce(&[(&str, SocketAddr)]) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Tasks> {
    config.check()?;
    let state_dir = folder.join(&config.state_dir);
    std::fs::create_dir_all(&state_dir).with_context(|| format!("cannot make state_dir {}", state_dir.display()))?;
    let claimed = listener::claim(&config.listen, config.reuse_port)?;

    let mut registry = Registry::default();
    let edge = Arc::new(Edge::new(config, Metrics::new(&mut registry)));
    let node = NodeId::from(&edge.id);
    let mut tasks = Tasks::new();
    let stop = tasks.stop_token();
    // Set when the last session has left: what serves the sessions stops after them.
    let left = CancellationToken::new();
    let readiness = Readiness::default();
    readiness.set(READINESS, false);
    readiness.set(listener::READINESS, false);
    let admin = serve_admin(&mut tasks, &edge, registry, readiness.clone(), left.clone()).await?;

    let (current, snapshots) = watch::channel(None);
    let follower = Follower {
        endpoints: edge.config.control_planes.clone(),
        node: node.clone(),
        kind: NodeKind::Edge,
        last_good: LastGood::at(state_dir.join("plan")),
    };
    let leaving = left.clone();
    tasks.spawn("plans", async move {
        follower.run(current, leaving.cancelled()).await;
        Ok(())
    });

    let (reports, reporter) = api::report_queue(edge.config.control_planes.clone());
    let leaving = left.clone();
    tasks.spawn("reports", async move {
        reporter.run(leaving.cancelled()).await;
        Ok(())
    });
    let (rtts, probed) = watch::channel(BTreeMap::new());
    let settings = probe::Settings {
        vantage: node,
        reports,
        rtts: Some(rtts),
    };
    let (seer, probing, leaving) = (edge.clone(), snapshots.clone(), left.clone());
    tasks.spawn("probes", async move {
        probe::run(settings, probing, move || seer.seen.observations(), leaving).await;
        Ok(())
    });
    let (seer, leaving) = (edge.clone(), left.clone());
    tasks.spawn("round-trips", async move {
        leaving.run_until_cancelled(take_round_trips(&seer, probed)).await;
        Ok(())
    });

    let (applier, applied, leaving) = (edge.clone(), readiness.clone(), left.clone());
    let (has_plan, planned) = watch::channel(false);
    tasks.spawn("table", async move {
        leaving
            .run_until_cancelled(apply_plans(&applier, snapshots, |ready| {
                applied.set(READINESS, ready);
                has_plan.send_replace(ready);
            }))
            .await;
        Ok(())
    });

    tasks.spawn("devices", async move {
        // Whatever ends this task, the others may go then.
        let _left = left.drop_guard();
        if !first_plan(planned, &stop).await {
            return Ok(());
        }
        let (listeners, addresses) = claimed.listen()?;
        let devices = addresses.first().context("no address to listen on")?;
        // Said here because the other tasks end with this one, and any of them may be found first.
        announce(&[("http", *devices), ("admin", admin)])
            .inspect_err(|error| tracing::error!("cannot announce: {error:#}"))?;
        listener::serve(edge, listeners, readiness, stop).await;
        Ok(())
    });
    Ok(tasks)
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
            has_plan(true);
        }
        if snapshots.changed().await.is_err() {
            // The follower stops with this task or just before it.
            return std::future::pending::<()>().await;
        }
    }
}

async fn take_round_trips(edge: &Edge, mut probed: watch::Receiver<BTreeMap<RegionId, f64>>) {
    while probed.changed().await.is_ok() {
        edge.seen.probed(&probed.borrow_and_update());
    }
    // The probes stop with this task or just before it.
    std::future::pending::<()>().await;
}

/// The administrative listener. Unlike those of processes that hold no sessions it outlives the stop signal: a draining
/// edge is looked at most.
async fn serve_admin(
    tasks: &mut Tasks,
    edge: &Arc<Edge>,
    registry: Registry,
    readiness: Readiness,
    left: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let address = edge.config.admin_listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for metrics and health"))?;
    let bound = listener.local_addr()?;
    let router = daemon::admin::router(Arc::new(registry), readiness).merge(crate::admin::router(edge.clone()));
    tasks.spawn("admin", async move {
        // Not the graceful way: a scraper that keeps its connection open must not keep the process.
        let served = left
            .run_until_cancelled(axum::serve(listener, router).into_future())
            .await;
        served.transpose().map(drop).context("administrative listener")
    });
    Ok(bound)
}
