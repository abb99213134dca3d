//! `x-request-id`: one name for a request, in its answer and in the log.

use std::{io::Write, sync::Arc};

use daemon::telemetry::{self, Format};
use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use serde_json::Value;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter, layer::SubscriberExt as _};

use crate::{
    alone::done_in_own_process,
    region::{Region, engines},
};

const HEADER: &str = "x-request-id";

async fn asked(region: &Region, path: &str, id: Option<&str>) -> (u16, String) {
    let mut request = reqwest::Client::new().get(region.url(path));
    if let Some(id) = id {
        request = request.header(HEADER, id);
    }
    let answer = request.send().await.unwrap();
    let named = answer.headers()[HEADER].to_str().unwrap().to_owned();
    (answer.status().as_u16(), named)
}

#[tokio::test]
async fn every_answer_has_a_name_that_of_the_request_if_it_brings_one() {
    let region = Region::start().await;
    for (path, status) in [
        ("/v1/models", 200),
        ("/nowhere", 404),
        ("/v1/realtime", 426),
        ("/metrics", 200),
    ] {
        assert_eq!(
            asked(&region, path, Some("req_edge-1")).await,
            (status, "req_edge-1".to_owned())
        );
        let (_, one) = asked(&region, path, None).await;
        let (_, other) = asked(&region, path, None).await;
        assert!(one.starts_with("req_") && one != other, "{one} {other}");
    }
    let long = "x".repeat(500);
    for bad in ["with a space", "<b>", &long] {
        let (_, named) = asked(&region, "/v1/models", Some(bad)).await;
        assert!(named.starts_with("req_"), "{named}");
    }
    let admin = reqwest::get(format!("http://{}/health", region.admin)).await.unwrap();
    assert!(admin.headers().contains_key(HEADER));
}

#[tokio::test]
async fn a_session_is_named_by_its_upgrade_in_the_answer_and_in_the_log() {
    // Without a process of its own it could lose a span: `tracing` asks one thread whether anybody wants the lines of a place
    // in the code and keeps the answer for all threads. That thread may be another test's, which has no log.
    if done_in_own_process("request_id::a_session_is_named_by_its_upgrade_in_the_answer_and_in_the_log") {
        return;
    }
    let (json, text) = (Log::default(), Log::default());
    let logs = tracing_subscriber::registry()
        .with(LevelFilter::INFO)
        .with(telemetry::layer(Format::Json, false, json.clone()))
        .with(telemetry::layer(Format::Pretty, false, text.clone()));
    let _until_the_end = tracing::subscriber::set_default(logs);
    let region = Region::start_with(engines(), |_| {}).await;
    let url = format!("ws://{}/v1/realtime", region.http);
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert(HEADER, "call-7".parse().unwrap());
    let (mut socket, answer) = connect_async(request).await.unwrap();
    assert_eq!(answer.headers()[HEADER], "call-7");
    let created = socket.next().await.unwrap().unwrap().into_text().unwrap();
    let created: Value = serde_json::from_str(&created).unwrap();
    let id = created["session"]["id"].as_str().unwrap();
    socket.send(Message::Close(None)).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    region.begin_stop();
    region.stopped().await;
    // The line has the id in a field, as lines of an edge do.
    let is_named_in_json = |line: &str| serde_json::from_str::<Value>(line).unwrap()["request_id"] == "call-7";
    let is_named = |line: &str| line.split([' ', '{', '}']).any(|word| word == "request_id=call-7");
    for (lines, is_named) in [
        (json.lines(), &is_named_in_json as &dyn Fn(&str) -> bool),
        (text.lines(), &is_named),
    ] {
        assert!(
            !lines.iter().any(|line| line.contains(id)),
            "whoever knows the id has the session: {lines:?}"
        );
        for message in ["session opened", "session closed"] {
            let said: Vec<&String> = lines.iter().filter(|line| line.contains(message)).collect();
            assert_eq!(said.len(), 1, "{message}: {lines:?}");
            assert!(is_named(said[0]), "{said:?}");
        }
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
