//! Durations as people write them. Written by hand: the formats of jiff and humantime are wider ("2 hours ago",
//! "1h 30m"), and neither prints a duration in one whole unit, as documents show it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer};

/// Longest duration in a document: ten years. No setting needs a longer one, and sums of a few such durations cannot
/// overflow.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// A duration as people write it: a whole number and a unit, such as `250ms`, `10s`, `5m`, `1h` or `3d`. At most ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => {
                return Err(format!(
                    "\"{text}\" is not a duration; write a whole number and ms, s, m, h or d, such as \"30s\""
                ));
            }
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("\"{text}\" does not begin with a whole number; write one, such as \"30s\""))?;
        let time = number.checked_mul(unit_ms).map(Duration::from_millis);
        time.filter(|time| *time <= DURATION_MAX)
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is longer than ten years; write at most \"3650d\""))
    }
}

/// The largest unit that needs no fraction: `90s`, `2m`, `500ms`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        match units
            .into_iter()
            .find(|(unit_ms, _)| ms >= *unit_ms && ms.is_multiple_of(*unit_ms))
        {
            Some((unit_ms, unit)) => write!(f, "{}{unit}", ms / unit_ms),
            None if ms == 0 => f.write_str("0s"),
            None => write!(f, "{ms}ms"),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("0s", 0),
            ("250ms", 250),
            ("90s", 90_000),
            ("5m", 300_000),
            ("25h", 90_000_000),
            ("3d", 259_200_000),
        ] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(ms))), "{text}");
            assert_eq!(Span(Duration::from_millis(ms)).to_string(), text);
        }
        for text in [
            "",
            "s",
            "10",
            "10 s",
            "-1s",
            "1.5s",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
