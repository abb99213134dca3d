//! Stories of a new version that is rolled out: which users get it, and what the edge reports of it.

mod support;

use support::{Fate, Session, Stack, World, add_version, hang_means_failure, planned, roll_out};
use topology::{Rollout, Snapshot};

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

/// Which stack it is shows in what it does.
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
        // From whatever connection, in whatever session.
        for session in ["one", "two"] {
            let headers = [("meridian-user", user.as_str()), ("meridian-session", session)];
            check(world.open(&headers).await, taken).await;
        }
        let first = &world
            .edge
            .explain(&world.edge.table().unwrap(), "", &user, None, daemon::clock::now())[0];
        assert_eq!(&*first.version, if taken { NEW } else { "current" });
    }
    // Rolled back: its stack is there, and nobody is sent to it.
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
        for word in ["a", "."] {
            anna.say(word).await;
        }
        while anna.hear().await.into_text().ok().as_deref() != Some("done") {}
        assert_eq!(world.live(), [("eu-central".to_owned(), 1)].into());
        anna.leave().await;
        hang_means_failure(world.edge.sessions.idle()).await;
    }
}
