//! TLS to a service that is none of our processes, such as etcd. It proves its host name or address, as servers on the Internet do, and
//! this process shows a certificate that the service knows.
//!
//! The files are read for each connection, so that certificates are exchanged while the process runs.

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName, version::TLS13},
};
use topology::Moment;

use crate::{
    Rejected, Speaks,
    certificate::end_of_life,
    files::{Files, Pem},
    material::{add_root, certificates, ends_of_life, private_key, unfit},
    texts,
};

/// Opens connections to one service.
pub struct Service {
    files: Files,
    /// The newest files that were good, and what they amount to.
    good: Mutex<(Pem, Arc<ClientConfig>)>,
    /// The end of the certificate that each server, by host and port, showed last.
    shown: Mutex<BTreeMap<(String, u16), Moment>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// One cannot be read, or they do not fit each other.
    pub fn load(files: Files) -> Result<Self, Rejected> {
        let pem = files.read()?;
        let config = config(&files, &pem)?;
        Ok(Self {
            files,
            good: Mutex::new((pem, config)),
            shown: Mutex::default(),
        })
    }

    /// Opens TLS to the service at this host, a name or an address.
    ///
    /// # Errors
    ///
    /// One end does not believe the other, or the connection broke.
    pub async fn connect(&self, host: &str, tcp: TcpStream, speaks: Speaks) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let port = tcp.peer_addr()?.port();
        let connector = TlsConnector::from(self.newest());
        let connecting = connector.with_alpn(vec![speaks.alpn().to_vec()]).connect(name, tcp);
        let stream = connecting.await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        if let Some(ends) = chain.iter().filter_map(|it| end_of_life(it)).min() {
            self.shown.lock().insert((host.to_owned(), port), ends);
        }
        Ok(stream)
    }

    /// The end of life of the certificate that this process shows, of the issuers above it, of every root, and of the certificates that the
    /// service's members showed last: the soonest of each kind. Reads the files.
    pub fn expiry(&self) -> Vec<(&'static str, Moment)> {
        self.newest();
        let pem = self.good.lock().0.clone();
        let chain = certificates(&pem.certificate, &self.files.certificate).unwrap_or_default();
        let roots = certificates(&pem.trust, &self.files.trust).unwrap_or_default();
        let mut ends = ends_of_life(&chain, &roots);
        ends.extend(self.shown.lock().values().min().map(|ends| ("member", *ends)));
        ends
    }

    /// The configuration that the files amount to. Files that are no good never replace good ones.
    fn newest(&self) -> Arc<ClientConfig> {
        let read = self.files.read();
        let mut good = self.good.lock();
        let judged = match &read {
            Ok(pem) if *pem == good.0 => return good.1.clone(),
            Ok(pem) => config(&self.files, pem),
            Err(_) => Ok(good.1.clone()),
        };
        match (read, judged) {
            (Ok(pem), Ok(config)) => *good = (pem, config),
            (Ok(_), Err(error)) => {
                tracing::error!(certificate = %self.files.certificate.display(), %error, "{}", texts::NEW_FILES_REFUSED);
            }
            (Err(error), _) => {
                tracing::error!(%error, "{}", texts::NEW_FILES_REFUSED);
            }
        }
        good.1.clone()
    }
}

fn config(files: &Files, pem: &Pem) -> Result<Arc<ClientConfig>, Rejected> {
    let chain = certificates(&pem.certificate, &files.certificate)?;
    let mut roots = RootCertStore::empty();
    for root in certificates(&pem.trust, &files.trust)? {
        add_root(&mut roots, root, files)?;
    }
    let key = private_key(pem, files)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = builder
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unfit(files, &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| unfit(files, &error))?;
    Ok(Arc::new(config))
}
