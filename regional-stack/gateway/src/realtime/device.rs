//! The device as the stack remembers it: its dialogue, what rang last, and whether the store knows all of it.

use std::time::Duration;

use dialogue::{DialogueState, Reply, Zone};
use topology::Moment;

use super::snapshot::Snapshot;
use crate::store::Memory;

pub(super) struct Device {
    pub(super) dialogue: DialogueState,
    /// See [`Memory::revision`].
    pub(super) revision: Moment,
    /// The item with which something rang last.
    pub(super) rung: Option<String>,
    unsaved: bool,
}

impl Device {
    /// A device whose memory is saved at once, so that a device that loses its connection right away comes back to the same session.
    pub(super) fn new(dialogue: DialogueState, revision: Moment, rung: Option<String>) -> Self {
        Self {
            dialogue,
            revision,
            rung,
            unsaved: true,
        }
    }

    /// Notes that the memory changed.
    pub(super) fn note_change(&mut self) {
        self.unsaved = true;
    }

    /// Whether the memory changed since the last call.
    pub(super) fn take_unsaved(&mut self) -> bool {
        std::mem::take(&mut self.unsaved)
    }

    /// The memory, with the settings and items of its session.
    pub(super) fn memory(&self, session: Snapshot) -> Memory {
        Memory {
            dialogue: self.dialogue.clone(),
            session: session.remember(),
            revision: self.revision,
            may_go_on_elsewhere: false,
        }
    }

    /// Moves the device to another zone; alarms that are set from here on follow it.
    pub(super) fn set_zone(&mut self, zone: Option<Zone>) {
        if zone != self.dialogue.zone {
            self.dialogue.set_zone(zone);
        }
    }

    /// The words of a timer or alarm that is due.
    pub(super) fn ring(&mut self, now: Moment) -> Option<Reply> {
        let reply = self.dialogue.ring(now)?;
        self.unsaved = true;
        Some(reply)
    }

    /// Ends timers whose ring the device played to the end, and returns whether everything is silent now.
    pub(super) fn acknowledge_timers(&mut self, now: Moment) -> bool {
        self.unsaved |= self.dialogue.acknowledge_timers() > 0;
        !self.dialogue.is_ringing(now)
    }

    /// Ends timers and alarms that ring.
    pub(super) fn acknowledge(&mut self) {
        self.unsaved |= self.dialogue.acknowledge() > 0;
    }

    /// Puts off timers and alarms that ring; false if none does.
    pub(super) fn snooze(&mut self, length: Duration, now: Moment) -> bool {
        let snoozed = self.dialogue.snooze(length, now) > 0;
        self.unsaved |= snoozed;
        snoozed
    }
}
