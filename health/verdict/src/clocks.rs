//! The differences between the clocks of the vantages and ours. Decisions tolerate them ([`crate::Rounds`]); people
//! have to know of them.

use std::{collections::BTreeMap, fmt};

use topology::{NodeId, Reason, ReasonCode};

use crate::texts;

/// Difference in milliseconds at which the alarm begins: a time service keeps clocks within a few milliseconds, and a
/// slow network adds less than this.
pub const ALARM_MS: u64 = 500;
/// Difference in milliseconds below which the alarm ends: lower than the alarm's own, so that a clock at the limit does
/// not ring all day.
const CALM_MS: u64 = 250;

/// The newest difference of every vantage that sent its time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clocks(BTreeMap<NodeId, Clock>);

/// The clock of one vantage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Milliseconds ahead of ours; negative when it is behind.
    pub ahead_ms: i64,
    /// Whether the alarm is on.
    pub is_off: bool,
}

impl Clocks {
    /// Notes a difference. True when the alarm of this vantage begins.
    pub fn note(&mut self, vantage: &NodeId, ahead_ms: i64) -> bool {
        let known = self.0.get(vantage);
        let was_off = known.is_some_and(|it| it.is_off);
        let limit = if was_off { CALM_MS } else { ALARM_MS };
        let is_off = ahead_ms.unsigned_abs() >= limit;
        self.0.insert(vantage.clone(), Clock { ahead_ms, is_off });
        is_off && !was_off
    }

    /// Forgets vantages that no longer exist.
    pub fn retain(&mut self, exists: impl Fn(&NodeId) -> bool) {
        self.0.retain(|vantage, _| exists(vantage));
    }

    /// Every vantage that sent its time.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, Clock)> {
        self.0.iter().map(|(vantage, clock)| (vantage, *clock))
    }

    /// The alarms of wrong clocks. When most vantages differ from us in the same direction, our own clock is wrong.
    pub fn reasons(&self) -> Vec<Reason> {
        let off: Vec<(&NodeId, i64)> = self
            .iter()
            .filter(|(_, clock)| clock.is_off)
            .map(|(vantage, clock)| (vantage, clock.ahead_ms))
            .collect();
        let ahead = off.iter().filter(|(_, ms)| *ms > 0).count();
        let most_agree = 2 * ahead.max(off.len() - ahead) > self.0.len();
        // With a single vantage either clock may be right.
        let ours = (most_agree && self.0.len() > 1).then(|| {
            let (nearest, ms) = off.iter().min_by_key(|(_, ms)| ms.unsigned_abs())?;
            Some(texts::own_clock_is_off(Apart(*ms), *ms > 0, nearest, off.len() - 1))
        });
        let texts: Vec<String> = match ours.flatten() {
            Some(text) => vec![text],
            None => off
                .iter()
                .map(|(vantage, ms)| texts::clock_is_off(vantage, Apart(*ms), *ms > 0))
                .collect(),
        };
        let reason = |text| Reason {
            code: ReasonCode::ClockSkew,
            region: None,
            text,
            evidence: Vec::new(),
            until: None,
        };
        texts.into_iter().map(reason).collect()
    }
}

/// A difference without its sign, to a tenth of a second: a finer difference is network delay.
struct Apart(i64);

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.unsigned_abs() as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(told: &[(&str, i64)]) -> Vec<String> {
        let mut clocks = Clocks::default();
        for (vantage, ahead_ms) in told {
            clocks.note(&NodeId::new(vantage).unwrap(), *ahead_ms);
        }
        clocks.reasons().into_iter().map(|reason| reason.text).collect()
    }

    #[test]
    fn the_clock_that_is_wrong_is_named() {
        assert_eq!(clocks(&[("a", 40), ("b", -499), ("c", 0)]), [""; 0]);
        assert_eq!(
            clocks(&[("a", 1_300), ("b", 3), ("c", 0)]),
            ["the clock of a is 1.3 s ahead of ours; check the time service there"]
        );
        assert_eq!(
            clocks(&[("a", -2_000), ("b", -2_004), ("c", -1_990)]),
            [
                "the clock of this control plane is 2.0 s ahead of that of c and 2 other vantages; check its time service"
            ]
        );
        // Differences in both directions at once: the clocks of the vantages are wrong, ours is not.
        assert_eq!(clocks(&[("a", 2_000), ("b", -2_000), ("c", 0)]).len(), 2);
        assert_eq!(
            clocks(&[("a", -10_000)]),
            ["the clock of a is 10.0 s behind ours; check the time service there"]
        );
        assert_eq!(clocks(&[("a", i64::MIN)]).len(), 1);
    }

    #[test]
    fn an_alarm_rings_once_and_ends_well_below_its_limit() {
        let mut clocks = Clocks::default();
        let vantage = NodeId::new("a").unwrap();
        let rings: Vec<bool> = [499, 500, 501, 300, 600, 249, 499, -500]
            .map(|ms| clocks.note(&vantage, ms))
            .to_vec();
        assert_eq!(rings, [false, true, false, false, false, false, false, true]);
    }
}
