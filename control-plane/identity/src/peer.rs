//! The facts that a verified certificate proves.

use topology::Moment;
use x509_cert::{
    Certificate, TbsCertificate,
    der::{Decode as _, asn1::ObjectIdentifier},
    ext::pkix::{SubjectAltName, name::GeneralName},
    time::Time,
};

use crate::{Grant, PeerId, Role, texts};

/// Subject Alternative Name (RFC 5280 §4.2.1.6).
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
/// The organization of a subject (RFC 5280, appendix A.1). It holds an operator's roles, as groups stand there in Kubernetes.
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");

/// The other end of a connection, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: PeerId,
    /// The roles of an operator; empty for processes.
    pub grants: Vec<Grant>,
    /// Serial number of the certificate, in hex: it names this credential in the audit log.
    pub serial: String,
    /// Beginning of the certificate's life.
    pub from: Moment,
    /// End of the certificate's life.
    pub until: Moment,
    /// Fingerprint of the root that it was verified with; empty before that.
    pub root: String,
}

/// The certificate says nothing that can be relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// Its bytes are no certificate.
    #[error("{}", texts::not_x509(.0))]
    Unreadable(String),
    /// X.509-SVID §2: exactly one URI, so that nobody chooses which of two counts.
    #[error("{}", texts::not_one_uri(*.0))]
    Uris(usize),
    /// Its URI is no id.
    #[error("{}", texts::bad_uri(.0))]
    Id(#[from] crate::BadId),
    /// It ends before it begins.
    #[error("{}", texts::ends_before_it_begins(*.0, *.1))]
    Life(Moment, Moment),
    /// Its roles cannot be read.
    #[error("{}", texts::bad_roles(.0))]
    Roles(String),
}

impl Peer {
    /// Reads a certificate in DER. Whether it is genuine must have been verified before.
    ///
    /// # Errors
    ///
    /// It is not a certificate of a process or an operator.
    pub fn of(der: &[u8]) -> Result<Self, BadCertificate> {
        let unreadable = |error: x509_cert::der::Error| BadCertificate::Unreadable(error.to_string());
        let certificate = Certificate::from_der(der).map_err(unreadable)?.tbs_certificate;
        let mut uris = Vec::new();
        for extension in certificate.extensions.iter().flatten() {
            if extension.extn_id == SUBJECT_ALT_NAME {
                let names = SubjectAltName::from_der(extension.extn_value.as_bytes()).map_err(unreadable)?;
                uris.extend(names.0.into_iter().filter_map(|name| match name {
                    GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
                    _ => None,
                }));
            }
        }
        let [uri] = &uris[..] else {
            return Err(BadCertificate::Uris(uris.len()));
        };
        let id: PeerId = uri.parse()?;
        let mut grants = Vec::new();
        if matches!(id.role, Role::Operator(_)) {
            let attributes = certificate.subject.0.iter().flat_map(|names| names.0.iter());
            for roles in attributes.filter(|attribute| attribute.oid == ORGANIZATION) {
                let roles = std::str::from_utf8(roles.value.value())
                    .map_err(|_| BadCertificate::Roles("not text".to_owned()))?;
                grants.extend(Grant::list(roles).map_err(BadCertificate::Roles)?);
            }
        }
        let (from, until) = life(&certificate);
        if from > until {
            return Err(BadCertificate::Life(from, until));
        }
        Ok(Self {
            id,
            grants,
            serial: certificate
                .serial_number
                .as_bytes()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            from,
            until,
            root: String::new(),
        })
    }

    /// The roles as text; for a process its kind.
    pub fn roles(&self) -> String {
        match &self.id.role {
            Role::Operator(_) => {
                let grants: Vec<String> = self.grants.iter().map(ToString::to_string).collect();
                grants.join(",")
            }
            process => process.to_string().split('/').next().unwrap_or_default().to_owned(),
        }
    }

    /// True if the certificate should be replaced: a third of its life is over. A second attempt at two thirds is the same
    /// question, asked again.
    pub fn is_due(&self, now: Moment) -> bool {
        let life = self.until.0.saturating_sub(self.from.0);
        now.0 >= self.from.0.saturating_add(life / 3)
    }
}

/// Beginning and end of a certificate's life.
pub(crate) fn life(certificate: &TbsCertificate) -> (Moment, Moment) {
    let moment = |time: Time| Moment(u64::try_from(time.to_unix_duration().as_millis()).unwrap_or(u64::MAX));
    let validity = &certificate.validity;
    (moment(validity.not_before), moment(validity.not_after))
}
