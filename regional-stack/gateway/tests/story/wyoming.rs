//! The Wyoming protocol: with its own package, as Home Assistant uses it, and with bytes that no package sends.

use std::{net::SocketAddr, path::Path};

use gateway::{Engines, Limits};
use serde_json::{Value, json};
use speech::{
    SAMPLE_RATE, pcm,
    scripted::{sound_of, text_in},
    wav,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::region::{HANGS_AFTER, Region, engines, held_recognizer, held_synthesizer};

const LISTENER: &str = "[wyoming]\nlisten = \"127.0.0.1:0\"";

async fn region() -> (Region, SocketAddr) {
    region_with(LISTENER, engines(), |_| {}).await
}

async fn region_with(lines: &str, engines: Engines, change: impl FnOnce(&mut Limits)) -> (Region, SocketAddr) {
    let region = Region::start_in("eu-west", lines, engines, change).await;
    let address = region.wyoming.unwrap();
    (region, address)
}

/// A client that writes the bytes of the protocol itself.
struct Satellite(BufReader<TcpStream>);

impl Satellite {
    async fn connect(address: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    async fn send(&mut self, kind: &str, data: Value) {
        self.send_with(kind, data, &[]).await;
    }

    async fn send_with(&mut self, kind: &str, data: Value, payload: &[u8]) {
        let line = json!({ "type": kind, "data": data, "payload_length": payload.len() });
        self.send_bytes(format!("{line}\n").as_bytes()).await;
        self.send_bytes(payload).await;
    }

    async fn send_bytes(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    /// Sends an utterance, up to the answer.
    async fn say(&mut self, text: &str) {
        let format = json!({ "rate": SAMPLE_RATE, "width": 2, "channels": 1 });
        self.send("audio-start", format.clone()).await;
        for chunk in sound_of(text).chunks(1_600) {
            self.send_with("audio-chunk", format.clone(), &pcm::to_s16le(chunk))
                .await;
        }
        self.send("audio-stop", json!({})).await;
    }

    /// The next event: its type and data. `None` when the stack hung up.
    async fn next(&mut self) -> Option<(String, Value)> {
        timeout(HANGS_AFTER, self.read())
            .await
            .expect("an event comes, or the end")
    }

    async fn read(&mut self) -> Option<(String, Value)> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let head: Value = serde_json::from_str(&line).unwrap();
        let length = |name: &str| head[name].as_u64().unwrap_or(0) as usize;
        let mut data = vec![0; length("data_length")];
        self.0.read_exact(&mut data).await.unwrap();
        let mut payload = vec![0; length("payload_length")];
        self.0.read_exact(&mut payload).await.unwrap();
        let data = if data.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&data).unwrap()
        };
        Some((head["type"].as_str().unwrap().to_owned(), data))
    }

    async fn expect(&mut self, kind: &str) -> Value {
        let (found, data) = self.next().await.expect("the stack answers");
        assert_eq!(found, kind, "{data}");
        data
    }
}

#[tokio::test]
async fn the_wyoming_package_is_heard_answered_and_spoken_to() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".venv/bin/python");
    assert!(python.exists(), "the clients are not installed; run tools/setup test");
    let folder = TempDir::new().unwrap();
    std::fs::write(
        folder.path().join("stop.wav"),
        wav::encode(&sound_of("stop the music"), SAMPLE_RATE),
    )
    .unwrap();
    let (region, address) = region().await;
    let output = tokio::process::Command::new(python)
        .arg(root.join("tools/wyoming-client/drive.py"))
        .arg(format!("tcp://{address}"))
        .arg(folder.path())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the driver starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).expect("the driver prints one JSON object");

    let english = json!(["en"]);
    assert_eq!(
        said["info"]["languages"],
        json!([english, english, english, english]),
        "{said:#}"
    );
    assert_eq!(said["info"]["installed"], json!([true, true, true, true]), "{said:#}");
    assert_eq!(said["pong"], "here");
    assert_eq!(said["transcript"], "stop the music");
    let light = json!({ "area": "kitchen", "domain": "light" });
    assert_eq!(
        said["light"],
        json!([["HassTurnOn", light, "the kitchen lights are on"]]),
        "{said:#}"
    );
    assert_eq!(said["lights"].as_array().map(Vec::len), Some(2), "{said:#}");
    assert_eq!(said["timer"][0][1], json!({ "minutes": 10 }), "{said:#}");
    assert_eq!(
        (&said["time"][0], &said["time"][2]),
        (&json!("Handled"), &json!(true)),
        "{said:#}"
    );
    assert_eq!(said["alarm"][0], "NotHandled", "{said:#}");
    assert_eq!(said["nonsense"][0], "NotRecognized", "{said:#}");
    assert_eq!(
        (&said["german"][0], &said["german"][2]),
        (&json!("unsupported_value"), &json!(true)),
        "{said:#}"
    );
    assert_eq!(said["streamed"], json!({ "chunks": [true, true], "stopped": true }));
    for (file, text) in [
        ("said.wav", "the timer is set"),
        ("first.wav", "it is noon"),
        ("second.wav", "the light is on"),
    ] {
        let spoken = std::fs::read(folder.path().join(file)).unwrap();
        assert_eq!(
            text_in(&wav::decode(&spoken, 60.0).unwrap()).as_deref(),
            Some(text),
            "{file}"
        );
    }
    region.until_metric("meridian_stack_wyoming_connections 0").await;
    region
        .until_metric("meridian_stack_wyoming_requests_total{request=\"assist\",outcome=\"declined\"} 2")
        .await;
}

#[tokio::test]
async fn bytes_that_are_no_event_end_their_connection_with_a_reason_and_no_other() {
    let (region, address) = region().await;
    let long = format!("{{\"type\":\"x\",\"pad\":\"{}\"}}\n", "x".repeat(70_000));
    for bad in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\0\n",
        b"{\"type\":\"describe\",\"data_length\":3}\n[1]",
        b"{\"type\":\"audio-chunk\",\"payload_length\":999999999999}\n",
        long.as_bytes(),
    ] {
        let mut stranger = Satellite::connect(address).await;
        stranger.send_bytes(bad).await;
        let error = stranger.expect("error").await;
        assert_eq!(error["code"], "malformed_event", "{error}");
        assert_eq!(stranger.next().await, None);
    }
    // A request that makes no sense is refused, and the next one is answered.
    let mut satellite = Satellite::connect(address).await;
    for (kind, data) in [
        ("audio-stop", json!({})),
        ("audio-start", json!({ "rate": 7, "width": 2, "channels": 1 })),
        ("audio-chunk", json!({})),
        ("synthesize", json!({})),
        ("synthesize", json!({ "text": "x".repeat(5_000) })),
        ("synthesize", json!({ "text": "<speak/>", "text_format": "ssml" })),
        ("synthesize-chunk", json!({ "text": "hello" })),
        ("synthesize-stop", json!({})),
        ("transcript", json!({ "text": "x".repeat(5_000) })),
        ("transcribe", json!({ "language": "日本語" })),
    ] {
        satellite.send(kind, data).await;
        satellite.expect("error").await;
    }
    satellite.send("an-event-of-next-year", json!({})).await;
    satellite.send("ping", json!({ "text": "still there" })).await;
    assert_eq!(satellite.expect("pong").await["text"], "still there");
    satellite.say("what time is it").await;
    assert_eq!(satellite.expect("transcript").await["text"], "what time is it");
    region.begin_stop();
    region.stopped().await;
}

#[tokio::test]
async fn a_satellite_that_hangs_up_gives_its_place_in_the_queue_back() {
    let (engines, gate) = held_recognizer();
    let (region, address) = region_with(LISTENER, engines, |limits| limits.queue_max = 1).await;
    let mut first = Satellite::connect(address).await;
    first.say("what time is it").await;
    region
        .until_metric("meridian_stack_engine_job_seconds_count{engine=\"asr\",class=\"live\",part=\"waiting\"} 2")
        .await;
    let mut second = Satellite::connect(address).await;
    second.say("turn on the light").await;
    region
        .until_metric("meridian_stack_queue_depth{engine=\"asr\"} 1")
        .await;
    let mut third = Satellite::connect(address).await;
    third.say("is there room").await;
    assert_eq!(third.expect("error").await["code"], "rate_limit_exceeded");

    drop(second);
    region
        .until_metric("meridian_stack_wyoming_requests_total{request=\"transcribe\",outcome=\"abandoned\"} 1")
        .await;
    third.say("is there room now").await;
    region
        .until_metric("meridian_stack_engine_jobs_total{engine=\"asr\",outcome=\"cancelled\"} 1")
        .await;
    drop(gate);
    assert_eq!(first.expect("transcript").await["text"], "what time is it");
    assert_eq!(third.expect("transcript").await["text"], "is there room now");
}

#[tokio::test]
async fn a_stack_that_stops_answers_what_was_asked_and_leaves_idle_connections() {
    let (engines, gate) = held_synthesizer();
    let (region, address) = region_with(LISTENER, engines, |_| {}).await;
    let mut idle = Satellite::connect(address).await;
    idle.send("ping", json!({})).await;
    idle.expect("pong").await;
    let mut asking = Satellite::connect(address).await;
    asking.send("synthesize", json!({ "text": "one moment" })).await;
    region
        .until_metric("meridian_stack_engine_job_seconds_count{engine=\"tts\",class=\"live\",part=\"waiting\"} 2")
        .await;
    region.begin_stop();
    assert_eq!(idle.next().await, None);
    drop(gate);
    asking.expect("audio-start").await;
    while let Some((kind, _)) = asking.next().await {
        assert!(["audio-chunk", "audio-stop"].contains(&kind.as_str()), "{kind}");
    }
    region.stopped().await;
}

#[tokio::test]
async fn silent_connections_end_and_no_more_than_so_many_are_served() {
    let lines = format!("{LISTENER}\nconnections_max = 1");
    let (_region, address) = region_with(&lines, engines(), |limits| {
        let second = topology::document::Span(std::time::Duration::from_secs(1));
        (limits.ping_every, limits.idle_max) = (second, topology::document::Span(2 * second.0));
    })
    .await;
    let mut first = Satellite::connect(address).await;
    first.send("ping", json!({})).await;
    first.expect("pong").await;
    let mut second = Satellite::connect(address).await;
    second.send("ping", json!({ "text": "second" })).await;
    // The second one is served when the first one has been silent for too long.
    assert_eq!(second.expect("pong").await["text"], "second");
    assert_eq!(first.next().await, None);
}

#[tokio::test]
async fn an_utterance_longer_than_the_recognizer_takes_is_heard_piece_by_piece() {
    let (region, address) = region_with(LISTENER, engines(), |limits| {
        limits.transcription_max = topology::document::Span(std::time::Duration::from_secs(50));
    })
    .await;
    let mut satellite = Satellite::connect(address).await;
    let format = json!({ "rate": 8_000, "width": 2, "channels": 1 });
    satellite.send("audio-start", format.clone()).await;
    let second = vec![0; 16_000];
    for _ in 0..45 {
        satellite.send_with("audio-chunk", format.clone(), &second).await;
    }
    satellite.send("audio-stop", json!({})).await;
    assert_eq!(satellite.expect("transcript").await["text"], "");
    region
        .until_metric("meridian_stack_engine_job_seconds_count{engine=\"asr\",class=\"live\",part=\"working\"} 4")
        .await;
    for _ in 0..60 {
        satellite.send_with("audio-chunk", format.clone(), &second).await;
    }
    assert_eq!(satellite.expect("error").await["code"], "audio_too_long");
}
