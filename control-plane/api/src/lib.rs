//! The `meridian.v1` gRPC interface: generated code ([`v1`]), conversions from and to our types ([`convert`]), and what
//! a node needs to live by it: [`Follower`] follows plans, [`Reporter`] reports observations. [`Operator`] is the other
//! side: what people and their tools ask of whichever control plane leads.
//!
//! Nodes authenticate by the network they are on for now; the interface leaves room for mutual TLS, which belongs to the
//! channel and not to the messages.

pub mod convert;
pub mod follow;
pub mod last_good;
pub mod operator;
pub mod report;

mod connect;
#[cfg(test)]
mod testing;

/// Generated from proto/meridian/v1/meridian.proto.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file is the documentation"
)]
pub mod v1 {
    tonic::include_proto!("meridian.v1");
}

pub use follow::{Contact, Follower};
pub use last_good::LastGood;
pub use operator::{Operator, OperatorError};
pub use report::{Reporter, report_queue};
