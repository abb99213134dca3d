//! Things with spoken names: cities, rooms and days.

use serde::{Deserialize, Serialize};

/// A closed set of things with spoken names. Because it is closed, a misheard slot can be corrected.
macro_rules! spoken {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $spoken:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $(#[doc = concat!("\"", $spoken, "\"")] #[serde(alias = $spoken)] $variant),+
        }

        impl $name {
            /// Every value, in the order of their definition.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The spoken name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $spoken),+ }
            }
        }
    };
}

spoken! {
    /// A city with a known time zone and cached weather.
    City {
        London = "london", Paris = "paris", Berlin = "berlin", Tokyo = "tokyo", Mumbai = "mumbai", Sydney = "sydney",
        NewYork = "new york", Chicago = "chicago", Seattle = "seattle", Madrid = "madrid", Rome = "rome",
    }
}

spoken! {
    /// A room with lights.
    Room {
        Kitchen = "kitchen", Bedroom = "bedroom", LivingRoom = "living room", Bathroom = "bathroom",
        Office = "office", Hall = "hall", Garage = "garage",
    }
}

spoken! {
    /// A day in a request.
    Day {
        Today = "today", Tomorrow = "tomorrow", AfterTomorrow = "day after tomorrow", Monday = "monday", Tuesday = "tuesday",
        Wednesday = "wednesday", Thursday = "thursday", Friday = "friday", Saturday = "saturday", Sunday = "sunday",
        Weekend = "weekend", NextWeek = "next week", Yesterday = "yesterday",
    }
}

impl Day {
    /// The day that begins in the night of this one. `None` for tonight, which means the next time that the clock shows
    /// the hour.
    pub(super) fn after_night(self) -> Option<Self> {
        Some(match self {
            Self::Today => return None,
            Self::Tomorrow => Self::AfterTomorrow,
            Self::Monday => Self::Tuesday,
            Self::Tuesday => Self::Wednesday,
            Self::Wednesday => Self::Thursday,
            Self::Thursday => Self::Friday,
            Self::Friday => Self::Saturday,
            Self::Saturday => Self::Sunday,
            Self::Sunday => Self::Monday,
            // The assistant sets no alarm for these days; it asks for the day.
            Self::AfterTomorrow | Self::Weekend | Self::NextWeek | Self::Yesterday => Self::NextWeek,
        })
    }

    /// The weekday of this name; `None` for other days.
    pub(crate) fn weekday(self) -> Option<jiff::civil::Weekday> {
        use jiff::civil::Weekday;
        Some(match self {
            Self::Monday => Weekday::Monday,
            Self::Tuesday => Weekday::Tuesday,
            Self::Wednesday => Weekday::Wednesday,
            Self::Thursday => Weekday::Thursday,
            Self::Friday => Weekday::Friday,
            Self::Saturday => Weekday::Saturday,
            Self::Sunday => Weekday::Sunday,
            Self::Today | Self::Tomorrow | Self::AfterTomorrow | Self::Weekend | Self::NextWeek | Self::Yesterday => {
                return None;
            }
        })
    }

    /// "tomorrow", "on friday".
    pub(crate) fn spoken_on(self) -> String {
        match self {
            Self::Today | Self::Tomorrow | Self::NextWeek | Self::Yesterday => self.name().to_owned(),
            Self::AfterTomorrow => "the day after tomorrow".to_owned(),
            Self::Weekend => "on the weekend".to_owned(),
            _ => format!("on {}", self.name()),
        }
    }
}

/// A set of rooms, possibly empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rooms(u16);

impl Rooms {
    /// This set and `room`.
    #[must_use]
    pub fn with(self, room: Room) -> Self {
        Self(self.0 | 1 << room as u16)
    }

    /// The union of both sets.
    #[must_use]
    pub(crate) fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// The rooms in the set. An empty set means the whole house.
    pub fn named(self) -> impl Iterator<Item = Room> {
        Room::ALL
            .iter()
            .copied()
            .filter(move |room| self.0 & (1 << *room as u16) != 0)
    }

    /// "kitchen and bedroom".
    pub(crate) fn spoken(self) -> Option<String> {
        let names: Vec<&str> = self.named().map(Room::name).collect();
        (!names.is_empty()).then(|| names.join(" and "))
    }

    /// "the kitchen lights", "the lights".
    pub(crate) fn lights(self) -> String {
        match self.spoken() {
            Some(rooms) => format!("the {rooms} lights"),
            None => "the lights".to_owned(),
        }
    }
}

impl From<Room> for Rooms {
    fn from(room: Room) -> Self {
        Self::default().with(room)
    }
}

impl City {
    /// IANA name of the city's time zone.
    pub fn zone(self) -> &'static str {
        match self {
            Self::London => "Europe/London",
            Self::Paris => "Europe/Paris",
            Self::Berlin => "Europe/Berlin",
            Self::Tokyo => "Asia/Tokyo",
            Self::Mumbai => "Asia/Kolkata",
            Self::Sydney => "Australia/Sydney",
            Self::NewYork => "America/New_York",
            Self::Chicago => "America/Chicago",
            Self::Seattle => "America/Los_Angeles",
            Self::Madrid => "Europe/Madrid",
            Self::Rome => "Europe/Rome",
        }
    }
}
