//! A peer with the certificates that it showed, and the memory of those who showed theirs before.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::{
    Peer, Validity,
    remembered::{CHAINS_MAX, hash_of},
    verifier::BadPeer,
};

/// A peer with the certificates that it showed.
#[derive(Debug)]
pub struct Shown {
    /// The holder of the first of them.
    pub peer: Peer,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The validity of all of them together.
    pub(crate) life: Validity,
}

impl Shown {
    pub(crate) fn new(peer: Peer, chain: &[CertificateDer<'static>]) -> Self {
        // The holder was read from the first. One above it that cannot be read leads to no root.
        let life = Validity::of_chain(chain).unwrap_or(Validity {
            from: peer.from,
            until: peer.until,
        });
        let chain = chain.to_vec();
        Self { peer, chain, life }
    }
}

/// The holders of chains, by the hash of the chain. All connections of one share one value: an edge has thousands to a stack.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<[u8; 32], Arc<Shown>>>);

impl Known {
    /// The holder of a chain that was verified, leaf first. `root` finds the root that leads to it.
    pub(crate) fn holder(
        &self,
        chain: &[CertificateDer<'static>],
        root: impl FnOnce(&Shown) -> String,
    ) -> Result<Arc<Shown>, BadPeer> {
        let hash = hash_of(chain);
        if let Some(known) = self.0.lock().get(&hash) {
            return Ok(known.clone());
        }
        let peer = Peer::of(chain.first().ok_or(BadPeer::NoCertificate)?)?;
        let mut shown = Shown::new(peer, chain);
        shown.peer.root = root(&shown);
        let shown = Arc::new(shown);
        let mut known = self.0.lock();
        if known.len() >= CHAINS_MAX {
            known.clear();
        }
        known.insert(hash, shown.clone());
        Ok(shown)
    }
}
