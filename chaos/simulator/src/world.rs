//! The simulated world: regions that work or fail, vantages that see them, a control plane in virtual time, operators,
//! and nodes that follow its plans.

use std::{collections::BTreeMap, time::Duration};

use planning::{
    Action, Input, Lag, Memory, Phase, Report,
    invariants::Invariants,
    next_wake, plan,
    signs_of_life::{self, SignsOfLife},
};
use topology::{Intent, IntentKind, Moment, NodeId, Plan, Policy, RegionId, RegionPlan, RegionState, Tick, Topology};
use verdict::{Before, Clocks, Rounds, Testimony, Watch};

use crate::{
    BadScenario, Record, Scenario,
    expect::Expectation,
    fleet::{Fleet, Manners, Refused},
    record::{FirstReason, Kind},
    resolvers::{self, Left},
    scenario::{Ask, Event, Line, Traffic, Wanted},
    subjects::{classes, control_plane, nodes, stack_of, vantages},
    transcript::{describe, is_same},
    truth::{Condition, Truth},
    version::Version,
};

/// The simulated wall clock starts here: a midnight, so that its time of day is the time since the start.
pub(crate) const START: Moment = Moment(20_000 * 86_400_000);
/// Limit of decisions in one moment until nothing changes any more: a change, the nodes' answers to it, a change back,
/// and rest.
const DECISIONS_MAX: usize = 6;

/// The contents of a store: enough for a control plane to go on from.
#[derive(Debug, Clone)]
struct Stored {
    plan: Plan,
    memory: Memory,
    epoch: u64,
}

pub(crate) struct World {
    /// Time since the start, by the clock of the world.
    elapsed: Duration,
    /// Milliseconds by which a wrong clock is ahead of that, of the control plane and of edges.
    ahead_ms: BTreeMap<NodeId, i64>,
    truth: Truth,
    heard: SignsOfLife,
    lags: BTreeMap<(RegionId, String), Duration>,
    versions: BTreeMap<String, Version>,
    rounds: Rounds,
    clocks: Clocks,
    fleet: Fleet,
    asked: u32,
    pub(crate) last_report: Report,
    /// The store after every plan, by generation, for a restore.
    copies: BTreeMap<u64, Stored>,
    invariants: Invariants,
    pub(crate) input: Input,
    pub(crate) record: Record,
}

/// Plays a scenario and returns its record. The error names a line with a subject that the world does not have.
pub fn play(scenario: &Scenario, topology: &Topology, policy: &Policy) -> Result<Record, BadScenario> {
    play_until(scenario, topology, policy, scenario.end).map(|world| world.record)
}

/// The world of a scenario at a time.
pub(crate) fn play_until(
    scenario: &Scenario,
    topology: &Topology,
    policy: &Policy,
    end: Duration,
) -> Result<World, BadScenario> {
    let (topology, policy) = scenario.world(topology, policy)?;
    let mut world = World::new(topology, policy, scenario.head.traffic.clone());
    world.decide();
    let mut events = scenario.events.iter().peekable();
    while world.elapsed < end {
        let next = world.next_moment(events.peek().map(|line| line.at)).min(end);
        world.elapsed = next;
        world.tick();
        while let Some(line) = events.next_if(|line| line.at <= next) {
            world.happen(line);
        }
        world.decide();
    }
    world.record.applied = world.fleet.applied();
    if scenario.expectations.iter().any(Expectation::is_of_resolvers) {
        world.ask_resolvers(&scenario.events);
    }
    Ok(world)
}

impl World {
    fn new(topology: Topology, policy: Policy, traffic: BTreeMap<(NodeId, RegionId), Traffic>) -> Self {
        Self {
            elapsed: Duration::ZERO,
            ahead_ms: BTreeMap::new(),
            truth: Truth::new(traffic),
            heard: SignsOfLife::since(START),
            lags: BTreeMap::new(),
            versions: BTreeMap::new(),
            rounds: Rounds::default(),
            clocks: Clocks::default(),
            fleet: Fleet::new(nodes(&topology)),
            asked: 0,
            last_report: Report::default(),
            copies: BTreeMap::new(),
            invariants: Invariants::default(),
            input: Input::new(topology, policy, 1),
            record: Record::default(),
        }
    }

    /// Plays the plans of the scenario to resolvers near each edge that dies.
    fn ask_resolvers(&mut self, events: &[Line]) {
        let deaths = events.iter().filter_map(|line| match &line.event {
            Event::EdgeDies(edge) => Some((edge, line.at)),
            _ => None,
        });
        let world = (&self.input.topology, &self.input.policy);
        let left: Vec<Left> = deaths
            .flat_map(|(edge, died)| resolvers::leave(edge, died, &self.record.plans, world, self.elapsed))
            .collect();
        for left in &left {
            self.say(&left.to_string());
        }
        self.record.left = left;
    }

    /// The clock of the world, which all right clocks show.
    fn world_clock(&self) -> Moment {
        START + self.elapsed
    }

    /// The clock of a node.
    fn clock_of(&self, node: &NodeId) -> Moment {
        let ahead_ms = self.ahead_ms.get(node).copied().unwrap_or_default();
        Moment(self.world_clock().0.saturating_add_signed(ahead_ms))
    }

    /// The clock of the control plane.
    pub(crate) fn now(&self) -> Moment {
        self.clock_of(&control_plane())
    }

    /// The time of the next event, of the end of a tick by any clock, or of the end of a wait.
    fn next_moment(&self, event: Option<Duration>) -> Duration {
        let (now, world) = (self.now(), self.world_clock());
        let until = |at: Moment, clock: Moment| self.elapsed + at.since(clock);
        let clocks = self.ahead_ms.keys().map(|node| self.clock_of(node)).chain([world, now]);
        let ticks = clocks.map(|clock| until(clock.tick().end(), clock));
        let wake = next_wake(&self.input, now).map(|wake| until(wake, now));
        // No one can set the world's own clock, as with a monotonic clock.
        let events = event.into_iter().chain(wake).chain(self.rounds.wakes_at()).chain(ticks);
        events.min().unwrap_or_default().max(self.elapsed)
    }

    fn say(&mut self, line: &str) {
        self.record.say(self.elapsed, line);
    }

    fn watch(&self) -> Watch {
        Watch {
            closed: self.now().tick().back(1),
            at: self.elapsed,
            vantages: vantages(&self.input.topology).count(),
        }
    }

    /// Every vantage, the control plane too, reports on the tick that ends by its own clock. A fault counts from the
    /// tick in which it begins, as with probes that run late in the tick.
    fn tick(&mut self) {
        for vantage in vantages(&self.input.topology).collect::<Vec<_>>() {
            let clock = self.clock_of(&vantage);
            if clock == clock.tick().start() {
                self.report(&vantage, clock.tick().back(1));
            }
        }
        let world = self.world_clock();
        if world == world.tick().start() {
            self.measure();
        }
        let (watch, policy) = (self.watch(), &self.input.policy.health);
        self.rounds.look(watch, policy);
        let Some(tick) = self.rounds.due(watch, policy) else {
            return;
        };
        let before = self.before();
        if let Some(plan) = &self.input.current {
            self.rounds.know_rooms(plan, &self.input.topology);
        }
        let regions = self.input.topology.regions.keys();
        let policy = &self.input.policy.health;
        self.input.verdicts = self.rounds.judge(tick, regions, policy, &before);
        self.heard.reach.judge(tick, policy.freshness_ticks);
    }

    fn report(&mut self, vantage: &NodeId, tick: Tick) {
        let plan = self.input.current.as_ref();
        let Some(mut report) = self.truth.report(vantage, tick, &self.input.topology, plan) else {
            return;
        };
        let of_edges = Testimony::of(&mut report);
        let ahead_ms = self.clock_of(vantage).0 as i64 - self.now().0 as i64;
        self.clocks.note(vantage, ahead_ms);
        // A clock that is far off makes reports too old, or early: they do not count, and the verdict tells of it.
        if self
            .rounds
            .take(report, self.watch(), &self.input.policy.health)
            .is_ok()
        {
            let edges = &self.input.topology.edges;
            self.heard.reach.take(of_edges, |edge| edges.contains_key(edge));
        }
    }

    /// The beliefs before this tick; a new leader has those of the plan.
    fn before(&self) -> BTreeMap<RegionId, Before> {
        let verdicts = self.input.verdicts.iter();
        if !self.input.verdicts.is_empty() {
            return verdicts
                .map(|(region, verdict)| (region.clone(), verdict.into()))
                .collect();
        }
        let planned = self.input.current.iter().flat_map(|plan| &plan.regions);
        let believed = |plan: &RegionPlan| Before::planned(plan.state == RegionState::Evacuated, plan.level);
        let planned = planned.map(|(region, plan)| (region.clone(), believed(plan)));
        // The beliefs of the last leader hold more than its plan.
        planned.chain(self.input.memory.before()).collect()
    }

    /// The measurements besides health, each tick. Lags are measured where the data is written: a dead region measures
    /// none.
    fn measure(&mut self) {
        let at = self.now();
        for ((region, class), behind) in &self.lags {
            if self.truth.is_dead(region) {
                continue;
            }
            let lag = Lag { behind: *behind, at };
            let classes = self.input.replication.entry(region.clone()).or_default();
            classes.insert(class.clone(), lag);
        }
    }

    fn happen(&mut self, line: &Line) {
        self.say(&format!("> {}", line.text));
        let truth = &mut self.truth;
        let topology = &self.input.topology;
        match &line.event {
            Event::Dies(region) => truth.condition(region).dead = true,
            Event::StackDies(region, stack) => {
                let stack = stack_of(topology, region, *stack);
                truth.condition(region).dead_stacks.insert(stack);
            }
            Event::StackRecovers(region, stack) => {
                let stack = stack_of(topology, region, *stack);
                truth.condition(region).recover_stack(stack);
            }
            Event::Unreachable(region, vantage) => {
                let condition = truth.condition(region);
                condition.unreachable_from.insert(vantage.clone());
            }
            Event::Fails(region, component, percent) => {
                let condition = truth.condition(region);
                condition.fails_percent.insert(*component, *percent);
            }
            Event::StackFails(region, stack, component, percent) => {
                let stack = stack_of(topology, region, *stack);
                let condition = truth.condition(region);
                condition.stack_fails_percent.insert((stack, *component), *percent);
            }
            Event::AsrTakes(region, time) => truth.condition(region).asr_takes = Some(*time),
            Event::Recovers(region) => *truth.condition(region) = Condition::default(),
            // The parser unfolded it.
            Event::Flaps(..) => {}
            Event::Silent(vantage) => drop(truth.silent.insert(vantage.clone())),
            Event::Speaks(vantage) => drop(truth.silent.remove(vantage)),
            Event::EdgeDies(edge) => {
                truth.dead_edges.insert(edge.clone());
                self.fleet.set_cut_off(&NodeId::from(edge), true);
            }
            Event::EdgeUnreachable(edge) => drop(truth.unreachable_edges.insert(edge.clone())),
            Event::EdgeRecovers(edge) => {
                truth.unreachable_edges.remove(edge);
                if truth.dead_edges.remove(edge) {
                    self.fleet.set_cut_off(&NodeId::from(edge), false);
                }
            }
            Event::Lies(vantage, region) => drop(truth.lies.insert((vantage.clone(), region.clone()))),
            Event::Honest(vantage) => truth.lies.retain(|(liar, _)| liar != vantage),
            Event::Lags(region, class, behind) => {
                for class in classes(&self.input.policy, class.as_deref()) {
                    self.lags.insert((region.clone(), class), *behind);
                }
                self.measure();
            }
            Event::Unmeasured(region, class) => {
                for class in classes(&self.input.policy, class.as_deref()) {
                    self.lags.remove(&(region.clone(), class));
                }
            }
            Event::Version(version, change) => self.versions.entry(version.clone()).or_default().change(*change),
            Event::ClockJumps(node, by_ms) => self.jump(node, *by_ms),
            Event::LeaderChanges => self.take_over(self.input.epoch + 1),
            Event::StoreGoesBack(generation) => self.restore_store(*generation),
            Event::RefusesNext(node) => self.fleet.set_manners(node, Manners::RefusesNext),
            Event::RefusesAll(node) => self.fleet.set_manners(node, Manners::RefusesAll),
            Event::Accepts(node) => self.fleet.set_manners(node, Manners::Accepts),
            Event::CutOff(node) => self.fleet.set_cut_off(node, true),
            Event::Connected(node) => self.fleet.set_cut_off(node, false),
            Event::EnactorHolds => self.fleet.hold(self.input.current.as_ref()),
            Event::EnactorApplies => {
                let refused = self.fleet.apply_held();
                self.refused(refused);
            }
            Event::Asks(ask) => self.ask(ask),
        }
    }

    /// Sets a clock. After one that went back far, old observations are in its future, where they cannot be judged.
    fn jump(&mut self, node: &NodeId, by_ms: i64) {
        let ahead_ms = self.ahead_ms.entry(node.clone()).or_default();
        *ahead_ms = ahead_ms.saturating_add(by_ms);
        self.rounds.look(self.watch(), &self.input.policy.health);
    }

    /// A new leader knows the contents of the store, and its own observations from now on.
    fn take_over(&mut self, epoch: u64) {
        self.input.epoch = epoch;
        self.input.verdicts.clear();
        self.input.replication.clear();
        self.rounds = Rounds::default();
        self.heard = SignsOfLife::since(self.now());
        self.last_report = Report::default();
    }

    /// Puts the store back, fencing token included. Nodes show their newer plan to a control plane that offers an older
    /// one, and its next plan follows that one.
    fn restore_store(&mut self, generation: u64) {
        let Some(stored) = self.copies.get(&generation).cloned() else {
            return self.say("the store never held that generation");
        };
        self.copies.retain(|it, _| *it <= generation);
        let refused = self.fleet.publish(&stored.plan);
        self.refused(refused);
        self.input.current = Some(stored.plan);
        self.input.memory = stored.memory;
        self.take_over(stored.epoch + 1);
    }

    fn ask(&mut self, ask: &Ask) {
        let now = self.now();
        let newest = |fits: &dyn Fn(Phase) -> bool| {
            let actions = self
                .input
                .memory
                .actions
                .iter()
                .filter(|(_, action)| fits(action.phase));
            let newest = actions.max_by_key(|(_, action)| (action.intent.created_at, action.changed_at));
            newest.map_or("it".to_owned(), |(id, _)| id.clone())
        };
        // Approvers agree to what they read at that moment.
        let approve = |action: String| {
            let shown = self.input.memory.actions.get(&action).and_then(Action::shown_digest);
            IntentKind::Approve { action, shown }
        };
        let kind = match &ask.what {
            Wanted::Kind(IntentKind::Approve { action, .. }) => approve(action.clone()),
            Wanted::Kind(kind) => kind.clone(),
            Wanted::ApproveIt => approve(newest(&|phase| phase == Phase::AwaitingApproval)),
            Wanted::AbortIt => IntentKind::Abort {
                action: newest(&|phase| !phase.is_final()),
            },
        };
        self.asked += 1;
        self.input.request = Some(Intent {
            id: format!("a{}", self.asked),
            kind,
            author: ask.who.clone(),
            reason: ask.why.clone(),
            created_at: now,
            expires_at: now + ask.life.unwrap_or(planning::REQUEST_LIFE),
        });
        self.decide();
    }

    /// Decides, publishes, takes the nodes' answers, and decides again until nothing changes.
    fn decide(&mut self) {
        for _ in 0..DECISIONS_MAX {
            let answered = self.take_answers();
            let changed = self.decide_once();
            if let Some(plan) = self.input.current.clone() {
                let refused = self.fleet.publish(&plan);
                self.refused(refused);
            }
            if !changed && self.take_answers() == answered {
                return;
            }
        }
        self.broken("decisions do not come to rest");
    }

    /// Takes the answers of nodes, and of devices on a version that is rolled out.
    fn take_answers(&mut self) -> (bool, bool) {
        self.take_signs_of_life();
        let current = self.input.current.as_ref();
        self.input.refusal = current.and_then(|plan| self.fleet.refusal(plan));
        self.input.recovered = self.fleet.recovered(current.map(Plan::number));
        let waits = self.input.memory.spreads().is_some();
        self.input.applied = waits.then(|| self.fleet.applied_by_most(planning::waited_for(&self.input)));
        let rollout = current.and_then(|plan| plan.rollout.as_ref());
        self.input.rollout = rollout.map(|rollout| {
            let version = self.versions.get(&rollout.version).copied().unwrap_or_default();
            version.seen(&rollout.version)
        });
        (self.input.refusal.is_some(), self.input.recovered.is_some())
    }

    /// Takes the signs of life of edges: those that live follow plans, also those that report nothing.
    fn take_signs_of_life(&mut self) {
        let now = self.now();
        let Input { topology, policy, .. } = &self.input;
        for edge in topology
            .edges
            .keys()
            .filter(|edge| !self.truth.dead_edges.contains(*edge))
        {
            self.heard.hear(edge, policy.edges.lost_after, now);
        }
        let mut edges = self.heard.all(topology, now);
        signs_of_life::keep_what_matters(&mut edges, &self.input.memory, now);
        self.input.edges = edges;
    }

    /// Makes one decision. True when there is a new plan.
    fn decide_once(&mut self) -> bool {
        let now = self.now();
        let outcome = plan(&self.input, now);
        for broken in self.invariants.check(&self.input, &outcome, now) {
            self.broken(&broken);
        }
        self.input.request = None;
        let memory = std::mem::replace(&mut self.input.memory, outcome.memory);
        self.write_report(&outcome.report);
        self.write_penalties(&memory);
        let Some(plan) = outcome.plan else { return false };
        self.say(&format!("plan {}: {}", plan.number(), describe(&plan)));
        self.record.plans.push((self.elapsed, plan.clone()));
        let stored = Stored {
            plan: plan.clone(),
            memory: self.input.memory.clone(),
            epoch: self.input.epoch,
        };
        self.copies.insert(plan.generation, stored);
        self.input.current = Some(plan);
        true
    }

    /// Writes a report into the transcript. A refusal or wait that goes on stands there once.
    fn write_report(&mut self, report: &Report) {
        let mut report = report.clone();
        report.waiting.extend(self.clocks.reasons());
        report.waiting.extend(self.rounds.suspects().reasons());
        let before = std::mem::replace(&mut self.last_report, report.clone());
        let lists = [
            (Kind::Changed, &report.changed, &Vec::new()),
            (Kind::Refused, &report.refused, &before.refused),
            (Kind::Waiting, &report.waiting, &before.waiting),
        ];
        for (kind, new, old) in lists {
            for reason in new.iter().filter(|new| !old.iter().any(|old| is_same(old, new))) {
                let region = reason.region.as_ref().map(|it| format!(" {it}")).unwrap_or_default();
                let until = reason.until.map(|until| until.to_string());
                let until = until.filter(|until| !reason.text.contains(until));
                let until = until.map(|until| format!(" (until {until})")).unwrap_or_default();
                self.say(&format!("{kind:<8}{}{region}: {}{until}", reason.code, reason.text));
                self.record.said.push(FirstReason {
                    at: self.elapsed,
                    kind,
                    reason: reason.clone(),
                });
            }
        }
    }

    /// Writes the penalties that grew into the transcript.
    fn write_penalties(&mut self, before: &Memory) {
        let now = self.now();
        let after = self.input.memory.penalties.clone();
        for (region, penalty) in after {
            if before.penalties.get(&region).is_some_and(|it| it.at == penalty.at) {
                continue;
            }
            let policy = &self.input.policy.damping;
            let held = match penalty.until(policy, now) {
                Some(until) => format!(", held down until {until}"),
                None => String::new(),
            };
            let value = penalty.value(policy, now);
            self.say(&format!("penalty {region}: {value}{held}"));
        }
    }

    fn refused(&mut self, refused: Vec<Refused>) {
        for Refused { node, number, why } in refused {
            self.say(&format!("{node} refuses plan {number}: {why}"));
            self.record.refused.push((self.elapsed, node, number));
        }
    }

    fn broken(&mut self, what: &str) {
        self.say(&format!("INVARIANT BROKEN: {what}"));
        self.record.broken.push(what.to_owned());
    }
}
