//! Connections from nodes to control planes: their settings, and the waits between attempts.

use std::time::Duration;

use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::convert::BadMessage;

/// Deadline for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of pings on a connection, so that a dead control plane is noticed although nothing is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Waits between attempts double from the first to the last value. The last is half a tick, so that the first report to
/// a control plane that returned is not late.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LAST: Duration = Duration::from_secs(5);

/// Opens a connection to a control plane.
pub async fn connect(endpoint: &str) -> Result<Channel, Status> {
    let settings = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| Status::from(BadMessage::new("endpoint", format!("{endpoint:.100}: {error}"))))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let connected = settings.connect().await;
    connected.map_err(|error| Status::unavailable(format!("{endpoint}: {}", root_cause(&error))))
}

/// The innermost cause: "connection refused" instead of "transport error".
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let innermost = std::iter::successors(Some(error), |error| error.source()).last();
    innermost.unwrap_or(error).to_string()
}

/// Waits between attempts, spread by the name of the waiting party so that a fleet does not reconnect at once. Written by
/// hand: backon spreads by chance, and a node that is restarted must keep its place in the fleet.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    spread: f64,
}

impl Backoff {
    /// The waits for a node or endpoint with this name.
    pub fn of(name: &str) -> Self {
        // FNV-1a: names that differ in one digit must not wait nearly the same time.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            next: BACKOFF_FIRST,
            spread: 1.0 + (hash % 1_000) as f64 / 2_000.0,
        }
    }

    /// Starts over with the first wait, after an answer.
    pub fn reset(&mut self) {
        self.next = BACKOFF_FIRST;
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(self.spread);
        self.next = (self.next * 2).min(BACKOFF_LAST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_differ_between_nodes() {
        let waits = |name| {
            let mut backoff = Backoff::of(name);
            std::array::from_fn::<_, 8, _>(|_| backoff.wait())
        };
        let (iad, dub) = (waits("edge-iad"), waits("edge-dub"));
        assert_ne!(iad, dub);
        for wait in iad.into_iter().chain(dub) {
            assert!(wait >= BACKOFF_FIRST && wait <= BACKOFF_LAST.mul_f64(1.5), "{wait:?}");
        }
        assert!(iad[7] == iad[6] && iad[1] > iad[0]);
        let mut backoff = Backoff::of("edge-iad");
        backoff.wait();
        backoff.reset();
        assert_eq!(backoff.wait(), iad[0]);
    }
}
