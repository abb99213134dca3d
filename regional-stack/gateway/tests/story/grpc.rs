//! The gRPC interface, directly and through an edge.

use std::{net::SocketAddr, path::Path, process::Stdio};

use gateway::voice::{SynthesizeRequest, TranscribeRequest, voice_client::VoiceClient};
use serde_json::{Value, json};
use speech::{
    SAMPLE_RATE, pcm,
    scripted::{sound_of, text_in},
    wav,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tonic::{Code, transport::Channel};

use crate::{
    edges::Edge,
    region::{HANGS_AFTER, Region},
};

async fn client(address: SocketAddr) -> VoiceClient<Channel> {
    VoiceClient::connect(format!("http://{address}")).await.unwrap()
}

fn recording(text: &str) -> TranscribeRequest {
    let wav = wav::encode(&sound_of(text), SAMPLE_RATE).into();
    TranscribeRequest { wav }
}

/// All calls of the interface, with and without an edge in between.
async fn check_calls(client: &mut VoiceClient<Channel>) {
    let heard = client.transcribe(recording("turn on the light")).await.unwrap();
    let heard = heard.into_inner();
    assert_eq!(
        (heard.text.as_str(), heard.region.as_str()),
        ("turn on the light", "eu-west")
    );
    assert_eq!(heard.segments.len(), 1);
    assert!(heard.confidence > 0.5 && heard.duration_s > 0.1, "{heard:?}");

    let text = "It is noon. The light is on.".to_owned();
    let mut spoken = client
        .synthesize(SynthesizeRequest { text, speed: None })
        .await
        .unwrap()
        .into_inner();
    let mut sentences = Vec::new();
    while let Some(audio) = spoken.message().await.unwrap() {
        assert_eq!(audio.sample_rate, SAMPLE_RATE);
        sentences.push(text_in(&pcm::from_s16le(&audio.pcm)));
    }
    assert_eq!(sentences.len(), 2, "{sentences:?}");
    assert!(
        spoken.trailers().await.unwrap().is_some(),
        "the status came behind the sound"
    );

    let wav = b"no sound at all".as_slice().into();
    let refused = client.transcribe(TranscribeRequest { wav }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let (text, speed) = ("hello".to_owned(), Some(9.0));
    let refused = client.synthesize(SynthesizeRequest { text, speed }).await.unwrap_err();
    assert!(refused.message().contains("speed"), "{refused}");
}

#[tokio::test]
async fn calls_are_answered_and_bad_ones_are_told_why() {
    let region = Region::start_with(crate::region::engines(), |limits| limits.body_bytes_max = 1 << 20).await;
    let mut client = client(region.http).await;
    check_calls(&mut client).await;
    let wav = vec![0; 2 << 20].into();
    let refused = client.transcribe(TranscribeRequest { wav }).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    // The same port speaks HTTP/1.1.
    assert_eq!(reqwest::get(region.url("/health")).await.unwrap().status(), 200);
    drop(client);
    region.begin_stop();
    region.stopped().await;
}

/// The packages of gRPC for Python know nothing of Meridian but its address.
#[tokio::test]
async fn the_grpc_packages_find_the_services_by_reflection_and_watch_their_health() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "the clients are not installed; run tools/setup test");
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("light.wav");
    std::fs::write(&file, wav::encode(&sound_of("turn on the light"), SAMPLE_RATE)).unwrap();
    let region = Region::start().await;
    let mut driver = tokio::process::Command::new(python)
        .arg(root.join("tools/grpc-client/drive.py"))
        .arg(region.http.to_string())
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the driver starts");
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let next = lines.next_line();
    let line = tokio::time::timeout(HANGS_AFTER, next)
        .await
        .expect("the driver goes on");
    assert_eq!(line.unwrap().as_deref(), Some("watching"), "the driver says above why");
    region.begin_stop();
    driver.stdin.take().unwrap().write_all(b"\n").await.unwrap();
    let seen = lines
        .next_line()
        .await
        .unwrap()
        .expect("the driver prints one JSON object");
    let seen: Value = serde_json::from_str(&seen).unwrap();
    let services = json!([
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "meridian.voice.v1.Voice"
    ]);
    assert_eq!(seen["services"], services);
    assert_eq!(seen["text"], "turn on the light");
    assert_eq!(seen["sentences"], json!([true, true]));
    assert_eq!(seen["statuses"], json!(["SERVING", "SERVING", "NOT_FOUND"]));
    assert_eq!(seen["watched"], json!(["SERVING", "NOT_SERVING"]));
    assert!(driver.wait().await.unwrap().success());
    region.stopped().await;
}

#[tokio::test]
async fn the_same_through_an_edge_which_refuses_in_the_same_terms() {
    let region = Region::start().await;
    let edge = Edge::before(region.http, "").await;
    let mut client = client(edge.http).await;
    check_calls(&mut client).await;

    // Many calls share one connection.
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.transcribe(recording("what time is it")).await })
        })
        .collect();
    for call in calls {
        let answer = call.await.unwrap().unwrap();
        assert_eq!(answer.metadata().get("meridian-region").unwrap(), "eu-west");
        assert_eq!(answer.into_inner().text, "what time is it");
    }

    region.begin_stop();
    region.stopped().await;
    let refused = client.transcribe(recording("is anybody there")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("no region"), "{refused}");

    drop(client);
    edge.stopped().await;
}
