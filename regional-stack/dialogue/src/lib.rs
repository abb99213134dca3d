//! From a transcript to a spoken reply: the request ([`understand`]), its effect and the reply ([`act`]), and the
//! device's memory ([`DialogueState`]).
//!
//! Pure: time is an argument, and the weather comes from a compiled-in file ([`weather_as_of`]).

mod answer;
mod command;
mod edit_distance;
mod free_names;
mod grammar;
mod interpret;
mod lexicon;
mod numbers;
mod quantity;
mod reply;
mod request;
mod skills;
mod slot;
mod state;
mod template;
mod weather;
mod words;
mod written;

pub use answer::{CONFIDENCE_MIN, understand};
pub use command::{
    AlarmChoice, City, ClockTime, Command, Day, DayPart, Doubt, HalfDay, PlaceQuestion, Room, Rooms, TimerChoice,
    WeatherAspect,
};
pub use interpret::{Interpretation, interpret};
pub use numbers::{read_number, spell, spell_ordinal};
pub use reply::Reply;
pub use request::{ClientRequest, client_request, is_negated};
pub use skills::act;
pub use state::{
    Alarm, DialogueState, Due, DueKind, PENDING_MAX, Question, RING_EVERY, RING_SLOWLY_EVERY, RINGS_MAX, Ringing,
    SNOOZE, Timer, UnknownZone, Zone,
};
pub use weather::weather_as_of;
pub use words::{Pause, SpokenWord, in_words, spoken_words};
pub use written::without_accents;
