//! Retries of requests: when a retry is safe, and how long to wait before it. The pauses are written by hand: a
//! simulation repeats them from a seed, and backon draws its own random numbers.

use std::time::Duration;

/// The progress of a request before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// No connection could be made, so nothing was sent.
    NotSent,
    /// Some or all of the request was sent, and no byte of an answer came.
    Sent,
    /// The device has received a part of the answer.
    Answering,
}

impl Progress {
    /// Whether the request may be sent again. `repeatable` means that sending it twice has the same effect as once (RFC
    /// 9110 §9.2.2) and that this edge still has all of it.
    pub fn may_repeat(self, repeatable: bool) -> bool {
        match self {
            Self::NotSent => true,
            Self::Sent => repeatable,
            Self::Answering => false,
        }
    }
}

/// Pauses between retries. They double up to a cap and differ between requests, so that requests which failed together
/// do not return together.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The pause before the first retry.
    pub base: Duration,
    /// The longest pause, before the random factor.
    pub cap: Duration,
}

impl Backoff {
    /// The pause before a retry, counted from 0: `base × 2^retry`, at most `cap`, times a factor of 0.5 to 1.5 that
    /// `seed` determines.
    pub fn pause(&self, retry: u32, seed: u64) -> Duration {
        let doubled = self
            .base
            .saturating_mul(1_u32.checked_shl(retry.min(31)).unwrap_or(u32::MAX));
        doubled.min(self.cap).mul_f64(0.5 + unit(seed))
    }
}

/// A uniformly distributed number in 0..1 from a seed (the finaliser of SplitMix64).
fn unit(seed: u64) -> f64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_device_has_begun_to_hear_is_never_said_again() {
        for (progress, repeatable, expected) in [
            (Progress::NotSent, false, true),
            (Progress::NotSent, true, true),
            (Progress::Sent, false, false),
            (Progress::Sent, true, true),
            (Progress::Answering, false, false),
            (Progress::Answering, true, false),
        ] {
            assert_eq!(progress.may_repeat(repeatable), expected, "{progress:?} {repeatable}");
        }
    }
}
