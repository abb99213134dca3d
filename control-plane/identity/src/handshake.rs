//! Mutual TLS: both ends prove their id. TLS 1.3 only, with ring.

use std::sync::Arc;

use tokio::{io::AsyncBufReadExt as _, net::TcpStream};
use tokio_rustls::{
    Accept, StartHandshake, TlsAcceptor, TlsConnector,
    rustls::{
        self, CertificateError, OtherError,
        pki_types::{CertificateDer, ServerName},
    },
    server,
};

use crate::{Connection, Denied, Identity, PeerId, shown::Shown, texts, tls_socket::TlsSocket, verifier::BadPeer};

/// No connection to the process at the other end.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP, or the peer left.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The peer is not who it should be.
    #[error("{0}")]
    Peer(String),
    /// The peer does not accept this process's certificate.
    #[error("{}", texts::refused_by_peer(own, why))]
    Refused {
        /// The id of this process.
        own: PeerId,
        /// The alert.
        why: String,
    },
}

impl Identity {
    /// Accepts a peer that proves its id.
    ///
    /// # Errors
    ///
    /// The handshake failed: the peer left, has no certificate, or one that is not trusted or names nobody. If there is still a
    /// connection, the alert that says so is on its way over it.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
    ) -> Result<(server::TlsStream<TcpStream>, Arc<Shown>), (std::io::Error, Option<TcpStream>)> {
        let config = self.state().server.clone();
        self.accepted(TlsAcceptor::from(config).accept(tcp)).await
    }

    /// Accepts an edge, or another prober, at a stack.
    ///
    /// # Errors
    ///
    /// As [`Self::accept`].
    pub(crate) async fn accept_at_stack(
        &self,
        tcp: TcpStream,
    ) -> Result<(TlsSocket, Arc<Shown>), (std::io::Error, Option<TcpStream>)> {
        let config = self.state().server.clone();
        let tls = TlsSocket::accept(config, tcp).await;
        let tls = tls.map_err(|(error, tcp)| (error, Some(tcp)))?;
        // The handshake verified the chain, or an earlier one did whose session is resumed.
        let shown = self.linked(tls.peer_certificates());
        let shown = shown.map_err(|error| (std::io::Error::other(error), None))?;
        Ok((tls, shown))
    }

    /// Accepts a peer whose first words were read.
    pub(crate) async fn accept_begun(
        &self,
        begun: StartHandshake<TcpStream>,
    ) -> Result<(server::TlsStream<TcpStream>, Arc<Shown>), (std::io::Error, Option<TcpStream>)> {
        let config = self.state().server.clone();
        self.accepted(begun.into_stream(config)).await
    }

    async fn accepted(
        &self,
        accepting: Accept<TcpStream>,
    ) -> Result<(server::TlsStream<TcpStream>, Arc<Shown>), (std::io::Error, Option<TcpStream>)> {
        let accepting = accepting.into_fallible();
        let stream = accepting.await.map_err(|(error, tcp)| (error, Some(tcp)))?;
        let chain = stream.get_ref().1.peer_certificates();
        let shown = self.verified(chain.unwrap_or_default());
        let shown = shown.map_err(|error| (std::io::Error::other(error), None))?;
        Ok((stream, shown))
    }

    /// Opens TLS to a peer that must be a control plane of this zone. Returns when the peer has accepted this process.
    ///
    /// # Errors
    ///
    /// One end does not believe the other.
    pub async fn connect(self: &Arc<Self>, tcp: TcpStream) -> Result<Connection, ConnectError> {
        let source = tcp.peer_addr()?;
        let (config, own) = {
            let state = self.state();
            (state.client.clone(), state.own.id.clone())
        };
        // The name is not sent: processes have ids, and addresses change.
        let name = ServerName::try_from("control-plane").map_err(|error| ConnectError::Peer(error.to_string()))?;
        let connected = TlsConnector::from(config).connect(name, tcp).await;
        let mut stream = connected.map_err(|error| match tls_error(&error) {
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::General(_)) => {
                ConnectError::Peer(error.to_string())
            }
            Some(rustls::Error::AlertReceived(alert)) => ConnectError::Refused {
                own: own.clone(),
                why: format!("{alert:?}"),
            },
            _ => ConnectError::Io(error),
        })?;
        // In TLS 1.3 the client is done before the server has looked at its certificate (RFC 8446 §4.4.2.4). The server's
        // first bytes, its HTTP/2 settings, say that it is content.
        match stream.fill_buf().await {
            Ok([]) => Err(ConnectError::Io(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {
                let chain: &[CertificateDer<'static>] = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let shown = self
                    .verified(chain)
                    .map_err(|error| ConnectError::Peer(error.to_string()))?;
                Ok(Connection::watched(self.clone(), stream.into(), shown, source, || {}))
            }
            Err(error) => Err(match tls_error(&error) {
                Some(rustls::Error::AlertReceived(alert)) => ConnectError::Refused {
                    own,
                    why: format!("{alert:?}"),
                },
                _ => ConnectError::Io(error),
            }),
        }
    }
}

/// The reason of a failed handshake, as a label: few values, for metrics.
pub(crate) fn reason(error: &std::io::Error) -> &'static str {
    let inner = error.get_ref();
    if let Some(bad) = inner.and_then(|inner| inner.downcast_ref::<BadPeer>()) {
        return match bad {
            BadPeer::NoCertificate => "no-certificate",
            BadPeer::NoRoot => "unknown-issuer",
            BadPeer::Zone(..) => "other-zone",
            BadPeer::Expired(_) => "expired",
            BadPeer::Certificate(_) | BadPeer::NoControlPlane(_) => "bad-id",
        };
    }
    match tls_error(error) {
        Some(rustls::Error::NoCertificatesPresented) => "no-certificate",
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not-yet-valid",
            CertificateError::UnknownIssuer => "unknown-issuer",
            CertificateError::Other(OtherError(why)) if why.is::<Denied>() => "not-allowed",
            CertificateError::Other(OtherError(why)) => match why.downcast_ref() {
                Some(BadPeer::Zone(..)) => "other-zone",
                _ => "bad-id",
            },
            _ => "bad-certificate",
        },
        Some(rustls::Error::AlertReceived(_)) => "refused-by-peer",
        Some(_) => "not-tls",
        None => "gone",
    }
}

fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
