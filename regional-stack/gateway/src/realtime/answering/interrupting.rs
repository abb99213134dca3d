//! Interrupts a reply when the user begins to speak, and repeats it if that was a cough.

use topology::Moment;

use crate::realtime::{response::Asked, responses::Interrupted, session::Session};

impl Session {
    /// Ends the reply to the conversation: the user begins to speak.
    pub(in crate::realtime) fn interrupt(&mut self, now: Moment) {
        if !self.responses.interrupt(now) {
            return;
        }
        let active = self.responses.active();
        let call = active
            .filter(|response| response.call.is_some())
            .map(|response| response.item.clone());
        self.cancel("turn_detected");
        // A client that has the call carries it out.
        if call.is_some_and(|item| self.items.has(&item)) {
            self.responses.settle_interrupted();
        }
    }

    /// Repeats the interrupted reply at once: the stack could not take the utterance that interrupted it, which gets no response.
    pub(in crate::realtime) fn resume_at_once(&mut self, now: Moment) {
        // A response beside the conversation is being spoken. The next utterance decides.
        if self.responses.active().is_some() {
            return;
        }
        let Some(interrupted) = self.responses.take_interrupted(now) else {
            return;
        };
        if interrupted.is_certain() {
            self.open(Asked::about(None, self.settings.modality));
            self.resume_interrupted(interrupted);
        } else {
            self.responses.queue_interrupted(interrupted, &mut self.items);
            self.next_wanted(now);
        }
    }

    /// Repeats the reply that a cough or a slammed door cut off, and answers the items that waited behind it.
    pub(super) fn resume_interrupted(&mut self, mut interrupted: Box<Interrupted>) {
        self.rings_again_as(&interrupted.item);
        if interrupted.can_be_repeated(&self.items) {
            let reply = interrupted.reply.clone();
            self.responses.want_after(*interrupted);
            self.say(&reply);
            return;
        }
        self.responses.queue_interrupted(interrupted, &mut self.items);
        self.finish();
    }

    /// Notes the new item of a ring that noise cut off and that the assistant repeats.
    fn rings_again_as(&mut self, cut_off: &str) {
        if self.device.rung.as_deref() == Some(cut_off)
            && let Some(response) = self.responses.active_mut()
        {
            response.turn.intent = "timer.ring".into();
            self.device.rung = Some(response.item.clone());
        }
    }
}
