//! `meridian-dns`: the authoritative DNS responder of the service zone.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use api::v1::NodeKind;
use daemon::{Process, Tasks, admin};
use dns::{Config, Metrics, Networks, Responder, serve, texts};
use node::{Follower, LastGood};
use prometheus_client::registry::Registry;
use steering::Answers;
use tokio::sync::watch;
use topology::Snapshot;

/// Grace period for the tasks to stop. Replies take microseconds; only TCP clients are cut, and they ask again.
const GRACE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    daemon::main(
        "meridian-dns",
        "Answers DNS queries for the service's zone with the edges that serve by the plan",
        run,
    )
}

async fn run(process: Process, config: Config) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.state_dir).with_context(|| texts::cannot_create_state_dir(&config.state_dir))?;

    let mut tasks = Tasks::new();
    let (metrics, mut registry) = (Metrics::default(), Registry::default());
    metrics.register(&mut registry);
    let identity = identity::Identity::load_if(config.identity.clone(), daemon::clock::now)?;
    if let Some(identity) = &identity {
        identity.must_be(&identity::Role::Dns(config.node.to_string()))?;
    }
    registry.register_collector(Box::new(identity::Expiry(identity.clone())));
    let ready = admin::Readiness::default();
    ready.set("plan", false);
    let admin = admin::serve(&mut tasks, config.admin_listen, registry, ready.clone()).await?;

    let endpoints = config.control_planes.clone();
    let (current, snapshots) = watch::channel(None);
    let follower = Follower {
        endpoints: config.control_planes.clone(),
        node: config.node.clone(),
        kind: NodeKind::Dns,
        last_good: LastGood::at(config.state_dir.join("plan")),
        contact: node::Contact::default(),
        identity: identity.clone(),
    };
    if let Some(identity) = identity {
        let stop = tasks.stop_token();
        tasks.spawn("identity", async move {
            let keeping = node::renew::keep_identity(identity, endpoints, daemon::clock::now);
            stop.run_until_cancelled(keeping).await;
            Ok(())
        });
    }
    let stop = tasks.stop_token();
    tasks.spawn("follow plans", async move {
        follower.run(current, stop.cancelled()).await;
        Ok(())
    });
    let stop = tasks.stop_token();
    tasks.spawn("answer", async move {
        tokio::select! {
            // The task that follows plans stops at the same moment. The end of its channel is then no failure.
            biased;
            () = stop.cancelled() => Ok(()),
            result = answer(process, config, snapshots, metrics, ready, admin, stop.clone()) => result,
        }
    });
    tasks.run(GRACE).await
}

/// Waits for the first plan, then listens and answers until `stop`.
async fn answer(
    process: Process,
    config: Config,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    metrics: Metrics,
    ready: admin::Readiness,
    admin: std::net::SocketAddr,
    stop: tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!("{}", texts::WAITS_FOR_PLAN);
    let first = snapshots
        .wait_for(Option::is_some)
        .await
        .context(texts::FOLLOWER_ENDED)?
        .clone()
        .context(texts::FOLLOWER_ENDED)?;
    let networks = Networks::new(&config.network)?;
    let answers = Answers::compile(&first);
    let responder = Arc::new(Responder::new(answers, networks, &config.node, rand::random()));

    let mut sockets = Vec::new();
    for listen in &config.listen {
        sockets.push(serve::Sockets::bind(*listen).await?);
    }
    let mut addresses = vec![("admin", admin)];
    // The announcement names one address; the others serve the same answers.
    if let Some(first) = sockets.first() {
        addresses.push(("dns", first.address()?));
    }
    let mut serving = tokio::task::JoinSet::new();
    for sockets in sockets {
        serving.spawn(sockets.serve(responder.clone(), metrics.clone(), stop.clone()));
    }
    serving.spawn(serve::keep_current(responder, snapshots, metrics));
    ready.set("plan", true);
    process.announce(&addresses)?;
    serving.join_next().await;
    Ok(())
}
