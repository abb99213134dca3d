//! Stories of devices that speak HTTP/2, with and without gRPC.

use std::{net::SocketAddr, time::Duration};

use crate::support::{self, Stack, World, hang_means_failure, planned_at};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

type Connection = JoinHandle<Result<(), h2::Error>>;

/// Plaintext, with prior knowledge.
async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, Connection) {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// Status and headers, body, trailers.
type Answered = (Response<()>, Vec<u8>, Option<HeaderMap>);

async fn ask(sender: &mut SendRequest<Bytes>, request: Request<()>, body: &str) -> Result<Answered, h2::Error> {
    let mut ready = hang_means_failure(sender.clone().ready()).await?;
    let (answer, mut stream) = ready.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true)?;
    }
    let (head, mut incoming) = hang_means_failure(answer).await?.into_parts();
    let mut heard = Vec::new();
    while let Some(bytes) = hang_means_failure(incoming.data()).await {
        let bytes = bytes?;
        incoming.flow_control().release_capacity(bytes.len())?;
        heard.extend_from_slice(&bytes);
    }
    let trailers = hang_means_failure(incoming.trailers()).await?;
    Ok((Response::from_parts(head, ()), heard, trailers))
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://voice.test{path}")).body(()).unwrap()
}

fn post(path: &str, length: usize) -> Request<()> {
    let request = Request::post(format!("http://voice.test{path}"));
    request.header("content-length", length).body(()).unwrap()
}

fn call(path: &str) -> Request<()> {
    let request = Request::post(format!("http://voice.test{path}"));
    let request = request
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    request.body(()).unwrap()
}

const TRANSCRIBE: &str = "/meridian.voice.v1.Voice/Transcribe";

#[tokio::test]
async fn every_path_is_served_over_http2_too() {
    let world = World::new(&[("eu-west", Stack::Http)]).await;
    let (mut sender, _connection) = connect(world.address).await;
    for path in ["/v1/models", "/health", "/api/v1/voice/anything"] {
        let (head, body, _) = ask(&mut sender, get(path), "").await.unwrap();
        assert_eq!(
            (head.status().as_u16(), &head.headers()["meridian-region"]),
            (200, &"eu-west".parse().unwrap())
        );
        let told = String::from_utf8(body).unwrap().to_lowercase();
        assert!(
            told.contains("host: voice.test") && told.contains("x-forwarded-for: 127.0.0.1"),
            "{told}"
        );
    }
    // Streamed by pingora, and hedged by us.
    for path in [
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/api/v1/voice/transcribe",
    ] {
        let (head, body, _) = ask(&mut sender, post(path, 5), "hello").await.unwrap();
        assert_eq!(head.status(), 200);
        let told = String::from_utf8(body).unwrap();
        assert!(
            told.ends_with("hello") && told.to_lowercase().contains("host: voice.test"),
            "{told}"
        );
    }
    let (head, body, _) = ask(&mut sender, get("/v1/realtime"), "").await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers().get("upgrade")), (426, None));
    assert!(String::from_utf8(body).unwrap().contains("wss://"));
    let (head, _, _) = ask(&mut sender, get("/nothing"), "").await.unwrap();
    assert_eq!(head.status(), 404);
    // Sessions have connections of their own, in HTTP/1.1.
    assert!(
        world
            .ask("GET /health HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n")
            .await
            .contains(" 200 ")
    );
}

/// As on HTTP/1.1: what two hops understand differently is two requests. These never become a request of the edge: pingora (0.9)
/// answers them where it makes one of a stream, before anything of ours is asked. So they have no words and no id.
#[tokio::test]
async fn a_request_names_one_host_and_a_real_one() {
    let world = World::new(&[("eu-west", Stack::Http)]).await;
    let (mut sender, _connection) = connect(world.address).await;
    for (authority, hosts, status) in [
        ("voice.test", &["voice.test", "voice.test"][..], 400),
        ("voice.test", &["other.test"], 400),
        ("voice.test", &["a, b"], 400),
        ("user@voice.test", &[], 400),
        ("voice.test", &["voice.test"], 200),
        ("[::1]:80", &[], 200),
    ] {
        for path in ["/v1/models", "/v1/audio/transcriptions", "/nothing"] {
            let mut request = Request::get(format!("http://{authority}{path}"));
            for host in hosts {
                request = request.header("host", *host);
            }
            let (head, body, _) = ask(&mut sender, request.body(()).unwrap(), "").await.unwrap();
            let expected = if status == 200 && path == "/nothing" {
                404
            } else {
                status
            };
            let body = String::from_utf8(body).unwrap();
            assert_eq!(head.status().as_u16(), expected, "{authority} {hosts:?} {path}: {body}");
            let hosts = body.to_lowercase().matches("\r\nhost: ").count();
            assert_eq!(hosts, usize::from(expected == 200), "{body}");
        }
    }
}

#[tokio::test]
async fn a_connection_has_its_bounds() {
    let world = World::with("timeouts.keep_alive = '1s'", &[("eu-west", Stack::Http)]).await;
    let (mut sender, connection) = connect(world.address).await;
    ask(&mut sender, get("/health"), "").await.unwrap();
    assert_eq!(sender.current_max_send_streams(), 100);
    let large = Request::get("http://voice.test/health")
        .header("x", "x".repeat(20_000))
        .body(())
        .unwrap();
    match ask(&mut sender, large, "").await {
        Ok((head, _, _)) => assert_eq!(head.status(), 431),
        Err(error) => assert!(error.is_remote() || error.is_reset(), "{error}"),
    }
    // The edge ends idle connections in order.
    hang_means_failure(connection).await.unwrap().unwrap();
}

#[tokio::test]
async fn half_a_preface_and_a_wrong_one_end_like_a_slow_or_broken_head() {
    let world = World::with("timeouts.header = '1s'", &[("eu-west", Stack::Http)]).await;
    assert!(world.ask("PRI * HT").await.starts_with("HTTP/1.1 408 "));
    assert!(world.ask("PRI * HTTP/9.9\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    let garbage = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\u{1}\u{2}\u{3}garbage garbage garbage";
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(garbage.as_bytes()).await.unwrap();
    let _ = hang_means_failure(tcp.read_to_end(&mut Vec::new())).await;
    let (mut sender, _connection) = connect(world.address).await;
    assert_eq!(ask(&mut sender, get("/health"), "").await.unwrap().0.status(), 200);
}

/// A gRPC server of few words: every call is answered with its own message and a status in the trailers.
async fn grpc_stack(status: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        assert_eq!(request.headers()["te"], "trailers");
                        let mut said = Vec::new();
                        let mut body = request.into_body();
                        while let Some(Ok(bytes)) = body.data().await {
                            let _ = body.flow_control().release_capacity(bytes.len());
                            said.extend_from_slice(&bytes);
                        }
                        let head = Response::builder()
                            .header("content-type", "application/grpc")
                            .body(())
                            .unwrap();
                        let mut stream = respond.send_response(head, false).unwrap();
                        stream.send_data(said.into(), false).unwrap();
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", status.parse().unwrap());
                        stream.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

fn status(headers: &HeaderMap) -> &str {
    headers.get("grpc-status").map_or("", |status| status.to_str().unwrap())
}

#[tokio::test]
async fn calls_reach_a_region_and_their_trailers_come_back() {
    let world = World::of("", &planned_at(&[("eu-west", grpc_stack("7").await)]).await);
    let (mut sender, _connection) = connect(world.address).await;
    let asked: Vec<_> = (0..50)
        .map(|n| {
            let mut sender = sender.clone();
            tokio::spawn(async move { ask(&mut sender, call(TRANSCRIBE), &format!("message {n}")).await })
        })
        .collect();
    for (n, answer) in asked.into_iter().enumerate() {
        let (head, body, trailers) = answer.await.unwrap().unwrap();
        assert_eq!(
            (head.status().as_u16(), &head.headers()["meridian-region"]),
            (200, &"eu-west".parse().unwrap())
        );
        assert_eq!(body, format!("message {n}").as_bytes());
        assert_eq!(status(&trailers.unwrap()), "7");
    }
    // The edge refuses a call like a server of gRPC.
    let (head, _, _) = ask(&mut sender, call("/some.other.Service/Call"), "x").await.unwrap();
    assert_eq!((head.status().as_u16(), status(head.headers())), (200, "12"));
    // And not over HTTP/1.1, which has no place for the status.
    let refused = world
        .ask(&format!("POST {TRANSCRIBE} HTTP/1.1\r\nHost: v\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
        .await;
    assert!(
        refused.starts_with("HTTP/1.1 400 ") && refused.contains("HTTP/2"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_call_goes_to_the_next_region_when_one_is_down_and_is_unavailable_when_all_are() {
    let world = World::of("", &planned_at(&[("us-west", grpc_stack("0").await)]).await);
    let (mut sender, _connection) = connect(world.address).await;
    let (head, _, trailers) = ask(&mut sender, call(TRANSCRIBE), "hello").await.unwrap();
    assert_eq!(head.headers()["meridian-region"], "us-west");
    assert_eq!(status(&trailers.unwrap()), "0");

    let nowhere = World::with("retry.base = '1ms'", &[]).await;
    let (mut sender, _connection) = connect(nowhere.address).await;
    let (head, _, _) = ask(&mut sender, call(TRANSCRIBE), "hello").await.unwrap();
    assert_eq!((head.status().as_u16(), status(head.headers())), (200, "14"));
    assert!(head.headers()["grpc-message"].to_str().unwrap().contains("no region"));
    let (head, body, _) = ask(&mut sender, get("/v1/models"), "").await.unwrap();
    assert_eq!(head.status(), 503);
    assert!(head.headers().contains_key("retry-after"), "{head:?}");
    assert!(String::from_utf8(body).unwrap().contains("no_region"));
}

#[tokio::test]
async fn a_call_that_a_region_did_not_look_at_goes_to_the_next() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stacks = [
        ("eu-west", listener.local_addr().unwrap()),
        ("eu-central", grpc_stack("0").await),
    ];
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
        }
    });
    let world = World::of("", &planned_at(&stacks).await);
    let (mut sender, _connection) = connect(world.address).await;
    let (head, body, _) = ask(&mut sender, call(TRANSCRIBE), "hello").await.unwrap();
    assert_eq!(
        (&head.headers()["meridian-region"], &body[..]),
        (&"eu-central".parse().unwrap(), &b"hello"[..])
    );
    let blamed = world.observed().get("eu-west").map(|(_, failed)| *failed);
    assert_eq!(blamed.unwrap_or(0), 0, "it works, and says no");
}

#[tokio::test]
async fn a_device_that_vanished_does_not_keep_a_stopping_edge() {
    let world = World::new(&[("eu-west", Stack::Http)]).await;
    let (mut sender, connection) = connect(world.address).await;
    ask(&mut sender, get("/health"), "").await.unwrap();
    // Its socket is open, and no process reads it any more.
    connection.abort();
    let mut mute = TcpStream::connect(world.address).await.unwrap();
    mute.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut settings = [0; 9];
    hang_means_failure(mute.read_exact(&mut settings)).await.unwrap();
    let began = std::time::Instant::now();
    world.stop.cancel();
    hang_means_failure(world.served).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stopping_edge_finishes_its_streams_and_says_goodbye() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::of("", &planned_at(&[("eu-west", listener.local_addr().unwrap())]).await);
    let (sender, connection) = connect(world.address).await;
    let asking = tokio::spawn({
        let mut sender = sender.clone();
        async move { ask(&mut sender, get("/v1/models"), "").await }
    });
    let (mut region, _) = hang_means_failure(listener.accept()).await.unwrap();
    support::read_head(&mut region).await.unwrap();
    world.stop.cancel();
    hang_means_failure(world.edge.sessions.draining()).await;
    let long = "x".repeat(1 << 20);
    region
        .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{long}", long.len()).as_bytes())
        .await
        .unwrap();
    let (head, body, _) = asking.await.unwrap().unwrap();
    assert_eq!(
        (head.status().as_u16(), body.len()),
        (200, long.len()),
        "to its last byte"
    );
    hang_means_failure(connection).await.unwrap().unwrap();
    let began = std::time::Instant::now();
    hang_means_failure(world.served).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// Devices acknowledge pings, and say goodbye themselves. Closed over such bytes, the kernel resets the connection, and the device
/// reads an error in place of the end of its answer.
#[tokio::test]
async fn a_stopping_edge_hears_the_last_words_of_a_device() {
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let world = World::with("timeouts.close = '10s'", &[("eu-west", Stack::Http)]).await;
    let mut device = TcpStream::connect(world.address).await.unwrap();
    device
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut head = [0; 9];
    hang_means_failure(device.read_exact(&mut head)).await.unwrap();
    world.stop.cancel();
    loop {
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        hang_means_failure(device.read_exact(&mut payload)).await.unwrap();
        if (head[3], head[4]) == (PING, 0) {
            head[4] = ACK;
            device.write_all(&[&head[..], &payload].concat()).await.unwrap();
        }
        if hang_means_failure(device.read(&mut head[..1])).await.unwrap() == 0 {
            break;
        }
        hang_means_failure(device.read_exact(&mut head[1..])).await.unwrap();
    }
    // The edge has shut its side down. It reads on until the device closes too, or until `timeouts.close`.
    let mut served = world.served;
    let ended = tokio::time::timeout(Duration::from_millis(500), &mut served).await;
    assert!(ended.is_err(), "the edge closed over what the device may still send");
    for _ in 0..3 {
        device.write_all(b"\0\0\x08\x06\0\0\0\0\0lastword").await.unwrap();
    }
    drop(device);
    let began = std::time::Instant::now();
    hang_means_failure(served).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
