//! Certificates in PEM and DER, read and compared. No file and no connection is touched here.

use std::{sync::Arc, time::Duration};

use tokio_rustls::rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use topology::Moment;
use x509_cert::{Certificate, der::Decode as _};

use crate::{Peer, peer};

/// A certificate as people look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The SPIFFE id of a leaf, the name of an issuer or a root.
    pub name: String,
    /// The roles of an operator; else empty.
    pub roles: String,
    /// Beginning of the SHA-256 of the certificate, in hex.
    pub fingerprint: String,
    /// End of life.
    pub until: Moment,
    /// The certificate itself, in PEM.
    pub pem: String,
}

/// Every certificate of a text in PEM.
pub fn summaries(text: &str) -> Vec<Summary> {
    let read = CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok);
    read.filter_map(|der| {
        let certificate = Certificate::from_der(&der).ok()?;
        let (_, until) = peer::life(&certificate.tbs_certificate);
        let peer = Peer::of(&der).ok();
        let common_name = || {
            let subject = certificate.tbs_certificate.subject.to_string();
            subject.trim_start_matches("CN=").replace("\\,", ",")
        };
        Some(Summary {
            name: peer.as_ref().map_or_else(common_name, |peer| peer.id.to_string()),
            roles: peer.map(|peer| peer.roles()).unwrap_or_default(),
            fingerprint: fingerprint(&der),
            until,
            pem: pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec())),
        })
    })
    .collect()
}

/// The holder of a chain in PEM, if one of these roots leads to it; also after the end of the certificate.
pub fn verified(chain: &str, roots: &str, now: Moment) -> Option<Peer> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .ok()?;
    let (leaf, above) = chain.split_first()?;
    let peer = Peer::of(leaf).ok()?;
    let mut trusted = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        trusted.add(root.ok()?).ok()?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted.into(), provider)
        .build()
        .ok()?;
    let at = unix_time(Moment(now.0.clamp(peer.from.0, peer.until.0)));
    verifier.verify_client_cert(leaf, above, at).ok()?;
    Some(peer)
}

/// SHA-256 of the public key of the first certificate in PEM, in hex: the certificates of one key have it in common.
pub fn key_hash(pem: &str) -> Option<String> {
    use sha2::Digest as _;
    Some(hex::encode(sha2::Sha256::digest(public_key(pem)?)))
}

/// The public key of the first certificate in PEM.
pub(crate) fn public_key(certificate: &str) -> Option<Vec<u8>> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let certificate = Certificate::from_der(&der).ok()?.tbs_certificate;
    let key = certificate.subject_public_key_info.subject_public_key;
    Some(key.raw_bytes().to_vec())
}

/// The name of a root that people can compare: the beginning of its SHA-256, in hex.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(&sha2::Sha256::digest(der)[..8])
}

pub(crate) fn end_of_life(der: &[u8]) -> Option<Moment> {
    let certificate = Certificate::from_der(der).ok()?;
    Some(peer::life(&certificate.tbs_certificate).1)
}

/// A moment as rustls takes it.
pub(crate) fn unix_time(moment: Moment) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(moment.0))
}
