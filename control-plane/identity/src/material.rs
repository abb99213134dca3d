//! The PEM of an identity's files, as rustls takes it.

use std::path::Path;

use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use topology::Moment;

use crate::{
    Rejected,
    certificate::end_of_life,
    files::{Files, Pem},
};

/// The certificates of a file; never none.
pub(crate) fn certificates(pem: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Rejected> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.ok().filter(|read| !read.is_empty());
    read.ok_or_else(|| not_pem(path, "certificate"))
}

pub(crate) fn private_key(pem: &Pem, files: &Files) -> Result<PrivateKeyDer<'static>, Rejected> {
    PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(|_| not_pem(&files.key, "private key"))
}

/// The end of life of a leaf, of the issuers above it, and of roots: the soonest of each kind.
pub(crate) fn ends_of_life(chain: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) -> Vec<(&'static str, Moment)> {
    let (leaf, issuers) = chain.split_at(chain.len().min(1));
    let soonest = |(kind, certificates): (&'static str, &[CertificateDer<'_>])| {
        let ends = certificates.iter().filter_map(|it| end_of_life(it)).min()?;
        Some((kind, ends))
    };
    let kinds = [("own", leaf), ("issuer", issuers), ("root", roots)];
    kinds.into_iter().filter_map(soonest).collect()
}

/// Adds a certificate of the trust file to the roots.
pub(crate) fn add_root(
    roots: &mut RootCertStore,
    root: CertificateDer<'static>,
    files: &Files,
) -> Result<(), Rejected> {
    roots.add(root).map_err(|_| no_root(files))
}

pub(crate) fn no_root(files: &Files) -> Rejected {
    not_pem(&files.trust, "root certificate")
}

/// The certificate and the key do not fit each other.
pub(crate) fn unfit(files: &Files, why: &dyn std::fmt::Display) -> Rejected {
    Rejected::Key {
        key: files.key.display().to_string(),
        certificate: files.certificate.display().to_string(),
        why: why.to_string(),
    }
}

fn not_pem(path: &Path, what: &'static str) -> Rejected {
    Rejected::NotPem {
        path: path.display().to_string(),
        what,
    }
}
