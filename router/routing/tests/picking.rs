//! What a pick promises, over many worlds and sessions.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use proptest::prelude::*;
use routing::{
    Because, Decision, Policy, Request, Stacks, Table, Tried, User, Why, pick,
    pick::{Ignored, StackWhy},
};
use topology::{
    EdgeId, Moment, RegionId, RegionState, Rollout, Share, Snapshot, Stack, fixtures::three_primaries, words::Load,
};

fn region(name: &str) -> RegionId {
    RegionId::new(name).unwrap()
}

/// A world in which the sessions at home in us-east are shared out like this.
fn world(shares: &[(&str, u8)]) -> Table {
    compile(&planned(shares))
}

fn planned(shares: &[(&str, u8)]) -> Snapshot {
    let mut snapshot = three_primaries();
    snapshot.plan.created_at = Moment(1_000);
    let shares = shares
        .iter()
        .filter(|(_, percent)| *percent > 0)
        .map(|(name, percent)| Share {
            region: region(name),
            percent: *percent,
        })
        .collect();
    snapshot.plan.routes.insert(region("us-east"), shares);
    snapshot
}

fn compile(snapshot: &Snapshot) -> Table {
    Table::compile(snapshot, &EdgeId::new("edge-iad").unwrap())
}

const NOW: Moment = Moment(1_000_000);

/// What the edge knows of a world, told region by region.
struct Seen<'a> {
    table: &'a Table,
    stacks: Stacks,
}

fn seen(table: &Table) -> Seen<'_> {
    let mut stacks = Stacks::default();
    let known = table
        .regions()
        .flat_map(|(_, stacks)| stacks.iter().map(|stack| stack.address));
    stacks.retain(&known.collect());
    Seen { table, stacks }
}

impl Seen<'_> {
    fn stacks_of(&self, name: &str) -> Vec<SocketAddr> {
        let (_, stacks) = self.table.regions().find(|(id, _)| id.as_str() == name).unwrap();
        stacks.iter().map(|stack| stack.address).collect()
    }

    fn stack_is_ejected(&mut self, stack: SocketAddr, at: Moment) {
        while !self.stacks.is_ejected(stack, at) {
            self.stacks.failed(stack, at, &Policy::DEFAULT);
        }
    }

    fn ejected(mut self, names: &[&str]) -> Self {
        for name in names {
            for stack in self.stacks_of(name) {
                self.stack_is_ejected(stack, NOW);
            }
        }
        self
    }

    /// All its stacks say that so much is waiting, of 32.
    fn waiting(mut self, name: &str, waiting: u32) -> Self {
        for stack in self.stacks_of(name) {
            self.stack_says(stack, waiting);
        }
        self
    }

    fn stack_says(&mut self, stack: SocketAddr, waiting: u32) {
        let load = Load {
            sessions: 1,
            sessions_max: 100,
            waiting,
            waiting_max: 32,
            ..Load::default()
        };
        self.stacks.loaded(stack, load, NOW);
    }
}

/// A question with nothing special about it.
struct Ask<'a> {
    table: &'a Table,
    key: &'a str,
    affinity: Option<&'a str>,
    is_there: bool,
    affinity_at: Moment,
    silent: &'a [&'a str],
    tried: &'a [&'a str],
    seen: Seen<'a>,
    now: Moment,
}

fn ask<'a>(table: &'a Table, key: &'a str) -> Ask<'a> {
    Ask {
        table,
        key,
        affinity: None,
        is_there: false,
        affinity_at: Moment(0),
        silent: &[],
        tried: &[],
        seen: seen(table),
        now: NOW,
    }
}

impl Ask<'_> {
    fn pick(&self) -> Option<Decision> {
        let mut tried = Tried::default();
        for name in self.tried {
            tried.region(&region(name));
        }
        self.pick_after(&tried)
    }

    fn pick_after(&self, tried: &Tried) -> Option<Decision> {
        let affinity = self.affinity.map(region);
        let request = Request {
            session_key: self.key,
            user: User::default(),
            affinity: affinity.as_ref(),
            is_there: self.is_there,
            silent: &self.silent.iter().map(|name| region(name)).collect(),
            affinity_at: self.affinity_at,
            tried,
            measured_rtt_ms: &BTreeMap::new(),
            stacks: &self.seen.stacks,
            policy: &Policy::DEFAULT,
            now: self.now,
        };
        pick(self.table, &request)
    }

    fn check(&self, expected: &str, why: Why) {
        let decision = self.pick().expect("some region is left");
        assert_eq!(
            (decision.region.as_str(), decision.why),
            (expected, why),
            "{decision:?}"
        );
    }
}

#[test]
fn a_session_goes_home() {
    ask(&world(&[("us-east", 100)]), "anna").check("us-east", Why::Share(100));
}

#[test]
fn a_session_returns_to_where_it_was_while_the_plan_sends_sessions_there() {
    let table = world(&[("us-east", 100)]);
    let returning = |affinity| Ask {
        affinity: Some(affinity),
        ..ask(&table, "anna")
    };
    // The plan sends sessions there, but none of this home: a token that says so outlived its reason.
    returning("eu-west").check("us-east", Why::Share(100));
    let stays = Ask {
        is_there: true,
        ..returning("eu-west")
    };
    stays.check("eu-west", Why::Affinity);
    // A backup that has no share any more gives its sessions back.
    returning("us-west").check("us-east", Why::Share(100));
    let skipped = returning("us-west").pick().unwrap().skipped;
    assert_eq!(skipped[0].because, Because::NoShare);
    // Unless an edge sent it there after the plan was made: then its home has failed the session, and may again.
    let fled = Ask {
        affinity_at: NOW,
        ..returning("us-west")
    };
    fled.check("us-west", Why::Affinity);
    let longer_ago = |table| Ask {
        affinity: Some("us-west"),
        affinity_at: Moment(NOW.0 - 600_000),
        ..ask(table, "anna")
    };
    longer_ago(&table).check("us-east", Why::Share(100));
    // That others are sent to the backup is no reason either: they are not of this home.
    let mut snapshot = planned(&[("us-east", 100)]);
    snapshot.plan.routes.get_mut(&region("eu-west")).unwrap()[0].region = region("us-west");
    longer_ago(&compile(&snapshot)).check("us-east", Why::Share(100));
    returning("atlantis").check("us-east", Why::Share(100));

    let mut snapshot = planned(&[("us-west", 100)]);
    snapshot.plan.regions.get_mut(&region("us-east")).unwrap().state = RegionState::Evacuated;
    let table = compile(&snapshot);
    let returning = Ask {
        affinity: Some("us-east"),
        ..ask(&table, "anna")
    };
    returning.check("us-west", Why::Share(100));
    assert_eq!(returning.pick().unwrap().skipped[0].because, Because::Evacuated);
}

#[test]
fn what_cannot_take_a_session_passes_it_on_in_order() {
    let table = world(&[("us-east", 60), ("eu-central", 40)]);
    let first = ask(&table, "anna").pick().unwrap().region;
    let other = if first.as_str() == "us-east" {
        "eu-central"
    } else {
        "us-east"
    };
    let after = |tried: &[&str], ejected: &[&str]| {
        let ask = Ask {
            tried,
            seen: seen(&table).ejected(ejected),
            ..ask(&table, "anna")
        };
        ask.pick().map(|decision| (decision.region.to_string(), decision.why))
    };
    let some = |name: &str, why| Some((name.to_owned(), why));
    assert_eq!(after(&[first.as_str()], &[]), some(other, Why::Overflow));
    assert_eq!(after(&[], &[first.as_str()]), some(other, Why::Overflow));
    assert_eq!(after(&["us-east", "eu-central"], &[]), some("us-west", Why::Backup));
    let planned_and_backups = ["us-east", "eu-central", "us-west"];
    assert_eq!(after(&planned_and_backups, &[]), some("eu-west", Why::AnyServing));
    let all = [
        "us-east",
        "eu-central",
        "us-west",
        "eu-west",
        "ap-south",
        "ap-northeast",
    ];
    assert_eq!(after(&all, &[]), None, "nothing is tried twice");
}

const ALL: [&str; 6] = [
    "us-east",
    "eu-central",
    "us-west",
    "eu-west",
    "ap-south",
    "ap-northeast",
];

#[test]
fn when_everything_left_is_ejected_ejection_is_ignored() {
    // One region in use, and its backups: no panic.
    let mut snapshot = planned(&[("us-east", 100)]);
    for primary in ["eu-west", "ap-south"] {
        let shares = snapshot.plan.routes.get_mut(&region(primary)).unwrap();
        shares[0].region = region("us-east");
    }
    let table = compile(&snapshot);
    let all = |tried: &[&str]| {
        let ask = Ask {
            seen: seen(&table).ejected(&ALL),
            tried,
            ..ask(&table, "anna")
        };
        let decision = ask.pick().unwrap();
        assert_eq!(decision.ejection_ignored, Some(Ignored::NothingElse));
        decision.region.to_string()
    };
    assert_eq!(all(&[]), "us-east");
    assert_eq!(all(&["us-east"]), "us-west");
}

#[test]
fn when_most_regions_in_use_are_ejected_it_is_the_edge_that_is_ill() {
    let table = world(&[("us-east", 100)]);
    let with_ejected = |names: &[&str]| {
        let ask = Ask {
            seen: seen(&table).ejected(names),
            ..ask(&table, "anna")
        };
        let decision = ask.pick().unwrap();
        (decision.region.to_string(), decision.ejection_ignored)
    };
    // Three are in use: us-east, eu-west and ap-south.
    let (away, home) = ("us-west".to_owned(), "us-east".to_owned());
    assert_eq!(with_ejected(&["us-east"]), (away, None));
    assert_eq!(
        with_ejected(&["us-east", "us-west"]),
        ("eu-central".to_owned(), None),
        "a backup is not in use"
    );
    assert_eq!(
        with_ejected(&["us-east", "eu-west"]),
        ("us-west".to_owned(), None),
        "a region that works comes first"
    );
    assert_eq!(with_ejected(&ALL), (home, Some(Ignored::Panic)));
}

/// One live region of six came back after all of them had failed, and 24 of 30 new sessions were refused: three dead ones were
/// asked, because in a panic they counted as well.
#[test]
fn in_a_panic_what_returns_and_what_is_full_comes_before_what_is_ejected() {
    let table = world(&[("us-east", 100)]);
    let ejection = Policy::DEFAULT.ejection;
    for n in 0..100 {
        let key = n.to_string();
        let mut returning = ask(&table, &key);
        // eu-west was ejected first and returns; all others are out.
        for stack in returning.seen.stacks_of("eu-west") {
            returning.seen.stack_is_ejected(stack, NOW);
        }
        returning.now = NOW + ejection;
        for name in ALL.iter().filter(|name| **name != "eu-west") {
            for stack in returning.seen.stacks_of(name) {
                returning.seen.stack_is_ejected(stack, returning.now);
            }
        }
        assert_eq!(returning.pick().unwrap().region.as_str(), "eu-west");
        let others: Vec<&str> = ALL.into_iter().filter(|name| *name != "ap-south").collect();
        let full = Ask {
            seen: seen(&table).ejected(&others).waiting("ap-south", 32),
            ..ask(&table, &key)
        };
        assert_eq!(full.pick().unwrap().region.as_str(), "ap-south");
    }
}

#[test]
fn a_region_that_is_silent_to_the_probes_is_passed_over_while_there_is_another() {
    let table = world(&[("us-east", 100)]);
    let silent = |silent, ejected: &[&str]| {
        let ask = Ask {
            silent,
            seen: seen(&table).ejected(ejected),
            ..ask(&table, "anna")
        };
        ask.pick().unwrap()
    };
    let decision = silent(&["us-east"], &[]);
    assert_eq!(decision.region.as_str(), "us-west");
    assert_eq!(decision.skipped[0].because, Because::Silent);
    assert_eq!(
        silent(&ALL, &[]).region.as_str(),
        "us-east",
        "the probes see nothing at all"
    );
    let others: Vec<&str> = ALL.into_iter().filter(|name| *name != "us-east").collect();
    assert_eq!(silent(&["us-east"], &others).region.as_str(), "us-east");
}

#[test]
fn a_stack_that_declined_is_never_asked_again() {
    let table = world(&[("us-east", 100)]);
    let asked = ask(&table, "anna");
    let mut tried = Tried::default();
    let declined = asked.pick_after(&tried).unwrap();
    tried.never(declined.stack);
    tried.clear();
    assert_ne!(asked.pick_after(&tried).unwrap().stack, declined.stack);
}

#[test]
fn a_full_region_overflows_and_takes_what_nobody_else_can() {
    let table = world(&[("us-east", 60), ("eu-central", 40)]);
    for n in 0..20 {
        let key = n.to_string();
        let full = |names: &[&str]| Ask {
            seen: names.iter().fold(seen(&table), |seen, name| seen.waiting(name, 32)),
            ..ask(&table, &key)
        };
        let first = ask(&table, &key).pick().unwrap().region.to_string();
        let other = if first == "us-east" { "eu-central" } else { "us-east" };
        full(&[&first]).check(other, Why::Overflow);
        full(&["us-east", "eu-central"]).check("us-west", Why::Backup);
        let decision = full(&["us-east", "eu-central"]).pick().unwrap();
        assert!(
            decision.skipped.iter().all(|skipped| skipped.because == Because::Full),
            "{decision:?}"
        );
        assert_eq!(
            full(&ALL).pick().unwrap().region.to_string(),
            first,
            "it is asked all the same"
        );
        // A full region may still take it; an ejected one probably not.
        let mut asked = full(&["us-east", "ap-south"]);
        asked.seen = asked
            .seen
            .ejected(&["eu-central", "us-west", "eu-west", "ap-northeast"]);
        assert_eq!(asked.pick().unwrap().region.as_str(), "us-east");
    }
    let old = Ask {
        seen: seen(&table).waiting("us-east", 32),
        now: NOW + Policy::DEFAULT.load_age_max + Duration::from_millis(1),
        ..ask(&table, "anna")
    };
    assert_eq!(
        old.pick().unwrap().region,
        ask(&table, "anna").pick().unwrap().region,
        "old news"
    );
}

/// Of a thousand sessions at home in us-east, those that go there `later` after its ejection ended.
fn back_after(table: &Table, later: Duration) -> BTreeSet<u32> {
    (0..1_000)
        .filter(|n| {
            let key = n.to_string();
            let returns = Ask {
                seen: seen(table).ejected(&["us-east"]),
                now: NOW + Policy::DEFAULT.ejection + later,
                ..ask(table, &key)
            };
            let decision = returns.pick().unwrap();
            let is_back = decision.region.as_str() == "us-east";
            let because = decision.skipped.first().map(|skipped| skipped.because);
            assert_eq!(because, (!is_back).then_some(Because::Returning));
            is_back
        })
        .collect()
}

#[test]
fn an_ejected_region_gets_its_sessions_back_little_by_little() {
    let table = world(&[("us-east", 100)]);
    let mut before = BTreeSet::new();
    for (second, share) in [(0, 0.1), (10, 0.4), (20, 0.7), (29, 0.97), (30, 1.0)] {
        let back = back_after(&table, Duration::from_secs(second));
        let is = back.len() as f64 / 1_000.0;
        assert!((is - share).abs() < 0.05, "{is} after {second} s");
        assert!(back.is_superset(&before), "who is back stays");
        before = back;
    }
}

/// With a draw for each of its stacks a region of twenty would get nearly everybody back at once.
#[test]
fn a_region_of_several_stacks_gets_its_sessions_back_as_slowly() {
    let table = with_stacks(4);
    let back = back_after(&table, Duration::ZERO).len();
    assert!(
        (50..150).contains(&back),
        "{back} of a thousand, where a tenth was meant"
    );
}

#[test]
fn a_restore_is_stepped_by_the_plan_alone() {
    let mut snapshot = planned(&[("us-east", 5), ("us-west", 95)]);
    let home = snapshot.plan.regions.get_mut(&region("us-east")).unwrap();
    home.state = RegionState::Restoring(5);
    let table = compile(&snapshot);
    let share = |seen: fn(Seen<'_>) -> Seen<'_>, now| {
        (0..1_000)
            .filter(|n| {
                let key = n.to_string();
                let mut asked = ask(&table, &key);
                (asked.seen, asked.now) = (seen(asked.seen), now);
                asked.pick().unwrap().region.as_str() == "us-east"
            })
            .count()
    };
    let healthy = share(|seen| seen, NOW);
    let returning = share(|seen| seen.ejected(&["us-east"]), NOW + Policy::DEFAULT.ejection);
    assert_eq!(returning, healthy);
    assert!((20..100).contains(&healthy), "{healthy}");
}

/// A world whose us-east has so many stacks.
fn with_stacks(count: u16) -> Table {
    let mut snapshot = planned(&[("us-east", 100)]);
    let stacks = &mut snapshot.topology.regions.get_mut(&region("us-east")).unwrap().stacks;
    let first = stacks[0].address;
    *stacks = (0..count)
        .map(|n| SocketAddr::new(first.ip(), first.port() + n).into())
        .collect();
    compile(&snapshot)
}

#[test]
fn a_stack_that_failed_is_followed_by_another_of_its_region_and_then_by_the_next_region() {
    let table = with_stacks(3);
    let asked = ask(&table, "anna");
    let mut tried = Tried::default();
    let mut regions = Vec::new();
    while let Some(decision) = asked.pick_after(&tried) {
        tried.stack(&decision.region, decision.stack);
        regions.push(decision.region.to_string());
    }
    let after = ["us-east", "us-east", "us-west"];
    assert_eq!(regions[..3], after);
    assert_eq!(regions.len(), 7, "every region, and of us-east the second chance");

    let mut tried = Tried::up_to(1);
    for _ in 0..2 {
        let decision = asked.pick_after(&tried).unwrap();
        tried.stack(&decision.region, decision.stack);
    }
    assert_eq!(asked.pick_after(&tried), None, "no second region");
}

#[test]
fn a_dead_stack_is_avoided_and_its_region_is_not() {
    let table = with_stacks(2);
    for n in 0..50 {
        let key = n.to_string();
        let mut asked = ask(&table, &key);
        let dead = asked.seen.stacks_of("us-east")[0];
        asked.seen.stack_is_ejected(dead, NOW);
        let decision = asked.pick().unwrap();
        assert_eq!(
            (decision.region.as_str(), decision.stack_why),
            ("us-east", StackWhy::Only)
        );
        assert_ne!(decision.stack, dead);
        assert_eq!(decision.stacks_skipped[0].because, Because::Ejected);
    }
    // Two of three are many, and the third works.
    let table = with_stacks(3);
    let mut asked = ask(&table, "anna");
    for dead in &asked.seen.stacks_of("us-east")[..2] {
        asked.seen.stack_is_ejected(*dead, NOW);
    }
    let decision = asked.pick().unwrap();
    assert_eq!((decision.region.as_str(), decision.ejection_ignored), ("us-east", None));
    assert_eq!(decision.stack, asked.seen.stacks_of("us-east")[2]);
}

#[test]
fn an_evacuated_region_is_never_picked() {
    let mut snapshot = planned(&[("us-west", 100)]);
    snapshot.plan.regions.get_mut(&region("us-east")).unwrap().state = RegionState::Evacuated;
    let table = compile(&snapshot);
    let others = ["eu-central", "us-west", "eu-west", "ap-south", "ap-northeast"];
    let last = Ask {
        tried: &others,
        ..ask(&table, "anna")
    };
    assert_eq!(last.pick(), None);
}

/// Percentages of three regions that sum to 100.
fn percentages() -> impl Strategy<Value = [u8; 3]> {
    (0..=100_u8, 0..=100_u8).prop_map(|(a, b)| {
        let (low, high) = (a.min(b), a.max(b));
        [low, high - low, 100 - high]
    })
}

const REGIONS: [&str; 3] = ["us-east", "us-west", "eu-central"];

fn shares(percentages: [u8; 3]) -> Vec<(&'static str, u8)> {
    REGIONS.into_iter().zip(percentages).collect()
}

/// A world whose regions have these stacks, numbered by port, and in which a rollout is so far.
fn versions(stacks: &[(u16, &str)], rollout: Option<(&str, u8)>) -> Table {
    let mut snapshot = planned(&[("us-east", 100)]);
    for known in snapshot.topology.regions.values_mut() {
        let stack = |(port, version): &(u16, &str)| Stack::of_version(([127, 0, 0, 1], *port).into(), version);
        known.stacks = stacks.iter().map(|it| stack(it).unwrap()).collect();
    }
    snapshot.plan.rollout = rollout.map(|(version, percent)| Rollout {
        version: version.to_owned(),
        percent,
        since: Moment(0),
        action: "a".to_owned(),
    });
    compile(&snapshot)
}

/// The port of the stack that a user's session gets, and the version that was missed.
fn stack_of(table: &Table, name: &str, version: Option<&str>) -> (u16, Option<String>) {
    let request = Request {
        session_key: name,
        user: User { name, version },
        affinity: None,
        is_there: false,
        silent: &BTreeSet::new(),
        affinity_at: Moment(0),
        tried: &Tried::default(),
        measured_rtt_ms: &BTreeMap::new(),
        stacks: &Stacks::default(),
        policy: &Policy::DEFAULT,
        now: Moment(0),
    };
    let decision = pick(table, &request).unwrap();
    (decision.stack.port(), decision.version_missed.map(String::from))
}

const OLD_AND_NEW: [(u16, &str); 3] = [(1, "current"), (2, "2.4.0"), (3, "current")];

#[test]
fn a_rollout_sends_its_share_of_users_to_its_version_and_nobody_else() {
    let rollout = versions(&OLD_AND_NEW, Some(("2.4.0", 25)));
    let users: Vec<String> = (0..2_000).map(|user| format!("user-{user}")).collect();
    let on_new = |table: &Table| -> BTreeSet<&String> {
        users.iter().filter(|user| stack_of(table, user, None).0 == 2).collect()
    };
    let taken = on_new(&rollout);
    assert!(taken.len().abs_diff(500) < 100, "{}", taken.len());
    assert!(on_new(&versions(&OLD_AND_NEW, Some(("2.4.0", 50)))).is_superset(&taken));
    assert_eq!(on_new(&versions(&OLD_AND_NEW, Some(("2.4.0", 100)))).len(), users.len());
    // Rolled back, or not begun: its stacks are there, and nobody is sent to them.
    assert_eq!(on_new(&versions(&OLD_AND_NEW, None)).len(), 0);
    // Of two versions beside the new one the first is in service.
    let three = versions(&[(2, "2.4.0"), (1, "2.3.0"), (3, "2.2.0")], Some(("2.4.0", 25)));
    assert!(users.iter().all(|user| stack_of(&three, user, None).0 != 3));
    assert_eq!(on_new(&three), taken, "the same users whatever the region");
}

#[test]
fn without_a_stack_of_the_version_a_session_gets_another() {
    let user = (0..)
        .map(|n| format!("user-{n}"))
        .find(|user| stack_of(&versions(&OLD_AND_NEW, Some(("2.4.0", 10))), user, None).0 == 2);
    let user = user.unwrap();
    let only_old = versions(&[(1, "current")], Some(("2.4.0", 10)));
    assert_eq!(stack_of(&only_old, &user, None), (1, Some("2.4.0".to_owned())));
    let only_new = versions(&[(2, "2.4.0")], Some(("2.4.0", 10)));
    assert_eq!(stack_of(&only_new, &user, None), (2, None));
    let other = (0..)
        .map(|n| format!("other-{n}"))
        .find(|user| stack_of(&only_new, user, None).1.is_some());
    assert_eq!(
        stack_of(&only_new, &other.unwrap(), None),
        (2, Some("current".to_owned()))
    );
}

#[test]
fn a_session_that_moves_keeps_its_version_unless_that_was_rolled_back() {
    let at = |rollout, version| {
        stack_of(
            &versions(&[(1, "current"), (2, "2.4.0")], rollout),
            "anna",
            Some(version),
        )
        .0
    };
    for percent in [1, 99] {
        assert_eq!(at(Some(("2.4.0", percent)), "2.4.0"), 2);
        assert_eq!(at(Some(("2.4.0", percent)), "current"), 1);
    }
    assert_eq!(at(None, "2.4.0"), 1);
    assert_eq!(at(None, "1.0.0"), 1, "nobody has it any more");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn percentages_are_respected(percentages in percentages(), salt: u32) {
        const SESSIONS: u32 = 1_000;
        let table = world(&shares(percentages));
        let mut counts = BTreeMap::<RegionId, u32>::new();
        for n in 0..SESSIONS {
            *counts.entry(ask(&table, &format!("{salt}-{n}")).pick().unwrap().region).or_default() += 1;
        }
        for (name, percent) in shares(percentages) {
            let share = f64::from(counts.get(&region(name)).copied().unwrap_or(0)) / f64::from(SESSIONS);
            // Five standard deviations of the worst case, 50 %: chance alone does not fail this.
            let error = (share - f64::from(percent) / 100.0).abs();
            prop_assert!(error < 5.0 * (0.25_f64 / f64::from(SESSIONS)).sqrt(), "{name}: {share} for {percent} %");
        }
    }

    #[test]
    fn a_change_moves_only_its_share(before in percentages(), after in percentages(), salt: u32) {
        let (table_before, table_after) = (world(&shares(before)), world(&shares(after)));
        let percent = |of: [u8; 3], name: &RegionId| {
            shares(of).iter().find(|(known, _)| *known == name.as_str()).map_or(0, |(_, percent)| *percent)
        };
        for n in 0..500 {
            let key = format!("{salt}-{n}");
            let from = ask(&table_before, &key).pick().unwrap().region;
            let to = ask(&table_after, &key).pick().unwrap().region;
            if from != to {
                // Relative to each other: who loses a session to whom lost weight relative to the winner.
                let (from_before, from_after) = (percent(before, &from), percent(after, &from));
                let (to_before, to_after) = (percent(before, &to), percent(after, &to));
                prop_assert!(
                    u32::from(to_after) * u32::from(from_before) > u32::from(to_before) * u32::from(from_after),
                    "{key} moved from {from} to {to}"
                );
            }
        }
    }

    #[test]
    fn a_region_without_a_share_is_picked_only_when_all_shares_are_out(
        percentages in percentages(),
        tried in proptest::sample::subsequence(REGIONS.to_vec(), 0..=3),
        ejected in proptest::sample::subsequence(REGIONS.to_vec(), 0..=3),
        key in "[a-z]{1,12}",
    ) {
        let table = world(&shares(percentages));
        // One region more in use than can be ejected here, so that there is no panic.
        let seen = seen(&table).ejected(&ejected[..ejected.len().min(1)]);
        let decision = Ask { tried: &tried, seen, ..ask(&table, &key) }.pick().unwrap();
        let ejected = &ejected[..ejected.len().min(1)];
        let has_share = |name: &str| shares(percentages).iter().any(|(known, percent)| *known == name && *percent > 0);
        if !has_share(decision.region.as_str()) {
            for name in REGIONS.into_iter().filter(|name| has_share(name)) {
                prop_assert!(tried.contains(&name) || ejected.contains(&name), "{name} could have taken it: {decision:?}");
            }
        }
        prop_assert!(!tried.contains(&decision.region.as_str()));
    }

    #[test]
    fn whatever_was_seen_and_tried_a_session_has_a_place_until_all_regions_were_tried(
        tried in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        ejected in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        full in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        later_s in 0..60_u64,
        key in "[a-z]{1,12}",
    ) {
        let table = world(&[("us-east", 60), ("eu-central", 40)]);
        let known = || full.iter().fold(seen(&table).ejected(&ejected), |seen, name| seen.waiting(name, 31));
        let asked = || Ask { tried: &tried, seen: known(), now: NOW + Duration::from_secs(later_s), ..ask(&table, &key) };
        let decision = asked().pick();
        prop_assert_eq!(decision.is_none(), tried.len() == ALL.len());
        prop_assert_eq!(&asked().pick(), &decision, "the same question, the same answer");
        if let Some(decision) = decision {
            prop_assert!(!tried.contains(&decision.region.as_str()));
            let is_ready = |name: &&str| !ejected.contains(name) && !full.contains(name) && !tried.contains(name);
            if let Some(ready) = ALL.iter().find(|name| is_ready(name)) {
                let region = decision.region.as_str();
                let avoidable = full.contains(&region) && later_s <= 30;
                prop_assert!(!avoidable, "{region} is full and {ready} is ready: {decision:?}");
                prop_assert_eq!(decision.ejection_ignored, None, "{} was left", ready);
            }
        }
    }

    /// The property behind "prefer the living": whatever is ejected, returning, full or silent, a session that asks no more
    /// regions than the default gets to a healthy one if there is one.
    #[test]
    fn if_any_region_is_healthy_one_is_asked_before_the_attempts_are_over(
        ejected in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        full in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        silent in proptest::sample::subsequence(ALL.to_vec(), 0..=6),
        later_s in 0..40_u64,
        key in "[a-z]{1,12}",
    ) {
        let regions_tried_max = 3;
        let table = world(&[("us-east", 60), ("eu-central", 40)]);
        let known = full.iter().fold(seen(&table).ejected(&ejected), |seen, name| seen.waiting(name, 32));
        let now = NOW + Duration::from_secs(later_s);
        let asked = Ask { silent: &silent, seen: known, now, ..ask(&table, &key) };
        // What is neither ejected nor silent works: it may return or be full, and takes the session all the same.
        let works = |name: &str| {
            let stacks = asked.seen.stacks_of(name);
            !silent.contains(&name) && stacks.iter().any(|stack| !asked.seen.stacks.is_ejected(*stack, now))
        };
        let mut tried = Tried::up_to(regions_tried_max);
        let mut is_found = false;
        while !is_found && let Some(decision) = asked.pick_after(&tried) {
            is_found = works(decision.region.as_str());
            tried.stack(&decision.region, decision.stack);
        }
        prop_assert_eq!(is_found, ALL.iter().any(|name| works(name)));
    }

    #[test]
    fn of_the_two_stacks_a_session_draws_the_less_loaded_is_taken(
        waiting in proptest::collection::vec(0..20_u32, 2..6),
        salt: u32,
    ) {
        let table = with_stacks(u16::try_from(waiting.len()).unwrap());
        let most = waiting.iter().max().copied().unwrap();
        for n in 0..50 {
            let key = format!("{salt}-{n}");
            let mut asked = ask(&table, &key);
            let stacks = asked.seen.stacks_of("us-east");
            for (stack, waiting) in stacks.iter().zip(&waiting) {
                asked.seen.stack_says(*stack, *waiting);
            }
            let of = |stack| waiting[stacks.iter().position(|known| *known == stack).unwrap()];
            let decision = asked.pick().unwrap();
            let StackWhy::BetterOfTwo { other, .. } = decision.stack_why else { panic!("{decision:?}") };
            prop_assert!(of(decision.stack) <= of(other), "{decision:?}");
            prop_assert!(of(decision.stack) < most || of(other) == most, "the busiest only against its equal");
        }
    }
}
