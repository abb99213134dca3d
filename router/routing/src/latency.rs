//! Round trips as this edge measures them: a rise counts at once, a fall is believed slowly.
//!
//! That is the peak-EWMA of Finagle and linkerd: a mean would hide the first seconds of trouble, which is when sessions are
//! best sent elsewhere, and a maximum would never forgive.

use std::time::Duration;

use topology::Moment;

/// After this long a fall has come through to 63 %; linkerd's value.
const DECAY: Duration = Duration::from_secs(10);

/// A peak-sensitive moving average, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeakEwma {
    ms: f64,
    at: Moment,
}

impl PeakEwma {
    /// Begins with one measurement.
    pub fn new(ms: f64, at: Moment) -> Self {
        Self { ms, at }
    }

    /// Takes a measurement.
    pub fn observe(&mut self, ms: f64, now: Moment) {
        self.ms = if ms > self.ms {
            ms
        } else {
            let keep = self.keep(now);
            keep * self.ms + (1.0 - keep) * ms
        };
        self.at = now;
    }

    /// What was measured, in milliseconds.
    pub fn ms(&self) -> f64 {
        self.ms
    }

    /// The same, fading while nothing is measured: what was avoided for a peak is tried again.
    pub fn faded_ms(&self, now: Moment) -> f64 {
        self.ms * self.keep(now)
    }

    fn keep(&self, now: Moment) -> f64 {
        (-now.since(self.at).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// How far a region is. Everything at home there would move if one measurement made it far, and one lost packet takes a
/// second, so a rise counts once it was measured twice in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    believed: PeakEwma,
    last_ms: f64,
}

impl Distance {
    /// Begins with one measurement.
    pub fn new(ms: f64, at: Moment) -> Self {
        let believed = PeakEwma::new(ms, at);
        Self { believed, last_ms: ms }
    }

    /// Takes a measurement.
    pub fn observe(&mut self, ms: f64, now: Moment) {
        self.believed.observe(ms.min(self.last_ms), now);
        self.last_ms = ms;
    }

    /// Round trip in milliseconds.
    pub fn ms(&self) -> f64 {
        self.believed.ms()
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
    fn one_slow_handshake_does_not_make_a_region_far_and_two_do() {
        let mut distance = Distance::new(10.0, seconds(0));
        distance.observe(10.0, seconds(1));
        distance.observe(1_000.0, seconds(2));
        assert_eq!(distance.ms(), 10.0);
        distance.observe(10.0, seconds(3));
        distance.observe(90.0, seconds(4));
        distance.observe(80.0, seconds(5));
        assert_eq!(distance.ms(), 80.0);
    }

    proptest! {
        #[test]
        fn it_stays_within_what_was_measured(
            measured in proptest::collection::vec((0.1..5_000.0_f64, 0..30_000_u64), 1..50),
        ) {
            let mut now = Moment(0);
            let mut ewma = PeakEwma::new(measured[0].0, now);
            let mut distance = Distance::new(measured[0].0, now);
            for (ms, pause_ms) in &measured {
                now = now + Duration::from_millis(*pause_ms);
                ewma.observe(*ms, now);
                distance.observe(*ms, now);
                prop_assert!(ewma.ms() >= *ms - 1e-9, "a rise is never late");
            }
            let (least, most) = measured.iter().fold((f64::MAX, 0.0_f64), |(least, most), (ms, _)| (least.min(*ms), most.max(*ms)));
            for ms in [ewma.ms(), distance.ms()] {
                prop_assert!((least - 1e-9..=most + 1e-9).contains(&ms), "{ms} of {least}..{most}");
            }
        }
    }
}
