//! Remembers the chains that were found genuine, so that a fleet whose processes connect again at once verifies each once.
//!
//! Verifying a chain takes two signatures, more than all else in a handshake; the peer's proof that it holds the key is verified
//! every time. A memory lives as long as the roots that it was made under: new files make a new one.

use std::collections::HashMap;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::{
    self,
    pki_types::{CertificateDer, UnixTime},
};

use crate::certificate::end_of_life;

/// Most chains that are remembered; beyond it the memory begins anew. A region has tens of edges, and each renews once in weeks.
pub(crate) const CHAINS_MAX: usize = 1_024;

/// Chains that are genuine, by their hash, with the time of the check and the first end of life in each, in Unix seconds.
#[derive(Debug, Default)]
pub(crate) struct Genuine(Mutex<HashMap<[u8; 32], (u64, u64)>>);

impl Genuine {
    /// Runs `verify`, unless it succeeded for this very chain before and none of its certificates has expired since. A clock that went
    /// back has it verified again.
    pub(crate) fn or_verify(
        &self,
        (leaf, above): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
        verify: impl FnOnce() -> Result<(), rustls::Error>,
    ) -> Result<(), rustls::Error> {
        let now = now.as_secs();
        let chain = || std::iter::once(leaf).chain(above);
        let hash = hash_of(chain());
        if let Some((from, until)) = self.0.lock().get(&hash)
            && (*from..*until).contains(&now)
        {
            return Ok(());
        }
        verify()?;
        // One that this process cannot read has no known end, and is verified again.
        let ends: Option<Vec<_>> = chain().map(|der| end_of_life(der)).collect();
        if let Some(until) = ends.and_then(|ends| ends.into_iter().min()) {
            let mut known = self.0.lock();
            if known.len() >= CHAINS_MAX {
                known.clear();
            }
            known.insert(hash, (now, until.0 / 1_000));
        }
        Ok(())
    }
}

/// Hash of a chain, leaf first.
pub(crate) fn hash_of<'a>(chain: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for der in chain {
        hash.update((der.len() as u64).to_be_bytes());
        hash.update(der);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rustls::pki_types::pem::PemObject as _;
    use topology::Moment;

    use super::*;
    use crate::ca;

    const NOW: Moment = Moment(1_796_000_000_000);

    #[test]
    fn a_chain_is_verified_once_in_its_life_and_again_when_the_clock_goes_back() {
        let der = |name: &str| {
            let root = ca::root(name, NOW).unwrap();
            CertificateDer::from_pem_slice(root.certificate.as_bytes()).unwrap()
        };
        let (one, other) = (der("a.example"), der("b.example"));
        let genuine = Genuine::default();
        let runs = Cell::new(0);
        let ask =
            |leaf: &CertificateDer<'_>, above: &[CertificateDer<'_>], at: u64, outcome: Result<(), rustls::Error>| {
                runs.set(0);
                let verify = || {
                    runs.set(1);
                    outcome
                };
                let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
                (genuine.or_verify((leaf, above), at, verify).is_ok(), runs.get())
            };
        let now = NOW.0 / 1_000;
        let bad = || Err(rustls::Error::General("no root".into()));
        assert_eq!(ask(&one, &[], now, bad()), (false, 1), "a failure is not remembered");
        assert_eq!(ask(&one, &[], now, Ok(())), (true, 1));
        assert_eq!(ask(&one, &[], now + 60, bad()), (true, 0));
        assert_eq!(ask(&one, &[], now - 60, bad()), (false, 1), "the clock went back");
        assert_eq!(ask(&other, &[], now, bad()), (false, 1), "another certificate");
        assert_eq!(
            ask(&one, std::slice::from_ref(&other), now, bad()),
            (false, 1),
            "another chain"
        );
        let end = end_of_life(&one).unwrap().0 / 1_000;
        assert_eq!(ask(&one, &[], end, bad()), (false, 1), "it has expired");
    }
}
