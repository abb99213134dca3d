//! A small world for stories: regions that work or fail, operators with requests, a clock that the test moves. Every
//! decision is checked against the invariants.

use std::{collections::BTreeMap, time::Duration};

use planning::{
    Input, Lag, Memory, Outcome, Phase, Refusal, Report, RolloutSeen, invariants::Invariants, next_wake, plan,
};
use topology::{
    EdgeId, Intent, IntentKind, Level, Moment, NodeId, Plan, Policy, Reason, ReasonCode, RegionId, RegionState, Role,
    Tick, Topology, fixtures::three_primaries,
};
use verdict::{Health, Verdict};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A deployment and its control plane.
pub(crate) struct World {
    pub(crate) input: Input,
    pub(crate) now: Moment,
    /// The last report.
    pub(crate) report: Report,
    /// Every plan since the story began.
    pub(crate) plans: Vec<Plan>,
    invariants: Invariants,
    asked: u32,
}

pub(crate) fn region(name: &str) -> RegionId {
    RegionId::new(name).unwrap()
}

pub(crate) fn edge(name: &str) -> EdgeId {
    EdgeId::new(name).unwrap()
}

pub(crate) fn verdict(region: &RegionId, health: Health, tick: Tick, healthy_since: Moment) -> Verdict {
    Verdict {
        region: region.clone(),
        health,
        level: Level::L0,
        trigger: None,
        failing: matches!(health, Health::Down | Health::Suspect),
        fired: Vec::new(),
        bad_from: Vec::new(),
        healthy_since: (health == Health::Healthy).then_some(healthy_since),
        dead_stacks: [].into(),
        ailing_stacks: [].into(),
        broken: None,
        tick,
        summary: format!("it is {health}"),
        evidence: vec![format!("{region} was seen {health}")],
    }
}

/// Gives a region a stack of each version, beside the one in service.
pub(crate) fn with_versions(topology: &mut Topology, versions: &[&str]) {
    let region = topology.regions.get_mut(&region("ap-south")).unwrap();
    for (port, version) in (9_100..).zip(versions) {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        region
            .stacks
            .push(topology::Stack::of_version(address, version).unwrap());
    }
}

impl World {
    /// Six healthy regions.
    pub(crate) fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// The same, changed before it begins.
    pub(crate) fn with(change: impl FnOnce(&mut Topology, &mut Policy)) -> Self {
        let (mut topology, mut policy) = (three_primaries().topology, Policy::default());
        with_versions(&mut topology, &["v2", "v3"]);
        change(&mut topology, &mut policy);
        let mut world = Self {
            input: Input::new(topology, policy, 1),
            now: Moment(1_000_000_000),
            report: Report::default(),
            plans: Vec::new(),
            invariants: Invariants::default(),
            asked: 0,
        };
        let regions: Vec<RegionId> = world.input.topology.regions.keys().cloned().collect();
        for region in regions {
            let verdict = verdict(&region, Health::Healthy, world.now.tick().back(1), world.now);
            world.input.verdicts.insert(region, verdict);
        }
        world.decide();
        world
    }

    /// Makes one decision; twice, because both must be equal.
    pub(crate) fn decide(&mut self) -> Outcome {
        let outcome = plan(&self.input, self.now);
        assert_eq!(outcome, plan(&self.input, self.now));
        let broken = self.invariants.check(&self.input, &outcome, self.now);
        assert!(broken.is_empty(), "{broken:#?}\n{:#?}", outcome.report);
        self.input.request = None;
        self.input.memory = outcome.memory.clone();
        self.report = outcome.report.clone();
        if let Some(plan) = &outcome.plan {
            self.plans.push(plan.clone());
            self.input.current = Some(plan.clone());
        }
        outcome
    }

    /// Gives a region this verdict from now on.
    pub(crate) fn sees(&mut self, name: &str, health: Health) -> &mut Self {
        let id = region(name);
        let verdict = verdict(&id, health, self.now.tick().back(1), self.now);
        self.input.verdicts.insert(id, verdict);
        self
    }

    /// Lets time pass, with a decision at every tick and every wake in between.
    pub(crate) fn pass(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time;
        while self.now < end {
            let wake = next_wake(&self.input, self.now).unwrap_or(end);
            self.now = self.now.tick().end().min(wake).min(end);
            self.refresh();
            self.decide();
        }
        self
    }

    /// Lets time pass without decisions.
    pub(crate) fn jump(&mut self, time: Duration) -> &mut Self {
        self.now = self.now + time;
        self.refresh();
        self.decide();
        self
    }

    /// Sets the age of verdicts to that of a working control plane.
    pub(crate) fn refresh(&mut self) {
        for verdict in self.input.verdicts.values_mut() {
            verdict.tick = self.now.tick().back(1);
        }
        for lag in self.input.replication.values_mut().flat_map(BTreeMap::values_mut) {
            lag.at = self.now;
        }
    }

    /// Removes a region from the topology.
    pub(crate) fn without(&mut self, name: &str) -> &mut Self {
        let (gone, topology) = (region(name), &mut self.input.topology);
        topology.regions.remove(&gone);
        for region in topology.regions.values_mut() {
            if let Role::Primary { backups } = &mut region.role {
                backups.retain(|backup| *backup != gone);
            }
        }
        self.input.verdicts.remove(&gone);
        self
    }

    /// Restores the store to an old copy; nodes show the plan that it forgot.
    pub(crate) fn restored_to(&mut self, (plan, memory): (Plan, Memory)) -> &mut Self {
        self.input.recovered = Some(self.plan().clone());
        (self.input.current, self.input.memory) = (Some(plan), memory);
        self.input.epoch += 1;
        self.decide();
        self.input.recovered = None;
        self
    }

    /// The digest of what waits for a second person.
    pub(crate) fn shown(&self, action: &str) -> Option<String> {
        self.input.memory.actions.get(action)?.shown_digest()
    }

    /// Makes a request; returns its id. An approval is for what the action waits with now.
    pub(crate) fn ask(&mut self, who: &str, kind: IntentKind) -> String {
        let kind = match kind {
            IntentKind::Approve { action, .. } => approve_shown(&action, self.shown(&action)),
            kind => kind,
        };
        self.ask_for(who, kind, planning::REQUEST_LIFE)
    }

    /// Makes a request that stands for a time.
    pub(crate) fn ask_for(&mut self, who: &str, kind: IntentKind, life: Duration) -> String {
        self.asked += 1;
        let id = format!("a{}", self.asked);
        self.ask_as(&id, who, kind, life);
        id
    }

    /// Makes a request with a given token.
    pub(crate) fn ask_as(&mut self, id: &str, who: &str, kind: IntentKind, life: Duration) -> Outcome {
        self.input.request = Some(Intent {
            id: id.to_owned(),
            kind,
            author: who.to_owned(),
            reason: "a story".to_owned(),
            created_at: self.now,
            expires_at: self.now + life,
        });
        self.decide()
    }

    pub(crate) fn plan(&self) -> &Plan {
        self.input.current.as_ref().unwrap()
    }

    pub(crate) fn state(&self, name: &str) -> RegionState {
        self.plan().regions[&region(name)].state
    }

    pub(crate) fn level(&self, name: &str) -> Level {
        self.plan().regions[&region(name)].level
    }

    /// The places of a region's sessions, like "us-west 60 + eu-central 40".
    pub(crate) fn route(&self, name: &str) -> String {
        let shares = self.plan().routes[&region(name)].iter();
        let shares: Vec<String> = shares.map(|it| format!("{} {}", it.region, it.percent)).collect();
        shares.join(" + ")
    }

    pub(crate) fn phase(&self, id: &str) -> Option<Phase> {
        self.input.memory.actions.get(id).map(|action| action.phase)
    }

    pub(crate) fn changed(&self, code: ReasonCode) -> bool {
        has(&self.report.changed, code)
    }

    pub(crate) fn refused(&self, code: ReasonCode) -> bool {
        has(&self.report.refused, code)
    }

    pub(crate) fn waits(&self, code: ReasonCode) -> bool {
        has(&self.report.waiting, code)
    }

    pub(crate) fn waiting(&self, code: ReasonCode) -> &Reason {
        let reason = self.report.waiting.iter().find(|reason| reason.code == code);
        reason.unwrap_or_else(|| panic!("nothing waits for {code}: {:#?}", self.report))
    }

    /// Sets the lag of every class of a region's data.
    pub(crate) fn lags(&mut self, name: &str, behind: Duration) -> &mut Self {
        let lag = Lag { behind, at: self.now };
        let classes = self.input.policy.data.iter().map(|it| (it.class.clone(), lag));
        self.input.replication.insert(region(name), classes.collect());
        self
    }

    /// Sets the observations of devices about a version.
    pub(crate) fn devices_see(&mut self, version: &str, change: impl FnOnce(&mut RolloutSeen)) -> &mut Self {
        let mut seen = RolloutSeen {
            version: version.to_owned(),
            sessions: 1000,
            turns_succeeded: 10_000,
            turns_failed: 0,
            p95_ms: Some(200.0),
            old_p95_ms: Some(200.0),
            underruns: 0,
            gpu_memory_errors: 0,
            recent: None,
        };
        change(&mut seen);
        self.input.rollout = Some(seen);
        self
    }

    /// Makes these edges silent for this long; the others gave signs of life just now.
    pub(crate) fn edges_are_silent(&mut self, edges: &[&str], silence: Duration) -> &mut Self {
        let now = self.now;
        for id in self.input.topology.edges.keys() {
            let is_silent = edges.contains(&id.as_str());
            let silence = if is_silent { silence } else { Duration::ZERO };
            let before = |time: Duration| Moment(now.0 - time.as_millis() as u64);
            let seen = planning::EdgeSeen::heard(before(silence), before(HOUR));
            self.input.edges.insert(id.clone(), seen);
        }
        self
    }

    /// Makes these of three nodes refuse the plan in force; all three had `acknowledged`.
    pub(crate) fn nodes_refuse(&mut self, nodes: &[&str], acknowledged: &Plan) -> &mut Self {
        let why = |node: &&str| (NodeId::new(node).unwrap(), "it cannot read it".to_owned());
        self.input.refusal = Some(Refusal {
            number: self.plan().number(),
            nodes: nodes.iter().map(why).collect(),
            following: 3,
            acknowledged: Some(acknowledged.clone()),
        });
        self
    }
}

fn has(reasons: &[Reason], code: ReasonCode) -> bool {
    reasons.iter().any(|reason| reason.code == code)
}

pub(crate) fn fail_over(name: &str) -> IntentKind {
    IntentKind::Failover {
        region: region(name),
        promote: false,
        accept_loss: None,
        force: false,
    }
}

pub(crate) fn promote(name: &str, accept_loss: Option<Duration>) -> IntentKind {
    IntentKind::Failover {
        region: region(name),
        promote: true,
        accept_loss,
        force: false,
    }
}

pub(crate) fn switch_over(name: &str) -> IntentKind {
    IntentKind::Switchover {
        region: region(name),
        promote: false,
    }
}

pub(crate) fn restore(name: &str) -> IntentKind {
    IntentKind::Restore {
        region: region(name),
        accept_loss: None,
    }
}

pub(crate) fn approve(action: &str) -> IntentKind {
    approve_shown(action, None)
}

pub(crate) fn approve_shown(action: &str, shown: Option<String>) -> IntentKind {
    IntentKind::Approve {
        action: action.to_owned(),
        shown,
    }
}

pub(crate) fn abort(action: &str) -> IntentKind {
    IntentKind::Abort {
        action: action.to_owned(),
    }
}

pub(crate) fn roll_out(version: &str) -> IntentKind {
    IntentKind::Rollout {
        version: version.to_owned(),
    }
}
