//! A session's continuity at the edge, driven by the private messages of a region and the messages of a device.

use std::sync::Arc;

use routing::continuity::{Budget, Continuity};
use wire::Load;

/// Little memory for a session's messages, so that the fuzzer reaches the bound.
const LOG_BYTES_MAX: usize = 256;
const BUDGET_BYTES: usize = 300;

/// Reads a sequence of steps: a byte for the kind of step, a length, and that many bytes.
pub(crate) fn continue_session(bytes: &[u8]) {
    let budget = Arc::new(Budget::new(BUDGET_BYTES));
    let mut session = Continuity::new(LOG_BYTES_MAX, budget.clone());
    let mut rest = bytes;
    while let [step, length, after @ ..] = rest {
        let (said, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        match step % 5 {
            0 => take_message(&mut session, said),
            1 => session.append(said, step & 0x80 != 0),
            2 => drop(session.delivered()),
            3 => hand_over(&mut session),
            _ => read_load(said),
        }
        let _ = (session.is_busy(), session.awaits_region(), session.can_move());
    }
    drop(session);
    assert_eq!(
        budget.remaining(),
        BUDGET_BYTES,
        "a session that ends gives back its bytes"
    );
}

fn take_message(session: &mut Continuity, bytes: &[u8]) {
    let Ok(message) = wire::Message::parse(bytes) else {
        return;
    };
    assert_eq!(message.to_bytes(), bytes, "a message is written as it was read");
    if let wire::Message::Checkpoint(checkpoint) = &message {
        let _ = session.checkpoint(checkpoint);
    }
}

/// The handover must be a `Resume` that the next region can parse.
fn hand_over(session: &mut Continuity) {
    if let Some(handover) = session.hand_over() {
        match wire::Message::parse(&handover.message) {
            Ok(wire::Message::Resume(resume)) => assert!(handover.is_broken == resume.is_broken),
            other => panic!("the next region gets {other:?}"),
        }
        assert!(handover.replay.len() <= LOG_BYTES_MAX, "the replay is bounded");
    }
}

fn read_load(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(load) = text.parse::<Load>() {
        assert_eq!(load.to_string().parse(), Ok(load), "a load is read as it was written");
    }
}
