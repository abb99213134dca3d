//! Round trips as this edge measures them: a rise counts at once, a fall counts slowly.
//!
//! This is the peak-EWMA of Finagle and linkerd. A mean would hide the first seconds of trouble, when sessions are best
//! sent elsewhere; a maximum would never recover.
//!
//! Why it is so: docs/decisions/12-distance-has-a-floor.md.

use std::time::Duration;

use topology::Moment;

/// Time after which a fall has come through to 63 %. The value is linkerd's.
const DECAY: Duration = Duration::from_secs(10);

/// A moving average, in milliseconds, that follows peaks at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeakEwma {
    ms: f64,
    at: Moment,
}

impl PeakEwma {
    /// An average that begins with one measurement.
    pub fn new(ms: f64, at: Moment) -> Self {
        Self { ms, at }
    }

    /// Adds a measurement.
    pub fn observe(&mut self, ms: f64, now: Moment) {
        self.ms = if ms > self.ms {
            ms
        } else {
            let keep = self.keep(now);
            keep * self.ms + (1.0 - keep) * ms
        };
        self.at = now;
    }

    /// The average at the last measurement, in milliseconds.
    pub fn ms(&self) -> f64 {
        self.ms
    }

    /// The average, fading towards zero while nothing is measured, so that a stack avoided for a peak is tried again.
    pub fn faded_ms(&self, now: Moment) -> f64 {
        self.ms * self.keep(now)
    }

    fn keep(&self, now: Moment) -> f64 {
        (-now.since(self.at).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// Number of probe ticks that count, one minute. A region counts as farther only when every one of them measured that.
const TICKS: usize = 6;
/// Fewest ticks before a distance is used: an edge that restarts into a storm of devices measures its own delay first.
/// Until then geography gives the distance of a region, see [`crate::Table::nearness`].
const TICKS_MIN: usize = 3;
/// A change smaller than this fraction of the distance, or than [`MARGIN_MS`], is ignored.
const MARGIN: f64 = 0.1;
/// In milliseconds; see [`MARGIN`].
const MARGIN_MS: f64 = 2.0;

/// The distance of a region, which decides the home of this edge's sessions.
///
/// Only probes measure it, and the lowest value of a minute counts. The time that a connection takes depends on the
/// edge's own run queue as much as on the distance: when five hundred devices came at once, an edge once took its own
/// delay for distance and sent them to another continent. No fault makes a round trip look shorter than the distance.
#[derive(Debug, Clone, PartialEq)]
pub struct Distance {
    believed_ms: Option<f64>,
    ticks: [f64; TICKS],
    next: usize,
}

impl Default for Distance {
    fn default() -> Self {
        Self {
            believed_ms: None,
            ticks: [f64::INFINITY; TICKS],
            next: 0,
        }
    }
}

impl Distance {
    /// Adds the measurement of one tick, in milliseconds.
    pub fn observe(&mut self, ms: f64) {
        self.ticks[self.next] = ms;
        self.next = (self.next + 1) % TICKS;
        if self.ticks.iter().filter(|ms| ms.is_finite()).count() < TICKS_MIN {
            return;
        }
        let least = self.ticks.iter().copied().fold(f64::INFINITY, f64::min);
        let is_news = |believed: f64| (least - believed).abs() > (believed * MARGIN).max(MARGIN_MS);
        if self.believed_ms.is_none_or(is_news) {
            self.believed_ms = Some(least);
        }
    }

    /// Round trip in milliseconds, once enough ticks have measured it.
    pub fn ms(&self) -> Option<f64> {
        self.believed_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(s: u64) -> Moment {
        Moment(s * 1000)
    }

    #[test]
    fn a_rise_counts_at_once_and_a_fall_in_ten_seconds() {
        let mut ewma = PeakEwma::new(10.0, seconds(0));
        ewma.observe(100.0, seconds(1));
        assert_eq!(ewma.ms(), 100.0);
        ewma.observe(10.0, seconds(11));
        assert!(
            (ewma.ms() - (10.0 + 90.0 / std::f64::consts::E)).abs() < 1e-9,
            "{ewma:?}"
        );
        assert!((ewma.faded_ms(seconds(21)) - ewma.ms() / std::f64::consts::E).abs() < 1e-9);
    }

    #[test]
    fn a_region_is_far_when_a_minute_of_probes_says_so_and_near_when_one_does() {
        let mut distance = Distance::default();
        for ms in [300.0, 250.0] {
            distance.observe(ms);
            assert_eq!(distance.ms(), None, "the edge starts into a storm, perhaps");
        }
        distance.observe(10.0);
        assert_eq!(distance.ms(), Some(10.0));
        for _ in 1..TICKS {
            distance.observe(200.0);
            assert_eq!(distance.ms(), Some(10.0), "the edge may just be busy");
        }
        distance.observe(205.0);
        assert_eq!(distance.ms(), Some(200.0), "a cable is cut");
        distance.observe(10.0);
        assert_eq!(distance.ms(), Some(10.0));
        for ms in [9.0, 11.0, 11.5, 10.5, 11.8, 11.9, 11.7] {
            distance.observe(ms);
            assert_eq!(distance.ms(), Some(10.0), "noise moves nobody");
        }
    }

    proptest! {
        #[test]
        fn it_stays_within_what_was_measured(
            measured in proptest::collection::vec((0.1..5_000.0_f64, 0..30_000_u64), 1..50),
        ) {
            let mut now = Moment(0);
            let mut ewma = PeakEwma::new(measured[0].0, now);
            let mut distance = Distance::default();
            for (ms, pause_ms) in &measured {
                now = now + Duration::from_millis(*pause_ms);
                ewma.observe(*ms, now);
                distance.observe(*ms);
                prop_assert!(ewma.ms() >= *ms - 1e-9, "a rise is never late");
            }
            let (least, most) = measured.iter().fold((f64::MAX, 0.0_f64), |(least, most), (ms, _)| (least.min(*ms), most.max(*ms)));
            for ms in [Some(ewma.ms()), distance.ms()].into_iter().flatten() {
                prop_assert!((least - 1e-9..=most + 1e-9).contains(&ms), "{ms} of {least}..{most}");
            }
        }
    }
}
