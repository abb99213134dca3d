//! The simulated world: regions that are well or not, vantages that see them, a control plane in virtual time, operators,
//! and nodes that follow its plans.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use planning::{Input, Lag, Memory, Phase, Report, RolloutSeen, invariants::Invariants, next_wake, plan};
use topology::{
    Component, Intent, IntentKind, Level, Moment, NodeId, Plan, Policy, Reason, ReasonCode, RegionId, RegionPlan,
    RegionState, Tick, Topology,
};
use verdict::{Before, Clocks, Observation, Rounds, Source, TickReport, Watch};

use crate::{
    BadScenario, Record, Scenario,
    fleet::{Fleet, Manners, Refused},
    record::{Kind, Said},
    scenario::{Ask, Event, Line, Seen, Wanted, classes, control_plane, nodes, vantages},
};

/// Attempts at the gateway that a vantage makes of each stack in a tick, as the product does: its health page is asked for, and
/// a spoken probe opens a session. Every other component is asked once, by that spoken probe.
const GATEWAY_ATTEMPTS: u32 = 2;
/// How long a component takes when all is well: less than any limit of the policy.
const WELL_MS: f64 = 40.0;
/// The simulated wall clock starts here: a midnight, so that its time of day is the time since the start.
pub(crate) const START: Moment = Moment(20_000 * 86_400_000);
/// Sessions on a version that is rolled out, where a scenario does not say.
const SESSIONS_SEEN: u32 = 1_000;
/// Turns of each session on a version that is rolled out.
const TURNS: u64 = 10;
/// P95 latency of the old version, in milliseconds.
const OLD_P95_MS: f64 = 200.0;
/// Most decisions in one moment until nothing changes any more: a change, what nodes say to it, a change back, and rest.
const DECISIONS_MAX: usize = 6;

#[derive(Debug, Clone, Default)]
struct Condition {
    dead: bool,
    dead_stacks: BTreeSet<SocketAddr>,
    unreachable_from: BTreeSet<NodeId>,
    fails_percent: BTreeMap<Component, u32>,
    asr_takes: Option<Duration>,
}

/// What devices see of a version that is rolled out.
#[derive(Debug, Clone, Copy)]
struct Version {
    sessions: u32,
    fails_percent: u32,
    slower_percent: u32,
    underruns: u32,
    gpu_memory_errors: u32,
}

/// What a store holds: enough for a control plane to go on from.
#[derive(Debug, Clone)]
struct Stored {
    plan: Plan,
    memory: Memory,
    epoch: u64,
}

pub(crate) struct World {
    /// Time since the start, by the clock of the world.
    elapsed: Duration,
    /// How far clocks are ahead of that, in milliseconds: of the control plane and of edges, where they are wrong.
    ahead_ms: BTreeMap<NodeId, i64>,
    conditions: BTreeMap<RegionId, Condition>,
    /// Turns of real traffic in a tick, by edge and region.
    traffic: BTreeMap<(NodeId, RegionId), u32>,
    silent: BTreeSet<NodeId>,
    lies: BTreeSet<(NodeId, RegionId)>,
    lags: BTreeMap<(RegionId, String), Duration>,
    versions: BTreeMap<String, Version>,
    rounds: Rounds,
    clocks: Clocks,
    fleet: Fleet,
    asked: u32,
    pub(crate) last_report: Report,
    /// The store after every plan, by generation: what it may be restored to.
    copies: BTreeMap<u64, Stored>,
    invariants: Invariants,
    pub(crate) input: Input,
    pub(crate) record: Record,
}

/// Plays a scenario and returns what happened. The error names a line that speaks of something the world does not have.
pub fn play(scenario: &Scenario, topology: &Topology, policy: &Policy) -> Result<Record, BadScenario> {
    play_until(scenario, topology, policy, scenario.end).map(|world| world.record)
}

/// The world of a scenario as it is at a time.
pub(crate) fn play_until(
    scenario: &Scenario,
    topology: &Topology,
    policy: &Policy,
    end: Duration,
) -> Result<World, BadScenario> {
    let (topology, policy) = scenario.world(topology, policy)?;
    let mut world = World::new(topology, policy);
    world.traffic.clone_from(&scenario.head.traffic);
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
    Ok(world)
}

impl World {
    fn new(topology: Topology, policy: Policy) -> Self {
        Self {
            elapsed: Duration::ZERO,
            ahead_ms: BTreeMap::new(),
            conditions: BTreeMap::new(),
            traffic: BTreeMap::new(),
            silent: BTreeSet::new(),
            lies: BTreeSet::new(),
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

    /// The clock of the world: that of everybody whose clock is right.
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

    /// When something happens next, whatever it is: a tick ends, by whoever's clock; an event; a wait is over.
    fn next_moment(&self, event: Option<Duration>) -> Duration {
        let (now, world) = (self.now(), self.world_clock());
        let until = |at: Moment, clock: Moment| self.elapsed + at.since(clock);
        let clocks = self.ahead_ms.keys().map(|node| self.clock_of(node)).chain([world, now]);
        let ticks = clocks.map(|clock| until(clock.tick().end(), clock));
        let wake = next_wake(&self.input, now).map(|wake| until(wake, now));
        // The world's own time is what nobody sets, as a monotonic clock is.
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

    /// Every vantage, the control plane too, reports on the tick that ends by its own clock. A fault counts from the tick it
    /// falls into, as with probes that run late in the tick.
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
        let regions = self.input.topology.regions.keys();
        let policy = &self.input.policy.health;
        self.input.verdicts = self.rounds.judge(tick, regions, policy, &before);
    }

    fn report(&mut self, vantage: &NodeId, tick: Tick) {
        if self.silent.contains(vantage) {
            return;
        }
        let regions = self.input.topology.regions.keys();
        let observations = regions.flat_map(|region| self.see(vantage, region, tick)).collect();
        let report = TickReport::new(vantage.clone(), tick, observations);
        let ahead_ms = self.clock_of(vantage).0 as i64 - self.now().0 as i64;
        self.clocks.note(vantage, ahead_ms);
        // A clock that is far off makes reports too old, or not due for long: they do not count, and the verdict says so.
        let _ = self.rounds.take(report, self.watch(), &self.input.policy.health);
    }

    /// What was believed before this tick; for a new leader, what the plan says was believed.
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
        // What the last leader believed is more than its plan says.
        planned.chain(self.input.memory.before()).collect()
    }

    /// What a vantage sees of a region in a tick: its probes of each stack that gets sessions, and its real traffic.
    fn see(&self, vantage: &NodeId, region: &RegionId, tick: Tick) -> Vec<Observation> {
        let healthy = Condition::default();
        let condition = self.conditions.get(region).unwrap_or(&healthy);
        let lies = self.lies.contains(&(vantage.clone(), region.clone()));
        let is_dead = (condition.dead || condition.unreachable_from.contains(vantage)) != lies;
        let turns = self.traffic.get(&(vantage.clone(), region.clone())).copied();
        let stacks = self.stacks_of(region);
        let is_up = |stack: &&SocketAddr| !is_dead && !condition.dead_stacks.contains(*stack);
        let up = stacks.iter().filter(is_up).count() as u32;

        let mut seen = Vec::new();
        for component in Component::ALL {
            let percent = condition
                .fails_percent
                .get(&component)
                .copied()
                .unwrap_or_default()
                .min(100);
            let takes = condition.asr_takes.filter(|_| component == Component::Asr);
            let latency_ms = takes.map_or(WELL_MS, |time| time.as_secs_f64() * 1000.0);
            let new = |source, stack| Observation {
                stack,
                ..Observation::new(region.clone(), component, source)
            };
            let attempts = |stacks: u32| match component {
                Component::Gateway => stacks * GATEWAY_ATTEMPTS,
                _ => stacks,
            };
            // With real traffic percentages are exact, over all that the vantage tries; a few probes alone have their luck.
            let all = attempts(up) + turns.unwrap_or_default();
            let mut failures = all * percent / 100;
            if let Some(turns) = turns.filter(|_| component == Component::Gateway || up > 0) {
                let mut traffic = new(Source::Traffic, None);
                let failed = if up == 0 { turns } else { failures.min(turns) };
                (0..failed).for_each(|_| traffic.fail("it said no"));
                (failed..turns).for_each(|_| traffic.succeed(latency_ms));
                failures -= failed.min(failures);
                seen.push(traffic);
            }
            let mut probe = |observation: &mut Observation, attempt: u32| {
                let fails = match turns {
                    Some(_) if failures > 0 => {
                        failures -= 1;
                        true
                    }
                    Some(_) => false,
                    None => luck(vantage, region, component, tick, attempt) < percent,
                };
                if fails {
                    observation.fail("it said no");
                } else {
                    observation.succeed(latency_ms);
                }
            };
            if component != Component::Gateway {
                let mut probes = new(Source::Probe, None);
                (0..attempts(up)).for_each(|attempt| probe(&mut probes, attempt));
                seen.push(probes);
                continue;
            }
            for (number, stack) in stacks.iter().enumerate() {
                let mut probes = new(Source::Probe, Some(*stack));
                for attempt in 0..GATEWAY_ATTEMPTS {
                    if is_up(&stack) {
                        probe(&mut probes, number as u32 * GATEWAY_ATTEMPTS + attempt);
                    } else {
                        probes.fail("connection refused");
                    }
                }
                seen.push(probes);
            }
        }
        seen
    }

    /// The stacks of a region that sessions are sent to by the plan in force.
    fn stacks_of(&self, region: &RegionId) -> Vec<SocketAddr> {
        let Some(region) = self.input.topology.regions.get(region) else {
            return Vec::new();
        };
        let stacks = match &self.input.current {
            Some(plan) => plan.stacks_with_sessions(region),
            None => region.stacks.iter().collect(),
        };
        stacks.into_iter().map(|stack| stack.address).collect()
    }

    /// What is measured besides health, each tick. Lags are measured where the data is written: a dead region measures none.
    fn measure(&mut self) {
        let at = self.now();
        for ((region, class), behind) in &self.lags {
            if self.conditions.get(region).is_some_and(|it| it.dead) {
                continue;
            }
            let lag = Lag { behind: *behind, at };
            let classes = self.input.replication.entry(region.clone()).or_default();
            classes.insert(class.clone(), lag);
        }
    }

    fn happen(&mut self, line: &Line) {
        self.say(&format!("> {}", line.text));
        let mut condition = |region: &RegionId, change: &dyn Fn(&mut Condition)| {
            change(self.conditions.entry(region.clone()).or_default());
        };
        match &line.event {
            Event::Dies(region) => condition(region, &|it| it.dead = true),
            Event::StackDies(region, stack) => {
                let stack = stack_of(&self.input.topology, region, *stack);
                condition(region, &|it| {
                    it.dead_stacks.insert(stack);
                });
            }
            Event::StackRecovers(region, stack) => {
                let stack = stack_of(&self.input.topology, region, *stack);
                condition(region, &|it| {
                    it.dead_stacks.remove(&stack);
                });
            }
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
            // Unfolded when the scenario was read.
            Event::Flaps(..) => {}
            Event::Silent(vantage) => drop(self.silent.insert(vantage.clone())),
            Event::Speaks(vantage) => drop(self.silent.remove(vantage)),
            Event::Lies(vantage, region) => drop(self.lies.insert((vantage.clone(), region.clone()))),
            Event::Honest(vantage) => self.lies.retain(|(liar, _)| liar != vantage),
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
            Event::Version(version, seen) => self.versions.entry(version.clone()).or_default().see(*seen),
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

    /// A clock is set. What was seen before one that went back far is in its future, where it cannot be judged.
    fn jump(&mut self, node: &NodeId, by_ms: i64) {
        let ahead_ms = self.ahead_ms.entry(node.clone()).or_default();
        *ahead_ms = ahead_ms.saturating_add(by_ms);
        self.rounds.look(self.watch(), &self.input.policy.health);
    }

    /// A leader knows what the store holds, and what it sees from now on.
    fn take_over(&mut self, epoch: u64) {
        self.input.epoch = epoch;
        self.input.verdicts.clear();
        self.input.replication.clear();
        self.rounds = Rounds::default();
        self.last_report = Report::default();
    }

    /// The store is as it was, fencing token included. A control plane that offers nodes an older plan is shown theirs, and
    /// its next plan follows that one.
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
        let kind = match &ask.what {
            Wanted::Kind(kind) => kind.clone(),
            Wanted::ApproveIt => IntentKind::Approve {
                action: newest(&|phase| phase == Phase::AwaitingApproval),
            },
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

    /// Decides, publishes, hears what the nodes say to it, and decides again until nothing changes.
    fn decide(&mut self) {
        for _ in 0..DECISIONS_MAX {
            let answered = self.hear();
            let changed = self.decide_once();
            if let Some(plan) = self.input.current.clone() {
                let refused = self.fleet.publish(&plan);
                self.refused(refused);
            }
            if !changed && self.hear() == answered {
                return;
            }
        }
        self.broken("decisions do not come to rest");
    }

    /// What nodes say, and devices of a version that is rolled out.
    fn hear(&mut self) -> (bool, bool) {
        let current = self.input.current.as_ref();
        self.input.refusal = current.and_then(|plan| self.fleet.refusal(plan));
        self.input.recovered = self.fleet.recovered(current.map(Plan::number));
        let rollout = current.and_then(|plan| plan.rollout.as_ref());
        self.input.rollout = rollout.map(|rollout| {
            let version = self.versions.get(&rollout.version).copied().unwrap_or_default();
            version.seen(&rollout.version)
        });
        (self.input.refusal.is_some(), self.input.recovered.is_some())
    }

    /// One decision; says whether there is a new plan.
    fn decide_once(&mut self) -> bool {
        let now = self.now();
        let outcome = plan(&self.input, now);
        for broken in self.invariants.check(&self.input, &outcome, now) {
            self.broken(&broken);
        }
        self.input.request = None;
        let memory = std::mem::replace(&mut self.input.memory, outcome.memory);
        self.tell(&outcome.report);
        self.tell_penalties(&memory);
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

    /// Says a report. What goes on being refused or waited for is said once.
    fn tell(&mut self, report: &Report) {
        let mut report = report.clone();
        report.waiting.extend(self.clocks.reasons());
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
                self.record.said.push(Said {
                    at: self.elapsed,
                    kind,
                    reason: reason.clone(),
                });
            }
        }
    }

    /// Says which penalties grew.
    fn tell_penalties(&mut self, before: &Memory) {
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

impl Default for Version {
    fn default() -> Self {
        Self {
            sessions: SESSIONS_SEEN,
            fails_percent: 0,
            slower_percent: 0,
            underruns: 0,
            gpu_memory_errors: 0,
        }
    }
}

impl Version {
    fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Sessions(sessions) => self.sessions = sessions,
            Seen::Fails(percent) => self.fails_percent = percent,
            Seen::Slower(percent) => self.slower_percent = percent,
            Seen::Underruns(each) => self.underruns = each,
            Seen::GpuMemoryErrors(count) => self.gpu_memory_errors = count,
        }
    }

    fn seen(self, version: &str) -> RolloutSeen {
        let turns = u64::from(self.sessions) * TURNS;
        let turns_failed = turns * u64::from(self.fails_percent.min(100)) / 100;
        RolloutSeen {
            version: version.to_owned(),
            sessions: self.sessions,
            turns_succeeded: turns - turns_failed,
            turns_failed,
            p95_ms: Some(OLD_P95_MS * (1.0 + f64::from(self.slower_percent) / 100.0)),
            old_p95_ms: Some(OLD_P95_MS),
            underruns: u64::from(self.underruns) * u64::from(self.sessions),
            gpu_memory_errors: u64::from(self.gpu_memory_errors),
            recent: None,
        }
    }
}

/// The address of a stack of a region by its number, from 1.
fn stack_of(topology: &Topology, region: &RegionId, number: usize) -> SocketAddr {
    let stacks = topology.regions.get(region).map(|it| &it.stacks);
    let stack = stacks.and_then(|stacks| stacks.get(number.checked_sub(1)?));
    stack
        .expect("the scenario was checked to speak of stacks that exist")
        .address
}

/// What one attempt draws, 0..100: the same on every run, and of each attempt its own (FNV-1a, then splitmix64).
fn luck(vantage: &NodeId, region: &RegionId, component: Component, tick: Tick, attempt: u32) -> u32 {
    let names = [vantage.as_str(), region.as_str(), component.as_str()];
    let mut z = names
        .iter()
        .flat_map(|name| name.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    z ^= tick.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(attempt) << 32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % 100) as u32
}

/// The same fact again. The text of a hold-down counts its penalty down.
fn is_same(old: &Reason, new: &Reason) -> bool {
    let counts_down = old.code == ReasonCode::HoldDown && old.until == new.until;
    (old.code, &old.region) == (new.code, &new.region) && (old.text == new.text || counts_down)
}

/// A plan in a line: what is not as it is when all is well.
pub(crate) fn describe(plan: &Plan) -> String {
    let away = plan
        .routes
        .iter()
        .filter(|(primary, shares)| shares.iter().any(|share| share.region != **primary));
    let mut told: Vec<String> = away
        .map(|(primary, shares)| {
            let shares: Vec<String> = shares
                .iter()
                .map(|share| format!("{} {} %", share.region, share.percent))
                .collect();
            format!("{primary} → {}", shares.join(" + "))
        })
        .collect();
    told.push(
        if told.is_empty() {
            "every primary at home"
        } else {
            "others at home"
        }
        .to_owned(),
    );
    if told.len() > plan.routes.len() {
        told.pop();
    }
    let levels = plan.regions.iter().filter(|(_, it)| it.level > Level::L0);
    told.extend(levels.map(|(region, it)| format!("{region} at {}", it.level)));
    let drained = plan.edges.iter().filter(|(_, it)| **it == topology::EdgeState::Drained);
    told.extend(drained.map(|(edge, _)| format!("{edge} drained")));
    told.extend(plan.drained_stacks.iter().map(|stack| format!("{stack} drained")));
    for (region, writers) in &plan.writers {
        let writers: BTreeSet<&RegionId> = writers.values().collect();
        let writers: Vec<&str> = writers.into_iter().map(RegionId::as_str).collect();
        told.push(format!("data of {region} is written in {}", writers.join(" and ")));
    }
    if let Some(rollout) = &plan.rollout {
        told.push(format!("{} at {} %", rollout.version, rollout.percent));
    }
    told.join("; ")
}
