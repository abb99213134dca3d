//! Active probes of the regional stacks, and the voice client they speak through.
//!
//! [`run`] probes every region in every tick and reports what it and the node's real traffic saw. [`Call`] holds one
//! conversation with an edge or a stack; [`SteadyCall`] calls again when a conversation is cut.
//!
//! A probe only counts what it saw: a part that could not be reached through a broken gateway gets no observation, because
//! silence is not failure. And a prober that lacks descriptors or time has seen nothing: neither counts against a stack.

pub mod call;
mod cause;
mod event;
mod run;
mod stack;
pub mod steady;
pub mod utterance;

pub use call::{Call, CallError, CallOptions, Move, Notice, Pacing, Retry, Stage, Timings, Turn, TurnEnd};
pub use cause::Cause;
pub use run::{Lateness, Probed, Settings, run};
pub use stack::probe_once;
pub use steady::{CallEvent, CallEventKind, SteadyCall};
pub use utterance::{RATE, Utterance};
