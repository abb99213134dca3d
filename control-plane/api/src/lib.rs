//! The `meridian.v1` gRPC interface: generated code ([`v1`]) and conversions from and to the types of Meridian
//! ([`convert`]). [`Operator`] is for people and their tools: it sends requests to the leading control plane. [`connect`] is
//! the way to a control plane for every client; the crate `node` has those of nodes.
//!
//! Mutual TLS belongs to the channel: no message carries a credential.

pub mod connect;
pub mod convert;
pub mod join;
pub mod operator;
mod texts;

#[doc(hidden)]
pub mod testing;

/// Generated from proto/meridian/v1/meridian.proto.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod v1 {
    tonic::include_proto!("meridian.v1");
}

pub use operator::{Operator, OperatorError};
