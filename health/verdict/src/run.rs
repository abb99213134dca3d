//! Runs of bad and good ticks, which make a trigger fall, and rise again.

use topology::Tick;

use crate::spread::Spread;

/// The call of a trigger on one tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Called {
    Good,
    Bad,
    /// Too few samples or vantages.
    Unknown,
}

impl Called {
    pub(crate) fn is_bad(self) -> bool {
        self == Self::Bad
    }
}

/// The lengths of runs that count, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunLengths {
    /// Bad ticks until the trigger falls.
    pub(crate) fall: u32,
    /// Good ticks until it rises: more of them keep a flapping region out.
    pub(crate) rise: u32,
    /// Unknown ticks until the ticks before them are too old to count.
    pub(crate) blind: u32,
}

/// A trigger falls after a number of bad ticks in a row, or when the ticks of its window are bad together. It rises
/// after a number of good ones, once the window is clear.
///
/// Unknown ticks freeze it: they neither count nor clear. After too many of them the count begins again, or a bad tick
/// of an hour ago would decide with one of now; a fallen trigger still has to rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Run {
    pub(crate) fallen: bool,
    /// Bad ticks in a row up to the newest known one.
    pub(crate) bad: u32,
    /// Good ticks in a row up to the newest known one.
    good: u32,
    pub(crate) newest_known: Option<Tick>,
    pub(crate) newest_bad: Option<Tick>,
    /// First of the ticks in a row, without a gap, that were good up to the newest known one.
    pub(crate) good_from: Option<Tick>,
}

impl Run {
    /// Adds a tick; ticks come in order.
    pub(crate) fn add(&mut self, tick: Tick, called: Called, lengths: RunLengths, spread: Spread) {
        let is_blind = |newest: Tick| tick.0.saturating_sub(newest.0) > u64::from(lengths.blind);
        if called == Called::Unknown {
            return;
        }
        debug_assert!(self.newest_known < Some(tick), "ticks come in their order");
        if self.newest_known.is_some_and(is_blind) {
            (self.bad, self.good) = (0, 0);
        }
        if called.is_bad() {
            (self.bad, self.good) = (self.bad.saturating_add(1), 0);
            (self.newest_bad, self.good_from) = (Some(tick), None);
        } else {
            (self.bad, self.good) = (0, self.good.saturating_add(1));
            let follows = self.newest_known == Some(tick.back(1));
            self.good_from = self.good_from.filter(|_| follows).or(Some(tick));
        }
        self.newest_known = Some(tick);
        let is_held = self.good < lengths.rise || spread != Spread::Clear;
        self.fallen = (self.fallen && is_held) || self.bad >= lengths.fall || spread == Spread::Bad;
    }

    /// Whether any of the last `ticks` ticks was known.
    pub(crate) fn is_fresh(&self, last_closed: Tick, ticks: u32) -> bool {
        self.newest_known
            .is_some_and(|newest| last_closed.0.saturating_sub(newest.0) < u64::from(ticks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter for each tick: `b`ad, `g`ood, any other is unknown. Two bad ticks to fall, three good ones to rise,
    /// three unknown ones to go blind.
    fn run(ticks: &str) -> Run {
        let lengths = RunLengths {
            fall: 2,
            rise: 3,
            blind: 3,
        };
        let mut run = Run::default();
        for (tick, letter) in ticks.chars().enumerate() {
            let called = match letter {
                'b' => Called::Bad,
                'g' => Called::Good,
                _ => Called::Unknown,
            };
            run.add(Tick(tick as u64), called, lengths, Spread::Clear);
        }
        run
    }

    #[test]
    fn it_falls_quickly_and_rises_slowly() {
        for (ticks, fallen) in [
            ("b", false),
            ("bb", true),
            ("bgb", false),
            ("bbgg", true),
            ("bbggbgg", true),
            ("bbggg", false),
            ("bbgggb", false),
            // Unknown ticks freeze: they end neither a fall nor a rise, and cause none.
            ("b..b", true),
            ("b..", false),
            ("bbgg..g", false),
            ("bbgg..", true),
            // Three unknown ticks make blind: two bad ticks with such a gap between them are not in a row.
            ("b...b", false),
            ("b...bb", true),
            ("bbgg...g", true),
            ("bbgg...ggg", false),
        ] {
            assert_eq!(run(ticks).fallen, fallen, "{ticks}");
        }
    }

    #[test]
    fn good_since_needs_every_tick() {
        assert_eq!(run("bggg").good_from, Some(Tick(1)));
        assert_eq!(run("bgg.g").good_from, Some(Tick(4)));
        assert_eq!(run("ggb").good_from, None);
        assert_eq!(run("ggbg").newest_bad, Some(Tick(2)));
    }
}
