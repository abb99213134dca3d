//! Reports to an edge about turns: their outcome, and faults outside of turns.

use std::collections::VecDeque;

use wire::{Trouble, Turn};

/// Most turns whose report waits. A turn takes seconds and its report no time: more wait only when many fail at once.
const TURNS_MAX: usize = 16;

/// Most underruns that one session reports: so many are enough to count it as bad.
const UNDERRUNS_MAX: u32 = 100;

/// The reports that the edge does not have yet.
#[derive(Debug, Default)]
pub(super) struct TurnReports {
    /// Whether an edge asked for reports.
    is_asked: bool,
    over: VecDeque<Turn>,
    trouble: Trouble,
    /// Underruns that the edge has, and those that wait.
    underruns: u32,
}

impl TurnReports {
    /// An edge asks for reports.
    pub(super) fn ask(&mut self) {
        self.is_asked = true;
    }

    pub(super) fn end(&mut self, turn: Turn) {
        if self.is_asked && self.over.len() < TURNS_MAX {
            self.over.push_back(turn);
        }
    }

    /// The device ran out of audio.
    pub(super) fn underran(&mut self, times: u32) {
        // One device must not count like a fleet.
        let times = times.min(UNDERRUNS_MAX - self.underruns);
        self.underruns += times;
        self.trouble.underruns += times;
    }

    /// An engine ran out of GPU memory.
    pub(super) fn ran_out_of_gpu_memory(&mut self) {
        self.trouble.gpu_memory_errors = self.trouble.gpu_memory_errors.saturating_add(1);
    }

    /// Whether a report waits.
    pub(super) fn is_due(&self) -> bool {
        self.is_asked && (!self.over.is_empty() || self.trouble != Trouble::default())
    }

    /// Takes the next message for the edge.
    pub(super) fn next(&mut self) -> Vec<u8> {
        let word = match self.over.pop_front() {
            Some(turn) => wire::Message::Turn(turn),
            None => wire::Message::Trouble(std::mem::take(&mut self.trouble)),
        };
        word.to_bytes()
    }
}
