//! What a pick promises, over many worlds and sessions.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use routing::{Because, Decision, Request, Table, User, Why, pick};
use topology::{EdgeId, Moment, RegionId, RegionState, Rollout, Share, Snapshot, Stack, fixtures::three_primaries};

fn region(name: &str) -> RegionId {
    RegionId::new(name).unwrap()
}

/// A world in which the sessions at home in us-east are shared out like this.
fn world(shares: &[(&str, u8)]) -> Table {
    compile(&planned(shares))
}

fn planned(shares: &[(&str, u8)]) -> Snapshot {
    let mut snapshot = three_primaries();
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

/// A question with nothing special about it.
struct Ask<'a> {
    table: &'a Table,
    key: &'a str,
    affinity: Option<&'a str>,
    tried: &'a [&'a str],
    ejected: &'a [&'a str],
}

fn ask<'a>(table: &'a Table, key: &'a str) -> Ask<'a> {
    Ask {
        table,
        key,
        affinity: None,
        tried: &[],
        ejected: &[],
    }
}

impl Ask<'_> {
    fn pick(&self) -> Option<Decision> {
        let affinity = self.affinity.map(region);
        let tried: Vec<RegionId> = self.tried.iter().map(|name| region(name)).collect();
        let ejected: BTreeSet<RegionId> = self.ejected.iter().map(|name| region(name)).collect();
        let request = Request {
            session_key: self.key,
            user: User::default(),
            affinity: affinity.as_ref(),
            tried: &tried,
            measured_rtt_ms: &BTreeMap::new(),
            ejected: &ejected,
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
    returning("eu-west").check("eu-west", Why::Affinity);
    // A backup that has no share any more gives its sessions back.
    returning("us-west").check("us-east", Why::Share(100));
    let skipped = returning("us-west").pick().unwrap().skipped;
    assert_eq!(skipped[0].because, Because::NoShare);
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
            ejected,
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

#[test]
fn when_everything_is_ejected_ejection_is_ignored() {
    let table = world(&[("us-east", 100)]);
    let all = [
        "us-east",
        "eu-central",
        "us-west",
        "eu-west",
        "ap-south",
        "ap-northeast",
    ];
    let decision = Ask {
        ejected: &all,
        ..ask(&table, "anna")
    }
    .pick()
    .unwrap();
    assert!(decision.ejection_ignored);
    assert_eq!(decision.region, region("us-east"));
    let decision = Ask {
        ejected: &all,
        tried: &["us-east"],
        ..ask(&table, "anna")
    }
    .pick()
    .unwrap();
    assert_eq!(decision.region, region("us-west"));
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
        tried: &[],
        measured_rtt_ms: &BTreeMap::new(),
        ejected: &BTreeSet::new(),
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
        let decision = Ask { tried: &tried, ejected: &ejected, ..ask(&table, &key) }.pick().unwrap();
        let has_share = |name: &str| shares(percentages).iter().any(|(known, percent)| *known == name && *percent > 0);
        if !has_share(decision.region.as_str()) {
            for name in REGIONS.into_iter().filter(|name| has_share(name)) {
                prop_assert!(tried.contains(&name) || ejected.contains(&name), "{name} could have taken it: {decision:?}");
            }
        }
        prop_assert!(!tried.contains(&decision.region.as_str()));
    }
}
