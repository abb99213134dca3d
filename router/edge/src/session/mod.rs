//! A voice session: opened at a stack, relayed frame by frame, and moved to another stack when its own is lost.
//!
//! [`open`] asks stacks ([`ask`]) and calls [`live`], which runs a [`relay`] of two [`direction`]s until the session ends or
//! leaves its stack. [`continuity`] keeps the state by which the session moves; `next_stack` finds the stack that takes it.

pub mod ask;
mod caller;
pub mod continuity;
pub mod copies;
pub mod copy_turns;
pub mod direction;
pub mod end;
pub mod frames;
mod last_words;
pub mod live;
mod next_stack;
pub mod open;
pub mod outgoing;
pub mod parked;
pub mod registry;
pub mod relay;
pub mod resume;
