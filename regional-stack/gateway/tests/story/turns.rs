//! Reports to an edge about turns: their outcome, the component that failed, and faults outside of turns.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::{SinkExt as _, StreamExt as _};
use gateway::Engines;
use serde_json::{Value, json};
use speech::{SpeechError, Synthesizer, scripted::ScriptedSynthesizer};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use topology::Component;
use wire::{HEADER, TURNS_HEADER, Trouble, Turn, VERSION};

use crate::region::{HANGS_AFTER, Region, engines};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// An edge that asks for reports about turns, and its device.
struct Edge {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    turns: Vec<Turn>,
    trouble: Vec<Trouble>,
    /// Whether the last checkpoint said that a turn is in progress.
    busy: bool,
    events: Vec<Value>,
}

impl Edge {
    async fn call(region: &Region) -> Self {
        let mut request = format!("ws://{}/v1/realtime", region.http)
            .into_client_request()
            .unwrap();
        for (name, value) in [(HEADER, VERSION), (TURNS_HEADER, "1")] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (socket, _) = connect_async(request).await.unwrap();
        Self {
            socket,
            turns: Vec::new(),
            trouble: Vec::new(),
            busy: false,
            events: Vec::new(),
        }
    }

    async fn say(&mut self, event: Value) {
        self.socket.send(Message::text(event.to_string())).await.unwrap();
    }

    /// Asks in text for a spoken answer.
    async fn ask(&mut self, text: &str) {
        let content = json!([{ "type": "input_text", "text": text }]);
        let item = json!({ "type": "conversation.item.create", "item": { "role": "user", "content": content } });
        self.say(item).await;
        self.say(json!({ "type": "response.create" })).await;
    }

    async fn take(&mut self) {
        match timeout(HANGS_AFTER, self.socket.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            Message::Text(text) => self.events.push(serde_json::from_str(&text).unwrap()),
            Message::Binary(word) => match wire::Message::parse(&word).unwrap() {
                wire::Message::Checkpoint(checkpoint) => self.busy = checkpoint.busy,
                wire::Message::Turn(turn) => {
                    assert!(!self.busy, "the checkpoint comes first that says that it is over");
                    self.turns.push(turn);
                }
                wire::Message::Trouble(trouble) => self.trouble.push(trouble),
                wire::Message::Resume(_) => panic!("only edges say that"),
                wire::Message::Load(_) => panic!("nobody asked for it"),
            },
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }

    async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            self.take().await;
        }
    }
}

#[tokio::test]
async fn a_turn_is_told_when_it_is_over_and_what_the_device_reports_at_once() {
    let region = Region::start_keyed(engines(), KEY).await;
    let mut edge = Edge::call(&region).await;
    edge.ask("turn on the office lights").await;
    edge.until(|edge| !edge.turns.is_empty()).await;
    let turn = edge.turns[0];
    // The question was text, so the recognizer did nothing.
    assert_eq!((turn.recognised_ms, turn.failed), (None, None));
    assert!(turn.first_audio_ms.is_some());

    // The reply ended long ago, and nothing follows it.
    for underruns in [12, 1] {
        edge.say(json!({ "type": "meridian.playback", "underruns": underruns }))
            .await;
        let told = edge.trouble.len();
        edge.until(|edge| edge.trouble.len() > told).await;
    }
    let underruns: Vec<u32> = edge.trouble.iter().map(|trouble| trouble.underruns).collect();
    assert_eq!(underruns, [12, 1]);
    assert!(edge.events.iter().all(|event| event["type"] != "error"));
    edge.say(json!({ "type": "meridian.playback", "underruns": -1 })).await;
    edge.until(|edge| edge.events.last().is_some_and(|event| event["type"] == "error"))
        .await;
}

/// An engine whose GPU is full whenever a test wants it.
struct Full {
    is_full: Arc<AtomicBool>,
    synthesizer: ScriptedSynthesizer,
}

impl Synthesizer for Full {
    fn synthesize(&self, text: &str, speed: f32) -> Result<Vec<f32>, SpeechError> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err(SpeechError::of_engine("CUDA out of memory. Tried to allocate 2.00 GiB"));
        }
        self.synthesizer.synthesize(text, speed)
    }
}

#[tokio::test]
async fn a_full_gpu_fails_the_turn_and_is_told_for_itself() {
    let is_full = Arc::new(AtomicBool::new(false));
    let engines = Engines {
        synthesizer: Arc::new(Full {
            is_full: is_full.clone(),
            synthesizer: ScriptedSynthesizer::new(),
        }),
        ..engines()
    };
    let region = Region::start_keyed(engines, KEY).await;
    let mut edge = Edge::call(&region).await;
    is_full.store(true, Ordering::Relaxed);
    edge.ask("turn on the office lights").await;
    edge.until(|edge| !edge.turns.is_empty() && !edge.trouble.is_empty())
        .await;
    assert_eq!(edge.turns[0].failed, Some(Component::Tts));
    assert_eq!(edge.trouble[0].gpu_memory_errors, 1);
    let done = edge
        .events
        .iter()
        .find(|event| event["type"] == "response.done")
        .unwrap();
    assert_eq!(
        done["response"]["status_details"]["error"]["code"],
        "engine_out_of_memory"
    );

    is_full.store(false, Ordering::Relaxed);
    edge.ask("turn on the office lights").await;
    edge.until(|edge| edge.turns.len() == 2).await;
    assert_eq!(edge.turns[1].failed, None);
}
