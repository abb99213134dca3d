//! DNS answers compiled from a plan: the addresses that a device gets when it looks up the service.
//!
//! The apex of the zone names the serving edges. Every edge and every name server also has its own name, one label
//! below the zone. No name lies deeper, so there are no empty non-terminals, and every other name does not exist (RFC
//! 8020).
//!
//! This crate is pure: it takes names and addresses and returns records. Wire formats and sockets belong to the
//! responder.

mod answers;
mod order;
mod record;

pub use answers::{Answers, Lookup, NoSuchZone};
pub use order::Client;
pub use record::{Record, RecordData, Soa, Type, labels};
