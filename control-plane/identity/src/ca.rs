//! A certificate authority in files: a root, an issuer under it, and leaves that live for hours.
//!
//! The lives differ by an order of magnitude each, so that no two expire together. A leaf holds one SPIFFE id. It names no host:
//! processes move, and the id is what counts.

use std::{net::IpAddr, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
    string::Ia5String,
};
use topology::Moment;

use crate::{Grant, Peer, PeerId, Role, texts};

/// Life of a root.
pub const ROOT_LIFE: Duration = days(3_650);
/// Life of an issuer.
pub const ISSUER_LIFE: Duration = days(365);
/// Life of a process's leaf.
pub const NODE_LIFE: Duration = days(1);
/// Life of an operator's leaf: a working day.
pub const OPERATOR_LIFE: Duration = Duration::from_secs(12 * 3_600);
/// Shortest life of a leaf: renewal has to have time for an outage of the control plane.
pub const LIFE_MIN: Duration = Duration::from_secs(60);
/// Certificates begin this much earlier, for machines whose clock is behind.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

/// A certificate with its private key, both in PEM. The certificate file holds the whole chain but the root.
#[derive(Clone)]
pub struct Credential {
    /// The certificate, then the issuers above it.
    pub certificate: String,
    /// PKCS #8.
    pub key: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("key", &"[secret]")
            .finish_non_exhaustive()
    }
}

/// No certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The library refused.
    #[error("{}", texts::cannot_make(.0))]
    Certificate(#[from] rcgen::Error),
    /// The issuer's files.
    #[error("{}", texts::issuer_does_not_fit(.0))]
    Issuer(rcgen::Error),
    /// The request to sign.
    #[error("{}", texts::bad_request(.0))]
    Request(rcgen::Error),
    /// A leaf that would end too early or outlive its issuer.
    #[error("{}", texts::life_out_of_range(.0, .1))]
    Life(Duration, Duration),
}

/// The life and names of a leaf.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its id.
    pub id: PeerId,
    /// The roles of an operator.
    pub grants: Vec<Grant>,
    /// Addresses that the holder listens at. Only etcd needs them: it goes by addresses, and our processes by ids.
    pub addresses: Vec<IpAddr>,
    /// Life from now.
    pub life: Duration,
}

impl Leaf {
    /// A leaf with the usual life of its kind.
    pub fn of(id: PeerId) -> Self {
        let life = match id.role {
            Role::Operator(_) => OPERATOR_LIFE,
            _ => NODE_LIFE,
        };
        Self {
            id,
            grants: Vec::new(),
            addresses: Vec::new(),
            life,
        }
    }
}

/// Makes a root for a zone.
///
/// # Errors
///
/// [`CaError::Certificate`].
pub fn root(zone: &str, now: Moment) -> Result<Credential, CaError> {
    let key = KeyPair::generate()?;
    let mut params = authority("root", zone, now, ROOT_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    Ok(Credential {
        certificate: params.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
    })
}

/// Signs leaves.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    chain: String,
    until: Moment,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority of an issuer, or of a root that shall sign an issuer.
    ///
    /// # Errors
    ///
    /// The certificate and the key do not fit each other, or are none.
    pub fn load(credential: &Credential) -> Result<Self, CaError> {
        let key = KeyPair::from_pem(&credential.key).map_err(CaError::Issuer)?;
        let public = key.public_key_raw().to_vec();
        let issuer = Issuer::from_ca_cert_pem(&credential.certificate, key).map_err(CaError::Issuer)?;
        let (signs_with, until) =
            subject_key(&credential.certificate).ok_or(CaError::Issuer(rcgen::Error::CouldNotParseCertificate))?;
        if signs_with != public {
            return Err(CaError::Issuer(rcgen::Error::CouldNotParseKeyPair));
        }
        Ok(Self {
            issuer,
            chain: credential.certificate.clone(),
            until,
        })
    }

    /// End of its own life.
    pub fn until(&self) -> Moment {
        self.until
    }

    /// Makes an issuer under this root.
    ///
    /// # Errors
    ///
    /// [`CaError::Certificate`].
    pub fn issuer(&self, zone: &str, now: Moment) -> Result<Credential, CaError> {
        let key = KeyPair::generate()?;
        let life = ISSUER_LIFE.min(self.until.since(now));
        let mut params = authority("issuer", zone, now, life)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        Ok(Credential {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Makes a leaf with a key of its own.
    ///
    /// # Errors
    ///
    /// [`CaError::Certificate`], [`CaError::Life`].
    pub fn issue(&self, leaf: &Leaf, now: Moment) -> Result<Credential, CaError> {
        let key = KeyPair::generate()?;
        Ok(Credential {
            certificate: self.sign(leaf, &key, now)?,
            key: key.serialize_pem(),
        })
    }

    /// Signs the key of a request (PKCS #10, PEM). The names in the request count for nothing: `leaf` says them.
    ///
    /// # Errors
    ///
    /// [`CaError::Request`], [`CaError::Certificate`], [`CaError::Life`].
    pub fn answer(&self, request: &str, leaf: &Leaf, now: Moment) -> Result<String, CaError> {
        let request = CertificateSigningRequestParams::from_pem(request).map_err(CaError::Request)?;
        self.sign(leaf, &request.public_key, now)
    }

    fn sign(&self, leaf: &Leaf, key: &impl PublicKeyData, now: Moment) -> Result<String, CaError> {
        let left = self.until.since(now);
        if leaf.life < LIFE_MIN || leaf.life > left {
            return Err(CaError::Life(leaf.life, left));
        }
        let mut params = named(leaf.id.role.name(), now, leaf.life)?;
        if !leaf.grants.is_empty() {
            let grants: Vec<String> = leaf.grants.iter().map(ToString::to_string).collect();
            params
                .distinguished_name
                .push(DnType::OrganizationName, grants.join(","));
        }
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(leaf.id.to_string())?)];
        let addresses = leaf.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every process dials and is dialled.
        params.extended_key_usages = match leaf.id.role {
            Role::Operator(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
            _ => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.pem() + &self.chain)
    }
}

/// A new key, and a request to sign it.
///
/// # Errors
///
/// [`CaError::Certificate`].
pub fn request() -> Result<(String, String), CaError> {
    let key = KeyPair::generate()?.serialize_pem();
    let request = request_for(&key)?;
    Ok((key, request))
}

/// A request to sign this key (PKCS #8 in PEM).
///
/// # Errors
///
/// [`CaError::Certificate`].
pub fn request_for(key: &str) -> Result<String, CaError> {
    let key = KeyPair::from_pem(key)?;
    Ok(CertificateParams::default().serialize_request(&key)?.pem()?)
}

/// The first certificate of a PEM file, as far as it names a peer.
pub fn peer_of(certificate: &str) -> Option<Peer> {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    Peer::of(&der).ok()
}

/// The addresses in the first certificate of a PEM file.
pub fn addresses_of(certificate: &str) -> Vec<IpAddr> {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
    use x509_cert::{
        Certificate,
        der::Decode as _,
        ext::pkix::{SubjectAltName, name::GeneralName},
    };
    let read = || {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
        let certificate = Certificate::from_der(&der).ok()?.tbs_certificate;
        let (_, names) = certificate.get::<SubjectAltName>().ok()??;
        let address = |name: &GeneralName| match name {
            GeneralName::IpAddress(bytes) => match bytes.as_bytes().len() {
                4 => <[u8; 4]>::try_from(bytes.as_bytes()).ok().map(IpAddr::from),
                _ => <[u8; 16]>::try_from(bytes.as_bytes()).ok().map(IpAddr::from),
            },
            _ => None,
        };
        Some(names.0.iter().filter_map(address).collect())
    };
    read().unwrap_or_default()
}

fn named(name: &str, now: Moment, life: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // Random, with the top bit clear so that it stays positive (RFC 5280 §4.1.2.2).
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let at = |moment: Moment| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(moment.0 / 1_000);
    params.not_before = at(Moment(now.0.saturating_sub(BACKDATED.as_millis() as u64)));
    params.not_after = at(now + life);
    Ok(params)
}

fn authority(kind: &str, zone: &str, now: Moment, life: Duration) -> Result<CertificateParams, CaError> {
    // A library looks for the issuer of a certificate by name, and would take two of one name for the same.
    let name = format!("Meridian {kind} of {zone}, {:08x}", rand::random::<u32>());
    let mut params = named(&name, now, life)?;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::Sha256;
    Ok(params)
}

/// The public key in the first certificate of a PEM file, and the end of its life.
fn subject_key(certificate: &str) -> Option<(Vec<u8>, Moment)> {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
    use x509_cert::der::Decode as _;
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let certificate = x509_cert::Certificate::from_der(&der).ok()?.tbs_certificate;
    let (_, until) = crate::peer::life(&certificate);
    let key = certificate
        .subject_public_key_info
        .subject_public_key
        .raw_bytes()
        .to_vec();
    Some((key, until))
}
