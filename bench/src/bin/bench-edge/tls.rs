//! TLS for the bench: a certificate of its own, which all proxies show and all devices trust.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use bench::texts;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        client::Resumption,
        crypto::ring,
        pki_types::{CertificateDer, ServerName},
    },
};

/// The name in the certificate.
const NAME: &str = "voice.example";

/// A certificate in all forms that the proxies and devices read.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    /// PEM.
    pub(crate) chain: PathBuf,
    /// PEM.
    pub(crate) key: PathBuf,
    /// Both in one file, for HAProxy.
    pub(crate) both: PathBuf,
    /// The certificate that devices trust, in DER.
    pub(crate) trusted: PathBuf,
}

impl Certificate {
    /// Makes one and writes it to a folder.
    pub(crate) fn make(folder: &Path) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).context("cannot make a certificate")?;
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).with_context(|| texts::cannot_write(&path))?;
            // The edge takes no key that others can read.
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
            anyhow::Ok(path)
        };
        Ok(Self {
            chain: write("cert.pem", chain.as_bytes())?,
            key: write("key.pem", key.as_bytes())?,
            both: write("both.pem", (chain + &key).as_bytes())?,
            trusted: write("cert.der", made.cert.der())?,
        })
    }
}

/// The TLS client of devices. It resumes no session, so each has a full handshake.
pub(crate) fn connector(trusted: &Path) -> anyhow::Result<(TlsConnector, ServerName<'static>)> {
    let certificate = std::fs::read(trusted).with_context(|| format!("cannot read {}", trusted.display()))?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok((TlsConnector::from(Arc::new(config)), NAME.try_into()?))
}
