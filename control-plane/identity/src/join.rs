//! The way in for those who have no certificate yet: a token says what they may become, and whom they may ask.
//!
//! A new process proves nothing in the handshake, so it gets a connection of its own kind (by ALPN, RFC 7301) over which it can do nothing
//! but show its token. It knows the control plane by the hash of the root in the token: no other machine gets the token.
//!
//! Why it is so: docs/decisions/27-a-token-lets-one-process-in.md.

use std::{fmt, str::FromStr, sync::Arc};

use sha2::{Digest as _, Sha256};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{
    TlsConnector, client,
    rustls::{
        self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
            verify_server_cert_signed_by_trust_anchor,
        },
        crypto::{CryptoProvider, ring, verify_tls13_signature},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
        server::{ClientHello, ParsedCertificate},
        version::TLS13,
    },
};

use crate::{Identity, Peer, Role, certificate, files::Pem, texts};

/// Length of a secret.
pub const SECRET_BYTES: usize = 32;
/// The protocol that a process without a certificate offers, and no other one.
const PROTOCOL: &[u8] = b"meridian-join/1";
/// Every token begins with one of these, so that programs which look for secrets in files and logs find one.
const PREFIX: &str = "mrd_join";
const PREFIX_OF_OPERATORS: &str = "mrd_operator";

/// The root that control planes have to show, by its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootHash([u8; 32]);

impl RootHash {
    fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// The only root in a file; `None` if the file (in PEM) has none or several.
    pub fn of_only(roots: &str) -> Option<Self> {
        let [root] = &certificate::summaries(roots)[..] else {
            return None;
        };
        let der = CertificateDer::from_pem_slice(root.pem.as_bytes()).ok()?;
        Some(Self::of(&der))
    }

    /// This root among others in PEM.
    pub fn find_in(self, roots: &str) -> Option<String> {
        let mut all = certificate::summaries(roots).into_iter();
        let is_it = |pem: &str| {
            let der = CertificateDer::from_pem_slice(pem.as_bytes());
            der.is_ok_and(|der| Self::of(&der) == self)
        };
        all.find(|seen| is_it(&seen.pem)).map(|seen| seen.pem)
    }
}

/// The right to get a certificate: the first one of one process, once; or one of an operator, until the token ends.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// 256 random bits: no guessing, and so no slow hash.
    secret: [u8; SECRET_BYTES],
    /// The root under which the control planes are.
    pub root: RootHash,
    /// The process or operator that it is for. The control plane knows too: a token that somebody changed is worth nothing.
    pub role: Role,
}

/// The text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::no_token())]
pub struct BadToken;

/// The hash of a secret: all that is kept of it.
pub fn hash(secret: &[u8]) -> String {
    hex::encode(Sha256::digest(secret))
}

impl Token {
    /// A new token for a process, to be shown to the control planes under the root of this identity; `None` if its own certificate
    /// rests on none of its roots.
    pub fn new(role: Role, own: &Identity) -> Option<Self> {
        Some(Self {
            secret: rand::random(),
            root: RootHash::of(&own_root(own, &own.taken())?),
            role,
        })
    }

    /// The same, for control planes under the only root in a file; `None` if the file (in PEM) has none or several.
    pub fn under(role: Role, roots: &str) -> Option<Self> {
        Some(Self {
            secret: rand::random(),
            root: RootHash::of_only(roots)?,
            role,
        })
    }

    fn prefix(&self) -> &'static str {
        match self.role {
            Role::Operator(_) => PREFIX_OF_OPERATORS,
            _ => PREFIX,
        }
    }

    /// The secret, as it is shown to a control plane.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// The hash of its secret.
    pub fn hash(&self) -> String {
        hash(&self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("secret", &"[secret]")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secret, root) = (hex::encode(self.secret), hex::encode(self.root.0));
        write!(f, "{}.{secret}.{root}.{}", self.prefix(), self.role)
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        // Names of processes may have dots, so the role is last.
        let parts: Vec<&str> = text.trim().splitn(4, '.').collect();
        let [prefix, secret, root, role] = parts[..] else {
            return Err(BadToken);
        };
        let bytes = |text: &str| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(text, &mut bytes).map(|()| bytes)
        };
        let token = Self {
            secret: bytes(secret).map_err(|_| BadToken)?,
            root: RootHash(bytes(root).map_err(|_| BadToken)?),
            role: role.parse().map_err(|_| BadToken)?,
        };
        match prefix == token.prefix() {
            true => Ok(token),
            false => Err(BadToken),
        }
    }
}

/// The root that the certificate of this process rests on.
fn own_root(own: &Identity, pem: &Pem) -> Option<CertificateDer<'static>> {
    let fingerprint = own.root_of(&pem.certificate)?;
    let root = certificate::summaries(&pem.trust)
        .into_iter()
        .find(|seen| seen.fingerprint == fingerprint)?;
    CertificateDer::from_pem_slice(root.pem.as_bytes()).ok()
}

/// True if the caller has no certificate and wants one.
pub(crate) fn is_wanted(hello: &ClientHello<'_>) -> bool {
    hello
        .alpn()
        .is_some_and(|mut offered| offered.all(|protocol| protocol == PROTOCOL))
}

/// Settings for such callers, made once for each certificate and trust of this process.
#[derive(Debug)]
pub(crate) struct Settings {
    changes: watch::Receiver<()>,
    made: Option<Arc<ServerConfig>>,
}

impl Settings {
    pub(crate) fn of(own: &Identity) -> Self {
        Self {
            changes: own.changes(),
            made: None,
        }
    }

    /// The settings with the files that are in use now.
    pub(crate) fn newest(&mut self, own: &Identity) -> Result<Arc<ServerConfig>, rustls::Error> {
        // It cannot fail while there is an identity; if it did, making them anew is right.
        let is_old = self.changes.has_changed().unwrap_or(true);
        match self.made.clone().filter(|_| !is_old) {
            Some(made) => Ok(made),
            None => {
                // A change that comes meanwhile is seen the next time.
                self.changes.mark_unchanged();
                self.made = None;
                let made = Arc::new(server(own)?);
                self.made = Some(made.clone());
                Ok(made)
            }
        }
    }
}

/// The caller proves nothing, and sees the root too.
fn server(own: &Identity) -> Result<ServerConfig, rustls::Error> {
    let general = |text: &str| rustls::Error::General(text.to_owned());
    let pem = own.taken();
    let unreadable = |_| general("the certificate or the key of this process cannot be read");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.certificate.as_bytes()).collect();
    let mut chain = chain.map_err(unreadable)?;
    let root = own_root(own, &pem);
    chain.push(root.ok_or_else(|| general("the certificate of this process rests on no root that it trusts"))?);
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(unreadable)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let mut config = builder
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Opens a connection to a control plane under this root, as somebody who has no certificate.
///
/// # Errors
///
/// The process at the other end is no such control plane, or refuses.
pub async fn connect(tcp: TcpStream, root: RootHash) -> std::io::Result<client::TlsStream<TcpStream>> {
    let provider = Arc::new(ring::default_provider());
    let verifier = UnderOneRoot {
        root,
        provider: provider.clone(),
    };
    let builder = ClientConfig::builder_with_provider(provider);
    let config = builder
        .with_protocol_versions(&[&TLS13])
        .map_err(std::io::Error::other)?;
    let mut config = config
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.enable_sni = false;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    let name = ServerName::try_from("control-plane").map_err(std::io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// Believes a control plane that shows the root whose hash it knows, and leads to it.
///
/// It is no case of `verifier::Servers`: that one has roots and a zone, of which a process that joins knows neither, and remembers chains,
/// of which this process sees one.
#[derive(Debug)]
struct UnderOneRoot {
    root: RootHash,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for UnderOneRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_root = |der: &&CertificateDer<'_>| RootHash::of(der) == self.root;
        let root = intermediates
            .iter()
            .find(is_root)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
        let general = |error: String| rustls::Error::General(error);
        match Peer::of(end_entity).map_err(|error| general(error.to_string()))?.id {
            id if matches!(id.role, Role::ControlPlane(_)) => Ok(ServerCertVerified::assertion()),
            id => Err(general(texts::not_a_control_plane(id))),
        }
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
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(role: &str) -> Token {
        Token {
            secret: [7; 32],
            root: RootHash([9; 32]),
            role: role.parse().unwrap(),
        }
    }

    #[test]
    fn a_token_is_read_as_it_is_written_and_shows_its_secret_to_nobody_else() {
        for role in [
            "edge/edge-dub",
            "stack/us-east/a.b",
            "control-plane/cp-1",
            "operator/ci",
        ] {
            let token = token(role);
            let text = token.to_string();
            assert_eq!(text.parse(), Ok(token.clone()));
            assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()), "as people paste it");
            assert!(!format!("{token:?}").contains("0707"));
        }
        let good = token("edge/edge-dub").to_string();
        for bad in [
            "",
            "mrd_join",
            &good[1..],
            &good.replace("0707", "07"),
            &good.replace("edge/", "king/"),
            &good.replace("edge/", "operator/"),
            &good.replace("0909", "09zz"),
        ] {
            assert_eq!(bad.parse::<Token>(), Err(BadToken), "{bad}");
        }
    }
}
