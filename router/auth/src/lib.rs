//! Devices: which one may use the service, as which tenant, and how much of it.
//!
//! A device shows a *credential*: a key that its operator issued ([`Devices`]), or a JSON Web Token of an identity provider
//! ([`Tokens`], RFC 7519). It is verified once, where a connection or a request begins; a session that goes on in another region is not
//! asked again, because stacks believe the edge. Revocation is a list beside the keys and ends live sessions too.
//!
//! Everything here is pure: documents and key sets come in as text, the time as an argument.
//!
//! Why it is so: docs/decisions/26-edges-recognise-devices.md.

mod device;
mod document;
pub mod fixtures;
mod limits;
mod ring_provider;
mod texts;
mod token;

pub use device::{Credential, Denied, Device, new_key};
pub use document::{Devices, Key, Revoked, Tenant};
pub use limits::{Exceeded, SessionPlace, TenantUsage, Tenants};
pub use token::{BadSet, Issuer, Kind, SET_BYTES_MAX, Tokens};
