//! The gRPC service through which nodes follow plans.

use std::{pin::Pin, sync::Arc};

use api::v1::{self, plans_server::Plans, watch_request::Message};
use identity::Call;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use topology::{NodeId, Plan, PlanNumber, Snapshot, Topology};

use super::guard::{self, Guard};
use crate::{
    metrics::Metrics,
    nodes::{Nodes, ShownCertificate},
    texts::{calls as texts, log},
    view::{Role, View},
};

/// Updates queued for one node. A newer plan replaces an older one, so two are enough: one in flight and the newest.
const UPDATES_WAITING: usize = 2;
/// Greatest generation learnt from a node: a plan every millisecond would take thirty years to reach it. A node with a
/// greater one is wrong, and would leave no numbers for later plans.
const GENERATION_LEARNT_MAX: u64 = 1 << 40;

/// The newest snapshot as encoded for nodes, encoded once for all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Newest(Arc<Mutex<v1::SnapshotUpdate>>);

impl Newest {
    fn update(&self, snapshot: &Snapshot) -> v1::SnapshotUpdate {
        let mut newest = self.0.lock();
        if newest.number != Some(snapshot.plan.number().into()) {
            *newest = snapshot.into();
        }
        newest.clone()
    }
}

/// The gRPC service through which nodes follow plans.
pub(crate) struct PlansService {
    /// The newest snapshot; `None` before the first plan.
    pub(crate) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The encoded form of the newest snapshot.
    pub(crate) newest: Newest,
    /// The newest view, which tells whether this replica leads.
    pub(crate) views: watch::Receiver<Arc<View>>,
    /// The registry of acknowledgements and refusals.
    pub(crate) nodes: Nodes,
    pub(crate) guard: Guard,
    /// Ends every stream when the process stops.
    pub(crate) stop: CancellationToken,
}

impl PlansService {
    /// Whether the node is in the topology. Only such nodes get plans, which also bounds the registry.
    fn knows(&self, id: &NodeId) -> bool {
        let snapshot = self.snapshots.borrow();
        snapshot
            .as_ref()
            .is_some_and(|snapshot| is_node(&snapshot.topology, id))
    }
}

/// True for an edge or a name server of the topology.
pub(crate) fn is_node(topology: &Topology, id: &NodeId) -> bool {
    topology.name_servers.contains_key(id) || topology.edges.keys().any(|edge| edge.as_str() == id.as_str())
}

/// The stream of updates to a node.
type Updates = Pin<Box<dyn Stream<Item = Result<v1::SnapshotUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl Plans for PlansService {
    type WatchStream = Updates;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = guard::caller(&request);
        let mut answers = request.into_inner();
        let hello = match answers.message().await? {
            Some(v1::WatchRequest {
                message: Some(Message::Hello(hello)),
            }) => hello,
            _ => return Err(Status::invalid_argument(texts::no_hello())),
        };
        let id = NodeId::new(&hello.node).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let call = match hello.kind() {
            v1::NodeKind::Edge => Call::FollowAsEdge { node: id.as_str() },
            v1::NodeKind::Dns | v1::NodeKind::Unspecified => Call::FollowAsDns { node: id.as_str() },
        };
        self.guard.allow(caller.as_ref(), call)?;
        let have = hello.have.map(PlanNumber::from).unwrap_or_default();
        if self.snapshots.borrow().is_none() {
            return Err(Status::unavailable(texts::no_plan_yet()));
        }
        if !self.knows(&id) {
            return Err(Status::permission_denied(texts::no_such_node(&id)));
        }
        let shown = guard::proven(caller.as_ref()).map(|peer| ShownCertificate {
            root: peer.root.clone(),
            until: peer.until,
        });
        self.nodes.connected(&id, hello.kind(), shown);
        if have != PlanNumber::default() {
            self.nodes.acknowledge(&id, have, daemon::clock::now());
        }
        let (updates, stream) = mpsc::channel(UPDATES_WAITING);
        let follower = Follower {
            id,
            have,
            asked_for: PlanNumber::default(),
            is_asked: false,
            snapshots: self.snapshots.clone(),
            newest: self.newest.clone(),
            views: self.views.clone(),
            nodes: self.nodes.clone(),
            metrics: self.guard.metrics.clone(),
        };
        let stop = self.stop.clone();
        // The connection owns the task: it ends with either half of the stream, or with the process.
        tokio::spawn(async move { follower.run(answers, updates, stop).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

struct Follower {
    id: NodeId,
    /// The newest plan that the node was sent or reported.
    have: PlanNumber,
    /// The newest plan that the node was asked to send.
    asked_for: PlanNumber,
    /// Set while the node owes an answer.
    is_asked: bool,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    newest: Newest,
    views: watch::Receiver<Arc<View>>,
    nodes: Nodes,
    metrics: Metrics,
}

impl Follower {
    async fn run(
        mut self,
        mut answers: Streaming<v1::WatchRequest>,
        updates: mpsc::Sender<Result<v1::SnapshotUpdate, Status>>,
        stop: CancellationToken,
    ) {
        self.metrics.followers.inc();
        tracing::info!(node = %self.id, have = %self.have, "a node follows plans");
        self.snapshots.mark_changed();
        self.views.mark_changed();
        loop {
            let go_on = tokio::select! {
                () = stop.cancelled() => break,
                changed = self.snapshots.changed() => match changed {
                    Ok(()) if self.has_left() => {
                        tracing::warn!(node = %self.id, "{}", log::NODE_LEFT);
                        // A node that does not read has no room for it, and hears it when it comes back.
                        let _ = updates.try_send(Err(Status::permission_denied(texts::no_such_node(&self.id))));
                        Err(())
                    }
                    Ok(()) => self.send_newest(&updates).await,
                    Err(_) => Err(()),
                },
                changed = self.views.changed() => match changed {
                    Ok(()) => self.ask_for_newer(&updates).await,
                    Err(_) => Err(()),
                },
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        self.take(answer);
                        Ok(())
                    }
                    Ok(None) | Err(_) => Err(()),
                },
            };
            if go_on.is_err() {
                break;
            }
        }
        self.nodes.disconnected(&self.id);
        self.metrics.followers.dec();
        tracing::info!(node = %self.id, "a node stopped following plans");
    }

    /// True if the topology in force no longer names the node.
    fn has_left(&self) -> bool {
        let snapshot = self.snapshots.borrow();
        snapshot
            .as_ref()
            .is_some_and(|snapshot| !is_node(&snapshot.topology, &self.id))
    }

    async fn send_newest(&mut self, updates: &mpsc::Sender<Result<v1::SnapshotUpdate, Status>>) -> Result<(), ()> {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let Some(snapshot) = snapshot.filter(|snapshot| snapshot.plan.number() > self.have) else {
            return Ok(());
        };
        self.have = snapshot.plan.number();
        updates.send(Ok(self.newest.update(&snapshot))).await.map_err(|_| ())
    }

    /// Asks the node for its newer plan. Only a leader asks: its store may have lost a published plan, while a follower
    /// may simply be behind.
    async fn ask_for_newer(&mut self, updates: &mpsc::Sender<Result<v1::SnapshotUpdate, Status>>) -> Result<(), ()> {
        let (leading, ours) = {
            let view = self.views.borrow_and_update();
            let ours = view.input.current.as_ref().map(Plan::number).unwrap_or_default();
            (view.role == Role::Leading, ours)
        };
        let theirs = self.nodes.ahead(&self.id);
        let Some(theirs) = theirs.filter(|theirs| leading && *theirs > ours && *theirs > self.asked_for) else {
            return Ok(());
        };
        tracing::error!(node = %self.id, %theirs, %ours, "{}", log::NODE_IS_AHEAD);
        (self.asked_for, self.is_asked) = (theirs, true);
        let question = v1::SnapshotUpdate {
            send_yours: true,
            ..Default::default()
        };
        updates.send(Ok(question)).await.map_err(|_| ())
    }

    fn take(&mut self, answer: v1::WatchRequest) {
        match answer.message {
            Some(Message::Ack(ack)) => {
                // The node may apply a newer plan than this replica sent, because nodes listen to every replica.
                let number = ack.number.map(PlanNumber::from).unwrap_or_default();
                self.have = self.have.max(number);
                self.nodes.acknowledge(&self.id, number, daemon::clock::now());
                self.views.mark_changed();
            }
            Some(Message::Nack(nack)) => {
                self.metrics.refusals.inc();
                let number = nack.number.map(PlanNumber::from).unwrap_or_default();
                if self.nodes.refuse(&self.id, number, &nack.reason) {
                    tracing::warn!(node = %self.id, %number, reason = %nack.reason, "{}", log::PLAN_REFUSED);
                }
            }
            Some(Message::Held(_)) if !std::mem::take(&mut self.is_asked) => {
                tracing::warn!(node = %self.id, "{}", log::PLAN_UNASKED);
            }
            Some(Message::Held(held)) => match Snapshot::decode(&held.document, &held.checksum) {
                Ok(snapshot) if snapshot.plan.generation > GENERATION_LEARNT_MAX => {
                    tracing::warn!(node = %self.id, plan = %snapshot.plan.number(), "{}", log::PLAN_IMPOSSIBLE);
                }
                Ok(snapshot) => self.nodes.claim(&self.id, snapshot.plan),
                Err(error) => {
                    tracing::warn!(node = %self.id, %error, "{}", log::PLAN_UNREADABLE);
                }
            },
            Some(Message::Hello(_)) | None => {
                tracing::debug!(node = %self.id, "a node sent a message without a meaning; ignored");
            }
        }
    }
}
