//! A session for the fuzzer: without a socket, and with engines whose results nobody awaits.

use std::sync::Arc;

use serde_json::Value;
use topology::Moment;

use super::{client::ClientEvent, conversation::ITEMS_MAX, opening::Opening, session::Session, snapshot::Snapshot};
use crate::{
    stack::Stack,
    store::{self, Memory},
};

/// Takes a client's messages, one in each line. Panics when the session does something that it must not.
pub(crate) fn converse(stack: &Arc<Stack>, bytes: &[u8]) {
    let now = Moment(1_795_257_300_000);
    let (mut session, _claim) = Session::new(Arc::clone(stack), Opening::of_new(stack, "sess_1"));
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let message = String::from_utf8_lossy(line);
        let is_event = ClientEvent::parse(&message).is_ok();
        session.on_message(&message, now);
        while session.listen_on(now) {}
        let mut errors = 0;
        // The client reads all events after every second message; between them the session can take events back.
        while at % 2 == 1
            && let Some(frame) = session.outbox.pop()
        {
            session.on_sent(&frame, now);
            let event: Value = serde_json::from_str(&frame.text).expect("an event is JSON");
            assert!(event["type"].is_string() && event["event_id"].is_string(), "{event}");
            if event["type"] == "error" {
                assert!(
                    event["error"]["message"].is_string() && event["error"]["code"].is_string(),
                    "{event}"
                );
                errors += 1;
            }
        }
        assert!(
            is_event || at % 2 == 0 || errors > 0,
            "a message that is no event is answered"
        );
        assert!(session.items.len() <= ITEMS_MAX, "memory is bounded");
    }
    let kept = serde_json::to_string(&session.snapshot()).expect("a session can be written down");
    let _: Snapshot = serde_json::from_str(&kept).expect("and read again");
}

/// Restores a session from a file with these bytes. Whatever it can read it can write, and read again.
pub(crate) fn reopen(stack: &Arc<Stack>, bytes: &[u8]) {
    let now = Moment(1_795_257_300_000);
    let home = stack.config.home_city;
    let Ok((name, memory)) = store::read_state(bytes, home) else {
        return;
    };
    if let Some(written) = store::write_state(&name, &memory) {
        let (again, read) = store::read_state(&written, home).expect("what is written can be read");
        let session = read.session.or_else(|| memory.session.clone());
        assert_eq!((again, Memory { session, ..read }), (name, memory.clone()));
    }
    let mut opening = Opening::of_new(stack, "sess_1");
    opening.memory = Some(memory);
    let (mut session, _claim) = Session::new(Arc::clone(stack), opening);
    session.ring(now);
    let _ = session.memory();
}
