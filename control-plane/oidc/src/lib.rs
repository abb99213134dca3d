//! People of an identity provider (OpenID Connect): the command logs in with the device flow (RFC 8628, [`flow`]), and a control plane
//! decides which operator the id token names ([`Provider`]).
//!
//! The token is exchanged for the same certificate as every other login, so nothing else has to know the provider, and nobody needs it
//! between logins.
//!
//! Why it is so: docs/decisions/28-logins-become-certificates.md.

pub mod fixtures;
pub mod flow;
pub mod fuzzing;
mod http;
mod person;
mod provider;
mod texts;

pub use http::{Client, Metadata, Unasked, is_private};
pub use person::{Nobody, Person, Rules};
pub use provider::{Provider, Settings, Unrecognised};
