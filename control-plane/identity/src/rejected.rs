//! The reasons for which files are not taken as an identity.

use topology::Moment;

use crate::{BadCertificate, PeerId, files::FileError};

/// Files that are no identity.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// One cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds no PEM of its kind.
    #[error("{path} holds no {what} in PEM")]
    NotPem {
        /// The file.
        path: String,
        /// The missing kind of content.
        what: &'static str,
    },
    /// The certificate names nobody.
    #[error("{path}: {source}")]
    Certificate {
        /// The file.
        path: String,
        /// Why.
        source: BadCertificate,
    },
    /// The certificate and the key do not fit.
    #[error("{key} is not the key of {certificate}: {why}")]
    Key {
        /// The key's file.
        key: String,
        /// The certificate's file.
        certificate: String,
        /// Why.
        why: String,
    },
    /// The certificate is somebody else's.
    #[error(
        "the certificate is {offered}'s, and this process is {own}; issue its own with `meridian cert issue KIND/NAME --ca DIR --into DIR`"
    )]
    OtherId {
        /// Whose it is.
        offered: Box<PeerId>,
        /// The id of this process.
        own: Box<PeerId>,
    },
    /// The certificate has ended, or has not begun.
    #[error(
        "{certificate} is valid from {from:#} to {until:#} UTC, and not now; check the clock, or issue it anew with `meridian cert renew DIR --ca DIR`"
    )]
    OutOfDate {
        /// The certificate's file.
        certificate: String,
        /// Beginning of its life.
        from: Moment,
        /// End of its life.
        until: Moment,
    },
    /// The process would not believe itself.
    #[error(
        "{certificate} is not signed by a root in {trust}: {why}; issue it anew with `meridian cert issue KIND/NAME --ca DIR --into DIR`"
    )]
    Untrusted {
        /// The certificate's file.
        certificate: String,
        /// The file of roots.
        trust: String,
        /// Why.
        why: String,
    },
}
