//! The reasons for which files are not taken as an identity.

use topology::Moment;

use crate::{BadCertificate, PeerId, files::FileError, texts};

/// Files that are no identity.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// One cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds no PEM of its kind.
    #[error("{}", texts::not_pem(path, what))]
    NotPem {
        /// The file.
        path: String,
        /// The missing kind of content.
        what: &'static str,
    },
    /// The certificate names nobody.
    #[error("{}", texts::in_file(path, source))]
    Certificate {
        /// The file.
        path: String,
        /// The problem in it.
        source: BadCertificate,
    },
    /// The certificate and the key do not fit.
    #[error("{}", texts::key_does_not_fit(key, certificate, why))]
    Key {
        /// The key's file.
        key: String,
        /// The certificate's file.
        certificate: String,
        /// The error of the library.
        why: String,
    },
    /// The certificate belongs to another process.
    #[error("{}", texts::other_id(offered, own))]
    OtherId {
        /// The id in it.
        offered: Box<PeerId>,
        /// The id of this process.
        own: Box<PeerId>,
    },
    /// The certificate has ended, or has not begun.
    #[error("{}", texts::out_of_date(certificate, *from, *until))]
    OutOfDate {
        /// The certificate's file.
        certificate: String,
        /// Beginning of its life.
        from: Moment,
        /// End of its life.
        until: Moment,
    },
    /// The process would not believe itself.
    #[error("{}", texts::untrusted(certificate, trust, why))]
    Untrusted {
        /// The certificate's file.
        certificate: String,
        /// The file of roots.
        trust: String,
        /// The error of the library.
        why: String,
    },
}
