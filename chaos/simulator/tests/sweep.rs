//! Small worlds in which regions die and recover at random, and what no caller may meet there, told without the rules that
//! decide: a region that is down for a minute, with room elsewhere, has no callers, and no healthy region is left without an
//! order. The seeds are fixed, so that a failure belongs to a change.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use simulator::{Record, Scenario, play};
use topology::{Plan, Policy, RegionId, RegionState, Topology, fixtures::three_primaries};

const SEEDS: u64 = 60;
const END_S: u64 = 900;
/// Two ticks until a region is found down, three until it is found well again, and as many to act on that.
const SETTLED_S: u64 = 60;

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
}

/// When each region is dead, from and until.
type Deaths = BTreeMap<RegionId, Vec<(u64, u64)>>;

fn any_scenario(seed: u64, topology: &Topology) -> (String, Deaths) {
    let mut dice = Dice(seed);
    let regions: Vec<&RegionId> = topology.regions.keys().collect();
    let mut events: Vec<(u64, String)> = Vec::new();
    let mut deaths = Deaths::new();
    for _ in 0..2 + dice.roll(5) {
        let region = regions[dice.roll(regions.len() as u64) as usize];
        let from = 30 + dice.roll(END_S - 200);
        let until = (from + 5 + dice.roll(400)).min(END_S);
        let known = deaths.entry(region.clone()).or_default();
        if known.iter().any(|(a, b)| from <= b + 1 && *a <= until + 1) {
            continue;
        }
        known.push((from, until));
        events.push((from, format!("{region} dies")));
        events.push((until, format!("{region} recovers")));
    }
    if dice.roll(3) == 0 {
        events.push((100 + dice.roll(600), "leader changes".to_owned()));
    }
    events.sort();
    let mut text = String::new();
    for (at, event) in events {
        writeln!(text, "at {at}s {event}").unwrap();
    }
    writeln!(text, "end {END_S}s").unwrap();
    (text, deaths)
}

struct Seen<'a> {
    topology: &'a Topology,
    deaths: &'a Deaths,
    record: &'a Record,
}

impl Seen<'_> {
    fn plan(&self, at: u64) -> &Plan {
        let at = Duration::from_secs(at);
        let before = self.record.plans.iter().rev().find(|(since, _)| *since <= at);
        &before.unwrap().1
    }

    /// Since when the region has been dead, if it is.
    fn dead_since(&self, region: &RegionId, at: u64) -> Option<u64> {
        let deaths = self.deaths.get(region).into_iter().flatten();
        let now = deaths.filter(|(from, until)| (*from..*until).contains(&at));
        now.map(|(from, _)| *from).next()
    }

    /// Whether it has been well for long enough that everybody knows.
    fn is_well(&self, region: &RegionId, at: u64) -> bool {
        let deaths = self.deaths.get(region).into_iter().flatten();
        let recent = |(from, until): &(u64, u64)| *from <= at && at < until + SETTLED_S;
        !deaths.clone().any(recent)
    }

    /// A place for all sessions of a primary, besides the region that is dead: one that is well and has nobody else's.
    fn has_room(&self, primary: &RegionId, dead: &RegionId, at: u64) -> bool {
        let plan = self.plan(at);
        let is_free = |target: &RegionId| {
            let mut guests = plan.routes.iter().filter(|(of, _)| *of != primary);
            !guests.any(|(_, shares)| shares.iter().any(|share| share.region == *target))
        };
        let backups = self.topology.backups_of(primary).iter().chain([primary]);
        let mut places = backups.filter(|it| *it != dead);
        places.any(|it| self.is_well(it, at) && self.is_well(it, at.saturating_sub(SETTLED_S)) && is_free(it))
    }

    /// What may keep automation from leaving a primary: the policy lets one region at a time be bad or moving, and holds
    /// those that turned bad together.
    fn is_held_back(&self, primary: &RegionId, since: u64, at: u64) -> bool {
        let others = || self.topology.regions.keys().filter(|it| *it != primary);
        let is_primary = |it: &RegionId| self.topology.primaries().any(|region| region.id == *it);
        // Whoever was held until a moment ago is left in the next ticks.
        let moments = [at.saturating_sub(SETTLED_S / 2), at];
        let limited = moments.iter().any(|at| {
            others().any(|other| {
                let state = self.plan(*at).regions.get(other).map(|it| it.state);
                state != Some(RegionState::Serving) && !self.is_well(other, *at)
            })
        });
        let moving = self.record.plans.iter().any(|(when, _)| {
            let when = when.as_secs();
            when <= at && at < when + SETTLED_S / 2
        });
        let together = others().filter(|it| is_primary(it)).any(|other| {
            let deaths = self.deaths.get(other).into_iter().flatten();
            // Three ticks, and one for where in a tick they died.
            deaths
                .clone()
                .any(|(from, until)| from.abs_diff(since) <= 40 && at < until + SETTLED_S)
        });
        let well = self.topology.regions.keys().filter(|it| self.is_well(it, at)).count();
        limited || moving || together || well < 3
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for at in (0..END_S).step_by(5) {
            for (primary, shares) in &self.plan(at).routes {
                for dead in shares.iter().map(|share| &share.region) {
                    let Some(since) = self.dead_since(dead, at).filter(|since| at - since > SETTLED_S) else {
                        continue;
                    };
                    if !self.has_room(primary, dead, at) {
                        continue;
                    }
                    if dead == primary && self.is_held_back(primary, since, at) {
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

#[test]
fn no_caller_stays_with_a_dead_region_and_no_healthy_region_is_left() {
    let topology = three_primaries().topology;
    let mut left = 0;
    for seed in 0..SEEDS {
        let (text, deaths) = any_scenario(seed, &topology);
        let scenario = Scenario::parse(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let record = play(&scenario, &topology, &Policy::default()).unwrap();
        assert!(
            record.broken.is_empty(),
            "seed {seed}: {:#?}\n{text}\n{}",
            record.broken,
            record.transcript
        );
        let seen = Seen {
            topology: &topology,
            deaths: &deaths,
            record: &record,
        };
        let problems = seen.problems();
        assert!(
            problems.is_empty(),
            "seed {seed}: {problems:#?}\n{text}\n{}",
            record.transcript
        );
        let away = |plan: &Plan| plan.regions.values().any(|it| it.state == RegionState::Evacuated);
        left += usize::from(record.plans.iter().any(|(_, plan)| away(plan)));
    }
    assert!(
        left as u64 > SEEDS / 2,
        "only {left} of {SEEDS} worlds lost a primary: they show too little"
    );
}
