//! Stories of a new version that is rolled out: which users get it, and what the edge reports of it.

use crate::support::{Fate, Session, Stack, World, add_version, hang_means_failure, planned, roll_out};
use topology::{Component, Rollout, Snapshot};
use verdict::Passive;

const NEW: &str = "2.4.0";

/// The home has an old stack that echoes, and a new one that closes at once; half the users are on it.
async fn half_way(backup: Stack) -> (Snapshot, Rollout) {
    let mut snapshot = planned(&[("eu-west", Stack::Echoes), ("eu-central", backup)]).await;
    add_version(&mut snapshot, "eu-west", NEW, Stack::Closes(1000)).await;
    let rollout = roll_out(&mut snapshot, NEW, 50);
    (snapshot, rollout)
}

/// Names of users, some of whom the rollout takes and some not.
fn users(rollout: &Rollout) -> Vec<(String, bool)> {
    let users = (0..20).map(|n| format!("user-{n}"));
    let users: Vec<_> = users.map(|user| (user.clone(), rollout.takes(&user))).collect();
    assert!(users.iter().any(|(_, taken)| *taken) && users.iter().any(|(_, taken)| !taken));
    users
}

/// A stack shows by its behaviour which one it is.
async fn check(mut anna: Session, is_new: bool) {
    if is_new {
        anna.check_closed(1000, "done").await;
    } else {
        anna.check_echo("hello").await;
    }
}

#[tokio::test]
async fn users_of_a_rollout_get_the_new_version_and_all_others_the_old_one() {
    let (mut snapshot, rollout) = half_way(Stack::Refuses).await;
    let world = World::of("", &snapshot);
    for (user, taken) in users(&rollout) {
        // On any connection, in any session.
        for session in ["one", "two"] {
            let headers = [("meridian-user", user.as_str()), ("meridian-session", session)];
            check(world.open(&headers).await, taken).await;
        }
        let first = &world
            .edge
            .explain(&world.edge.table().unwrap(), "", &user, None, daemon::clock::now())[0];
        assert_eq!(&*first.version, if taken { NEW } else { "current" });
    }
    // Rolled back: its stack runs, and the edge sends no session to it.
    snapshot.plan.generation += 1;
    snapshot.plan.rollout = None;
    world.edge.apply(&snapshot);
    for (user, _) in users(&rollout) {
        check(world.open(&[("meridian-user", &user)]).await, false).await;
    }
}

#[tokio::test]
async fn a_user_without_a_name_is_known_by_the_token() {
    let (snapshot, rollout) = half_way(Stack::Refuses).await;
    let world = World::of("", &snapshot);
    for (token, _) in users(&rollout) {
        let name = routing::user::name(None, Some(&token), world.address.ip());
        let authorization = format!("Bearer {token}");
        check(
            world.open(&[("authorization", &authorization)]).await,
            rollout.takes(&name),
        )
        .await;
    }
}

#[tokio::test]
async fn a_region_without_the_version_serves_all_the_same() {
    let mut snapshot = planned(&[("eu-west", Stack::Echoes)]).await;
    roll_out(&mut snapshot, NEW, 100);
    let world = World::of("", &snapshot);
    check(world.open(&[]).await, false).await;
    let first = &world
        .edge
        .explain(&world.edge.table().unwrap(), "", "anna", None, daemon::clock::now())[0];
    assert_eq!(
        (&*first.version, first.version_missed.as_deref()),
        ("current", Some(NEW))
    );
}

#[tokio::test]
async fn a_session_that_loses_its_region_stays_on_its_version() {
    let lives = Stack::Talks(Fate::Lives);
    // Both versions of the home lose every session in the middle of a turn; of the backup only one goes on with them.
    for (old, new, user_is_new) in [(Stack::Answers(500), lives, true), (lives, Stack::Answers(500), false)] {
        let dies = Stack::Talks(Fate::DiesAfterMessages(1));
        let mut snapshot = planned(&[("eu-west", dies), ("eu-central", old)]).await;
        add_version(&mut snapshot, "eu-west", NEW, dies).await;
        add_version(&mut snapshot, "eu-central", NEW, new).await;
        let rollout = roll_out(&mut snapshot, NEW, 50);
        let world = World::of("", &snapshot);
        let (user, _) = users(&rollout)
            .into_iter()
            .find(|(_, taken)| *taken == user_is_new)
            .unwrap();
        let mut anna = world.open(&[("meridian-user", &user)]).await;
        take_turn(&mut anna).await;
        assert_eq!(world.live(), [("eu-central".to_owned(), 1)].into());
        anna.leave().await;
        hang_means_failure(world.edge.sessions.idle()).await;
    }
}

/// Says a turn and hears it out.
async fn take_turn(anna: &mut Session) {
    for word in ["a", "."] {
        anna.say(word).await;
    }
    while anna.hear().await.into_text().ok().as_deref() != Some("done") {}
}

/// Users of both versions take a turn each, and leave. Returns their numbers, and the report of the edge.
async fn turns(old: Fate, new: Fate) -> (u32, u32, Passive) {
    let mut snapshot = planned(&[
        ("eu-west", Stack::Talks(old)),
        ("eu-central", Stack::Talks(Fate::Lives)),
    ])
    .await;
    add_version(&mut snapshot, "eu-west", NEW, Stack::Talks(new)).await;
    let rollout = roll_out(&mut snapshot, NEW, 50);
    let world = World::of("", &snapshot);
    let users = users(&rollout);
    for (user, _) in &users {
        let mut anna = world.open(&[("meridian-user", user)]).await;
        take_turn(&mut anna).await;
        anna.leave().await;
    }
    hang_means_failure(world.edge.sessions.idle()).await;
    let on_new = users.iter().filter(|(_, taken)| *taken).count();
    let count = |users: usize| u32::try_from(users).expect("they are twenty");
    (count(users.len() - on_new), count(on_new), world.edge.passive())
}

#[tokio::test]
async fn turns_are_reported_by_version_region_and_component() {
    let (on_old, on_new, passive) = turns(Fate::Lives, Fate::FailsTurns).await;
    let [new, old] = &passive.versions[..] else {
        panic!("{passive:?}");
    };
    assert_eq!((new.version.as_str(), old.version.as_str()), (NEW, "current"));
    assert_eq!(
        (old.sessions, old.turns_succeeded, old.turns_failed),
        (on_old, on_old, 0)
    );
    assert_eq!(
        (new.sessions, new.turns_succeeded, new.turns_failed),
        (on_new, 0, on_new)
    );
    assert_eq!((old.underruns, new.underruns), (0, 11 * on_new));
    assert_eq!((old.latency.count(), new.latency.count()), (u64::from(on_old), 0));
    let traffic = &passive.traffic[0];
    assert_eq!(
        (traffic.connects_ok, traffic.connects_failed, traffic.aborts),
        (on_old + on_new, 0, 0)
    );
    assert_eq!((traffic.turns_ok, traffic.turns_failed), (on_old, on_new));
    assert_eq!(traffic.first_byte.count(), u64::from(on_old + on_new));
    let seen_of = |component| {
        let seen = passive.observations.iter().filter(|seen| seen.component == component);
        seen.fold((0, 0), |(succeeded, failed), seen| {
            (succeeded + seen.succeeded, failed + seen.failed)
        })
    };
    assert_eq!(seen_of(Component::Gateway), (on_old + on_new, 0));
    assert_eq!(seen_of(Component::Asr), (on_old + on_new, 0));
    assert_eq!(seen_of(Component::Tts), (on_old, on_new));
    let stacks = |component| {
        let seen = passive.observations.iter().filter(|seen| seen.component == component);
        seen.map(|seen| (seen.stack.is_some(), seen.succeeded > 0, seen.failed > 0))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        stacks(Component::Tts).len(),
        2,
        "the stack that fails is told from the other one"
    );
    assert!(stacks(Component::Tts).contains(&(true, false, true)), "{passive:?}");
}

#[tokio::test]
async fn a_version_that_dies_is_blamed_though_it_tells_of_no_turn_and_the_one_that_takes_over_is_not() {
    let (on_old, on_new, passive) = turns(Fate::Lives, Fate::DiesAfterMessages(2)).await;
    let new = passive.versions.iter().find(|seen| seen.version == NEW).unwrap();
    assert_eq!(
        (new.sessions, new.turns_succeeded, new.turns_failed),
        (on_new, 0, 1),
        "what one client lost counts once"
    );
    let old = passive.versions.iter().find(|seen| seen.version == "current").unwrap();
    // Their turns end at the region's other stack, which is of the old version.
    assert_eq!(
        (old.sessions, old.turns_succeeded, old.turns_failed),
        (on_old, on_old + on_new, 0)
    );
    let seen = &passive.traffic[0];
    assert_eq!(seen.region.as_str(), "eu-west");
    assert_eq!((seen.aborts, seen.turns_ok), (on_new, on_old + on_new));
}
