//! The items of a conversation, in order and bounded.

use std::collections::VecDeque;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{
    client::After,
    events,
    items::{Function, Item, Role},
    outbox::Outbox,
    refusal::Refusal,
    texts,
};
use crate::ids::new_id;

/// Most items. The session forgets older ones: the dialogue needs none of them, and clients only retrieve and truncate them.
pub(super) const ITEMS_MAX: usize = 64;
/// Most bytes of all items. Only outputs of functions reach this.
const ITEMS_BYTES_MAX: usize = 256 << 10;

/// The items of one conversation. Ids are unique.
#[derive(Clone, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Items(VecDeque<Item>);

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let items = Vec::<Value>::deserialize(from)?;
        // Readers skip items of a kind that a later release adds: the conversation goes on without them.
        let known = items.into_iter().filter_map(|item| Item::deserialize(item).ok());
        Ok(Self(known.collect()))
    }
}

impl Items {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Item> {
        self.0.iter()
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.position(id).is_some()
    }

    pub(super) fn get(&self, id: &str) -> Option<&Item> {
        self.0.iter().find(|item| item.id == id)
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Item> {
        self.0.iter_mut().find(|item| item.id == id)
    }

    pub(super) fn position(&self, id: &str) -> Option<usize> {
        self.0.iter().position(|item| item.id == id)
    }

    /// The id of the item before this position.
    pub(super) fn before(&self, at: usize) -> Option<&str> {
        let before = at.checked_sub(1).and_then(|before| self.0.get(before));
        before.map(|item| item.id.as_str())
    }

    pub(super) fn last_id(&self) -> Option<&str> {
        self.before(self.len())
    }

    /// The user's newest item that got no answer.
    pub(super) fn unanswered(&self) -> Option<&Item> {
        self.0
            .iter()
            .rev()
            .find(|item| item.role == Role::User && !item.answered)
    }

    /// Whether the conversation has this call of a function.
    pub(super) fn has_call(&self, id: &str) -> bool {
        let mut functions = self.0.iter().filter_map(|item| item.function.as_ref());
        functions.any(|function| matches!(function, Function::Call { call_id, .. } if call_id == id))
    }

    /// The id of a new item: the client's own, unless an item has it.
    pub(super) fn new_id(&self, wanted: Option<String>) -> Result<String, Refusal> {
        let id = wanted.unwrap_or_else(|| new_id("item"));
        if self.has(&id) {
            let message = texts::ITEM_EXISTS;
            return Err(Refusal::invalid("invalid_value", "item.id", message));
        }
        Ok(id)
    }

    /// The position of a new item.
    pub(super) fn new_position(&self, after: &After) -> Result<usize, Refusal> {
        match after {
            After::Everything => Ok(self.len()),
            After::Nothing => Ok(0),
            After::Item(id) => {
                let found = self.position(id);
                found.map(|at| at + 1).ok_or_else(|| {
                    let message = texts::NO_PREVIOUS_ITEM;
                    Refusal::invalid("item_not_found", "previous_item_id", message)
                })
            }
        }
    }

    /// Adds an item at a position of the conversation, and tells the client.
    pub(super) fn add(&mut self, item: Item, at: usize, outbox: &mut Outbox) {
        let previous = self.before(at);
        let described = item.describe();
        outbox.push(events::item_added(&described, previous));
        outbox.push(events::item_done(&described, previous));
        self.insert(item, at);
    }

    /// Deletes an item for the client.
    pub(super) fn delete(&mut self, id: &str) -> Result<(), Refusal> {
        match self.remove(id) {
            true => Ok(()),
            false => Err(no_such_item()),
        }
    }

    /// The item that the client names.
    pub(super) fn find(&self, id: &str) -> Result<&Item, Refusal> {
        self.get(id).ok_or_else(no_such_item)
    }

    /// Cuts a reply of the assistant to the part that the user heard.
    pub(super) fn truncate(&mut self, id: &str, content_index: u64, audio_end_ms: u64) -> Result<(), Refusal> {
        let item = self.get_mut(id).ok_or_else(no_such_item)?;
        item.truncate(content_index, audio_end_ms)
    }

    /// Adds an item at this position. The oldest ones go when there are too many.
    pub(super) fn insert(&mut self, item: Item, at: usize) {
        self.0.insert(at.min(self.0.len()), item);
        let mut bytes: usize = self.0.iter().map(Item::bytes).sum();
        while self.0.len() > ITEMS_MAX || (bytes > ITEMS_BYTES_MAX && self.0.len() > 1) {
            bytes -= self.0.pop_front().map_or(0, |item| item.bytes());
        }
    }

    /// Adds an item behind another one, or at the end if that one is gone.
    pub(super) fn insert_after(&mut self, item: Item, previous: Option<&str>) {
        let at = previous.and_then(|previous| self.position(previous));
        self.insert(item, at.map_or(self.len(), |at| at + 1));
    }

    /// Removes an item. Returns whether there was one.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        let count = self.0.len();
        self.0.retain(|item| item.id != id);
        self.0.len() < count
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Drops items whose words are unknown, and all but the newest.
    pub(super) fn keep_known(&mut self, count_max: usize) {
        self.0.retain(|item| item.text.is_some() || item.function.is_some());
        let forgotten = self.0.len().saturating_sub(count_max);
        self.0.drain(..forgotten);
    }
}

fn no_such_item() -> Refusal {
    Refusal::invalid("item_not_found", "item_id", texts::NO_SUCH_ITEM)
}
