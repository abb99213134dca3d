//! A peer with the certificates that it showed, and the memory of those who showed theirs before.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::{
    Peer,
    remembered::{CHAINS_MAX, hash_of},
    verifier::BadPeer,
};

/// A peer with the certificates that it showed.
#[derive(Debug)]
pub struct Shown {
    /// The holder of the first of them.
    pub peer: Peer,
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// The holders of chains, by the hash of the chain. All connections of one share one value: an edge has thousands to a stack.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<[u8; 32], Arc<Shown>>>);

impl Known {
    /// The holder of a chain that was verified, leaf first.
    pub(crate) fn holder(&self, chain: &[CertificateDer<'static>]) -> Result<Arc<Shown>, BadPeer> {
        let hash = hash_of(chain);
        if let Some(known) = self.0.lock().get(&hash) {
            return Ok(known.clone());
        }
        let shown = Arc::new(Shown {
            peer: Peer::of(chain.first().ok_or(BadPeer::NoCertificate)?)?,
            chain: chain.to_vec(),
        });
        let mut known = self.0.lock();
        if known.len() >= CHAINS_MAX {
            known.clear();
        }
        known.insert(hash, shown.clone());
        Ok(shown)
    }
}
