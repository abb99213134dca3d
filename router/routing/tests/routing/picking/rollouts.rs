//! The version of the stack that a user gets during a rollout, before and after it.

use std::collections::{BTreeMap, BTreeSet};

use routing::{Policy, Request, Stacks, Table, Tried, User, pick};
use topology::{Moment, Rollout, Stack};

use super::support::{compile, planned};

/// A table whose regions have these stacks, by port and version, with this rollout.
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

/// The port of the stack that the user's session gets, and the version that it missed.
fn stack_of(table: &Table, name: &str, version: Option<&str>) -> (u16, Option<String>) {
    let request = Request {
        session_key: name,
        user: User { name, version },
        affinity: None,
        is_there: false,
        remembers: false,
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
    // After a rollback, or before a rollout: the stacks exist, and no user is sent to them.
    assert_eq!(on_new(&versions(&OLD_AND_NEW, None)).len(), 0);
    // Of two versions beside the new one, the first is in service.
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
