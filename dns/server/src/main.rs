//! `meridian-dns`: the authoritative DNS responder of the service zone.

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use api::v1::NodeKind;
use daemon::{Process, Tasks, admin};
use dns::{
    Config, Metrics, Responder, Signer, measure, memory, pages, places, report,
    serve::{self, Feeds},
    signer, texts,
    tls::Tls,
};
use node::{Follower, LastGood};
use prometheus_client::registry::Registry;
use steering::{Memory, Steering};
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
    let tls = config.tls.as_ref().map(Tls::load).transpose()?.map(Arc::new);
    let ready = admin::Readiness::default();
    ready.set("plan", false);
    let places = places::Places::new(&config.network, config.geoip_database.clone())?;
    let geography = watch::Sender::new(Arc::new(places.read()?));
    let pages = Arc::new(pages::Pages {
        node: config.node.clone(),
        responder: OnceLock::new(),
        geography: geography.subscribe(),
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
    let reporting_identity = identity.clone();
    if let Some(identity) = identity {
        let stop = tasks.stop_token();
        tasks.spawn("identity", async move {
            let keeping = node::renew::keep_identity(identity, endpoints, daemon::clock::now);
            stop.run_until_cancelled(keeping).await;
            Ok(())
        });
    }
    let (reports, reporter) = node::report_queue(config.control_planes.clone(), reporting_identity, daemon::clock::now);
    let stop = tasks.stop_token();
    tasks.spawn("reports", async move {
        reporter.run(stop.cancelled()).await;
        Ok(())
    });
    let (stop, node, seen) = (tasks.stop_token(), config.node.clone(), metrics.clone());
    tasks.spawn("counts", async move {
        stop.run_until_cancelled(report::keep_reporting(node, seen, reports))
            .await;
        Ok(())
    });
    let stop = tasks.stop_token();
    tasks.spawn("follow plans", async move {
        follower.run(current, stop.cancelled()).await;
        Ok(())
    });
    let stop = tasks.stop_token();
    tasks.spawn("places", async move {
        stop.run_until_cancelled(places.keep_current(geography)).await;
        Ok(())
    });
    let parts = Parts {
        metrics,
        ready,
        admin,
        pages,
        signer,
        tls,
    };
    let stop = tasks.stop_token();
    tasks.spawn("answer", async move {
        tokio::select! {
            // The task that follows plans stops at the same moment. The end of its channel is then no failure.
            biased;
            () = stop.cancelled() => Ok(()),
            result = answer(process, config, snapshots, parts, stop.clone()) => result,
        }
    });
    tasks.run(GRACE).await
}

/// The parts of the process that exist before its first plan.
struct Parts {
    metrics: Metrics,
    ready: admin::Readiness,
    admin: std::net::SocketAddr,
    pages: Arc<pages::Pages>,
    signer: Option<Arc<Signer>>,
    tls: Option<Arc<Tls>>,
}

/// Waits for the first plan, then listens and answers until `stop`.
async fn answer(
    process: Process,
    config: Config,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    parts: Parts,
    stop: tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    let Parts {
        metrics,
        ready,
        admin,
        pages,
        signer,
        tls,
    } = parts;
    tracing::info!("{}", texts::WAITS_FOR_PLAN);
    let first = snapshots
        .wait_for(Option::is_some)
        .await
        .context(texts::FOLLOWER_ENDED)?
        .clone()
        .context(texts::FOLLOWER_ENDED)?;
    let places = pages.geography.clone();
    let mut steering = Steering::new(places.borrow().clone(), pages.settings.clone());
    let remembers = config.state_dir.join("returning");
    if let Some(memory) = memory::read(&remembers) {
        steering.remember(&memory, daemon::clock::now());
    }
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
    if let (Some(settings), Some(tls)) = (&config.tls, tls) {
        for listen in &settings.listen {
            let listener = daemon::listen(*listen).with_context(|| texts::cannot_listen_for_tls(*listen))?;
            if addresses.iter().all(|(name, _)| *name != "tls") {
                addresses.push(("tls", listener.local_addr()?));
            }
            let (tls, responder) = (tls.clone(), responder.clone());
            serving.spawn(serve::serve_tls(
                listener,
                tls,
                responder,
                metrics.clone(),
                stop.clone(),
            ));
        }
        serving.spawn(async move { tls.keep_current().await });
    }
    for sockets in sockets {
        serving.spawn(sockets.serve(responder.clone(), config.rate_limit, metrics.clone(), stop.clone()));
    }
    let (memory, newest_memory) = watch::channel(Memory::default());
    serving.spawn(memory::keep_saved(remembers, newest_memory));
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
        Feeds {
            snapshots,
            measurements,
            places,
            memory,
        },
        metrics,
    ));
    ready.set("plan", true);
    process.announce(&addresses)?;
    serving.join_next().await;
    Ok(())
}
