//! A device that was recognised, and the reasons for which one is not.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use topology::Moment;

use crate::texts;

/// A device whose credential was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The tenant whose limits count, as in the document.
    pub tenant: Arc<str>,
    /// The name of the device or its user: that of its key, or `sub` of its token.
    pub name: Arc<str>,
    /// The credential it showed.
    pub credential: Credential,
    /// End of that credential's life. A session that began before may go on.
    pub until: Option<Moment>,
}

/// The credential that a device showed, as far as it may be stored and logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A key of the document, whose name is the device's: its SHA-256.
    Key([u8; 32]),
    /// A token, with its `jti` if it has one.
    Token(Option<Arc<str>>),
}

impl Device {
    /// One text that no other device has: affinity tokens and session ids are bound to it.
    pub fn holder(&self) -> String {
        let kind = match self.credential {
            Credential::Key(_) => "key",
            Credential::Token(_) => "token",
        };
        let text = format!("{}\0{kind}\0{}", self.tenant, self.name);
        format!("d{}", &hex::encode(Sha256::digest(text))[..32])
    }
}

/// The text of a new key, given random bytes, and its hash for the document. Its first letters say what it is to people and to programs
/// that look for leaked secrets.
pub fn new_key(random: [u8; 24]) -> (String, String) {
    let key = format!("mk_{}", hex::encode(random));
    let hash = hex::encode(Sha256::digest(&key));
    (key, hash)
}

/// The reason for which a device is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Denied {
    /// It shows nothing.
    #[error("{}", texts::NO_CREDENTIAL)]
    NoCredential,
    /// The key is none of the document's.
    #[error("{}", texts::UNKNOWN_KEY)]
    UnknownKey,
    /// The credential is over.
    #[error("{}", texts::EXPIRED)]
    Expired,
    /// The token is not valid yet.
    #[error("{}", texts::NOT_YET_VALID)]
    NotYetValid,
    /// The token is no token, or its signature is wrong.
    #[error("{}", texts::BAD_TOKEN)]
    BadToken,
    /// The token is signed with a key that the issuer's set does not have.
    #[error("{}", texts::UNKNOWN_SIGNER)]
    UnknownSigner,
    /// The token is for another service.
    #[error("{}", texts::WRONG_AUDIENCE)]
    WrongAudience,
    /// The edge has no keys of the issuer yet.
    #[error("{}", texts::NO_KEYS)]
    NoKeys,
    /// The tenant is none of the document's.
    #[error("{}", texts::UNKNOWN_TENANT)]
    UnknownTenant,
    /// The operator revoked the credential.
    #[error("{}", texts::REVOKED)]
    Revoked,
}

impl Denied {
    /// The reason's name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
