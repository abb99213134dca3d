//! The time at which a round is judged. A round is the reports of all vantages on one tick.
//!
//! The clocks of the vantages and ours need not agree. So our clock does not end a round: a round is judged when the
//! reports of all vantages that reported of late are in, or a moment after most of them are. A report on a tick that is
//! not over by our clock waits for the others, and a late one counts: its round is judged again.
//!
//! Time is an argument here: `at` is the age of the watcher by its monotonic clock, which no one can set.
//!
//! Why it is so: docs/decisions/22-how-health-is-judged.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use topology::{Plan, RegionId, Tick, Topology, policy::HealthPolicy};

use crate::{Before, Suspects, TickReport, Unwanted, Verdict, Windows, judge};

/// Most ticks that a report may be ahead of our clock. With the policy's `freshness_ticks` for late ones this tolerates
/// clocks that are 20 s apart; a node that is further off has no time service at all, and its reports would have to
/// wait for long.
pub const TICKS_AHEAD_MAX: u64 = 2;
/// Wait of a round for the other reports once most are in: a report takes milliseconds, so a later one comes over a
/// slow network or from a wrong clock. Failover waits that much longer when a vantage is dead.
pub const SETTLE: Duration = Duration::from_secs(1);
/// Wait of a round when most vantages are missing: a tick longer, so that a control plane whose clock is a tick ahead
/// still waits for the others. Without them nothing could be decided anyway.
pub const ROUND_WAIT_MAX: Duration = Duration::from_secs(11);

/// Reports, round by round.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    windows: Windows,
    /// Rounds with reports that have not been judged.
    waiting: BTreeMap<Tick, Waiting>,
    judged: Option<Tick>,
    /// Number of vantages that reported of late; none until enough ticks were watched.
    reporting: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    since: Duration,
    /// Time at which most vantages were in; none before.
    most_since: Option<Duration>,
}

/// The time and the vantages as a watcher knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// The newest tick that is over by the watcher's wall clock.
    pub closed: Tick,
    /// The watcher's age by its monotonic clock.
    pub at: Duration,
    /// Number of vantages that may report, the watcher included.
    pub vantages: usize,
}

impl Rounds {
    /// Takes a report.
    pub fn take(&mut self, report: TickReport, watch: Watch, policy: &HealthPolicy) -> Result<(), Unwanted> {
        let tick = report.tick;
        if tick.0 > watch.closed.0.saturating_add(TICKS_AHEAD_MAX) {
            return Err(Unwanted::TooEarly(tick, report.vantage));
        }
        // The rounds count as well: where our clock is behind, they are newer.
        let newest = watch.closed.max(self.judged.unwrap_or_default());
        self.windows.take(report, newest, policy)?;
        self.wait_for(tick, watch, policy);
        Ok(())
    }

    /// Notes the room of each region's stacks: its sessions need that many of them.
    pub fn know_rooms(&mut self, plan: &Plan, topology: &Topology) {
        self.windows.know_rooms(plan, topology);
    }

    /// Looks at the clock: a round also begins when its tick is over here, even without a report. True when the clock
    /// went back so far that all reports lie in the future; then they are forgotten.
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

    /// The time at which a waiting round has waited for long enough, by the monotonic clock.
    pub fn wakes_at(&self) -> Option<Duration> {
        self.waiting.values().map(|waiting| waiting.until()).min()
    }

    /// Judges all ticks up to a round that is due.
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
        self.reporting = self.windows.has_settled().then(|| self.windows.reporting());
        judge(regions, &self.windows, policy, tick, before)
    }

    /// The vantages that contradict all others.
    pub fn suspects(&self) -> &Suspects {
        self.windows.suspects()
    }

    /// The newest judged round.
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

    /// Vantages that a round waits for: all that may report, or, once some ticks were watched, all that reported of
    /// late. A dead vantage delays judgement no longer than that.
    fn expected(&self, watch: Watch) -> usize {
        self.reporting.unwrap_or(watch.vantages).min(watch.vantages)
    }

    fn most(&self, watch: Watch, policy: &HealthPolicy) -> usize {
        self.expected(watch).div_ceil(2).max(policy.vantages_min as usize)
    }

    fn is_complete(&self, tick: Tick, watch: Watch, policy: &HealthPolicy) -> bool {
        // If too few are left to agree, one may still come back.
        let least = watch.vantages.min(policy.vantages_min as usize);
        let in_time = self.windows.vantages(tick).count();
        in_time >= self.expected(watch).max(least)
    }
}

impl Waiting {
    fn until(self) -> Duration {
        let latest = self.since + ROUND_WAIT_MAX;
        self.most_since.map_or(latest, |since| latest.min(since + SETTLE))
    }
}
