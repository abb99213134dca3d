//! Whether the end of a certificate counts between edges, or other probers, and stacks.
//!
//! When control planes are gone for a day, or their issuer has ended, every certificate of a fleet ends and nobody can renew one. Edges
//! and stacks then go on as they were, because calls must not depend on control planes. While certificates are issued, a certificate that
//! has ended is worth nothing, so that a stolen old one helps nobody.
//!
//! Why it is so: docs/decisions/32-the-end-of-a-certificate.md.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_rustls::rustls::{
    self, CertificateError,
    pki_types::{CertificateDer, UnixTime},
};
use topology::Moment;
use x509_cert::{Certificate, der::Decode as _};

use crate::{Peer, certificate::unix_time, peer, texts};

/// Longest time after its end in which a certificate is still believed. Within a week people bring back a lost authority, also over a
/// holiday. Every key that was stolen from a process that left longer ago stays worthless, whatever happens to the issuer.
pub const GRACE: Duration = Duration::from_secs(7 * 86_400);
/// Time after its own renewal in which a process goes on as if issuing had stopped, if its certificate was overdue before. A control plane
/// renews no certificate that has ended, so people issue those of a fleet anew one by one, and the first ones must not refuse the last.
pub const RECOVERY: Duration = Duration::from_secs(12 * 3_600);
/// A line about peers with expired certificates is logged no more often than this: an edge opens many links at once.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The time in which every certificate of a chain is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Latest beginning.
    pub from: Moment,
    /// Earliest end.
    pub until: Moment,
}

impl Validity {
    /// The validity of a chain; `None` if it is empty or cannot be read.
    pub(crate) fn of_chain<'a>(chain: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> Option<Self> {
        let life = |der: &CertificateDer<'_>| {
            let (from, until) = peer::life(&Certificate::from_der(der).ok()?.tbs_certificate);
            Some(Self { from, until })
        };
        let lives: Option<Vec<Self>> = chain.into_iter().map(life).collect();
        lives?.into_iter().reduce(|one, other| Self {
            from: one.from.max(other.from),
            until: one.until.min(other.until),
        })
    }

    /// True if the holder should have had its certificate renewed for long: two thirds of its life are over. It is due at one third, and
    /// asked for every minute from then on. A certificate that was issued a moment before issuing stopped is this old when the first
    /// certificate of the same life ends, so that no two processes of a fleet disagree.
    fn is_overdue(self, now: Moment) -> bool {
        let life = self.until.0.saturating_sub(self.from.0);
        now.0 >= self.from.0.saturating_add(life / 3 * 2)
    }
}

/// A process's own certificate, as evidence of whether certificates are issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issuing {
    /// The validity of its chain.
    pub own: Validity,
    /// Time of the renewal before which its certificate was overdue; `None` if none was since the process started.
    pub resumed_at: Option<Moment>,
}

impl Issuing {
    /// The evidence after a look at files with a chain of this validity.
    pub(crate) fn after(before: Option<Self>, own: Validity, now: Moment) -> Self {
        let ended = before.is_some_and(|before| before.own.is_overdue(now) && !own.is_overdue(now));
        let resumed_at = match ended {
            true => Some(now),
            false => before.and_then(|before| before.resumed_at),
        };
        Self { own, resumed_at }
    }

    /// True if nobody issues certificates, or if they have been issued again for a short time only.
    fn has_stopped(self, now: Moment) -> bool {
        let is_recovering = |at: Moment| at <= now && now.since(at) <= RECOVERY;
        self.own.is_overdue(now) || self.resumed_at.is_some_and(is_recovering)
    }
}

/// True if a genuine certificate is believed although it has ended: it ended within [`GRACE`], and this process was not renewed when it was
/// due either, so issuing has stopped.
pub fn believes_expired(peer_until: Moment, issuing: Issuing, now: Moment) -> bool {
    peer_until <= now && now.since(peer_until) <= GRACE && issuing.has_stopped(now)
}

/// Verifies the chain of a peer as of now. A chain that has only ended is verified as of the last second in which it was valid, where
/// `issuing` says that nobody issues certificates; `None` where an end always counts.
pub(crate) fn verify(
    (leaf, above): (&CertificateDer<'_>, &[CertificateDer<'_>]),
    issuing: Option<Issuing>,
    now: UnixTime,
    verify: impl Fn(UnixTime) -> Result<(), rustls::Error>,
) -> Result<(), rustls::Error> {
    let ended = match verify(now) {
        Err(
            error @ rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ),
        ) => error,
        other => return other,
    };
    let life = Validity::of_chain(std::iter::once(leaf).chain(above));
    let now = Moment(now.as_secs().saturating_mul(1_000));
    match (issuing, life) {
        (Some(issuing), Some(life)) if life.from < life.until && believes_expired(life.until, issuing, now) => {
            verify(unix_time(Moment(life.until.0.saturating_sub(1_000))))
        }
        _ => Err(ended),
    }
}

/// The links that this process opened or accepted although the certificate of the peer had ended.
#[derive(Debug, Default)]
pub(crate) struct ExpiredPeers {
    count: AtomicU64,
    /// Time of the last line in the log, and the count at that time.
    logged: Mutex<Option<(Instant, u64)>>,
}

impl ExpiredPeers {
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts a link, and logs the first one of a burst.
    pub(crate) fn add(&self, peer: &Peer, until: Moment) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut logged = self.logged.lock();
        let before = logged.map_or(0, |(_, before)| before);
        if logged.is_none_or(|(at, _)| at.elapsed() >= LOG_EVERY) {
            *logged = Some((Instant::now(), count));
            let links = count.saturating_sub(before);
            tracing::warn!(id = %peer.id, ended = %until, links, "{}", texts::EXPIRED_PEER_BELIEVED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn hours(from: u64, until: u64) -> Validity {
        Validity {
            from: Moment(from * HOUR),
            until: Moment(until * HOUR),
        }
    }

    #[test]
    fn an_expired_certificate_counts_while_nobody_issues_new_ones() {
        let week = 7 * 24;
        for (peer_until, own, resumed_at, now, believed, why) in [
            (
                100,
                hours(84, 108),
                None,
                100,
                true,
                "two thirds of this process's are over",
            ),
            (
                100,
                hours(85, 109),
                None,
                100,
                false,
                "this process was renewed when it was due",
            ),
            (
                100,
                hours(99, 123),
                None,
                100,
                false,
                "this process was renewed just now",
            ),
            (100, hours(76, 100), None, 101, true, "both have ended"),
            (100, hours(10, 34), None, 101, true, "this process's ended long before"),
            (100, hours(76, 100), None, 100 + week, true, "a week after its end"),
            (
                100,
                hours(76, 100),
                None,
                101 + week,
                false,
                "more than a week after its end",
            ),
            (102, hours(76, 100), None, 101, false, "it has not ended"),
            (
                100,
                hours(120, 144),
                None,
                101,
                false,
                "this process's begins later: a clock is wrong",
            ),
            (
                100,
                hours(110, 134),
                Some(110),
                122,
                true,
                "issuing resumed half a day ago",
            ),
            (100, hours(110, 134), Some(110), 123, false, "issuing resumed long ago"),
            (100, hours(110, 134), Some(124), 123, false, "the clock went back"),
        ] {
            let issuing = Issuing {
                own,
                resumed_at: resumed_at.map(|at| Moment(at * HOUR)),
            };
            let now = Moment(now * HOUR);
            assert_eq!(
                believes_expired(Moment(peer_until * HOUR), issuing, now),
                believed,
                "{why}"
            );
        }
    }

    #[test]
    fn issuing_resumes_with_the_renewal_of_an_overdue_certificate_and_with_no_other() {
        let at = |hour: u64| Moment(hour * HOUR);
        let first = Issuing::after(None, hours(0, 24), at(1));
        assert_eq!(first.resumed_at, None);
        let in_time = Issuing::after(Some(first), hours(8, 32), at(8));
        assert_eq!(in_time.resumed_at, None);
        let still_overdue = Issuing::after(Some(in_time), hours(8, 32), at(30));
        assert_eq!(still_overdue.resumed_at, None, "only the trust changed");
        let resumed = Issuing::after(Some(still_overdue), hours(40, 64), at(40));
        assert_eq!(resumed.resumed_at, Some(at(40)));
        let next = Issuing::after(Some(resumed), hours(48, 72), at(48));
        assert_eq!(next.resumed_at, Some(at(40)), "a further renewal begins no new time");
    }

    /// Nodes renew at a third of their life, at different hours. When renewal stops, none of them may refuse another.
    #[test]
    fn processes_of_a_fleet_never_disagree_after_issuing_has_stopped() {
        let life = |from: u64| Issuing {
            own: Validity {
                from: Moment(from),
                until: Moment(from + 24 * HOUR),
            },
            resumed_at: None,
        };
        // Each was renewed at most eight hours before issuing stopped.
        for (first, last) in [(0, 0), (0, 1), (0, 4 * HOUR), (0, 8 * HOUR)] {
            let (first, last) = (life(first), life(last));
            for now in (first.own.until.0..first.own.until.0 + 7 * 24 * HOUR).step_by(600_000) {
                let now = Moment(now);
                assert!(believes_expired(first.own.until, last, now), "{now}");
                assert!(
                    now < last.own.until || believes_expired(last.own.until, first, now),
                    "{now}"
                );
            }
        }
    }
}
