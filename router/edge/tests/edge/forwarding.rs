//! Stories of small requests, which the edge passes on itself: connections that are kept on both sides, answers of every
//! framing, and peers that leave.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use crate::support::{
    World, hang_means_failure,
    http::{answer, expect, repeats, request, say, stack},
    planned_at, read_head,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

/// Answers one request, and closes its connection as the next one comes.
async fn answers_once(mut tcp: TcpStream) {
    if request(&mut tcp).await.is_some() {
        say(&mut tcp, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
        request(&mut tcp).await;
    }
}

async fn world(stack: SocketAddr) -> World {
    World::of("", &planned_at(&[("eu-west", stack)]).await)
}

async fn connect(world: &World) -> TcpStream {
    TcpStream::connect(world.address).await.unwrap()
}

const GET: &str = "GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n";

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let (stack, taken) = stack(repeats).await;
    let world = world(stack).await;
    let mut tcp = connect(&world).await;
    for turn in 0..5 {
        let body = "x".repeat(turn * 1000);
        let length = body.len();
        let (head, rest) = body.split_at(turn * 300);
        say(
            &mut tcp,
            &format!("POST /v1/audio/speech?{turn} HTTP/1.1\r\nHost: v\r\nContent-Length: {length}\r\n\r\n{head}"),
        )
        .await;
        say(&mut tcp, rest).await;
        let (head, said) = answer(&mut tcp).await;
        assert!(head.contains("Meridian-Region: eu-west\r\n") && head.contains("Meridian-Affinity: v2.eu-west."));
        assert_eq!(said, format!("POST /v1/audio/speech?{turn} HTTP/1.1 {body}"));
    }
    assert_eq!(taken.load(Ordering::SeqCst), 1);
    assert_eq!(
        world.metric("meridian_edge_http_requests_total{route=\"audio\",status=\"2xx\"}"),
        Some(5.0)
    );
}

/// A post with a body of this length; chunked or not.
fn post(path: &str, length: usize, is_chunked: bool) -> String {
    let head = format!("POST {path} HTTP/1.1\r\nHost: v\r\n");
    let body = "x".repeat(length);
    match is_chunked {
        false => format!("{head}Content-Length: {length}\r\n\r\n{body}"),
        true if length == 0 => format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        true => format!("{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\nX: y\r\n\r\n"),
    }
}

#[tokio::test]
async fn what_is_asked_in_one_breath_is_answered_in_order_whatever_it_is() {
    let (stack, _) = stack(repeats).await;
    let limits = "limits.body_buffer_bytes_max = 40000\nhedge.body_bytes_max = 40000";
    let world = World::of(limits, &planned_at(&[("eu-west", stack)]).await);
    let mut tcp = connect(&world).await;
    // Small ones pass one way, the others another; each has another behind it in the same read.
    let asked = [
        ("/v1/models".to_owned(), GET.to_owned(), 0),
        ("/v1/audio/speech".to_owned(), post("/v1/audio/speech", 2, false), 2),
        ("/v1/audio/speech".to_owned(), post("/v1/audio/speech", 0, true), 0),
        ("/v1/audio/speech".to_owned(), post("/v1/audio/speech", 20, true), 20),
        ("/v1/models".to_owned(), GET.to_owned(), 0),
        (
            "/v1/audio/speech".to_owned(),
            post("/v1/audio/speech", 20_000, false),
            20_000,
        ),
        (
            "/v1/audio/speech".to_owned(),
            post("/v1/audio/speech", 30_000, true),
            30_000,
        ),
        (
            "/v1/audio/transcriptions".to_owned(),
            post("/v1/audio/transcriptions", 10, false),
            10,
        ),
        ("/v1/models".to_owned(), GET.to_owned(), 0),
        // Beyond the held part: passed on as it comes.
        (
            "/v1/audio/speech".to_owned(),
            post("/v1/audio/speech", 50_000, false),
            50_000,
        ),
        ("/v1/models".to_owned(), GET.to_owned(), 0),
    ];
    let breath: String = asked.iter().map(|(_, text, _)| text.as_str()).collect();
    let (mut hears, mut says) = tcp.split();
    let speaking = async { says.write_all(breath.as_bytes()).await.unwrap() };
    let hearing = async {
        for (path, text, length) in &asked {
            let method = text.split(' ').next().unwrap();
            let expected = format!("{method} {path} HTTP/1.1 {}", "x".repeat(*length));
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(hears.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            assert!(head.starts_with("HTTP/1.1 200 "), "{path} {length}: {head}");
            let mut said = vec![0; expected.len()];
            hears.read_exact(&mut said).await.unwrap();
            assert!(String::from_utf8(said).unwrap() == expected, "{path} {length}");
        }
    };
    hang_means_failure(async { tokio::join!(speaking, hearing) }).await;
    // A session may follow a request.
    let upgrade = "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 8\r\n\r\n";
    say(&mut tcp, &format!("{}{upgrade}", post("/v1/audio/speech", 9, true))).await;
    assert!(answer(&mut tcp).await.0.starts_with("HTTP/1.1 200 "));
    assert!(answer(&mut tcp).await.0.starts_with("HTTP/1.1 426 "));
}

/// `attempts` goes on with a region that is silent for long, and takes the bytes along that the device sent ahead.
#[tokio::test]
async fn what_is_asked_behind_a_request_that_takes_long_is_answered_too() {
    let may = Arc::new(Notify::new());
    let permits = may.clone();
    let (stack, _) = stack(move |mut tcp| {
        let permits = permits.clone();
        async move {
            while let Some((head, _)) = request(&mut tcp).await {
                if head.starts_with("POST") {
                    permits.notified().await;
                }
                say(&mut tcp, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
            }
        }
    })
    .await;
    let world = World::of("timeouts.upgrade = '500ms'", &planned_at(&[("eu-west", stack)]).await);
    let mut tcp = connect(&world).await;
    say(&mut tcp, &format!("{}{GET}{GET}", post("/v1/audio/speech", 2, false))).await;
    // Longer than a region may be silent before others are asked.
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    may.notify_one();
    for _ in 0..3 {
        let (head, said) = answer(&mut tcp).await;
        assert!(head.starts_with("HTTP/1.1 200 ") && said == "hi", "{head}");
    }
}

#[tokio::test]
async fn a_reply_is_heard_while_it_is_spoken() {
    let next = Arc::new(Notify::new());
    let says = next.clone();
    let (stack, taken) = stack(move |mut tcp| {
        let says = says.clone();
        async move {
            while request(&mut tcp).await.is_some() {
                say(
                    &mut tcp,
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                )
                .await;
                says.notified().await;
                say(&mut tcp, "6;a=b\r\n world\r\n0\r\nDigest: x\r\n\r\n").await;
            }
        }
    })
    .await;
    let world = world(stack).await;
    let mut tcp = connect(&world).await;
    for _ in 0..2 {
        say(&mut tcp, GET).await;
        let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        expect(&mut tcp, "5\r\nhello\r\n").await;
        next.notify_one();
        expect(&mut tcp, "6;a=b\r\n world\r\n0\r\nDigest: x\r\n\r\n").await;
    }
    assert_eq!(taken.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_ends_the_device_s_as_well() {
    let (stack, _) = stack(async |mut tcp: TcpStream| {
        request(&mut tcp).await;
        say(
            &mut tcp,
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall there is",
        )
        .await;
    })
    .await;
    let answer = world(stack).await.ask(GET).await;
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nall there is"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let (stack, _) = stack(async |mut tcp: TcpStream| {
        request(&mut tcp).await;
        say(
            &mut tcp,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        )
        .await;
    })
    .await;
    let world = world(stack).await;
    let answer = world.ask(GET).await;
    assert!(answer.ends_with("\r\n\r\n5\r\nhel"), "{answer}");
    assert_eq!(world.observed()["eu-west"], (1, 1));
}

#[tokio::test]
async fn an_answer_that_breaks_before_the_device_has_any_of_it_comes_from_elsewhere() {
    let (confused, _) = stack(async |mut tcp: TcpStream| {
        request(&mut tcp).await;
        say(
            &mut tcp,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n",
        )
        .await;
    })
    .await;
    let (other, _) = stack(repeats).await;
    let world = World::of("", &planned_at(&[("eu-west", confused), ("eu-central", other)]).await);
    let mut tcp = connect(&world).await;
    say(&mut tcp, GET).await;
    assert_eq!(answer(&mut tcp).await.1, "GET /v1/models HTTP/1.1 ");
}

#[tokio::test]
async fn a_device_that_stops_listening_is_not_spoken_to() {
    let (said, left) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (says, leaves) = (said.clone(), left.clone());
    let (stack, _) = stack(move |mut tcp| {
        let (says, leaves) = (says.clone(), leaves.clone());
        async move {
            request(&mut tcp).await;
            say(
                &mut tcp,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            )
            .await;
            says.notify_one();
            // The region waits before its next bytes.
            assert_eq!(tcp.read(&mut [0]).await.unwrap(), 0);
            leaves.notify_one();
        }
    })
    .await;
    let world = world(stack).await;
    let mut tcp = connect(&world).await;
    say(&mut tcp, GET).await;
    hang_means_failure(read_head(&mut tcp)).await.unwrap();
    expect(&mut tcp, "5\r\nhello\r\n").await;
    hang_means_failure(said.notified()).await;
    drop(tcp);
    hang_means_failure(left.notified()).await;
}

#[tokio::test]
async fn a_region_has_done_its_part_when_its_answer_is_given() {
    let (stack, _) = stack(repeats).await;
    let limits = "breaker.max_requests = 1\nlimits.client_in_flight_max = 0\ntimeouts.close = \"5s\"";
    let world = World::of(limits, &planned_at(&[("eu-west", stack)]).await);
    let last = GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut tcp = connect(&world).await;
        say(&mut tcp, &last).await;
        let (head, _) = answer(&mut tcp).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        // It does not close its end.
        held.push(tcp);
    }
}

#[tokio::test]
async fn a_head_is_answered_by_a_head_also_when_it_fails() {
    let (stack, _) = stack(async |mut tcp: TcpStream| drop(request(&mut tcp).await)).await;
    let world = World::of("retry.retries_max = 0", &planned_at(&[("eu-west", stack)]).await);
    let answer = world.ask(&GET.replace("GET", "HEAD")).await;
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_head_is_all_that_is_asked_for() {
    let (stack, taken) = stack(async |mut tcp: TcpStream| {
        while request(&mut tcp).await.is_some() {
            say(
                &mut tcp,
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
            )
            .await;
        }
    })
    .await;
    let world = world(stack).await;
    let mut tcp = connect(&world).await;
    for _ in 0..2 {
        say(&mut tcp, &GET.replace("GET", "HEAD")).await;
        let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n"), "{head}");
    }
    assert_eq!(taken.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_that_the_region_closed_meanwhile_is_nobody_s_failure() {
    let (stack, taken) = stack(answers_once).await;
    let world = world(stack).await;
    let mut tcp = connect(&world).await;
    for turn in 1..=3 {
        say(&mut tcp, GET).await;
        assert_eq!(answer(&mut tcp).await.1, "hi");
        assert_eq!(taken.load(Ordering::SeqCst), turn);
    }
    assert_eq!(world.observed()["eu-west"], (3, 0));
}

#[tokio::test]
async fn nor_is_it_when_the_request_cannot_be_made_again() {
    let (stack, _) = stack(answers_once).await;
    let world = world(stack).await;
    let mut tcp = connect(&world).await;
    say(&mut tcp, GET).await;
    assert_eq!(answer(&mut tcp).await.1, "hi");
    say(
        &mut tcp,
        "POST /api/v1/voice/anything HTTP/1.1\r\nHost: v\r\nContent-Length: 2\r\n\r\nhi",
    )
    .await;
    let (head, _) = answer(&mut tcp).await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    assert_eq!(world.observed()["eu-west"], (1, 0));
}

#[tokio::test]
async fn an_answer_that_has_begun_may_pause() {
    let next = Arc::new(Notify::new());
    let says = next.clone();
    let (stack, _) = stack(move |mut tcp| {
        let says = says.clone();
        async move {
            request(&mut tcp).await;
            say(&mut tcp, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
            says.notified().await;
            say(&mut tcp, "world").await;
        }
    })
    .await;
    let world = World::of("timeouts.upgrade = \"1s\"", &planned_at(&[("eu-west", stack)]).await);
    let mut tcp = connect(&world).await;
    say(&mut tcp, GET).await;
    hang_means_failure(read_head(&mut tcp)).await.unwrap();
    expect(&mut tcp, "hello").await;
    // Longer than a region may take to begin.
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    next.notify_one();
    expect(&mut tcp, "world").await;
}

#[tokio::test]
async fn what_others_could_understand_in_another_way_is_refused_in_words() {
    let (stack, taken) = stack(repeats).await;
    let world = world(stack).await;
    for (line, what) in [
        ("", "one Host"),
        ("Host: v\r\nHost: w\r\n", "one Host"),
        ("Host: v\r\nContent-Length: x\r\n", "not a number of bytes"),
        (
            "Host: v\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "a Content-Length or",
        ),
        ("Host: v\r\nTransfer-Encoding: xchunked\r\n", "is chunked"),
    ] {
        let answer = world
            .ask(&format!("POST /v1/audio/speech HTTP/1.1\r\n{line}\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(what), "{answer}");
    }
    assert_eq!(taken.load(Ordering::SeqCst), 0);
    assert_eq!(
        world.metric("meridian_edge_refused_total{reason=\"malformed\"}"),
        Some(5.0)
    );
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_twice() {
    let (stack, taken) = stack(async |mut tcp: TcpStream| drop(request(&mut tcp).await)).await;
    let world = world(stack).await;
    let post = "POST /api/v1/voice/anything HTTP/1.1\r\nHost: v\r\nContent-Length: 2\r\n\r\nhi";
    let answer = world.ask(post).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.contains("region eu-west failed while it answered"), "{answer}");
    assert_eq!(taken.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_region_that_speaks_nonsense_is_passed_over() {
    for nonsense in [
        "220 mail.example ESMTP\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n",
    ] {
        let (confused, _) = stack(move |mut tcp| async move {
            request(&mut tcp).await;
            say(&mut tcp, nonsense).await;
        })
        .await;
        let (other, _) = stack(repeats).await;
        let world = World::of("", &planned_at(&[("eu-west", confused), ("eu-central", other)]).await);
        let mut tcp = connect(&world).await;
        say(&mut tcp, GET).await;
        let (head, said) = answer(&mut tcp).await;
        assert!(
            head.to_lowercase().contains("meridian-region: eu-central"),
            "{nonsense:?}: {head}"
        );
        assert_eq!(said, "GET /v1/models HTTP/1.1 ");
        assert_eq!(world.observed()["eu-west"], (0, 1), "{nonsense:?}");
    }
}

#[tokio::test]
async fn a_device_that_leaves_takes_its_question_back() {
    let (asked, left) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (asks, leaves) = (asked.clone(), left.clone());
    let (stack, _) = stack(move |mut tcp| {
        let (asks, leaves) = (asks.clone(), leaves.clone());
        async move {
            request(&mut tcp).await;
            asks.notify_one();
            assert_eq!(tcp.read(&mut [0]).await.unwrap(), 0);
            leaves.notify_one();
        }
    })
    .await;
    let world = world(stack).await;
    let mut tcp = connect(&world).await;
    say(&mut tcp, GET).await;
    hang_means_failure(asked.notified()).await;
    drop(tcp);
    hang_means_failure(left.notified()).await;
}

#[tokio::test]
async fn an_answer_on_its_way_is_given_before_the_edge_stops() {
    let (asked, may) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (asks, permits) = (asked.clone(), may.clone());
    let (stack, _) = stack(move |mut tcp| {
        let (asks, permits) = (asks.clone(), permits.clone());
        async move {
            request(&mut tcp).await;
            asks.notify_one();
            permits.notified().await;
            say(&mut tcp, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
            // It stays open: the edge ends all the same.
            request(&mut tcp).await;
        }
    })
    .await;
    let world = world(stack).await;
    let mut tcp = connect(&world).await;
    say(&mut tcp, GET).await;
    hang_means_failure(asked.notified()).await;
    world.stop.cancel();
    hang_means_failure(world.edge.sessions.draining()).await;
    may.notify_one();
    let (head, said) = answer(&mut tcp).await;
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    assert_eq!(said, "hi");
    hang_means_failure(world.served).await.unwrap();
}

#[tokio::test]
async fn half_a_body_is_waited_for_and_not_forever() {
    let (stack, taken) = stack(repeats).await;
    let world = World::of("timeouts.device = \"100ms\"", &planned_at(&[("eu-west", stack)]).await);
    let post = "POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nContent-Length: 3\r\n\r\nhi";
    let answer = world.ask(post).await;
    assert!(
        answer.starts_with("HTTP/1.1 408 ") && answer.contains("body took too long"),
        "{answer}"
    );
    assert_eq!(taken.load(Ordering::SeqCst), 0, "no region waits with it");
}
