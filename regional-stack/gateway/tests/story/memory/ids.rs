//! Ids that lead a device back to its session, and the error for one whose session is lost.

use super::{zones::check_clock, *};

#[tokio::test]
async fn the_id_of_a_session_leads_back_to_it_through_every_edge() {
    // Two stacks in the region, so that the right one has to be found.
    let stacks = [stack("eu-west", "london").await, stack("eu-west", "london").await];
    let other = stack("eu-central", "berlin").await;
    let named = [
        ("eu-west", stacks[0].http),
        ("eu-west", stacks[1].http),
        ("eu-central", other.http),
    ];
    let world = World::new(2, &named);
    let [(_, here), (_, there)] = &world.edges[..] else {
        unreachable!("there are two")
    };
    for call in 0..6 {
        // The edges draw another order of the stacks for each call.
        let mut device = Device::call(*here, &format!("&session=first-{call}")).await;
        device.reads().await;
        device.say("set a timer for ten minutes").await;
        let parameters = format!("&session=second-{call}&resume={}", device.id());
        let mut back = Device::call(*there, &parameters).await;
        let left = back.say("how much time is left").await;
        assert!(left.contains("minutes"), "{left}");
        assert_eq!(back.session["output_modalities"], json!(["text"]));
        // Once more, with the id of this time.
        let parameters = format!("&session=third-{call}&resume={}", back.id());
        let mut again = Device::call(*here, &parameters).await;
        assert!(again.say("how much time is left").await.contains("minutes"));
    }
}

#[tokio::test]
async fn a_session_that_moved_is_found_where_it_is_and_forgotten_where_it_was() {
    let first = stack("eu-west", "london").await;
    let second = stack("eu-central", "berlin").await;
    let mut world = World::new(2, &[("eu-west", first.http), ("eu-central", second.http)]);
    let (here, there) = (world.edges[0].1, world.edges[1].1);
    let mut device = Device::call(here, "").await;
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    world.evacuate("eu-west", "eu-central");
    device.until_moved("eu-central").await;
    device.say("cancel the timer").await;
    first
        .until_metric("meridian_stack_sessions_closed_total{reason=\"moved\"} 1")
        .await;

    // Its id still names eu-west, and eu-west is back: with a memory of its own it would ring.
    world.restore("eu-west");
    let mut back = device.resume(there).await;
    assert_eq!(back.region(), "eu-central");
    assert_eq!(back.say("how much time is left").await, "there is no timer");
}

/// The region was evacuated while the device was away. Its stack works, and no other has the timer.
#[tokio::test]
async fn a_session_is_fetched_from_a_region_that_was_evacuated_while_its_device_was_away() {
    let first = stack("eu-west", "london").await;
    let second = stack("eu-central", "berlin").await;
    let mut world = World::new(2, &[("eu-west", first.http), ("eu-central", second.http)]);
    let (here, there) = (world.edges[0].1, world.edges[1].1);
    let mut device = Device::call(here, "").await;
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    let id = device.id().to_owned();
    drop(device);
    first.until_metric("meridian_stack_sessions 0").await;
    world.evacuate("eu-west", "eu-central");

    let mut back = Device::call(there, &format!("&resume={id}")).await;
    back.until_moved("eu-central").await;
    assert!(back.say("how much time is left").await.contains("minutes"));
    first
        .until_metric("meridian_stack_sessions_closed_total{reason=\"moved\"} 1")
        .await;
    // No other device goes there.
    let mut newcomer = Device::call(there, "").await;
    newcomer.reads().await;
    assert_eq!(newcomer.region(), "eu-central");
}

/// A rollout drains one stack after the other, and the id of the session still names the first.
#[tokio::test]
async fn a_session_that_moved_inside_a_region_of_many_stacks_is_found_by_its_old_id() {
    let mut stacks = Vec::new();
    for _ in 0..5 {
        stacks.push(stack("eu-west", "london").await);
    }
    let other = stack("eu-central", "berlin").await;
    let mut named: Vec<(&str, SocketAddr)> = stacks.iter().map(|stack| ("eu-west", stack.http)).collect();
    named.push(("eu-central", other.http));
    let world = World::new(2, &named);
    let (here, there) = (world.edges[0].1, world.edges[1].1);
    let mut device = Device::call(here, "").await;
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    let id = device.id().to_owned();
    let live = |stack: &Region| {
        let url = stack.url("/metrics");
        async move {
            let shown = reqwest::get(url).await.unwrap().text().await.unwrap();
            shown.lines().any(|line| line == "meridian_stack_sessions 1")
        }
    };
    let mut at = None;
    for (index, stack) in stacks.iter().enumerate() {
        if live(stack).await {
            at = Some(index);
        }
    }
    stacks.remove(at.expect("one has it")).begin_stop();
    let moved = async {
        loop {
            for stack in &stacks {
                if live(stack).await {
                    return;
                }
            }
        }
    };
    timeout(HANGS_AFTER, moved)
        .await
        .expect("another stack of the region has it");
    device.say("help").await;
    drop(device);

    // The edge may draw any two stacks first.
    for call in 0..4 {
        let mut back = Device::call(there, &format!("&session=later-{call}&resume={id}")).await;
        assert_eq!(back.region(), "eu-west");
        let left = back.say("how much time is left").await;
        assert!(left.contains("minutes"), "{left}");
    }
}

#[tokio::test]
async fn when_the_region_of_a_session_is_gone_its_device_is_told_what_is_lost() {
    let first = stack("eu-west", "london").await;
    let second = stack("eu-central", "berlin").await;
    let world = World::new(2, &[("eu-west", first.http), ("eu-central", second.http)]);
    let mut device = Device::call(world.edges[0].1, "").await;
    // No other stack keeps a copy of a session without an alarm or a timer.
    device.say("turn on the kitchen lights").await;
    let id = device.id().to_owned();
    drop(device);
    // Otherwise its stack would ask the session to leave before the edge misses the device, and it would go on in eu-central.
    first.until_metric("meridian_stack_sessions 0").await;
    first.begin_stop();
    first.stopped().await;

    let mut back = Device::call(world.edges[1].1, &format!("&resume={id}")).await;
    assert_eq!(back.region(), "eu-central");
    assert_ne!(back.id(), id);
    let error = back.next().await;
    assert_eq!(error["error"]["code"], "session_not_resumed");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("cannot be reached") && message.contains("alarms"),
        "{message}"
    );
}

#[tokio::test]
async fn what_an_edge_kept_of_a_session_serves_when_its_region_is_gone() {
    let first = stack("eu-west", "london").await;
    let second = stack("eu-central", "berlin").await;
    let world = World::new(1, &[("eu-west", first.http), ("eu-central", second.http)]);
    let edge = world.edges[0].1;
    let headers = [("meridian-zone", "America/New_York")];
    let mut device = Device::call_with(edge, "", &headers).await.unwrap();
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    let id = device.id().to_owned();
    // The device loses its network, and meanwhile the region dies.
    drop(device);
    first.until_metric("meridian_stack_sessions 0").await;
    first.begin_stop();
    first.stopped().await;

    let mut back = Device::call(edge, &format!("&resume={id}")).await;
    assert_eq!(back.region(), "eu-central");
    assert_eq!(back.session["output_modalities"], json!(["text"]));
    assert!(back.say("how much time is left").await.contains("minutes"));
    check_clock(&mut back, "new york").await;
    // From here on it is a session like any other.
    let mut again = back.resume(edge).await;
    assert!(again.say("how much time is left").await.contains("minutes"));
}

/// The backup must begin with the last checkpoint and has no room, so the device comes once more.
#[tokio::test]
async fn what_an_edge_kept_of_a_session_stays_until_a_stack_has_it() {
    let first = stack("eu-west", "london").await;
    let lines = format!("checkpoint_key = \"{CHECKPOINT_KEY}\"");
    let second = Region::start_in("eu-central", &lines, engines(), |limits| limits.sessions_max = 1).await;
    let world = World::new(1, &[("eu-west", first.http), ("eu-central", second.http)]);
    let edge = world.edges[0].1;
    let mut device = Device::call(edge, "").await;
    device.reads().await;
    device.say("set a timer for ten minutes").await;
    let resume = format!("&resume={}", device.id());
    drop(device);
    first.until_metric("meridian_stack_sessions 0").await;
    first.begin_stop();
    first.stopped().await;

    let other = Device::call(second.http, "").await;
    let refused = Device::call_with(edge, &resume, &[]).await.err();
    assert_eq!(refused.expect("there is no room").0, 503);
    drop(other);
    second.until_metric("meridian_stack_sessions 0").await;
    let mut back = Device::call(edge, &resume).await;
    assert!(back.say("how much time is left").await.contains("minutes"));
}

/// A device that is connected for weeks shows the id of its first day.
#[tokio::test]
async fn an_id_that_expired_serves_while_a_stack_remembers_the_session() {
    let region = stack("eu-west", "london").await;
    let world = World::with(1, &[("eu-west", region.http)], |config| {
        config.timeouts.resume.0 = Duration::from_millis(1);
    });
    let edge = world.edges[0].1;
    let mut device = Device::call(edge, "").await;
    device.say("set a timer for ten minutes").await;
    let id = device.id().to_owned();
    let mut back = device.resume(edge).await;
    assert!(back.say("how much time is left").await.contains("minutes"));
    drop(back);
    region.until_metric("meridian_stack_sessions 0").await;
    region.begin_stop();
    region.stopped().await;

    // Another region, which knows nothing of it.
    let region = stack("eu-west", "london").await;
    let world = World::with(1, &[("eu-west", region.http)], |config| {
        config.timeouts.resume.0 = Duration::from_millis(1);
    });
    let mut other = Device::call(world.edges[0].1, &format!("&resume={id}")).await;
    let error = other.next().await;
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("too old"), "{message}");
}

#[tokio::test]
async fn an_id_that_was_changed_or_is_of_another_deployment_begins_a_new_session() {
    let region = stack("eu-west", "london").await;
    let world = World::new(1, &[("eu-west", region.http)]);
    let edge = world.edges[0].1;
    let mut device = Device::call(edge, "").await;
    device.say("set a timer for ten minutes").await;
    let id = device.id().to_owned();
    let changed = id.replace("eu-west", "us-west");
    for (resume, says) in [
        (changed.as_str(), "changed"),
        (&id[..id.len() - 1], "changed"),
        ("sess_0.eu-west.00000000.1.00000000000000000000000000000000", "changed"),
        ("sess_00000000000000000000000000000000", "no stack remembers"),
        // The name of the session, without the signature of an edge.
        (id.split('.').next().unwrap(), "no stack remembers"),
        ("%ff%00", "no stack remembers"),
    ] {
        let mut other = Device::call(edge, &format!("&resume={resume}")).await;
        let error = other.next().await;
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{resume}: {message}");
        assert_eq!(other.say("how much time is left").await, "there is no timer");
    }
    // A device chooses neither the id of its session nor its resumption.
    let headers = [
        ("meridian-session-token", "sess_mine"),
        ("meridian-resumes", "no; forged"),
    ];
    let mut mine = Device::call_with(edge, &format!("&resume={id}"), &headers)
        .await
        .unwrap();
    assert!(mine.say("how much time is left").await.contains("minutes"));
}
