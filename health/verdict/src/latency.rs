//! Latencies that can be merged: percentiles of several vantages come from the merged sketch, never from averaged
//! percentiles.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sketches_ddsketch::{Config, DDSketch};

/// Relative error of a percentile: 1 %.
const RELATIVE_ERROR: f64 = 0.01;
/// Bins kept: with 1 % error, 1,024 bins span more than eight orders of magnitude.
const BINS_MAX: u32 = 1024;
/// Smallest latency told apart from zero, in milliseconds.
const SMALLEST_MS: f64 = 0.001;
/// Longest latency recorded, in milliseconds; ten minutes is more than any timeout here.
const LONGEST_MS: f64 = 600_000.0;

/// Most latencies one sketch from outside may claim; sums of many of these still fit their counters.
const COUNT_MAX: u64 = 1 << 32;

/// A mergeable sketch of latencies in milliseconds (DDSketch, Masson et al. 2019), within 1 %.
///
/// Written as pairs of latency and count, one per bin, and rebuilt from them: what comes from outside never becomes the
/// inside of the sketch.
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

/// What the library tells of a sketch's inside.
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

    /// Adds everything another sketch recorded.
    pub fn merge(&mut self, other: &Latency) {
        let merged = self.0.merge(&other.0);
        debug_assert!(merged.is_ok(), "all sketches share one configuration");
    }

    /// Latencies recorded.
    pub fn count(&self) -> usize {
        self.0.count()
    }

    /// The latency that a share `q` (0..=1) of all stay below, in milliseconds; `None` when nothing was recorded.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.0.quantile(q).ok().flatten()
    }
}

impl PartialEq for Latency {
    /// Equal when they are written alike: same bins, same counts.
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

    #[test]
    fn percentiles_come_from_the_merged_sketch_and_are_within_one_percent() {
        // One vantage is fast, one is slow: averaging their P99 would give about 1000 ms.
        let (mut fast, mut slow) = (Latency::default(), Latency::default());
        (1..=990).for_each(|ms| fast.add(f64::from(ms)));
        (0..10).for_each(|_| slow.add(2000.0));
        fast.merge(&slow);
        let p99 = fast.quantile(0.99).unwrap();
        assert!((p99 - 990.0).abs() <= 9.9 || (p99 - 2000.0).abs() <= 20.0, "{p99}");
        let p50 = fast.quantile(0.5).unwrap();
        assert!((p50 - 500.0).abs() <= 6.0, "{p50}");
    }

    #[test]
    fn a_sketch_survives_the_wire() {
        let mut latency = Latency::default();
        [0.0, 0.4, 12.5, 12.6, 3000.0, 1e9]
            .into_iter()
            .for_each(|ms| latency.add(ms));
        let text = serde_json::to_string(&latency).unwrap();
        let read: Latency = serde_json::from_str(&text).unwrap();
        assert_eq!(read.count(), 6);
        for q in [0.0, 0.3, 0.5, 0.8, 1.0] {
            let (before, after) = (latency.quantile(q).unwrap(), read.quantile(q).unwrap());
            assert!((before - after).abs() <= 0.011 * before, "{before} became {after}");
        }
        // Once written, writing it again changes nothing: reports can be compared byte by byte.
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert_eq!(serde_json::to_string(&Latency::default()).unwrap(), "[]");
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
