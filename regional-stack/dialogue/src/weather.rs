//! Weather from cached data: what `data/weather.toml` says, and nothing newer. Replies are honest about days, not hours.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::command::{City, Day};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cache {
    /// The day the conditions were written down, `YYYY-MM-DD`.
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

/// What a day is like.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Conditions {
    /// Celsius.
    pub(crate) degrees: i32,
    /// One spoken adjective.
    pub(crate) sky: String,
    pub(crate) rain: bool,
}

static CACHE: LazyLock<Cache> = LazyLock::new(|| {
    toml::from_str(include_str!("../data/weather.toml")).expect("the committed weather data parses; a test reads it")
});

/// The cached conditions, if the city is in the cache.
pub(crate) fn conditions(city: City, day: Day) -> Option<&'static Conditions> {
    let forecast = CACHE.forecast.iter().find(|forecast| forecast.city == city)?;
    Some(match day {
        Day::Today => &forecast.today,
        Day::Tomorrow => &forecast.tomorrow,
    })
}

/// The day the cached weather was written down, `YYYY-MM-DD`.
pub fn weather_as_of() -> &'static str {
    &CACHE.as_of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_city_has_weather_for_both_days() {
        for &city in City::ALL {
            for &day in Day::ALL {
                assert!(conditions(city, day).is_some(), "{} {}", city.name(), day.name());
            }
        }
        assert_eq!(weather_as_of().len(), "2026-11-21".len());
    }
}
