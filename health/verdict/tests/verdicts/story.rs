//! A region as its vantages see it, tick by tick.

use std::collections::BTreeMap;

use topology::{Component, NodeId, RegionId, Tick, policy::HealthPolicy};
use verdict::{Before, Health, Observation, Source, TickReport, Trigger, Verdict, Windows, judge};

/// The samples of one vantage of one component in one tick: successes in 20 ms, successes in `slow_ms`, and failures.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Saw {
    pub(crate) fast: u32,
    pub(crate) slow: u32,
    pub(crate) slow_ms: f64,
    pub(crate) failed: u32,
}

pub(crate) const WELL: Saw = saw(100, 0);

pub(crate) const fn saw(fast: u32, failed: u32) -> Saw {
    Saw {
        fast,
        slow: 0,
        slow_ms: 0.0,
        failed,
    }
}

pub(crate) const fn saw_slow(fast: u32, slow: u32, slow_ms: f64) -> Saw {
    Saw {
        fast,
        slow,
        slow_ms,
        failed: 0,
    }
}

pub(crate) fn region() -> RegionId {
    RegionId::new("us-east").expect("the name is an id")
}

pub(crate) fn observation(component: Component, saw: Saw) -> Observation {
    let mut seen = Observation::new(region(), component, Source::Traffic);
    (0..saw.fast).for_each(|_| seen.succeed(20.0));
    (0..saw.slow).for_each(|_| seen.succeed(saw.slow_ms));
    (0..saw.failed).for_each(|_| seen.fail("connection refused"));
    seen
}

/// Ticks 1.. of one region, each judged as it closes.
pub(crate) struct Story {
    pub(crate) windows: Windows,
    pub(crate) tick: u64,
    pub(crate) policy: HealthPolicy,
    pub(crate) verdict: Option<Verdict>,
    before: Before,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self::with(HealthPolicy::default(), Before::default())
    }

    pub(crate) fn with(policy: HealthPolicy, before: Before) -> Self {
        Self {
            windows: Windows::default(),
            tick: 0,
            policy,
            verdict: None,
            before,
        }
    }

    /// A tick in which vantages see components.
    pub(crate) fn tick(&mut self, seen: &[(&str, Component, Saw)]) -> &mut Self {
        let seen = seen
            .iter()
            .map(|(vantage, component, saw)| (*vantage, observation(*component, *saw)));
        self.observed(seen)
    }

    /// The same, with one observation more.
    pub(crate) fn tick_with(&mut self, seen: &[(&str, Component, Saw)], more: (&str, Observation)) -> &mut Self {
        let seen = seen
            .iter()
            .map(|(vantage, component, saw)| (*vantage, observation(*component, *saw)));
        self.observed(seen.chain([more]))
    }

    fn observed<'s>(&mut self, seen: impl IntoIterator<Item = (&'s str, Observation)>) -> &mut Self {
        self.tick += 1;
        let mut reports: BTreeMap<&str, Vec<Observation>> = BTreeMap::new();
        for (vantage, observation) in seen {
            reports.entry(vantage).or_default().push(observation);
        }
        for (vantage, observations) in reports {
            let report = TickReport::new(
                NodeId::new(vantage).expect("the name is an id"),
                Tick(self.tick),
                observations,
            );
            let taken = self.windows.take(report, Tick(self.tick), &self.policy);
            taken.expect("the tick has just closed");
        }
        self.close()
    }

    /// This many ticks in which both edges see the component so, and the gateway healthy if that is another.
    pub(crate) fn both(&mut self, ticks: u32, component: Component, saw: Saw) -> &mut Self {
        self.each(ticks, component, saw, saw)
    }

    /// This many ticks in which the first edge sees the component so, and the second otherwise.
    pub(crate) fn each(&mut self, ticks: u32, component: Component, a: Saw, b: Saw) -> &mut Self {
        for _ in 0..ticks {
            let mut seen = vec![("edge-a", component, a), ("edge-b", component, b)];
            if component != Component::Gateway {
                seen.extend([
                    ("edge-a", Component::Gateway, WELL),
                    ("edge-b", Component::Gateway, WELL),
                ]);
            }
            self.tick(&seen);
        }
        self
    }

    /// This many ticks without any report.
    pub(crate) fn silence(&mut self, ticks: u32) -> &mut Self {
        for _ in 0..ticks {
            self.tick(&[]);
        }
        self
    }

    fn close(&mut self) -> &mut Self {
        let last_closed = Tick(self.tick);
        self.windows.forget(&self.policy, last_closed, |_| true);
        let before = BTreeMap::from([(region(), self.before.clone())]);
        let mut verdicts = judge([&region()], &self.windows, &self.policy, last_closed, &before);
        self.verdict = verdicts.remove(&region());
        self.before = self.verdict().into();
        self
    }

    pub(crate) fn verdict(&self) -> &Verdict {
        self.verdict.as_ref().expect("a tick has closed")
    }

    #[track_caller]
    pub(crate) fn check(&mut self, health: Health) -> &mut Self {
        let verdict = self.verdict();
        assert_eq!(verdict.health, health, "tick {}: {verdict:#?}", self.tick);
        self
    }

    /// Exactly these triggers have fired and not cleared.
    #[track_caller]
    pub(crate) fn check_fired(&mut self, triggers: &[Trigger]) -> &mut Self {
        let fired: Vec<Trigger> = self.verdict().fired.iter().map(|fired| fired.trigger).collect();
        assert_eq!(fired, triggers, "tick {}: {:#?}", self.tick, self.verdict());
        self
    }
}
