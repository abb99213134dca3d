//! DNS answers compiled from a plan: which addresses a device gets when it asks for the service.
//!
//! The apex of the zone names the edges that serve; every edge and every name server also has its own name one label
//! below it. Nothing lies deeper, so there are no empty non-terminals, and what is not one of these names does not exist
//! (RFC 8020).
//!
//! Pure: names and addresses in, records out. Wire formats and sockets belong to the responder.

mod answers;
mod order;
mod record;

pub use answers::{Answers, Lookup, NoSuchZone};
pub use order::Client;
pub use record::{Record, RecordData, Soa, Type, labels};
