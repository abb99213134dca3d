//! Timers and alarms that are due. They ring until somebody acknowledges them: the device with an event of its own, or the user with
//! "stop" (the [`dialogue`] crate decides that, and the number of rings). A sent ring proves nothing, because it may have gone into a
//! dead socket. A ring that the device played may have met a sleeper: it ends timers, and no alarm.

use std::time::Duration;

use topology::Moment;

use super::{refusal::Refusal, session::Session, texts};

/// Longest wait of a ring for silence. Then it rings over everything that the audio input takes for speech: a television talks for
/// hours, and steady noise never ends.
const WAITS_MAX: Duration = Duration::from_secs(15);

/// Minutes of a snooze.
const SNOOZE_MINUTES: std::ops::RangeInclusive<u64> = 1..=120;

impl Session {
    /// Rings for timers and alarms that are due: in silence, or when silence does not come in time.
    pub(super) fn ring(&mut self, now: Moment) {
        let Some(due_at) = self.device.dialogue.next_ring().filter(|at| *at <= now) else {
            return;
        };
        let is_overdue = now.since(due_at) >= WAITS_MAX;
        if !(self.is_between_turns() || (is_overdue && self.is_free_to_speak())) {
            return;
        }
        let Some(reply) = self.device.ring(now) else { return };
        self.open_response(None, self.settings.modality);
        if let Some(response) = self.responses.active_mut() {
            response.turn.intent = "timer.ring".into();
            self.device.rung = Some(response.item.clone());
        }
        self.say(&reply.text);
    }

    /// Whether the assistant is silent and has nothing to say next, whatever it hears.
    fn is_free_to_speak(&self) -> bool {
        self.responses.is_idle() && self.outbox.is_empty()
    }

    /// The device played an item to its end. If that was the ring, a user who set a timer heard it; a sleeper may not have.
    pub(super) fn on_played(&mut self, item: &str, now: Moment) {
        if self.device.rung.as_deref() != Some(item) {
            return;
        }
        if self.device.acknowledge_timers(now) {
            self.fall_silent(now);
        }
    }

    /// Ends the ring that somebody heard.
    pub(super) fn acknowledge(&mut self, now: Moment) {
        self.device.acknowledge();
        self.fall_silent(now);
    }

    /// Puts off the timers and alarms that ring.
    pub(super) fn snooze(&mut self, minutes: Option<u64>, now: Moment) -> Result<(), Refusal> {
        let length = match minutes {
            None => dialogue::SNOOZE,
            Some(minutes) if SNOOZE_MINUTES.contains(&minutes) => Duration::from_secs(60 * minutes),
            Some(_) => {
                let (least, most) = (SNOOZE_MINUTES.start(), SNOOZE_MINUTES.end());
                let message = texts::snooze(*least, *most);
                return Err(Refusal::invalid("invalid_value", "minutes", message));
            }
        };
        if !self.device.snooze(length, now) {
            let message = texts::NOTHING_RINGS;
            return Err(Refusal::invalid("nothing_rings", "type", message));
        }
        self.fall_silent(now);
        Ok(())
    }

    /// Ends a ring that is still being spoken.
    fn fall_silent(&mut self, now: Moment) {
        let Some(rung) = self.device.rung.take() else { return };
        if self.responses.active().is_some_and(|response| response.item == rung) {
            self.cancel("client_cancelled");
            self.next_wanted(now);
        }
    }
}
