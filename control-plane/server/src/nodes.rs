//! The nodes that follow plans: who has which plan, since when, and who refused one. Also the service they follow by.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::v1::{self, plans_server::Plans, watch_request::Message};
use planning::Refusal;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use topology::{Moment, NodeId, Plan, PlanNumber, Snapshot};

use crate::{
    metrics::Metrics,
    reconcile::{Request as Wanted, Role, View},
};

/// Generations whose acknowledgements are remembered; enough for the history people look at.
const GENERATIONS_REMEMBERED: usize = 64;
/// Updates waiting for one node. Plans replace each other, so two are enough: one under way and the newest.
const UPDATES_WAITING: usize = 2;
/// Greatest generation learnt from a node: a plan every millisecond would take thirty years to get there. Whoever holds a
/// greater one lies, and would leave no numbers for the plans to come.
const GENERATION_LEARNT_MAX: u64 = 1 << 40;

/// What is known about one node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it is.
    pub kind: v1::NodeKind,
    /// The newest plan it applies.
    pub acknowledged: PlanNumber,
    /// When it said so.
    pub acknowledged_at: Moment,
    /// Which plan it refused last, and why; none since it acknowledged a newer one.
    pub refused: Option<(PlanNumber, String)>,
    /// Connections it has; more than one only while it reconnects.
    pub connections: u32,
}

/// All nodes that ever followed since the control plane started.
#[derive(Debug, Clone, Default)]
pub struct Nodes(Arc<Mutex<Registry>>, watch::Sender<u64>);

#[derive(Debug, Default)]
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
            refused: None,
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
            if number != node.acknowledged {
                (node.acknowledged, node.acknowledged_at) = (number, now);
            }
            if node.refused.as_ref().is_some_and(|(refused, _)| *refused <= number) {
                node.refused = None;
            }
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

    fn refuse(&self, id: &NodeId, number: PlanNumber, reason: &str) {
        if let Some(node) = self.registry().nodes.get_mut(id) {
            node.refused = Some((number, reason.chars().take(200).collect()));
        }
        self.1.send_modify(|refusals| *refusals += 1);
    }

    /// Changes whenever a node refuses a plan.
    pub fn refusals(&self) -> watch::Receiver<u64> {
        self.1.subscribe()
    }

    /// Who refuses a plan, if anybody does, and what they can go back to: the newest of the plans in `recent` that all of
    /// them applied.
    pub fn refusal<'p>(
        &self,
        number: PlanNumber,
        recent: impl IntoIterator<Item = &'p Plan, IntoIter: DoubleEndedIterator>,
    ) -> Option<Refusal> {
        let registry = self.registry();
        let following = registry.nodes.iter().filter(|(_, node)| node.connections > 0);
        let refused = |(id, node): (&NodeId, &Node)| match &node.refused {
            Some((refused, why)) if *refused == number => Some((id.clone(), why.clone())),
            _ => None,
        };
        let nodes: BTreeMap<NodeId, String> = following.clone().filter_map(refused).collect();
        if nodes.is_empty() {
            return None;
        }
        let applied = |plan: &&Plan| {
            let by = registry.acknowledged.get(&plan.number());
            plan.number() < number && by.is_some_and(|by| nodes.keys().all(|node| by.contains_key(node)))
        };
        let acknowledged = recent.into_iter().rev().find(applied).cloned();
        Some(Refusal {
            number,
            nodes,
            following: u32::try_from(following.count()).unwrap_or(u32::MAX),
            acknowledged,
        })
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

/// The newest snapshot in the bytes that nodes get, made once for all of them.
#[derive(Debug, Clone, Default)]
pub struct Newest(Arc<Mutex<v1::SnapshotUpdate>>);

impl Newest {
    fn update(&self, snapshot: &Snapshot) -> v1::SnapshotUpdate {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.number != Some(snapshot.plan.number().into()) {
            *newest = snapshot.into();
        }
        newest.clone()
    }
}

/// The service nodes follow plans by.
pub struct PlansService {
    /// The newest snapshot; none before the first plan.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The same as nodes get it.
    pub newest: Newest,
    /// Whether we lead.
    pub views: watch::Receiver<Arc<View>>,
    /// Where plans go that nodes have and we do not.
    pub inbox: mpsc::Sender<Wanted>,
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
        if self.snapshots.borrow().is_none() {
            return Err(Status::unavailable("there is no plan yet"));
        }
        if !self.knows(&id) {
            let text = format!("{id} is neither an edge nor a name server of the topology");
            return Err(Status::permission_denied(text));
        }
        self.nodes.connected(&id, hello.kind());
        if have != PlanNumber::default() {
            self.nodes.acknowledge(&id, have, daemon::clock::now());
        }
        let (updates, stream) = mpsc::channel(UPDATES_WAITING);
        let follower = Follower {
            id,
            have,
            asked_for: PlanNumber::default(),
            snapshots: self.snapshots.clone(),
            newest: self.newest.clone(),
            views: self.views.clone(),
            inbox: self.inbox.clone(),
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
    /// What the node was sent, or said it has.
    have: PlanNumber,
    /// The newest plan the node was asked to send us.
    asked_for: PlanNumber,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    newest: Newest,
    views: watch::Receiver<Arc<View>>,
    inbox: mpsc::Sender<Wanted>,
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
                    Ok(()) => self.send_newest(&updates).await,
                    Err(_) => Err(()),
                },
                changed = self.views.changed() => match changed {
                    Ok(()) => self.ask_for_newer(&updates).await,
                    Err(_) => Err(()),
                },
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => self.take(answer).await,
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

    async fn send_newest(&mut self, updates: &mpsc::Sender<Result<v1::SnapshotUpdate, Status>>) -> Result<(), ()> {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let Some(snapshot) = snapshot.filter(|snapshot| snapshot.plan.number() > self.have) else {
            return Ok(());
        };
        self.have = snapshot.plan.number();
        updates.send(Ok(self.newest.update(&snapshot))).await.map_err(|_| ())
    }

    /// A leader whose store forgot what it had published learns it from the nodes. Followers may simply be behind.
    async fn ask_for_newer(&mut self, updates: &mpsc::Sender<Result<v1::SnapshotUpdate, Status>>) -> Result<(), ()> {
        let (leading, ours) = {
            let view = self.views.borrow_and_update();
            let ours = view.input.current.as_ref().map(Plan::number).unwrap_or_default();
            (view.role == Role::Leading, ours)
        };
        let theirs = self.nodes.registry().nodes.get(&self.id).map(|node| node.acknowledged);
        let Some(theirs) = theirs.filter(|theirs| leading && *theirs > ours && *theirs > self.asked_for) else {
            return Ok(());
        };
        tracing::error!(node = %self.id, %theirs, %ours, "a node has a newer plan than the store; was it restored?");
        self.asked_for = theirs;
        let question = v1::SnapshotUpdate {
            send_yours: true,
            ..Default::default()
        };
        updates.send(Ok(question)).await.map_err(|_| ())
    }

    async fn take(&mut self, answer: v1::WatchRequest) -> Result<(), ()> {
        match answer.message {
            Some(Message::Ack(ack)) => {
                // It may be newer than what we sent: nodes listen to every replica.
                let number = ack.number.map(PlanNumber::from).unwrap_or_default();
                self.have = self.have.max(number);
                self.nodes.acknowledge(&self.id, number, daemon::clock::now());
                self.views.mark_changed();
            }
            Some(Message::Nack(nack)) => {
                self.metrics.refusals.inc();
                let number = nack.number.map(PlanNumber::from).unwrap_or_default();
                tracing::warn!(node = %self.id, %number, reason = %nack.reason, "a node refused a plan");
                self.nodes.refuse(&self.id, number, &nack.reason);
            }
            Some(Message::Held(held)) => match Snapshot::decode(&held.document, &held.checksum) {
                Ok(snapshot) if snapshot.plan.generation > GENERATION_LEARNT_MAX => {
                    tracing::warn!(node = %self.id, plan = %snapshot.plan.number(), "no plan has such a number");
                }
                Ok(snapshot) => {
                    let wanted = Wanted::Recover(Box::new(snapshot.plan));
                    self.inbox.send(wanted).await.map_err(|_| ())?;
                }
                Err(error) => tracing::warn!(node = %self.id, %error, "what the node holds cannot be used"),
            },
            Some(Message::Hello(_)) | None => tracing::debug!(node = %self.id, "an answer that means nothing"),
        }
        Ok(())
    }
}
