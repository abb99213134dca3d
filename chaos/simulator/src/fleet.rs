//! The nodes that follow plans, and a slow enactor that brings them late.

use std::collections::BTreeMap;

use planning::Refusal;
use topology::{EdgeId, NodeId, Plan, PlanNumber};

/// Every edge and name server.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    nodes: BTreeMap<NodeId, Node>,
    /// Every published plan: each node has one of these.
    published: BTreeMap<PlanNumber, Plan>,
    /// Plans that a slow enactor took and has not brought yet.
    held: Vec<Plan>,
}

#[derive(Debug, Default)]
struct Node {
    has: Option<Plan>,
    manners: Manners,
    cut_off: bool,
    refused: Option<(PlanNumber, String)>,
}

/// The answer of a node to newer plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Manners {
    /// The node applies them.
    #[default]
    Accepts,
    /// The node refuses one, then applies the others.
    RefusesNext,
    /// The node refuses them all.
    RefusesAll,
}

/// A plan that a node refused, with its error.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refused {
    pub(crate) node: NodeId,
    pub(crate) number: PlanNumber,
    pub(crate) why: String,
}

impl Fleet {
    pub(crate) fn new(nodes: impl Iterator<Item = NodeId>) -> Self {
        Self {
            nodes: nodes.map(|node| (node, Node::default())).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn set_manners(&mut self, node: &NodeId, manners: Manners) {
        if let Some(node) = self.nodes.get_mut(node) {
            (node.manners, node.refused) = (manners, None);
        }
    }

    pub(crate) fn set_cut_off(&mut self, node: &NodeId, cut_off: bool) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.cut_off = cut_off;
        }
    }

    /// A slow enactor takes a copy of the plan in force.
    pub(crate) fn hold(&mut self, current: Option<&Plan>) {
        self.held.extend(current.cloned());
    }

    /// The slow enactor brings its copies to every node.
    pub(crate) fn apply_held(&mut self) -> Vec<Refused> {
        let held = std::mem::take(&mut self.held);
        let brought = held.iter().flat_map(|plan| {
            let told = self.nodes.iter_mut().map(|(id, node)| node.take(id, plan));
            told.flatten().collect::<Vec<_>>()
        });
        brought.collect()
    }

    /// Brings the plan in force to every connected node that does not know it yet.
    pub(crate) fn publish(&mut self, plan: &Plan) -> Vec<Refused> {
        let number = plan.number();
        self.published.insert(number, plan.clone());
        let knows = |node: &Node| {
            let refused = node.refused.as_ref().map(|(refused, _)| *refused);
            node.number() == Some(number) || refused == Some(number)
        };
        let follow = self.nodes.iter_mut().filter(|(_, node)| !node.cut_off && !knows(node));
        follow.filter_map(|(id, node)| node.take(id, plan)).collect()
    }

    /// The nodes that refuse the plan in force, if any does.
    pub(crate) fn refusal(&self, current: &Plan) -> Option<Refusal> {
        let number = current.number();
        let following = || self.nodes.iter().filter(|(_, node)| !node.cut_off);
        let nodes: BTreeMap<NodeId, String> = following()
            .filter_map(|(id, node)| node.refused.as_ref().map(|refused| (id, refused)))
            .filter(|(_, (refused, _))| *refused == number)
            .map(|(id, (_, why))| (id.clone(), why.clone()))
            .collect();
        let oldest = following().map(|(_, node)| node.number()).min().flatten();
        (!nodes.is_empty()).then(|| Refusal {
            number,
            nodes,
            following: following().count() as u32,
            acknowledged: oldest.and_then(|oldest| self.published.get(&oldest)).cloned(),
        })
    }

    /// The newest plan of connected nodes, when it is newer than the one in force: nodes show theirs to a control plane
    /// that offers them an older one.
    pub(crate) fn recovered(&self, current: Option<PlanNumber>) -> Option<Plan> {
        let following = self.nodes.values().filter(|node| !node.cut_off);
        let newest = following
            .filter_map(|node| node.has.as_ref())
            .max_by_key(|plan| plan.number())?;
        (Some(newest.number()) > current).then(|| newest.clone())
    }

    /// The newest generation that more than half of these edges apply.
    pub(crate) fn applied_by_most<'e>(&self, edges: impl Iterator<Item = &'e EdgeId>) -> u64 {
        let number = |edge: &EdgeId| self.nodes.get(&NodeId::from(edge)).and_then(Node::number);
        let mut applied: Vec<u64> = edges.map(|edge| number(edge).unwrap_or_default().generation).collect();
        applied.sort_unstable();
        let majority = applied.len().checked_sub(1).map(|last| last / 2);
        majority.map_or(0, |at| applied[at])
    }

    /// The plan of every node.
    pub(crate) fn applied(&self) -> Vec<(NodeId, Option<PlanNumber>)> {
        self.nodes
            .iter()
            .map(|(id, node)| (id.clone(), node.number()))
            .collect()
    }
}

impl Node {
    fn number(&self) -> Option<PlanNumber> {
        self.has.as_ref().map(Plan::number)
    }

    /// The rule of a receiver, the same in edges and DNS servers: a node applies only a strictly newer plan, by
    /// generation and then epoch, whatever its sender and delay.
    fn take(&mut self, id: &NodeId, plan: &Plan) -> Option<Refused> {
        let offered = plan.number();
        let why = match (self.number(), self.manners) {
            (Some(has), _) if has == offered => return None,
            (Some(has), _) if offered < has => format!("it has {has}"),
            (_, Manners::Accepts) => {
                (self.has, self.refused) = (Some(plan.clone()), None);
                return None;
            }
            (_, manners) => {
                if manners == Manners::RefusesNext {
                    self.manners = Manners::Accepts;
                }
                "it cannot read this plan".to_owned()
            }
        };
        self.refused = Some((offered, why.clone()));
        Some(Refused {
            node: id.clone(),
            number: offered,
            why,
        })
    }
}
