//! The certificates that stacks showed to the probes of this control plane, so that nobody takes away a root under which a stack still
//! works.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use api::v1;
use identity::Peer;
use parking_lot::Mutex;
use probe::Probed;
use topology::{Moment, Topology};

/// The newest certificate of each stack, with the time at which it was shown. A stack that is not probed now keeps its last one: it may
/// come back with it.
#[derive(Debug, Clone, Default)]
pub struct Stacks(Arc<Mutex<BTreeMap<SocketAddr, (Peer, Moment)>>>);

impl Stacks {
    /// Takes the results of a tick, and forgets the stacks that left the topology.
    pub(crate) fn take(&self, probed: &Probed, topology: &Topology, now: Moment) {
        let mut shown = self.0.lock();
        let new = probed.certificates.iter();
        shown.extend(new.map(|(stack, peer)| (*stack, (peer.clone(), now))));
        shown.retain(|stack, _| is_stack(topology, *stack));
    }

    /// The stacks that have shown a certificate, for operators.
    pub(crate) fn messages(&self) -> Vec<v1::StackStatus> {
        let shown = self.0.lock();
        let message = |(stack, (peer, at)): (&SocketAddr, &(Peer, Moment))| v1::StackStatus {
            stack: stack.to_string(),
            id: peer.id.role.to_string(),
            root: peer.root.clone(),
            certificate_until_ms: peer.until.0,
            seen_at_ms: at.0,
        };
        shown.iter().map(message).collect()
    }
}

fn is_stack(topology: &Topology, address: SocketAddr) -> bool {
    let mut stacks = topology.regions.values().flat_map(|region| &region.stacks);
    stacks.any(|stack| stack.address == address)
}
