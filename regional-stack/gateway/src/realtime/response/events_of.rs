//! The events of a response for its client: its item, its content, and its end, good or early.

use serde_json::Value;

use super::Response;
use crate::realtime::{
    events::{self, Place},
    settings::Modality,
};

impl Response {
    pub(in crate::realtime) fn place(&self) -> Place<'_> {
        Place {
            response: &self.id,
            item: &self.item,
        }
    }

    /// The events that announce its empty item.
    pub(in crate::realtime) fn added_events(&self) -> Vec<Value> {
        let item = self.describe_item("in_progress");
        let mut events = vec![events::output_item_added(&self.id, &item)];
        if !self.options.aside {
            events.push(events::item_added(&item, self.previous.as_deref()));
        }
        events
    }

    /// The events of its function call; none for a reply.
    pub(in crate::realtime) fn call_events(&self) -> Vec<Value> {
        let Some(call) = &self.call else { return Vec::new() };
        let place = self.place();
        vec![
            place.arguments_delta(&call.call_id, &call.arguments),
            place.arguments_done(&call.call_id, &call.name, &call.arguments),
        ]
    }

    /// The events with the beginning of its content, and with all of its text.
    pub(in crate::realtime) fn reply_events(&self) -> Vec<Value> {
        let (place, text) = (self.place(), &self.turn.reply);
        let mut events = vec![place.content_part_added(self.describe_part(""))];
        match self.modality {
            Modality::Text => events.extend([place.text_delta(text), place.text_done(text)]),
            Modality::Audio => events.push(place.audio_transcript_delta(text)),
        }
        events
    }

    /// The events of its good end, except those of its audio or text. The last one is `response.done`.
    pub(in crate::realtime) fn completed_events(&self, conversation: &str) -> Vec<Value> {
        let mut events = Vec::new();
        if self.added {
            if self.call.is_none() {
                let part = self.describe_part(&self.turn.reply);
                events.push(self.place().content_part_done(part));
            }
            let item = self.describe_item("completed");
            if !self.options.aside {
                events.push(events::item_done(&item, self.previous.as_deref()));
            }
            events.push(events::output_item_done(&self.id, &item));
        }
        events.push(events::response_done(&self.describe(
            "completed",
            &Value::Null,
            conversation,
        )));
        events
    }

    /// The events that end each part early that the client has the beginning of; none if it has no item. `unsent` are the types of the
    /// events that it did not get.
    pub(in crate::realtime) fn cut_events(&self, unsent: &[String]) -> Vec<Value> {
        if !self.added {
            return Vec::new();
        }
        let is_unsent = |kind: &str| unsent.iter().any(|unsent| unsent == kind);
        let (place, said) = (self.place(), self.said());
        let mut events = Vec::new();
        match (&self.call, self.modality) {
            (Some(call), _) => events.push(place.arguments_done(&call.call_id, &call.name, &call.arguments)),
            _ if is_unsent("response.content_part.added") => {}
            (None, Modality::Audio) => events.extend([
                place.audio_done(),
                place.audio_transcript_done(said),
                place.content_part_done(self.describe_part(said)),
            ]),
            (None, Modality::Text) => {
                events.extend([place.text_done(said), place.content_part_done(self.describe_part(said))]);
            }
        }
        let item = self.describe_item("incomplete");
        if !self.options.aside && !is_unsent("conversation.item.added") {
            events.push(events::item_done(&item, self.previous.as_deref()));
        }
        events.push(events::output_item_done(&self.id, &item));
        events
    }
}
