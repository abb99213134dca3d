//! The checks of a handshake: whether the chain of a peer is genuine, and whether the peer is the one that is wanted.

use std::{fmt, sync::Arc};

use tokio_rustls::rustls::{
    self, CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    time_provider::TimeProvider,
};
use topology::{Moment, RegionId};

use crate::{
    BadCertificate, Call, Issuing, Peer, PeerId, Role, authorise, certificate::unix_time, grace::verify,
    remembered::Genuine, texts,
};

/// The chain is genuine, and the peer is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPeer {
    #[error("{}", texts::peer_has_no_certificate())]
    NoCertificate,
    /// It was trusted when the handshake began.
    #[error("{}", texts::peer_lost_its_root())]
    NoRoot,
    #[error(transparent)]
    Certificate(#[from] BadCertificate),
    #[error("{}", texts::peer_of_other_zone(.0, .1))]
    Zone(PeerId, String),
    #[error("{}", texts::not_a_control_plane(.0))]
    NoControlPlane(PeerId),
    #[error("{}", texts::peer_expired(*.0))]
    Expired(Moment),
}

/// The roots, and the zone whose ids mean something.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) zone: String,
    pub(crate) clock: Clock,
}

/// The clock of this process, as rustls takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(pub(crate) fn() -> Moment);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time((self.0)()))
    }
}

/// The process that a call is meant for.
#[derive(Debug)]
pub(crate) enum Wanted {
    ControlPlane,
    StackOf(RegionId),
}

/// Believes servers of the zone by their id instead of by host name.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) trust: Trust,
    pub(crate) wanted: Wanted,
    /// Whether certificates are issued, where peers may be believed that have expired: at stacks.
    pub(crate) issuing: Option<Issuing>,
    /// Chains that are genuine, and whose holder is the wanted one.
    pub(crate) genuine: Genuine,
}

impl Servers {
    /// Checks that a certificate, which is genuine, is that of the wanted process.
    fn is_wanted(&self, der: &[u8]) -> Result<(), rustls::Error> {
        match &self.wanted {
            Wanted::ControlPlane => {
                let general = |error: &dyn fmt::Display| rustls::Error::General(error.to_string());
                let id = Peer::of(der).map_err(|error| general(&error))?.id;
                let wrong = match id.role {
                    _ if id.zone != self.trust.zone => BadPeer::Zone(id, self.trust.zone.clone()),
                    Role::ControlPlane(_) => return Ok(()),
                    _ => BadPeer::NoControlPlane(id),
                };
                Err(general(&wrong))
            }
            Wanted::StackOf(region) => {
                let region = region.as_str();
                is_allowed(der, &self.trust.zone, Call::Serve { region })
            }
        }
    }
}

/// Checks that the holder of a certificate, which is genuine, may do this.
fn is_allowed(der: &[u8], zone: &str, call: Call<'_>) -> Result<(), rustls::Error> {
    let other = |error: Arc<dyn std::error::Error + Send + Sync>| {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error)))
    };
    let peer = Peer::of(der).map_err(|error| other(Arc::new(BadPeer::from(error))))?;
    if peer.id.zone != zone {
        return Err(other(Arc::new(BadPeer::Zone(peer.id, zone.to_owned()))));
    }
    authorise(&peer, call).map_err(|denied| other(Arc::new(denied)))
}

/// Believes callers whose chain leads to a root. At a stack, only those that may call stacks.
#[derive(Debug)]
pub(crate) struct Callers {
    chains: Arc<dyn ClientCertVerifier>,
    /// At a stack, the zone whose members may call it, and whether certificates are issued.
    zone_of_stack: Option<(String, Issuing)>,
    /// Chains that are genuine, and whose holder may call.
    believed: Genuine,
}

impl Callers {
    /// Believes the holder of every chain that `chains` finds genuine.
    pub(crate) fn genuine(chains: Arc<dyn ClientCertVerifier>) -> Arc<dyn ClientCertVerifier> {
        Self::over(chains, None)
    }

    /// The same, and looks at the peer during the handshake, so that the caller hears why: afterwards there is only the end of the
    /// connection.
    pub(crate) fn of_stack(
        chains: Arc<dyn ClientCertVerifier>,
        zone: String,
        issuing: Issuing,
    ) -> Arc<dyn ClientCertVerifier> {
        Self::over(chains, Some((zone, issuing)))
    }

    fn over(
        chains: Arc<dyn ClientCertVerifier>,
        zone_of_stack: Option<(String, Issuing)>,
    ) -> Arc<dyn ClientCertVerifier> {
        Arc::new(Self {
            chains,
            zone_of_stack,
            believed: Genuine::default(),
        })
    }
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = (end_entity, intermediates);
        let issuing = self.zone_of_stack.as_ref().map(|(_, issuing)| *issuing);
        verify(chain, issuing, now, |at| {
            self.believed.or_verify(chain, at, || {
                self.chains.verify_client_cert(end_entity, intermediates, at)?;
                match &self.zone_of_stack {
                    Some((zone, _)) => is_allowed(end_entity, zone, Call::CallStack),
                    None => Ok(()),
                }
            })
        })?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust { roots, provider, .. } = &self.trust;
        let algorithms = provider.signature_verification_algorithms.all;
        let chain = (end_entity, intermediates);
        verify(chain, self.issuing, now, |at| {
            self.genuine.or_verify(chain, at, || {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, at, algorithms)?;
                self.is_wanted(end_entity)
            })
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::InvalidCertificate(CertificateError::BadSignature))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.trust.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.trust.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
