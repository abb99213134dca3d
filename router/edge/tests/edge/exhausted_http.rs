//! An edge that runs out of open files: in a process of its own, whose limit it lowers.

use std::{fs::File, time::Duration};

use crate::support::{
    World,
    alone::done_in_own_process,
    hang_means_failure,
    http::{answer, repeats, say, stack},
    planned_at,
};
use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

/// Opens files until there is no room for another, also after connections that were about to end have ended.
async fn fill(files: &mut Vec<File>) {
    let mut quiet = 0;
    while quiet < 5 {
        let before = files.len();
        files.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
        quiet = if files.len() == before { quiet + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The edge itself serves the device, so it accepted the connection.
const NOTHING: &str = "GET /nothing HTTP/1.1\r\nHost: v\r\n\r\n";

#[tokio::test]
async fn an_edge_without_descriptors_says_so_and_blames_no_region() {
    if done_in_own_process("exhausted_http::an_edge_without_descriptors_says_so_and_blames_no_region") {
        return;
    }
    let (home, _) = stack(repeats).await;
    let (backup, _) = stack(repeats).await;
    let world = World::of("", &planned_at(&[("eu-west", home), ("eu-central", backup)]).await);
    let asks = [
        "GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n",
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: v\r\nContent-Length: 1\r\n\r\nx",
        "POST /v1/audio/speech HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ];
    let mut devices = Vec::new();
    for _ in asks {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        say(&mut tcp, NOTHING).await;
        assert!(answer(&mut tcp).await.0.starts_with("HTTP/1.1 404 "));
        devices.push(tcp);
    }
    let tcp = TcpStream::connect(world.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut sender = hang_means_failure(sender.ready()).await.unwrap();
    let nothing = http::Request::get("http://v/nothing").body(()).unwrap();
    let (nothing, _) = sender.send_request(nothing, true).unwrap();
    assert_eq!(hang_means_failure(nothing).await.unwrap().status(), 404);

    let before = getrlimit(Resource::Nofile);
    let current = Some(before.current.unwrap_or(256).min(256));
    setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
    let mut files = Vec::new();
    let is_calm = async || {
        while world.edge.admission.is_exhausted() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut answers = Vec::new();
    for (device, asks) in devices.iter_mut().zip(asks) {
        // The edge sees for itself each time that it has run out.
        hang_means_failure(is_calm()).await;
        fill(&mut files).await;
        say(device, asks).await;
        answers.push(answer(device).await);
    }
    hang_means_failure(is_calm()).await;
    fill(&mut files).await;
    let call =
        http::Request::post("http://v/meridian.voice.v1.Voice/Transcribe").header("content-type", "application/grpc");
    let mut sender = hang_means_failure(sender.ready()).await.unwrap();
    let (called, mut body) = sender.send_request(call.body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from_static(b"x"), true).unwrap();
    let called = hang_means_failure(called).await.unwrap();
    assert!(world.edge.admission.is_exhausted());
    drop(files);
    setrlimit(Resource::Nofile, before).unwrap();

    for (head, said) in answers {
        assert!(
            head.starts_with("HTTP/1.1 503 ") && said.contains("edge_full"),
            "{head}{said}"
        );
    }
    assert_eq!(called.headers()["grpc-status"], "14");
    assert!(
        called.headers()["grpc-message"].to_str().unwrap().contains("this edge"),
        "{called:?}"
    );
    let observed = world.observed();
    assert!(observed.values().all(|(_, failed)| *failed == 0), "{observed:?}");
    // As soon as there is room, the regions serve, and none was ejected.
    let served = async {
        loop {
            let answer = world
                .ask("GET /v1/models HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n")
                .await;
            if answer.starts_with("HTTP/1.1 200 ") {
                return answer;
            }
            assert!(answer.contains("edge_full"), "{answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let answer = hang_means_failure(served).await;
    assert!(answer.contains("Meridian-Region: eu-west"), "{answer}");
}
