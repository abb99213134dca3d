//! The voice client of the Realtime protocol. Calls, probes and drills use it.
//!
//! [`Call`] is one conversation with an edge or a stack. [`ReconnectingCall`] calls again when a conversation is cut, as a device
//! does.

pub mod call;
pub mod playout;
pub mod reconnecting;
pub mod utterance;

mod error;
mod event;
mod texts;

pub use call::{Call, CallOptions, Connection, Move, Pacing, Turn, TurnEnd};
pub use error::{CallError, RetryAdvice, Stage};
pub use event::{Notice, Timings};
pub use playout::{JitterBuffer, JitterConfig, Playback, Playout};
pub use reconnecting::{CallEvent, CallEventKind, ReconnectingCall};
pub use utterance::{RATE, Utterance};
