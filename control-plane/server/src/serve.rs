//! Assembles the process: documents, store, deciding task, probes and gRPC services.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use api::v1::{
    certificates_server::CertificatesServer, joining_server::JoiningServer, observations_server::ObservationsServer,
    operator_server::OperatorServer, plans_server::PlansServer,
};
use daemon::lag::Lag;
use identity::{Event, Identity, Mode, Role, Service, ToStacks};
use parking_lot::Mutex;
use probe::Probed;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use topology::{Policy, Topology};
use verdict::{Passive, TickReport};

use crate::{
    Config,
    access::Accesses,
    audit_heads::{self, HeadAge},
    config::{IdentitySection, OidcSection, StoreConfig},
    grpc::{
        certificates::CertificatesService,
        guard::Guard,
        joining::JoiningService,
        observations::ObservationsService,
        operator::OperatorService,
        plans::{Newest, PlansService},
    },
    metrics::{ConnectionLabel, EtcdExpiry, Metrics, MirrorMetrics, ViewMetrics},
    nodes::Nodes,
    operators::Operators,
    pace::TokenBucket,
    readiness,
    reconcile::{INBOX_LENGTH, Reconciler, Request, Settings},
    records::{self, Document, DocumentKind},
    stacks::Stacks,
    store::{Candidate, Embedded, Etcd, Mirror, Store, etcd, mirror},
    texts::log,
};

/// Time for running requests to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);
/// Longest message: a report of the largest fleet has about 1 MB.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Deadline of the only request of a process that joins, and its longest message.
const JOINS_WITHIN: Duration = Duration::from_secs(10);
const JOIN_BYTES_MAX: usize = 16 << 10;
/// Most calls at once on one connection of a stranger: clients make one after the other. tonic sets no limit of its own.
const STRANGERS_STREAMS_MAX: u32 = 4;
/// Most calls at once on one connection of a node or an operator, which have three or four.
const STREAMS_MAX: u32 = 256;
/// Interval of pings on silent connections, so that a dead node is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Runs a control plane until SIGTERM.
pub async fn serve(process: daemon::Process, config: Config) -> anyhow::Result<()> {
    let started_at = daemon::clock::now();
    let file = |kind, path: &Path| -> anyhow::Result<Document> {
        let text = read(path)?;
        let name = path.display().to_string();
        match kind {
            DocumentKind::Topology => drop(Topology::parse(&name, &text)?),
            DocumentKind::Policy => drop(Policy::parse(&name, &text)?),
        }
        Ok(Document::new(kind, text, &name, started_at))
    };
    let topology = file(DocumentKind::Topology, &config.topology)?;
    let policy = file(DocumentKind::Policy, &config.policy)?;
    let mut tasks = daemon::Tasks::new();
    let stop = tasks.stop_token();
    let mut etcd_tls = None;
    let (store, lease_ttl): (Arc<dyn Store>, _) = match config.store() {
        StoreConfig::Embedded { file } => (Arc::new(Embedded::open(&file)?), Duration::MAX),
        StoreConfig::Etcd {
            endpoints,
            files,
            lease_ttl,
        } => {
            if files.is_none() {
                tracing::warn!("{}", log::ETCD_IS_OPEN);
            }
            let tls = files.map(Service::load).transpose()?.map(Arc::new);
            etcd_tls.clone_from(&tls);
            let settings = etcd::Settings {
                tls,
                ..etcd::Settings::new(endpoints)
            };
            let (looking, stop) = (settings.clone(), stop.clone());
            let store = Etcd::connect(settings).await?;
            // A task that ends would stop the process, and in plain text there is nothing to look at.
            if looking.tls.is_some() {
                tasks.spawn("etcd's certificates", async move {
                    stop.run_until_cancelled(etcd::look_at_members(looking)).await;
                    Ok(())
                });
            }
            (Arc::new(store), lease_ttl)
        }
    };

    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let ready = daemon::admin::Readiness::default();
    ready.set("plan", false);

    let identity = match &config.identity {
        Some(section) => {
            let identity = Identity::load(section.files(), daemon::clock::now)?;
            identity.must_be(&Role::ControlPlane(config.node.to_string()))?;
            Some((identity, section.mode))
        }
        None => None,
    };
    if config.mode() != Mode::Required {
        tracing::warn!(
            mode = %config.mode(),
            "{}",
            log::NAMES_UNPROVEN
        );
    }
    let own = identity.as_ref().map(|(identity, _)| identity.clone());
    registry.register_collector(Box::new(identity::Expiry(own.clone())));
    registry.register_collector(Box::new(EtcdExpiry(etcd_tls)));
    let issuer = config.identity.as_ref().and_then(IdentitySection::issuer);
    let proves_to_stacks = config
        .identity
        .as_ref()
        .is_some_and(|section| section.stacks == ToStacks::Required);
    let own_identity = own.clone();
    if let Some((own, issuer)) = own.clone().zip(issuer.clone()) {
        let stop = stop.clone();
        tasks.spawn("own certificate", async move {
            let sign = |request: String| {
                let (own, issuer) = (own.clone(), issuer.clone());
                async move {
                    issuer
                        .sign(&own, &own.own_peer(), &request)
                        .map_err(|error| error.to_string())
                }
            };
            stop.run_until_cancelled(node::renew::keep_renewed(&own, daemon::clock::now, sign))
                .await;
            Ok(())
        });
    }
    if let Some(own) = own {
        let stop = stop.clone();
        tasks.spawn("identity", async move {
            stop.run_until_cancelled(own.keep_current()).await;
            Ok(())
        });
    }
    let operators = Arc::new(Operators::load(
        config.operators.tokens.clone(),
        config.operators.oidc.as_ref().map(OidcSection::settings),
    )?);
    let listener = daemon::listen(config.listen).with_context(|| log::cannot_listen(config.listen))?;
    let grpc = listener.local_addr()?;
    let settings = Settings {
        candidate: Candidate {
            node: config.node.clone(),
            url: config.advertised(grpc),
            lease_ttl,
        },
        topology,
        policy,
    };
    let nodes = Nodes::default();
    let reconciler = Reconciler::new(settings, store.clone(), nodes.clone(), metrics.clone())?;
    let (snapshots, views) = (reconciler.snapshots(), reconciler.views());
    let (inbox, requests) = mpsc::channel(INBOX_LENGTH);

    // Every control plane is a vantage too. Its own probes take the same path as the edges' reports.
    let (reports, mut seen) = mpsc::channel::<TickReport>(4);
    // After a pause, or starved of CPU, this process cannot tell whether a silent target answered in time.
    let lag = Arc::new(Lag::default());
    let (results, mut probed) = watch::channel(Probed::default());
    let probes = probe::Settings {
        vantage: config.node.clone(),
        reports,
        results: Some(results),
        lateness: lateness(&lag),
        identity: own_identity.clone().filter(|_| proves_to_stacks),
    };
    let (watched, watching) = (lag, stop.clone());
    tasks.spawn("lag", async move {
        watching.run_until_cancelled(watched.watch()).await;
        Ok(())
    });
    let (probe_snapshots, probe_stop) = (snapshots.clone(), stop.clone());
    tasks.spawn("probe", async move {
        probe::run(probes, probe_snapshots, Passive::default, probe_stop).await;
        Ok(())
    });
    let stacks = Stacks::default();
    let (stacks_seen, stacks_snapshots) = (stacks.clone(), snapshots.clone());
    tasks.spawn("stacks' certificates", async move {
        while probed.changed().await.is_ok() {
            if let Some(snapshot) = &*stacks_snapshots.borrow() {
                stacks_seen.take(&probed.borrow_and_update(), &snapshot.topology, daemon::clock::now());
            }
        }
        Ok(())
    });
    let own_reports = inbox.clone();
    tasks.spawn("own reports", async move {
        while let Some(report) = seen.recv().await {
            own_reports.send(Request::Observe(report.into())).await?;
        }
        Ok(())
    });

    let connections = metrics.connections.clone();
    let accesses = Accesses::new(config.node.as_str(), metrics.clone());
    let (keeping, records_store, records_stop) = (accesses.clone(), store.clone(), stop.clone());
    tasks.spawn("records of access", async move {
        keeping.keep(records_store, records_stop).await;
        Ok(())
    });
    if let Some((folder, signer)) = config.audit.heads.clone().zip(own_identity.clone()) {
        let age = HeadAge::default();
        registry.register_collector(Box::new(age.clone()));
        let (store, stop) = (store.clone(), stop.clone());
        tasks.spawn("audit heads", async move {
            stop.run_until_cancelled(audit_heads::keep(folder, store, signer, age))
                .await;
            Ok(())
        });
    }
    let guard = Guard {
        metrics,
        accesses,
        must_prove: config.mode() == Mode::Required,
    };
    let plans_snapshots = snapshots.clone();
    let plans = PlansService {
        snapshots,
        newest: Newest::default(),
        views: views.clone(),
        nodes: nodes.clone(),
        guard: guard.clone(),
        stop: stop.clone(),
    };
    let observations = ObservationsService {
        inbox: inbox.clone(),
        guard: guard.clone(),
        nodes: nodes.clone(),
        node: config.node.clone(),
        stop: stop.clone(),
    };
    let (joining_own, joining_issuer) = (own_identity.clone(), issuer.clone());
    let (joining_store, joining_accesses) = (store.clone(), guard.accesses.clone());
    let joining_snapshots = plans_snapshots.clone();
    let certificates = CertificatesService {
        guard: guard.clone(),
        issuer: own_identity.clone().zip(issuer),
        snapshots: plans_snapshots,
    };
    let nodes_seen = nodes.clone();
    let (mirror, following) = Mirror::new(store.clone(), records::STATE, mirror::Settings::default());
    let operator = OperatorService {
        views,
        nodes,
        stacks,
        store,
        mirror: mirror.clone(),
        inbox,
        node: config.node.clone(),
        guard,
        signer: own_identity,
    };
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(PlansServer::new(plans).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(ObservationsServer::new(observations).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(CertificatesServer::new(certificates))
        .add_service(OperatorServer::new(operator).max_decoding_message_size(MESSAGE_BYTES_MAX));
    let count = move |event| {
        let outcome = match event {
            Event::Plain => "plain",
            Event::Proven => "proven",
            Event::Ended => "ended",
            Event::Refused(reason) => reason,
        };
        connections.get_or_create(&ConnectionLabel { outcome }).inc();
    };
    let (incoming, joining) = match identity.filter(|(_, mode)| *mode != Mode::Off) {
        None => (identity::listen(listener, None, stop.clone(), count), None),
        Some(identity) => {
            let (incoming, joining) = identity::listen_with_joining(listener, identity, stop.clone(), count);
            (incoming, Some(joining))
        }
    };
    if let (Some(joining), Some(own)) = (joining, joining_own) {
        let service = JoiningService {
            pace: Mutex::new(TokenBucket::new(tokio::time::Instant::now())),
            own,
            issuer: joining_issuer,
            store: joining_store,
            accesses: joining_accesses,
            operators,
            snapshots: joining_snapshots,
        };
        // Another server, which has no other service: its callers are strangers.
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .timeout(JOINS_WITHIN)
            .max_concurrent_streams(STRANGERS_STREAMS_MAX)
            .concurrency_limit_per_connection(1)
            .add_service(JoiningServer::new(service).max_decoding_message_size(JOIN_BYTES_MAX));
        let stop = stop.clone();
        tasks.spawn("joining", async move {
            server
                .serve_with_incoming_shutdown(joining, stop.cancelled_owned())
                .await?;
            Ok(())
        });
    }
    let grpc_stop = stop.clone();
    tasks.spawn("grpc", async move {
        server
            .serve_with_incoming_shutdown(incoming, grpc_stop.cancelled_owned())
            .await?;
        Ok(())
    });
    let readiness = readiness::keep(ready.clone(), reconciler.snapshots(), reconciler.views(), stop.clone());
    tasks.spawn("readiness", async move {
        readiness.await;
        Ok(())
    });
    let state = mirror.contents();
    registry.register_collector(Box::new(MirrorMetrics(mirror)));
    registry.register_collector(Box::new(ViewMetrics(reconciler.views(), nodes_seen)));
    let mirror_stop = stop.clone();
    tasks.spawn("mirror", async move {
        following.run(mirror_stop).await;
        Ok(())
    });
    tasks.spawn("reconcile", reconciler.run(requests, state, stop));
    let admin = daemon::admin::serve(&mut tasks, config.admin_listen, registry, ready).await?;
    process.announce(&[("grpc", grpc), ("admin", admin)])?;
    tasks.run(GRACE).await
}

/// Tells the probes of regions and edges whether this process was late, before they count a missing answer.
fn lateness(lag: &Arc<Lag>) -> probe::Lateness {
    let lag = lag.clone();
    probe::Lateness::new(move |wait| lag.is_late_for(wait))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| log::cannot_read(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_plane_that_was_late_counts_no_answer_that_did_not_come() {
        let lag = Arc::new(Lag::default());
        let (lateness, wait) = (lateness(&lag), Duration::from_secs(2));
        assert!(!lateness.is_late_for(wait));
        lag.note(wait);
        assert!(lateness.is_late_for(wait));
    }
}
