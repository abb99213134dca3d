//! DNS answers compiled from a plan: the edges that a device gets when it looks up the service.
//!
//! The apex of the zone names the serving edges that suit the client. Every edge and every name server also has its own
//! name, one label below the zone, and operators may add records.
//!
//! An answer exists in two forms: as records ([`Answers::lookup`]), and as bytes that were written when the plan was
//! compiled ([`Answers::write`]). Both say the same.
//!
//! This crate is pure: it takes names, addresses and the time and returns answers. Sockets belong to the responder.
//!
//! Why it is so: docs/decisions/29-dns-answers-are-compiled.md.

mod answers;
mod compile;
mod draw;
mod explain;
mod geography;
mod nearest;
mod prefix;
mod ranges;
mod record;
mod returning;
mod service;
mod signing;
mod ttl;
mod wire;
mod zone;

pub use answers::{Answer, Answers, Lookup, NoSuchZone, OwnedSet, Question, ServiceSet, Unusual, Written};
pub use compile::{AllOut, Memory, Settings, Steering};
pub use explain::{Explained, ExplainedEdge};
pub use geography::{Geography, Source};
pub use prefix::{Family, Prefix};
pub use record::{Binding, Caa, Record, RecordData, Soa, Type, labels};
pub use service::{Client, Subnet};
pub use signing::{ALGORITHM, DS_HASH, Period, SetToSign, ZoneKey, denial};
pub use ttl::{CALM_AFTER, PUBLISH, Pace, STEADY_MAX_S, Ttl, lost_edge_bound};
pub use wire::{TTL_AT, name as name_bytes, opaque_record};
