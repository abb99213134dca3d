//! From a transcript to a spoken reply: what was asked ([`interpret()`]), what is done about it ([`act`]), and what is
//! remembered ([`DialogueState`]).
//!
//! Pure: the time is an argument, and the weather comes from a cached file that is compiled in ([`weather_as_of`]).

mod command;
mod interpret;
mod numbers;
mod skills;
mod slot;
mod state;
mod template;
mod weather;

pub use command::{City, ClockTime, Command, Day, HalfDay, Room, WeatherAspect};
pub use interpret::{Interpretation, interpret};
pub use numbers::{spell, spell_ordinal};
pub use skills::{Reply, act};
pub use state::{Alarm, DialogueState, PENDING_MAX, Timer};
pub use weather::weather_as_of;
