//! Small worlds in which regions and single stacks die and recover at random, clocks are wrong and nodes refuse plans.
//! The test states the limits of a caller's trouble without the rules that decide: a region that is down for a minute,
//! with room elsewhere, has no callers, and no healthy region is left without an order. It also states the excuses of
//! each safety rule. The seeds are fixed, so that a failure belongs to a change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use simulator::{
    Record, Scenario, play,
    record::{FirstReason, Kind},
};
use topology::{Plan, Policy, ReasonCode, RegionId, RegionState, Topology, fixtures::three_primaries};

/// Environment variable for another number of worlds.
const WORLDS: &str = "MERIDIAN_SWEEP_WORLDS";
const WORLDS_PLAYED: u64 = 40;
const END_S: u64 = 900;
/// Two ticks until a region is found down, three until it is found healthy again, and as many to act on that.
const SETTLED_S: u64 = 60;
/// A region that a rule held until a moment ago is left in the next ticks.
const NEXT_TICKS_S: u64 = 30;
/// Regions turn bad together within three ticks of each other; and one for the point in a tick at which they died.
const TOGETHER_S: u64 = 40;
/// Time within which the sessions of an evacuated region come back.
const RECONNECT_S: u64 = 10;

/// A small generator (splitmix64): the same numbers everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// A region over time.
#[derive(Debug, Default)]
struct Life {
    stacks: u64,
    /// Number of its stacks that answer, with the times from which it holds.
    changes: Vec<(u64, u64)>,
}

impl Life {
    fn answering(&self, at: u64) -> u64 {
        let newest = self.changes.iter().rev().find(|(from, _)| *from <= at);
        newest.map_or(self.stacks, |(_, answering)| *answering)
    }

    /// Half of its stacks carry a region.
    fn is_up_with(&self, answering: u64) -> bool {
        answering >= self.stacks.div_ceil(2)
    }

    /// Begin of its outage, if it is down.
    fn down_since(&self, at: u64) -> Option<u64> {
        let before = self.changes.iter().rev().filter(|(from, _)| *from <= at);
        let down = before.take_while(|(_, answering)| !self.is_up_with(*answering));
        down.map(|(from, _)| *from).last()
    }

    /// Whether at least `least` stacks answered all the time between two moments.
    fn had(&self, least: u64, from: u64, to: u64) -> bool {
        let mut changes = self.changes.iter().filter(|(at, _)| from < *at && *at <= to);
        self.answering(from) >= least && changes.all(|(_, answering)| *answering >= least)
    }

    fn was_up(&self, from: u64, to: u64) -> bool {
        self.had(self.stacks.div_ceil(2), from, to)
    }
}

type Lives = BTreeMap<RegionId, Life>;

enum Happens {
    Dies,
    Recovers,
    StackDies(u64),
    StackRecovers(u64),
}

/// Sessions that each region has room for. Half of its stacks carry its own sessions.
const SESSIONS_MAX: u64 = 1_000;

/// Callers of each primary: real connections, turns and sessions at both edges, so that real traffic shows every
/// failure as well.
fn any_traffic(seed: u64, topology: &Topology) -> String {
    let mut dice = Dice(!seed);
    let mut text = String::new();
    for region in topology.primaries().map(|region| &region.id) {
        for edge in ["edge-iad", "edge-dub"] {
            let (turns, sessions) = (20 + dice.roll(60), SESSIONS_MAX / 20 + dice.roll(SESSIONS_MAX / 7));
            writeln!(text, "traffic {region} {turns} turns and {sessions} sessions at {edge}").unwrap();
        }
    }
    text
}

fn any_scenario(seed: u64, topology: &Topology) -> (String, Lives) {
    let mut dice = Dice(seed);
    let regions: Vec<&RegionId> = topology.regions.keys().collect();
    let mut text = String::new();
    let mut lives = Lives::new();
    for region in &regions {
        let stacks = 1 + if dice.one_in(2) { dice.roll(4) } else { 0 };
        writeln!(text, "region {region} stacks {stacks} sessions {SESSIONS_MAX}").unwrap();
        let changes = Vec::new();
        lives.insert((*region).clone(), Life { stacks, changes });
    }
    text += &any_traffic(seed, topology);
    let mut happens: Vec<(u64, &RegionId, Happens)> = Vec::new();
    for _ in 0..3 + dice.roll(6) {
        let region = regions[dice.roll(regions.len() as u64) as usize];
        let from = 30 + dice.roll(END_S - 200);
        let until = (from + 5 + dice.roll(400)).min(END_S - 1);
        let stacks = lives[region].stacks;
        if stacks > 1 && dice.one_in(2) {
            let stack = 1 + dice.roll(stacks);
            happens.push((from, region, Happens::StackDies(stack)));
            happens.push((until, region, Happens::StackRecovers(stack)));
        } else {
            happens.push((from, region, Happens::Dies));
            happens.push((until, region, Happens::Recovers));
        }
    }
    happens.sort_by_key(|(at, ..)| *at);
    let mut events: Vec<(u64, String)> = Vec::new();
    let mut dead: BTreeMap<&RegionId, (bool, BTreeSet<u64>)> = BTreeMap::new();
    for (at, region, what) in happens {
        let (is_dead, stacks) = dead.entry(region).or_default();
        let line = match what {
            Happens::Dies => {
                *is_dead = true;
                format!("{region} dies")
            }
            // The region recovers from every fault.
            Happens::Recovers => {
                (*is_dead, *stacks) = (false, BTreeSet::new());
                format!("{region} recovers")
            }
            Happens::StackDies(stack) => {
                stacks.insert(stack);
                format!("stack {stack} of {region} dies")
            }
            Happens::StackRecovers(stack) => {
                stacks.remove(&stack);
                format!("stack {stack} of {region} recovers")
            }
        };
        let life = lives.get_mut(region).unwrap();
        let answering = if *is_dead { 0 } else { life.stacks - stacks.len() as u64 };
        life.changes.push((at, answering));
        events.push((at, line));
    }
    if dice.one_in(3) {
        events.push((100 + dice.roll(600), "leader changes".to_owned()));
    }
    // Clocks are set wrong, and right again; a report counts while they are less than two ticks apart.
    for (clock, most_ms) in [
        ("clock", 4_000),
        ("clock of edge-iad", 9_000),
        ("clock of edge-dub", 9_000),
    ] {
        if !dice.one_in(3) {
            continue;
        }
        let (wrong, right) = (10 + dice.roll(500), 520 + dice.roll(300));
        let by = 1 + dice.roll(most_ms);
        let (there, back) = if dice.one_in(2) { ("", "back ") } else { ("back ", "") };
        events.push((wrong, format!("{clock} jumps {there}{by}ms")));
        events.push((right, format!("{clock} jumps {back}{by}ms")));
    }
    for node in ["edge-iad", "edge-dub", "ns1"] {
        if !dice.one_in(4) {
            continue;
        }
        let from = 10 + dice.roll(700);
        if dice.one_in(2) {
            events.push((from, format!("{node} refuses the next plan")));
        } else {
            events.push((from, format!("{node} refuses plans")));
            events.push((from + 10 + dice.roll(150), format!("{node} accepts plans")));
        }
    }
    // A plan that leaves no dead region, and that most edges refuse: it is taken back, and automation rests.
    if dice.one_in(4) {
        let (region, from) = (regions[dice.roll(regions.len() as u64) as usize], 10 + dice.roll(400));
        events.push((from, "edge-iad refuses the next plan".to_owned()));
        events.push((from, "edge-dub refuses the next plan".to_owned()));
        events.push((from, format!("{region} nlu fails 100 %")));
        events.push((from + 90, format!("{region} nlu fails 0 %")));
    }
    events.sort_by_key(|(at, _)| *at);
    for (at, event) in events {
        writeln!(text, "at {at}s {event}").unwrap();
    }
    writeln!(text, "end {END_S}s").unwrap();
    (text, lives)
}

struct Seen<'a> {
    topology: &'a Topology,
    lives: &'a Lives,
    record: &'a Record,
}

impl Seen<'_> {
    fn plan(&self, at: u64) -> &Plan {
        let at = Duration::from_secs(at);
        let before = self.record.plans.iter().rev().find(|(since, _)| *since <= at);
        &before.unwrap().1
    }

    fn state(&self, region: &RegionId, at: u64) -> RegionState {
        self.plan(at).regions[region].state
    }

    /// Whether the region was up for so long that every control plane knows.
    fn is_well(&self, region: &RegionId, at: u64) -> bool {
        self.lives[region].was_up(at.saturating_sub(SETTLED_S), at)
    }

    /// A place for all sessions of a primary, besides the dead region: a region that has been whole for two minutes and
    /// has no sessions of others.
    fn has_room(&self, primary: &RegionId, dead: &RegionId, at: u64) -> bool {
        let plan = self.plan(at);
        let is_free = |target: &RegionId| {
            let mut guests = plan.routes.iter().filter(|(of, _)| *of != primary);
            !guests.any(|(_, shares)| shares.iter().any(|share| share.region == *target))
        };
        let is_whole = |target: &RegionId| {
            let life = &self.lives[target];
            life.had(life.stacks, at.saturating_sub(2 * SETTLED_S), at)
        };
        let backups = self.topology.backups_of(primary).iter().chain([primary]);
        let mut places = backups.filter(|it| *it != dead);
        places.any(|it| is_whole(it) && is_free(it))
    }

    /// The safety rule that keeps automation from moving the callers of a primary at a dead region: the product names
    /// it for that primary, and its condition holds, or held until a moment ago.
    fn excuse(&self, primary: &RegionId, since: u64, at: u64) -> Option<ReasonCode> {
        let from = Duration::from_secs(since.saturating_sub(SETTLED_S));
        let until = Duration::from_secs(at);
        let is_named = |rule: &ReasonCode| {
            self.record.said.iter().any(|said| {
                let is_then = from <= said.at && said.at <= until;
                let is_it = said.kind == Kind::Refused && said.reason.code == *rule;
                is_then && is_it && said.reason.region.as_ref() == Some(primary)
            })
        };
        let moments = [at.saturating_sub(NEXT_TICKS_S), at];
        let rules = [
            ReasonCode::EvacuationLimit,
            ReasonCode::CorrelatedEvidence,
            ReasonCode::RegionsServingMin,
            ReasonCode::EverythingLooksDead,
        ];
        let mut named = rules.into_iter().filter(is_named);
        named.find(|rule| moments.iter().any(|at| self.holds(*rule, primary, since, *at)))
    }

    fn holds(&self, rule: ReasonCode, primary: &RegionId, since: u64, at: u64) -> bool {
        let mut others = self.topology.regions.keys().filter(|it| *it != primary);
        match rule {
            // Automation leaves one region at a time: another one is away and does not work, or its sessions move.
            ReasonCode::EvacuationLimit => others.any(|other| {
                let moved = self.record.plans.windows(2).rev().find(|pair| {
                    let state = |(_, plan): &(Duration, Plan)| plan.regions[other].state;
                    pair[1].0.as_secs() <= at && state(&pair[0]) != state(&pair[1])
                });
                let moves = moved.is_some_and(|pair| at <= pair[1].0.as_secs() + RECONNECT_S + 10);
                self.state(other, at) != RegionState::Serving && (!self.is_well(other, at) || moves)
            }),
            // Another primary died within a few ticks of it, still has sessions, and does not work again. A region that came up
            // for a moment is bad since its death before that: no control plane called it well in between.
            ReasonCode::CorrelatedEvidence => others.any(|other| {
                let is_primary = self.topology.primaries().any(|region| region.id == *other);
                let deaths = |region: &RegionId| {
                    let life = &self.lives[region];
                    let began = life.changes.iter().map(|(from, _)| *from);
                    began
                        .filter(|from| life.down_since(*from).is_some())
                        .collect::<Vec<u64>>()
                };
                let was_well = |from: u64| (from..since).any(|moment| self.is_well(primary, moment));
                let own = deaths(primary)
                    .into_iter()
                    .filter(|from| *from <= since && !was_well(*from));
                let own: Vec<u64> = own.chain([since]).collect();
                let is_together = |from: &u64| *from <= at && own.iter().any(|own| from.abs_diff(*own) <= TOGETHER_S);
                let together = deaths(other).iter().any(is_together);
                is_primary && together && !self.is_well(other, at) && self.state(other, at) != RegionState::Evacuated
            }),
            // Two regions stay serving: fewer of the others do.
            ReasonCode::RegionsServingMin => {
                let left = others.filter(|it| self.state(it, at) == RegionState::Serving && self.is_well(it, at));
                left.count() < 2
            }
            ReasonCode::EverythingLooksDead => !self.topology.regions.keys().any(|it| self.is_well(it, at)),
            _ => false,
        }
    }

    fn problems(&self, excused: &mut BTreeMap<String, u32>) -> Vec<String> {
        let mut problems = Vec::new();
        for at in (0..END_S).step_by(5) {
            for (primary, shares) in &self.plan(at).routes {
                for dead in shares.iter().map(|share| &share.region) {
                    let since = self.lives[dead].down_since(at);
                    let Some(since) = since.filter(|since| at - since > SETTLED_S) else {
                        continue;
                    };
                    if !self.has_room(primary, dead, at) {
                        continue;
                    }
                    if let Some(rule) = self.excuse(primary, since, at) {
                        *excused.entry(rule.to_string()).or_default() += 1;
                        continue;
                    }
                    problems.push(format!(
                        "{at} s: callers of {primary} are at {dead}, which is dead since {since} s"
                    ));
                }
            }
        }
        for pair in self.record.plans.windows(2) {
            let [(_, before), (when, after)] = pair else { continue };
            for region in self.topology.primaries().map(|it| &it.id) {
                let home = |plan: &Plan| {
                    let shares = plan.routes[region].iter().filter(|share| share.region == *region);
                    shares.map(|share| share.percent).sum::<u8>()
                };
                if home(after) < home(before) && self.is_well(region, when.as_secs()) {
                    problems.push(format!("{} s: {region} is well and is left", when.as_secs()));
                }
            }
        }
        problems
    }
}

/// Counts over the worlds of some seeds.
#[derive(Debug, Default)]
struct Told {
    left: u64,
    half_alive: u64,
    taken_back: u64,
    excused: BTreeMap<String, u32>,
}

fn tell(seed: u64, topology: &Topology, told: &mut Told) {
    let (text, lives) = any_scenario(seed, topology);
    let scenario = Scenario::parse(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    let record = play(&scenario, topology, &Policy::default()).unwrap();
    let (broken, transcript) = (&record.broken, &record.transcript);
    assert!(broken.is_empty(), "seed {seed}: {broken:#?}\n{text}\n{transcript}");
    let seen = Seen {
        topology,
        lives: &lives,
        record: &record,
    };
    let problems = seen.problems(&mut told.excused);
    assert!(problems.is_empty(), "seed {seed}: {problems:#?}\n{text}\n{transcript}");
    let away = |plan: &Plan| plan.regions.values().any(|it| it.state == RegionState::Evacuated);
    told.left += u64::from(record.plans.iter().any(|(_, plan)| away(plan)));
    let part = |life: &Life| life.changes.iter().any(|(_, it)| (1..life.stacks).contains(it));
    told.half_alive += u64::from(lives.values().any(part));
    let is_taken_back = |said: &FirstReason| said.reason.code == ReasonCode::PlanTakenBack;
    told.taken_back += u64::from(record.said.iter().any(is_taken_back));
}

#[test]
fn no_caller_stays_with_a_dead_region_and_no_healthy_region_is_left() {
    let topology = three_primaries().topology;
    let asked = std::env::var(WORLDS).map(|text| text.parse().expect("a number of worlds"));
    let worlds: u64 = asked.unwrap_or(WORLDS_PLAYED);
    let next = AtomicU64::new(0);
    let play_some = || {
        let mut told = Told::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= worlds {
                return told;
            }
            tell(seed, &topology, &mut told);
        }
    };
    let players = std::thread::available_parallelism().map_or(1, usize::from);
    let told: Vec<Told> = std::thread::scope(|scope| {
        let players: Vec<_> = (0..players).map(|_| scope.spawn(play_some)).collect();
        players.into_iter().map(|player| player.join().unwrap()).collect()
    });
    let sum = |of: fn(&Told) -> u64| told.iter().map(of).sum::<u64>();
    let (left, half_alive) = (sum(|it| it.left), sum(|it| it.half_alive));
    // Fewer worlds show too little.
    assert!(left > worlds / 2, "only {left} of {worlds} worlds lost a primary");
    assert!(
        half_alive > worlds / 2,
        "only {half_alive} of {worlds} worlds lost single stacks"
    );
    if worlds < WORLDS_PLAYED {
        return;
    }
    assert!(sum(|it| it.taken_back) > 0, "no world took a plan back");
    for rule in ["evacuation-limit", "correlated-evidence"] {
        let is_met = told.iter().any(|it| it.excused.contains_key(rule));
        assert!(is_met, "no world was held by {rule}: {told:?}");
    }
}
