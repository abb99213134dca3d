//! What an edge is told of turns, beside the session: how they went, and what else went wrong.

use std::collections::VecDeque;

use topology::words::{Trouble, Turn, Word};

/// Turns that wait to be told. One takes seconds, and telling it no time: more only come together when many fail at once.
const TURNS_MAX: usize = 16;

/// Underruns of one session that are told: whoever says more has said enough to be counted as bad, and no more.
const UNDERRUNS_MAX: u32 = 100;

/// What was not told yet.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Whether an edge wants to know.
    is_asked: bool,
    over: VecDeque<Turn>,
    trouble: Trouble,
    /// Underruns told so far, and to be told.
    underruns: u32,
}

impl Turns {
    /// An edge wants to know.
    pub(super) fn ask(&mut self) {
        self.is_asked = true;
    }

    /// A turn is over.
    pub(super) fn end(&mut self, turn: Turn) {
        if self.is_asked && self.over.len() < TURNS_MAX {
            self.over.push_back(turn);
        }
    }

    /// The device ran out of audio.
    pub(super) fn underran(&mut self, times: u32) {
        // The word of one device is not taken for that of a fleet.
        let times = times.min(UNDERRUNS_MAX - self.underruns);
        self.underruns += times;
        self.trouble.underruns += times;
    }

    /// An engine ran out of GPU memory.
    pub(super) fn ran_out_of_gpu_memory(&mut self) {
        self.trouble.gpu_memory_errors = self.trouble.gpu_memory_errors.saturating_add(1);
    }

    /// Whether there is something to tell.
    pub(super) fn is_due(&self) -> bool {
        self.is_asked && (!self.over.is_empty() || self.trouble != Trouble::default())
    }

    /// The word that goes next.
    pub(super) fn next(&mut self) -> Vec<u8> {
        let word = match self.over.pop_front() {
            Some(turn) => Word::Turn(turn),
            None => Word::Trouble(std::mem::take(&mut self.trouble)),
        };
        word.to_bytes()
    }
}
