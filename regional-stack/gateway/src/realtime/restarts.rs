//! A stack ends and another process takes its place, while a device is away whose alarm becomes due.

use std::{path::Path, sync::Arc, time::Duration};

use dialogue::{City, DialogueState};
use prometheus_client::registry::Registry;
use serde_json::Value;
use speech::scripted::{ScriptedRecognizer, ScriptedSynthesizer};
use tokio_util::sync::CancellationToken;
use topology::Moment;

use super::{opening::Opening, session::Session};
use crate::{
    config::Config,
    metrics::Metrics,
    stack::{Engines, Stack},
    store::{DurableStore, Memory, MemoryStore, SessionStore, Writer},
};

const MINUTE: Duration = Duration::from_secs(60);

fn open(folder: &Path, now: Moment) -> (DurableStore, Writer) {
    let key = serde_json::from_value("ab".repeat(32).into()).unwrap();
    let memory = MemoryStore::new(10, MINUTE);
    DurableStore::open(memory, folder.to_owned(), (key, None), City::London, now).unwrap()
}

#[tokio::test]
async fn an_alarm_that_came_due_while_the_stack_was_down_rings_late_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let now = daemon::clock::now();
    let before = Moment(now.0 - 12 * 60_000);
    let (store, writer) = open(folder.path(), before);
    let mut dialogue = DialogueState::new(City::Rome);
    dialogue::act(
        &mut dialogue,
        &dialogue::interpret("set a timer for ten minutes"),
        before,
    );
    let left = Memory {
        dialogue,
        session: None,
        revision: before,
        may_go_on_elsewhere: false,
    };
    store.save("sess_1", left, before).await.unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    writer.run(Metrics::register(&mut Registry::default()), stop).await;
    drop(store);

    let (store, _writer) = open(folder.path(), now);
    let text = "region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"";
    let config: Config = daemon::config::parse("test", text).unwrap();
    let engines = Engines {
        recognizer: Arc::new(ScriptedRecognizer::new()),
        synthesizer: Arc::new(ScriptedSynthesizer::new()),
    };
    let memory = store.load("sess_1", now).await.unwrap();
    let stack = Stack::new(
        config,
        engines,
        Box::new(store),
        identity::Expiry(None),
        CancellationToken::new(),
    )
    .unwrap();
    let stack = Arc::new(stack);
    let mut opening = Opening::of_new(&stack, "sess_1");
    opening.memory = memory;
    let (mut session, _claim) = Session::new(stack, opening);
    session.on_message(
        r#"{"type":"session.update","session":{"type":"realtime","output_modalities":["text"]}}"#,
        now,
    );
    while session.outbox.pop().is_some() {}
    session.ring(now);
    let events = std::iter::from_fn(|| session.outbox.pop());
    let events: Vec<Value> = events.map(|frame| serde_json::from_str(&frame.text).unwrap()).collect();
    let said = events.iter().find(|event| event["type"] == "response.output_text.done");
    let said = said.unwrap_or_else(|| panic!("{events:?}"));
    assert_eq!(said["text"], "your timer for ten minutes ended two minutes ago");
}
