//! The failures of one member, told from each other: whether another member would answer the same, and whether a commit may
//! have been written.

use super::super::error::{Outcome, StoreError};
use crate::texts::store as texts;

/// The kinds of failure at one member.
#[derive(Debug)]
pub(super) enum Failure {
    /// The member did not receive the request, or cannot take any.
    NotTaken(String),
    /// The member may have taken the request.
    Lost(String),
    /// The revision is compacted away.
    Compacted,
    /// The quota of the database is used up.
    NoSpace(String),
    /// The member refused the request.
    Refused(String),
}

impl Failure {
    pub(super) fn of(error: &etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = error else {
            return Self::Lost(error.to_string());
        };
        let text = status.message().to_owned();
        if never_connected(status) {
            return Self::NotTaken(text);
        }
        // etcd reports some errors only in the text.
        if text.contains("database space exceeded") {
            return Self::NoSpace(text);
        }
        if text.contains("has been compacted") {
            return Self::Compacted;
        }
        if text == "etcdserver: no leader" || text == "etcdserver: too many requests" {
            return Self::NotTaken(text);
        }
        match status.code() {
            tonic::Code::InvalidArgument
            | tonic::Code::NotFound
            | tonic::Code::AlreadyExists
            | tonic::Code::PermissionDenied
            | tonic::Code::FailedPrecondition
            | tonic::Code::OutOfRange
            | tonic::Code::Unimplemented
            | tonic::Code::Unauthenticated => Self::Refused(text),
            // Includes the codes of a broken connection: "unknown", "internal", "cancelled".
            _ => Self::Lost(text),
        }
    }

    /// Whether another member would answer the same.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self, Self::Compacted | Self::NoSpace(_) | Self::Refused(_))
    }

    pub(super) fn at(self, endpoint: &str, written: bool) -> StoreError {
        match self {
            Self::NotTaken(text) => StoreError::unreachable(texts::at(endpoint, text)),
            Self::Lost(text) => StoreError::Unavailable {
                reason: texts::at(endpoint, text),
                outcome: if written {
                    Outcome::Unknown
                } else {
                    Outcome::NothingWritten
                },
            },
            Self::Compacted => StoreError::Failed(texts::revision_is_gone().to_owned()),
            Self::NoSpace(text) => StoreError::NoSpace(texts::etcd_is_full(&text)),
            Self::Refused(text) => StoreError::Failed(text),
        }
    }
}

/// Whether the request had no connection to go over.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
