//! Runs of bad and good ticks: what makes a trigger fall, and rise again.

use topology::Tick;

use crate::spread::Spread;

/// What a trigger makes of one tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Called {
    Good,
    Bad,
    /// Too little was seen to say.
    Unknown,
}

impl Called {
    pub(crate) fn is_bad(self) -> bool {
        self == Self::Bad
    }
}

/// How many ticks in a row it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Bad ones until it falls.
    pub(crate) fall: u32,
    /// Good ones until it rises: more of them keep a flapping region out.
    pub(crate) rise: u32,
    /// Unknown ones until what was before them is too old to count.
    pub(crate) blind: u32,
}

/// Falls after so many bad ticks in a row, or when the ticks of its window are bad together, and rises after so many good ones,
/// once the window is clear.
///
/// Unknown ticks freeze it: they neither count nor clear. After too many of them the count begins anew, or a bad tick of
/// an hour ago would decide with one of now; what has fallen still has to rise.
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
    /// Takes note of a tick; ticks come in their order.
    pub(crate) fn go_on(&mut self, tick: Tick, called: Called, patience: Patience, spread: Spread) {
        let is_blind = |newest: Tick| tick.0.saturating_sub(newest.0) > u64::from(patience.blind);
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
        let is_held = self.good < patience.rise || spread != Spread::Clear;
        self.fallen = (self.fallen && is_held) || self.bad >= patience.fall || spread == Spread::Bad;
    }

    /// Whether anything was known of the last `ticks` ticks.
    pub(crate) fn is_fresh(&self, last_closed: Tick, ticks: u32) -> bool {
        self.newest_known
            .is_some_and(|newest| last_closed.0.saturating_sub(newest.0) < u64::from(ticks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter a tick: `b`ad, `g`ood, and anything else unknown. Two bad ticks to fall, three good ones to rise, three
    /// unknown ones to go blind.
    fn run(ticks: &str) -> Run {
        let patience = Patience {
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
            run.go_on(Tick(tick as u64), called, patience, Spread::Clear);
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
            // Unknown ticks freeze: neither the fall nor the rise is lost, and neither comes of them.
            ("b..b", true),
            ("b..", false),
            ("bbgg..g", false),
            ("bbgg..", true),
            // Three of them make blind: two ticks in a row are not two with a hole between them.
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
