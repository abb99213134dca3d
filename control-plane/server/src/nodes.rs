//! The nodes that follow plans: who has which plan, since when, and who refused one. Also the service they follow by.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::v1::{self, plans_server::Plans, watch_request::Message};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use topology::{Moment, NodeId, PlanNumber, Snapshot};

use crate::metrics::Metrics;

/// Generations whose acknowledgements are remembered; enough for the history people look at.
const GENERATIONS_REMEMBERED: usize = 64;
/// Updates waiting for one node. Plans replace each other, so two are enough: one under way and the newest.
const UPDATES_WAITING: usize = 2;

/// What is known about one node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it is.
    pub kind: v1::NodeKind,
    /// The newest plan it applies.
    pub acknowledged: PlanNumber,
    /// When it said so.
    pub acknowledged_at: Moment,
    /// Why it refused the last plan it was sent; empty when it did not.
    pub refused: String,
    /// Connections it has; more than one only while it reconnects.
    pub connections: u32,
}

/// All nodes that ever followed since the control plane started.
#[derive(Clone, Default)]
pub struct Nodes(Arc<Mutex<Registry>>);

#[derive(Default)]
struct Registry {
    nodes: BTreeMap<NodeId, Node>,
    acknowledged: BTreeMap<PlanNumber, BTreeMap<NodeId, Moment>>,
}

impl Nodes {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self, id: &NodeId, kind: v1::NodeKind) {
        let mut registry = self.registry();
        let node = registry.nodes.entry(id.clone()).or_insert_with(|| Node {
            kind,
            acknowledged: PlanNumber::default(),
            acknowledged_at: Moment::default(),
            refused: String::new(),
            connections: 0,
        });
        node.kind = kind;
        node.connections += 1;
    }

    fn disconnected(&self, id: &NodeId) {
        if let Some(node) = self.registry().nodes.get_mut(id) {
            node.connections = node.connections.saturating_sub(1);
        }
    }

    fn acknowledge(&self, id: &NodeId, number: PlanNumber, now: Moment) {
        let mut registry = self.registry();
        if let Some(node) = registry.nodes.get_mut(id) {
            (node.acknowledged, node.acknowledged_at) = (number, now);
            node.refused.clear();
        }
        registry
            .acknowledged
            .entry(number)
            .or_default()
            .entry(id.clone())
            .or_insert(now);
        while registry.acknowledged.len() > GENERATIONS_REMEMBERED {
            registry.acknowledged.pop_first();
        }
    }

    fn refuse(&self, id: &NodeId, reason: &str) {
        if let Some(node) = self.registry().nodes.get_mut(id) {
            node.refused = reason.chars().take(200).collect();
        }
    }

    /// Every node as it is now.
    pub fn all(&self) -> BTreeMap<NodeId, Node> {
        self.registry().nodes.clone()
    }

    /// Who acknowledged a plan, and when.
    pub fn acknowledged(&self, number: PlanNumber) -> BTreeMap<NodeId, Moment> {
        self.registry().acknowledged.get(&number).cloned().unwrap_or_default()
    }
}

/// The service nodes follow plans by.
pub struct PlansService {
    /// The newest snapshot; none before the first plan.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Where acknowledgements are kept.
    pub nodes: Nodes,
    /// Counts.
    pub metrics: Metrics,
    /// Ends every stream when the process stops.
    pub stop: CancellationToken,
}

impl PlansService {
    /// Plans are for the nodes of the topology, which also bounds what is remembered about them.
    fn knows(&self, id: &NodeId) -> bool {
        let snapshot = self.snapshots.borrow();
        snapshot.as_ref().is_some_and(|snapshot| {
            let topology = &snapshot.topology;
            topology.name_servers.contains_key(id) || topology.edges.keys().any(|edge| edge.as_str() == id.as_str())
        })
    }
}

/// Updates on their way to a node.
type Updates = Pin<Box<dyn Stream<Item = Result<v1::SnapshotUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl Plans for PlansService {
    type WatchStream = Updates;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut answers = request.into_inner();
        let hello = match answers.message().await? {
            Some(v1::WatchRequest {
                message: Some(Message::Hello(hello)),
            }) => hello,
            _ => return Err(Status::invalid_argument("the first message of a node is its hello")),
        };
        let id = NodeId::new(&hello.node).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let have = hello.have.map(PlanNumber::from).unwrap_or_default();
        if !self.knows(&id) {
            let text = format!("{id} is neither an edge nor a name server of the topology");
            return Err(Status::permission_denied(text));
        }
        self.nodes.connected(&id, hello.kind());
        let ours = self
            .snapshots
            .borrow()
            .as_ref()
            .map(|snapshot| snapshot.plan.number())
            .unwrap_or_default();
        if have > ours {
            tracing::error!(node = %id, %have, %ours, "a node has a newer plan than we; was the store lost or restored?");
            let text =
                format!("it has plan {have}, newer than ours: was the store lost, or restored from an old copy?");
            self.nodes.refuse(&id, &text);
        } else if have != PlanNumber::default() {
            self.nodes.acknowledge(&id, have, daemon::clock::now());
        }
        let (updates, stream) = mpsc::channel(UPDATES_WAITING);
        let follower = Follower {
            id,
            have,
            snapshots: self.snapshots.clone(),
            nodes: self.nodes.clone(),
            metrics: self.metrics.clone(),
        };
        let stop = self.stop.clone();
        // Owned by the connection: it ends with either half of the stream, or with the process.
        tokio::spawn(async move { follower.run(answers, updates, stop).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

struct Follower {
    id: NodeId,
    have: PlanNumber,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
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
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.snapshots.changed() => {
                    if changed.is_err() || self.send_newest(&updates).await.is_err() {
                        break;
                    }
                }
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => self.take(answer),
                    Ok(None) | Err(_) => break,
                },
            }
        }
        self.nodes.disconnected(&self.id);
        self.metrics.followers.dec();
        tracing::info!(node = %self.id, "a node stopped following plans");
    }

    async fn send_newest(&mut self, updates: &mpsc::Sender<Result<v1::SnapshotUpdate, Status>>) -> Result<(), ()> {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let Some(snapshot) = snapshot.filter(|snapshot| snapshot.plan.number() > self.have) else {
            return Ok(());
        };
        self.have = snapshot.plan.number();
        updates.send(Ok(snapshot.as_ref().into())).await.map_err(|_| ())
    }

    fn take(&self, answer: v1::WatchRequest) {
        match answer.message {
            Some(Message::Ack(ack)) => {
                let number = ack.number.map(PlanNumber::from).unwrap_or_default();
                // Only what was sent can be acknowledged.
                if number <= self.have {
                    self.nodes.acknowledge(&self.id, number, daemon::clock::now());
                }
            }
            Some(Message::Nack(nack)) => {
                self.metrics.refusals.inc();
                tracing::warn!(node = %self.id, number = ?nack.number, reason = %nack.reason, "a node refused a plan");
                self.nodes.refuse(&self.id, &nack.reason);
            }
            Some(Message::Hello(_)) | None => tracing::debug!(node = %self.id, "an answer that means nothing"),
        }
    }
}
