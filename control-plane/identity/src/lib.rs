//! Identities of processes and people, and their rights.
//!
//! Every process and every operator has a certificate whose only URI is its SPIFFE id ([`PeerId`]). Two processes prove
//! these ids to each other with mutual TLS ([`Identity`]). One pure function decides what an id may do ([`authorise()`]).
//! [`ca`] makes the certificates, [`files`] stores them.
//!
//! Why it is so: docs/decisions/25-identity-is-a-certificate.md. For operators: docs/security.md.

pub mod authorise;
pub mod ca;
pub mod certificate;
mod connection;
mod early;
pub mod files;
mod grace;
mod grant;
mod handshake;
mod id;
mod identity;
pub mod join;
mod link;
mod listener;
mod material;
mod metrics;
pub mod operators;
mod peer;
mod protocol;
mod refusal;
mod rejected;
mod remembered;
mod service;
mod shown;
pub mod signature;
mod socket;
mod state;
mod texts;
mod tickets;
mod tls_socket;
mod verifier;

pub use authorise::{Call, Denied, authorise};
pub use connection::{Caller, Connection};
pub use grace::{GRACE, Issuing, RECOVERY, Validity, believes_expired};
pub use grant::{Grant, OperatorRole};
pub use handshake::ConnectError;
pub use id::{BadId, PeerId, Role};
pub use identity::{Identity, Reload};
pub use link::{Link, PeerProof, TrustError, dial, secure};
pub use listener::{Acceptor, Event, Incoming, Mode, ToStacks, listen, listen_with_joining};
pub use metrics::Expiry;
pub use peer::{BadCertificate, Peer};
pub use protocol::Speaks;
pub use rejected::Rejected;
pub use service::Service;
pub use shown::Shown;
