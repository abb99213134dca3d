//! The events of a scenario.

use std::time::Duration;

use topology::{Component, EdgeId, IdError, NodeId, Policy, RegionId, Topology};

use super::{
    ask::{Ask, parse_ask},
    words::{millis, number, span, text},
};
use crate::{
    subjects::{control_plane, nodes, vantages},
    texts,
};

/// A fault, its end, or a request of an operator.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// All connections to the region fail.
    Dies(RegionId),
    /// All connections to one of its stacks fail; the number counts from 1.
    StackDies(RegionId, usize),
    /// The stack works again.
    StackRecovers(RegionId, usize),
    /// One vantage cannot connect to the region.
    Unreachable(RegionId, NodeId),
    /// This percentage of a component's attempts fails.
    Fails(RegionId, Component, u32),
    /// This percentage of the attempts fails in a component of one stack.
    StackFails(RegionId, usize, Component, u32),
    /// Recognition takes this long.
    AsrTakes(RegionId, Duration),
    /// The region works again.
    Recovers(RegionId),
    /// The region dies and recovers in turn: the time of each, and of all.
    Flaps(RegionId, Duration, Duration),
    /// A vantage reports nothing.
    Silent(NodeId),
    /// A silent vantage reports again.
    Speaks(NodeId),
    /// The process of an edge is gone.
    EdgeDies(EdgeId),
    /// An edge works, and no vantage reaches it at its public addresses.
    EdgeUnreachable(EdgeId),
    /// An edge works again.
    EdgeRecovers(EdgeId),
    /// A vantage reports the opposite of what it sees of a region.
    Lies(NodeId, RegionId),
    /// A vantage reports what it sees.
    Honest(NodeId),
    /// Copies of a class of the region's data, or of all, are this far behind.
    Lags(RegionId, Option<String>, Duration),
    /// The lag is not measured any more.
    Unmeasured(RegionId, Option<String>),
    /// An observation of devices about a version of the stack.
    Version(String, VersionChange),
    /// The clock of the control plane or of an edge jumps, in milliseconds.
    ClockJumps(NodeId, i64),
    /// Another control plane leads.
    LeaderChanges,
    /// The store is restored from a copy that it made at this generation.
    StoreGoesBack(u64),
    /// A node refuses the next plan.
    RefusesNext(NodeId),
    /// A node refuses every plan.
    RefusesAll(NodeId),
    /// A node accepts plans again.
    Accepts(NodeId),
    /// No plan reaches a node.
    CutOff(NodeId),
    /// Plans reach a node again.
    Connected(NodeId),
    /// A slow enactor takes a copy of the plan in force.
    EnactorHolds,
    /// The slow enactor brings its copies to every node.
    EnactorApplies,
    /// An operator makes a request.
    Asks(Ask),
}

/// One change of the devices' experience of a version of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionChange {
    /// Number of sessions on it.
    Sessions(u32),
    /// This percentage of its turns fails.
    Fails(u32),
    /// Its turns take this many percent longer than those of the old version.
    Slower(u32),
    /// Audio underruns in each session.
    Underruns(u32),
    /// GPU memory errors of its stacks.
    GpuMemoryErrors(u32),
}

pub(super) fn parse_event(words: &[&str]) -> Result<Event, String> {
    let region = |name: &str| RegionId::new(name).map_err(|error: IdError| error.to_string());
    let vantage = |name: &str| NodeId::new(name).map_err(|error: IdError| error.to_string());
    let edge = |name: &str| EdgeId::new(name).map_err(|error: IdError| error.to_string());
    Ok(match words {
        [name, "dies"] => Event::Dies(region(name)?),
        ["stack", stack, "of", name, "dies"] => Event::StackDies(region(name)?, number(stack)? as usize),
        ["stack", stack, "of", name, component, "fails", percent, "%"] => {
            let component =
                Component::parse(component).ok_or_else(|| texts::unknown("component", component, Component::ALL))?;
            Event::StackFails(region(name)?, number(stack)? as usize, component, number(percent)?)
        }
        ["stack", stack, "of", name, "recovers"] => Event::StackRecovers(region(name)?, number(stack)? as usize),
        [name, "is", "unreachable", "from", node] => Event::Unreachable(region(name)?, vantage(node)?),
        [name, component, "fails", percent, "%"] => {
            let component =
                Component::parse(component).ok_or_else(|| texts::unknown("component", component, Component::ALL))?;
            Event::Fails(region(name)?, component, number(percent)?)
        }
        [name, "asr", "takes", ms, "ms"] => {
            Event::AsrTakes(region(name)?, Duration::from_millis(u64::from(number(ms)?)))
        }
        [name, "recovers"] => Event::Recovers(region(name)?),
        [name, "flaps", "every", each, "for", all] => Event::Flaps(region(name)?, span(each)?, span(all)?),
        [node, "is", "silent"] => Event::Silent(vantage(node)?),
        [node, "speaks"] => Event::Speaks(vantage(node)?),
        ["edge", name, "dies"] => Event::EdgeDies(edge(name)?),
        ["edge", name, "unreachable"] => Event::EdgeUnreachable(edge(name)?),
        ["edge", name, "recovers"] => Event::EdgeRecovers(edge(name)?),
        [node, "lies", "about", name] => Event::Lies(vantage(node)?, region(name)?),
        [node, "is", "honest"] => Event::Honest(vantage(node)?),
        [name, "data", "lags", time] => Event::Lags(region(name)?, None, span(time)?),
        [name, "data", "is", "not", "measured"] => Event::Unmeasured(region(name)?, None),
        [name, class, "lag", time] => Event::Lags(region(name)?, Some((*class).to_owned()), span(time)?),
        [name, class, "are", "not", "measured"] => Event::Unmeasured(region(name)?, Some((*class).to_owned())),
        [version, "fails", percent, "%", "of", "turns"] => {
            Event::Version(text(version), VersionChange::Fails(number(percent)?))
        }
        [version, "takes", more, "%"] if more.starts_with('+') => {
            Event::Version(text(version), VersionChange::Slower(number(&more[1..])?))
        }
        [version, "has", count, "sessions"] => Event::Version(text(version), VersionChange::Sessions(number(count)?)),
        [version, "has", count, "underruns", "per", "session"] => {
            Event::Version(text(version), VersionChange::Underruns(number(count)?))
        }
        [version, "has", count, "gpu", "memory", "errors"] => {
            Event::Version(text(version), VersionChange::GpuMemoryErrors(number(count)?))
        }
        ["clock", "jumps", "back", time] => Event::ClockJumps(control_plane(), -millis(time)?),
        ["clock", "jumps", time] => Event::ClockJumps(control_plane(), millis(time)?),
        ["clock", "of", node, "jumps", "back", time] => Event::ClockJumps(vantage(node)?, -millis(time)?),
        ["clock", "of", node, "jumps", time] => Event::ClockJumps(vantage(node)?, millis(time)?),
        ["leader", "changes"] => Event::LeaderChanges,
        ["store", "goes", "back", "to", "generation", generation] => {
            Event::StoreGoesBack(u64::from(number(generation)?))
        }
        [node, "refuses", "the", "next", "plan"] => Event::RefusesNext(vantage(node)?),
        [node, "refuses", "plans"] => Event::RefusesAll(vantage(node)?),
        [node, "accepts", "plans"] => Event::Accepts(vantage(node)?),
        [node, "is", "cut", "off"] => Event::CutOff(vantage(node)?),
        [node, "is", "connected"] => Event::Connected(vantage(node)?),
        ["enactor", "holds", "the", "plan"] => Event::EnactorHolds,
        ["enactor", "applies", "what", "it", "held"] => Event::EnactorApplies,
        other => Event::Asks(parse_ask(other)?),
    })
}

impl Event {
    /// The error names a subject of this event that the world does not have.
    pub(super) fn check(&self, topology: &Topology, policy: &Policy) -> Result<(), String> {
        let region = |id: &RegionId| {
            let known = topology.regions.contains_key(id);
            known
                .then_some(())
                .ok_or_else(|| texts::unknown("region", id, topology.regions.keys()))
        };
        let node = |id: &NodeId| {
            let known = nodes(topology).any(|node| node == *id);
            known
                .then_some(())
                .ok_or_else(|| texts::unknown("node", id, nodes(topology)))
        };
        let vantage = |id: &NodeId| {
            let known = vantages(topology).any(|node| node == *id);
            known
                .then_some(())
                .ok_or_else(|| texts::unknown("vantage", id, vantages(topology)))
        };
        match self {
            Self::Dies(id) | Self::Fails(id, ..) | Self::AsrTakes(id, _) | Self::Recovers(id) | Self::Flaps(id, ..) => {
                region(id)
            }
            Self::StackDies(id, stack) | Self::StackRecovers(id, stack) | Self::StackFails(id, stack, ..) => {
                region(id)?;
                let stacks = topology.regions.get(id).map_or(0, |it| it.stacks.len());
                let known = (1..=stacks).contains(stack);
                known
                    .then_some(())
                    .ok_or_else(|| texts::unknown_stack(id, stacks, *stack))
            }
            Self::Unreachable(id, by) | Self::Lies(by, id) => region(id).and(vantage(by)),
            Self::Silent(by) | Self::Speaks(by) | Self::Honest(by) | Self::ClockJumps(by, _) => vantage(by),
            Self::Lags(id, class, _) | Self::Unmeasured(id, class) => {
                let known = |class: &String| policy.data.iter().any(|it| it.class == *class);
                match class {
                    Some(class) if !known(class) => Err(texts::unknown(
                        "data class",
                        class,
                        policy.data.iter().map(|it| &it.class),
                    )),
                    _ => region(id),
                }
            }
            Self::EdgeDies(id) | Self::EdgeUnreachable(id) | Self::EdgeRecovers(id) => {
                let known = topology.edges.contains_key(id);
                known
                    .then_some(())
                    .ok_or_else(|| texts::unknown("edge", id, topology.edges.keys()))
            }
            Self::RefusesNext(id)
            | Self::RefusesAll(id)
            | Self::Accepts(id)
            | Self::CutOff(id)
            | Self::Connected(id) => node(id),
            // Operators may name a subject that does not exist; the control plane refuses then.
            Self::Asks(_)
            | Self::Version(..)
            | Self::LeaderChanges
            | Self::StoreGoesBack(_)
            | Self::EnactorHolds
            | Self::EnactorApplies => Ok(()),
        }
    }
}
