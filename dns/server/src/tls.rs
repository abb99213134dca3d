//! DNS over TLS (RFC 7858): the certificate, and handshakes.
//!
//! A new certificate takes the place of the old one while the name server runs. One that cannot be used never does.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::{net::TcpStream, sync::Semaphore, time::sleep};
use tokio_rustls::{
    LazyConfigAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert},
        sign::CertifiedKey,
    },
    server::TlsStream,
};

use crate::{files::Watched, texts};

/// The protocol inside of TLS (RFC 7858 §3.1, RFC 7301).
const ALPN: &[u8] = b"dot";
/// Handshakes at once. Each takes a signature, and datagrams are answered in between.
const HANDSHAKES_MAX: usize = 16;
/// Pause between two looks at the files.
const LOOKS_EVERY: Duration = Duration::from_secs(5);

/// DNS over TLS, as `[tls]` configures it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The addresses.
    pub listen: Vec<SocketAddr>,
    /// The certificate and those that signed it, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

/// The certificate in use and the settings of handshakes.
#[derive(Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    served: Arc<Served>,
    handshakes: Semaphore,
    settings: Settings,
}

/// The certificate in use; new handshakes take the newest.
#[derive(Debug)]
struct Served(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Tls {
    /// Reads the certificate and its key.
    pub fn load(settings: &Settings) -> anyhow::Result<Self> {
        let certified = certified(settings)?;
        let served = Arc::new(Served(ArcSwap::from_pointee(certified)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(served.clone());
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resolver that returns resumes with a ticket: nothing is signed, and nothing is stored meanwhile.
        config.ticketer = ring::Ticketer::new()?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            config: Arc::new(config),
            served,
            handshakes: Semaphore::new(HANDSHAKES_MAX),
            settings: settings.clone(),
        })
    }

    /// One handshake. The caller bounds its time, which includes the wait for a turn.
    pub(crate) async fn accept(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        // A client that has only begun its hello takes no turn: the turn is for the signature.
        let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        let _turn = self.handshakes.acquire().await;
        hello.into_stream(self.config.clone()).await
    }

    /// Looks at the files again and again, and takes a new certificate that can be used. Never returns.
    pub async fn keep_current(&self) {
        let mut watched = [&self.settings.certificate, &self.settings.key].map(|file| Watched::new(file));
        loop {
            sleep(LOOKS_EVERY).await;
            self.look(&mut watched);
        }
    }

    /// Looks at the files once.
    fn look(&self, watched: &mut [Watched; 2]) {
        // Both are looked at, so that a pair is judged once.
        let [certificate, key] = watched;
        let (certificate, key) = (certificate.has_changed(), key.has_changed());
        if !certificate && !key {
            return;
        }
        match certified(&self.settings) {
            Ok(certified) => {
                self.served.0.store(Arc::new(certified));
                tracing::info!(certificate = %self.settings.certificate.display(), "new certificate in use");
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "{}", texts::CERTIFICATE_REFUSED);
            }
        }
    }
}

fn certified(settings: &Settings) -> anyhow::Result<CertifiedKey> {
    let Settings { certificate, key, .. } = settings;
    let what = || texts::bad_certificate(certificate, key);
    daemon::secrets::refuse_readable_by_all(key)?;
    let read = |file: &PathBuf| std::fs::read(file).with_context(what);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .with_context(what)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).with_context(what)?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider()).with_context(what)?;
    Ok(certified)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn write_pair(folder: &Path) -> CertificateDer<'static> {
        use std::os::unix::fs::PermissionsExt as _;
        let made = rcgen::generate_simple_self_signed(["ns1.voice.meridian.test".to_owned()]).unwrap();
        std::fs::write(folder.join("dns.crt"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("dns.key"), made.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(folder.join("dns.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        made.cert.der().clone()
    }

    #[test]
    fn a_certificate_that_cannot_be_used_never_replaces_one_that_can() {
        let folder = tempfile::tempdir().unwrap();
        let first = write_pair(folder.path());
        let settings = Settings {
            listen: Vec::new(),
            certificate: folder.path().join("dns.crt"),
            key: folder.path().join("dns.key"),
        };
        let tls = Tls::load(&settings).unwrap();
        let mut watched = [&settings.certificate, &settings.key].map(|file| Watched::new(file));
        let served = |tls: &Tls| tls.served.0.load().cert.first().cloned();
        assert_eq!(served(&tls).as_ref(), Some(&first));
        std::fs::write(&settings.certificate, "no certificate").unwrap();
        tls.look(&mut watched);
        assert_eq!(served(&tls).as_ref(), Some(&first));
        // Half of a new pair fits nothing.
        std::fs::write(
            &settings.certificate,
            rcgen::generate_simple_self_signed(Vec::new()).unwrap().cert.pem(),
        )
        .unwrap();
        tls.look(&mut watched);
        assert_eq!(served(&tls).as_ref(), Some(&first));
        let second = write_pair(folder.path());
        tls.look(&mut watched);
        assert_eq!(served(&tls), Some(second));

        std::fs::write(&settings.key, "no key").unwrap();
        let error = format!("{:#}", Tls::load(&settings).unwrap_err());
        assert!(error.contains("dns.key cannot be used"), "{error}");
    }
}
