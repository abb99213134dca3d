//! The subjects of scenario lines: nodes, vantages, stacks and data classes of a world.

use std::net::SocketAddr;

use topology::{NodeId, Policy, RegionId, Topology};

/// The nodes that follow plans.
pub(crate) fn nodes(topology: &Topology) -> impl Iterator<Item = NodeId> {
    topology
        .edges
        .keys()
        .map(NodeId::from)
        .chain(topology.name_servers.keys().cloned())
}

/// The nodes that report health: every edge, and the control plane.
pub(crate) fn vantages(topology: &Topology) -> impl Iterator<Item = NodeId> {
    topology.edges.keys().map(NodeId::from).chain([control_plane()])
}

pub(crate) fn control_plane() -> NodeId {
    NodeId::new("control-plane").expect("the name is an id")
}

/// One data class, or all of them.
pub(crate) fn classes(policy: &Policy, class: Option<&str>) -> Vec<String> {
    let known = policy.data.iter().map(|it| it.class.as_str());
    known
        .filter(|name| class.is_none_or(|class| class == *name))
        .map(str::to_owned)
        .collect()
}

/// The address of a stack of a region by its number, from 1.
pub(crate) fn stack_of(topology: &Topology, region: &RegionId, number: usize) -> SocketAddr {
    let stacks = topology.regions.get(region).map(|it| &it.stacks);
    let stack = stacks.and_then(|stacks| stacks.get(number.checked_sub(1)?));
    stack
        .expect("the scenario was checked to speak of stacks that exist")
        .address
}
