//! A voice session: opened at a stack, relayed frame by frame, and moved to another stack when its own is lost.
//!
//! [`open`] asks stacks ([`ask`]) and becomes [`live`], which runs a [`relay`] of two [`direction`]s. [`continuity`] keeps what
//! lets the session move.

pub mod ask;
pub mod continuity;
pub mod copies;
pub mod copy_turns;
pub mod direction;
pub mod end;
pub mod frames;
pub mod live;
pub mod open;
pub mod outgoing;
pub mod parked;
pub mod registry;
pub mod relay;
pub mod resume;
