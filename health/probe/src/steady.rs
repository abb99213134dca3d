//! A call that is made again when it is cut: what a device does, and what `meridian call` shows.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use tokio::time::{Instant, sleep};
use topology::Moment;

use crate::{Call, CallError, CallOptions, Move, Pacing, Retry, Turn, Utterance};

/// Wait before the first attempt, doubling up to the last; the project's retry policy.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// Events kept, the newest: hours of a call that is cut every few seconds.
const EVENTS_MAX: usize = 4096;

/// The wait before attempt `attempt` (from 0), spread by `random` in 0..1 to a factor of 0.5 to 1.5, so that the callers
/// of a lost region do not return as one.
pub fn backoff(attempt: u32, random: f64) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << attempt.min(16));
    doubled.min(BACKOFF_LAST).mul_f64(0.5 + random.clamp(0.0, 1.0))
}

/// Something that happened to a [`SteadyCall`].
#[derive(Debug, Clone, PartialEq)]
pub struct CallEvent {
    /// When.
    pub at: Moment,
    /// What.
    pub kind: CallEventKind,
}

/// What happened to a [`SteadyCall`].
#[derive(Debug, Clone, PartialEq)]
pub enum CallEventKind {
    /// A session was opened.
    Connected {
        /// With whom.
        address: SocketAddr,
        /// In which region, if the server said so.
        region: Option<String>,
        /// How long it took.
        took: Duration,
    },
    /// An open session was lost.
    Interrupted {
        /// The code of the Close frame; `None` when there was none.
        code: Option<u16>,
        /// Its reason, or "reset", or what went wrong.
        reason: String,
    },
    /// The session went on in another region; the call stayed open.
    Moved {
        /// From where, if it was known.
        from: Option<String>,
        /// Where it is now.
        to: String,
    },
    /// No session could be opened.
    ConnectFailed {
        /// Which attempt since the last session, from 1.
        attempt: u32,
        /// Why.
        why: String,
    },
    /// The next attempt follows after this wait.
    Waiting(Duration),
}

/// A conversation that survives the loss of its connection by calling again and repeating what was not answered.
pub struct SteadyCall<R> {
    options: CallOptions,
    resolve: R,
    patience: Duration,
    call: Option<Call>,
    events: VecDeque<CallEvent>,
    attempts: u32,
}

impl<R, F> SteadyCall<R>
where
    R: FnMut() -> F,
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    /// Nothing is called before the first turn. `resolve` is asked for addresses before each attempt, best first;
    /// `patience` bounds one turn with all its repetitions.
    pub fn new(options: CallOptions, patience: Duration, resolve: R) -> Self {
        Self {
            options,
            resolve,
            patience,
            call: None,
            events: VecDeque::new(),
            attempts: 0,
        }
    }

    /// Says something and listens to the reply, calling again and repeating it as often as `patience` allows. The error is
    /// the last one.
    pub async fn turn(&mut self, utterance: &Utterance, pacing: Pacing) -> Result<Turn, CallError> {
        let give_up = Instant::now() + self.patience;
        loop {
            let error = match self.try_turn(utterance, pacing).await {
                Ok(turn) => return Ok(turn),
                Err(error) => error,
            };
            self.call = None;
            let mut wait = backoff(self.attempts, rand::random());
            if let CallError::Refused {
                retry_after: Some(wanted),
                ..
            } = error
            {
                // A server may ask for more patience, within reason.
                wait = wait.max(wanted).min(BACKOFF_LAST.mul_f64(1.5));
            }
            if error.retry() == Retry::Useless || Instant::now() + wait > give_up {
                return Err(error);
            }
            self.note(CallEventKind::Waiting(wait));
            self.attempts = self.attempts.saturating_add(1);
            sleep(wait).await;
        }
    }

    /// Opens the call if there is none, without saying anything; one attempt.
    pub async fn connect(&mut self) -> Result<&mut Call, CallError> {
        if self.call.is_none() {
            let started = Instant::now();
            match self.dial().await {
                Ok(call) => {
                    self.note(CallEventKind::Connected {
                        address: call.address(),
                        region: call.region().map(str::to_owned),
                        took: started.elapsed(),
                    });
                    self.call = Some(call);
                }
                Err(error) => {
                    self.note(CallEventKind::ConnectFailed {
                        attempt: self.attempts.saturating_add(1),
                        why: error.to_string(),
                    });
                    return Err(error);
                }
            }
        }
        Ok(self.call.as_mut().expect("a call was opened above"))
    }

    /// Stays on the line without a word; a loss is noted and the next turn calls again.
    pub async fn idle(&mut self, length: Duration) {
        match &mut self.call {
            Some(call) => {
                let end = Instant::now() + length;
                let idled = call.idle(length).await;
                self.note_moves();
                if let Err(error) = idled {
                    self.interrupted(&error);
                    tokio::time::sleep_until(end).await;
                }
            }
            None => sleep(length).await,
        }
    }

    /// The call now open, if one is.
    pub fn call(&self) -> Option<&Call> {
        self.call.as_ref()
    }

    /// What happened so far, oldest first; the newest few thousand.
    pub fn events(&self) -> impl Iterator<Item = &CallEvent> {
        self.events.iter()
    }

    /// What happened since the last time this was asked.
    pub fn take_events(&mut self) -> Vec<CallEvent> {
        std::mem::take(&mut self.events).into()
    }

    /// Says goodbye.
    pub async fn hang_up(self) {
        if let Some(call) = self.call {
            call.hang_up().await;
        }
    }

    async fn try_turn(&mut self, utterance: &Utterance, pacing: Pacing) -> Result<Turn, CallError> {
        let result = self.connect().await?.turn(utterance, pacing).await;
        self.note_moves();
        match &result {
            Ok(_) => self.attempts = 0,
            Err(error) => self.interrupted(error),
        }
        result
    }

    async fn dial(&mut self) -> Result<Call, CallError> {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let addresses = (self.resolve)().await.map_err(|source| CallError::Connect {
            address: nowhere,
            source,
        })?;
        let mut tried = Err(CallError::Connect {
            address: nowhere,
            source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
        });
        // All at once would be a stampede; one per attempt would wait long for the healthy one of two.
        for address in addresses {
            tried = Call::open(address, &self.options).await;
            match &tried {
                Ok(call) => {
                    if let Some(token) = call.affinity() {
                        let token = token.to_owned();
                        self.remember_affinity(token);
                    }
                    break;
                }
                Err(error) if error.retry() == Retry::Useless => break,
                Err(_) => {}
            }
        }
        tried
    }

    /// The next call asks for the region of this one.
    fn remember_affinity(&mut self, token: String) {
        const NAME: &str = "meridian-affinity";
        self.options
            .headers
            .retain(|(name, _)| !name.eq_ignore_ascii_case(NAME));
        self.options.headers.push((NAME.to_owned(), token));
    }

    fn interrupted(&mut self, error: &CallError) {
        self.call = None;
        let (code, reason) = match error {
            CallError::Closed { code, reason } => (*code, reason.clone()),
            other => (None, other.to_string()),
        };
        self.note(CallEventKind::Interrupted { code, reason });
    }

    fn note_moves(&mut self) {
        let Some(call) = &mut self.call else { return };
        let moves = call.take_moves();
        if let (false, Some(token)) = (moves.is_empty(), call.affinity()) {
            let token = token.to_owned();
            self.remember_affinity(token);
        }
        for Move { at, from, to } in moves {
            self.note_at(at, CallEventKind::Moved { from, to });
        }
    }

    fn note(&mut self, kind: CallEventKind) {
        self.note_at(daemon::clock::now(), kind);
    }

    fn note_at(&mut self, at: Moment, kind: CallEventKind) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(CallEvent { at, kind });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_are_spread() {
        let ms = |attempt, random| backoff(attempt, random).as_millis();
        assert_eq!([ms(0, 0.5), ms(1, 0.5), ms(2, 0.5), ms(5, 0.5)], [100, 200, 400, 3200]);
        assert_eq!([ms(6, 0.5), ms(60, 0.5), ms(u32::MAX, 0.5)], [5000, 5000, 5000]);
        assert_eq!([ms(0, 0.0), ms(0, 0.999_999)], [50, 149]);
    }
}
