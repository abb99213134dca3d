//! A reply at the synthesizer, piece by piece.

use std::{collections::VecDeque, time::Duration};

use crate::{
    queue::Class,
    spoken,
    stack::Stack,
    workers::{Done, JobError, Ticket},
};

/// A reply that the synthesizer speaks piece by piece: nothing interrupts an engine, so other callers get their turn between pieces.
pub(in crate::realtime) struct Speaking {
    /// The piece at the synthesizer; none while the next one waits for room.
    piece: Option<Ticket<Vec<f32>>>,
    rest: VecDeque<String>,
    speed: f32,
    deadline: tokio::time::Instant,
    spoken: Done<Vec<f32>>,
}

impl Speaking {
    pub(in crate::realtime) fn begin(stack: &Stack, reply: &str, speed: f32) -> Result<Self, JobError> {
        let mut rest = VecDeque::from(spoken::pieces(reply));
        let first = rest.pop_front().unwrap_or_default();
        Ok(Self {
            piece: Some(stack.speak(first, speed)?),
            rest,
            speed,
            deadline: tokio::time::Instant::now() + stack.config.limits.begun_limit(),
            spoken: Done {
                output: Vec::new(),
                took: Duration::ZERO,
            },
        })
    }

    /// Waits for the audio of the whole reply. Safe to drop and call again.
    pub(in crate::realtime) async fn result(&mut self, stack: &Stack) -> Result<Done<Vec<f32>>, JobError> {
        loop {
            if let Some(piece) = &mut self.piece {
                let done = piece.result().await?;
                self.piece = None;
                self.spoken.output.extend(done.output);
                self.spoken.took += done.took;
            }
            let Some(next) = self.rest.front() else { break };
            // Boxed: otherwise the future of every session would keep room for it.
            let piece = Box::pin(stack.speak_on(Class::of_task(), next.clone(), self.speed));
            let piece = tokio::time::timeout_at(self.deadline, piece).await;
            self.piece = Some(piece.unwrap_or(Err(JobError::Late))?);
            self.rest.pop_front();
        }
        let nothing = Done {
            output: Vec::new(),
            took: Duration::ZERO,
        };
        Ok(std::mem::replace(&mut self.spoken, nothing))
    }
}
