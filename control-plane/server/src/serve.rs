//! Puts the parts together: documents, store, deciding task, probes, gRPC.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use api::v1::{
    self,
    observations_server::{Observations, ObservationsServer},
    operator_server::OperatorServer,
    plans_server::PlansServer,
};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, Streaming, transport::server::TcpIncoming};
use topology::{Moment, Policy, Topology};
use verdict::{Passive, TickReport};

use crate::{
    Config,
    config::StoreConfig,
    metrics::{Metrics, MirrorMetrics, ViewMetrics},
    nodes::{Newest, Nodes, PlansService},
    operator::OperatorService,
    reconcile::{Arrival, INBOX_LENGTH, Reconciler, Request, Settings},
    records::{self, Document, DocumentKind},
    store::{Candidate, Embedded, Etcd, Mirror, Store, etcd, mirror},
};

/// How long running requests may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);
/// Largest message taken: a report of the largest fleet is about 1 MB.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Longest wait for the word on a report: less than a tick, so that the next one is not late for it.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Silent connections are probed, so that a dead node is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Runs a control plane until it is told to stop.
pub async fn serve(process: daemon::Process, config: Config) -> anyhow::Result<()> {
    config
        .check()
        .with_context(|| process.config_path().display().to_string())?;
    let config = config.with_paths_beside(process.config_path());
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
    let (store, lease_ttl): (Arc<dyn Store>, _) = match &config.store {
        StoreConfig::Embedded { file } => (Arc::new(Embedded::open(file)?), Duration::MAX),
        StoreConfig::Etcd { endpoints, lease_ttl } => {
            let store = Etcd::connect(etcd::Settings::new(endpoints.clone())).await?;
            (Arc::new(store), *lease_ttl)
        }
    };

    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let ready = daemon::admin::Readiness::default();
    ready.set("plan", false);
    let mut tasks = daemon::Tasks::new();
    let stop = tasks.stop_token();

    let listener = daemon::listen(config.listen)
        .with_context(|| format!("cannot listen on {} for edges and operators", config.listen))?;
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

    // Every control plane is a vantage too; its own probes take the same way as everybody's reports.
    let (reports, mut seen) = mpsc::channel::<TickReport>(4);
    let probes = probe::Settings {
        vantage: config.node.clone(),
        reports,
        rtts: None,
        lateness: probe::Lateness::default(),
    };
    let (probe_snapshots, probe_stop) = (snapshots.clone(), stop.clone());
    tasks.spawn("probe", async move {
        probe::run(probes, probe_snapshots, Passive::default, probe_stop).await;
        Ok(())
    });
    let own_reports = inbox.clone();
    tasks.spawn("own reports", async move {
        while let Some(report) = seen.recv().await {
            own_reports.send(Request::Observe(report.into())).await?;
        }
        Ok(())
    });

    let plans = PlansService {
        snapshots,
        newest: Newest::default(),
        views: views.clone(),
        nodes: nodes.clone(),
        metrics: metrics.clone(),
        stop: stop.clone(),
    };
    let observations = ObservationsService {
        inbox: inbox.clone(),
        metrics,
        stop: stop.clone(),
    };
    let nodes_seen = nodes.clone();
    let (mirror, following) = Mirror::new(store.clone(), records::STATE, mirror::Settings::default());
    let operator = OperatorService {
        views,
        nodes,
        store,
        mirror: mirror.clone(),
        inbox,
        node: config.node.clone(),
    };
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(PlansServer::new(plans).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(ObservationsServer::new(observations).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(OperatorServer::new(operator).max_decoding_message_size(MESSAGE_BYTES_MAX));
    let grpc_stop = stop.clone();
    tasks.spawn("grpc", async move {
        server
            .serve_with_incoming_shutdown(incoming(listener), grpc_stop.cancelled_owned())
            .await?;
        Ok(())
    });
    // Ready is who has a plan to give, and, if it is the one that decides, can write what it decides.
    let (plan_ready, first_plan, mut deciding, ready_stop) =
        (ready.clone(), reconciler.snapshots(), reconciler.views(), stop.clone());
    tasks.spawn("readiness", async move {
        while let Some(Ok(())) = ready_stop.run_until_cancelled(deciding.changed()).await {
            let why_not = deciding.borrow_and_update().why_not_deciding();
            plan_ready.set("plan", first_plan.borrow().is_some());
            plan_ready.set_unless("decisions", why_not);
        }
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

/// Connections without Nagle's algorithm: a small answer would wait for the acknowledgement of the one before.
fn incoming(listener: tokio::net::TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// How far the clock of a vantage is ahead of ours, as far as its report tells: by its last receipt, where the time on the way
/// is taken out, else by when it says that it sent this one.
fn ahead_ms(report: &v1::TickReport, received: Moment) -> Option<i64> {
    let by_this = i128::from(report.sent_ms) - i128::from(received.0);
    let by_this = i64::try_from(by_this).unwrap_or(i64::MAX);
    report.ahead_ms.or((report.sent_ms > 0).then_some(by_this))
}

struct ObservationsService {
    inbox: mpsc::Sender<Request>,
    metrics: Metrics,
    /// Ends every stream when the process stops.
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Observations for ObservationsService {
    type ReportStream = ReceiverStream<Result<v1::ReportReceipt, Status>>;

    async fn report(
        &self,
        request: tonic::Request<Streaming<v1::TickReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let mut reports = request.into_inner();
        // One report per tick: a node that does not read its receipts is stopped by the second.
        let (receipts, stream) = mpsc::channel(2);
        let (inbox, metrics, stop) = (self.inbox.clone(), self.metrics.clone(), self.stop.clone());
        // Owned by the connection: it ends with the stream of reports.
        tokio::spawn(async move {
            while let Some(Some(read)) = stop.run_until_cancelled(reports.next()).await {
                let received = daemon::clock::now();
                let receipt = match read.map(|report| (ahead_ms(&report, received), TickReport::try_from(report))) {
                    Ok((ahead_ms, Ok(report))) => {
                        let (tick, (reply, answer)) = (report.tick.0, oneshot::channel());
                        let arrival = Arrival {
                            ahead_ms,
                            reply: Some(reply),
                            ..report.into()
                        };
                        if inbox.send(Request::Observe(arrival)).await.is_err() {
                            return;
                        }
                        // The deciding task may be busy; a receipt that does not say whether the report counts is better
                        // than none, by which the vantage would think that nobody listens.
                        let unwanted = timeout(ANSWER_MAX, answer).await;
                        let unwanted = unwanted.ok().and_then(Result::ok).flatten();
                        Ok(v1::ReportReceipt {
                            tick,
                            unwanted: unwanted.map(|it| it.to_string()).unwrap_or_default(),
                            received_ms: received.0,
                            sent_ms: daemon::clock::now().0,
                        })
                    }
                    Ok((_, Err(bad))) => {
                        metrics.reports_unwanted.inc();
                        Err(bad.into())
                    }
                    // Too long, or broken off: whoever still listens is told.
                    Err(unreadable) => Err(unreadable),
                };
                let refused = receipt.is_err();
                if receipts.send(receipt).await.is_err() || refused {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_answers_do_not_wait_for_others() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_client, taken) = tokio::join!(tokio::net::TcpStream::connect(address), async move {
            incoming(listener).next().await
        });
        assert!(taken.unwrap().unwrap().nodelay().unwrap());
    }
}
