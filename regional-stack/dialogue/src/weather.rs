//! Weather from the compiled-in `data/weather.toml`. Every reply tells the age of the data.

use std::sync::LazyLock;

use jiff::civil::Date;
use serde::Deserialize;

use crate::command::City;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cache {
    /// Date of the data, `YYYY-MM-DD`.
    as_of: String,
    forecast: Vec<Forecast>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forecast {
    city: City,
    today: Conditions,
    tomorrow: Conditions,
}

/// The weather of a day.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Conditions {
    /// Temperature in degrees Celsius.
    pub(crate) degrees: i32,
    /// The sky in one spoken adjective.
    pub(crate) sky: String,
    pub(crate) rain: bool,
}

static CACHE: LazyLock<Cache> = LazyLock::new(|| {
    toml::from_str(include_str!("../data/weather.toml")).expect("the committed weather data parses; a test reads it")
});

/// Date of the data.
pub(crate) fn as_of() -> Date {
    // A test reads the date; without one the data would count as infinitely old.
    CACHE.as_of.parse().unwrap_or(Date::MIN)
}

/// The conditions of `date` in `city`; `None` for days that the data does not cover.
pub(crate) fn conditions(city: City, date: Date) -> Option<&'static Conditions> {
    let forecast = CACHE.forecast.iter().find(|forecast| forecast.city == city)?;
    if date == as_of() {
        Some(&forecast.today)
    } else if as_of().tomorrow().is_ok_and(|next| date == next) {
        Some(&forecast.tomorrow)
    } else {
        None
    }
}

/// Date of the weather data, `YYYY-MM-DD`.
pub fn weather_as_of() -> &'static str {
    &CACHE.as_of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_city_has_weather_for_both_days() {
        for &city in City::ALL {
            for day in [as_of(), as_of().tomorrow().unwrap()] {
                assert!(conditions(city, day).is_some(), "{} {day}", city.name());
            }
        }
        assert_eq!(as_of().to_string(), weather_as_of());
    }
}
