//! Latencies that can be merged: percentiles of several vantages come from the merged sketch, never from averaged
//! percentiles.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sketches_ddsketch::{Config, DDSketch};

/// Relative error of a percentile: 1 %.
const RELATIVE_ERROR: f64 = 0.01;
/// Limit of bins: with 1 % error, 1,024 bins span more than eight orders of magnitude.
const BINS_MAX: u32 = 1024;
/// Smallest latency told apart from zero, in milliseconds.
const SMALLEST_MS: f64 = 0.001;
/// Longest latency recorded, in milliseconds; ten minutes is more than any timeout here.
const LONGEST_MS: f64 = 600_000.0;

/// Most latencies that one sketch from outside may hold; the sums of many such sketches still fit their counters.
const COUNT_MAX: u64 = 1 << 32;

/// A mergeable sketch of latencies in milliseconds (DDSketch, Masson et al. 2019), within 1 %.
///
/// The wire form is one pair of latency and count for each bin, and the sketch is rebuilt from the pairs: data from
/// outside never becomes the inside of the sketch.
#[derive(Clone)]
pub struct Latency(DDSketch);

fn config() -> Config {
    Config::new(RELATIVE_ERROR, BINS_MAX, SMALLEST_MS)
}

impl Default for Latency {
    fn default() -> Self {
        Self(DDSketch::new(config()))
    }
}

/// The fields of a sketch as the library serialises them: it offers no other way to its bins. The tests of this file fail when
/// a later version names them otherwise.
#[derive(Deserialize)]
struct Inside {
    store: Bins,
    zero_count: u64,
}

#[derive(Deserialize)]
struct Bins {
    bins: Vec<u64>,
    offset: i32,
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        let inside = serde_json::to_value(&self.0).and_then(serde_json::from_value::<Inside>);
        let Inside { store, zero_count } = inside.map_err(S::Error::custom)?;
        let config = config();
        let bins = store.bins.iter().zip(store.offset..).filter(|(count, _)| **count > 0);
        let pairs = bins.map(|(count, key)| (config.value(key), *count));
        let zero = (zero_count > 0).then_some((0.0, zero_count));
        serializer.collect_seq(zero.into_iter().chain(pairs))
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = Vec::<(f64, u64)>::deserialize(deserializer)?;
        if pairs.len() > BINS_MAX as usize + 1 {
            return Err(D::Error::custom(format!(
                "{} bins are more than {BINS_MAX}",
                pairs.len()
            )));
        }
        let mut latency = Self::default();
        let mut total = 0_u64;
        for (ms, count) in pairs {
            total = total.saturating_add(count);
            if !(0.0..=LONGEST_MS * (1.0 + RELATIVE_ERROR)).contains(&ms) || total > COUNT_MAX {
                return Err(D::Error::custom(format!("{count} latencies of {ms} ms cannot be")));
            }
            latency.0.add_with_count(ms.min(LONGEST_MS), count);
        }
        Ok(latency)
    }
}

impl Latency {
    /// Records one latency.
    pub fn add(&mut self, latency_ms: f64) {
        if latency_ms.is_finite() {
            self.0.add(latency_ms.clamp(0.0, LONGEST_MS));
        }
    }

    /// Records one latency many times.
    pub fn add_many(&mut self, latency_ms: f64, count: u64) {
        if latency_ms.is_finite() && count > 0 {
            self.0.add_with_count(latency_ms.clamp(0.0, LONGEST_MS), count);
        }
    }

    /// Adds the latencies of another sketch.
    pub fn merge(&mut self, other: &Latency) {
        let merged = self.0.merge(&other.0);
        debug_assert!(merged.is_ok(), "all sketches share one configuration");
    }

    /// Number of recorded latencies.
    pub fn count(&self) -> u64 {
        self.0.count() as u64
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.0.count() == 0
    }

    /// The latency that a share `q` (0..=1) of all do not exceed, in milliseconds; `None` when nothing was recorded. It
    /// is the nearest rank: the P99 of fewer than a hundred is the slowest of them. Otherwise a region that is slow at
    /// each probe, twice a tick, would never be slow.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.0.count().checked_sub(1)?;
        let rank = ((q * (last + 1) as f64).ceil() as usize).saturating_sub(1).min(last);
        // The library counts ranks as a share of the last one, rounded down: half a rank more gives exactly this one.
        let share = match rank {
            0 => 0.0,
            rank if rank == last => 1.0,
            rank => (rank as f64 + 0.5) / last as f64,
        };
        self.0.quantile(share).ok().flatten()
    }
}

impl PartialEq for Latency {
    /// Equal when their wire forms are: same bins, same counts.
    fn eq(&self, other: &Self) -> bool {
        let written = |latency: &Self| serde_json::to_string(latency).ok();
        written(self) == written(other)
    }
}

impl std::fmt::Debug for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Latency(n={}, p50={:?}, p99={:?})",
            self.count(),
            self.quantile(0.5),
            self.quantile(0.99)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The true percentile, by the nearest rank.
    fn exact(sorted: &[f64], q: f64) -> f64 {
        sorted[((q * sorted.len() as f64).ceil() as usize).saturating_sub(1)]
    }

    #[test]
    fn the_p99_of_few_is_the_slowest_of_them() {
        for (fast, slow_is_p99) in [(1, true), (98, true), (99, false)] {
            let mut latency = sketch_of(&vec![100.0; fast]);
            latency.add(5_000.0);
            let p99 = latency.quantile(0.99).unwrap();
            assert_eq!(p99 > 4_900.0, slow_is_p99, "{fast} fast ones: {p99}");
        }
        assert_eq!(sketch_of(&[7.0]).quantile(0.0), sketch_of(&[7.0]).quantile(1.0));
    }

    fn sketch_of(latencies: &[f64]) -> Latency {
        let mut latency = Latency::default();
        latencies.iter().for_each(|ms| latency.add(*ms));
        latency
    }

    proptest! {
        /// For every spread of latencies over vantages and ticks, and every order of merging: percentiles are within 1
        /// % of the true ones, and the merged sketch has the same wire form.
        #[test]
        fn merged_percentiles_are_within_one_percent_of_the_true_ones(
            mut told in prop::collection::vec(
                (prop_oneof![0.002..600_000.0_f64, 0.1..10.0_f64, 400.0..600.0_f64], 0usize..12), 1..600
            ),
            rotation in 0usize..12,
            q in 0.0..=1.0_f64,
        ) {
            let mut parts = vec![Latency::default(); 12];
            told.iter().for_each(|(ms, part)| parts[*part].add(*ms));
            let (mut merged, mut merged_otherwise) = (Latency::default(), Latency::default());
            parts.iter().for_each(|part| merged.merge(part));
            parts.rotate_left(rotation);
            // The same in two halves, each merged before.
            let (left, right) = parts.split_at(6);
            let half = |parts: &[Latency]| parts.iter().rev().fold(Latency::default(), |mut half, part| {
                half.merge(part);
                half
            });
            merged_otherwise.merge(&half(right));
            merged_otherwise.merge(&half(left));
            prop_assert_eq!(serde_json::to_string(&merged).unwrap(), serde_json::to_string(&merged_otherwise).unwrap());

            told.sort_by(|a, b| a.0.total_cmp(&b.0));
            let sorted: Vec<f64> = told.into_iter().map(|(ms, _)| ms).collect();
            prop_assert_eq!(merged.count() as usize, sorted.len());
            for q in [q, 0.0, 0.5, 0.95, 0.99, 1.0] {
                let (is, should) = (merged.quantile(q).unwrap(), exact(&sorted, q));
                prop_assert!((is - should).abs() <= 0.01001 * should, "p{} is {is}, should be {should}", q * 100.0);
            }
        }

        #[test]
        fn a_sketch_is_read_as_it_was_written(told in prop::collection::vec(0.0..1e7_f64, 0..100)) {
            let text = serde_json::to_string(&sketch_of(&told)).unwrap();
            let read: Latency = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&read, &sketch_of(&told));
            prop_assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }

    #[test]
    fn percentiles_are_those_of_all_vantages_together() {
        // One vantage is fast, one is slow: the average of their P99 would be about 1,500 ms.
        let mut merged = sketch_of(&(1..=990).map(f64::from).collect::<Vec<_>>());
        merged.merge(&sketch_of(&[2000.0; 10]));
        let p99 = merged.quantile(0.99).unwrap();
        assert!((p99 - 990.0).abs() <= 9.9, "{p99}");
        // A few more slow latencies make it slow.
        (0..10).for_each(|_| merged.add(2000.0));
        let p99 = merged.quantile(0.99).unwrap();
        assert!((p99 - 2000.0).abs() <= 20.0, "{p99}");
    }

    #[test]
    fn the_ends_of_the_scale_are_kept() {
        let all = [-5.0, 0.0, 0.0004, 0.001, 599_999.0, 600_000.0, 1e9];
        let latency = sketch_of(&all);
        assert_eq!(latency.count(), 7);
        assert_eq!(latency.quantile(0.0), Some(0.0));
        let longest = latency.quantile(1.0).unwrap();
        assert!((longest - 600_000.0).abs() <= 6_000.0, "{longest}");
        assert_eq!(Latency::default().quantile(0.5), None);
        assert_eq!(serde_json::to_string(&Latency::default()).unwrap(), "[]");
        // A value that is no number is no latency.
        assert_eq!(sketch_of(&[f64::NAN, f64::INFINITY]), Latency::default());
    }

    #[test]
    fn nonsense_from_outside_is_refused_and_never_panics() {
        for nonsense in [
            "{}",
            "[[1.0]]",
            "[[-1.0,1]]",
            "[[1e300,1]]",
            "[[null,1]]",
            "[[1.0,5000000000]]",
            "[[1.0,-1]]",
        ] {
            assert!(serde_json::from_str::<Latency>(nonsense).is_err(), "{nonsense}");
        }
        let many = serde_json::to_string(&vec![(1.0, 1_u64); 2000]).unwrap();
        assert!(serde_json::from_str::<Latency>(&many).is_err());
    }
}
