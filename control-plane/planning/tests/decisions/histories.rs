//! Random histories: the invariants hold after every step, for any events in any order.

use std::time::Duration;

use planning::{Input, Lag, Outcome, REQUEST_LIFE, Refusal, RolloutSeen, invariants::Invariants, plan};
use proptest::prelude::*;
use topology::{
    Component, EdgeId, Intent, IntentKind, Level, Moment, NodeId, Plan, Policy, Region, RegionId, Role, Rule, Topology,
    fixtures::three_primaries,
};
use verdict::Health;

use crate::world::{DAY, HOUR, verdict, with_versions};

/// Operators: two, and one with another spelling of the first name.
const PEOPLE: [&str; 3] = ["alice", "bob", "Alice"];

/// One event before a decision.
#[derive(Debug, Clone)]
enum Step {
    /// A verdict on one region, with its level.
    Seen(usize, Health, u8),
    /// Every verdict is this many ticks old.
    Old(u64),
    /// An operator makes a request, with one of a few tokens, so that some are used twice.
    Asked(usize, Wanted, u8),
    /// Time passes.
    Passes(Duration),
    /// The clock goes back.
    Back(Duration),
    /// Copies of a primary's data lag this far, in the classes of a bit mask; none: the lag is not measured.
    Lags(usize, Option<Duration>, u8),
    /// This many of three nodes refuse the plan in force; the newest that all had is this many plans old.
    Refuse(u32, usize),
    /// Observations of devices about the version that is rolled out.
    Devices(u32, u64, f64),
    /// Another leader takes over.
    NewLeader,
    /// The store goes back by this many plans, and nodes show the plan they have.
    Restored(usize),
    /// A region has room for this many sessions from now on.
    Resized(usize, u32),
    /// A region leaves the topology, or comes back to it.
    Gone(usize),
    Returns(usize),
    /// A backup becomes a primary, or a primary a backup.
    Turned(usize),
}

#[derive(Debug, Clone)]
enum Wanted {
    Failover(usize, bool, Option<Duration>, bool),
    Switchover(usize, bool),
    Restore(usize, Option<Duration>),
    Drain(usize),
    DrainStack(usize),
    Rollout(u8),
    Freeze,
    Unfreeze,
    Override(usize),
    Ack(usize),
    Approve(usize),
    Abort(usize),
}

fn any_health() -> impl Strategy<Value = Health> {
    prop_oneof![
        6 => Just(Health::Healthy), 1 => Just(Health::Suspect), 2 => Just(Health::Degraded),
        4 => Just(Health::Down), 1 => Just(Health::NoData), 1 => Just(Health::Blind),
    ]
}

fn any_loss() -> impl Strategy<Value = Option<Duration>> {
    prop::option::weighted(0.3, (0u64..30).prop_map(|hours| Duration::from_secs(hours * 3600)))
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    let which = 0usize..6;
    prop_oneof![
        6 => (which.clone(), any::<bool>(), any_loss(), prop::bool::weighted(0.1))
            .prop_map(|(it, promote, loss, force)| Wanted::Failover(it, promote, loss, force)),
        5 => (which.clone(), any::<bool>()).prop_map(|(it, promote)| Wanted::Switchover(it, promote)),
        5 => (which.clone(), any_loss()).prop_map(|(it, loss)| Wanted::Restore(it, loss)),
        1 => (0usize..3).prop_map(Wanted::Drain),
        1 => (0usize..4).prop_map(Wanted::DrainStack),
        2 => (0u8..3).prop_map(Wanted::Rollout),
        1 => Just(Wanted::Freeze),
        1 => Just(Wanted::Unfreeze),
        2 => (0usize..6).prop_map(Wanted::Override),
        1 => which.prop_map(Wanted::Ack),
        5 => (0usize..12).prop_map(Wanted::Approve),
        3 => (0usize..12).prop_map(Wanted::Abort),
    ]
}

fn any_time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => (1u64..12_000).prop_map(Duration::from_millis),
        4 => (10u64..90).prop_map(Duration::from_secs),
        1 => (1u64..30).prop_map(|hours| Duration::from_secs(hours * 3600)),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..6, any_health(), 0u8..3).prop_map(|(it, health, level)| Step::Seen(it, health, level)),
        1 => (0u64..6).prop_map(Step::Old),
        10 => (0usize..3, any_wanted(), 0u8..40).prop_map(|(who, what, token)| Step::Asked(who, what, token)),
        12 => any_time().prop_map(Step::Passes),
        1 => any_time().prop_map(Step::Back),
        3 => (0usize..6, prop::option::of((0u64..100_000).prop_map(Duration::from_secs)), any::<u8>())
            .prop_map(|(it, lag, classes)| Step::Lags(it, lag, classes)),
        1 => (0u32..4, 0usize..4).prop_map(|(nodes, age)| Step::Refuse(nodes, age)),
        1 => (0u32..300, 0u64..30, 100.0..400.0f64).prop_map(|(sessions, failed, p95)| Step::Devices(sessions, failed, p95)),
        1 => Just(Step::NewLeader),
        1 => (0usize..4).prop_map(Step::Restored),
        1 => (0usize..6, 1u32..300).prop_map(|(it, sessions)| Step::Resized(it, sessions)),
        1 => (0usize..6).prop_map(Step::Gone),
        2 => (0usize..6).prop_map(Step::Returns),
        1 => (0usize..6).prop_map(Step::Turned),
    ]
}

/// The limits of regions, and of the policy.
fn any_world() -> impl Strategy<Value = (Topology, Policy)> {
    let room = (
        20u32..400,
        prop::option::weighted(0.4, 1u32..40),
        prop::option::weighted(0.4, 1u32..300),
    );
    let rooms = prop::collection::vec((room, 0usize..6), 6);
    let policy = (0u32..3, 1u32..4, any::<bool>(), any::<bool>(), any::<bool>());
    (rooms, policy).prop_map(|(rooms, policy)| {
        let (mut topology, mut rules) = (three_primaries().topology, Policy::default());
        with_versions(&mut topology, &["v0", "v1", "v2"]);
        for (region, ((sessions, connects, of), component)) in topology.regions.values_mut().zip(rooms) {
            (region.sessions_max, region.connects_per_s_max) = (sessions, connects);
            if let Some(of) = of {
                region.capacity.insert(Component::ALL[component], of);
            }
        }
        rules.failover.automatic_max = policy.0;
        rules.safety.regions_serving_min = policy.1;
        rules.failover.degrade_to_admit = policy.2;
        if policy.3 {
            rules.safety.two_person.clear();
        }
        if policy.4 {
            rules.drain.steps = vec![0];
        }
        (topology, rules)
    })
}

/// A control plane that plays a history.
struct Life {
    input: Input,
    now: Moment,
    /// Age of the verdicts, in ticks.
    age: u64,
    plans: Vec<(Plan, planning::Memory)>,
    /// The topology at the begin.
    original: Topology,
    invariants: Invariants,
}

impl Life {
    fn begin(topology: Topology, policy: Policy) -> Self {
        let mut life = Self {
            original: topology.clone(),
            input: Input::new(topology, policy, 1),
            now: Moment(1_000_000_000),
            age: 1,
            plans: Vec::new(),
            invariants: Invariants::default(),
        };
        for region in life.regions() {
            let seen = verdict(&region, Health::Healthy, life.now.tick().back(1), life.now);
            life.input.verdicts.insert(region, seen);
        }
        life
    }

    fn regions(&self) -> Vec<RegionId> {
        self.input.topology.regions.keys().cloned().collect()
    }

    fn region(&self, which: usize) -> RegionId {
        let regions = self.regions();
        regions[which % regions.len()].clone()
    }

    /// Another topology, as valid as one that was read: backups exist and are backups, and there is a primary.
    fn rebuild(&mut self, change: impl FnOnce(&mut Topology)) {
        let mut topology = self.input.topology.clone();
        change(&mut topology);
        let of_role = |region: &&Region| region.role == Role::Backup;
        let existing: Vec<RegionId> = topology
            .regions
            .values()
            .filter(of_role)
            .map(|it| it.id.clone())
            .collect();
        for region in topology.regions.values_mut() {
            if let Role::Primary { backups } = &mut region.role {
                backups.retain(|backup| existing.contains(backup));
            }
        }
        if topology.primaries().next().is_none() {
            return;
        }
        self.input
            .verdicts
            .retain(|region, _| topology.regions.contains_key(region));
        self.input.topology = topology;
    }

    fn happen(&mut self, step: Step) {
        self.input.refusal = None;
        match step {
            Step::Seen(which, health, level) => {
                let region = self.region(which);
                let mut seen = verdict(&region, health, self.now.tick().back(1), self.now);
                seen.level = [Level::L0, Level::L1, Level::L2][usize::from(level)];
                self.input.verdicts.insert(region, seen);
                self.age = 1;
            }
            Step::Old(age) => self.age = age,
            Step::Asked(who, wanted, token) => self.ask(PEOPLE[who], &wanted, token),
            Step::Passes(time) => self.now = self.now + time,
            Step::Back(time) => self.now = Moment(self.now.0.saturating_sub(time.as_millis() as u64)),
            Step::Lags(which, behind, mask) => {
                let region = self.region(which);
                let classes = self.input.policy.data.iter().enumerate();
                let classes = classes.filter(|(index, _)| mask & (1 << index) != 0);
                let classes = classes.map(|(_, it)| it.class.clone());
                let at = self.now;
                let lags = behind.map(|behind| classes.map(|class| (class, Lag { behind, at })).collect());
                match lags {
                    Some(lags) => drop(self.input.replication.insert(region, lags)),
                    None => drop(self.input.replication.remove(&region)),
                }
            }
            Step::Refuse(nodes, age) => {
                let names = ["edge-iad", "edge-dub", "ns1"].into_iter().take(nodes as usize);
                let acknowledged = self.plans.iter().rev().nth(age + 1).map(|(plan, _)| plan.clone());
                self.input.refusal = self.input.current.as_ref().map(|current| Refusal {
                    number: current.number(),
                    nodes: names
                        .map(|name| (NodeId::new(name).unwrap(), "no".to_owned()))
                        .collect(),
                    following: 3,
                    acknowledged,
                });
            }
            Step::Devices(sessions, failed, p95_ms) => {
                let version = self.input.current.as_ref().and_then(|plan| plan.rollout.clone());
                self.input.rollout = version.map(|rollout| RolloutSeen {
                    version: rollout.version,
                    sessions,
                    turns_succeeded: 2_000,
                    turns_failed: failed,
                    p95_ms: Some(p95_ms),
                    old_p95_ms: Some(200.0),
                    underruns: 0,
                    gpu_memory_errors: u64::from(failed == 29),
                    recent: None,
                });
            }
            Step::NewLeader => self.input.epoch += 1,
            Step::Restored(age) => {
                let newest = self.plans.last().map(|(plan, _)| plan.clone());
                if let Some((plan, memory)) = self.plans.iter().rev().nth(age).cloned() {
                    (self.input.current, self.input.memory) = (Some(plan), memory);
                    (self.input.recovered, self.input.epoch) = (newest, self.input.epoch + 1);
                }
            }
            Step::Resized(which, sessions) => {
                let region = self.region(which);
                self.input.topology.regions.get_mut(&region).unwrap().sessions_max = sessions;
            }
            Step::Gone(which) => {
                let region = self.region(which);
                self.rebuild(|topology| drop(topology.regions.remove(&region)));
            }
            Step::Returns(which) => {
                let known = self.original.regions.values().nth(which).unwrap().clone();
                self.rebuild(|topology| {
                    topology.regions.entry(known.id.clone()).or_insert(known);
                });
            }
            Step::Turned(which) => {
                let region = self.region(which);
                let backups = self.regions();
                self.rebuild(|topology| {
                    let role = &mut topology.regions.get_mut(&region).unwrap().role;
                    *role = match role {
                        Role::Backup => Role::Primary { backups },
                        Role::Primary { .. } => Role::Backup,
                    };
                });
            }
        }
        let tick = self.now.tick().back(self.age);
        for seen in self.input.verdicts.values_mut() {
            seen.tick = tick;
            seen.healthy_since = seen.healthy_since.map(|since| since.min(self.now));
        }
    }

    fn ask(&mut self, who: &str, wanted: &Wanted, token: u8) {
        let region = |which: usize| self.region(which);
        let action = |which: usize| {
            let known = self.input.memory.actions.keys().nth(which);
            known.cloned().unwrap_or_else(|| "a0".to_owned())
        };
        let kind = match *wanted {
            Wanted::Failover(it, promote, accept_loss, force) => IntentKind::Failover {
                region: region(it),
                promote,
                accept_loss,
                force,
            },
            Wanted::Switchover(it, promote) => IntentKind::Switchover {
                region: region(it),
                promote,
            },
            Wanted::Restore(it, accept_loss) => IntentKind::Restore {
                region: region(it),
                accept_loss,
            },
            Wanted::Drain(it) => IntentKind::DrainEdge {
                edge: EdgeId::new(["edge-iad", "edge-dub", "edge-xyz"][it]).unwrap(),
            },
            Wanted::DrainStack(it) => IntentKind::DrainStack {
                stack: std::net::SocketAddr::from(([127, 0, 0, 1], [9_003, 9_100, 9_101, 9_102][it])),
            },
            Wanted::Rollout(it) => IntentKind::Rollout {
                version: format!("v{it}"),
            },
            Wanted::Freeze => IntentKind::Freeze,
            Wanted::Unfreeze => IntentKind::Unfreeze,
            Wanted::Override(it) => IntentKind::Override { rule: Rule::ALL[it] },
            Wanted::Ack(it) => IntentKind::Ack { region: region(it) },
            Wanted::Approve(it) => {
                let action = action(it);
                let waiting = self.input.memory.actions.get(&action);
                // One approval in eight is for something older.
                let shown = waiting
                    .filter(|_| !token.is_multiple_of(8))
                    .and_then(planning::Action::shown_digest);
                IntentKind::Approve { action, shown }
            }
            Wanted::Abort(it) => IntentKind::Abort { action: action(it) },
        };
        let life = if kind.stands() { HOUR } else { REQUEST_LIFE };
        self.input.request = Some(Intent {
            id: format!("a{token}"),
            kind,
            author: who.to_owned(),
            reason: "so it goes".to_owned(),
            created_at: self.now,
            expires_at: self.now + life,
        });
    }

    /// One decision: the same bytes twice, and no invariant broken.
    fn decide(&mut self) -> Result<Outcome, TestCaseError> {
        let bytes = |outcome: &Outcome| serde_json::to_vec(outcome).unwrap();
        let outcome = plan(&self.input, self.now);
        prop_assert_eq!(
            bytes(&outcome),
            bytes(&plan(&self.input, self.now)),
            "not the same twice"
        );
        // The record is complete: the decision can be made again from it.
        let recorded: Input = serde_json::from_slice(&serde_json::to_vec(&self.input).unwrap()).unwrap();
        prop_assert_eq!(
            bytes(&outcome),
            bytes(&plan(&recorded, self.now)),
            "not the same from its record"
        );
        let broken = self.invariants.check(&self.input, &outcome, self.now);
        prop_assert!(
            broken.is_empty(),
            "{:#?}\n{:#?}\n{:#?}",
            broken,
            outcome.report,
            outcome.plan
        );
        self.input.memory = outcome.memory.clone();
        (self.input.request, self.input.recovered) = (None, None);
        if let Some(plan) = &outcome.plan {
            self.input.current = Some(plan.clone());
            self.plans.push((plan.clone(), outcome.memory.clone()));
        }
        Ok(outcome)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// For every history: plans stay valid, follow each other by one and send no session to a full, failing or unseen
    /// region; a refused request changes nothing; automation keeps its limits; and when no more events come, decisions
    /// come to rest.
    #[test]
    fn the_invariants_hold_in_any_history(
        (topology, policy) in any_world(),
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        let mut life = Life::begin(topology, policy);
        life.decide()?;
        for step in steps {
            life.happen(step);
            life.decide()?;
        }
        life.input.refusal = None;
        for _ in 0..8 {
            if life.decide()?.plan.is_none() {
                return Ok(());
            }
        }
        prop_assert!(false, "decisions do not come to rest");
    }

    /// All regions become healthy and an operator brings all sessions home: no history prevents that.
    #[test]
    fn everything_can_be_brought_home_in_the_end(
        (topology, policy) in any_world(),
        steps in prop::collection::vec(any_step(), 1..60),
    ) {
        let mut life = Life::begin(topology, policy);
        life.decide()?;
        for step in steps {
            life.happen(step);
            life.decide()?;
        }
        // After a day every penalty, freeze, override and rest is over.
        (life.input.refusal, life.age) = (None, 1);
        life.now = life.now + DAY;
        for region in life.regions() {
            let seen = verdict(&region, Health::Healthy, life.now.tick().back(1), life.now);
            life.input.verdicts.insert(region.clone(), seen);
            let classes = life.input.policy.data.iter().map(|it| it.class.clone());
            let lag = Lag { behind: Duration::ZERO, at: life.now };
            life.input.replication.insert(region, classes.map(|class| (class, lag)).collect());
        }
        life.decide()?;
        let primaries: Vec<RegionId> = life.input.topology.primaries().map(|it| it.id.clone()).collect();
        for (number, region) in primaries.iter().enumerate() {
            life.input.request = Some(Intent {
                id: format!("home{number}"),
                kind: IntentKind::Restore { region: region.clone(), accept_loss: None },
                author: "alice".into(),
                reason: "the end".into(),
                created_at: life.now,
                expires_at: life.now + REQUEST_LIFE,
            });
            life.decide()?;
        }
        // A region that accepts one connection per second takes a while.
        for _ in 0..2_000 {
            let home = |region: &RegionId| {
                let shares = &life.input.current.as_ref().unwrap().routes[region];
                shares.len() == 1 && shares[0].region == *region
            };
            if primaries.iter().all(home) {
                return Ok(());
            }
            life.now = planning::next_wake(&life.input, life.now).unwrap_or(life.now + HOUR);
            for seen in life.input.verdicts.values_mut() {
                seen.tick = life.now.tick().back(1);
            }
            life.decide()?;
        }
        prop_assert!(false, "not everything is at home: {:#?}", life.input.current);
    }
}
