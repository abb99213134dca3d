//! The order in which a session's messages go out: the checkpoint before an event, the event, the messages for the edge about turns, the
//! load. The socket sends them one by one and knows nothing of this order.

use std::{sync::Arc, time::Duration};

use topology::Moment;

use super::{
    edge_reports::AskedReports,
    reports::{LoadReports, has_passed},
    session::Session,
};

/// Period of checkpoints while the client only sends.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// A message that goes out next.
pub(super) enum Outgoing {
    /// An event of the protocol, as JSON.
    Event(String),
    /// A message for the edge; no device sees it.
    Private(Vec<u8>),
}

impl Session {
    /// From here on the edge gets the reports that it asked for.
    pub(super) fn begin_reports(&mut self, asked: AskedReports, now: Moment) {
        if asked.turns {
            self.edge.turns.ask();
        }
        if asked.load {
            // The answer to the upgrade told the load once.
            self.begin_load_reports(now);
        }
    }

    /// Whether an edge listens that can carry the session to another stack.
    pub(super) fn is_carried(&self) -> bool {
        self.edge.checkpoints.is_some()
    }

    fn begin_load_reports(&mut self, now: Moment) {
        self.edge.load = Some(LoadReports::begin(self.responses.turns(), now));
    }

    /// Whether [`Session::next_frame`] has a message to give.
    pub(super) fn has_frame(&self, now: Moment) -> bool {
        self.owes_edge() || self.outbox.is_ready() || self.owes_load(now)
    }

    /// Takes the message that goes out next.
    pub(super) fn next_frame(&mut self, now: Moment) -> Option<Outgoing> {
        let stack = Arc::clone(&self.stack);
        if self.owes_checkpoint()
            && let Some(key) = &stack.config.checkpoint_key
        {
            return Some(Outgoing::Private(self.checkpoint(key, now)));
        }
        if self.outbox.is_ready()
            && let Some(mut frame) = self.outbox.pop()
        {
            let text = std::mem::take(&mut frame.text);
            self.on_sent(&frame, now);
            return Some(Outgoing::Event(text));
        }
        if self.edge.turns.is_due() {
            return Some(Outgoing::Private(self.edge.turns.next()));
        }
        if self.owes_load(now) {
            self.begin_load_reports(now);
            return Some(Outgoing::Private(wire::Message::Load(stack.load()).to_bytes()));
        }
        None
    }

    /// Whether a client that reads would get an event now.
    pub(super) fn has_event(&self) -> bool {
        self.outbox.is_ready()
    }

    /// Whether more events wait than a client that reads ever has.
    pub(super) fn is_overfull(&self) -> bool {
        self.outbox.is_overfull()
    }

    /// Whether the session may end here unnoticed: no turn is in progress, and the edge has its last checkpoint.
    pub(super) fn may_end(&self) -> bool {
        self.is_between_turns() && !self.owes_edge()
    }

    /// Lets time pass: rings what is due, and notes that the edge may need a checkpoint.
    pub(super) fn on_time(&mut self, now: Moment) {
        self.ring(now);
        if self
            .last_checkpoint()
            .is_none_or(|at| has_passed(REPORT_EVERY, at, now))
        {
            self.note_report_time(now);
        }
    }

    fn owes_edge(&self) -> bool {
        self.owes_checkpoint() || self.edge.turns.is_due()
    }

    /// Whether the edge must get the load: after a turn, because only turns make work, and between turns, because it must not delay a
    /// reply.
    fn owes_load(&self, now: Moment) -> bool {
        let reports = self.edge.load.as_ref();
        reports.is_some_and(|reports| reports.is_due(self.responses.turns(), now) && self.is_between_turns())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use speech::scripted::{ScriptedRecognizer, ScriptedSynthesizer};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        config::Config,
        realtime::{opening::Opening, reports::LOAD_EVERY},
        stack::{Engines, Stack},
        store::MemoryStore,
    };

    const NOW: Moment = Moment(1_795_257_300_000);

    /// A session behind an edge that asks for everything there is.
    fn session() -> Session {
        let document = format!(
            "region = \"eu-west\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\ncheckpoint_key = \"{}\"",
            "ab".repeat(32)
        );
        let config: Config = daemon::config::parse("test", &document).unwrap();
        let engines = Engines {
            recognizer: Arc::new(ScriptedRecognizer::new()),
            synthesizer: Arc::new(ScriptedSynthesizer::new()),
        };
        let store = Box::new(MemoryStore::new(1, config.limits.session_ttl.0));
        let stack =
            Arc::new(Stack::new(config, engines, store, identity::Expiry(None), CancellationToken::new()).unwrap());
        let opening = Opening::of_new(&stack, "sess_1");
        let (mut session, _claim) = Session::new(stack, opening);
        session.begin_checkpoints();
        let asked = AskedReports {
            load: true,
            turns: true,
        };
        session.begin_reports(asked, NOW);
        session
    }

    /// The names of all messages that go out now.
    fn sent(session: &mut Session, now: Moment) -> Vec<String> {
        let mut names = Vec::new();
        while session.has_frame(now) {
            let name = match session.next_frame(now).expect("there is a frame") {
                Outgoing::Event(text) => {
                    let event: Value = serde_json::from_str(&text).unwrap();
                    event["type"].as_str().unwrap().to_owned()
                }
                Outgoing::Private(bytes) => match wire::Message::parse(&bytes).unwrap() {
                    wire::Message::Checkpoint(_) => "checkpoint",
                    wire::Message::Turn(_) => "turn",
                    wire::Message::Load(_) => "load",
                    wire::Message::Resume(_) | wire::Message::Trouble(_) => {
                        panic!("nothing is resumed and nothing goes wrong")
                    }
                }
                .to_owned(),
            };
            names.push(name);
        }
        assert!(session.next_frame(now).is_none());
        names
    }

    #[test]
    fn a_checkpoint_goes_before_the_events_that_follow_from_it_and_the_load_behind_them() {
        let mut session = session();
        assert!(!session.may_end(), "the edge does not know the session yet");
        assert_eq!(sent(&mut session, NOW), ["checkpoint", "session.created", "checkpoint"]);
        assert!(session.may_end());

        let text = json!({ "type": "session.update", "session": { "output_modalities": ["text"] } });
        session.on_message(&text.to_string(), NOW);
        let item = json!({ "type": "conversation.item.create", "item": {
            "role": "user", "content": [{ "type": "input_text", "text": "turn on the hall lights" }],
        }});
        session.on_message(&item.to_string(), NOW);
        session.on_message(r#"{"type":"response.create"}"#, NOW);
        let names = sent(&mut session, NOW);
        assert_eq!(names.first().map(String::as_str), Some("checkpoint"));
        let done = names.iter().position(|name| name == "response.done").unwrap();
        let turn = names.iter().position(|name| name == "turn").unwrap();
        assert!(done < turn, "{names:?}");
        assert!(
            !names.contains(&"load".to_owned()),
            "a second has not passed: {names:?}"
        );

        let later = NOW + LOAD_EVERY;
        assert_eq!(sent(&mut session, later), ["load"]);
        assert_eq!(sent(&mut session, later + LOAD_EVERY), [""; 0], "no turn, no new load");
    }

    #[test]
    fn an_edge_hears_of_messages_without_events_once_a_second_even_when_the_clock_jumps_back() {
        let mut session = session();
        sent(&mut session, NOW);
        for now in [NOW + REPORT_EVERY, NOW] {
            session.on_message(r#"{"type":"input_audio_buffer.append","audio":"AAAA"}"#, now);
            session.on_time(now);
            assert_eq!(sent(&mut session, now), ["checkpoint"]);
            session.on_message(r#"{"type":"input_audio_buffer.append","audio":"AAAA"}"#, now);
            session.on_time(now + Duration::from_millis(1));
            assert_eq!(sent(&mut session, now), [""; 0]);
        }
    }
}
