//! The nodes that follow plans: who has which plan, since when, and who refused one. Also the service they follow by.
//!
//! Nodes are the memory of a store that forgot, and no more than that: a plan that is newer than the store's is taken over
//! only when we asked for it and more than half of the topology's nodes hold it alike ([`Nodes::recovery`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::v1::{self, plans_server::Plans, watch_request::Message};
use planning::Refusal;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use topology::{EdgeId, Moment, NodeId, Plan, PlanNumber, Snapshot, Topology};

use crate::{
    metrics::Metrics,
    reconcile::{Role, View},
    records,
};

/// Generations whose acknowledgements are remembered; enough for the history people look at.
const GENERATIONS_REMEMBERED: usize = 64;
/// Nodes named to operators as being ahead; a few say it.
const AHEAD_NAMED: usize = 5;
/// Different plans that nodes say they hold and the store does not know. There is one after a restore, and a plan takes up to
/// a megabyte.
const CLAIMS_MAX: usize = 4;
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
    /// A plan it says it applies that was not published by us, and since when: from another control plane that was
    /// faster, or from before the store forgot it.
    pub ahead: Option<(PlanNumber, Moment)>,
}

/// All nodes that ever followed since the control plane started.
#[derive(Debug, Clone, Default)]
pub struct Nodes(Arc<Mutex<Registry>>, watch::Sender<u64>);

#[derive(Debug, Default)]
struct Registry {
    nodes: BTreeMap<NodeId, Node>,
    /// Who acknowledged which of the plans that we published, and when. Other numbers have no place here: they would push
    /// the real ones out.
    acknowledged: BTreeMap<PlanNumber, BTreeMap<NodeId, Moment>>,
    /// The newest plan that was published.
    published: PlanNumber,
    /// Plans we asked nodes for, by number and hash.
    claims: BTreeMap<(PlanNumber, String), Claim>,
}

/// A plan that the store does not know, and who holds it.
#[derive(Debug)]
struct Claim {
    plan: Plan,
    by: BTreeSet<NodeId>,
    /// The audit log has another plan under this number.
    is_refuted: bool,
}

/// A plan that nodes hold and the store does not know.
#[derive(Debug, Clone, PartialEq)]
pub enum Recovery {
    /// More than half of the topology's nodes hold it alike.
    Proven(Box<Plan>),
    /// Somebody says so, and that is not enough. The text is for operators.
    Unproven(String),
}

impl Registry {
    fn acknowledge(&mut self, id: &NodeId, number: PlanNumber, now: Moment) {
        let is_ours = number <= self.published;
        let Some(node) = self.nodes.get_mut(id) else { return };
        if !is_ours {
            if node.ahead.is_none_or(|(ahead, _)| ahead != number) {
                node.ahead = Some((number, now));
            }
            return;
        }
        node.ahead = None;
        if number != node.acknowledged {
            (node.acknowledged, node.acknowledged_at) = (number, now);
        }
        if node.refused.as_ref().is_some_and(|(refused, _)| *refused <= number) {
            node.refused = None;
        }
        if let Some(by) = self.acknowledged.get_mut(&number) {
            by.entry(id.clone()).or_insert(now);
        }
    }

    fn forget_claims_of(&mut self, id: &NodeId) {
        for claim in self.claims.values_mut() {
            claim.by.remove(id);
        }
        self.claims.retain(|_, claim| !claim.by.is_empty());
    }
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
            ahead: None,
        });
        node.kind = kind;
        node.connections += 1;
    }

    fn disconnected(&self, id: &NodeId) {
        let mut registry = self.registry();
        let Some(node) = registry.nodes.get_mut(id) else { return };
        node.connections = node.connections.saturating_sub(1);
        if node.connections == 0 {
            node.ahead = None;
            registry.forget_claims_of(id);
        }
    }

    /// Says that a plan is given to nodes from now on. Whoever has it from another control plane acknowledged it already.
    pub fn published(&self, number: PlanNumber) {
        let mut registry = self.registry();
        registry.published = registry.published.max(number);
        registry.acknowledged.entry(number).or_default();
        while registry.acknowledged.len() > GENERATIONS_REMEMBERED {
            registry.acknowledged.pop_first();
        }
        let ahead: Vec<_> = registry
            .nodes
            .iter()
            .filter_map(|(id, node)| Some((id.clone(), node.ahead?)))
            .filter(|(_, (ahead, _))| *ahead <= number)
            .collect();
        for (id, (ahead, at)) in ahead {
            registry.acknowledge(&id, ahead, at);
        }
        registry.claims.retain(|(claimed, _), _| *claimed > number);
    }

    fn acknowledge(&self, id: &NodeId, number: PlanNumber, now: Moment) {
        self.registry().acknowledge(id, number, now);
    }

    /// Takes the word of a node that refuses a plan; whether it is news. Only a plan that was published can be refused,
    /// and saying it again changes nothing: each decision and each entry of the audit log is one too many.
    fn refuse(&self, id: &NodeId, number: PlanNumber, reason: &str) -> bool {
        let mut registry = self.registry();
        if !registry.acknowledged.contains_key(&number) {
            return false;
        }
        let Some(node) = registry.nodes.get_mut(id) else {
            return false;
        };
        let is_news = node.refused.as_ref().is_none_or(|(refused, _)| *refused != number);
        if is_news {
            node.refused = Some((number, reason.chars().take(200).collect()));
            drop(registry);
            self.news();
        }
        is_news
    }

    fn news(&self) {
        self.1.send_modify(|news| *news += 1);
    }

    /// Takes a plan that we asked a node for.
    fn claim(&self, id: &NodeId, plan: Plan) {
        let key = (plan.number(), hash_of(&plan));
        let mut registry = self.registry();
        registry.forget_claims_of(id);
        if registry.claims.len() >= CLAIMS_MAX && !registry.claims.contains_key(&key) {
            let weakest = registry.claims.iter().min_by_key(|(_, claim)| claim.by.len());
            let weakest = weakest
                .map(|(key, _)| key.clone())
                .filter(|_| registry.claims.len() >= CLAIMS_MAX);
            if let Some(weakest) = weakest {
                registry.claims.remove(&weakest);
            }
        }
        let claim = registry.claims.entry(key).or_insert_with(|| Claim {
            plan,
            by: BTreeSet::new(),
            is_refuted: false,
        });
        claim.by.insert(id.clone());
        drop(registry);
        self.news();
    }

    /// The audit log has another plan under the number of this one: nobody's word makes it the fleet's.
    pub fn refute(&self, plan: &Plan) {
        if let Some(claim) = self.registry().claims.get_mut(&(plan.number(), hash_of(plan))) {
            claim.is_refuted = true;
        }
    }

    /// What nodes hold that is newer than `ours`; none when nobody says that they hold such a plan. A single node may have
    /// its state from another deployment or from a backup, and more than half of them do not. The topology says how many
    /// there are: after an outage the first that connects is all that are connected.
    pub fn recovery(&self, ours: PlanNumber, topology: &Topology) -> Option<Recovery> {
        let registry = self.registry();
        let following = registry.nodes.iter().filter(|(_, node)| node.connections > 0);
        let edges = topology.edges.keys().map(EdgeId::as_str);
        let all: BTreeSet<&str> = edges.chain(topology.name_servers.keys().map(NodeId::as_str)).collect();
        let held_by = |claim: &Claim| claim.by.iter().filter(|node| all.contains(node.as_str())).count();
        let claims = registry.claims.iter().filter(|((number, _), _)| *number > ours);
        let best = claims.max_by_key(|(_, claim)| held_by(claim));
        if let Some((_, claim)) = best
            && !claim.is_refuted
            && held_by(claim) * 2 > all.len()
        {
            return Some(Recovery::Proven(Box::new(claim.plan.clone())));
        }
        let ahead: Vec<String> = following
            .filter_map(|(id, node)| Some((id, node.ahead?.0)))
            .filter(|(_, number)| *number > ours)
            .map(|(id, number)| format!("{id} plan {number}"))
            .take(AHEAD_NAMED)
            .collect();
        if ahead.is_empty() {
            return None;
        }
        let why_not = match best {
            Some((_, claim)) if claim.is_refuted => {
                "the audit log has another plan under that number, so it is not taken over".to_owned()
            }
            Some((_, claim)) => format!(
                "{} of the {} nodes of the topology hold the same one, and more than half must before it is taken over",
                held_by(claim),
                all.len()
            ),
            None => "they have not shown it".to_owned(),
        };
        Some(Recovery::Unproven(format!(
            "nodes say that they apply newer plans than plan {ours} of the store ({}): {why_not}. Plan {ours} goes on. If the \
             store was restored from an old copy, let the other nodes connect; if it was not, the state folder of these nodes \
             comes from elsewhere: stop them, remove it, start them again",
            ahead.join(", ")
        )))
    }

    /// Changes whenever a node refuses a plan, or shows one that the store does not know.
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

    /// Whether a node follows plans now.
    pub fn is_connected(&self, id: &str) -> bool {
        let registry = self.registry();
        let id = NodeId::new(id).ok();
        id.and_then(|id| registry.nodes.get(&id).map(|node| node.connections > 0))
            .unwrap_or_default()
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

/// What two nodes that hold the same plan have in common.
fn hash_of(plan: &Plan) -> String {
    planning::audit::hash(&records::encode(plan))
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
            is_asked: false,
            snapshots: self.snapshots.clone(),
            newest: self.newest.clone(),
            views: self.views.clone(),
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
    /// It was asked, and has not answered.
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
        let theirs = self.nodes.registry().nodes.get(&self.id).and_then(|node| node.ahead);
        let theirs = theirs.map(|(number, _)| number);
        let Some(theirs) = theirs.filter(|theirs| leading && *theirs > ours && *theirs > self.asked_for) else {
            return Ok(());
        };
        tracing::error!(node = %self.id, %theirs, %ours, "a node has a newer plan than the store; was it restored?");
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
                // It may be newer than what we sent: nodes listen to every replica.
                let number = ack.number.map(PlanNumber::from).unwrap_or_default();
                self.have = self.have.max(number);
                self.nodes.acknowledge(&self.id, number, daemon::clock::now());
                self.views.mark_changed();
            }
            Some(Message::Nack(nack)) => {
                self.metrics.refusals.inc();
                let number = nack.number.map(PlanNumber::from).unwrap_or_default();
                if self.nodes.refuse(&self.id, number, &nack.reason) {
                    tracing::warn!(node = %self.id, %number, reason = %nack.reason, "a node refused a plan");
                }
            }
            Some(Message::Held(_)) if !std::mem::take(&mut self.is_asked) => {
                tracing::warn!(node = %self.id, "a node sent a plan that it was not asked for; it is ignored");
            }
            Some(Message::Held(held)) => match Snapshot::decode(&held.document, &held.checksum) {
                Ok(snapshot) if snapshot.plan.generation > GENERATION_LEARNT_MAX => {
                    tracing::warn!(node = %self.id, plan = %snapshot.plan.number(), "no plan has such a number");
                }
                Ok(snapshot) => self.nodes.claim(&self.id, snapshot.plan),
                Err(error) => tracing::warn!(node = %self.id, %error, "what the node holds cannot be used"),
            },
            Some(Message::Hello(_)) | None => tracing::debug!(node = %self.id, "an answer that means nothing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use topology::fixtures::three_primaries;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn number(generation: u64) -> PlanNumber {
        PlanNumber { generation, epoch: 1 }
    }

    fn plan(generation: u64) -> Plan {
        let mut plan = three_primaries().plan;
        (plan.generation, plan.epoch) = (generation, 1);
        plan
    }

    /// Three nodes that follow and apply plan 1.
    fn fleet_of_three() -> Topology {
        let text = include_str!("../../../configs/topology.toml");
        Topology::parse("topology.toml", text).unwrap()
    }

    fn three() -> Nodes {
        let nodes = Nodes::default();
        nodes.published(number(1));
        for name in ["edge-dub", "edge-iad", "ns1"] {
            nodes.connected(&node(name), v1::NodeKind::Edge);
            nodes.acknowledge(&node(name), number(1), Moment(1));
        }
        nodes
    }

    #[test]
    fn acknowledgements_of_plans_that_never_were_push_no_real_one_out() {
        let nodes = three();
        for index in 0..1_000 {
            nodes.acknowledge(&node("ns1"), number((1 << 50) + index), Moment(2));
            nodes.acknowledge(
                &node("ns1"),
                PlanNumber {
                    generation: 0,
                    epoch: index,
                },
                Moment(2),
            );
        }
        assert_eq!(nodes.acknowledged(number(1)).len(), 3);
        nodes.published(number(2));
        nodes.acknowledge(&node("edge-iad"), number(2), Moment(3));
        assert_eq!(nodes.acknowledged(number(2)).len(), 1);
        assert_eq!(nodes.acknowledged(number(1)).len(), 3);
    }

    #[test]
    fn whoever_has_a_plan_from_a_faster_control_plane_acknowledged_it() {
        let nodes = three();
        nodes.acknowledge(&node("ns1"), number(2), Moment(2));
        assert_eq!(
            nodes.all()[&node("ns1")].acknowledged,
            number(1),
            "nobody published it here"
        );
        nodes.published(number(2));
        let known = &nodes.all()[&node("ns1")];
        assert_eq!((known.acknowledged, known.ahead), (number(2), None));
        assert_eq!(nodes.acknowledged(number(2))[&node("ns1")], Moment(2));
    }

    #[test]
    fn a_refusal_is_news_once_and_only_of_a_plan_that_was_published() {
        let nodes = three();
        let news = nodes.refusals();
        assert!(!nodes.refuse(&node("ns1"), number(7), "no such plan"));
        assert!(nodes.refuse(&node("ns1"), number(1), "cannot read it"));
        for _ in 0..100 {
            assert!(!nodes.refuse(&node("ns1"), number(1), "still cannot"));
        }
        assert_eq!(*news.borrow(), 1);
    }

    #[test]
    fn only_more_than_half_of_the_topologys_nodes_bring_back_a_plan() {
        let nodes = three();
        let topology = fleet_of_three();
        assert_eq!(nodes.recovery(number(1), &topology), None);
        let unproven = |nodes: &Nodes| match nodes.recovery(number(1), &topology) {
            Some(Recovery::Unproven(text)) => text,
            other => panic!("{other:?}"),
        };
        nodes.acknowledge(&node("ns1"), number(9), Moment(2));
        assert!(
            unproven(&nodes).contains("ns1 plan 9@1): they have not shown it"),
            "{}",
            unproven(&nodes)
        );
        nodes.claim(&node("ns1"), plan(9));
        nodes.claim(&node("ns1"), plan(9));
        assert!(
            unproven(&nodes).contains("1 of the 3 nodes of the topology"),
            "{}",
            unproven(&nodes)
        );
        // The same number, and another plan.
        let mut other = plan(9);
        other.reasons.clear();
        nodes.acknowledge(&node("edge-iad"), number(9), Moment(2));
        nodes.claim(&node("edge-iad"), other);
        assert!(
            unproven(&nodes).contains("1 of the 3 nodes of the topology"),
            "{}",
            unproven(&nodes)
        );
        nodes.claim(&node("edge-iad"), plan(9));
        assert_eq!(
            nodes.recovery(number(1), &topology),
            Some(Recovery::Proven(Box::new(plan(9))))
        );
        assert_eq!(nodes.recovery(number(9), &topology), None, "it is known by now");
        nodes.refute(&plan(9));
        assert!(
            unproven(&nodes).contains("the audit log has another plan"),
            "{}",
            unproven(&nodes)
        );
        // A node that disconnects no longer claims a plan.
        nodes.disconnected(&node("edge-iad"));
        nodes.disconnected(&node("ns1"));
        assert_eq!(nodes.recovery(number(1), &topology), None);
    }

    /// After an outage the first node that connects may have its state from anywhere.
    #[test]
    fn the_first_node_to_connect_does_not_speak_for_the_fleet() {
        let (nodes, topology) = (Nodes::default(), fleet_of_three());
        nodes.published(number(1));
        nodes.connected(&node("edge-iad"), v1::NodeKind::Edge);
        nodes.acknowledge(&node("edge-iad"), number(1_001), Moment(1));
        nodes.claim(&node("edge-iad"), plan(1_001));
        let said = nodes.recovery(number(1), &topology);
        assert!(
            matches!(&said, Some(Recovery::Unproven(text)) if text.contains("1 of the 3 nodes of the topology")),
            "{said:?}"
        );
        nodes.connected(&node("ns1"), v1::NodeKind::Dns);
        nodes.claim(&node("ns1"), plan(1_001));
        let said = nodes.recovery(number(1), &topology);
        assert!(matches!(said, Some(Recovery::Proven(_))), "{said:?}");
    }
}
