//! Requests that are refused cost whoever makes them: who asks again and again for what a rule refuses is made to wait, and
//! what everybody together is refused is recorded only so often. The audit log is for what was decided.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// Refused requests of one author that go at once, and how long until another one may: people and their scripts try a few
/// times, loops do not end.
const AT_ONCE: u32 = 20;
const EVERY: Duration = Duration::from_secs(3);
/// The same for entries of the audit log about refusals of all authors: a name is only what somebody says it is.
const RECORDED_AT_ONCE: u32 = 100;
const RECORDED_EVERY: Duration = Duration::from_secs(10);
/// Authors remembered. Whoever is forgotten may begin anew, and the limit on records holds for all.
const AUTHORS_MAX: usize = 1_024;

/// So many at once, and another one every so often: the moment until which all that was taken is paid for.
#[derive(Debug, Clone, Copy)]
struct Paid(Instant);

impl Paid {
    fn wait(self, at_once: u32, every: Duration, now: Instant) -> Option<Duration> {
        let ahead = self.0.saturating_duration_since(now);
        ahead.checked_sub(every * (at_once - 1)).filter(|wait| !wait.is_zero())
    }

    fn take(&mut self, every: Duration, now: Instant) {
        self.0 = self.0.max(now) + every;
    }
}

/// Requests that were refused of late.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    authors: BTreeMap<String, Paid>,
    recorded: Option<Paid>,
}

impl Refusals {
    /// How long an author has to wait before another request of theirs may be refused; none when they need not. What is
    /// not refused never waits.
    pub(crate) fn wait_of(&self, author: &str, now: Instant) -> Option<Duration> {
        self.authors.get(author)?.wait(AT_ONCE, EVERY, now)
    }

    /// A request of an author is refused; whether that is to be recorded.
    pub(crate) fn refused(&mut self, author: &str, now: Instant) -> bool {
        self.authors.retain(|_, paid| paid.0 > now);
        if self.authors.len() >= AUTHORS_MAX && !self.authors.contains_key(author) {
            self.authors.pop_first();
        }
        self.authors
            .entry(author.to_owned())
            .or_insert(Paid(now))
            .take(EVERY, now);
        let recorded = self.recorded.get_or_insert(Paid(now));
        let is_recorded = recorded.wait(RECORDED_AT_ONCE, RECORDED_EVERY, now).is_none();
        if is_recorded {
            recorded.take(RECORDED_EVERY, now);
        }
        is_recorded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_author_waits_after_twenty_refusals_and_others_do_not() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        for _ in 0..AT_ONCE {
            assert_eq!(refusals.wait_of("loop", now), None);
            assert!(refusals.refused("loop", now));
        }
        let wait = refusals.wait_of("loop", now).unwrap();
        assert!(wait <= EVERY, "{wait:?}");
        assert_eq!(refusals.wait_of("alice", now), None);
        assert_eq!(refusals.wait_of("loop", now + wait), None);
    }

    #[test]
    fn many_names_fill_neither_the_log_nor_the_memory() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let recorded = (0..10_000).filter(|number| refusals.refused(&format!("author {number}"), now));
        assert_eq!(recorded.count() as u32, RECORDED_AT_ONCE);
        assert!(refusals.authors.len() <= AUTHORS_MAX);
        assert!(refusals.refused("alice", now + RECORDED_EVERY));
    }
}
