//! TLS towards devices: one certificate for all names, exchanged while the edge runs.
//!
//! A new certificate that is not valid never replaces one that is: the old one stays, and the log and a metric report it.
//!
//! Why it is so: docs/decisions/07-tls-ends-in-rustls.md.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::{
    LazyConfigAcceptor,
    rustls::{
        HandshakeKind, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert},
        sign::CertifiedKey,
    },
    server::TlsStream,
};
use topology::Moment;
use x509_cert::der::Decode as _;

use crate::{config, metrics::Metrics, texts};

/// First byte of a TLS connection: a record that carries a handshake (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// The protocols inside of TLS, the preferred one first (RFC 7301).
const ALPN: [&[u8]; 2] = [HTTP2, b"http/1.1"];
/// HTTP/2 in ALPN.
const HTTP2: &[u8] = b"h2";

/// The edge warns of a certificate that expires sooner, so that an operator notices before devices do.
const EXPIRES_SOON: Duration = Duration::from_secs(7 * 86_400);

pub struct Tls {
    config: Arc<ServerConfig>,
    served: Arc<Served>,
    /// A reconnect storm is hundreds of signatures a second; the edge serves devices with a session in between.
    handshakes: Semaphore,
    files: Files,
    /// The content of the files at the last look, good or bad, so that each change is judged and logged once;
    /// `None` when they could not be read.
    looked_at: Mutex<Option<Pem>>,
    metrics: Metrics,
}

/// The reason for which a device has no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The device left before its first byte.
    #[error("the peer closed the connection")]
    Gone,
    /// The device speaks another protocol. The edge can still answer it in plain text.
    #[error("the peer does not speak TLS")]
    NotTls(TcpStream),
    /// The handshake failed; rustls has sent the alert.
    #[error("handshake: {0}")]
    Failed(#[source] std::io::Error),
}

/// The result of a look at the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The files did not change.
    Unchanged,
    /// New connections get the new certificate.
    Taken,
    /// The new certificate is not valid; the old one stays.
    Refused,
}

#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Clone, PartialEq, Eq)]
struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
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
    /// Reads the certificate; `None` when no address speaks TLS. Paths are relative to `folder`.
    pub fn load(config: &config::Tls, folder: &Path, metrics: Metrics) -> anyhow::Result<Option<Self>> {
        let (Some(certificate), Some(key), false) = (&config.certificate, &config.key, config.listen.is_empty()) else {
            return Ok(None);
        };
        let files = Files {
            certificate: folder.join(certificate),
            key: folder.join(key),
        };
        let pem = files.read()?;
        let (certified, expires) = certified(&pem).with_context(|| files.to_string())?;
        let now = daemon::clock::now();
        if expires <= now {
            // At start the edge has no better certificate, and its own clock may be wrong.
            tracing::error!(certificate = %files.certificate.display(), expires = format!("{expires:#}"), "{}", texts::CERTIFICATE_EXPIRED);
        }
        say_when(&metrics, &files, expires, now);
        let served = Arc::new(Served(ArcSwap::from_pointee(certified)));
        let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(served.clone());
        tls.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        // A device that returns resumes with a ticket: the edge signs nothing, and stores nothing meanwhile.
        tls.ticketer = ring::Ticketer::new()?;
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Some(Self {
            config: Arc::new(tls),
            served,
            handshakes: Semaphore::new(config.handshakes_max),
            files,
            looked_at: Mutex::new(Some(pem)),
            metrics,
        }))
    }

    /// One handshake. The caller bounds its time, which includes the wait for a slot.
    pub async fn accept(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, HandshakeError> {
        let mut first = [0];
        // A silent device takes no slot, and one that does not speak TLS gets an answer that it can read.
        match tcp.peek(&mut first).await {
            Ok(1) if first[0] == HANDSHAKE_RECORD => {}
            Ok(1) => return Err(HandshakeError::NotTls(tcp)),
            Ok(_) | Err(_) => return Err(HandshakeError::Gone),
        }
        // A device that has only begun its hello takes none either: the slot is for the costly part, the signature.
        let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp);
        let hello = hello.await.map_err(HandshakeError::Failed)?;
        let _place = self.handshakes.acquire().await;
        let stream = hello.into_stream(self.config.clone()).await;
        let stream = stream.map_err(HandshakeError::Failed)?;
        let kind = stream.get_ref().1.handshake_kind();
        let is_resumed = kind == Some(HandshakeKind::Resumed);
        self.metrics.handshake(if is_resumed { "resumed" } else { "full" });
        Ok(stream)
    }

    /// Looks at the files on SIGHUP and every `period`, and takes a new valid certificate, until the future is dropped.
    pub async fn keep_current(&self, period: Duration, mut hangup: Signal) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = hangup.recv() => tracing::info!("SIGHUP: looking at the certificate"),
                _ = ticks.tick() => {}
            }
            self.reload(daemon::clock::now());
        }
    }

    /// Looks at the files once.
    pub fn reload(&self, now: Moment) -> Reload {
        let read = self.files.read();
        let pem = read.as_ref().ok().cloned();
        {
            let mut looked_at = self.looked_at.lock();
            if *looked_at == pem {
                return Reload::Unchanged;
            }
            *looked_at = pem;
        }
        let taken = read.and_then(|pem| {
            let (certified, expires) = certified(&pem)?;
            ensure!(expires > now, "it expired at {expires}");
            Ok((certified, expires))
        });
        match taken {
            Ok((certified, expires)) => {
                self.served.0.store(Arc::new(certified));
                self.metrics.certificate_reload("taken");
                tracing::info!(certificate = %self.files.certificate.display(), expires = format!("{expires:#}"), "new certificate in use");
                say_when(&self.metrics, &self.files, expires, now);
                Reload::Taken
            }
            Err(error) => {
                self.metrics.certificate_reload("refused");
                let certificate = self.files.certificate.display();
                tracing::error!(%certificate, error = format!("{error:#}"), "{}", texts::CERTIFICATE_REFUSED);
                Reload::Refused
            }
        }
    }
}

/// Whether both sides agreed on HTTP/2.
pub fn is_http2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP2)
}

/// The signal SIGHUP, which makes an edge look at its certificate. From this call on it does not end the process.
pub fn hangup() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("cannot watch SIGHUP")
}

impl Files {
    fn read(&self) -> anyhow::Result<Pem> {
        daemon::secrets::refuse_readable_by_all(&self.key)?;
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Pem {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
        })
    }
}

impl std::fmt::Display for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "certificate {} with key {}",
            self.certificate.display(),
            self.key.display()
        )
    }
}

/// A certificate that fits its key, and its expiry.
fn certified(pem: &Pem) -> anyhow::Result<(CertifiedKey, Moment)> {
    let chain = CertificateDer::pem_slice_iter(&pem.certificate)
        .collect::<Result<Vec<_>, _>>()
        .context("the certificate is not PEM")?;
    let leaf = chain.first().context("the certificate file holds no certificate")?;
    let expires = x509_cert::Certificate::from_der(leaf)
        .context("the certificate is not X.509")?
        .tbs_certificate
        .validity
        .not_after
        .to_unix_duration();
    let expires = Moment(u64::try_from(expires.as_millis()).unwrap_or(u64::MAX));
    // The key itself never shows in an error.
    let key = PrivateKeyDer::from_pem_slice(&pem.key)
        .ok()
        .context("the key file holds no private key in PEM")?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())
        .context("the key is not the certificate's, or of a kind that is not supported")?;
    Ok((certified, expires))
}

fn say_when(metrics: &Metrics, files: &Files, expires: Moment, now: Moment) {
    metrics.certificate_expires(expires);
    if expires > now && expires.since(now) < EXPIRES_SOON {
        tracing::warn!(certificate = %files.certificate.display(), expires = format!("{expires:#}"), "{}", texts::CERTIFICATE_EXPIRES);
    }
}
