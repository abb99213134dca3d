//! A call that reconnects when it is cut, as a device does. `meridian call` shows its events.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use tokio::time::{Instant, sleep};
use topology::Moment;

use crate::{Call, CallError, CallOptions, Move, Pacing, RetryAdvice, Turn, Utterance, texts};

/// Wait before the second attempt. It doubles up to `BACKOFF_LAST`, by the retry policy of the product.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// Most stored events; the oldest are dropped. Enough for hours of a call that is cut every few seconds.
const EVENTS_MAX: usize = 4096;

/// The wait after failed attempt `attempt` (from 0). `random` in 0..1 spreads it by a factor of 0.5 to 1.5, so that the devices of a lost
/// region do not all return at the same moment. Hand-written: these are three lines, and backon would wrap the whole call.
pub fn backoff(attempt: u32, random: f64) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << attempt.min(16));
    doubled.min(BACKOFF_LAST).mul_f64(0.5 + random.clamp(0.0, 1.0))
}

/// An event of a [`ReconnectingCall`].
#[derive(Debug, Clone, PartialEq)]
pub struct CallEvent {
    /// The time of the event.
    pub at: Moment,
    /// The event and its details.
    pub kind: CallEventKind,
}

/// The kinds of events of a [`ReconnectingCall`].
#[derive(Debug, Clone, PartialEq)]
pub enum CallEventKind {
    /// A session was opened.
    Connected {
        /// The address of the server.
        address: SocketAddr,
        /// The region of the session, if the server named it.
        region: Option<String>,
        /// Time from the start of the attempt to the open session.
        took: Duration,
    },
    /// An open session was cut.
    Interrupted {
        /// The code of the Close frame. `None`: no Close frame came.
        code: Option<u16>,
        /// The reason in the Close frame, "reset", or the network error.
        reason: String,
    },
    /// The session moved to another region while the call stayed open.
    Moved {
        /// The region that the session left, if it was known.
        from: Option<String>,
        /// The region that the session is in now.
        to: String,
    },
    /// An attempt to open a session failed.
    ConnectFailed {
        /// Number of the attempt since the last session, from 1.
        attempt: u32,
        /// The error, as text.
        why: String,
    },
    /// The call waits this long before the next attempt.
    Waiting(Duration),
}

/// A conversation that survives the loss of its connection: it calls again and repeats the utterance that got no
/// answer.
pub struct ReconnectingCall<R> {
    options: CallOptions,
    resolve: R,
    turn_deadline: Duration,
    call: Option<Call>,
    events: VecDeque<CallEvent>,
    attempts: u32,
}

impl<R, F> ReconnectingCall<R>
where
    R: FnMut() -> F,
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    /// A call that connects at its first turn. `resolve` returns the addresses to try, best first, before each attempt.
    /// `turn_deadline` is for one turn with all its repetitions.
    pub fn new(options: CallOptions, turn_deadline: Duration, resolve: R) -> Self {
        Self {
            options,
            resolve,
            turn_deadline,
            call: None,
            events: VecDeque::new(),
            attempts: 0,
        }
    }

    /// Speaks an utterance and returns the reply. Calls again and repeats the utterance until the deadline.
    /// The error is that of the last attempt.
    pub async fn turn(&mut self, utterance: &Utterance, pacing: Pacing) -> Result<Turn, CallError> {
        let give_up = Instant::now() + self.turn_deadline;
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
                // A server may ask for a longer wait (`Retry-After`), up to a limit.
                wait = wait.max(wanted).min(BACKOFF_LAST.mul_f64(1.5));
            }
            if error.retry() == RetryAdvice::Useless || Instant::now() + wait > give_up {
                return Err(error);
            }
            self.note(CallEventKind::Waiting(wait));
            self.attempts = self.attempts.saturating_add(1);
            sleep(wait).await;
        }
    }

    /// Opens the call if it is not open, without speaking. Makes one attempt.
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

    /// Stays connected for `length` without speaking. If the connection is cut, this is recorded and the next turn
    /// calls again.
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

    /// The open call, if there is one.
    pub fn call(&self) -> Option<&Call> {
        self.call.as_ref()
    }

    /// The events so far, oldest first, at most the newest few thousand.
    pub fn events(&self) -> impl Iterator<Item = &CallEvent> {
        self.events.iter()
    }

    /// The events since the previous call of this method.
    pub fn take_events(&mut self) -> Vec<CallEvent> {
        std::mem::take(&mut self.events).into()
    }

    /// Closes the call with a Close frame.
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
            source: io::Error::new(io::ErrorKind::NotFound, texts::NO_ADDRESS),
        });
        // Trying all addresses at once would be a stampede. Trying one address per attempt would wait long for the
        // working one of two.
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
                Err(error) if error.retry() == RetryAdvice::Useless => break,
                Err(_) => {}
            }
        }
        tried
    }

    /// Sends the affinity token with the next call, so that it reaches the region of this one.
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
            CallError::Closed { code, reason, .. } => (*code, reason.clone()),
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
