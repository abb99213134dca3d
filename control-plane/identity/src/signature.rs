//! A statement that a process vouches for: signed with the key of its certificate, and checked with the roots that people trust, also
//! after the certificate's end.

use std::io;

use tokio_rustls::rustls::{
    SignatureScheme,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
};
use topology::Moment;

use crate::{
    Peer,
    certificate::{public_key, verified},
    files::{FileError, Files},
    texts,
};

/// One scheme for each kind of key that TLS 1.3 knows (RFC 8446 §4.2.3).
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// A signature with the certificate whose key made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The certificate, then the issuers above it, in PEM.
    pub certificate: String,
    /// The signature itself.
    pub bytes: Vec<u8>,
}

/// Nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum Unsigned {
    /// The files of the identity.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key.
    #[error("{}", texts::key_signs_nothing(.0))]
    Key(String),
    /// The files are being exchanged.
    #[error("{}", texts::files_in_exchange())]
    Unfit,
}

/// A signature proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// Its certificate.
    #[error("{}", texts::signer_untrusted())]
    Untrusted,
    /// The time of the statement.
    #[error("{}", texts::signed_out_of_date(id, *at, *from, *until))]
    OutOfDate {
        /// The signer.
        id: String,
        /// The time that the statement names.
        at: Moment,
        /// Beginning of the certificate's life.
        from: Moment,
        /// End of the certificate's life.
        until: Moment,
    },
    /// The signature itself.
    #[error("{}", texts::forged(.0))]
    Forged(String),
}

/// Signs a statement with the key in these files. They are read each time, as certificates are exchanged while a process runs.
///
/// # Errors
///
/// The files cannot be read, or do not fit each other.
pub fn sign(files: &Files, statement: &[u8]) -> Result<Signature, Unsigned> {
    let pem = files.read()?;
    let refused = |error: &dyn std::fmt::Display| Unsigned::Key(error.to_string());
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(|error| refused(&error))?;
    let key = ring::sign::any_supported_type(&key).map_err(|error| refused(&error))?;
    let signer = key
        .choose_scheme(&SCHEMES)
        .ok_or_else(|| refused(&io::Error::other("a key of an unknown kind")))?;
    let bytes = signer.sign(statement).map_err(|error| refused(&error))?;
    let signature = Signature {
        certificate: pem.certificate,
        bytes,
    };
    match signature.is_of(statement) {
        true => Ok(signature),
        false => Err(Unsigned::Unfit),
    }
}

impl Signature {
    /// The process that vouches for a statement. `at` is the time that the statement names: its certificate must have been valid then.
    ///
    /// # Errors
    ///
    /// The certificate leads to none of the roots (in PEM) or was not valid, or the signature is not its.
    pub fn check(&self, statement: &[u8], roots: &str, at: Moment) -> Result<Peer, BadSignature> {
        let peer = verified(&self.certificate, roots, at).ok_or(BadSignature::Untrusted)?;
        if at < peer.from || at > peer.until {
            return Err(BadSignature::OutOfDate {
                id: peer.id.to_string(),
                at,
                from: peer.from,
                until: peer.until,
            });
        }
        match self.is_of(statement) {
            true => Ok(peer),
            false => Err(BadSignature::Forged(peer.id.to_string())),
        }
    }

    /// True if the key of the first certificate made this signature.
    pub(crate) fn is_of(&self, statement: &[u8]) -> bool {
        let Some(key) = public_key(&self.certificate) else {
            return false;
        };
        let known = ring::default_provider().signature_verification_algorithms;
        let allowed = known.mapping.iter().filter(|(scheme, _)| SCHEMES.contains(scheme));
        let mut algorithms = allowed.flat_map(|(_, algorithms)| algorithms.iter());
        algorithms.any(|it| it.verify_signature(&key, statement, &self.bytes).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        PeerId,
        ca::{self, Authority, Leaf},
        files,
    };

    const NOW: Moment = Moment(1_800_000_000_000);

    #[test]
    fn only_its_own_statement_under_a_trusted_root_is_believed_also_later() {
        let folder = tempfile::tempdir().unwrap();
        let root = ca::root("z", NOW).unwrap();
        let issuer = Authority::load(&Authority::load(&root).unwrap().issuer("z", NOW).unwrap()).unwrap();
        let leaf = Leaf::of(PeerId::new("z", "control-plane/cp-1".parse().unwrap()).unwrap());
        let own = Files::in_folder(folder.path());
        files::write(&own.trust, &root.certificate, 0o644).unwrap();
        own.write(&issuer.issue(&leaf, NOW).unwrap()).unwrap();

        let signature = sign(&own, b"head 7").unwrap();
        let by = signature.check(b"head 7", &root.certificate, NOW).unwrap();
        assert_eq!(by.id.role.to_string(), "control-plane/cp-1");
        assert!(matches!(
            signature.check(b"head 8", &root.certificate, NOW),
            Err(BadSignature::Forged(_))
        ));
        let other = ca::root("z", NOW).unwrap().certificate;
        assert_eq!(signature.check(b"head 7", &other, NOW), Err(BadSignature::Untrusted));
        // The key of an expired certificate signs nothing for today.
        let later = NOW + ca::NODE_LIFE + Duration::from_secs(1);
        assert!(matches!(
            signature.check(b"head 7", &root.certificate, later),
            Err(BadSignature::OutOfDate { .. })
        ));
        let mut forged = signature;
        forged.bytes[10] ^= 1;
        assert!(forged.check(b"head 7", &root.certificate, NOW).is_err());
    }

    #[test]
    fn a_key_that_does_not_fit_its_certificate_signs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = ca::root("z", NOW).unwrap();
        let issuer = Authority::load(&root).unwrap();
        let leaf = Leaf::of(PeerId::new("z", "control-plane/cp-1".parse().unwrap()).unwrap());
        let own = Files::in_folder(folder.path());
        files::write(&own.trust, &root.certificate, 0o644).unwrap();
        own.write(&issuer.issue(&leaf, NOW).unwrap()).unwrap();
        let other = issuer.issue(&leaf, NOW).unwrap();
        files::write(&own.key, &other.key, 0o600).unwrap();
        assert!(matches!(sign(&own, b"head 7"), Err(Unsigned::Unfit)));
    }
}
