//! The nouns that every part of Meridian shares (regions, edges, components, levels, intents, plans) and the documents
//! that hold them.
//!
//! This crate is pure: it opens no socket and no file and reads no clock. Documents are parsed in one place
//! ([`document`]), which reports every problem at once. After that, a value of one of these types is known to be well
//! formed.

pub mod component;
pub mod document;
pub mod fixtures;
pub mod id;
pub mod intent;
pub mod moment;
pub mod plan;
pub mod policy;
pub mod reason;
pub mod reasons;
pub mod snapshot;
pub mod spelling;
pub mod stack;
pub mod text;
mod texts;
pub mod topology;
pub mod zone;

pub use component::{Component, Level};
pub use document::{Problem, Problems};
pub use id::{EdgeId, IdError, NodeId, RegionId};
pub use intent::{Intent, IntentKind, Rule};
pub use moment::{Moment, Tick};
pub use plan::{EdgeState, Plan, PlanNumber, RegionPlan, RegionState, Rollout, Share};
pub use policy::Policy;
pub use reason::{Reason, ReasonCode, UnknownCode};
pub use snapshot::{Snapshot, SnapshotError};
pub use stack::Stack;
pub use topology::{Edge, Location, NameServer, Region, Role, Topology};
pub use zone::{Service, ZoneData, ZoneRecord};
