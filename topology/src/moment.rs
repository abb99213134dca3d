//! Time as an argument. Each process reads the clock once at its outermost layer and passes a [`Moment`] inwards.
//! Health is judged per [`Tick`].

use std::{fmt, ops, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// The time from `earlier` to `self`, or zero when the clock was set back in between.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The tick that contains this moment.
    pub fn tick(self) -> Tick {
        Tick(self.0 / Tick::LENGTH_MS)
    }
}

impl ops::Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, by: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Moment {
    /// Time of day in UTC, `hh:mm:ss.mmm`, because an engineer compares it with other clocks during an incident. The
    /// alternate form (`{:#}`) adds the date, for moments that may lie on another day: `2026-11-21 hh:mm:ss`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            let time = i64::try_from(self.0)
                .ok()
                .and_then(|ms| Timestamp::from_millisecond(ms).ok());
            return match time {
                Some(time) => write!(f, "{}", time.strftime("%Y-%m-%d %H:%M:%S")),
                None => f.pad("the end of time"),
            };
        }
        let (seconds, ms) = (self.0 / 1000 % 86_400, self.0 % 1000);
        write!(
            f,
            "{:02}:{:02}:{:02}.{ms:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        )
    }
}

/// A ten-second slot of time, numbered from the Unix epoch, so that all vantages agree on it without communicating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tick(pub u64);

impl Tick {
    /// Length of a tick, in milliseconds: the probe interval in the requirements of the product.
    pub const LENGTH_MS: u64 = 10_000;
    /// Length of a tick, as a `Duration`.
    pub const LENGTH: Duration = Duration::from_millis(Self::LENGTH_MS);

    /// First moment of the tick.
    pub fn start(self) -> Moment {
        Moment(self.0.saturating_mul(Self::LENGTH_MS))
    }

    /// First moment after the tick. From here on the tick is closed.
    pub fn end(self) -> Moment {
        Moment(self.0.saturating_add(1).saturating_mul(Self::LENGTH_MS))
    }

    /// The tick that lies `by` ticks before this one.
    pub fn back(self, by: u64) -> Tick {
        Tick(self.0.saturating_sub(by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_holds_its_first_moment_and_not_its_end() {
        let tick = Moment(1_234_567).tick();
        assert_eq!(tick.start(), Moment(1_230_000));
        assert_eq!(tick.end().tick(), Tick(tick.0 + 1));
        assert_eq!(Moment(1_239_999).tick(), tick);
    }

    #[test]
    fn the_end_of_time_is_no_overflow() {
        assert_eq!(Tick(u64::MAX).start(), Moment(u64::MAX));
        assert_eq!(Tick(u64::MAX).end(), Moment(u64::MAX));
        assert_eq!(Moment(5) + Duration::MAX, Moment(u64::MAX));
    }

    #[test]
    fn a_clock_that_went_back_gives_no_negative_time() {
        assert_eq!(Moment(5).since(Moment(10)), Duration::ZERO);
        assert_eq!(Moment(45_296_789).to_string(), "12:34:56.789");
    }
}
