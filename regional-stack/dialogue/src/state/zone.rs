//! Time zones by name.

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// A time zone of the compiled-in IANA database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Zone(String);

/// The error for a name that no time zone has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownZone(String);

impl std::fmt::Display for UnknownZone {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{:?} is no time zone; use a name of the IANA database such as Europe/London",
            self.0
        )
    }
}

impl std::error::Error for UnknownZone {}

impl Zone {
    /// The zone called `name`, in upper or lower case.
    pub fn parse(name: &str) -> Result<Self, UnknownZone> {
        /// Longest name that is looked up; the longest in the database has 32 characters.
        const NAME_BYTES_MAX: usize = 64;
        let unknown = || UnknownZone(name.chars().take(NAME_BYTES_MAX).collect());
        if name.len() > NAME_BYTES_MAX {
            return Err(unknown());
        }
        let zone = TimeZone::get(name).map_err(|_| unknown())?;
        Ok(Self(zone.iana_name().unwrap_or(name).to_owned()))
    }

    /// The zone's IANA name.
    pub fn name(&self) -> &str {
        &self.0
    }
}
