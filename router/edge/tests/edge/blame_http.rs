//! The blame for failures of HTTP requests, and the answer that the device sees: the rows of the table in docs/edge.md
//! that are not about sessions.
//!
//! One file, although it is long: it has the order of the table's rows.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::support::{
    self, Stack, World, calls, hang_means_failure,
    http::{answer, repeats, request, say, stack, stack_apart},
    lateness::{Lateness, unless_late},
    planned, planned_at, read_head,
};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::Notify,
};

const GET: &str = "GET /v1/models HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: v\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn chunked(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
    )
}

/// A stack that answers every request with this status and the words "no thanks".
async fn answering(status: u16, more: &'static str) -> SocketAddr {
    let (address, _) = stack(move |mut tcp| async move {
        while request(&mut tcp).await.is_some() {
            say(
                &mut tcp,
                &format!("HTTP/1.1 {status} Because\r\n{more}Content-Length: 9\r\n\r\nno thanks"),
            )
            .await;
        }
    })
    .await;
    address
}

const FULL: &str = "Meridian-Load: sessions=0, sessions_max=100, waiting=32, waiting_max=32\r\n";

async fn two(changes: &str, home: SocketAddr, backup: SocketAddr) -> World {
    World::of(changes, &planned_at(&[("eu-west", home), ("eu-central", backup)]).await)
}

fn is_from(answer: &str, region: &str) -> bool {
    answer.to_lowercase().contains(&format!("meridian-region: {region}"))
}

/// A device of the client 127.0.0.`n`; the others are of 127.0.0.1.
async fn client(world: &World, n: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, n], 0))).unwrap();
    socket.connect(world.address).await.unwrap()
}

async fn ask_as_other_client(world: &World, text: &str) -> String {
    ask_as_client(world, 2, text).await
}

async fn ask_as_client(world: &World, n: u8, text: &str) -> String {
    let mut tcp = client(world, n).await;
    say(&mut tcp, text).await;
    let mut said = Vec::new();
    hang_means_failure(tcp.read_to_end(&mut said)).await.unwrap();
    String::from_utf8(said).unwrap()
}

/// Opens a connection of HTTP/2 whose window is zero and asks for something on each of its streams.
async fn ask_and_take_nothing(address: SocketAddr, path: &str, streams: usize) -> Vec<h2::client::ResponseFuture> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let handshake = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake::<_, Bytes>(tcp);
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..streams {
        sender = hang_means_failure(sender.ready()).await.unwrap();
        let get = http::Request::get(format!("http://voice.test{path}")).body(()).unwrap();
        answers.push(sender.send_request(get, true).unwrap().0);
    }
    answers
}

#[tokio::test]
async fn a_client_that_takes_no_answers_leaves_the_regions_to_others() {
    // A region that has to wait for the devices of this thread is late, and rightly blamed.
    let (home, backup) = (stack_apart(repeats), stack_apart(repeats));
    // The edge gives no request up meanwhile, however long a busy machine takes to send all: each that it gave up would make room for
    // the next, and then more than the limit would be served one after the other.
    let world = two("timeouts.device = '10m'", home, backup).await;
    let mut held = Vec::new();
    for _ in 0..26 {
        held.push(ask_and_take_nothing(world.address, "/v1/models", 95).await);
    }
    // Headers need no window: each stream that was served has its own.
    let mut served = 0;
    for answer in held.iter_mut().flatten() {
        let head = hang_means_failure(answer).await.unwrap();
        served += usize::from(head.status() == 200);
    }
    assert!((1..=256).contains(&served), "{served} requests of one client in flight");
    for _ in 0..5 {
        let answer = ask_as_other_client(&world, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let observed = world.observed();
    for region in ["eu-west", "eu-central"] {
        assert_eq!(observed.get(region).map_or(0, |(_, failed)| *failed), 0, "{observed:?}");
    }
    let full = "meridian_edge_breaker_open_total{region=\"eu-west\",limit=\"requests\"}";
    assert_eq!(world.metric(full), None, "no region was full");
}

#[tokio::test]
async fn what_nobody_takes_is_given_up_and_its_place_is_free_again() {
    let (home, _) = stack(repeats).await;
    let world = two("limits.client_in_flight_max = 4\ntimeouts.device = '200ms'", home, home).await;
    let mut held = ask_and_take_nothing(world.address, "/v1/models", 4).await;
    for answer in &mut held {
        hang_means_failure(answer).await.unwrap();
    }
    let served = async {
        loop {
            let answer = world.ask(GET).await;
            if answer.starts_with("HTTP/1.1 200 ") {
                return;
            }
            assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    hang_means_failure(served).await;
    drop(held);
}

/// A refusal has to be taken like any other answer, that of too many requests too.
#[tokio::test]
async fn a_refusal_that_nobody_takes_is_given_up_and_its_place_is_free_again() {
    let (home, _) = stack(repeats).await;
    for path in ["/nothing", "/v1/realtime", "/v1/models/%2e%2e/x"] {
        let world = two("limits.client_in_flight_max = 4\ntimeouts.device = '200ms'", home, home).await;
        // The last four exceed the limit on requests in flight of one client.
        let mut held = ask_and_take_nothing(world.address, path, 8).await;
        for answer in &mut held {
            let status = hang_means_failure(answer).await.unwrap().status();
            assert!(status.is_client_error(), "{path}: {status}");
        }
        let served = async {
            while !world.ask(GET).await.starts_with("HTTP/1.1 200 ") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        hang_means_failure(served).await;
        // Nothing of it keeps the process busy.
        let began = std::time::Instant::now();
        world.stop.cancel();
        hang_means_failure(world.served).await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "{path}: {:?}",
            began.elapsed()
        );
        drop(held);
    }
}

/// Sends until the peer reads no more, and reports that time.
async fn talkative(stops: Arc<Notify>) -> SocketAddr {
    let (address, _) = stack(move |mut tcp| {
        let stops = stops.clone();
        async move {
            if request(&mut tcp).await.is_none() {
                return;
            }
            say(&mut tcp, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            let part = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
            while tcp.write_all(part.as_bytes()).await.is_ok() {}
            stops.notify_one();
        }
    })
    .await;
    address
}

#[tokio::test]
async fn a_device_that_does_not_read_is_let_go_on_every_way() {
    for asks in [
        GET.to_owned(),
        post("/v1/audio/speech", "hello"),
        chunked("/v1/audio/speech", "hello"),
        post("/v1/audio/transcriptions", "a recording"),
        GET.replace("HTTP/1.1", "HTTP/1.0"),
    ] {
        let stops = Arc::new(Notify::new());
        let home = talkative(stops.clone()).await;
        let world = two("timeouts.device = '200ms'", home, home).await;
        let mut device = TcpStream::connect(world.address).await.unwrap();
        say(&mut device, &asks).await;
        hang_means_failure(stops.notified()).await;
        assert_eq!(world.observed()["eu-west"].1, 0, "{asks}");
        assert!(
            ask_as_other_client(&world, "GET /nothing HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n")
                .await
                .contains("404")
        );
    }
    let stops = Arc::new(Notify::new());
    let home = talkative(stops.clone()).await;
    let world = two("timeouts.device = '200ms'", home, home).await;
    let _held = ask_and_take_nothing(world.address, "/v1/models", 1).await;
    hang_means_failure(stops.notified()).await;
    assert_eq!(world.observed()["eu-west"].1, 0);
}

#[tokio::test]
async fn a_trickling_body_opens_no_region_and_ends_with_408() {
    let (home, taken) = stack(repeats).await;
    let world = two("timeouts.device = '300ms'", home, home).await;
    for (path, framing) in [
        ("/v1/audio/transcriptions", "Content-Length: 100000"),
        ("/v1/audio/transcriptions", "Transfer-Encoding: chunked"),
        ("/v1/audio/speech", "Content-Length: 5000"),
        ("/v1/audio/speech", "Content-Length: 100000"),
        ("/v1/audio/speech", "Transfer-Encoding: chunked"),
        ("/api/v1/voice/anything", "Transfer-Encoding: chunked"),
    ] {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        say(
            &mut tcp,
            &format!("POST {path} HTTP/1.1\r\nHost: v\r\n{framing}\r\n\r\n"),
        )
        .await;
        let (mut reading, mut writing) = tcp.split();
        let trickle = async {
            loop {
                let part: &[u8] = if framing.starts_with('T') { b"1\r\nx\r\n" } else { b"x" };
                if writing.write_all(part).await.is_err() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut said = vec![0; 12];
        let answered = reading.read_exact(&mut said);
        tokio::select! {
            biased;
            answered = hang_means_failure(answered) => drop(answered.unwrap()),
            () = trickle => unreachable!("it never tires"),
        }
        assert_eq!(String::from_utf8(said).unwrap(), "HTTP/1.1 408", "{path} {framing}");
    }
    // The same with HTTP/2, where pingora has no timeout for it.
    let tcp = TcpStream::connect(world.address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    sender = hang_means_failure(sender.ready()).await.unwrap();
    let asks = http::Request::post("http://v/v1/audio/speech").body(()).unwrap();
    let (answer, mut body) = sender.send_request(asks, false).unwrap();
    body.send_data(Bytes::from_static(b"x"), false).unwrap();
    assert_eq!(hang_means_failure(answer).await.unwrap().status(), 408);
    assert_eq!(taken.load(Ordering::SeqCst), 0, "no region waits with it");
}

/// The beginning of a call, and the bytes that it still has to send.
async fn begin_call(address: SocketAddr) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut sender = hang_means_failure(sender.ready()).await.unwrap();
    let call = http::Request::post("http://v/meridian.voice.v1.Voice/Transcribe")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    sender.send_request(call.body(()).unwrap(), false).unwrap()
}

#[tokio::test]
async fn a_call_whose_body_trickles_opens_no_region_and_is_told_so_in_the_words_of_grpc() {
    let (home, taken) = stack(repeats).await;
    let world = two("timeouts.device = '300ms'", home, home).await;
    let (answer, mut body) = begin_call(world.address).await;
    let trickle = async {
        loop {
            // Until the edge has had enough of it, which the answer says.
            let _ = body.send_data(Bytes::from_static(b"x"), false);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let head = tokio::select! {
        biased;
        head = hang_means_failure(answer) => head.unwrap(),
        () = trickle => unreachable!("it never tires"),
    };
    // DEADLINE_EXCEEDED.
    assert_eq!(
        (head.status().as_u16(), &head.headers()["grpc-status"]),
        (200, &"4".parse().unwrap())
    );
    assert_eq!(taken.load(Ordering::SeqCst), 0, "no region waits with it");
    assert_eq!(
        world.metric("meridian_edge_refused_total{reason=\"body-too-slow\"}"),
        Some(1.0)
    );
    assert!(!world.observed().contains_key("eu-west"));
}

/// Beyond the held part of a call, the edge passes the body on as it comes, and the device has to keep pace there too.
#[tokio::test]
async fn a_call_that_trickles_the_rest_of_its_body_is_given_up_and_its_region_is_not_blamed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let home = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                let mut calls = Vec::new();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    // The stack reads everything and answers only at the end.
                    calls.push(tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(Ok(part)) = body.data().await {
                            let _ = body.flow_control().release_capacity(part.len());
                        }
                        respond
                    }));
                }
            });
        }
    });
    for pause in [Duration::from_millis(50), Duration::from_secs(60)] {
        let world = two("timeouts = { device = '300ms', answer = '2s' }", home, home).await;
        let (answer, mut body) = begin_call(world.address).await;
        body.send_data(Bytes::from(vec![b'x'; 40_000]), false).unwrap();
        let trickle = async {
            loop {
                let _ = body.send_data(Bytes::from_static(b"x"), false);
                tokio::time::sleep(pause).await;
            }
        };
        let head = tokio::select! {
            biased;
            head = hang_means_failure(answer) => head,
            () = trickle => unreachable!("it never tires"),
        };
        let status = head.map(|head| head.headers().get("grpc-status").cloned());
        assert!(
            status
                .as_ref()
                .is_ok_and(|status| status.as_ref().is_some_and(|it| it == "4")),
            "{pause:?}: {status:?}"
        );
        assert_eq!(
            world.observed().get("eu-west").map_or(0, |(_, failed)| *failed),
            0,
            "{pause:?}"
        );
    }
}

/// A stack that takes calls: it reads their bodies if `reads`, and answers them if `answers`.
async fn taking_calls(reads: bool, answers: bool) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if answers {
                tokio::spawn(calls::serve(tcp));
                continue;
            }
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                let mut calls = Vec::new();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    calls.push(tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(Ok(part)) = body.data().await {
                            if reads {
                                let _ = body.flow_control().release_capacity(part.len());
                            }
                        }
                        (body, respond)
                    }));
                }
            });
        }
    });
    address
}

/// The limit for the answer begins when the region has the whole body.
#[tokio::test]
async fn a_call_that_keeps_pace_may_send_for_longer_than_its_region_may_take_to_answer() {
    let home = taking_calls(true, true).await;
    let world = two("timeouts = { device = '5s', answer = '1s' }", home, home).await;
    let (answer, mut body) = begin_call(world.address).await;
    body.send_data(Bytes::from(vec![b'x'; 40_000]), false).unwrap();
    let mut pauses = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..16 {
        pauses.tick().await;
        body.send_data(Bytes::from(vec![b'x'; 1000]), false).unwrap();
    }
    body.send_data(Bytes::new(), true).unwrap();
    let status = hang_means_failure(calls::status(answer)).await;
    assert_eq!(status.as_deref(), Some("0"));
    assert_eq!(world.observed().get("eu-west").map(|(_, failed)| *failed), Some(0));
}

/// The side that has to act is the one that is blamed: the device while its body is awaited, else the region.
#[tokio::test]
async fn a_call_that_stops_ends_at_the_deadline_of_the_side_that_stopped() {
    let ended = async |lateness: &Lateness, timeouts: &str, reads: bool, ends: bool| {
        let home = taking_calls(reads, false).await;
        let world = lateness.of(two(timeouts, home, home).await);
        let (answer, mut body) = begin_call(world.address).await;
        body.send_data(Bytes::from(vec![b'x'; 100_000]), ends).unwrap();
        let status = hang_means_failure(calls::status(answer)).await;
        let failed = world.observed().get("eu-west").map_or(0, |(_, failed)| *failed);
        let too_slow = world.metric("meridian_edge_refused_total{reason=\"body-too-slow\"}");
        (status, failed, too_slow.unwrap_or(0.0))
    };
    let deadline_exceeded = || Some("4".to_owned());
    let (patient, hasty) = (
        "timeouts = { device = '300ms', answer = '1h' }",
        "timeouts = { device = '1h', answer = '500ms' }",
    );
    let device_stops = unless_late(async |lateness| {
        let seen = ended(lateness, patient, true, false).await;
        assert_eq!(seen, (deadline_exceeded(), 0, 1.0), "the device stops");
    });
    let region_is_silent = unless_late(async |lateness| {
        let seen = ended(lateness, hasty, true, true).await;
        assert_eq!(seen, (deadline_exceeded(), 1, 0.0), "the region does not answer");
    });
    let region_does_not_read = unless_late(async |lateness| {
        let both = "timeouts = { device = '2s', answer = '4s' }";
        let seen = ended(lateness, both, false, true).await;
        assert_eq!(seen, (deadline_exceeded(), 1, 0.0), "the region does not read");
    });
    tokio::join!(device_stops, region_is_silent, region_does_not_read);
}

#[tokio::test]
async fn a_slow_upload_that_keeps_pace_is_waited_for() {
    let (home, _) = stack(repeats).await;
    let world = two("timeouts.device = '1s'\ntimeouts.answer = '1s'", home, home).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let head =
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Length: 12000\r\nConnection: close\r\n\r\n";
    say(&mut tcp, head).await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        say(&mut tcp, &"x".repeat(1000)).await;
    }
    let (head, said) = answer(&mut tcp).await;
    assert!(head.starts_with("HTTP/1.1 200 ") && said.ends_with("xxxx"), "{head}");
}

#[tokio::test]
async fn a_body_beyond_what_is_held_is_passed_on_from_there() {
    let (home, taken) = stack(repeats).await;
    let limits = "limits.body_buffer_bytes_max = 20000\nhedge.body_bytes_max = 20000\n";
    let world = two(limits, home, home).await;
    let body: String = (0..100_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    for (asks, starts) in [
        (post("/v1/audio/speech", &body), "POST /v1/audio/speech HTTP/1.1 "),
        (
            post("/v1/audio/transcriptions", &body),
            "POST /v1/audio/transcriptions HTTP/1.1 ",
        ),
    ] {
        let answer = world.ask(&asks).await;
        let (head, said) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(said.strip_prefix(starts).unwrap(), body);
    }
    // Until then the region hears nothing.
    let before = taken.load(Ordering::SeqCst);
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    say(
        &mut tcp,
        "POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nContent-Length: 30000\r\n\r\n",
    )
    .await;
    say(&mut tcp, &body[..19_000]).await;
    assert!(
        world
            .ask("GET /nothing HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n")
            .await
            .contains(" 404 ")
    );
    assert_eq!(taken.load(Ordering::SeqCst), before);
    say(&mut tcp, &body[19_000..30_000]).await;
    let (head, said) = answer(&mut tcp).await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && said.ends_with(&body[..30_000]),
        "{head}"
    );
}

#[tokio::test]
async fn a_stack_without_room_is_not_blamed_and_the_next_one_is_asked() {
    for (status, load) in [(429, ""), (429, FULL), (503, FULL)] {
        let home = answering(status, load).await;
        let (backup, _) = stack(repeats).await;
        for asks in [
            GET.to_owned(),
            post("/v1/audio/transcriptions", "a recording"),
            post("/v1/audio/speech", "a text"),
            chunked("/v1/audio/speech", "a text"),
        ] {
            let world = two("", home, backup).await;
            let answer = world.ask(&asks).await;
            assert!(
                answer.starts_with("HTTP/1.1 200 ") && is_from(&answer, "eu-central"),
                "{status} {asks}: {answer}"
            );
            assert!(!world.observed().contains_key("eu-west"), "{status} {asks}");
        }
        // A request that cannot be repeated gets the answer of the stack.
        let world = two("", home, backup).await;
        let answer = world.ask(&post("/api/v1/voice/anything", "x")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.ends_with("no thanks"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn an_answer_of_5xx_counts_against_its_region_and_the_next_one_is_asked() {
    for status in [500, 502, 503] {
        let home = answering(status, "").await;
        let (backup, _) = stack(repeats).await;
        for asks in [
            GET.to_owned(),
            GET.replace("GET", "HEAD"),
            post("/v1/audio/transcriptions", "a recording"),
            post("/api/v1/voice/synthesize", "a text"),
            chunked("/v1/audio/speech", "a text"),
        ] {
            let world = two("", home, backup).await;
            let answer = world.ask(&asks).await;
            assert!(
                answer.starts_with("HTTP/1.1 200 ") && is_from(&answer, "eu-central"),
                "{status} {asks}: {answer}"
            );
            assert_eq!(world.observed()["eu-west"], (0, 1), "{status} {asks}");
        }
        // The request of one client may be the reason: it ejects no stack.
        let world = two("", home, backup).await;
        let asks = post("/api/v1/voice/anything", "x");
        for _ in 0..5 {
            let answer = world.ask(&asks).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
        assert_eq!(world.observed()["eu-west"], (0, 1));
        // Three clients in a row eject the stack, also with requests that the edge cannot repeat; then it gets none.
        let world = two("", home, backup).await;
        for n in 0..5 {
            let answer = ask_as_client(&world, n + 2, &asks).await;
            let expected = if n < 3 {
                format!("HTTP/1.1 {status} ")
            } else {
                "HTTP/1.1 200 ".to_owned()
            };
            assert!(answer.starts_with(&expected), "{n}: {answer}");
        }
    }
    // When all regions answer like this, the device gets that answer.
    let world = two("retry.base = '1ms'", answering(500, "").await, answering(503, "").await).await;
    for asks in [GET.to_owned(), post("/v1/audio/transcriptions", "a recording")] {
        let answer = world.ask(&asks).await;
        assert!(
            answer.starts_with("HTTP/1.1 50") && answer.ends_with("no thanks"),
            "{answer}"
        );
    }
}

/// A monitor that asks an ill region for its health must not make it look dead.
#[tokio::test]
async fn a_report_of_ill_health_is_no_failure() {
    let home = answering(503, "").await;
    let (backup, _) = stack(repeats).await;
    let world = two("", home, backup).await;
    for _ in 0..5 {
        let answer = world.ask(&GET.replace("/v1/models", "/health")).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && is_from(&answer, "eu-central"),
            "{answer}"
        );
    }
    assert!(!world.observed().contains_key("eu-west"));
}

#[tokio::test]
async fn a_region_that_dies_or_says_nothing_costs_speech_little() {
    let (frozen, _) = stack(
        async |mut tcp: TcpStream| {
            while tcp.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
        },
    )
    .await;
    let (dying, _) = stack(async |mut tcp: TcpStream| drop(request(&mut tcp).await)).await;
    let (halfway, _) = stack(async |mut tcp: TcpStream| {
        request(&mut tcp).await;
        say(&mut tcp, "HTTP/1.1 200 OK\r\nContent-Le").await;
    })
    .await;
    let (backup, _) = stack(repeats).await;
    for (bad, is_silent, failures) in [
        (frozen, true, 1),
        // Only its device could tell that it is not just slow, and the probes show that the stack lives.
        (frozen, false, 0),
        (dying, false, 1),
        (halfway, false, 1),
    ] {
        let costs_little = async |lateness: &Lateness, asks: String| {
            let world = two("timeouts.upgrade = '1s'\nhedge.budget_percent = 0", bad, backup).await;
            let world = lateness.of(world);
            let began = std::time::Instant::now();
            let (address, text) = (world.address, asks.clone());
            let asking = tokio::spawn(async move { support::ask(address, &text).await });
            if is_silent {
                let connected = "meridian_edge_connects_total{region=\"eu-west\",outcome=\"ok\"}";
                while world.metric(connected).is_none() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                // The edge takes the connection itself for a sign of life, at some moment after it is counted.
                while !asking.is_finished() {
                    world.edge.fleet.probed(&probe::Probed {
                        silent: [topology::RegionId::new("eu-west").unwrap()].into(),
                        ..probe::Probed::default()
                    });
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            let answer = asking.await.unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 200 ") && is_from(&answer, "eu-central"),
                "{asks}: {answer}"
            );
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
            let failed = world.observed().get("eu-west").map_or(0, |(_, failed)| *failed);
            assert_eq!(failed, failures, "{asks}");
        };
        let asked = [
            post("/v1/audio/speech", "a text"),
            post("/api/v1/voice/synthesize", "a text"),
            chunked("/v1/audio/speech", "a text"),
            post("/v1/audio/transcriptions", "a recording"),
        ];
        let told = asked
            .iter()
            .map(|asks| unless_late(async |lateness| costs_little(lateness, asks.clone()).await));
        join_all(told).await;
    }
}

/// Regression: four addresses that asked for a long text to be spoken ejected four healthy regions, because each region that did
/// not finish within `timeouts.answer` was blamed. A device chooses how much it asks for, and the probes were answered.
#[tokio::test]
async fn nobody_is_blamed_for_a_late_answer_while_the_probes_are_answered() {
    let frozen = async || {
        let treat = async |mut tcp: TcpStream| while tcp.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {};
        stack(treat).await.0
    };
    let (home, backup) = (frozen().await, frozen().await);
    let long_body = "x".repeat(64);
    for (changes, asks) in [
        ("", GET.to_owned()),
        ("", post("/v1/audio/speech", "a text")),
        ("", post("/api/v1/voice/synthesize", "a text")),
        ("", chunked("/v1/audio/speech", "a text")),
        ("", post("/v1/audio/transcriptions", "a recording")),
        ("", post("/api/v1/voice/anything", "x")),
        (
            "limits.body_buffer_bytes_max = 16\nhedge.body_bytes_max = 16\n",
            post("/v1/audio/speech", &long_body),
        ),
    ] {
        for answers_probes in [true, false] {
            unless_late(async |lateness| {
                let limits = "timeouts = { upgrade = '50ms', answer = '100ms' }\nretry = { retries_max = 1, base = '1ms' }\nhedge.after = '10ms'";
                let world = lateness.of(two(&format!("{changes}{limits}"), home, backup).await);
                let answering = if answers_probes {
                    [home, backup].into()
                } else {
                    [].into()
                };
                world.edge.fleet.probed(&probe::Probed {
                    answering,
                    ..probe::Probed::default()
                });
                for _ in 0..3 {
                    let answer = hang_means_failure(support::ask(world.address, &asks)).await;
                    assert!(answer.starts_with("HTTP/1.1 504 "), "{asks}: {answer}");
                }
                let observed = world.observed();
                let failed: u32 = ["eu-west", "eu-central"]
                    .iter()
                    .filter_map(|region| Some(observed.get(*region)?.1))
                    .sum();
                let blamed = |fault| {
                    let of = |region| format!("meridian_edge_faults_total{{region=\"{region}\",fault=\"{fault}\"}}");
                    ["eu-west", "eu-central"]
                        .iter()
                        .filter_map(|region| world.metric(&of(region)))
                        .sum::<f64>()
                };
                let (of_region, of_nobody) = (blamed("region"), blamed("nobody"));
                if answers_probes {
                    assert!(
                        failed == 0 && of_region == 0.0 && of_nobody >= 3.0,
                        "{asks}: {failed} {of_region} {of_nobody}"
                    );
                } else {
                    assert!(
                        failed > 0 && of_region > 0.0,
                        "{asks}: {failed} {of_region} {of_nobody}"
                    );
                }
                let now = daemon::clock::now();
                let mut stacks = [("eu-west", home), ("eu-central", backup)].into_iter();
                let is_out = stacks.any(|(name, stack)| world.edge.fleet.is_out(&support::region(name), stack, now));
                assert_eq!(is_out, !answers_probes, "{asks}");
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_region_that_is_slow_to_speak_still_answers_and_is_not_blamed() {
    let may = Arc::new(Notify::new());
    let permits = may.clone();
    let (slow, taken) = stack(move |mut tcp| {
        let permits = permits.clone();
        async move {
            while let Some((head, _)) = request(&mut tcp).await {
                if head.starts_with("POST") {
                    permits.notified().await;
                }
                say(&mut tcp, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow").await;
            }
        }
    })
    .await;
    let (frozen, asked) = stack(
        async |mut tcp: TcpStream| {
            while tcp.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
        },
    )
    .await;
    let world = two("timeouts.upgrade = '1s'", slow, frozen).await;
    let address = world.address;
    let asking = tokio::spawn(async move { support::ask(address, &post("/v1/audio/speech", "a text")).await });
    let second_is_asked = async {
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(second_is_asked).await;
    may.notify_one();
    let answer = asking.await.unwrap();
    assert!(answer.ends_with("slow") && is_from(&answer, "eu-west"), "{answer}");
    assert_eq!(world.observed()["eu-west"], (1, 0));
    assert_eq!(taken.load(Ordering::SeqCst), 1, "what it had begun it went on with");
}

#[tokio::test]
async fn retries_are_charged_when_they_are_made() {
    let (home, _) = stack(async |mut tcp: TcpStream| {
        request(&mut tcp).await;
        std::future::pending::<()>().await;
    })
    .await;
    let limits = "breaker.max_requests = 1\nlimits.client_in_flight_max = 0\n";
    let world = World::of(limits, &planned_at(&[("eu-west", home)]).await);
    let mut holds = TcpStream::connect(world.address).await.unwrap();
    say(&mut holds, &post("/api/v1/voice/anything", "x")).await;
    let connected = "meridian_edge_connects_total{region=\"eu-west\",outcome=\"ok\"}";
    hang_means_failure(async {
        while world.metric(connected) != Some(1.0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    for asks in [GET.to_owned(), chunked("/v1/audio/speech", "x")] {
        for _ in 0..40 {
            let answer = world.ask(&asks).await;
            assert!(
                answer.starts_with("HTTP/1.1 503 ") && answer.contains("overloaded"),
                "{answer}"
            );
        }
    }
    for outcome in ["granted", "budget-exhausted"] {
        let name = format!("meridian_edge_retries_total{{outcome=\"{outcome}\"}}");
        assert_eq!(world.metric(&name), None, "no retry was made, and none was wanted");
    }
}

#[tokio::test]
async fn only_nonsense_from_the_only_region_is_its_failure() {
    let (confused, _) = stack(async |mut tcp: TcpStream| {
        request(&mut tcp).await;
        say(&mut tcp, "220 mail.example ESMTP\r\n\r\n").await;
    })
    .await;
    let world = World::of("retry.retries_max = 0", &planned_at(&[("eu-west", confused)]).await);
    for asks in [
        GET.to_owned(),
        post("/v1/audio/transcriptions", "x"),
        chunked("/v1/audio/speech", "x"),
    ] {
        let answer = world.ask(&asks).await;
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && answer.contains("region_failed"),
            "{asks}: {answer}"
        );
    }
}

#[tokio::test]
async fn nobody_gets_a_change_of_protocol_that_was_not_asked_for() {
    let (switching, _) = stack(async |mut tcp: TcpStream| {
        request(&mut tcp).await;
        say(
            &mut tcp,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello",
        )
        .await;
    })
    .await;
    let servers = format!("upstream = [{{ path = '/skills/', servers = ['{switching}'] }}]\nretry.retries_max = 0\n");
    let world = World::of(&servers, &planned_at(&[("eu-west", switching)]).await);
    for asks in [
        GET.to_owned(),
        chunked("/v1/audio/speech", "x"),
        GET.replace("/v1/models", "/skills/x"),
        GET.replace("/v1/models", "/skills/x")
            .replace("Connection: close", "Connection: upgrade\r\nUpgrade: x"),
    ] {
        let answer = world.ask(&asks).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{asks}: {answer}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_gives_what_came_on_every_way() {
    let (halfway, _) = stack(async |mut tcp: TcpStream| {
        request(&mut tcp).await;
        say(&mut tcp, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nwhat came").await;
    })
    .await;
    for asks in [
        GET.to_owned(),
        chunked("/v1/audio/speech", "x"),
        post("/v1/audio/transcriptions", "x"),
    ] {
        let world = two("", halfway, halfway).await;
        let answer = world.ask(&asks).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nwhat came"),
            "{asks}: {answer}"
        );
        assert_eq!(world.observed()["eu-west"], (1, 1), "{asks}");
    }
}

#[tokio::test]
async fn a_device_that_leaves_in_the_middle_of_an_answer_takes_its_question_back() {
    let left = Arc::new(Notify::new());
    let leaves = left.clone();
    let (pausing, _) = stack(move |mut tcp| {
        let leaves = leaves.clone();
        async move {
            request(&mut tcp).await;
            say(&mut tcp, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nso far").await;
            if tcp.read(&mut [0]).await.is_ok_and(|count| count == 0) {
                leaves.notify_one();
            }
        }
    })
    .await;
    for asks in [
        GET.to_owned(),
        chunked("/v1/audio/speech", "x"),
        post("/v1/audio/transcriptions", "x"),
    ] {
        let world = two("", pausing, pausing).await;
        let mut device = TcpStream::connect(world.address).await.unwrap();
        say(&mut device, &asks).await;
        read_head(&mut device).await.unwrap();
        drop(device);
        hang_means_failure(left.notified()).await;
        // Nothing keeps the process busy.
        world.stop.cancel();
        let began = std::time::Instant::now();
        hang_means_failure(world.served).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(
            world.edge.passive().traffic.iter().map(|seen| seen.aborts).sum::<u32>(),
            0
        );
    }
}

#[tokio::test]
async fn what_is_asked_in_one_breath_is_answered_also_when_home_is_dead() {
    let dead = support::stack(Stack::Refuses).await;
    let (backup, _) = stack(repeats).await;
    let world = two("", dead, backup).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let get = "GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n";
    say(&mut tcp, &get.repeat(3)).await;
    for _ in 0..3 {
        let (head, _) = answer(&mut tcp).await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && is_from(&head, "eu-central"),
            "{head}"
        );
    }
}

/// A byte of the next request is not the end of a device.
#[tokio::test]
async fn who_asks_ahead_gets_the_answer() {
    for (path, length, more) in [
        ("/v1/audio/transcriptions", 1, ""),
        ("/v1/audio/transcriptions", 30_000, ""),
        ("/v1/audio/transcriptions", 1, "X: pauses\r\n"),
        ("/api/v1/voice/anything", 20_000, ""),
    ] {
        let may = Arc::new(Notify::new());
        let permits = may.clone();
        let (home, taken) = stack(move |mut tcp| {
            let permits = permits.clone();
            async move {
                let Some((head, _)) = request(&mut tcp).await else {
                    return;
                };
                let begun = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nri";
                if head.contains("pauses") {
                    say(&mut tcp, begun).await;
                }
                permits.notified().await;
                if !head.contains("pauses") {
                    say(&mut tcp, begun).await;
                }
                say(&mut tcp, "ght").await;
            }
        })
        .await;
        let limits = "limits.body_buffer_bytes_max = 20000\nhedge.body_bytes_max = 20000\nhedge.budget_percent = 0\n";
        let world = two(limits, home, home).await;
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: v\r\n{more}Content-Length: {length}\r\n\r\n");
        say(&mut tcp, &head).await;
        say(&mut tcp, &"x".repeat(length)).await;
        hang_means_failure(async {
            while taken.load(Ordering::SeqCst) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        say(&mut tcp, &"GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n".repeat(9)).await;
        // Meanwhile the edge has most likely seen some of it.
        let nothing = GET.replace("/v1/models", "/nothing");
        assert!(ask_as_other_client(&world, &nothing).await.contains(" 404 "));
        may.notify_one();
        let head = hang_means_failure(read_head(&mut tcp)).await;
        let head = head.unwrap_or_else(|| panic!("{path} {length} {more}: no answer"));
        assert!(head.starts_with("HTTP/1.1 200 "), "{path} {length} {more}: {head}");
        support::http::expect(&mut tcp, "right").await;
    }
}

/// The unread rest of a request cannot be told from the next request, and waiting for it would hold the connection. pingora
/// ends a connection whose body is unread when an answer begins.
#[tokio::test]
async fn an_answer_to_a_request_whose_body_is_not_read_is_the_last_on_its_connection() {
    // A region that has seen enough with the head.
    let (home, _) = stack(|mut tcp| async move {
        read_head(&mut tcp).await;
        say(&mut tcp, "HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno").await;
        drop(tcp.read_to_end(&mut Vec::new()).await);
    })
    .await;
    let limits = "limits.body_bytes_max = 20000\nlimits.body_buffer_bytes_max = 100\nhedge.body_bytes_max = 100\n\
                  cors.origins = ['https://app.example']";
    let world = two(limits, home, home).await;
    let asks_first = "Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\nExpect: 100-continue\r\n";
    for (method, path, more, length, status) in [
        ("POST", "/nothing", "", 5_000, 404),
        ("POST", "/v1/realtime", "", 5_000, 426),
        ("POST", "/v1/audio/speech", "", 30_000, 413),
        ("POST", "/v1/audio/transcriptions", "", 19_000, 401),
        ("OPTIONS", "/v1/audio/speech", asks_first, 5_000, 204),
    ] {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: v\r\n{more}Content-Length: {length}\r\n\r\n");
        // The beginning of the body comes, and then bytes that look like another request.
        say(&mut tcp, &format!("{head}{}", GET.repeat(9))).await;
        let mut said = String::new();
        let began = std::time::Instant::now();
        hang_means_failure(tcp.read_to_string(&mut said)).await.unwrap();
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {said}");
        assert!(
            said.to_lowercase().contains("\r\nconnection: close\r\n"),
            "{path}: {said}"
        );
        assert_eq!(said.matches("HTTP/1.1").count(), 1, "{path}: {said}");
        // The edge does not wait for the rest.
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{path}: {:?}",
            began.elapsed()
        );
    }
}

/// Each of them holds a place for uploads at a stack, for as long as its device likes.
#[tokio::test]
async fn one_client_has_few_long_bodies_on_their_way_and_keeps_nobody_out() {
    let (home, taken) = stack(repeats).await;
    let limits = "limits.body_buffer_bytes_max = 20000\nhedge.body_bytes_max = 20000\nlimits.client_uploads_max = 2\n";
    let world = two(limits, home, home).await;
    let head =
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Length: 30000\r\nConnection: close\r\n\r\n";
    let begin = async |n| {
        let mut tcp = client(&world, n).await;
        say(&mut tcp, head).await;
        say(&mut tcp, &"x".repeat(25_000)).await;
        tcp
    };
    let mut held = vec![begin(1).await, begin(1).await];
    hang_means_failure(async {
        while taken.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let mut third = begin(1).await;
    let (head, said) = answer(&mut third).await;
    assert!(
        head.starts_with("HTTP/1.1 429 ") && said.contains("too_many_uploads"),
        "{head}{said}"
    );
    assert!(
        world
            .ask(&post("/v1/audio/transcriptions", "short"))
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    held.push(begin(2).await);
    for mut tcp in held {
        say(&mut tcp, &"x".repeat(5_000)).await;
        let (head, _) = answer(&mut tcp).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
    let mut again = begin(1).await;
    say(&mut again, &"x".repeat(5_000)).await;
    assert!(answer(&mut again).await.0.starts_with("HTTP/1.1 200 "));
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";

#[tokio::test]
async fn a_head_that_can_be_understood_in_two_ways_is_refused_on_every_way() {
    let (home, taken) = stack(repeats).await;
    let servers = format!("upstream = [{{ path = '/skills/', servers = ['{home}'] }}]\n");
    let world = two(&servers, home, home).await;
    for (method, path, more) in [
        ("GET", "/v1/models", ""),
        ("GET", "/v1/realtime", UPGRADE),
        ("POST", "/v1/audio/speech", "Transfer-Encoding: chunked\r\n"),
        ("POST", "/v1/audio/transcriptions", "Content-Length: 1\r\n"),
        ("GET", "/skills/x", ""),
    ] {
        for bad in [
            "",
            "Host: v\r\nHost: v\r\n",
            "Host: v w\r\n",
            "Host: a, b\r\n",
            "Host:\r\n",
            "Host: user@v\r\n",
            "Host: v\r\nConnection: Host\r\n",
        ] {
            let answer = world.ask(&format!("{method} {path} HTTP/1.1\r\n{bad}{more}\r\n")).await;
            let is_told = answer.starts_with("HTTP/1.1 400 ") && answer.contains("{\"error\":");
            assert!(is_told, "{path} {bad:?}: {answer}");
        }
        for target in [
            format!("http://other{path}"),
            format!("{path}/../x"),
            format!("{path}/%2e%2E/x"),
            "*".to_owned(),
        ] {
            let answer = world
                .ask(&format!("{method} {target} HTTP/1.1\r\nHost: v\r\n{more}\r\n"))
                .await;
            let is_told = answer.starts_with("HTTP/1.1 400 ") && answer.contains("{\"error\":");
            assert!(is_told, "{target}: {answer}");
        }
    }
    let two_keys = format!("GET /v1/realtime HTTP/1.1\r\nHost: v\r\n{UPGRADE}Sec-WebSocket-Key: another\r\n\r\n");
    assert!(world.ask(&two_keys).await.starts_with("HTTP/1.1 400 "));
    // A chunk without a size is not the last one.
    for path in ["/v1/audio/speech", "/v1/audio/transcriptions"] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\n\r\n");
        let answer = world.ask(&format!("{head}\r\nhello\r\n0\r\n\r\n")).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("chunks"),
            "{answer}"
        );
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        say(&mut tcp, &format!("{head}1\r\nx\r\n")).await;
        assert!(
            world
                .ask("GET /nothing HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n")
                .await
                .contains(" 404 ")
        );
        say(&mut tcp, "\r\nhello\r\n0\r\n\r\n").await;
        let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    }
    assert_eq!(taken.load(Ordering::SeqCst), 0);
    // One that names its host twice, and means the same, is served.
    let absolute = "GET http://v/v1/models HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";
    assert!(world.ask(absolute).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_device_s_word_on_itself_and_what_is_for_one_hop_go_no_further() {
    let skills = support::stack(Stack::Http).await;
    let group = format!("upstream = [{{ path = '/skills/', servers = ['{skills}'] }}]");
    let world = World::of(&group, &planned(&[("eu-west", Stack::Http)]).await);
    let lies = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: six\r\nX-Real-IP: 6.6.6.6\r\n\
                Forwarded: for=6.6.6.6\r\nMeridian-Turns: 7\r\nMeridian-Resume: 7\r\nMeridian-Continuity: 7\r\nMeridian-Edge: seven\r\n\
                Connection: X-Hop, Authorization, close\r\nX-Hop: 8\r\nAuthorization: Bearer 8\r\nTE: trailers\r\n";
    for asks in [
        format!("GET /v1/models HTTP/1.1\r\nHost: v\r\n{lies}\r\n"),
        // To an operator's server.
        format!("GET /skills/x HTTP/1.1\r\nHost: v\r\n{lies}\r\n"),
        format!("POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\n{lies}Content-Length: 1\r\n\r\nx"),
        format!(
            "POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\n{lies}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        ),
    ] {
        let answer = world.ask(&asks).await;
        let (_, told) = answer.split_once("\r\n\r\n").unwrap();
        let told = told.to_lowercase();
        for lie in [
            "6.6.6.6", "gopher", ": six", ": 7", ": seven", ": 8", "bearer", "trailers",
        ] {
            assert!(!told.contains(lie), "{lie}: {told}");
        }
        for truth in [
            "x-forwarded-for: 127.0.0.1\r\n",
            "x-forwarded-proto: http\r\n",
            "meridian-edge: edge-dub\r\n",
        ] {
            assert!(told.contains(truth), "{truth}: {told}");
        }
    }
}

/// Answers every request with its head, as a refusal: the edge passes that on to a request and to an upgrade.
async fn tells_the_head(mut tcp: TcpStream) {
    while let Some((head, _)) = request(&mut tcp).await {
        let head = head.to_lowercase();
        let length = head.len();
        say(
            &mut tcp,
            &format!("HTTP/1.1 401 No\r\nContent-Length: {length}\r\n\r\n{head}"),
        )
        .await;
    }
}

/// A region sees the same headers of a device on each way that a request takes.
#[tokio::test]
async fn the_same_headers_reach_a_region_on_every_way() {
    const STOPS: [&str; 23] = [
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Sec-WebSocket-Extensions",
        "Meridian-Edge",
        wire::HEADER,
        wire::RESUME_HEADER,
        wire::LOAD_HEADER,
        wire::TURNS_HEADER,
        wire::SESSION_HEADER,
        wire::RESUMES_HEADER,
        wire::REVISION_HEADER,
        wire::COPY_HEADER,
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Real-IP",
        "Forwarded",
        "X-Named-By-Connection",
        "Cookie2",
        "X-Hop",
    ];
    const PASSES: [&str; 4] = ["Authorization", "Accept-Language", "Meridian-User", "X-Own"];
    let (home, _) = stack(tells_the_head).await;
    let group = format!("upstream = [{{ path = '/skills/', servers = ['{home}'] }}]\n");
    let world = two(&group, home, home).await;
    let mut lines = String::new();
    for name in STOPS {
        lines += &format!("{name}: stops-{}\r\n", name.to_lowercase());
    }
    for name in PASSES {
        lines += &format!("{name}: passes\r\n");
    }
    let named = "X-Named-By-Connection, Cookie2, X-Hop";
    let body = "x".repeat(40_000);
    let upgrade = UPGRADE.replace("Connection: Upgrade", &format!("Connection: Upgrade, {named}"));
    let closes = format!("Connection: close, {named}\r\n");
    for (way, asks) in [
        (
            "small",
            format!("GET /v1/models HTTP/1.1\r\nHost: v\r\n{lines}{closes}\r\n"),
        ),
        (
            "long",
            format!(
                "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\n{lines}{closes}Content-Length: 40000\r\n\r\n{body}"
            ),
        ),
        (
            "upgrade",
            format!("GET /v1/realtime HTTP/1.1\r\nHost: v\r\n{lines}{upgrade}\r\n"),
        ),
        (
            "server",
            format!("GET /skills/x HTTP/1.1\r\nHost: v\r\n{lines}{closes}\r\n"),
        ),
    ] {
        let answer = world.ask(&asks).await;
        let (head, told) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 401 "), "{way}: {answer}");
        assert!(!told.contains("stops-"), "{way}: {told}");
        for name in PASSES {
            let line = format!("\r\n{}: passes\r\n", name.to_lowercase());
            assert!(told.contains(&line), "{way}: {name}: {told}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_costs_its_client_too() {
    let (home, _) = stack(repeats).await;
    for asks in [
        "GET /nothing HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n",
        "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nHost: v\r\nHost: w\r\n\r\n",
        "GET /v1/models HTTP/9.9\r\nHost: v\r\n\r\n",
        "POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\n\r\n\r\nx",
        "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n\r\n",
    ] {
        let world = two("limits.client_requests_per_s = 1\nlimits.client_burst = 2", home, home).await;
        for _ in 0..2 {
            let answer = world.ask(asks).await;
            assert!(
                answer.starts_with("HTTP/1.1 4") && !answer.starts_with("HTTP/1.1 429 "),
                "{answer}"
            );
        }
        let mut answer = String::new();
        // A second between two requests allows one more.
        for _ in 0..20 {
            answer = world.ask(asks).await;
            if answer.starts_with("HTTP/1.1 429 ") {
                break;
            }
        }
        assert!(answer.starts_with("HTTP/1.1 429 "), "{asks}: {answer}");
    }
}

/// The edge must not take the unread rest of a refused body for the next request.
#[tokio::test]
async fn a_connection_ends_behind_a_body_that_nobody_read() {
    let (home, _) = stack(repeats).await;
    let world = two("limits.body_bytes_max = 1000", home, home).await;
    for (path, length) in [
        ("/nothing", 30),
        ("/v1/audio/transcriptions", 2_000),
        ("/v1/realtime", 30),
    ] {
        let hidden = "GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n";
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        say(
            &mut tcp,
            &format!("POST {path} HTTP/1.1\r\nHost: v\r\nContent-Length: {length}\r\n\r\n"),
        )
        .await;
        let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 4"), "{head}");
        say(&mut tcp, hidden).await;
        let mut rest = Vec::new();
        let _ = hang_means_failure(tcp.read_to_end(&mut rest)).await;
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1 200"), "{path}");
    }
}

/// Otherwise the next device on that connection gets the answer to another device's question.
#[tokio::test]
async fn a_connection_with_something_left_over_is_not_used_again() {
    let (home, taken) = stack(async |mut tcp: TcpStream| {
        while request(&mut tcp).await.is_some() {
            let forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
            say(
                &mut tcp,
                &format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright{forged}"),
            )
            .await;
        }
    })
    .await;
    let world = two("", home, home).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    for n in 1..=3 {
        say(&mut tcp, "GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n").await;
        assert_eq!(answer(&mut tcp).await.1, "right");
        assert_eq!(taken.load(Ordering::SeqCst), n);
    }
    for n in 4..=6 {
        let recording = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Length: 1\r\n\r\nx";
        say(&mut tcp, recording).await;
        let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        support::http::expect(&mut tcp, "right").await;
        assert_eq!(taken.load(Ordering::SeqCst), n);
    }
}

/// Otherwise the edge takes the next bytes for a body, and the connection is out of step for good.
#[tokio::test]
async fn an_answer_without_content_has_no_body_whatever_it_says() {
    let (home, _) = stack(async |mut tcp: TcpStream| {
        while request(&mut tcp).await.is_some() {
            say(&mut tcp, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n").await;
        }
    })
    .await;
    let world = two("", home, home).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    for _ in 0..3 {
        for asks in [
            "GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n",
            "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Length: 1\r\n\r\nx",
        ] {
            say(&mut tcp, asks).await;
            let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
        }
    }
}

#[tokio::test]
async fn a_region_does_not_say_where_an_answer_is_from() {
    let forged = "Meridian-Region: forged\r\nMeridian-Affinity: forged\r\nMeridian-Edge: forged\r\n";
    let home = answering(200, forged).await;
    let world = two("", home, home).await;
    for asks in [
        GET.to_owned(),
        post("/v1/audio/transcriptions", "x"),
        chunked("/v1/audio/speech", "x"),
    ] {
        let answer = world.ask(&asks).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && is_from(&answer, "eu-west"),
            "{answer}"
        );
        assert!(!answer.contains("forged"), "{answer}");
    }
}

#[tokio::test]
async fn a_preface_that_does_not_end_is_not_waited_for() {
    let (home, _) = stack(repeats).await;
    let world = two("timeouts.header = '200ms'", home, home).await;
    for part in ["PRI * HTTP/2.0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        say(&mut tcp, part).await;
        let _ = hang_means_failure(tcp.read_to_end(&mut Vec::new())).await;
    }
    assert_eq!(
        world.metric("meridian_edge_refused_total{reason=\"header-too-slow\"}"),
        Some(2.0)
    );
}

#[tokio::test]
async fn what_is_sent_ahead_is_read_up_to_a_bound_on_every_way() {
    let chunked = "POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    for asks in ["GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n", chunked] {
        let (asked, may) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tells, permits) = (asked.clone(), may.clone());
        let (home, _) = stack(move |mut tcp| {
            let (tells, permits) = (tells.clone(), permits.clone());
            async move {
                request(&mut tcp).await;
                tells.notify_one();
                permits.notified().await;
                say(&mut tcp, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
            }
        })
        .await;
        let world = two("timeouts.upgrade = '10m'", home, home).await;
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        say(&mut tcp, asks).await;
        hang_means_failure(asked.notified()).await;
        // More than both kernels hold: at some point the peer takes no more.
        let (part, mut taken) = (vec![b'x'; 64 << 10], 0);
        while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), tcp.write(&part)).await {
            taken += written.unwrap();
            assert!(
                taken < 256 << 20,
                "it takes all that is sent ahead of an answer: {asks}"
            );
        }
        may.notify_one();
        let (head, _) = answer(&mut tcp).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
}
