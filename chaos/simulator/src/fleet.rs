//! The nodes that follow plans, and whoever brings plans to them.

use std::collections::BTreeMap;

use planning::Refusal;
use topology::{NodeId, Plan, PlanNumber};

/// Every edge and name server.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    nodes: BTreeMap<NodeId, Node>,
    /// Every plan that was published: what nodes have is one of these.
    published: BTreeMap<PlanNumber, Plan>,
    /// What a slow enactor took and has not brought yet.
    held: Vec<Plan>,
}

#[derive(Debug, Default)]
struct Node {
    has: Option<Plan>,
    manners: Manners,
    cut_off: bool,
    refused: Option<(PlanNumber, String)>,
}

/// How a node takes plans that are newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Manners {
    /// It applies them.
    #[default]
    Accepts,
    /// It refuses one, then applies the others.
    RefusesNext,
    /// It refuses them all.
    RefusesAll,
}

/// A plan that a node refused, and why.
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

    /// The slow enactor brings what it took to every node.
    pub(crate) fn apply_held(&mut self) -> Vec<Refused> {
        let held = std::mem::take(&mut self.held);
        let brought = held.iter().flat_map(|plan| {
            let told = self.nodes.iter_mut().map(|(id, node)| node.take(id, plan));
            told.flatten().collect::<Vec<_>>()
        });
        brought.collect()
    }

    /// Brings the plan in force to every node that follows and does not know it yet.
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

    /// Who refuses the plan in force, if anybody does.
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

    /// The newest plan that following nodes have, when it is newer than the one in force: nodes show theirs to a control
    /// plane that offers them an older one.
    pub(crate) fn recovered(&self, current: Option<PlanNumber>) -> Option<Plan> {
        let following = self.nodes.values().filter(|node| !node.cut_off);
        let newest = following
            .filter_map(|node| node.has.as_ref())
            .max_by_key(|plan| plan.number())?;
        (Some(newest.number()) > current).then(|| newest.clone())
    }

    /// What every node applies.
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

    /// The receiver's rule, the same that edges and DNS responders have: only what is strictly newer, by generation and
    /// then epoch, is applied, whoever brings it and however late.
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
