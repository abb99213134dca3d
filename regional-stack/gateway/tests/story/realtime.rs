//! The Realtime WebSocket, from the device's side.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use speech::{
    SAMPLE_RATE, pcm, resample,
    scripted::{sound_of, text_in},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use crate::region::{PATIENCE, Region, engines, held_recognizer, held_synthesizer};

/// A device with an open session.
struct Device {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
}

impl Device {
    async fn call(region: &Region) -> Self {
        Self::call_with(region, "").await
    }

    async fn call_with(region: &Region, parameters: &str) -> Self {
        let url = format!("ws://{}/v1/realtime?model=gpt-realtime{parameters}", region.http);
        let (socket, _) = connect_async(url).await.unwrap();
        let mut device = Self {
            socket,
            session: String::new(),
        };
        let created = device.next().await;
        assert_eq!(created["type"], "session.created");
        device.session = created["session"]["id"].as_str().unwrap().to_owned();
        device
    }

    async fn send(&mut self, event: Value) {
        self.socket.send(Message::text(event.to_string())).await.unwrap();
    }

    async fn manual_turns(&mut self) {
        self.send(json!({ "type": "session.update", "session": { "audio": { "input": { "turn_detection": null } } } }))
            .await;
        let updated = self.until("session.updated").await.pop().unwrap();
        assert_eq!(updated["session"]["audio"]["input"]["turn_detection"], Value::Null);
    }

    /// Speaks, then is silent for a second.
    async fn speak(&mut self, text: &str) {
        let sound = [
            vec![0.0; SAMPLE_RATE as usize / 2],
            sound_of(text),
            vec![0.0; SAMPLE_RATE as usize],
        ]
        .concat();
        self.send_audio(&sound).await;
    }

    async fn send_audio(&mut self, samples: &[f32]) {
        for event in appended(samples) {
            self.send(event).await;
        }
    }

    async fn message(&mut self) -> Message {
        timeout(PATIENCE, self.socket.next()).await.unwrap().unwrap().unwrap()
    }

    async fn next(&mut self) -> Value {
        loop {
            match self.message().await {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// All events up to and including the next of this type.
    async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            events.push(self.next().await);
            if events.last().unwrap()["type"] == kind {
                return events;
            }
        }
    }

    /// Code and reason of the Close frame, skipping what comes before it.
    async fn closed(&mut self) -> (u16, String) {
        loop {
            if let Message::Close(frame) = self.message().await {
                let frame = frame.unwrap();
                return (frame.code.into(), frame.reason.to_string());
            }
        }
    }
}

/// Sound as a device sends it.
pub(crate) fn appended(samples: &[f32]) -> Vec<Value> {
    let bytes = pcm::to_s16le(&resample::resample(samples, SAMPLE_RATE, 24_000).unwrap());
    let pieces = bytes.chunks(9600);
    pieces
        .map(|piece| json!({ "type": "input_audio_buffer.append", "audio": BASE64_STANDARD.encode(piece) }))
        .collect()
}

pub(crate) fn types(events: &[Value]) -> Vec<&str> {
    let mut types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    types.dedup();
    types
}

pub(crate) fn spoken_in(events: &[Value]) -> Option<String> {
    let bytes: Vec<u8> = events
        .iter()
        .filter(|event| event["type"] == "response.output_audio.delta")
        .flat_map(|event| BASE64_STANDARD.decode(event["delta"].as_str().unwrap()).unwrap())
        .collect();
    text_in(&resample::resample(&pcm::from_s16le(&bytes), 24_000, SAMPLE_RATE).unwrap())
}

#[tokio::test]
async fn a_spoken_turn_is_detected_understood_and_answered() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    device.speak("set a timer for ten minutes").await;
    let events = device.until("meridian.turn").await;
    assert_eq!(
        types(&events),
        [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
            "conversation.item.input_audio_transcription.delta",
            "conversation.item.input_audio_transcription.completed",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            "response.output_audio_transcript.delta",
            "response.output_audio.delta",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "conversation.item.done",
            "response.output_item.done",
            "response.done",
            "meridian.turn",
        ]
    );
    assert_eq!(spoken_in(&events).unwrap(), "timer set for ten minutes");
    let done = &events[events.len() - 2];
    assert_eq!(done["response"]["status"], "completed");
    assert_eq!(
        done["response"]["output"][0]["content"][0]["transcript"],
        "timer set for ten minutes"
    );
    let turn = events.last().unwrap();
    assert_eq!(turn["turn"], 1);
    assert_eq!(turn["region"], "eu-west");
    assert_eq!(turn["transcript"], "set a timer for ten minutes");
    assert_eq!(turn["intent"], "timer.set");
    assert_eq!(turn["slots"], json!({ "duration_s": "600" }));
    assert_eq!(turn["reply"], "timer set for ten minutes");
    for stage in ["asr", "nlu", "skill", "tts", "first_audio"] {
        assert!(turn["timings_ms"][stage].is_number(), "{stage}: {turn}");
    }

    device.speak("cancel the timer").await;
    let events = device.until("meridian.turn").await;
    assert_eq!(spoken_in(&events).unwrap(), "timer cancelled");
    assert_eq!(events.last().unwrap()["turn"], 2);
}

#[tokio::test]
async fn with_manual_turns_nothing_happens_until_the_client_says_so() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    device.manual_turns().await;

    device.speak("turn on the office lights").await;
    device.send(json!({ "type": "input_audio_buffer.commit" })).await;
    let events = device
        .until("conversation.item.input_audio_transcription.completed")
        .await;
    assert_eq!(events[0]["type"], "input_audio_buffer.committed");
    assert_eq!(events.last().unwrap()["transcript"], "turn on the office lights");
    assert!(!types(&events).contains(&"response.created"));

    device.send(json!({ "type": "response.create" })).await;
    let events = device.until("meridian.turn").await;
    assert_eq!(spoken_in(&events).unwrap(), "the office lights are on");

    // Asking for the response before the transcript is there comes to the same.
    device.speak("turn off the office lights").await;
    device.send(json!({ "type": "input_audio_buffer.commit" })).await;
    device.send(json!({ "type": "response.create" })).await;
    let events = device.until("meridian.turn").await;
    assert_eq!(spoken_in(&events).unwrap(), "the office lights are off");
}

#[tokio::test]
async fn typed_text_is_answered_in_text_when_asked_for() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    let content = json!([{ "type": "input_text", "text": "Turn on the hall lights!" }]);
    device.send(json!({ "type": "conversation.item.create", "item": { "type": "message", "role": "user", "content": content } })).await;
    device
        .send(json!({ "type": "response.create", "response": { "output_modalities": ["text"] } }))
        .await;
    let events = device.until("meridian.turn").await;
    let done = events
        .iter()
        .find(|event| event["type"] == "response.output_text.done")
        .unwrap();
    assert_eq!(done["text"], "the hall lights are on");
    assert_eq!(spoken_in(&events), None);
}

#[tokio::test]
async fn a_cancelled_response_ends_at_once_and_the_session_goes_on() {
    let (engines, gate) = held_synthesizer();
    let region = Region::start_with(engines, |_| {}).await;
    let mut device = Device::call(&region).await;
    device.speak("help").await;
    device.until("response.output_audio_transcript.delta").await;
    device.send(json!({ "type": "response.cancel" })).await;
    let events = device.until("meridian.turn").await;
    let done = events.iter().find(|event| event["type"] == "response.done").unwrap();
    assert_eq!(done["response"]["status"], "cancelled");
    assert_eq!(done["response"]["status_details"]["reason"], "client_cancelled");
    assert_eq!(events.last().unwrap()["status"], "cancelled");

    device
        .send(json!({ "type": "response.cancel", "event_id": "again" }))
        .await;
    let error = device.until("error").await.pop().unwrap();
    assert_eq!(error["error"]["code"], "response_cancel_not_active");
    assert_eq!(error["error"]["event_id"], "again");

    drop(gate);
    device.speak("stop").await;
    assert_eq!(spoken_in(&device.until("meridian.turn").await).unwrap(), "okay");
}

#[tokio::test]
async fn the_assistant_falls_silent_when_the_user_begins_to_speak() {
    let (engines, gate) = held_synthesizer();
    let region = Region::start_with(engines, |_| {}).await;
    let mut device = Device::call(&region).await;
    device.speak("what can you do").await;
    let first = device.until("response.output_item.added").await.pop().unwrap();

    device.speak("turn on the hall lights").await;
    let events = device.until("meridian.turn").await;
    let kinds = types(&events);
    let started = kinds
        .iter()
        .position(|kind| *kind == "input_audio_buffer.speech_started")
        .unwrap();
    let done = kinds.iter().position(|kind| *kind == "response.done").unwrap();
    assert!(started < done);
    let done = events.iter().find(|event| event["type"] == "response.done").unwrap();
    assert_eq!(done["response"]["status"], "cancelled");
    assert_eq!(done["response"]["status_details"]["reason"], "turn_detected");

    device.send(json!({
        "type": "conversation.item.truncate", "item_id": first["item"]["id"], "content_index": 0, "audio_end_ms": 120,
    })).await;
    // While the next reply is held, or it might be over before the device is heard.
    device.until("conversation.item.truncated").await;
    drop(gate);
    let events = device.until("meridian.turn").await;
    assert_eq!(spoken_in(&events).unwrap(), "the hall lights are on");
}

#[tokio::test]
async fn mistakes_are_explained_and_end_nothing() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    for (message, code, says) in [
        ("hello", "invalid_json", "JSON"),
        (
            r#"{"type":"session.explode","event_id":"e7"}"#,
            "invalid_value",
            "session.explode",
        ),
        (
            r#"{"type":"input_audio_buffer.append","audio":"***"}"#,
            "invalid_value",
            "base64",
        ),
        (
            r#"{"type":"input_audio_buffer.commit"}"#,
            "input_audio_buffer_commit_empty",
            "100 ms",
        ),
        (
            r#"{"type":"conversation.item.retrieve","item_id":"x"}"#,
            "item_not_found",
            "no item",
        ),
        (
            r#"{"type":"session.update","session":{"audio":{"input":{"format":{"type":"audio/opus"}}}}}"#,
            "invalid_value",
            "24000",
        ),
    ] {
        device.socket.send(Message::text(message)).await.unwrap();
        let error = device.next().await;
        assert_eq!(error["type"], "error");
        assert_eq!(error["error"]["code"], code, "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{error}");
    }
    device.socket.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(device.next().await["error"]["code"], "invalid_message");

    device.speak("stop").await;
    assert_eq!(spoken_in(&device.until("meridian.turn").await).unwrap(), "okay");
}

#[tokio::test]
async fn a_message_above_the_limit_closes_the_session_with_the_reason() {
    let region = Region::start().await;
    for bytes in [300 << 10, 3 << 20] {
        let mut device = Device::call(&region).await;
        let audio = "A".repeat(bytes);
        device
            .send(json!({ "type": "input_audio_buffer.append", "audio": audio }))
            .await;
        let (code, reason) = device.closed().await;
        assert_eq!(code, 1009);
        assert!(reason.contains("too large"), "{reason}");
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_instead_of_remembered() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    let update = Message::text(
        json!({ "type": "session.update", "session": { "instructions": "x".repeat(10_000) } }).to_string(),
    );
    // Until the socket's buffers and ours are full; then the region stops listening and says why.
    let flood = async {
        loop {
            if device.socket.send(update.clone()).await.is_err() {
                return;
            }
        }
    };
    timeout(PATIENCE, flood).await.expect("the region gives up on us");
    region
        .until_metric("meridian_stack_sessions_closed_total{reason=\"slow_client\"} 1")
        .await;
}

#[tokio::test]
async fn a_failing_engine_fails_the_turn_and_not_the_session() {
    let engines = gateway::Engines {
        recognizer: std::sync::Arc::new(speech::scripted::ScriptedRecognizer::in_turn([Err("on fire")])),
        ..engines()
    };
    let region = Region::start_with(engines, |_| {}).await;
    let mut device = Device::call(&region).await;
    // A second of a plain tone: speech to the detector, no words to the recognizer.
    let tone: Vec<f32> = (0..SAMPLE_RATE).map(|at| 0.2 * (at as f32 * 0.07).sin()).collect();
    device
        .send_audio(&[tone, vec![0.0; SAMPLE_RATE as usize]].concat())
        .await;
    let events = device.until("meridian.turn").await;
    assert!(types(&events).contains(&"conversation.item.input_audio_transcription.failed"));
    let done = events.iter().find(|event| event["type"] == "response.done").unwrap();
    assert_eq!(done["response"]["status"], "failed");
    assert!(
        done["response"]["status_details"]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("on fire")
    );

    device.speak("stop").await;
    assert_eq!(spoken_in(&device.until("meridian.turn").await).unwrap(), "okay");
}

#[tokio::test]
async fn work_for_a_device_that_hung_up_is_not_done() {
    let (engines, gate) = held_recognizer();
    let region = Region::start_with(engines, |_| {}).await;
    let mut patient = Device::call(&region).await;
    patient.speak("help").await;
    patient.until("response.created").await;
    let mut gone = Device::call(&region).await;
    gone.speak("stop").await;
    gone.until("response.created").await;
    drop(gone);
    region.until_metric("meridian_stack_sessions 1").await;

    drop(gate);
    patient.until("meridian.turn").await;
    region
        .until_metric("meridian_stack_engine_jobs_total{engine=\"asr\",outcome=\"cancelled\"} 1")
        .await;
}

#[tokio::test]
async fn a_session_can_be_resumed_by_its_id() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    device.speak("set a timer for ten minutes").await;
    device.until("meridian.turn").await;
    let session = device.session.clone();
    device.socket.close(None).await.unwrap();

    let mut device = Device::call_with(&region, &format!("&resume={session}")).await;
    assert_eq!(device.session, session);
    device.speak("cancel the timer").await;
    assert_eq!(
        spoken_in(&device.until("meridian.turn").await).unwrap(),
        "timer cancelled"
    );

    let stranger = Device::call_with(&region, "&resume=sess_unknown").await;
    assert_ne!(stranger.session, "sess_unknown");
}

#[tokio::test]
async fn a_draining_region_finishes_the_turn_then_says_goodbye() {
    let (engines, gate) = held_recognizer();
    let region = Region::start_with(engines, |_| {}).await;
    let mut talking = Device::call(&region).await;
    let mut quiet = Device::call(&region).await;
    talking.speak("help").await;
    talking.until("response.created").await;

    region.begin_stop();
    assert_eq!(quiet.closed().await, (1012, "region draining".to_owned()));
    let ready = reqwest::get(format!("http://{}/ready", region.admin)).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(
        connect_async(format!("ws://{}/v1/realtime", region.http))
            .await
            .is_err()
    );

    drop(gate);
    let events = talking.until("meridian.turn").await;
    assert!(spoken_in(&events).unwrap().starts_with("you can ask"));
    assert_eq!(talking.closed().await, (1012, "region draining".to_owned()));
    region.stopped().await;
}

#[tokio::test]
async fn a_turn_that_does_not_end_is_cut_when_the_drain_is_over() {
    let (engines, gate) = held_recognizer();
    let region = Region::start_with(engines, |limits| limits.drain_seconds_max = 0).await;
    let mut device = Device::call(&region).await;
    device.speak("help").await;
    device.until("response.created").await;
    region.begin_stop();
    assert_eq!(device.closed().await, (1012, "region draining".to_owned()));
    drop(gate);
    region.stopped().await;
}

/// RFC 6455 §8.1: the peer is told, with a code of its own.
#[tokio::test]
async fn a_text_that_is_not_utf_8_closes_the_session_with_1007() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    let MaybeTlsStream::Plain(tcp) = device.socket.get_mut() else {
        panic!("the region speaks plaintext");
    };
    tcp.write_all(&[0x81, 0x81, 0, 0, 0, 0, 0xff]).await.unwrap();
    let closed = loop {
        match timeout(PATIENCE, device.socket.next()).await.unwrap() {
            Some(Ok(Message::Close(frame))) => break frame.unwrap(),
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(u16::from(closed.code), 1007);
    assert!(closed.reason.contains("UTF-8"), "{closed}");
}
