//! Spread badness: ticks that are bad now and then, and errors that are too few in each tick to be seen there.
//!
//! A region that fails every third call is never bad for a minute in a row for each vantage, because each looks once in
//! a tick. So the last ticks are also judged together, by all their samples.

use std::{collections::VecDeque, sync::Arc};

use topology::{NodeId, Tick};

use crate::texts;

/// Certainty with which the errors of a window have to be past the limit, in standard deviations (the lower end of the
/// Wilson interval). With 3.5, a region that loses two of a hundred is mistaken for one past 10 % less than once in a
/// thousand nights (see the tests below); with 3, one that loses two of a hundred connections is mistaken for one past
/// 5 %.
const CERTAINTY: f64 = 3.5;
/// The same without the vantages that accuse most. They may be broken themselves, so the others have to see the errors
/// too, and need less certainty: the only doubt is whether they agree.
const CERTAINTY_WITHOUT_ACCUSERS: f64 = 2.5;
/// Vantages remembered one by one for each tick, those with most errors; the others count together. Only vantages that
/// may have to be left out are needed by name.
const ACCUSERS_MAX: usize = 16;

/// The length of a window, and its limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    /// Ticks in the window.
    pub(crate) ticks: u32,
    /// Bad ticks in the window that count like bad ones in a row.
    pub(crate) bad: u32,
    /// Largest share of errors that is tolerated; none for latencies.
    pub(crate) errors_max: Option<f64>,
    /// Vantages that must agree.
    pub(crate) vantages_min: usize,
}

/// The verdict of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Spread {
    /// Nothing is bad.
    #[default]
    Clear,
    /// Too few errors to call a healthy region bad, and too many to call a bad one healthy.
    Lingers,
    /// The window is bad.
    Bad,
}

/// The last ticks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recent(VecDeque<Remembered>);

/// One tick.
#[derive(Debug, Clone)]
pub(crate) struct Remembered {
    pub(crate) tick: Tick,
    /// Whether enough vantages called it bad.
    pub(crate) is_agreed: bool,
    /// Whether the samples of all together were past the limit.
    pub(crate) is_past: bool,
    pub(crate) failed: u64,
    pub(crate) samples: u64,
    /// The vantages with most errors.
    pub(crate) accusers: Arc<[Accuser]>,
}

/// Failures and samples of one vantage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accuser {
    pub(crate) vantage: NodeId,
    pub(crate) failed: u64,
    pub(crate) samples: u64,
}

impl Remembered {
    /// A tick by the samples of all vantages; `seen` has each vantage with its failures and attempts.
    pub(crate) fn new<'w>(
        tick: Tick,
        is_agreed: bool,
        is_past: bool,
        seen: impl Iterator<Item = (&'w NodeId, u64, u64)>,
    ) -> Self {
        let (mut failed, mut samples) = (0, 0);
        let mut accusers: Vec<(&NodeId, u64, u64)> = Vec::new();
        for (vantage, its_failed, its_samples) in seen {
            failed += its_failed;
            samples += its_samples;
            accusers.push((vantage, its_failed, its_samples));
        }
        // No vantage accuses a region in which nothing failed.
        if failed == 0 {
            accusers.clear();
        }
        accusers.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        accusers.truncate(ACCUSERS_MAX);
        let accusers = accusers.into_iter().map(|(vantage, failed, samples)| Accuser {
            vantage: vantage.clone(),
            failed,
            samples,
        });
        Self {
            tick,
            is_agreed,
            is_past,
            failed,
            samples,
            accusers: accusers.collect(),
        }
    }
}

impl Recent {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds a tick that is newer than all before, and forgets those that are too old.
    pub(crate) fn add(&mut self, tick: Remembered, ticks: u32) {
        let newest = tick.tick;
        self.0.push_back(tick);
        let is_old = |it: &Remembered| newest.0.saturating_sub(it.tick.0) >= u64::from(ticks);
        while self.0.front().is_some_and(is_old) {
            self.0.pop_front();
        }
    }

    /// Whether enough ticks are bad, each by enough vantages.
    pub(crate) fn is_agreed(&self, window: Window) -> bool {
        self.0.iter().filter(|it| it.is_agreed).count() >= window.bad as usize
    }

    pub(crate) fn judge(&self, window: Window) -> Spread {
        if self.is_agreed(window) {
            return Spread::Bad;
        }
        let past = self.0.iter().filter(|it| it.is_past).count();
        let Some(max) = window.errors_max.filter(|_| past >= window.bad as usize) else {
            return Spread::Clear;
        };
        let (failed, samples) = self.total();
        if failed as f64 <= samples as f64 * max {
            return Spread::Clear;
        }
        let (without_failed, without_samples) = self.without_top_accusers(window.vantages_min, max);
        let is_sure = lower_bound(failed, samples, CERTAINTY) > max;
        if is_sure && lower_bound(without_failed, without_samples, CERTAINTY_WITHOUT_ACCUSERS) > max {
            Spread::Bad
        } else {
            Spread::Lingers
        }
    }

    /// The vantages that saw more failures than the limit, in the order of names.
    pub(crate) fn accusers(&self, window: Window) -> Vec<NodeId> {
        let max = window.errors_max.unwrap_or_default();
        let mut accusers: Vec<NodeId> = self
            .by_vantage()
            .into_iter()
            .filter(|(_, failed, samples)| *failed as f64 > *samples as f64 * max)
            .map(|(vantage, ..)| vantage.clone())
            .collect();
        accusers.sort_unstable();
        accusers
    }

    pub(crate) fn describe(&self) -> String {
        let bad = self.0.iter().filter(|it| it.is_agreed || it.is_past).count();
        let (failed, samples) = self.total();
        texts::spread(bad, self.0.len(), failed, samples)
    }

    fn total(&self) -> (u64, u64) {
        let add = |(failed, samples): (u64, u64), it: &Remembered| (failed + it.failed, samples + it.samples);
        self.0.iter().fold((0, 0), add)
    }

    fn by_vantage(&self) -> Vec<(&NodeId, u64, u64)> {
        let mut by_vantage = std::collections::BTreeMap::<&NodeId, (u64, u64)>::new();
        for accuser in self.0.iter().flat_map(|it| it.accusers.iter()) {
            let (failed, samples) = by_vantage.entry(&accuser.vantage).or_default();
            *failed += accuser.failed;
            *samples += accuser.samples;
        }
        by_vantage
            .into_iter()
            .map(|(vantage, (failed, samples))| (vantage, failed, samples))
            .collect()
    }

    /// The sums without the vantages that accuse most, as many as could be wrong together.
    fn without_top_accusers(&self, vantages_min: usize, max: f64) -> (u64, u64) {
        let mut loudest = self.by_vantage();
        let excess = |it: &(&NodeId, u64, u64)| it.1 as f64 - it.2 as f64 * max;
        loudest.sort_by(|a, b| excess(b).total_cmp(&excess(a)));
        let (mut failed, mut samples) = self.total();
        for (_, its_failed, its_samples) in loudest.into_iter().take(vantages_min.saturating_sub(1)) {
            failed = failed.saturating_sub(its_failed);
            samples = samples.saturating_sub(its_samples);
        }
        (failed, samples)
    }
}

/// The lower end of the Wilson interval (E. B. Wilson 1927): the true share of failures is at least this, beyond
/// chance. With few samples it is far below the share in the samples.
fn lower_bound(failed: u64, samples: u64, sure: f64) -> f64 {
    if samples == 0 {
        return 0.0;
    }
    let (n, share, z2) = (samples as f64, failed as f64 / samples as f64, sure * sure);
    let middle = share + z2 / (2.0 * n);
    let half = sure * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    (middle - half) / (1.0 + z2 / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chance with a seed (splitmix64), in 0..1.
    struct Chance(u64);

    impl Chance {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as f64 / u64::MAX as f64
        }
    }

    /// The number of nights, of eight hours each, in which a region is called bad that fails this share of attempts:
    /// three vantages, each with that many attempts a tick.
    fn nights_called_bad(nights: u64, attempts: u64, fails: f64, window: Window) -> usize {
        let vantages = ["a", "b", "c"].map(|name| NodeId::new(name).unwrap());
        let is_called_bad = |night: u64| {
            let (mut chance, mut recent) = (Chance(night), Recent::default());
            (0..8 * 360).any(|tick| {
                let seen = vantages.each_ref().map(|vantage| {
                    let failed = (0..attempts).filter(|_| chance.next() < fails).count();
                    (vantage, failed as u64, attempts)
                });
                let (failed, samples) = (seen.iter().map(|it| it.1).sum::<u64>(), 3 * attempts);
                let accuse = seen.iter().filter(|it| it.1 == attempts).count();
                let is_past = failed as f64 > samples as f64 * window.errors_max.unwrap();
                let remembered = Remembered::new(Tick(tick), accuse >= 2, is_past, seen.into_iter());
                recent.add(remembered, window.ticks);
                // A tick without failures makes no window bad.
                failed > 0 && recent.judge(window) == Spread::Bad
            })
        };
        (0..nights).filter(|night| is_called_bad(*night)).count()
    }

    const ASR: Window = Window {
        ticks: 30,
        bad: 12,
        errors_max: Some(0.10),
        vantages_min: 2,
    };
    const GATEWAY: Window = Window {
        ticks: 12,
        bad: 4,
        errors_max: Some(0.05),
        vantages_min: 2,
    };

    #[test]
    fn a_healthy_region_is_not_left_in_a_thousand_nights() {
        // The usual failures: up to two of a hundred.
        assert_eq!(nights_called_bad(1_000, 1, 0.02, ASR), 0);
        assert_eq!(nights_called_bad(1_000, 2, 0.02, GATEWAY), 0);
    }

    #[test]
    fn a_region_that_fails_now_and_then_is_left_in_every_night() {
        assert_eq!(nights_called_bad(100, 1, 0.30, ASR), 100);
        assert_eq!(nights_called_bad(100, 2, 0.30, GATEWAY), 100);
    }

    #[test]
    fn few_samples_are_never_sure() {
        assert_eq!(lower_bound(0, 0, CERTAINTY), 0.0);
        assert!(lower_bound(1, 3, CERTAINTY) < 0.05);
        assert!(lower_bound(27, 90, CERTAINTY) > 0.10);
        assert!(lower_bound(11, 100, CERTAINTY) < 0.10);
        let of_many = lower_bound(300_000, 1_000_000, CERTAINTY);
        assert!((0.298..0.3).contains(&of_many), "{of_many}");
    }
}
