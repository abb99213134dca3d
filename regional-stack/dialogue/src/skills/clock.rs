//! The time and the date.

use topology::Moment;

use super::spoken::date;
use crate::{
    command::{self, City},
    state::{self, DialogueState},
};

pub(super) fn tell_time(state: &DialogueState, city: Option<City>, now: Moment) -> String {
    let local = city.map_or_else(|| state.local(now), |city| state::local(city, now));
    let time = command::speak_clock(local.hour(), local.minute());
    match city {
        Some(city) => format!("it is {time} in {}", city.name()),
        None => format!("it is {time}"),
    }
}

pub(super) fn tell_date(state: &DialogueState, now: Moment) -> String {
    let local = state.local(now);
    format!("today is {} {}", local.strftime("%A"), date(local.date())).to_ascii_lowercase()
}
