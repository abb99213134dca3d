//! The weather, as of the date of the compiled-in forecast.

use jiff::ToSpan;
use topology::Moment;

use super::spoken::date;
use crate::{
    command::{City, Day, WeatherAspect},
    numbers, state, weather,
};

pub(super) fn tell_weather(city: City, day: Day, about: WeatherAspect, now: Moment) -> String {
    let place = city.name();
    let today = state::local(city, now).date();
    let days = match day {
        Day::Today => Some(0),
        Day::Tomorrow => Some(1),
        Day::AfterTomorrow => Some(2),
        Day::Yesterday | Day::Weekend | Day::NextWeek => None,
        day => day.weekday().map(|weekday| i64::from(today.weekday().until(weekday))),
    };
    let asked = days.and_then(|days| today.checked_add(days.days()).ok());
    let as_of = weather::as_of();
    let year = if as_of.year() == today.year() {
        String::new()
    } else {
        format!(" {}", numbers::spell(u32::from(as_of.year().unsigned_abs())))
    };
    let as_of_words = format!("as of {}{year}", date(as_of));
    let when = day.spoken_on();
    let Some(conditions) = asked.and_then(|asked| weather::conditions(city, asked)) else {
        return match weather::conditions(city, as_of) {
            Some(last) => format!(
                "i do not know the weather {when} in {place}, {as_of_words} it was {} and {} there",
                degrees(last.degrees),
                last.sky
            ),
            None => format!("i do not know the weather in {place}"),
        };
    };
    match (about, days) {
        (WeatherAspect::Everything, Some(0)) => format!(
            "{as_of_words}, it is {} and {} in {place}",
            degrees(conditions.degrees),
            conditions.sky
        ),
        (WeatherAspect::Everything, _) => format!(
            "{as_of_words}, {when} it will be {} and {} in {place}",
            degrees(conditions.degrees),
            conditions.sky
        ),
        (WeatherAspect::Rain | WeatherAspect::Snow, _) => {
            let (falls, what) = match about {
                WeatherAspect::Snow => (conditions.sky == "snowy", "snow"),
                WeatherAspect::Everything | WeatherAspect::Rain => (conditions.rain, "rain"),
            };
            let (answer, no) = if falls { ("yes", "") } else { ("no", "no ") };
            format!("{answer}, {as_of_words}, there will be {no}{what} {when} in {place}")
        }
    }
}

fn degrees(degrees: i32) -> String {
    let unit = if degrees.unsigned_abs() == 1 {
        "degree"
    } else {
        "degrees"
    };
    let sign = if degrees < 0 { "minus " } else { "" };
    format!("{sign}{} {unit}", numbers::spell(degrees.unsigned_abs()))
}
