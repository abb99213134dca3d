//! Pauses between attempts at the store. Written by hand: backon wraps the attempt itself, and the callers here wait in a
//! select and start over after a success.

use std::time::Duration;

use rand::Rng as _;

/// Pauses that double up to a limit, each spread by half: clients that lost the store together must not come back
/// together.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, last: Duration) -> Self {
        let next = first;
        Self { first, last, next }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    pub(super) fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.last);
        spread(wait)
    }
}

/// A random duration between half and one and a half of `duration`.
pub(super) fn spread(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_start_again() {
        let (first, last) = (Duration::from_millis(100), Duration::from_millis(300));
        let mut backoff = Backoff::new(first, last);
        for centre in [100, 200, 300, 300] {
            let wait = backoff.next_wait().as_millis();
            assert!((centre / 2..=centre * 3 / 2).contains(&wait), "{wait} for {centre}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= first * 3 / 2);
    }
}
