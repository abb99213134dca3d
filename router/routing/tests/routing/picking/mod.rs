//! The region and the stack that a session gets.

mod properties;
mod rollouts;
mod support;

use std::{collections::BTreeSet, time::Duration};

use self::support::{Ask, Measured, NOW, ask, compile, measured, planned, region, with_stacks, world};
use routing::{
    Policy, Rule, SkipReason, Table, Tried,
    pick::{EjectionIgnored, StackWhy},
};
use topology::{Moment, RegionState};

#[test]
fn a_session_goes_home() {
    ask(&world(&[("us-east", 100)]), "anna").check("us-east", Rule::Share(100));
}

#[test]
fn a_session_returns_to_where_it_was_while_the_plan_sends_sessions_there() {
    let table = world(&[("us-east", 100)]);
    let returning = |affinity| Ask {
        affinity: Some(affinity),
        ..ask(&table, "anna")
    };
    // The plan sends sessions there, but none of this home. The token has outlived its shares.
    returning("eu-west").check("us-east", Rule::Share(100));
    let stays = Ask {
        is_there: true,
        ..returning("eu-west")
    };
    stays.check("eu-west", Rule::Affinity);
    // A backup that no longer has a share gives its sessions back.
    returning("us-west").check("us-east", Rule::Share(100));
    let skipped = returning("us-west").pick().unwrap().skipped;
    assert_eq!(skipped[0].because, SkipReason::NoShare);
    // Unless an edge sent the session there after the plan was made: then its home has failed it, and may fail again.
    let fled = Ask {
        affinity_at: NOW,
        ..returning("us-west")
    };
    fled.check("us-west", Rule::Affinity);
    let longer_ago = |table| Ask {
        affinity: Some("us-west"),
        affinity_at: Moment(NOW.0 - 600_000),
        ..ask(table, "anna")
    };
    longer_ago(&table).check("us-east", Rule::Share(100));
    // Shares of other homes are no reason to stay either.
    let mut snapshot = planned(&[("us-east", 100)]);
    snapshot.plan.routes.get_mut(&region("eu-west")).unwrap()[0].region = region("us-west");
    longer_ago(&compile(&snapshot)).check("us-east", Rule::Share(100));
    returning("atlantis").check("us-east", Rule::Share(100));

    let mut snapshot = planned(&[("us-west", 100)]);
    snapshot.plan.regions.get_mut(&region("us-east")).unwrap().state = RegionState::Evacuated;
    let table = compile(&snapshot);
    let returning = Ask {
        affinity: Some("us-east"),
        ..ask(&table, "anna")
    };
    returning.check("us-west", Rule::Share(100));
    assert_eq!(returning.pick().unwrap().skipped[0].because, SkipReason::Evacuated);
    // A stack there remembers the session: the session is fetched from it.
    let remembered = Ask {
        is_there: true,
        remembers: true,
        affinity_at: NOW,
        ..returning
    };
    remembered.check("us-east", Rule::Affinity);
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
            measured: measured(&table).ejected(ejected),
            ..ask(&table, "anna")
        };
        ask.pick().map(|decision| (decision.region.to_string(), decision.why))
    };
    let some = |name: &str, why| Some((name.to_owned(), why));
    assert_eq!(after(&[first.as_str()], &[]), some(other, Rule::Overflow));
    assert_eq!(after(&[], &[first.as_str()]), some(other, Rule::Overflow));
    assert_eq!(after(&["us-east", "eu-central"], &[]), some("us-west", Rule::Backup));
    let planned_and_backups = ["us-east", "eu-central", "us-west"];
    assert_eq!(after(&planned_and_backups, &[]), some("eu-west", Rule::AnyServing));
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
    // One region in use, with its backups: no panic.
    let mut snapshot = planned(&[("us-east", 100)]);
    for primary in ["eu-west", "ap-south"] {
        let shares = snapshot.plan.routes.get_mut(&region(primary)).unwrap();
        shares[0].region = region("us-east");
    }
    let table = compile(&snapshot);
    let all = |tried: &[&str]| {
        let ask = Ask {
            measured: measured(&table).ejected(&ALL),
            tried,
            ..ask(&table, "anna")
        };
        let decision = ask.pick().unwrap();
        assert_eq!(decision.ejection_ignored, Some(EjectionIgnored::NothingElse));
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
            measured: measured(&table).ejected(names),
            ..ask(&table, "anna")
        };
        let decision = ask.pick().unwrap();
        (decision.region.to_string(), decision.ejection_ignored)
    };
    // Three regions are in use: us-east, eu-west and ap-south.
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
    assert_eq!(with_ejected(&ALL), (home, Some(EjectionIgnored::Panic)));
}

/// Regression: one of six dead regions came back, and 24 of 30 new sessions were refused. Three dead regions were tried
/// for each, because in a panic dead regions counted as candidates.
#[test]
fn in_a_panic_what_returns_and_what_is_full_comes_before_what_is_ejected() {
    let table = world(&[("us-east", 100)]);
    let ejection = Policy::DEFAULT.ejection;
    for n in 0..100 {
        let key = n.to_string();
        let mut returning = ask(&table, &key);
        // eu-west was ejected first and is returning; all other regions are ejected.
        for stack in returning.measured.stacks_of("eu-west") {
            returning.measured.stack_is_ejected(stack, NOW);
        }
        returning.now = NOW + ejection;
        for name in ALL.iter().filter(|name| **name != "eu-west") {
            for stack in returning.measured.stacks_of(name) {
                returning.measured.stack_is_ejected(stack, returning.now);
            }
        }
        assert_eq!(returning.pick().unwrap().region.as_str(), "eu-west");
        let others: Vec<&str> = ALL.into_iter().filter(|name| *name != "ap-south").collect();
        let full = Ask {
            measured: measured(&table).ejected(&others).waiting("ap-south", 32),
            ..ask(&table, &key)
        };
        assert_eq!(full.pick().unwrap().region.as_str(), "ap-south");
        // In a panic, too, a full region comes after one with capacity.
        let home_is_full = Ask {
            measured: measured(&table)
                .ejected(&["eu-west", "ap-south"])
                .waiting("us-east", 32),
            ..ask(&table, &key)
        };
        assert_eq!(home_is_full.pick().unwrap().region.as_str(), "us-west");
    }
}

#[test]
fn a_region_that_is_silent_to_the_probes_is_passed_over_while_there_is_another() {
    let table = world(&[("us-east", 100)]);
    let silent = |silent, ejected: &[&str]| {
        let ask = Ask {
            silent,
            measured: measured(&table).ejected(ejected),
            ..ask(&table, "anna")
        };
        ask.pick().unwrap()
    };
    let decision = silent(&["us-east"], &[]);
    assert_eq!(decision.region.as_str(), "us-west");
    assert_eq!(decision.skipped[0].because, SkipReason::Silent);
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
    tried.refused_for_good(declined.stack);
    tried.clear();
    assert_ne!(asked.pick_after(&tried).unwrap().stack, declined.stack);
}

#[test]
fn a_full_region_overflows_and_takes_what_nobody_else_can() {
    let table = world(&[("us-east", 60), ("eu-central", 40)]);
    for n in 0..20 {
        let key = n.to_string();
        let full = |names: &[&str]| Ask {
            measured: names
                .iter()
                .fold(measured(&table), |measured, name| measured.waiting(name, 32)),
            ..ask(&table, &key)
        };
        let first = ask(&table, &key).pick().unwrap().region.to_string();
        let other = if first == "us-east" { "eu-central" } else { "us-east" };
        full(&[&first]).check(other, Rule::Overflow);
        full(&["us-east", "eu-central"]).check("us-west", Rule::Backup);
        let decision = full(&["us-east", "eu-central"]).pick().unwrap();
        assert!(
            decision
                .skipped
                .iter()
                .all(|skipped| skipped.because == SkipReason::Full),
            "{decision:?}"
        );
        assert_eq!(
            full(&ALL).pick().unwrap().region.to_string(),
            first,
            "it is asked all the same"
        );
        // A full region may still take the session; an ejected one probably does not.
        let mut asked = full(&["us-east", "ap-south"]);
        asked.measured = asked
            .measured
            .ejected(&["eu-central", "us-west", "eu-west", "ap-northeast"]);
        assert_eq!(asked.pick().unwrap().region.as_str(), "us-east");
    }
    let old = Ask {
        measured: measured(&table).waiting("us-east", 32),
        now: NOW + Policy::DEFAULT.load_age_max + Duration::from_millis(1),
        ..ask(&table, "anna")
    };
    assert_eq!(
        old.pick().unwrap().region,
        ask(&table, "anna").pick().unwrap().region,
        "old news"
    );
}

/// The sessions of a thousand in us-east that go there `later` after the end of its ejection.
fn back_after(table: &Table, later: Duration) -> BTreeSet<u32> {
    (0..1_000)
        .filter(|n| {
            let key = n.to_string();
            let returns = Ask {
                measured: measured(table).ejected(&["us-east"]),
                now: NOW + Policy::DEFAULT.ejection + later,
                ..ask(table, &key)
            };
            let decision = returns.pick().unwrap();
            let is_back = decision.region.as_str() == "us-east";
            let because = decision.skipped.first().map(|skipped| skipped.because);
            assert_eq!(because, (!is_back).then_some(SkipReason::Returning));
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

/// With a draw per stack, a region of twenty stacks would get nearly all sessions back at once.
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
    let share = |measured: fn(Measured<'_>) -> Measured<'_>, now| {
        (0..1_000)
            .filter(|n| {
                let key = n.to_string();
                let mut asked = ask(&table, &key);
                (asked.measured, asked.now) = (measured(asked.measured), now);
                asked.pick().unwrap().region.as_str() == "us-east"
            })
            .count()
    };
    let healthy = share(|measured| measured, NOW);
    let returning = share(
        |measured| measured.ejected(&["us-east"]),
        NOW + Policy::DEFAULT.ejection,
    );
    assert_eq!(returning, healthy);
    assert!((20..100).contains(&healthy), "{healthy}");
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
        let dead = asked.measured.stacks_of("us-east")[0];
        asked.measured.stack_is_ejected(dead, NOW);
        let decision = asked.pick().unwrap();
        assert_eq!(
            (decision.region.as_str(), decision.stack_why),
            ("us-east", StackWhy::Only)
        );
        assert_ne!(decision.stack, dead);
        assert_eq!(decision.stacks_skipped[0].because, SkipReason::Ejected);
    }
    // Two of three stacks are ejected, and the third works.
    let table = with_stacks(3);
    let mut asked = ask(&table, "anna");
    for dead in &asked.measured.stacks_of("us-east")[..2] {
        asked.measured.stack_is_ejected(*dead, NOW);
    }
    let decision = asked.pick().unwrap();
    assert_eq!((decision.region.as_str(), decision.ejection_ignored), ("us-east", None));
    assert_eq!(decision.stack, asked.measured.stacks_of("us-east")[2]);
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
