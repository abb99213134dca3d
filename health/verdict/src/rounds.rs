//! When a round is judged. A round is what all vantages report on one tick.
//!
//! The clocks of the vantages and ours need not agree. So our clock does not decide when a round is over: a round is judged
//! when everybody who reported of late is in, or a moment after most of them are. A report on a tick that is not over by our
//! clock waits for the others, and a late one counts: its round is judged again.
//!
//! Time is an argument here: `at` is the age of the watcher by its monotonic clock, which nobody sets.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use topology::{RegionId, Tick, policy::HealthPolicy};

use crate::{Before, TickReport, Unwanted, Verdict, Windows, judge};

/// How many ticks ahead of our clock a report may be. With what the policy allows for late ones this bears clocks that are
/// 20 s apart; a node that is further off has no time service at all, and its word would have to be kept for long.
pub const TICKS_AHEAD_MAX: u64 = 2;
/// How long a round waits for the rest once most vantages are in: a report takes milliseconds, so whoever is later than this
/// has a slow network or a wrong clock. Failover waits that much longer when a vantage is dead.
pub const SETTLE: Duration = Duration::from_secs(1);
/// How long a round waits when most vantages are missing: a tick longer, so that a control plane whose clock is a tick ahead
/// still waits for the others. Nothing can be decided without them anyway.
pub const PATIENCE: Duration = Duration::from_secs(11);

/// Reports, round by round.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    windows: Windows,
    /// Rounds with something that has not been judged.
    waiting: BTreeMap<Tick, Waiting>,
    judged: Option<Tick>,
    /// How many vantages reported of late; none until enough ticks were watched to know.
    lively: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    since: Duration,
    /// Since when most vantages are in.
    most_since: Option<Duration>,
}

/// What a watcher knows of the time, and of who reports to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// The newest tick that is over by its wall clock.
    pub closed: Tick,
    /// Its age by its monotonic clock.
    pub at: Duration,
    /// Vantages that may report, itself included.
    pub vantages: usize,
}

impl Rounds {
    /// Takes a report as it comes.
    pub fn take(&mut self, report: TickReport, watch: Watch, policy: &HealthPolicy) -> Result<(), Unwanted> {
        let tick = report.tick;
        if tick.0 > watch.closed.0.saturating_add(TICKS_AHEAD_MAX) {
            return Err(Unwanted::TooEarly(tick, report.vantage));
        }
        // Also by the rounds: where our clock is behind, they are what is new.
        let newest = watch.closed.max(self.judged.unwrap_or_default());
        self.windows.take(report, newest, policy)?;
        self.wait_for(tick, watch, policy);
        Ok(())
    }

    /// Looks at the clock: a round also begins when the tick is over here, though nobody reports on it. Returns whether the
    /// clock went back so far that everything seen lies in the future; then it is forgotten.
    pub fn look(&mut self, watch: Watch, policy: &HealthPolicy) -> bool {
        let newest = Tick(watch.closed.0.saturating_add(TICKS_AHEAD_MAX));
        let went_back = self.judged.is_some_and(|judged| judged > newest);
        if went_back {
            *self = Self::default();
        }
        if self.judged < Some(watch.closed) {
            self.wait_for(watch.closed, watch, policy);
        }
        went_back
    }

    /// The round to judge now, if one is complete or has waited for long enough.
    pub fn due(&self, watch: Watch, policy: &HealthPolicy) -> Option<Tick> {
        let mut waiting = self.waiting.iter().rev();
        let due =
            waiting.find(|(tick, waiting)| self.is_complete(**tick, watch, policy) || waiting.until() <= watch.at);
        due.map(|(tick, _)| self.judged.unwrap_or_default().max(*tick))
    }

    /// When a round has waited for long enough, if one waits; by the monotonic clock.
    pub fn wakes_at(&self) -> Option<Duration> {
        self.waiting.values().map(|waiting| waiting.until()).min()
    }

    /// Judges everything up to a round that is due.
    pub fn judge<'r>(
        &mut self,
        tick: Tick,
        regions: impl IntoIterator<Item = &'r RegionId>,
        policy: &HealthPolicy,
        before: &BTreeMap<RegionId, Before>,
    ) -> BTreeMap<RegionId, Verdict> {
        self.waiting = self.waiting.split_off(&Tick(tick.0.saturating_add(1)));
        self.judged = self.judged.max(Some(tick));
        let regions: BTreeSet<&RegionId> = regions.into_iter().collect();
        self.windows.forget(policy, tick, |region| regions.contains(region));
        // Counted once a round, not with each report: a fleet has a thousand vantages.
        self.lively = self.windows.has_settled().then(|| self.windows.lively());
        judge(regions, &self.windows, policy, tick, before)
    }

    /// The newest round that was judged.
    pub fn judged(&self) -> Option<Tick> {
        self.judged
    }

    fn wait_for(&mut self, tick: Tick, watch: Watch, policy: &HealthPolicy) {
        let has_most = self.windows.vantages(tick).count() >= self.most(watch, policy);
        let since = watch.at;
        let most_since = None;
        let waiting = self.waiting.entry(tick).or_insert(Waiting { since, most_since });
        if has_most {
            waiting.most_since.get_or_insert(watch.at);
        }
    }

    /// Vantages that are waited for: all that may report, or, once some ticks were watched, all that did report of late. One
    /// that died delays nobody for longer than that.
    fn expected(&self, watch: Watch) -> usize {
        self.lively.unwrap_or(watch.vantages).min(watch.vantages)
    }

    fn most(&self, watch: Watch, policy: &HealthPolicy) -> usize {
        self.expected(watch).div_ceil(2).max(policy.vantages_min as usize)
    }

    fn is_complete(&self, tick: Tick, watch: Watch, policy: &HealthPolicy) -> bool {
        // Where too few are left to agree, somebody may come back.
        let least = watch.vantages.min(policy.vantages_min as usize);
        let in_time = self.windows.vantages(tick).count();
        in_time >= self.expected(watch).max(least)
    }
}

impl Waiting {
    fn until(self) -> Duration {
        let patient = self.since + PATIENCE;
        self.most_since.map_or(patient, |since| patient.min(since + SETTLE))
    }
}
