//! `meridian-dns`: the authoritative DNS responder of the service zone.

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use api::v1::NodeKind;
use daemon::{Process, Tasks, admin};
use dns::{Config, Metrics, Responder, Signer, geo, measure, networks, pages, serve, signer, texts};
use node::{Follower, LastGood};
use prometheus_client::registry::Registry;
use steering::{Geography, Steering};
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
    let signer = match &config.dnssec {
        None => None,
        Some(dnssec) => {
            let signer = Signer::read(&dnssec.keys, metrics.clone())?;
            tracing::info!(tags = ?signer.tags(), "signs the zone");
            Some(Arc::new(signer))
        }
    };
    let ready = admin::Readiness::default();
    ready.set("plan", false);
    let pages = Arc::new(pages::Pages {
        node: config.node.clone(),
        responder: OnceLock::new(),
        geography: Arc::new(geography(&config)?),
        settings: config.settings(),
    });
    let admin = admin::serve_with(
        &mut tasks,
        config.admin_listen,
        registry,
        ready.clone(),
        pages::router(pages.clone()),
    )
    .await?;

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
            result = answer(process, config, snapshots, metrics, ready, (admin, pages), signer, stop.clone()) => result,
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
    (admin, pages): (std::net::SocketAddr, Arc<pages::Pages>),
    signer: Option<Arc<Signer>>,
    stop: tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!("{}", texts::WAITS_FOR_PLAN);
    let first = snapshots
        .wait_for(Option::is_some)
        .await
        .context(texts::FOLLOWER_ENDED)?
        .clone()
        .context(texts::FOLLOWER_ENDED)?;
    let mut steering = Steering::new(pages.geography.clone(), pages.settings.clone());
    let answers = tokio::task::block_in_place(|| steering.compile(&first, daemon::clock::now()));
    let secret = config.cookie_secret().unwrap_or_else(rand::random);
    let mut responder = Responder::new(answers, &config.node, secret).amplifying(config.rate_limit.amplification);
    if let Some(signer) = &signer {
        responder = responder.signed_by(signer.clone());
    }
    let responder = Arc::new(responder);
    // Set once, here.
    let _ = pages.responder.set(responder.clone());

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
        serving.spawn(sockets.serve(responder.clone(), config.rate_limit, metrics.clone(), stop.clone()));
    }
    let (measured, measurements) = watch::channel(measure::Measured::new());
    if config.measure_edges {
        serving.spawn(measure::keep_measuring(snapshots.clone(), measured));
    }
    if let Some(signer) = signer {
        serving.spawn(signer::keep_signed(signer, responder.clone()));
    }
    serving.spawn(serve::keep_current(
        responder,
        steering,
        snapshots,
        measurements,
        metrics,
    ));
    ready.set("plan", true);
    process.announce(&addresses)?;
    serving.join_next().await;
    Ok(())
}

/// The places of clients: the operator's networks, and below them the database.
fn geography(config: &Config) -> anyhow::Result<Geography> {
    let entries = networks::read(&config.network)?;
    let database = config.geoip_database.as_deref().map(geo::read).transpose()?;
    let geography = Geography::new(&entries, database.unwrap_or_default());
    tracing::info!(networks = geography.networks(), "read the places of clients");
    Ok(geography)
}
