//! The nodes that follow plans: the plan that each applies, since when, and refusals.
//!
//! Nodes help a store that lost its newest plan, within one limit: a plan newer than the store's is taken over only if
//! this control plane asked for it and more than half of the topology's nodes hold the same one ([`Nodes::recovery`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use api::{convert::NamesSeen, v1};
use parking_lot::{Mutex, MutexGuard};
use planning::{Input, Refusal};
use tokio::sync::watch;
use topology::{EdgeId, Moment, NodeId, Plan, PlanNumber, Topology};

use crate::{claims::Claims, texts};

/// Generations whose acknowledgements are remembered: enough for the history that operators look at.
const GENERATIONS_REMEMBERED: usize = 64;
/// Nodes named to operators as being ahead of the store; a few are enough.
const AHEAD_NAMED: usize = 5;

/// The state of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Edge or name server.
    pub kind: v1::NodeKind,
    /// The newest plan that it applies.
    pub acknowledged: PlanNumber,
    /// Time of that acknowledgement.
    pub acknowledged_at: Moment,
    /// The plan that it refused last, with the reason; `None` once it acknowledged a newer one.
    pub refused: Option<(PlanNumber, String)>,
    /// Number of its connections; more than one only while it reconnects.
    pub connections: u32,
    /// A plan that it applies and this control plane did not publish, and since when. It comes from another control
    /// plane that was faster, or from before the store lost it.
    pub ahead: Option<(PlanNumber, Moment)>,
    /// The certificate of its newest connection.
    pub shown: Option<ShownCertificate>,
    /// The newest report of a name server, and when it came.
    pub names: Option<(Moment, NamesSeen)>,
}

/// The authority behind a node's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownCertificate {
    /// Fingerprint of the root.
    pub root: String,
    /// End of the certificate's life.
    pub until: Moment,
}

/// All nodes that followed since the control plane started.
#[derive(Debug, Clone, Default)]
pub struct Nodes(Arc<Mutex<Registry>>, watch::Sender<u64>);

#[derive(Debug, Default)]
struct Registry {
    nodes: BTreeMap<NodeId, Node>,
    /// Acknowledgements of published plans, by node, with their times. Other plans are not kept: they would push the
    /// real ones out.
    acknowledged: BTreeMap<PlanNumber, BTreeMap<NodeId, Moment>>,
    /// The newest plan that was published.
    published: PlanNumber,
    /// Plans that nodes sent at this control plane's request.
    claims: Claims,
    /// The generation that an order waits for, and the edges that should apply it.
    awaited: Option<(u64, BTreeSet<NodeId>)>,
}

/// A plan that nodes hold and the store does not know.
#[derive(Debug, Clone, PartialEq)]
pub enum Recovery {
    /// More than half of the topology's nodes hold the same plan.
    Proven(Box<Plan>),
    /// Fewer nodes hold it, or the audit log contradicts it. The text tells operators.
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

    /// Generation of the newest plan that more than half of these edges apply.
    fn applied_by_most(&self, edges: &BTreeSet<NodeId>) -> u64 {
        let of = |edge| {
            self.nodes
                .get(edge)
                .map_or(0, |node: &Node| node.acknowledged.generation)
        };
        let mut applied: Vec<u64> = edges.iter().map(of).collect();
        applied.sort_unstable();
        // Of four edges the second lowest: it and the two above it are three.
        let majority = applied.len().checked_sub(1).map(|last| last / 2);
        majority.map_or(0, |at| applied[at])
    }

    /// Whether most edges now apply the plan that an order waits for. Returns true once per order, because it then
    /// forgets the order.
    fn take_spread(&mut self) -> bool {
        let Some((wanted, edges)) = &self.awaited else {
            return false;
        };
        let has_spread = self.applied_by_most(edges) >= *wanted;
        if has_spread {
            self.awaited = None;
        }
        has_spread
    }
}

impl Nodes {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.lock()
    }

    pub(crate) fn connected(&self, id: &NodeId, kind: v1::NodeKind, shown: Option<ShownCertificate>) {
        let mut registry = self.registry();
        let node = registry.nodes.entry(id.clone()).or_insert_with(|| Node {
            kind,
            acknowledged: PlanNumber::default(),
            acknowledged_at: Moment::default(),
            refused: None,
            connections: 0,
            ahead: None,
            shown: None,
            names: None,
        });
        (node.kind, node.shown) = (kind, shown);
        node.connections += 1;
    }

    /// Keeps the newest report of a name server. False if no name server of that name follows plans here: reports of strangers would
    /// take memory.
    pub(crate) fn saw_names(&self, id: &NodeId, seen: NamesSeen, now: Moment) -> bool {
        let mut registry = self.registry();
        match registry.nodes.get_mut(id).filter(|node| node.kind == v1::NodeKind::Dns) {
            Some(node) => {
                node.names = Some((now, seen));
                true
            }
            None => false,
        }
    }

    pub(crate) fn disconnected(&self, id: &NodeId) {
        let mut registry = self.registry();
        let Some(node) = registry.nodes.get_mut(id) else { return };
        node.connections = node.connections.saturating_sub(1);
        if node.connections == 0 {
            node.ahead = None;
            registry.claims.forget(id);
        }
    }

    /// Notes that a plan is now published. Acknowledgements that nodes sent for another control plane's copy of it
    /// count too.
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
        registry.claims.forget_published(number);
    }

    pub(crate) fn acknowledge(&self, id: &NodeId, number: PlanNumber, now: Moment) {
        let mut registry = self.registry();
        registry.acknowledge(id, number, now);
        let has_spread = registry.take_spread();
        drop(registry);
        if has_spread {
            self.news();
        }
    }

    /// Sets the generation that an order waits for, and the edges that should apply it. Wakes the deciding task once
    /// most of them do.
    pub fn set_awaited(&self, plan: Option<u64>, edges: BTreeSet<NodeId>) {
        let mut registry = self.registry();
        registry.awaited = plan.map(|plan| (plan, edges));
        let has_spread = registry.take_spread();
        drop(registry);
        if has_spread {
            self.news();
        }
    }

    /// Generation of the newest plan that more than half of these edges apply.
    pub fn applied_by_most(&self, edges: &BTreeSet<NodeId>) -> u64 {
        self.registry().applied_by_most(edges)
    }

    /// Number of these edges that apply this generation or a newer one.
    pub fn applied_by(&self, edges: &BTreeSet<NodeId>, wanted: u64) -> usize {
        let registry = self.registry();
        let of = |edge| {
            registry
                .nodes
                .get(edge)
                .map_or(0, |node: &Node| node.acknowledged.generation)
        };
        edges.iter().filter(|edge| of(*edge) >= wanted).count()
    }

    /// Records a node's refusal of a plan. Returns whether it is new. Only a published plan can be refused. A
    /// repeated refusal changes nothing, so that it costs no further decision and no audit entry.
    pub(crate) fn refuse(&self, id: &NodeId, number: PlanNumber, reason: &str) -> bool {
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

    /// Records a plan that a node sent at this control plane's request.
    pub(crate) fn claim(&self, id: &NodeId, plan: Plan) {
        let mut registry = self.registry();
        registry.claims.note(id, plan);
        drop(registry);
        self.news();
    }

    /// Marks a plan as contradicted by the audit log: no number of nodes can make it the plan in force.
    pub fn refute(&self, plan: &Plan) {
        self.registry().claims.refute(plan);
    }

    /// A plan newer than `ours` that nodes hold; `None` if no node claims one. A single node may have its state from
    /// another deployment or from a backup, so more than half of the nodes must agree. The topology gives their number,
    /// because after an outage the first node that connects is the only one connected.
    pub fn recovery(&self, ours: PlanNumber, topology: &Topology) -> Option<Recovery> {
        let registry = self.registry();
        let following = registry.nodes.iter().filter(|(_, node)| node.connections > 0);
        let edges = topology.edges.keys().map(EdgeId::as_str);
        let all: BTreeSet<&str> = edges.chain(topology.name_servers.keys().map(NodeId::as_str)).collect();
        let best = registry.claims.best(ours, &all);
        if let Some(best) = best.as_ref().filter(|best| best.is_proven) {
            return Some(Recovery::Proven(Box::new(best.plan.clone())));
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
            Some(best) if best.is_refuted => texts::claim_is_refuted(),
            Some(best) => texts::too_few_hold_it(best.held, all.len()),
            None => texts::not_shown(),
        };
        Some(Recovery::Unproven(texts::plan_unproven(ours, &ahead, &why_not)))
    }

    /// Changes when a node refuses a plan, when a node shows a plan that the store does not know, and when most edges
    /// apply the plan that an order waits for.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.1.subscribe()
    }

    /// The nodes that refuse a plan, and the newest plan in `recent` that all of them applied, to go back to; `None` if
    /// no node refuses it.
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

    /// The plan that a node applies and this control plane did not publish; `None` if there is none.
    pub(crate) fn ahead(&self, id: &NodeId) -> Option<PlanNumber> {
        let registry = self.registry();
        let (number, _) = registry.nodes.get(id)?.ahead?;
        Some(number)
    }

    /// A copy of every node's state.
    pub fn all(&self) -> BTreeMap<NodeId, Node> {
        self.registry().nodes.clone()
    }

    /// The nodes that acknowledged a plan, with the times.
    pub fn acknowledged(&self, number: PlanNumber) -> BTreeMap<NodeId, Moment> {
        self.registry().acknowledged.get(&number).cloned().unwrap_or_default()
    }
}

/// The edges that an order waits for, as node ids.
pub(crate) fn waited_for(input: &Input) -> BTreeSet<NodeId> {
    planning::waited_for(input).map(NodeId::from).collect()
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

    #[test]
    fn an_order_has_spread_when_more_than_half_of_its_edges_apply_its_plan() {
        let nodes = Nodes::default();
        let edges: BTreeSet<NodeId> = ["a", "b", "c", "d"].map(node).into();
        nodes.published(number(7));
        for name in ["a", "b", "c", "d", "elsewhere"] {
            nodes.connected(&node(name), v1::NodeKind::Edge, None);
        }
        let news = nodes.changes();
        nodes.set_awaited(Some(7), edges.clone());
        for (name, by_most, is_news) in [
            ("elsewhere", 0, false),
            ("a", 0, false),
            ("b", 0, false),
            ("c", 7, true),
        ] {
            nodes.acknowledge(&node(name), number(7), Moment(1));
            assert_eq!(nodes.applied_by_most(&edges), by_most, "{name}");
            assert_eq!(news.has_changed().unwrap(), is_news, "{name}");
        }
        assert_eq!(nodes.applied_by(&edges, 7), 3);
        // An order that starts to wait when most edges apply its plan already is reported too.
        let news = nodes.changes();
        nodes.set_awaited(Some(7), edges);
        assert!(news.has_changed().unwrap());
        // DNS does not name lost or drained edges, so no order waits for them.
        assert_eq!(nodes.applied_by_most(&["a"].map(node).into()), 7);
        assert_eq!(nodes.applied_by_most(&["d"].map(node).into()), 0);
        assert_eq!(nodes.applied_by_most(&BTreeSet::new()), 0);
    }

    fn plan(generation: u64) -> Plan {
        let mut plan = three_primaries().plan;
        (plan.generation, plan.epoch) = (generation, 1);
        plan
    }

    /// The shipped topology has three nodes. All follow and apply plan 1.
    fn fleet_of_three() -> Topology {
        let text = include_str!("../../../configs/topology.toml");
        Topology::parse("topology.toml", text).unwrap()
    }

    fn three() -> Nodes {
        let nodes = Nodes::default();
        nodes.published(number(1));
        for name in ["edge-dub", "edge-iad", "ns1"] {
            nodes.connected(&node(name), v1::NodeKind::Edge, None);
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
    fn a_plan_from_a_faster_control_plane_counts_as_acknowledged_once_it_is_published() {
        let nodes = three();
        nodes.acknowledge(&node("ns1"), number(2), Moment(2));
        assert_eq!(
            nodes.all()[&node("ns1")].acknowledged,
            number(1),
            "this control plane did not publish it"
        );
        nodes.published(number(2));
        let known = &nodes.all()[&node("ns1")];
        assert_eq!((known.acknowledged, known.ahead), (number(2), None));
        assert_eq!(nodes.acknowledged(number(2))[&node("ns1")], Moment(2));
    }

    #[test]
    fn a_refusal_is_news_once_and_only_of_a_plan_that_was_published() {
        let nodes = three();
        let news = nodes.changes();
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
        // Another plan with the same number.
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
        // A disconnected node no longer claims a plan.
        nodes.disconnected(&node("edge-iad"));
        nodes.disconnected(&node("ns1"));
        assert_eq!(nodes.recovery(number(1), &topology), None);
    }

    /// After an outage the first node that connects may have its state from anywhere.
    #[test]
    fn the_first_node_to_connect_does_not_speak_for_the_fleet() {
        let (nodes, topology) = (Nodes::default(), fleet_of_three());
        nodes.published(number(1));
        nodes.connected(&node("edge-iad"), v1::NodeKind::Edge, None);
        nodes.acknowledge(&node("edge-iad"), number(1_001), Moment(1));
        nodes.claim(&node("edge-iad"), plan(1_001));
        let said = nodes.recovery(number(1), &topology);
        assert!(
            matches!(&said, Some(Recovery::Unproven(text)) if text.contains("1 of the 3 nodes of the topology")),
            "{said:?}"
        );
        nodes.connected(&node("ns1"), v1::NodeKind::Dns, None);
        nodes.claim(&node("ns1"), plan(1_001));
        let said = nodes.recovery(number(1), &topology);
        assert!(matches!(said, Some(Recovery::Proven(_))), "{said:?}");
    }
}
