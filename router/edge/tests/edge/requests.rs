//! Stories of HTTP requests through a real edge.

use std::time::Duration;

use crate::support::{self, Stack, World, hang_means_failure, read_head};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_request_takes_the_way_of_a_session() {
    let world = World::new(&[("eu-west", Stack::Http)]).await;
    for path in [
        "/v1/models",
        "/v1/models/whisper-1",
        "/health",
        "/api/v1/voice/transcribe",
        "/v1/audio/speech",
    ] {
        let answer = world.ask(&get(path)).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains("meridian-region: eu-west") || answer.contains("Meridian-Region: eu-west"),
            "{answer}"
        );
        assert!(answer.contains(&format!("GET {path} HTTP/1.1")), "{answer}");
        assert!(answer.to_lowercase().contains("x-forwarded-for: 127.0.0.1"), "{answer}");
    }
}

#[tokio::test]
async fn a_region_that_is_down_is_passed_over_before_anything_was_sent() {
    let world = World::new(&[("us-west", Stack::Http)]).await;
    let answer = world
        .ask("POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.to_lowercase().contains("meridian-region: us-west"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    let observed = world.observed();
    assert_eq!(
        (observed["eu-west"], observed["eu-central"], observed["us-west"]),
        ((0, 1), (0, 1), (1, 0))
    );
}

#[tokio::test]
async fn when_every_region_is_down_the_device_is_told_when_to_come_back() {
    let world = World::new(&[]).await;
    let answer = world.ask(&get("/v1/models")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.to_lowercase().contains("retry-after: ") && answer.contains("no_region"),
        "{answer}"
    );
}

#[tokio::test]
async fn requests_and_then_a_session_share_a_connection() {
    let world = World::new(&[("eu-west", Stack::Http), ("eu-central", Stack::Eager)]).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    for n in 0..3 {
        let request = format!("POST /v1/audio/speech?n={n} HTTP/1.1\r\nHost: v\r\nContent-Length: 2\r\n\r\nhi");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let head = hang_means_failure(read_head(&mut tcp))
            .await
            .expect("the connection is kept");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: ").map(str::to_owned))
            .unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        hang_means_failure(tcp.read_exact(&mut body)).await.unwrap();
        assert!(String::from_utf8(body).unwrap().contains(&format!("n={n} ")));
    }
    let token = world
        .edge
        .config
        .affinity_key
        .0
        .issue(&support::region("eu-central"), daemon::clock::now());
    let upgrade = format!(
        "GET /v1/realtime?affinity={token} HTTP/1.1\r\nHost: v\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    tcp.write_all(upgrade.as_bytes()).await.unwrap();
    let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("Meridian-Region: eu-central"),
        "{head}"
    );
    tcp.write_all(&[0x82, 0x81, 0, 0, 0, 0, b'!']).await.unwrap();
    let mut echo = [0; 3];
    hang_means_failure(tcp.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, &[0x82, 1, b'!']);
}

#[tokio::test]
async fn what_is_not_there_is_answered_with_what_is() {
    let world = World::new(&[("eu-west", Stack::Http)]).await;
    let answer = world.ask(&get("/v1/chat/completions")).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(
        answer.contains("/v1/chat/completions") && answer.contains("/v1/realtime"),
        "{answer}"
    );
    let answer = world.ask(&get("/v1/realtime")).await;
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    let answer = world.ask("hello?\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_header_that_trickles_in_or_never_ends_is_refused() {
    let world = World::with("timeouts.header = '1s'", &[("eu-west", Stack::Http)]).await;
    let answer = world.ask("GET /v1/models HTTP/1.1\r\nHost: v\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let long = format!("GET /v1/models HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    let answer = world.ask(&long).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let silent = hang_means_failure(world.ask("")).await;
    assert_eq!(silent, "", "who says nothing is told nothing");
}

#[tokio::test]
async fn an_edge_that_is_full_says_so() {
    let world = World::with("limits.connections_max = 1", &[("eu-west", Stack::Echoes)]).await;
    let _anna = world.open(&[]).await;
    let answer = world.ask("").await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("edge_full"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_request_in_flight_is_finished_before_the_edge_stops() {
    let world = World::new(&[("eu-west", Stack::Http)]).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(
        b"POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\nhello",
    )
    .await
    .unwrap();
    let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 100 "), "{head}");
    world.stop.cancel();
    hang_means_failure(world.edge.sessions.draining()).await;
    tcp.write_all(b"world").await.unwrap();
    let head = hang_means_failure(read_head(&mut tcp)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let began = std::time::Instant::now();
    hang_means_failure(world.served).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
