//! Checks an exported log with the signatures of control planes: that it is whole, and what they vouched for.

use identity::{Role, signature::Signature};
use planning::audit;
use topology::Moment;

use super::lines::SignedHead;

/// A head that a control plane vouched for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vouched {
    /// Number of the newest entry at that time.
    pub(super) number: u64,
    pub(super) at: Moment,
    /// Id of the control plane.
    pub(super) by: String,
    /// Serial number of its certificate.
    pub(super) serial: String,
}

/// A signed head that proves nothing, or proves that the log was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unproven {
    #[error("the head at entry {number}: {why}")]
    Signature { number: u64, why: String },
    #[error("the head at entry {number} is signed by {id}, which is no control plane")]
    NoControlPlane { number: u64, id: String },
    #[error(
        "entry {number} is not the one that {by} signed at {at:#} UTC: it, or an entry before it, was changed or removed since"
    )]
    Changed { number: u64, by: String, at: Moment },
    #[error(
        "{by} signed a head at entry {number} at {at:#} UTC, and this log ends with entry {last}: entries were cut off, or the log was \
         exported before the head was signed"
    )]
    CutOff {
        number: u64,
        last: u64,
        by: String,
        at: Moment,
    },
    #[error(
        "no control plane signed this log, so hashes alone speak for it; export it from a control plane with a certificate, or name a head \
         that one signed with --head FILE (`meridian audit head`)"
    )]
    Nothing,
}

/// The heads that hold, the newest last. `entries` are the bytes of a whole chain, oldest first, whose first number is `first`;
/// `roots` are the trusted ones in PEM. A head from before the first entry says nothing about this log.
pub(super) fn vouched(
    heads: &[SignedHead],
    (first, entries): (u64, &[String]),
    roots: &str,
) -> Result<Vec<Vouched>, Unproven> {
    let last = (first + entries.len() as u64).saturating_sub(1);
    let mut found = Vec::new();
    for head in heads {
        let (number, at) = (head.number, Moment(head.at_ms));
        let signature = Signature {
            certificate: head.certificate.clone(),
            bytes: head.signature(),
        };
        let statement = audit::head_to_sign(number, &head.hash, at);
        let by = signature
            .check(&statement, roots, at)
            .map_err(|error| Unproven::Signature {
                number,
                why: error.to_string(),
            })?;
        let id = by.id.to_string();
        if !matches!(by.id.role, Role::ControlPlane(_)) {
            return Err(Unproven::NoControlPlane { number, id });
        }
        if number < first {
            continue;
        }
        if number > last {
            return Err(Unproven::CutOff {
                number,
                last,
                by: id,
                at,
            });
        }
        let entry = usize::try_from(number - first)
            .ok()
            .and_then(|index| entries.get(index));
        if entry.map(|text| audit::hash(text.as_bytes())).as_ref() != Some(&head.hash) {
            return Err(Unproven::Changed { number, by: id, at });
        }
        found.push(Vouched {
            number,
            at,
            by: id,
            serial: by.serial,
        });
    }
    found.sort_by_key(|it| (it.number, it.at));
    match found.is_empty() {
        true => Err(Unproven::Nothing),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use identity::{
        PeerId,
        ca::{self, Authority, Leaf},
        files::{self, Files},
        signature,
    };

    use super::*;

    const NOW: Moment = Moment(1_800_000_000_000);

    struct Signer {
        folder: tempfile::TempDir,
        roots: String,
    }

    impl Signer {
        fn of(role: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = ca::root("z", NOW).unwrap();
            let leaf = Leaf::of(PeerId::new("z", role.parse().unwrap()).unwrap());
            let own = Files::in_folder(folder.path());
            files::write(&own.trust, &root.certificate, 0o644).unwrap();
            own.write(&Authority::load(&root).unwrap().issue(&leaf, NOW).unwrap())
                .unwrap();
            Self {
                folder,
                roots: root.certificate,
            }
        }

        fn head(&self, number: u64, entry: &str) -> SignedHead {
            let hash = audit::hash(entry.as_bytes());
            let statement = audit::head_to_sign(number, &hash, NOW);
            let signed = signature::sign(&Files::in_folder(self.folder.path()), &statement).unwrap();
            SignedHead::from(api::v1::SignedHead {
                number,
                hash,
                at_ms: NOW.0,
                certificate: signed.certificate,
                signature: signed.bytes.into(),
            })
        }
    }

    #[test]
    fn a_head_holds_for_its_entry_and_shows_every_change_before_it() {
        let signer = Signer::of("control-plane/cp-1");
        let entries = ["seven", "eight", "nine"].map(str::to_owned);
        let check = |heads: &[SignedHead], entries: &[String]| vouched(heads, (7, entries), &signer.roots);
        let (early, newest) = (signer.head(8, "eight"), signer.head(9, "nine"));
        let held = check(&[newest.clone(), early.clone()], &entries).unwrap();
        let numbers: Vec<u64> = held.iter().map(|it| it.number).collect();
        assert_eq!(numbers, [8, 9]);
        assert_eq!(held[1].by, "spiffe://z/control-plane/cp-1");

        let changed = ["seven", "eiGht", "nine"].map(str::to_owned);
        assert!(matches!(
            check(std::slice::from_ref(&early), &changed),
            Err(Unproven::Changed { number: 8, .. })
        ));
        assert!(matches!(
            check(std::slice::from_ref(&newest), &entries[..2]),
            Err(Unproven::CutOff { number: 9, last: 8, .. })
        ));
        // A head from before the log begins says nothing about it, and no head at all is no proof.
        assert_eq!(check(&[signer.head(3, "three")], &entries), Err(Unproven::Nothing));
        assert_eq!(check(&[], &entries), Err(Unproven::Nothing));
    }

    #[test]
    fn only_a_control_plane_under_a_trusted_root_vouches() {
        let (signer, edge, other) = (
            Signer::of("control-plane/cp-1"),
            Signer::of("edge/edge-dub"),
            Signer::of("control-plane/cp-1"),
        );
        let entries = ["one".to_owned()];
        let check = |head: SignedHead, roots: &str| vouched(&[head], (1, &entries), roots);
        assert!(matches!(
            check(edge.head(1, "one"), &edge.roots),
            Err(Unproven::NoControlPlane { .. })
        ));
        assert!(matches!(
            check(other.head(1, "one"), &signer.roots),
            Err(Unproven::Signature { .. })
        ));
        let mut moved = signer.head(1, "one");
        moved.at_ms += 1;
        assert!(check(moved, &signer.roots).is_err(), "the time is signed too");
        let mut nonsense = signer.head(1, "one");
        nonsense.signature = "zz".to_owned();
        assert!(check(nonsense, &signer.roots).is_err());
    }
}
