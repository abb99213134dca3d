//! Stories of voice sessions through a real edge, real sockets and fake stacks.

use crate::support::{
    self, Stack, World, ask, hang_means_failure, lateness::unless_late, open, planned, process, region,
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn a_session_reaches_its_home_and_is_relayed_verbatim() {
    let world = World::new(&[("eu-west", Stack::Echoes)]).await;
    let mut anna = world.open(&[]).await;
    assert_eq!(anna.header("meridian-region"), "eu-west");
    assert_eq!(anna.header("meridian-edge"), "edge-dub");
    assert!(anna.header("meridian-affinity").starts_with("v2.eu-west."));
    assert_eq!(world.live(), [("eu-west".to_owned(), 1)].into());
    anna.check_echo("hello").await;
    anna.leave().await;
    hang_means_failure(world.edge.sessions.idle()).await;
    assert_eq!(world.live(), [].into());
    assert_eq!(world.observed(), [("eu-west".to_owned(), (1, 0))].into());
}

#[tokio::test]
async fn much_is_relayed_as_well_as_little() {
    let world = World::new(&[("eu-west", Stack::Echoes)]).await;
    let (mut speak, mut listen) = world.open(&[]).await.socket.split();
    let messages: Vec<Message> = (0..200_u32)
        .map(|n| Message::binary(n.to_be_bytes().repeat(usize::try_from(n * n).unwrap())))
        .collect();
    let said = messages.clone();
    let speaking = tokio::spawn(async move {
        for message in said {
            speak.send(message).await.unwrap();
        }
        speak
    });
    for message in messages {
        let heard = hang_means_failure(listen.next()).await.unwrap().unwrap();
        assert!(
            heard == message,
            "{} bytes came instead of {}",
            heard.len(),
            message.len()
        );
    }
    drop(speaking.await.unwrap());
}

#[tokio::test]
async fn a_region_that_cannot_take_a_session_is_passed_over() {
    for behaviour in [Stack::Refuses, Stack::Answers(503), Stack::Compresses, Stack::Hangs] {
        let changes = match behaviour {
            Stack::Hangs => "timeouts.upgrade = '2s'",
            _ => "",
        };
        unless_late(async |lateness| {
            let stacks = [("eu-west", behaviour), ("eu-central", Stack::Echoes)];
            let world = lateness.of(World::with(changes, &stacks).await);
            let mut anna = world.open(&[]).await;
            assert_eq!(anna.header("meridian-region"), "eu-central", "{behaviour:?}");
            anna.check_echo("hello").await;
            let expected = [("eu-central".to_owned(), (1, 0)), ("eu-west".to_owned(), (0, 1))];
            assert_eq!(world.observed(), expected.into(), "{behaviour:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn when_no_region_takes_a_session_the_device_is_told_when_to_come_back() {
    let world = World::new(&[]).await;
    let answer = open(world.address, &[]).await.map(drop).unwrap_err();
    assert_eq!(answer.status(), 503);
    let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((2..=6).contains(&wait), "{wait}");
    let body: serde_json::Value = serde_json::from_slice(answer.body().as_deref().unwrap()).unwrap();
    assert_eq!(body["error"]["code"], "no_region");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("tried eu-west, eu-central, us-west"), "{message}");
}

#[tokio::test]
async fn a_region_that_says_no_is_heard() {
    let world = World::new(&[("eu-west", Stack::Answers(401))]).await;
    let answer = open(world.address, &[]).await.map(drop).unwrap_err();
    assert_eq!(answer.status(), 401);
    assert_eq!(answer.headers()["meridian-region"], "eu-west");
    assert_eq!(answer.body().as_deref(), Some(&b"no thanks"[..]));
    assert_eq!(world.observed(), [("eu-west".to_owned(), (1, 0))].into());
}

#[tokio::test]
async fn a_session_whose_region_dies_is_told_to_reconnect() {
    let world = World::new(&[("eu-west", Stack::DiesAfterOne), ("eu-central", Stack::Echoes)]).await;
    // Connections succeed, so deaths alternate with successes; it is only the tick's report that shows them.
    let mut anna = world.open(&[]).await;
    anna.check_echo("hello").await;
    anna.check_closed(1012, "region eu-west lost; reconnect").await;
    assert_eq!(world.observed(), [("eu-west".to_owned(), (1, 1))].into());
}

#[tokio::test]
async fn many_sessions_that_die_together_eject_their_region() {
    let world = World::new(&[("eu-west", Stack::DiesAfterOne), ("eu-central", Stack::Echoes)]).await;
    let mut devices = Vec::new();
    for _ in 0..3 {
        devices.push(world.open(&[]).await);
    }
    let token = devices[0].header("meridian-affinity").to_owned();
    for device in &mut devices {
        device.say("hello").await;
    }
    for device in &mut devices {
        device.hear().await;
        device.check_closed(1012, "region eu-west lost; reconnect").await;
    }
    // Its token says eu-west, and eu-west is left alone for now.
    let mut anna = world.open(&[("meridian-affinity", &token)]).await;
    assert_eq!(anna.header("meridian-region"), "eu-central");
    anna.check_echo("hello again").await;
}

#[tokio::test]
async fn a_region_that_dies_in_the_middle_of_a_frame_ends_the_connection() {
    let world = World::new(&[("eu-west", Stack::DiesInFrame)]).await;
    let mut anna = world.open(&[]).await;
    // There is no place for a Close frame inside another frame.
    let end = hang_means_failure(anna.socket.next()).await.unwrap();
    assert!(end.is_err(), "{end:?}");
    // It was counted before the device could know.
    assert_eq!(world.observed(), [("eu-west".to_owned(), (1, 1))].into());
}

#[tokio::test]
async fn a_region_that_closes_in_order_is_not_blamed() {
    for code in [1000, 1001, 1011] {
        let world = World::new(&[("eu-west", Stack::Closes(code))]).await;
        let mut anna = world.open(&[]).await;
        anna.check_closed(code, "done").await;
        assert!(
            hang_means_failure(anna.socket.next()).await.is_none(),
            "nothing follows"
        );
        hang_means_failure(world.edge.sessions.idle()).await;
        assert_eq!(world.observed(), [("eu-west".to_owned(), (1, 0))].into());
    }
}

#[tokio::test]
async fn a_device_that_vanishes_is_not_the_regions_fault() {
    let world = World::new(&[("eu-west", Stack::Echoes)]).await;
    let mut anna = world.open(&[]).await;
    anna.check_echo("hello").await;
    drop(anna);
    hang_means_failure(world.edge.sessions.idle()).await;
    assert_eq!(world.observed(), [("eu-west".to_owned(), (1, 0))].into());
}

#[tokio::test]
async fn a_session_returns_to_its_region_with_its_token() {
    let world = World::new(&[("eu-west", Stack::Echoes), ("eu-central", Stack::Echoes)]).await;
    let key = &world.edge.config.affinity_key.0;
    let token = key.issue(&region("eu-central"), daemon::clock::now());
    let anna = world.open(&[("meridian-affinity", &token)]).await;
    assert_eq!(anna.header("meridian-region"), "eu-central");
    // A forged token does not count, nor does one for a region to which the plan sends no session from here.
    let forged = token.replace("eu-central", "us-west");
    let elsewhere = key.issue(&region("us-east"), daemon::clock::now());
    for token in [forged, elsewhere] {
        let anna = world.open(&[("meridian-affinity", &token)]).await;
        assert_eq!(anna.header("meridian-region"), "eu-west");
    }
}

#[tokio::test]
async fn a_frame_that_is_too_large_closes_its_session() {
    let world = World::with("limits.frame_bytes_max = 1000", &[("eu-west", Stack::Echoes)]).await;
    let mut anna = world.open(&[]).await;
    anna.check_echo(&"x".repeat(1000)).await;
    anna.say(&"x".repeat(1001)).await;
    anna.check_closed(1009, "a frame of 1001 bytes is too large").await;
    hang_means_failure(world.edge.sessions.idle()).await;
    assert_eq!(world.observed(), [("eu-west".to_owned(), (1, 0))].into());
}

#[tokio::test]
async fn what_is_not_websocket_closes_its_session() {
    let world = World::new(&[("eu-west", Stack::Echoes)]).await;
    for (bytes, reason) in [
        (&[0x81, 0x01, b'x'][..], "the masking is wrong"),
        (&[0xc1, 0x81, 0, 0, 0, 0, b'x'], "a reserved bit is set"),
        (&[0x83, 0x80, 0, 0, 0, 0], "opcode 3 is reserved"),
    ] {
        let mut anna = world.open(&[]).await;
        anna.socket.get_mut().write_all(bytes).await.unwrap();
        anna.check_closed(1002, reason).await;
    }
}

#[tokio::test]
async fn a_session_in_which_nothing_happens_ends() {
    let world = World::with("timeouts.idle = '200ms'", &[("eu-west", Stack::Echoes)]).await;
    let mut anna = world.open(&[]).await;
    anna.check_closed(1001, "session idle").await;
    assert_eq!(world.observed(), [("eu-west".to_owned(), (1, 0))].into());
}

#[tokio::test]
async fn regions_that_answer_at_once_never_lose_a_session() {
    const SESSIONS: usize = 200;
    const REQUEST: &str = "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                           Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    let world = World::new(&[("eu-west", Stack::Eager)]).await;
    let mut devices = Vec::new();
    for _ in 0..SESSIONS {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        // The first frame comes with the request, as from a device that cannot wait.
        let early = [REQUEST.as_bytes(), &[0x82, 0x82, 0, 0, 0, 0, b'h', b'i']].concat();
        tcp.write_all(&early).await.unwrap();
        devices.push(tcp);
    }
    for tcp in &mut devices {
        let head = hang_means_failure(support::read_head(tcp)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut echo = [0; 4];
        hang_means_failure(tcp.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, &[0x82, 2, b'h', b'i']);
    }
    assert_eq!(world.live(), [("eu-west".to_owned(), SESSIONS)].into(), "all are live");
    for tcp in &mut devices {
        tcp.write_all(&[0x82, 0x81, 0, 0, 0, 0, b'!']).await.unwrap();
        let mut echo = [0; 3];
        hang_means_failure(tcp.read_exact(&mut echo)).await.unwrap();
    }
}

#[tokio::test]
async fn a_stopping_edge_closes_every_session_and_refuses_new_ones() {
    let changes = "drain.window = '400ms'\ntimeouts.close = '5s'\ndrain.limit = '15s'";
    let world = World::with(changes, &[("eu-west", Stack::Echoes)]).await;
    let mut devices = Vec::new();
    for _ in 0..20 {
        devices.push(world.open(&[]).await);
    }
    world.stop.cancel();
    hang_means_failure(world.edge.sessions.draining()).await;
    let answer = open(world.address, &[]).await.map(drop).unwrap_err();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    for device in &mut devices {
        device.check_closed(1012, "edge draining; reconnect").await;
    }
    for device in devices {
        drop(device);
    }
    hang_means_failure(world.served).await.unwrap();
    assert!(
        TcpStream::connect(world.address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn a_stopping_edge_without_sessions_stops_at_once() {
    let world = World::new(&[("eu-west", Stack::Echoes)]).await;
    // Connected, and asking nothing.
    let _idle = TcpStream::connect(world.address).await.unwrap();
    world.stop.cancel();
    let began = std::time::Instant::now();
    hang_means_failure(world.served).await.unwrap();
    assert!(
        began.elapsed() < std::time::Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn an_older_plan_is_ignored_and_a_newer_one_moves_new_sessions_only() {
    let world = World::new(&[("eu-west", Stack::Echoes)]).await;
    let mut before = world.open(&[]).await;
    let mut newer = planned(&[("eu-west", Stack::Echoes), ("eu-central", Stack::Echoes)]).await;
    newer.plan.generation = 3;
    newer.plan.regions.get_mut(&region("eu-west")).unwrap().state = topology::RegionState::Evacuated;
    newer.plan.routes.get_mut(&region("eu-west")).unwrap()[0].region = region("eu-central");
    world.edge.apply(&newer);
    let mut older = newer.clone();
    older.plan.generation = 2;
    older.plan.routes.get_mut(&region("eu-west")).unwrap()[0].region = region("us-west");
    world.edge.apply(&older);
    assert_eq!(world.edge.table().unwrap().number().generation, 3);
    let mut after = world.open(&[]).await;
    assert_eq!(after.header("meridian-region"), "eu-central");
    before.check_echo("still here").await;
    after.check_echo("here").await;
}

#[tokio::test]
async fn an_edge_starts_from_its_last_good_plan_without_a_control_plane() {
    let folder = tempfile::tempdir().unwrap();
    let changes = format!("state_dir = '{}'", folder.path().display());
    let snapshot = planned(&[("eu-west", Stack::Echoes)]).await;
    node::LastGood::at(folder.path().join("plan")).save(&snapshot).unwrap();
    let (tasks, announced) = process(&changes, folder.path(), false).await;
    let stop = tasks.stop_token();
    let running = tokio::spawn(tasks.run(support::HANGS_AFTER));
    let addresses = hang_means_failure(announced).await.unwrap();
    let mut anna = open(addresses["http"], &[]).await.map_err(drop).unwrap();
    anna.check_echo("hello").await;

    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let metrics = ask(addresses["admin"], &get("/metrics")).await;
    assert!(
        metrics.contains("meridian_edge_sessions{region=\"eu-west\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("meridian_edge_plan_generation 1"), "{metrics}");
    let sessions = ask(addresses["admin"], &get("/sessions")).await;
    assert!(sessions.contains(r#""eu-west":{"sessions":1"#), "{sessions}");
    let explained = ask(addresses["admin"], &get("/explain?session=anna")).await;
    assert!(
        explained.contains(r#""region":"eu-west""#) && explained.contains(r#""why":{"share":100}"#),
        "{explained}"
    );

    anna.leave().await;
    stop.cancel();
    // As below.
    drop(hang_means_failure(running).await.unwrap());
}

#[tokio::test]
async fn without_a_plan_nothing_is_accepted_and_stopping_works() {
    let folder = tempfile::tempdir().unwrap();
    let changes = format!("state_dir = '{}'", folder.path().display());
    let (tasks, announced) = process(&changes, folder.path(), false).await;
    let stop = tasks.stop_token();
    let running = tokio::spawn(tasks.run(support::HANGS_AFTER));
    stop.cancel();
    // That it ends counts; a task that obeys the token before the frame looks at it may be taken for one that failed.
    drop(hang_means_failure(running).await.unwrap());
    assert!(announced.await.is_err(), "it never announced itself");
}
