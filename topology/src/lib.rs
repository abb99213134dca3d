//! The words every part of Meridian agrees on: regions, edges, components, levels, intents and plans, and the documents
//! they are written in.
//!
//! Pure: no sockets, no files, no clock. Documents are parsed in one place ([`document`]), with every problem reported at
//! once; after that a value of one of these types is known to be well formed.

pub mod component;
pub mod document;
pub mod fixtures;
pub mod id;
pub mod intent;
pub mod moment;
pub mod plan;
pub mod policy;
pub mod snapshot;
pub mod stack;
pub mod text;
pub mod topology;
pub mod words;

pub use component::{Component, Level};
pub use document::{Problem, Problems};
pub use id::{EdgeId, IdError, NodeId, RegionId};
pub use intent::{Intent, IntentKind, Rule};
pub use moment::{Moment, Tick};
pub use plan::{EdgeState, Plan, PlanNumber, Reason, ReasonCode, RegionPlan, RegionState, Rollout, Share, UnknownCode};
pub use policy::Policy;
pub use snapshot::{Snapshot, SnapshotError};
pub use stack::Stack;
pub use topology::{Edge, Location, NameServer, Region, Role, Topology};
