//! Stories of admission: devices that the edge admits, devices that have to return later, and the order when room is short.

use std::time::Duration;

use crate::support::{self, Fate::Lives, Session, Stack, World, hang_means_failure, open};
use futures_util::SinkExt as _;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_tungstenite::tungstenite::{Message, handshake::client::Response};

const WORKS: &[(&str, Stack)] = &[("eu-west", Stack::Echoes)];

/// Status, code of the error, and the time to wait that a refused device is told.
async fn refused(world: &World, headers: &[(&'static str, &str)]) -> (u16, String, u64) {
    told(&open(world.address, headers).await.map(drop).expect_err("it is refused"))
}

/// The same for a device whose client asks too often, though a second between two questions allows one more.
async fn refused_at_last(world: &World, headers: &[(&'static str, &str)]) -> (u16, String, u64) {
    for _ in 0..20 {
        if let Err(answer) = open(world.address, headers).await {
            return told(&answer);
        }
    }
    panic!("twenty sessions of one client opened, with {headers:?}");
}

fn told(answer: &Response) -> (u16, String, u64) {
    let body: serde_json::Value =
        serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).expect("errors are JSON");
    let wait = answer.headers()["retry-after"]
        .to_str()
        .ok()
        .and_then(|wait| wait.parse().ok());
    let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
    (answer.status().as_u16(), code, wait.expect("a number of seconds"))
}

#[tokio::test]
async fn who_returns_gets_the_last_places() {
    let world = World::with("limits.sessions_max = 3\nlimits.returning_percent = 40", WORKS).await;
    let anna = world.open(&[]).await;
    let token = anna.header("meridian-affinity").to_owned();
    let _bert = world.open(&[]).await;
    for forged in ["", "v1.eu-west.1.00"] {
        let (status, code, wait) = refused(&world, &[("meridian-affinity", forged)]).await;
        assert_eq!((status, code.as_str()), (503, "edge_full"));
        assert!((2..=6).contains(&wait), "{wait}");
    }
    let _carl = world.open(&[("meridian-affinity", &token)]).await;
    assert_eq!(refused(&world, &[("meridian-affinity", &token)]).await.0, 503);
    anna.leave().await;
    // Her place is free once the edge has noticed.
    hang_means_failure(async {
        while open(world.address, &[("meridian-affinity", &token)]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn refused_devices_are_told_different_times() {
    let world = World::with("limits.sessions_max = 1", WORKS).await;
    let _anna = world.open(&[]).await;
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..40 {
        waits.insert(refused(&world, &[]).await.2);
    }
    assert!(waits.len() > 2, "{waits:?}");
}

#[tokio::test]
async fn a_region_that_hangs_does_not_collect_devices() {
    let changes = "limits.handshakes_max = 1\ntimeouts.upgrade = '10m'";
    let world = World::with(changes, &[("eu-west", Stack::Hangs)]).await;
    let address = world.address;
    // Bert's device may come first; hers tries again then.
    let waiting = tokio::spawn(async move {
        while open(address, &[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    hang_means_failure(async {
        // Once Anna's device waits for the region, Bert's is refused without asking it.
        loop {
            let bert = tokio::time::timeout(Duration::from_millis(500), refused(&world, &[])).await;
            if bert.is_ok_and(|(status, code, _)| (status, code.as_str()) == (503, "edge_busy")) {
                break;
            }
        }
    })
    .await;
    waiting.abort();
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_slowed_down_and_one_that_returns_is_not() {
    let world = World::with("limits.client_requests_per_s = 1\nlimits.client_burst = 2", WORKS).await;
    let anna = world.open(&[]).await;
    let _bert = world.open(&[]).await;
    let (status, code, wait) = refused_at_last(&world, &[]).await;
    assert_eq!((status, code.as_str()), (429, "rate_limited"));
    assert!((1..=6).contains(&wait), "{wait}");
    let answer = slowed_down(&world, "GET /health HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 429 ") && answer.to_lowercase().contains("retry-after: "),
        "{answer}"
    );
    let token = anna.header("meridian-affinity").to_owned();
    world.open(&[("meridian-affinity", &token)]).await;
}

/// Many clients read no answer before they sent their whole request, `http.client` of Python among them.
#[tokio::test]
async fn a_refusal_reaches_a_device_that_sends_its_whole_body_first() {
    let world = World::with("limits.client_requests_per_s = 1\nlimits.client_burst = 2", WORKS).await;
    let post = |path: &str, length: usize| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: v\r\nContent-Length: {length}\r\n\r\n");
        head + &"x".repeat(length)
    };
    let answer = world.ask(&post("/nope", 1_500_000)).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    for path in ["/v1/audio/transcriptions", "/nope"] {
        let answer = slowed_down(&world, &post(path, 600_000)).await;
        assert!(answer.starts_with("HTTP/1.1 429 "), "{path}: {answer}");
        assert!(answer.contains("rate_limited"), "{path}: {answer}");
    }
}

/// The answer to the first request that the edge refuses, of at most twenty; a second between two requests allows one more.
async fn slowed_down(world: &World, request: &str) -> String {
    let mut answer = String::new();
    for _ in 0..20 {
        answer = world.ask(request).await;
        if answer.starts_with("HTTP/1.1 429 ") {
            break;
        }
    }
    answer
}

/// Vantages share an address with devices where both are behind one router, and there may be sixteen of them.
#[tokio::test]
async fn a_vantage_that_tries_the_edge_is_no_device_and_costs_nobody_a_place() {
    let world = World::with("limits.client_requests_per_s = 1\nlimits.client_burst = 1", WORKS).await;
    for _ in 0..5 {
        let answer = world.ask(std::str::from_utf8(probe::EDGE_PROBE_REQUEST).unwrap()).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
    world.open(&[]).await;
    let requests = |route| {
        world.metric(&format!(
            "meridian_edge_http_requests_total{{route=\"{route}\",status=\"4xx\"}}"
        ))
    };
    assert_eq!((requests("probe"), requests("nothing")), (Some(5.0), None));
    // With a byte behind it, it is a request like any other, and the device's rate is used up.
    let more = format!("{}x", std::str::from_utf8(probe::EDGE_PROBE_REQUEST).unwrap());
    let answer = slowed_down(&world, &more).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
}

#[tokio::test]
async fn a_token_that_was_not_issued_to_its_holder_with_a_session_lets_nobody_in() {
    let stacks = [("eu-west", Stack::Http), ("eu-central", Stack::Echoes)];
    let world = World::with("limits.client_requests_per_s = 1\nlimits.client_burst = 3", &stacks).await;
    // Every answer to a request has a token.
    let answer = world
        .ask("GET /health HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n")
        .await;
    let of_request = answer.lines().find_map(|line| line.strip_prefix("Meridian-Affinity: "));
    let of_request = of_request.unwrap().to_owned();
    let region = support::region("eu-central");
    let of_anna = world.edge.affinity_tokens.issue_to("anna", &region);
    let key = &world.edge.config.affinity_key.0;
    let steers = key.issue(&region, daemon::clock::now());
    let authorized = ("authorization", "Bearer anna");
    let anna = world.open(&[authorized, ("meridian-affinity", &steers)]).await;
    let own = anna.header("meridian-affinity").to_owned();
    let _last = world.open(&[("meridian-affinity", &steers)]).await;
    for token in [&of_request, &of_anna, &steers, &own] {
        let (status, code, _) = refused_at_last(&world, &[("meridian-affinity", token)]).await;
        assert_eq!((status, code.as_str()), (429, "rate_limited"), "{token}");
    }
    world.open(&[authorized, ("meridian-affinity", &own)]).await;
}

#[tokio::test]
async fn one_client_does_not_take_all_connections() {
    let world = World::with("limits.client_connections_max = 1", WORKS).await;
    let slow = TcpStream::connect(world.address).await.unwrap();
    let answer = hang_means_failure(async {
        // It counts once it was accepted.
        loop {
            let mut answer = String::new();
            let mut tcp = TcpStream::connect(world.address).await.unwrap();
            let read = tokio::io::AsyncReadExt::read_to_string(&mut tcp, &mut answer);
            if tokio::time::timeout(Duration::from_millis(500), read).await.is_ok() {
                return answer;
            }
        }
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("too_many_connections"), "{answer}");
    drop(slow);
    hang_means_failure(async {
        while open(world.address, &[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_whether_it_says_so_or_not() {
    let world = World::with("limits.body_bytes_max = 10", &[("eu-west", Stack::Http)]).await;
    let head = "POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nConnection: close\r\n";
    let fits = world.ask(&format!("{head}Content-Length: 10\r\n\r\n0123456789")).await;
    assert!(fits.starts_with("HTTP/1.1 200 "), "{fits}");
    for request in [
        format!("{head}Content-Length: 11\r\n\r\n0123456789a"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n"),
    ] {
        let answer = world.ask(&request).await;
        assert!(
            answer.starts_with("HTTP/1.1 413 ") && answer.contains("limited to 10 bytes"),
            "{answer}"
        );
    }
    let regions = world.observed();
    assert_eq!(regions["eu-west"].1, 0, "no region is blamed for it");
}

#[tokio::test]
async fn an_edge_without_memory_takes_nobody_new() {
    let world = World::with("limits.memory_max = 1", WORKS).await;
    let mut anna = world.open(&[]).await;
    let watched = world.edge.clone();
    let watching = tokio::spawn(async move { edge::accept::memory::watch_memory(&watched).await });
    // The memory is over all limits, so live sessions leave, too.
    anna.check_closed(1013, "edge overloaded; reconnect").await;
    let token = anna.header("meridian-affinity");
    let (status, code, _) = refused(&world, &[("meridian-affinity", token)]).await;
    assert_eq!((status, code.as_str()), (503, "edge_overloaded"));
    watching.abort();
}

#[tokio::test]
async fn what_is_being_said_is_shed_last() {
    let world = World::new(&[("eu-west", Stack::Talks(Lives))]).await;
    let (mut quiet, mut talks) = (world.open(&[]).await, world.open(&[]).await);
    check_heard(&mut quiet, &["hello"]).await;
    check_heard(&mut talks, &["hello"]).await;
    talks.say("a").await;
    check_heard(&mut talks, &["listening"]).await;
    // The edge orders it again and again, and both hear it.
    let edge = world.edge.clone();
    let shedding = tokio::spawn(async move {
        loop {
            edge.sessions.shed();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    quiet.check_closed(1013, "edge overloaded; reconnect").await;
    finish_turn(&mut talks).await;
    talks.check_closed(1013, "edge overloaded; reconnect").await;
    shedding.abort();
}

async fn finish_turn(session: &mut Session) {
    for word in ["b", "."] {
        session.say(word).await;
    }
    check_heard(session, &["said a", "said b", "done"]).await;
}

async fn check_heard(session: &mut Session, events: &[&str]) {
    for event in events {
        assert_eq!(session.hear().await, Message::text(*event));
    }
}

#[tokio::test]
async fn a_stopping_edge_lets_people_finish_and_no_longer_than_its_limit() {
    let changes = "drain.window = '100ms'\ntimeouts.close = '100ms'\ndrain.limit = '5s'";
    let world = World::with(changes, &[("eu-west", Stack::Talks(Lives))]).await;
    let (mut anna, mut bert) = (world.open(&[]).await, world.open(&[]).await);
    for device in [&mut anna, &mut bert] {
        check_heard(device, &["hello"]).await;
        device.say("a").await;
        check_heard(device, &["listening"]).await;
    }
    world.stop.cancel();
    hang_means_failure(world.edge.sessions.draining()).await;
    finish_turn(&mut anna).await;
    anna.check_closed(1012, "edge draining; reconnect").await;
    // Bert goes on and on.
    let _ = bert.socket.send(Message::text("a")).await;
    bert.check_closed(1012, "edge draining; reconnect").await;
    hang_means_failure(world.served).await.unwrap();
}

#[tokio::test]
async fn a_head_that_arrives_byte_by_byte_holds_no_place_for_long() {
    let world = World::with("timeouts.header = '200ms'", WORKS).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(b"GET /v1/realtime HTTP/1.1\r\nX: ").await.unwrap();
    let (mut reader, mut writer) = tcp.into_split();
    let drip = async {
        while writer.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut answer);
    tokio::select! {
        biased;
        read = hang_means_failure(read) => drop(read),
        () = drip => unreachable!("it never tires"),
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
}
