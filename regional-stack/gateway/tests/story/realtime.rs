//! The Realtime WebSocket, from the device's side.
//!
//! One file, although it is long: its stories share one device and its words, and each is a screen.

mod endings;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use speech::{
    SAMPLE_RATE, g711, pcm, resample,
    scripted::{sound_of, text_in},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use crate::region::{HANGS_AFTER, Region, engines, held_recognizer, held_synthesizer};

/// A device with an open session.
struct Device {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
}

impl Device {
    async fn call(region: &Region) -> Self {
        Self::call_with(region, "").await
    }

    /// A device that asks for reports about its turns.
    async fn call_with(region: &Region, parameters: &str) -> Self {
        Self::dial(&format!(
            "ws://{}/v1/realtime?model=gpt-realtime&meridian=1{parameters}",
            region.http
        ))
        .await
    }

    async fn dial(url: &str) -> Self {
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
        timeout(HANGS_AFTER, self.socket.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
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

fn find<'a>(events: &'a [Value], kind: &str) -> &'a Value {
    let found = events.iter().find(|event| event["type"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} in {:?}", types(events)))
}

/// The audio of a reply, as it came.
fn audio_in(events: &[Value]) -> Vec<u8> {
    events
        .iter()
        .filter(|event| event["type"] == "response.output_audio.delta")
        .flat_map(|event| BASE64_STANDARD.decode(event["delta"].as_str().unwrap()).unwrap())
        .collect()
}

pub(crate) fn spoken_in(events: &[Value]) -> Option<String> {
    let bytes = audio_in(events);
    text_in(&resample::resample(&pcm::from_s16le(&bytes), 24_000, SAMPLE_RATE).unwrap())
}

/// The same sound as a telephone sends it, in G.711 by mu-law.
pub(crate) fn appended_by_telephone(samples: &[f32]) -> Vec<Value> {
    let narrow = resample::resample(samples, SAMPLE_RATE, 8_000).unwrap();
    let bytes = pcm::to_s16le(&narrow);
    let sample = |pair: &[u8]| i16::from_le_bytes([pair[0], pair[1]]);
    let codes: Vec<u8> = bytes.chunks(2).map(|pair| g711::to_mu_law(sample(pair))).collect();
    let pieces = codes.chunks(1_600);
    pieces
        .map(|piece| json!({ "type": "input_audio_buffer.append", "audio": BASE64_STANDARD.encode(piece) }))
        .collect()
}

/// The words in a reply to a telephone.
pub(crate) fn spoken_by_telephone(events: &[Value]) -> Option<String> {
    let codes = audio_in(events);
    let samples: Vec<f32> = codes
        .iter()
        .map(|code| f32::from(g711::mu_law(*code)) / 32_768.0)
        .collect();
    text_in(&resample::resample(&samples, 8_000, SAMPLE_RATE).unwrap())
}

#[tokio::test]
async fn a_telephone_is_heard_and_answered_in_its_own_coding() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    let telephone = json!({ "format": { "type": "audio/pcmu" } });
    let session = json!({ "audio": { "input": telephone, "output": telephone } });
    device
        .send(json!({ "type": "session.update", "session": session }))
        .await;
    device.until("session.updated").await;
    let quiet = |seconds: f32| vec![0.0; (SAMPLE_RATE as f32 * seconds) as usize];
    for (text, reply) in [
        ("turn on the office lights", "the office lights are on"),
        ("stop", "okay"),
    ] {
        let sound = [quiet(0.5), sound_of(text), quiet(1.0)].concat();
        for event in appended_by_telephone(&sound) {
            device.send(event).await;
        }
        let events = device.until("response.done").await;
        assert_eq!(spoken_by_telephone(&events).as_deref(), Some(reply));
    }
    // Ten seconds in one message are taken second by second.
    let long = appended_by_telephone(&[quiet(8.0), sound_of("what can you do"), quiet(1.0)].concat());
    let codes: Vec<u8> = long
        .iter()
        .flat_map(|event| BASE64_STANDARD.decode(event["audio"].as_str().unwrap()).unwrap())
        .collect();
    device
        .send(json!({ "type": "input_audio_buffer.append", "audio": BASE64_STANDARD.encode(codes) }))
        .await;
    let heard = device
        .until("conversation.item.input_audio_transcription.completed")
        .await;
    assert_eq!(heard.last().unwrap()["transcript"], "what can you do");
}

#[tokio::test]
async fn a_session_that_only_transcribes_hears_and_never_answers() {
    let region = Region::start().await;
    let mut device = Device::dial(&format!("ws://{}/v1/realtime?intent=transcription", region.http)).await;
    for text in ["turn on the office lights", "stop"] {
        device.speak(text).await;
        let events = device
            .until("conversation.item.input_audio_transcription.completed")
            .await;
        assert_eq!(events.last().unwrap()["transcript"], text);
        assert!(
            !types(&events).iter().any(|kind| kind.starts_with("response.")),
            "{:?}",
            types(&events)
        );
    }
    device.send(json!({ "type": "response.create" })).await;
    let refused = device.until("error").await.pop().unwrap();
    assert!(
        refused["error"]["message"]
            .as_str()
            .unwrap()
            .contains("only transcribes"),
        "{refused}"
    );
    let update = json!({ "type": "session.update", "session": { "type": "realtime" } });
    device.send(update).await;
    device.until("session.updated").await;
    device.speak("stop").await;
    device.until("response.done").await;
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
            "rate_limits.updated",
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
    let part = find(&events, "response.content_part.done");
    assert_eq!(part["part"]["type"], "audio");
    let done = &events[events.len() - 2];
    assert_eq!(done["response"]["status"], "completed");
    let usage = &done["response"]["usage"];
    assert_eq!(usage["output_token_details"]["text_tokens"], 5);
    assert!(
        usage["input_token_details"]["audio_tokens"].as_u64().unwrap() > 0,
        "{usage}"
    );
    assert!(
        usage["output_token_details"]["audio_tokens"].as_u64().unwrap() > 0,
        "{usage}"
    );
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

    // A request for the response before the transcript has the same result.
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
    // Each part that began ends, and no event claims that the assistant spoke.
    assert_eq!(
        types(&events),
        [
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "conversation.item.done",
            "response.output_item.done",
            "response.done",
            "meridian.turn",
        ]
    );
    assert_eq!(events[1]["transcript"], "");
    assert_eq!(events[3]["item"]["status"], "incomplete");
    let done = find(&events, "response.done");
    assert_eq!(done["response"]["status"], "cancelled");
    assert_eq!(done["response"]["status_details"]["reason"], "client_cancelled");
    assert_eq!(done["response"]["output"][0]["content"][0]["transcript"], "");
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
    // The assistant spoke nothing of it.
    let refused = device.until("error").await.pop().unwrap();
    assert_eq!(refused["error"]["param"], "audio_end_ms");
    device
        .send(json!({
            "type": "conversation.item.truncate", "item_id": first["item"]["id"], "content_index": 0, "audio_end_ms": 0,
        }))
        .await;
    // The next reply is held, or it might end before the device's event.
    device.until("conversation.item.truncated").await;
    drop(gate);
    let events = device.until("meridian.turn").await;
    assert_eq!(spoken_in(&events).unwrap(), "the hall lights are on");
}

#[tokio::test]
async fn no_more_can_be_cut_off_a_reply_than_there_is() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    device.speak("stop").await;
    let events = device.until("meridian.turn").await;
    let item = find(&events, "response.done")["response"]["output"][0]["id"].clone();
    let truncate = |content_index: u64, audio_end_ms: u64| {
        json!({
            "type": "conversation.item.truncate", "item_id": item, "content_index": content_index,
            "audio_end_ms": audio_end_ms,
        })
    };
    for (event, param) in [
        (truncate(7, 0), "content_index"),
        (truncate(0, 99_999_999), "audio_end_ms"),
    ] {
        device.send(event).await;
        assert_eq!(device.next().await["error"]["param"], param);
    }
    device.send(truncate(0, 100)).await;
    assert_eq!(device.next().await["type"], "conversation.item.truncated");
    device
        .send(json!({ "type": "conversation.item.retrieve", "item_id": item }))
        .await;
    assert_eq!(device.next().await["item"]["content"][0]["transcript"], Value::Null);
    // Truncated audio cannot be truncated to more.
    device.send(truncate(0, 101)).await;
    assert_eq!(device.next().await["error"]["param"], "audio_end_ms");
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
            "nobody has spoken",
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

/// The protocol allows 15 MiB in one event; here it is five minutes of a quiet room, and a command at the end.
#[tokio::test]
async fn minutes_of_audio_may_come_in_one_message() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    let room = (15 << 20) * 3 / 4 * 2 / 3 / 2 - 3 * SAMPLE_RATE as usize;
    let sound = [vec![0.0; room], sound_of("stop"), vec![0.0; SAMPLE_RATE as usize]].concat();
    let bytes = pcm::to_s16le(&resample::resample(&sound, SAMPLE_RATE, 24_000).unwrap());
    let audio = BASE64_STANDARD.encode(bytes);
    assert!(audio.len() > 14 << 20, "{}", audio.len());
    device
        .send(json!({ "type": "input_audio_buffer.append", "audio": audio }))
        .await;
    assert_eq!(spoken_in(&device.until("meridian.turn").await).unwrap(), "okay");

    // Without turn detection that is more than one turn may have.
    device.manual_turns().await;
    device
        .send(json!({ "type": "input_audio_buffer.append", "audio": audio, "event_id": "long" }))
        .await;
    let error = device.until("error").await.pop().unwrap();
    assert_eq!(error["error"]["code"], "input_audio_buffer_full");
    assert_eq!(error["error"]["event_id"], "long");
}

#[tokio::test]
async fn all_that_one_message_says_is_heard() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    let said = [
        "turn on the hall lights",
        "turn on the kitchen lights",
        "what time is it",
        "set a timer for ten minutes",
        "turn off the hall lights",
        "stop",
    ];
    let pause = vec![0.0; SAMPLE_RATE as usize];
    let sound: Vec<f32> = said
        .iter()
        .flat_map(|text| [pause.clone(), sound_of(text)].concat())
        .collect();
    let bytes = pcm::to_s16le(&resample::resample(&[sound, pause].concat(), SAMPLE_RATE, 24_000).unwrap());
    device
        .send(json!({ "type": "input_audio_buffer.append", "audio": BASE64_STANDARD.encode(bytes) }))
        .await;
    for text in said {
        let events = device
            .until("conversation.item.input_audio_transcription.completed")
            .await;
        assert!(!types(&events).contains(&"error"), "{events:#?}");
        assert_eq!(events.last().unwrap()["transcript"], text);
    }
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_and_the_session_goes_on() {
    let region = Region::start_with(engines(), |limits| limits.frame_bytes_max = 256 << 10).await;
    let mut device = Device::call(&region).await;
    let append = |bytes: usize| json!({ "type": "input_audio_buffer.append", "audio": "A".repeat(bytes) });
    device.send(append(270 << 10)).await;
    let error = device.until("error").await.pop().unwrap();
    assert_eq!(error["error"]["code"], "message_too_large");
    device.speak("stop").await;
    assert_eq!(spoken_in(&device.until("meridian.turn").await).unwrap(), "okay");

    // From an eighth above the limit the stack reads no further.
    device.send(append(600 << 10)).await;
    let error = device.until("error").await.pop().unwrap();
    assert_eq!(error["error"]["code"], "message_too_large");
    let (code, reason) = device.closed().await;
    assert_eq!(code, 1009);
    assert!(reason.contains("too large"), "{reason}");
}

#[tokio::test]
async fn what_lies_in_the_buffer_behind_an_utterance_is_no_turn() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    device.speak("stop").await;
    device.until("meridian.turn").await;
    device.send_audio(&vec![0.001; SAMPLE_RATE as usize / 2]).await;
    device.send(json!({ "type": "input_audio_buffer.commit" })).await;
    let events = device.until("error").await;
    assert_eq!(types(&events), ["error"]);
    assert_eq!(events[0]["error"]["code"], "input_audio_buffer_commit_empty");
}

#[tokio::test]
async fn a_commit_makes_no_response_and_the_clients_own_is_not_refused() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    device
        .send_audio(&[vec![0.0; SAMPLE_RATE as usize / 2], sound_of("stop")].concat())
        .await;
    device.until("input_audio_buffer.speech_started").await;
    device.send(json!({ "type": "input_audio_buffer.commit" })).await;
    let events = device
        .until("conversation.item.input_audio_transcription.completed")
        .await;
    assert!(!types(&events).contains(&"response.created"), "{events:#?}");
    device.send(json!({ "type": "response.create" })).await;
    let events = device.until("meridian.turn").await;
    assert!(!types(&events).contains(&"error"), "{events:#?}");
    assert_eq!(spoken_in(&events).unwrap(), "okay");
}

#[tokio::test]
async fn a_voice_in_the_input_of_a_response_is_answered_beside_the_conversation() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    let bytes = pcm::to_s16le(&resample::resample(&sound_of("turn on the hall lights"), SAMPLE_RATE, 24_000).unwrap());
    let item = json!({ "type": "message", "role": "user", "content": [
        { "type": "input_audio", "audio": BASE64_STANDARD.encode(bytes) },
    ]});
    device
        .send(json!({ "type": "response.create", "response": { "conversation": "none", "input": [item] } }))
        .await;
    let events = device.until("meridian.turn").await;
    assert_eq!(spoken_in(&events).unwrap(), "the hall lights are on");
    assert!(
        !types(&events).iter().any(|kind| kind.starts_with("conversation.")),
        "{events:#?}"
    );
}

#[tokio::test]
async fn a_client_of_the_plain_protocol_sees_no_event_of_another() {
    let region = Region::start().await;
    let mut device = Device::dial(&format!("ws://{}/v1/realtime?model=gpt-realtime", region.http)).await;
    device.speak("stop").await;
    device.until("response.done").await;
    device.speak("stop").await;
    let events = device.until("response.done").await;
    assert!(
        !types(&events).iter().any(|kind| kind.starts_with("meridian.")),
        "{events:#?}"
    );
}

#[tokio::test]
async fn a_client_that_turns_transcription_off_is_not_told_what_was_heard() {
    let region = Region::start().await;
    let mut device = Device::call(&region).await;
    device
        .send(json!({ "type": "session.update", "session": { "audio": { "input": { "transcription": null } } } }))
        .await;
    device.until("session.updated").await;
    device.speak("stop").await;
    let events = device.until("response.done").await;
    assert!(
        !types(&events).iter().any(|kind| kind.contains("transcription")),
        "{events:#?}"
    );
}
