//! The simulated world: regions that are well or not, vantages that see them, and a control plane in virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use planning::{Input, Report, next_wake, plan};
use topology::{
    Component, Intent, IntentKind, Moment, NodeId, Plan, Policy, Reason, RegionId, Snapshot, Topology,
    snapshot::SNAPSHOT_SCHEMA,
};
use verdict::{Observation, Source, TickReport, Windows, judge};

use crate::{Event, Scenario};

/// Attempts each vantage makes per component and tick; twenty make percentages of failures exact to 5 %.
const ATTEMPTS: u32 = 20;
/// How long a component takes when all is well: less than any limit of the policy.
const WELL_MS: f64 = 40.0;
/// The simulated wall clock starts here: the first moment of a tick, far from zero.
const START: Moment = Moment(1_000_000_000);

#[derive(Debug, Clone, Default)]
struct Condition {
    dead: bool,
    unreachable_from: BTreeSet<NodeId>,
    fails_percent: BTreeMap<Component, u32>,
    asr_takes: Option<Duration>,
}

struct World<'w> {
    topology: &'w Topology,
    conditions: BTreeMap<RegionId, Condition>,
    silent: BTreeSet<NodeId>,
    windows: Windows,
    input: Input,
    asked: u32,
    last_report: Report,
    transcript: String,
}

/// Plays a scenario and returns what happened, one line a fact.
pub fn play(scenario: &Scenario, topology: &Topology, policy: &Policy) -> String {
    let input = Input::new(topology.clone(), policy.clone(), 1);
    let mut world = World {
        topology,
        conditions: BTreeMap::new(),
        silent: BTreeSet::new(),
        windows: Windows::default(),
        input,
        asked: 0,
        last_report: Report::default(),
        transcript: String::new(),
    };
    world.decide(START);
    let mut events = scenario.events.iter().peekable();
    let (mut now, end) = (START, START + scenario.end);
    while now < end {
        let tick_end = now.tick().end();
        let event_at = events.peek().map(|line| START + line.at);
        let wake = next_wake(&world.input, now);
        now = [Some(tick_end), event_at, wake]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(tick_end)
            .max(now);
        if now == tick_end {
            world.observe(now);
        }
        while let Some(line) = events.next_if(|line| START + line.at <= now) {
            world.say(now, &format!("> {}", line.text));
            world.happen(&line.event, now);
        }
        world.decide(now);
    }
    world.transcript
}

impl World<'_> {
    fn say(&mut self, now: Moment, line: &str) {
        let seconds = now.since(START).as_secs_f64();
        writeln!(self.transcript, "{seconds:>7.1}s  {line}").expect("text can always grow");
    }

    /// Every vantage reports on the tick that ends now. A fault counts from the tick it falls into, as with probes that
    /// run late in the tick.
    fn observe(&mut self, now: Moment) {
        let tick = now.tick().back(1);
        let control_plane = NodeId::new("control-plane").expect("the name is an id");
        let vantages = self.topology.edges.keys().map(NodeId::from).chain([control_plane]);
        for vantage in vantages
            .filter(|vantage| !self.silent.contains(vantage))
            .collect::<Vec<_>>()
        {
            let observations = self
                .topology
                .regions
                .keys()
                .flat_map(|region| self.see(&vantage, region))
                .collect();
            let report = TickReport::new(vantage, tick, observations);
            self.windows
                .take(report, tick, &self.input.policy.health)
                .expect("the simulated clock has one hand");
        }
        let policy = &self.input.policy.health;
        self.windows.forget(policy, tick, |_| true);
        let before = self
            .input
            .verdicts
            .iter()
            .map(|(region, verdict)| (region.clone(), verdict.into()))
            .collect();
        self.input.verdicts = judge(self.topology.regions.keys(), &self.windows, policy, tick, &before);
    }

    fn see(&self, vantage: &NodeId, region: &RegionId) -> Vec<Observation> {
        let healthy = Condition::default();
        let condition = self.conditions.get(region).unwrap_or(&healthy);
        if condition.dead || condition.unreachable_from.contains(vantage) {
            let mut gateway = Observation::new(region.clone(), Component::Gateway, Source::Probe);
            (0..ATTEMPTS).for_each(|_| gateway.fail("connection refused"));
            return vec![gateway];
        }
        let see = |component: Component| {
            let mut seen = Observation::new(region.clone(), component, Source::Probe);
            let percent = condition.fails_percent.get(&component).copied().unwrap_or_default();
            let failed = ATTEMPTS * percent.min(100) / 100;
            let takes = condition.asr_takes.filter(|_| component == Component::Asr);
            let latency_ms = takes.map_or(WELL_MS, |time| time.as_secs_f64() * 1000.0);
            (0..failed).for_each(|_| seen.fail("it said no"));
            (failed..ATTEMPTS).for_each(|_| seen.succeed(latency_ms));
            seen
        };
        Component::ALL.into_iter().map(see).collect()
    }

    fn happen(&mut self, event: &Event, now: Moment) {
        let mut condition = |region: &RegionId, change: &dyn Fn(&mut Condition)| {
            change(self.conditions.entry(region.clone()).or_default());
        };
        match event {
            Event::Dies(region) => condition(region, &|it| it.dead = true),
            Event::Unreachable(region, vantage) => {
                condition(region, &|it| {
                    it.unreachable_from.insert(vantage.clone());
                });
            }
            Event::Fails(region, component, percent) => condition(region, &|it| {
                it.fails_percent.insert(*component, *percent);
            }),
            Event::AsrTakes(region, time) => condition(region, &|it| it.asr_takes = Some(*time)),
            Event::Recovers(region) => condition(region, &|it| *it = Condition::default()),
            Event::Silent(vantage) => {
                self.silent.insert(vantage.clone());
            }
            Event::Speaks(vantage) => {
                self.silent.remove(vantage);
            }
            Event::FailOver(region) => {
                let (region, promote, accept_loss) = (region.clone(), false, None);
                self.ask(
                    IntentKind::Failover {
                        region,
                        promote,
                        accept_loss,
                    },
                    now,
                    None,
                );
            }
            Event::Restore(region) => {
                let (region, accept_loss) = (region.clone(), None);
                self.ask(IntentKind::Restore { region, accept_loss }, now, None);
            }
            Event::Freeze(time) => self.ask(IntentKind::Freeze, now, Some(*time)),
            Event::Unfreeze => self.ask(IntentKind::Unfreeze, now, None),
        }
    }

    fn ask(&mut self, kind: IntentKind, now: Moment, life: Option<Duration>) {
        self.asked += 1;
        let intent = Intent {
            id: format!("a{}", self.asked),
            kind,
            author: "operator".into(),
            reason: "as the scenario says".into(),
            created_at: now,
            expires_at: now + life.unwrap_or(planning::REQUEST_LIFE),
        };
        self.input.request = Some(intent);
        self.decide(now);
    }

    fn decide(&mut self, now: Moment) {
        let outcome = plan(&self.input, now);
        self.input.request = None;
        self.input.memory = outcome.memory;
        let before = std::mem::replace(&mut self.last_report, outcome.report.clone());
        for reason in &outcome.report.changed {
            self.say(now, &line("plan", reason));
        }
        for (kind, new, old) in [
            ("refused", &outcome.report.refused, &before.refused),
            ("waiting", &outcome.report.waiting, &before.waiting),
        ] {
            // Said once: a rule that goes on refusing for the same reason adds nothing.
            for reason in new
                .iter()
                .filter(|new| !old.iter().any(|old| (old.code, &old.text) == (new.code, &new.text)))
            {
                self.say(now, &line(kind, reason));
            }
        }
        if let Some(plan) = outcome.plan {
            self.say(
                now,
                &format!("generation {}: {}", plan.generation, describe_routes(&plan)),
            );
            let snapshot = Snapshot {
                schema: SNAPSHOT_SCHEMA,
                plan: plan.clone(),
                topology: self.topology.clone(),
                dns_ttl_s: 15,
                probe: self.input.policy.probe.clone(),
            };
            if let Err(error) = snapshot.validate() {
                self.say(now, &format!("INVARIANT BROKEN: {error}"));
            }
            self.input.current = Some(plan);
        }
    }
}

fn line(kind: &str, reason: &Reason) -> String {
    let region = reason
        .region
        .as_ref()
        .map(|region| format!(" {region}"))
        .unwrap_or_default();
    format!("{kind:<8}{}{region}: {}", reason.code, reason.text)
}

fn describe_routes(plan: &Plan) -> String {
    let route = |(primary, shares): (&RegionId, &Vec<topology::Share>)| {
        let shares: Vec<String> = shares
            .iter()
            .map(|share| format!("{} {} %", share.region, share.percent))
            .collect();
        format!("{primary} → {}", shares.join(" + "))
    };
    plan.routes.iter().map(route).collect::<Vec<_>>().join("; ")
}
