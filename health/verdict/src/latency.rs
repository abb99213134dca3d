//! Latencies that can be merged: percentiles of several vantages come from the merged sketch, never from averaged
//! percentiles.
//!
//! The bins are those of DDSketch (Masson et al., VLDB 2019): each is wider than the one before by the same factor, so
//! that every percentile is within 1 % of the true one. Only bins that hold something are kept. A control plane takes
//! hundreds of thousands of sketches in each tick, and most of them hold a handful of latencies.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Width of a bin in the natural logarithm. The value told for a bin is off by at most tanh(width / 2), a hair under 1 %:
/// room for the rounding of the arithmetic.
const BIN_WIDTH: f64 = 0.0198;
/// Latencies up to this, in milliseconds, are not told apart from zero.
const SMALLEST_MS: f64 = 0.001;
/// Longest latency recorded, in milliseconds; ten minutes is more than any timeout here.
const LONGEST_MS: f64 = 600_000.0;
/// Most bins there are: one for zero, and ln(longest / smallest) / width.
const BINS_MAX: usize = 1024;
/// Bins looked at one by one when merging, before the search: the next one is mostly this close, and a search by halves
/// takes more than twice as long.
const NEAR: usize = 4;

/// A mergeable sketch of latencies in milliseconds, within 1 %.
///
/// Written as pairs of latency and count, one per bin, in the order of latency: the same latencies are written alike
/// whatever the order in which they were recorded and merged.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Latency {
    /// Number of the bin and what it holds, in the order of bins; none is empty. Bin 0 is for zero.
    bins: Vec<(u16, u32)>,
}

fn bin_of(latency_ms: f64) -> u16 {
    if latency_ms <= SMALLEST_MS {
        return 0;
    }
    let widths = (latency_ms.min(LONGEST_MS) / SMALLEST_MS).ln() / BIN_WIDTH;
    // At least 1, and at most 1,021 by the bounds above.
    widths.ceil() as u16
}

/// The value with the least relative distance to both ends of the bin.
fn value_of(bin: u16) -> f64 {
    if bin == 0 {
        return 0.0;
    }
    SMALLEST_MS * ((f64::from(bin) - 0.5) * BIN_WIDTH).exp() / (BIN_WIDTH / 2.0).cosh()
}

impl Latency {
    /// Records one latency.
    pub fn add(&mut self, latency_ms: f64) {
        if latency_ms.is_finite() {
            self.add_to_bin(0, bin_of(latency_ms), 1);
        }
    }

    /// Adds everything another sketch recorded.
    pub fn merge(&mut self, other: &Latency) {
        let mut from = 0;
        for (bin, count) in &other.bins {
            let near = self.bins[from..].iter().take(NEAR).position(|(it, _)| it >= bin);
            from = match near {
                Some(by) => self.add_at(from + by, *bin, *count),
                None => self.add_to_bin(from, *bin, *count),
            };
        }
    }

    /// Adds to a bin that is not among the first `from`; returns where it is.
    fn add_to_bin(&mut self, from: usize, bin: u16, count: u32) -> usize {
        let at = from + self.bins[from..].partition_point(|(it, _)| *it < bin);
        self.add_at(at, bin, count)
    }

    /// Adds to a bin that is at `at`, or belongs there.
    fn add_at(&mut self, at: usize, bin: u16, count: u32) -> usize {
        match self.bins.get_mut(at) {
            // Saturating sums are the same in every order, too.
            Some((it, sum)) if *it == bin => *sum = sum.saturating_add(count),
            _ => self.bins.insert(at, (bin, count)),
        }
        at
    }

    /// Latencies recorded.
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.bins.is_empty()
    }

    /// The smallest latency that at least a share `q` (0..=1) of all do not exceed (the nearest rank), in milliseconds;
    /// `None` when nothing was recorded.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        // The products of decimal shares are a little off: 7 % of 100 is not the eighth.
        let rank = (q * self.count() as f64 - 1e-9).ceil() as u64;
        let mut passed = 0;
        let at_rank = |(_, count): &&(u16, u32)| {
            passed += u64::from(*count);
            passed >= rank
        };
        let (bin, _) = self.bins.iter().find(at_rank).or(self.bins.last())?;
        Some(value_of(*bin))
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.bins.iter().map(|(bin, count)| (value_of(*bin), count)))
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = Vec::<(f64, u32)>::deserialize(deserializer)?;
        if pairs.len() > BINS_MAX {
            return Err(D::Error::custom(format!(
                "{} bins are more than {BINS_MAX}",
                pairs.len()
            )));
        }
        let mut latency = Self::default();
        for (ms, count) in pairs {
            // The longest is written as the value of its bin, which may lie a little above it.
            if !(0.0..=LONGEST_MS * 1.01).contains(&ms) {
                return Err(D::Error::custom(format!("{ms} ms is no latency")));
            }
            if count > 0 {
                latency.add_to_bin(0, bin_of(ms), count);
            }
        }
        Ok(latency)
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

    /// The true percentile by nearest rank.
    fn exact(sorted: &[f64], q: f64) -> f64 {
        let rank = (q * sorted.len() as f64 - 1e-9).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }

    fn sketch_of(latencies: &[f64]) -> Latency {
        let mut latency = Latency::default();
        latencies.iter().for_each(|ms| latency.add(*ms));
        latency
    }

    proptest! {
        /// However latencies are spread over vantages and ticks, and in whatever order those are merged: percentiles are
        /// within 1 % of the true ones, and the merged sketch is written alike.
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
            // Also not one by one: two halves, each merged before.
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
                prop_assert!((is - should).abs() <= 0.01 * should, "p{} is {is}, should be {should}", q * 100.0);
            }
        }

        #[test]
        fn what_is_read_is_what_was_written(told in prop::collection::vec(0.0..1e7_f64, 0..100)) {
            let text = serde_json::to_string(&sketch_of(&told)).unwrap();
            let read: Latency = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&read, &sketch_of(&told));
            prop_assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }

    #[test]
    fn percentiles_are_those_of_all_vantages_together() {
        // One vantage is fast, one is slow: averaging their P99 would give about 1,500 ms.
        let mut merged = sketch_of(&(1..=990).map(f64::from).collect::<Vec<_>>());
        merged.merge(&sketch_of(&[2000.0; 10]));
        let p99 = merged.quantile(0.99).unwrap();
        assert!((p99 - 990.0).abs() <= 9.9, "{p99}");
        // An eleventh slow one of 1,001 makes it slow.
        merged.add(2000.0);
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
        assert!(usize::from(bin_of(LONGEST_MS)) < BINS_MAX);
        assert_eq!(Latency::default().quantile(0.5), None);
        assert_eq!(serde_json::to_string(&Latency::default()).unwrap(), "[]");
        // What is no number is no latency.
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
        // Bins out of order, twice or empty are put right; counts too large to add up stay at the largest.
        let odd: Latency = serde_json::from_str("[[9.0,1],[1.0,4294967295],[1.0,7],[5.0,0]]").unwrap();
        assert_eq!(odd.count(), u64::from(u32::MAX) + 1);
    }
}
