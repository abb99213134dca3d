//! The id of a request or session: the same at the device, in the region and in every line of this edge's log. In a process of
//! its own, whose log it reads.

use std::net::SocketAddr;

use crate::support::{Fate, Stack, World, alone::done_in_own_process, hang_means_failure, log::Log, open};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

fn id_of(answer: &str) -> String {
    let head = answer.split("\r\n\r\n").next().unwrap().to_lowercase();
    let ids: Vec<&str> = head
        .lines()
        .filter_map(|line| line.strip_prefix("x-request-id: "))
        .collect();
    assert_eq!(ids.len(), 1, "{answer}");
    ids[0].to_owned()
}

async fn http2_id(address: SocketAddr, path: &str, kind: &str, id: &str) -> String {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut sender = hang_means_failure(sender.ready()).await.unwrap();
    let asks = http::Request::post(format!("http://v{path}"))
        .header("x-request-id", id)
        .header("content-type", kind);
    let (answer, _) = sender.send_request(asks.body(()).unwrap(), true).unwrap();
    let head = hang_means_failure(answer).await.unwrap();
    let ids: Vec<_> = head.headers().get_all("x-request-id").iter().collect();
    assert_eq!(ids.len(), 1, "{head:?}");
    ids[0].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_request_and_a_session_have_one_id_everywhere() {
    if done_in_own_process("request_ids::a_request_and_a_session_have_one_id_everywhere") {
        return;
    }
    let log = Log::begin();
    let world = World::new(&[("eu-west", Stack::Http), ("eu-central", Stack::Http)]).await;
    let requests = |line: &str, more: &str| format!("{line} HTTP/1.1\r\nHost: v\r\nConnection: close\r\n{more}");
    let asks = [
        ("small", requests("GET /v1/models", ""), "\r\n", 200),
        (
            "chunked",
            requests("POST /v1/audio/speech", ""),
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            200,
        ),
        (
            "hedged",
            requests("POST /v1/audio/transcriptions", ""),
            "Content-Length: 0\r\n\r\n",
            200,
        ),
        ("missing", requests("GET /nothing", ""), "\r\n", 404),
        ("no-upgrade", requests("GET /v1/realtime", ""), "\r\n", 426),
        ("two-hosts", requests("GET /v1/models", "Host: w\r\n"), "\r\n", 400),
        (
            "too-large",
            requests("POST /v1/audio/speech", ""),
            "Content-Length: 99999999999\r\n\r\n",
            413,
        ),
        (
            "bad-upgrade",
            requests("GET /v1/realtime", "").replace("close", "Upgrade"),
            "Upgrade: websocket\r\nSec-WebSocket-Version: 8\r\n\r\n",
            426,
        ),
    ];
    for (id, head, rest, status) in &asks {
        let said = world.ask(&format!("{head}X-Request-Id: {id}\r\n{rest}")).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{id}: {said}");
        assert_eq!(id_of(&said), *id);
        if *status == 200 {
            assert!(
                said.to_lowercase().contains(&format!("\r\nx-request-id: {id}\r\n")),
                "the region: {said}"
            );
            assert_eq!(said.to_lowercase().matches("x-request-id").count(), 2, "{said}");
        }
        // Those that cannot be read are no requests yet.
        assert!(!log.of(id).is_empty(), "{id}: {:#?}", log.lines());
        // Without one, or with one that is none, it gets one of its own.
        for given in ["", "X-Request-Id: a b\r\n", "X-Request-Id: \r\n"] {
            let given = id_of(&world.ask(&format!("{head}{given}{rest}")).await);
            assert!(given.starts_with("req_") && given.len() == 36, "{given}");
            assert!(!log.of(&given).is_empty(), "{id} {given}");
        }
    }
    let nonsense = id_of(&world.ask("nonsense\r\n\r\n").await);
    assert_eq!(log.of(&nonsense), ["refused"]);
    for (path, kind, id) in [
        ("/v1/audio/speech", "text/plain", "two"),
        ("/nothing", "text/plain", "two-missing"),
        ("/some.other.Service/Call", "application/grpc", "two-grpc"),
    ] {
        assert_eq!(http2_id(world.address, path, kind, id).await, id);
        assert!(!log.of(id).is_empty(), "{id}");
    }

    // A session that is refused, one that goes on elsewhere, and requests that fail.
    let nowhere = World::with("retry.retries_max = 0", &[]).await;
    let refused = open(nowhere.address, &[("x-request-id", "nowhere")])
        .await
        .err()
        .unwrap();
    assert_eq!(refused.headers()["x-request-id"], "nowhere");
    let said = log.of("nowhere");
    for message in [
        "a stack did not take a session",
        "no region took the session",
        "refused",
    ] {
        assert!(said.iter().any(|it| it.starts_with(message)), "{message}: {said:?}");
    }
    let failed = "GET /v1/models HTTP/1.1\r\nHost: v\r\nConnection: close\r\nX-Request-Id: failed\r\n\r\n";
    assert!(nowhere.ask(failed).await.starts_with("HTTP/1.1 503 "));
    let said = log.of("failed");
    for message in ["a region failed a request", "request failed"] {
        assert!(said.contains(&message.to_owned()), "{message}: {said:?}");
    }
    let declining = World::new(&[("eu-west", Stack::Answers(401))]).await;
    let refused = open(declining.address, &[("x-request-id", "declined")])
        .await
        .err()
        .unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["x-request-id"]),
        (401, &"declined".parse().unwrap())
    );
    let moving = [
        ("eu-west", Stack::Talks(Fate::DiesAfterMessages(1))),
        ("eu-central", Stack::Talks(Fate::Lives)),
    ];
    let moving = World::new(&moving).await;
    let mut session = moving.open(&[("x-request-id", "moves")]).await;
    assert_eq!(session.header("x-request-id"), "moves");
    for word in ["a", "."] {
        session.say(word).await;
    }
    while session.hear().await != Message::text("done") {}
    session.leave().await;
    let ended = async {
        while !log.of("moves").contains(&"session ended".to_owned()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    hang_means_failure(ended).await;
    assert!(
        log.of("moves").contains(&"session goes on elsewhere".to_owned()),
        "{:?}",
        log.of("moves")
    );

    // No line about a request or session lacks its id.
    let of_nobody = [
        "draining",
        "a stack failed too often",
        "the memory pressure changed",
        "affinity token ignored",
        "the device left before it got the reason",
        "the device did not read why its session ends",
        "no handshake",
    ];
    for line in log.lines() {
        let message = line["message"].as_str().unwrap();
        assert!(
            line["request_id"].is_string() || of_nobody.iter().any(|known| message.starts_with(known)),
            "a line without an id: {line}"
        );
    }
}
