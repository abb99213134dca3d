//! Stories of choosing: what an edge sees of regions and stacks decides where the next session goes.

use std::collections::BTreeMap;

use crate::support::{self, Fate, Stack, World, ask, planned, region};
use tokio_tungstenite::tungstenite::Message;
use wire::LOAD_HEADER;

/// Opens sessions of different devices; how many each region got.
async fn open_many(world: &World, count: usize) -> (Vec<support::Session>, BTreeMap<String, usize>) {
    let mut sessions = Vec::new();
    let mut regions = BTreeMap::new();
    for n in 0..count {
        let anna = world.open(&[("meridian-session", &format!("device-{n}"))]).await;
        *regions.entry(anna.header("meridian-region").to_owned()).or_default() += 1;
        sessions.push(anna);
    }
    (sessions, regions)
}

fn all_in(name: &str, count: usize) -> BTreeMap<String, usize> {
    [(name.to_owned(), count)].into()
}

#[tokio::test]
async fn a_region_that_said_it_is_full_is_passed_over() {
    let world = World::new(&[("eu-west", Stack::Loaded(95)), ("eu-central", Stack::Loaded(5))]).await;
    let first = world.open(&[]).await;
    assert_eq!(first.header("meridian-region"), "eu-west", "nobody knew");
    assert_eq!(first.header(LOAD_HEADER), "", "it is not for the device");
    let (_sessions, regions) = open_many(&world, 10).await;
    assert_eq!(regions, all_in("eu-central", 10));
    let explained = world.explain("session=device-3").await;
    assert_eq!(explained["decisions"][0]["skipped"][0]["because"], "full");
    // It answered every time.
    assert_eq!(world.observed()["eu-west"], (1, 0));
}

#[tokio::test]
async fn a_region_that_refuses_because_it_is_full_is_not_blamed() {
    let world = World::new(&[("eu-west", Stack::Full), ("eu-central", Stack::Echoes)]).await;
    let (_sessions, regions) = open_many(&world, 10).await;
    assert_eq!(regions, all_in("eu-central", 10));
    assert!(
        !world.observed().contains_key("eu-west"),
        "neither a success nor a failure"
    );
    let explained = world.explain("session=device-3").await;
    assert_eq!(explained["ejected"], serde_json::json!([]));
}

#[tokio::test]
async fn what_a_stack_says_of_its_load_in_a_session_stays_here_and_counts() {
    let fates = [("eu-west", Fate::FillsUp), ("eu-central", Fate::Lives)];
    let world = World::new(&fates.map(|(name, fate)| (name, Stack::Talks(fate)))).await;
    let mut anna = world.open(&[]).await;
    for word in ["a", ".", "b", "."] {
        anna.say(word).await;
    }
    let mut heard = Vec::new();
    while heard.iter().filter(|event| *event == "done").count() < 2 {
        match anna.hear().await {
            Message::Text(text) => heard.push(text.to_string()),
            other => panic!("{other:?}"),
        }
    }
    // Twice: the load said after the first turn came before the events of the second.
    let next = world.open(&[]).await;
    assert_eq!(next.header("meridian-region"), "eu-central");
    assert_eq!(anna.header("meridian-region"), "eu-west");
}

#[tokio::test]
async fn when_all_are_full_they_are_asked_all_the_same() {
    let names = [
        "eu-west",
        "eu-central",
        "us-west",
        "us-east",
        "ap-south",
        "ap-northeast",
    ];
    let world = World::new(&names.map(|name| (name, Stack::Loaded(99)))).await;
    let (_sessions, regions) = open_many(&world, 10).await;
    // One each to find out, and the others go where they would without it.
    assert_eq!((regions["eu-west"], regions.len()), (5, 6), "{regions:?}");
}

#[tokio::test]
async fn sessions_spread_over_the_stacks_of_a_region() {
    let world = World::new(&[("eu-west", Stack::Echoes), ("eu-west", Stack::Echoes)]).await;
    let (_sessions, regions) = open_many(&world, 40).await;
    assert_eq!(regions, all_in("eu-west", 40));
    let explained = world.explain("session=anna").await;
    let here = explained["stacks"].as_array().unwrap().iter();
    let here = here.filter(|stack| stack["region"] == "eu-west");
    let in_flight: Vec<u64> = here.map(|stack| stack["in_flight"].as_u64().unwrap()).collect();
    // The distribution depends on how fast they accept.
    assert_eq!(in_flight.iter().sum::<u64>(), 40);
    assert!(in_flight.iter().all(|sessions| *sessions >= 1), "{in_flight:?}");
}

#[tokio::test]
async fn of_two_stacks_the_one_that_works_takes_the_sessions_and_the_region_is_not_left() {
    for dead in [Stack::Refuses, Stack::Answers(500)] {
        let stacks = [
            ("eu-west", dead),
            ("eu-west", Stack::Echoes),
            ("eu-central", Stack::Echoes),
        ];
        let world = World::new(&stacks).await;
        let (_sessions, regions) = open_many(&world, 20).await;
        assert_eq!(regions, all_in("eu-west", 20), "{dead:?}");
        let explained = world.explain("session=anna").await;
        assert_eq!(explained["ejected"], serde_json::json!([]), "{dead:?}");
        let (succeeded, failed) = world.observed()["eu-west"];
        assert_eq!(succeeded, 20);
        assert!((1..=3).contains(&failed), "{failed}: after three it is left alone");
    }
}

/// The stack takes every session, and none of them gets an answer: only its own reports on turns show that.
#[tokio::test]
async fn a_stack_that_fails_its_turns_gets_no_newcomers_while_another_of_its_region_does_well() {
    let stacks = [
        ("eu-west", Stack::Talks(Fate::FailsTurns)),
        ("eu-west", Stack::Talks(Fate::Lives)),
        ("eu-central", Stack::Talks(Fate::Lives)),
    ];
    let world = World::with("picking.volume_min = 4", &stacks).await;
    let ill = world.stack_of("eu-west");
    let at = || {
        let by_stack = world.edge.sessions.by_stack().remove(&region("eu-west"));
        let by_stack = by_stack.unwrap_or_default();
        (
            by_stack.get(&ill).copied().unwrap_or(0),
            by_stack.values().sum::<usize>(),
        )
    };
    let mut sessions = Vec::new();
    for n in 0..16 {
        sessions.push(world.open(&[("meridian-session", &format!("device-{n}"))]).await);
    }
    let (at_ill, all) = at();
    assert!((1..16).contains(&at_ill) && all == 16, "{at_ill} of {all}");
    // The device hears an answer to each turn; the report of the stack comes behind it.
    let ejected = async {
        while !world.edge.fleet.is_out(&region("eu-west"), ill, daemon::clock::now()) {
            for anna in &mut sessions {
                for word in ["a", "."] {
                    anna.say(word).await;
                }
                while anna.hear().await != Message::text("done") {}
            }
        }
    };
    support::hang_means_failure(ejected).await;
    for n in 16..32 {
        sessions.push(world.open(&[("meridian-session", &format!("device-{n}"))]).await);
    }
    assert_eq!(
        at(),
        (at_ill, 32),
        "who is there stays, and all others are at the other stack"
    );
    assert_eq!(world.observed()["eu-west"].1, 0, "its region did nothing wrong");
}

#[tokio::test]
async fn a_session_that_loses_its_stack_goes_on_at_another_of_its_region() {
    let stacks = [
        ("eu-west", Stack::Talks(Fate::DiesAfterMessages(2))),
        ("eu-west", Stack::Talks(Fate::Lives)),
        ("eu-central", Stack::Talks(Fate::Lives)),
    ];
    let world = World::new(&stacks).await;
    // A device ends at the stack that lives, in the same region, whichever it draws first.
    for n in 0..4 {
        let mut anna = world.open(&[("meridian-session", &format!("device-{n}"))]).await;
        for word in ["a", "b", "."] {
            anna.say(word).await;
        }
        let mut last = String::new();
        while last != "done" {
            if let Message::Text(text) = anna.hear().await {
                last = text.to_string();
            }
        }
        assert_eq!(world.live(), all_in("eu-west", 1));
        anna.leave().await;
        support::hang_means_failure(world.edge.sessions.idle()).await;
    }
}

#[tokio::test]
async fn an_edge_to_which_everything_looks_dead_says_so_and_goes_on_as_planned() {
    // Three regions are in use, and none can be reached.
    let world = World::new(&[]).await;
    for name in ["eu-west", "us-east", "ap-south"] {
        let token = world
            .edge
            .config
            .affinity_key
            .0
            .issue(&region(name), daemon::clock::now());
        for _ in 0..3 {
            let refused = support::open(world.address, &[("meridian-affinity", &token)]).await;
            assert_eq!(refused.map(drop).unwrap_err().status(), 503);
        }
    }
    let explained = world.explain("session=anna").await;
    let first = &explained["decisions"][0];
    assert_eq!(first["region"], "eu-west");
    assert_eq!(first["ejection_ignored"], "panic");
}

#[tokio::test]
async fn what_explain_says_of_a_client_is_what_happens_to_it() {
    let stacks = ["eu-west", "eu-west", "eu-central", "us-west"].map(|name| (name, Stack::Echoes));
    let mut plan = planned(&stacks).await;
    plan.plan.generation = 2;
    let shares = plan.plan.routes.get_mut(&region("eu-west")).unwrap();
    shares[0].percent = 40;
    for (name, percent) in [("eu-central", 35), ("us-west", 25)] {
        let region = region(name);
        shares.push(topology::Share { region, percent });
    }
    let world = World::new(&[("eu-west", Stack::Echoes)]).await;
    world.edge.apply(&plan);
    let told = |explained: &serde_json::Value| explained["decisions"][0]["region"].as_str().unwrap().to_owned();
    for n in 0..20 {
        let name = format!("device-{n}");
        let explained = world.explain(&format!("client=192.0.2.1&session={name}")).await;
        let anna = world.open(&[("meridian-session", &name)]).await;
        assert_eq!(anna.header("meridian-region"), told(&explained), "{explained:#}");
        anna.leave().await;
    }
    // Without a name the address counts, and not the port, for sessions and for requests.
    let explained = world.explain("client=127.0.0.1").await;
    for _ in 0..5 {
        let anna = world.open(&[]).await;
        assert_eq!(anna.header("meridian-region"), told(&explained));
        anna.leave().await;
    }
    // The plan before is held too, and was another.
    let before = world.explain("client=127.0.0.1&generation=1").await;
    assert_eq!(
        (&before["plan"]["generation"], told(&before).as_str()),
        (&1.into(), "eu-west")
    );
    assert_eq!(before["plan_in_force"]["generation"], 2);
    let unknown = world.explain("client=127.0.0.1&generation=9").await;
    let refused = unknown["refused"].as_str().unwrap();
    assert!(
        refused.contains("404") && refused.contains("holds plan 2 and 1, not 9"),
        "{refused}"
    );
    // Any other can be brought along.
    plan.plan.generation = 9;
    let shares = plan.plan.routes.get_mut(&region("eu-west")).unwrap();
    shares.retain(|share| share.region.as_str() == "us-west");
    shares[0].percent = 100;
    let brought = world.explain_by("client=127.0.0.1", Some(&plan)).await;
    assert_eq!(
        (&brought["plan"]["generation"], told(&brought).as_str()),
        (&9.into(), "us-west")
    );
    assert_eq!(
        world.edge.table().unwrap().number().generation,
        2,
        "nothing of it stays"
    );
    plan.plan.routes.clear();
    let refused = world.explain_by("client=127.0.0.1", Some(&plan)).await;
    assert!(
        refused["refused"].as_str().unwrap().contains("the body is not a plan"),
        "{refused}"
    );
}

#[tokio::test]
async fn requests_over_http_bring_loads_too() {
    let world = World::new(&[("eu-west", Stack::LoadedHttp(99)), ("eu-central", Stack::Echoes)]).await;
    let request = "GET /v1/models HTTP/1.1\r\nHost: v\r\nMeridian-Load: 9\r\nConnection: close\r\n\r\n";
    let answer = ask(world.address, request).await.to_lowercase();
    // It tells what it was asked: by the edge, not by the device. What it says to that is for the edge.
    let (head, told) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        told.contains("meridian-load: 1\r\n") && !told.contains("meridian-load: 9"),
        "{told}"
    );
    assert!(
        head.contains("meridian-region: eu-west") && !head.contains("meridian-load"),
        "{head}"
    );
    let next = world.open(&[]).await;
    assert_eq!(next.header("meridian-region"), "eu-central");
}

#[tokio::test]
async fn a_region_that_was_ejected_gets_its_sessions_back_little_by_little() {
    let changes = "picking.ejection = '1ms'\npicking.slow_start = '1h'\npicking.slow_start_percent = 50";
    let world = World::with(changes, &[("eu-west", Stack::Echoes), ("eu-central", Stack::Echoes)]).await;
    let (home, stack) = (region("eu-west"), world.stack_of("eu-west"));
    for _ in 0..3 {
        world.edge.fleet.refused(&home, stack, "a test", daemon::clock::now());
    }
    while world.explain("session=anna").await["ejected"] != serde_json::json!([]) {}
    let (_sessions, regions) = open_many(&world, 40).await;
    // Fifty percent, give or take: the keys decide, so it is the same every time.
    assert!(regions["eu-west"] > 12 && regions["eu-central"] > 12, "{regions:?}");
    let (_again, the_same) = open_many(&world, 40).await;
    assert_eq!(the_same, regions);
}

#[tokio::test]
async fn a_burst_of_devices_does_not_move_the_home_of_an_edge() {
    let world = World::new(&[("eu-west", Stack::Echoes), ("us-east", Stack::Echoes)]).await;
    let (home, stack) = (region("eu-west"), world.stack_of("eu-west"));
    let seen = &world.edge.fleet;
    let probed = |ms| probe::Probed {
        rtt_ms: [(home.clone(), ms)].into(),
        ..probe::Probed::default()
    };
    // It starts into the burst: its first probe says more of itself than of the way.
    seen.probed(&probed(300.0));
    let (_sessions, regions) = open_many(&world, 20).await;
    assert_eq!(regions, all_in("eu-west", 20));
    for _ in 0..2 {
        seen.probed(&probed(0.1));
    }
    // Each connection takes long to be made while this edge is busy with all the others, and a probe as well.
    for _ in 0..500 {
        let took = std::time::Duration::from_millis(300);
        seen.reached(&home, stack, took, daemon::clock::now());
    }
    seen.probed(&probed(300.0));
    let (_sessions, regions) = open_many(&world, 20).await;
    assert_eq!(regions, all_in("eu-west", 20));
}

#[tokio::test]
async fn a_region_that_is_silent_to_the_probes_gets_nobody_until_it_answers_somebody() {
    let world = World::new(&[("eu-west", Stack::Echoes), ("eu-central", Stack::Echoes)]).await;
    let silent = probe::Probed {
        silent: [region("eu-west")].into(),
        ..probe::Probed::default()
    };
    world.edge.fleet.probed(&silent);
    let (_sessions, regions) = open_many(&world, 10).await;
    assert_eq!(regions, all_in("eu-central", 10));
    let explained = world.explain("session=device-3").await;
    assert_eq!(explained["decisions"][0]["skipped"][0]["because"], "silent");
    let (home, stack) = (region("eu-west"), world.stack_of("eu-west"));
    let took = std::time::Duration::from_millis(1);
    world.edge.fleet.answered(&home, stack, took, daemon::clock::now());
    let next = world.open(&[]).await;
    assert_eq!(next.header("meridian-region"), "eu-west");
}

#[tokio::test]
async fn a_plan_that_would_serve_nobody_is_not_put_in_force() {
    let world = World::new(&[("eu-west", Stack::Echoes)]).await;
    let mut empty = planned(&[]).await;
    empty.plan.generation = 2;
    empty.plan.routes.clear();
    world.edge.apply(&empty);
    assert_eq!(world.edge.table().unwrap().number().generation, 1);
    assert_eq!(world.metric("meridian_edge_plans_refused_total"), Some(1.0));
    world.open(&[]).await.check_echo("hello").await;
}

#[tokio::test]
async fn affinity_tokens_are_issued_anew_each_second() {
    let world = World::new(&[("eu-west", Stack::Echoes)]).await;
    let edge = &world.edge;
    let table = edge.table().unwrap();
    let user = routing::User::default();
    let now = daemon::clock::now();
    let decision = edge
        .fleet
        .pick(&table, "anna", user, None, &routing::Tried::default(), now);
    let decision = decision.unwrap();
    let issued = |ms| {
        let at = topology::Moment(now.0 / 1000 * 1000 + ms);
        let token = edge.affinity_tokens.issue(&decision, at);
        edge.affinity_tokens.verify(&token, at).unwrap().issued_at.0 - now.0 / 1000 * 1000
    };
    assert_eq!([issued(0), issued(999), issued(1000), issued(5000)], [0, 0, 1000, 5000]);
}
