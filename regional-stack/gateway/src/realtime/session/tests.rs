use base64::{Engine as _, prelude::BASE64_STANDARD};
use dialogue::{City, DialogueState};
use serde_json::json;
use speech::Transcript;
use speech::scripted::{ScriptedRecognizer, ScriptedSynthesizer};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        conversation::ITEMS_MAX,
        items::Item,
        recognising::{HEARING_MAX, Hearing, Source},
    },
    *,
};
use crate::{config::Config, stack::Engines, store::MemoryStore, workers::Done};

mod interrupting;

const NOW: Moment = Moment(1_795_257_300_000);

/// A session without a socket. It answers in text, so that no engine has to speak.
fn session() -> Session {
    let settings = Settings {
        ours: true,
        ..Settings::default()
    };
    let mut session = resumed(&Snapshot {
        settings,
        ..Snapshot::default()
    });
    session.on_message(
        r#"{"type":"session.update","session":{"output_modalities":["text"]}}"#,
        NOW,
    );
    sent(&mut session, NOW);
    session
}

fn resumed(earlier: &Snapshot) -> Session {
    let config: Config = daemon::config::parse(
        "test",
        "region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"",
    )
    .unwrap();
    let engines = Engines {
        recognizer: Arc::new(ScriptedRecognizer::new()),
        synthesizer: Arc::new(ScriptedSynthesizer::new()),
    };
    let store = Box::new(MemoryStore::new(1, Duration::from_secs(1)));
    let stack = Arc::new(Stack::new(config, engines, store, identity::Expiry(None), CancellationToken::new()).unwrap());
    let mut opening = Opening::of_new(&stack, "sess_1");
    opening.memory = Some(Memory {
        dialogue: DialogueState::new(City::London),
        session: serde_json::to_string(earlier).ok().map(Arc::from),
        revision: Moment(0),
        may_go_on_elsewhere: false,
    });
    Session::new(stack, opening).0
}

fn tell(session: &mut Session, event: &Value) -> Vec<Value> {
    session.on_message(&event.to_string(), NOW);
    sent(session, NOW)
}

fn write(session: &mut Session, text: &str) {
    let item = json!({ "type": "conversation.item.create", "item": {
        "role": "user", "content": [{ "type": "input_text", "text": text }],
    }});
    session.on_message(&item.to_string(), NOW);
}

fn say(session: &mut Session, text: &str, now: Moment) -> Vec<Value> {
    write(session, text);
    session.on_message(r#"{"type":"response.create"}"#, now);
    sent(session, now)
}

fn sent(session: &mut Session, now: Moment) -> Vec<Value> {
    let mut events = Vec::new();
    while let Some(frame) = session.outbox.pop() {
        session.on_sent(&frame, now);
        events.push(serde_json::from_str(&frame.text).unwrap());
    }
    events
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

fn find<'a>(events: &'a [Value], kind: &str) -> &'a Value {
    let found = events.iter().find(|event| event["type"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} in {events:#?}"))
}

fn reply(events: &[Value]) -> &str {
    find(events, "meridian.turn")["reply"].as_str().unwrap()
}

#[test]
fn a_timer_rings_when_nobody_is_talking_until_somebody_says_that_they_heard_it() {
    let mut session = session();
    assert_eq!(
        reply(&say(&mut session, "set a timer for ten minutes", NOW)),
        "timer set for ten minutes"
    );
    assert!(session.take_unsaved().is_some());
    session.ring(NOW + Duration::from_secs(599));
    assert!(sent(&mut session, NOW).is_empty());

    let due = NOW + Duration::from_secs(600);
    session.ring(due);
    let events = sent(&mut session, due);
    assert_eq!(events[0]["type"], "response.created");
    assert_eq!(reply(&events), "your timer for ten minutes is done");
    session.ring(due);
    assert!(sent(&mut session, due).is_empty());
    assert!(session.is_between_turns());

    let again = due + dialogue::RING_EVERY;
    session.ring(again);
    let rung = sent(&mut session, again);
    assert_eq!(reply(&rung), "your timer for ten minutes is done");
    assert!(session.take_unsaved().is_some(), "how often it rang is remembered");
    let item = &find(&rung, "response.done")["response"]["output"][0]["id"];
    let played = json!({ "type": "meridian.playback", "played": item });
    session.on_message(&played.to_string(), again);
    assert_eq!(session.device.dialogue.pending(), 0);
    session.ring(again + dialogue::RING_EVERY);
    assert!(sent(&mut session, again).is_empty());
}

/// The loudspeaker worked, but the sleeper may not have woken up.
#[test]
fn an_alarm_that_was_played_rings_on_until_somebody_says_that_they_heard_it() {
    let mut session = session();
    say(&mut session, "set an alarm for eleven a m", NOW);
    let mut now = session.device.dialogue.next_ring().unwrap();
    for _ in 0..3 {
        session.ring(now);
        let rung = sent(&mut session, now);
        assert!(reply(&rung).contains("eleven"), "{}", reply(&rung));
        let item = &find(&rung, "response.done")["response"]["output"][0]["id"];
        session.on_message(&json!({ "type": "meridian.playback", "played": item }).to_string(), now);
        assert_eq!(session.device.dialogue.pending(), 1);
        now = now + dialogue::RING_EVERY;
    }
    session.on_message(r#"{"type":"meridian.ring.acknowledge"}"#, now);
    assert_eq!(session.device.dialogue.pending(), 0);
}

#[test]
fn a_ring_that_a_cough_cut_off_is_acknowledged_by_the_item_with_which_it_is_said_again() {
    let mut session = session();
    say(&mut session, "set a timer for ten minutes", NOW);
    let due = NOW + Duration::from_secs(600);
    session.ring(due);
    let first = session.device.rung.clone().unwrap();
    session.interrupt(due);
    sent(&mut session, due);
    write(&mut session, "hm");
    let last = session.items.last_id().unwrap().to_owned();
    session.items.get_mut(&last).unwrap().text = Some(String::new());
    session.on_message(r#"{"type":"response.create"}"#, due);
    let events = sent(&mut session, due);
    assert_eq!(reply(&events), "your timer for ten minutes is done");
    let item = find(&events, "response.done")["response"]["output"][0]["id"].clone();
    assert_ne!(item, json!(first));
    tell(&mut session, &json!({ "type": "meridian.playback", "played": item }));
    assert_eq!(session.device.dialogue.pending(), 0);
}

/// The television talks all the while.
#[test]
fn an_alarm_rings_through_what_the_ear_takes_for_speech() {
    let mut session = session();
    say(&mut session, "set a timer for ten minutes", NOW);
    let due = NOW + Duration::from_secs(600);
    // A voice: loud and quiet in turns.
    let samples = (0..3 * 24_000).map(|at: i32| {
        if at / 2400 % 2 == 0 {
            (at % 97) * 300 - 14_500
        } else {
            0
        }
    });
    let bytes: Vec<u8> = samples.flat_map(|sample| (sample as i16).to_le_bytes()).collect();
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let append = json!({ "type": "input_audio_buffer.append", "audio": BASE64_STANDARD.encode(bytes) });
    session.on_message(&append.to_string(), due);
    while session.listen_on(due) {}
    sent(&mut session, due);
    assert!(session.input.buffer.is_hearing_speech());
    session.ring(due + Duration::from_secs(14));
    assert!(sent(&mut session, due).is_empty(), "somebody talks");
    let late = due + Duration::from_secs(15);
    session.ring(late);
    assert_eq!(reply(&sent(&mut session, late)), "your timer for ten minutes is done");
}

/// "Wake me at seven", and the device is off until twelve minutes past.
#[test]
fn a_late_ring_says_how_late_it_is_and_does_so_anew_on_every_connection() {
    let mut first = session();
    say(&mut first, "set a timer for ten minutes", NOW);
    let late = NOW + Duration::from_secs(22 * 60);
    let mut memory = first.memory();
    for _ in 0..2 {
        let mut opening = Opening::of_new(&first.stack, "sess_1");
        opening.memory = Some(memory);
        let (mut later, _claim) = Session::new(Arc::clone(&first.stack), opening);
        sent(&mut later, late);
        later.ring(late);
        assert_eq!(
            reply(&sent(&mut later, late)),
            "your timer for ten minutes ended twelve minutes ago"
        );
        memory = later.memory();
    }
}

#[test]
fn a_response_without_a_question_introduces_the_assistant_and_a_second_one_waits_its_turn() {
    let mut session = session();
    session.on_message(r#"{"type":"response.create"}"#, NOW);
    session.on_message(r#"{"type":"response.create"}"#, NOW);
    let events = sent(&mut session, NOW);
    assert!(reply(&events).starts_with("you can ask for"));
    let error = find(&events, "error");
    assert_eq!(error["error"]["code"], "conversation_already_has_active_response");
}

#[test]
fn the_event_of_a_turn_says_what_was_done() {
    let mut session = session();
    for (said, intent, action) in [
        ("set a timer for ten minutes", "timer.set", json!("timer.set")),
        ("set a timer for twenty five hours", "timer.set", Value::Null),
        ("no", "stop", Value::Null),
        ("cancel the pasta timer", "timer.cancel", Value::Null),
        ("cancel the timer", "timer.cancel", json!("timer.cancel")),
        ("what time is it", "time.query", Value::Null),
    ] {
        let events = say(&mut session, said, NOW);
        let turn = find(&events, "meridian.turn");
        assert_eq!((&turn["intent"], &turn["action"]), (&json!(intent), &action), "{said}");
    }
}

#[test]
fn what_was_hardly_heard_is_neither_done_nor_answered() {
    for (asr_confidence, intent, status) in [(Some(0.55), "rejected", None), (Some(0.9), "lights.off", Some(0))] {
        let mut session = session();
        let item = json!({ "type": "conversation.item.create", "item": {
            "role": "user", "content": [{ "type": "input_text", "text": "turn off the kitchen light" }],
        }});
        session.on_message(&item.to_string(), NOW);
        let id = session.items.last_id().unwrap().to_owned();
        session.items.get_mut(&id).unwrap().asr_confidence = asr_confidence;
        session.on_message(r#"{"type":"response.create"}"#, NOW);
        let events = sent(&mut session, NOW);
        let turn = events.iter().find(|event| event["type"] == "meridian.turn").unwrap();
        assert_eq!(
            (&turn["intent"], turn["reply"] == ""),
            (&json!(intent), status.is_none())
        );
        assert_eq!(
            session.device.dialogue.lights.get(&dialogue::Room::Kitchen).copied(),
            status,
            "{intent}"
        );
        assert!(session.is_between_turns());
    }
}

/// The same for sound that comes with the response itself.
#[test]
fn what_was_hardly_heard_in_the_input_of_a_response_is_not_done_either() {
    for (confidence, status) in [(0.55, None), (0.9, Some(0))] {
        let mut session = session();
        let audio = BASE64_STANDARD.encode(vec![0u8; 24_000]);
        let create = json!({ "type": "response.create", "response": { "conversation": "none", "input": [
            { "type": "message", "role": "user", "content": [{ "type": "input_audio", "audio": audio }] },
        ]}});
        tell(&mut session, &create);
        assert_eq!(session.hearing.free(), HEARING_MAX - 1);
        let output = Transcript {
            text: "turn off the kitchen light".to_owned(),
            confidence,
        };
        let took = Duration::from_millis(5);
        session.on_heard(Ok(Done { output, took }), NOW);
        let events = sent(&mut session, NOW);
        assert_eq!(reply(&events).is_empty(), status.is_none(), "{confidence}");
        let lights = &session.device.dialogue.lights;
        assert_eq!(lights.get(&dialogue::Room::Kitchen).copied(), status, "{confidence}");
    }
}

#[test]
fn items_can_be_retrieved_and_deleted() {
    let mut session = session();
    let events = say(&mut session, "stop", NOW);
    let id = find(&events, "response.done")["response"]["output"][0]["id"].clone();
    for (event, answer) in [
        ("conversation.item.retrieve", "conversation.item.retrieved"),
        ("conversation.item.delete", "conversation.item.deleted"),
        ("conversation.item.delete", "error"),
    ] {
        let events = tell(&mut session, &json!({ "type": event, "item_id": id }));
        assert_eq!(events[0]["type"], answer);
    }
}

#[test]
fn memory_of_a_long_conversation_is_bounded() {
    let mut session = session();
    for _ in 0..3 * ITEMS_MAX {
        say(&mut session, "what time is it", NOW);
    }
    assert_eq!(session.items.len(), ITEMS_MAX);
}

#[test]
fn an_item_goes_where_the_client_puts_it() {
    let mut session = session();
    let create = |id: &str, previous: Value| {
        json!({ "type": "conversation.item.create", "previous_item_id": previous, "item": {
            "id": id, "type": "message", "role": "developer", "content": [{ "type": "input_text", "text": id }],
        }})
    };
    for (id, previous, told) in [
        ("b", Value::Null, Value::Null),
        ("a", json!("root"), Value::Null),
        ("d", Value::Null, json!("b")),
        ("c", json!("b"), json!("b")),
    ] {
        let events = tell(&mut session, &create(id, previous));
        assert_eq!(types(&events), ["conversation.item.added", "conversation.item.done"]);
        assert_eq!(events[0]["previous_item_id"], told, "{id}");
        assert_eq!(events[0]["item"]["role"], "system");
    }
    let order: Vec<&str> = session.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(order, ["a", "b", "c", "d"]);
    let events = tell(&mut session, &create("e", json!("nobody")));
    assert_eq!(events[0]["error"]["code"], "item_not_found");
    assert_eq!(events[0]["error"]["param"], "previous_item_id");
    assert_eq!(session.items.len(), 4);
}

#[test]
fn events_of_ours_go_to_those_who_ask_for_them() {
    let mut session = resumed(&Snapshot::default());
    let update = |include: Value| json!({ "type": "session.update", "session": { "output_modalities": ["text"], "include": include } });
    tell(&mut session, &update(Value::Null));
    assert_eq!(types(&say(&mut session, "stop", NOW)).last(), Some(&"response.done"));
    assert!(session.is_between_turns());
    tell(&mut session, &update(json!(["meridian.turn"])));
    assert_eq!(types(&say(&mut session, "stop", NOW)).last(), Some(&"meridian.turn"));
    let refused = tell(&mut session, &update(json!(["everything"])));
    assert_eq!(refused[0]["error"]["param"], "session.include");
}

const PIZZA: &str = r#"{"type":"session.update","session":{"tools":[{"type":"function","name":"order_pizza",
    "description":"Orders a pizza.","parameters":{"type":"object","required":["size"],"properties":{
    "size":{"type":"string","enum":["small","large"]}}}}]}}"#;

#[test]
fn a_function_is_called_and_what_comes_of_it_is_said() {
    let mut session = session();
    session.on_message(PIZZA, NOW);
    sent(&mut session, NOW);
    let events = say(&mut session, "order a large pizza", NOW);
    assert_eq!(
        types(&events),
        [
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
            "rate_limits.updated",
            "response.output_item.added",
            "conversation.item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "conversation.item.done",
            "response.output_item.done",
            "response.done",
            "meridian.turn",
        ]
    );
    let done = find(&events, "response.function_call_arguments.done");
    assert_eq!(done["name"], "order_pizza");
    assert_eq!(done["arguments"], r#"{"size":"large"}"#);
    let item = &find(&events, "response.done")["response"]["output"][0];
    assert_eq!(item["type"], "function_call");
    assert_eq!(item["call_id"], done["call_id"]);
    assert_eq!(item["status"], "completed");

    let output = |call_id: &Value| {
        json!({ "type": "conversation.item.create", "item": {
            "type": "function_call_output", "call_id": call_id, "output": "{\"message\": \"one large pizza comes at nine\"}",
        }})
    };
    let refused = tell(&mut session, &output(&json!("call_unknown")));
    assert_eq!(refused[0]["error"]["param"], "item.call_id");
    tell(&mut session, &output(&done["call_id"]));
    let events = tell(&mut session, &json!({ "type": "response.create" }));
    assert_eq!(reply(&events), "one large pizza comes at nine");
    // The assistant's own skills go on as before.
    assert_eq!(
        reply(&say(&mut session, "turn on the hall lights", NOW)),
        "the hall lights are on"
    );
}

#[test]
fn a_required_call_is_not_made_for_words_that_forbid_it_and_the_reply_says_so() {
    let mut session = session();
    session.on_message(PIZZA, NOW);
    let required = json!({ "type": "session.update", "session": { "tool_choice": "required" } });
    tell(&mut session, &required);
    for words in ["do not order a large pizza", "did you order a large pizza"] {
        let events = say(&mut session, words, NOW);
        assert_eq!(
            reply(&events),
            "i called no function, because that was no order",
            "{words}"
        );
        assert_eq!(find(&events, "response.done")["response"]["status"], "completed");
    }
    let events = say(&mut session, "do not turn on the hall lights", NOW);
    assert_eq!(reply(&events), "okay, i leave the hall lights as they are");
    let events = say(&mut session, "order a large pizza", NOW);
    assert_eq!(
        find(&events, "response.function_call_arguments.done")["name"],
        "order_pizza"
    );
}

#[test]
fn a_response_beside_the_conversation_leaves_no_trace_in_it() {
    let mut session = session();
    let events = tell(
        &mut session,
        &json!({ "type": "response.create", "response": {
            "conversation": "none", "metadata": { "topic": "rooms" }, "instructions": "be brief",
            "input": [
                { "type": "message", "role": "system", "content": [{ "type": "input_text", "text": "be kind" }] },
                { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "turn on the hall lights" }] },
            ],
        }}),
    );
    assert!(!types(&events).contains(&"conversation.item.added"), "{events:#?}");
    let created = &find(&events, "response.created")["response"];
    let done = &find(&events, "response.done")["response"];
    for response in [created, done] {
        assert_eq!(response["metadata"]["topic"], "rooms");
        assert_eq!(response["conversation_id"], Value::Null);
    }
    assert_eq!(done["output"][0]["content"][0]["text"], "the hall lights are on");
    assert_eq!(session.items.len(), 0);

    let events = say(&mut session, "set a timer for ten minutes", NOW);
    assert_eq!(find(&events, "response.done")["response"]["conversation_id"], "conv_1");
    let asked = &find(&events, "conversation.item.added")["item"]["id"];
    // The assistant does not act again on an answered item: there is one timer, and not two.
    let events = tell(
        &mut session,
        &json!({ "type": "response.create", "response": {
            "conversation": "none", "input": [{ "type": "item_reference", "id": asked }],
        }}),
    );
    assert_eq!(reply(&events), "timer set for ten minutes");
    assert_eq!(session.items.len(), 2);
    say(&mut session, "cancel the timer", NOW);
    let events = say(&mut session, "cancel the timer", NOW);
    assert_eq!(reply(&events), "there is no timer");
}

#[test]
fn what_a_client_set_up_and_said_goes_on_in_a_later_connection() {
    let mut session = session();
    session.on_message(PIZZA, NOW);
    say(&mut session, "stop", NOW);
    let kept = serde_json::to_string(&session.snapshot()).unwrap();
    let mut later = resumed(&serde_json::from_str(&kept).unwrap());
    let created = sent(&mut later, NOW);
    assert_eq!(created[0]["session"]["output_modalities"], json!(["text"]));
    assert_eq!(created[0]["session"]["tools"][0]["name"], "order_pizza");
    let last = later.items.last_id().unwrap().to_owned();
    let events = tell(
        &mut later,
        &json!({ "type": "conversation.item.retrieve", "item_id": last }),
    );
    assert_eq!(events[0]["item"]["content"][0]["text"], "okay");
}

/// A memory as a stack of the release before this one wrote it.
#[test]
fn settings_and_items_of_the_previous_release_are_read() {
    let settings = r#"{"instructions":"","modality":"Text","turn_detection":null,"voice":"ash","speed":1.0}"#;
    let settings: Settings = serde_json::from_str(settings).unwrap();
    assert!(settings.ours && settings.transcribes && settings.tools.is_empty());
    let item = r#"{"id":"item_1","role":"User","content":"Text","text":"stop","answered":true,"asr":null}"#;
    let item: Item = serde_json::from_str(item).unwrap();
    assert_eq!(item.describe()["status"], "completed");
    let item =
        r#"{"id":"item_1","role":"User","content":"Audio","text":"stop","answered":true,"asr":null,"surety":0.5}"#;
    let item: Item = serde_json::from_str(item).unwrap();
    assert_eq!(item.asr_confidence, Some(0.5));
    assert_eq!(serde_json::to_value(&item).unwrap()["surety"], 0.5);
}
