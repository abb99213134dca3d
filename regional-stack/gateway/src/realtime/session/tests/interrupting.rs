//! A voice, or a noise, comes during a reply.

use super::*;

/// Somebody seems to speak, and a response is made for what was heard. Its words come with [`heard`].
fn interrupted_by(session: &mut Session, id: &str, now: Moment) {
    session.interrupt(now);
    session.items.insert(Item::heard(id.to_owned(), &[]), usize::MAX);
    let hearing = Hearing {
        item: id.to_owned(),
        seconds: 0.4,
        source: Source::Message(0),
        aside: false,
        ticket: None,
    };
    session.hearing.add(hearing).unwrap();
    session.want(id.to_owned(), now);
}

fn heard(session: &mut Session, text: &str, now: Moment) -> Vec<Value> {
    let transcript = Transcript {
        text: text.to_owned(),
        confidence: 1.0,
    };
    let done = Done {
        output: transcript,
        took: Duration::from_millis(5),
    };
    session.on_heard(Ok(done), now);
    sent(session, now)
}

/// A session with an answer to these words in progress, of which nothing was sent.
fn answering(question: &str) -> Session {
    let mut session = session();
    write(&mut session, question);
    session.on_message(r#"{"type":"response.create"}"#, NOW);
    session
}

fn replies(events: &[Value]) -> Vec<&str> {
    let turns = events.iter().filter(|event| event["type"] == "meridian.turn");
    let replies = turns.map(|turn| (turn["reply"].as_str().unwrap(), &turn["status"]));
    replies
        .filter(|(reply, status)| !reply.is_empty() && **status == "completed")
        .map(|(reply, _)| reply)
        .collect()
}

const LIT: &str = "the hall lights are on";

#[test]
fn two_coughs_cost_no_answer_and_words_between_them_are_answered_instead() {
    for (first, said) in [("", LIT), ("set a timer for ten minutes", "timer set for ten minutes")] {
        let mut session = answering("turn on the hall lights");
        interrupted_by(&mut session, "one", NOW);
        interrupted_by(&mut session, "two", NOW);
        heard(&mut session, first, NOW);
        assert_eq!(replies(&heard(&mut session, "", NOW)), [said]);
        assert!(session.is_between_turns() && !session.responses.has_interrupted());
    }
}

#[test]
fn a_cough_minutes_later_repeats_nothing() {
    let later = NOW + Duration::from_secs(11);
    let mut session = answering("turn on the hall lights");
    interrupted_by(&mut session, "one", NOW);
    assert_eq!(replies(&heard(&mut session, "", later)), [""; 0]);

    let manual = r#"{"type":"session.update","session":{"audio":{"input":{"turn_detection":null}}}}"#;
    for ended_by in [
        r#"{"type":"input_audio_buffer.clear"}"#,
        r#"{"type":"input_audio_buffer.commit"}"#,
        manual,
    ] {
        let mut session = answering("turn on the hall lights");
        session.interrupt(NOW);
        session.on_message(ended_by, NOW);
        sent(&mut session, NOW);
        interrupted_by(&mut session, "one", NOW);
        assert_eq!(replies(&heard(&mut session, "", NOW)), [""; 0], "{ended_by}");
    }
}

#[test]
fn what_was_interrupted_goes_on_at_once_when_the_utterance_is_refused() {
    let mut session = answering("turn on the hall lights");
    session.interrupt(NOW);
    session.resume_at_once(NOW);
    assert_eq!(replies(&sent(&mut session, NOW)), [LIT]);

    // An item without an answer gets one.
    let mut session = self::session();
    interrupted_by(&mut session, "question", NOW);
    session.interrupt(NOW);
    session.resume_at_once(NOW);
    assert_eq!(replies(&heard(&mut session, "turn on the hall lights", NOW)), [LIT]);
}

#[test]
fn what_waits_behind_a_response_beside_the_conversation_is_not_interrupted() {
    let mut session = session();
    let beside = json!({ "type": "response.create", "response": { "conversation": "none", "input": [
        { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "what time is it" }] },
    ]}});
    session.on_message(&beside.to_string(), NOW);
    interrupted_by(&mut session, "waits", NOW);
    session.interrupt(NOW);
    let events = heard(&mut session, "turn on the hall lights", NOW);
    assert_eq!(replies(&events).len(), 2, "{events:#?}");
    assert_eq!(replies(&events)[1], LIT);
}

#[test]
fn a_function_that_a_cough_interrupts_is_called_once() {
    // The client got the call, or nothing.
    for told in [true, false] {
        let mut session = session();
        session.on_message(PIZZA, NOW);
        sent(&mut session, NOW);
        write(&mut session, "order a large pizza");
        session.on_message(r#"{"type":"response.create"}"#, NOW);
        let mut events = Vec::new();
        while told && !types(&events).contains(&"response.function_call_arguments.done") {
            let frame = session.outbox.pop().unwrap();
            session.on_sent(&frame, NOW);
            events.push(serde_json::from_str(&frame.text).unwrap());
        }
        interrupted_by(&mut session, "cough", NOW);
        events.extend(heard(&mut session, "", NOW));
        let calls = types(&events);
        let calls = calls
            .iter()
            .filter(|kind| **kind == "response.function_call_arguments.done");
        assert_eq!(calls.count(), 1, "told: {told}");
    }
}

/// In the conversation or beside it, an utterance may wait for the response before it.
#[test]
fn what_could_not_be_recognised_while_it_waited_fails() {
    let mut session = session();
    let beside = json!({ "type": "response.create", "response": { "conversation": "none", "input": [
        { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "what time is it" }] },
    ]}});
    session.on_message(&beside.to_string(), NOW);
    let sound = base64::prelude::BASE64_STANDARD.encode(vec![1u8; 24_000]);
    let voice = json!({ "type": "response.create", "response": { "conversation": "none", "metadata": { "a": "voice" }, "input": [
        { "type": "message", "role": "user", "content": [{ "type": "input_audio", "audio": sound }] },
    ]}});
    session.on_message(&voice.to_string(), NOW);
    interrupted_by(&mut session, "waits", NOW);
    for _ in 0..2 {
        session.on_heard(Err(JobError::Late), NOW);
    }
    let events = sent(&mut session, NOW);
    let done = events.iter().filter(|event| event["type"] == "response.done");
    let done: Vec<&str> = done
        .map(|event| event["response"]["status"].as_str().unwrap())
        .collect();
    assert_eq!(done, ["completed", "failed", "failed"]);
    assert!(session.is_between_turns());
}
