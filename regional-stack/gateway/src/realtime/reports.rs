//! The last checkpoint and the last load that an edge got of a session, which decide the time of the next ones.

use std::{collections::VecDeque, time::Duration};

use topology::Moment;

use super::audio_input::InputOffset;

/// Period at which a silent session with an alarm or a timer is sealed anew. A checkpoint is good for a day, and an alarm may be set for
/// next week.
pub(super) const RESEAL_EVERY: Duration = Duration::from_secs(3600);
/// Shortest time between two reports of the load from one session.
pub(super) const LOAD_EVERY: Duration = Duration::from_secs(1);

/// The checkpoints that the edge got.
#[derive(Default)]
pub(super) struct CheckpointReports {
    /// The offset of each message with audio, from the first that is still needed.
    trail: VecDeque<(u64, InputOffset)>,
    consumed: u64,
    busy: bool,
    is_due: bool,
    /// Time of the last checkpoint.
    sealed_at: Option<Moment>,
}

impl CheckpointReports {
    /// The reports of a session from another stack, which needs its audio from this message on.
    pub(super) fn after(audio_from: (u64, InputOffset)) -> Self {
        Self {
            trail: VecDeque::from([audio_from]),
            ..Self::default()
        }
    }

    /// Notes the offset of a message with audio.
    pub(super) fn note(&mut self, message: u64, place: InputOffset) {
        self.trail.push_back((message, place));
    }

    /// Notes the time: a checkpoint is due if the edge does not know the number of consumed messages, or if its checkpoint with an alarm
    /// grows old.
    pub(super) fn note_time(&mut self, consumed: u64, holds_alarm: bool, now: Moment) {
        let is_old = |sealed_at: Moment| now.since(sealed_at) >= RESEAL_EVERY;
        let is_old = holds_alarm && self.sealed_at.is_some_and(is_old);
        self.is_due = self.consumed != consumed || is_old;
    }

    /// Notes a checkpoint that goes out.
    pub(super) fn note_checkpoint(&mut self, consumed: u64, busy: bool, now: Moment) {
        (self.consumed, self.busy, self.is_due) = (consumed, busy, false);
        self.sealed_at = Some(now);
    }

    /// Whether a checkpoint is due without an event.
    pub(super) fn is_due(&self) -> bool {
        self.is_due
    }

    /// Whether the last checkpoint named the session busy.
    pub(super) fn says_busy(&self) -> bool {
        self.busy
    }

    /// Time of the edge's last checkpoint.
    pub(super) fn last(&self) -> Option<Moment> {
        self.sealed_at
    }

    /// The message, and the offset of its audio, from which another stack can rebuild the audio input from sample `needed` on.
    pub(super) fn needed_from(&mut self, needed: usize, next: (u64, InputOffset)) -> (u64, InputOffset) {
        while self.trail.get(1).is_some_and(|(_, place)| place.exact_from() <= needed) {
            self.trail.pop_front();
        }
        if next.1.bytes == 0 && next.1.origin <= needed {
            self.trail.clear();
        }
        self.trail.front().copied().unwrap_or(next)
    }
}

/// The last report of the load to an edge that asked for it.
pub(super) struct LoadReports {
    told_at: Moment,
    /// The session's turns at that time.
    turns: u64,
}

impl LoadReports {
    /// Begins after a report of the load at `now`.
    pub(super) fn begin(turns: u64, now: Moment) -> Self {
        Self { told_at: now, turns }
    }

    /// Whether a turn and enough time have passed since.
    pub(super) fn is_due(&self, turns: u64, now: Moment) -> bool {
        self.turns != turns && has_passed(LOAD_EVERY, self.told_at, now)
    }
}

/// Whether so much time has passed. A clock that was set back would make the wait endless, so its jump counts as the time.
pub(super) fn has_passed(length: Duration, since: Moment, now: Moment) -> bool {
    now < since || now.since(since) >= length
}
