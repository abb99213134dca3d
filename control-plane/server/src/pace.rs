//! The pace of requests that change nothing, and of documents. An author whose requests are refused again and again, or
//! ask for what is so already, has to wait, and such requests of all authors together are recorded only so often: the
//! audit log is for decisions.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// A rate: so many at once, and further ones in this interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) at_once: u32,
    pub(crate) every: Duration,
}

/// Requests of one author that change nothing. People and their scripts try a few times; loops do not end.
const IDLE: Rate = Rate {
    at_once: 20,
    every: Duration::from_secs(3),
};
/// Documents of one author. Each is stored, and stays until the audit entries that name it are pruned.
const DOCUMENTS: Rate = Rate {
    at_once: 20,
    every: Duration::from_secs(30),
};
/// Audit entries of requests that change nothing, of all authors together, because a caller without a certificate can claim any author's name.
const RECORDED: Rate = Rate {
    at_once: 100,
    every: Duration::from_secs(10),
};
/// Authors remembered. A forgotten author starts anew; the limit on audit entries holds for all.
const AUTHORS_MAX: usize = 1_024;

/// A token bucket (GCRA): the time until which the requests so far use up the rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenBucket(Instant);

impl TokenBucket {
    /// A bucket of which nothing is used yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self(now)
    }

    /// Time until the rate has room; `None` if it has room now.
    pub(crate) fn wait(self, rate: Rate, now: Instant) -> Option<Duration> {
        let ahead = self.0.saturating_duration_since(now);
        ahead
            .checked_sub(rate.every * (rate.at_once - 1))
            .filter(|wait| !wait.is_zero())
    }

    /// Uses up room for one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) {
        self.0 = self.0.max(now) + rate.every;
    }
}

/// The buckets of a rate, one for each author.
#[derive(Debug, Default)]
struct Authors(BTreeMap<String, TokenBucket>);

impl Authors {
    fn wait(&self, author: &str, rate: Rate, now: Instant) -> Option<Duration> {
        self.0.get(author)?.wait(rate, now)
    }

    fn take(&mut self, author: &str, rate: Rate, now: Instant) {
        self.0.retain(|_, bucket| bucket.0 > now);
        if self.0.len() >= AUTHORS_MAX && !self.0.contains_key(author) {
            self.0.pop_first();
        }
        let bucket = self.0.entry(author.to_owned()).or_insert(TokenBucket(now));
        bucket.take(rate, now);
    }
}

/// Recent requests that changed nothing, and recent documents.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    idle: Authors,
    documents: Authors,
    recorded: Option<TokenBucket>,
}

impl Pace {
    /// Time that an author has to wait before another of their requests may change nothing; `None` if none. Requests
    /// that change something never wait.
    pub(crate) fn wait(&self, author: &str, now: Instant) -> Option<Duration> {
        self.idle.wait(author, IDLE, now)
    }

    /// Time until the audit log takes another entry of a request that changes nothing; `None` if it takes one now.
    pub(crate) fn wait_to_record(&self, now: Instant) -> Option<Duration> {
        self.recorded?.wait(RECORDED, now)
    }

    /// Counts a request of an author that changes nothing. Returns whether to record it in the audit log.
    pub(crate) fn count_idle(&mut self, author: &str, now: Instant) -> bool {
        self.idle.take(author, IDLE, now);
        let is_recorded = self.wait_to_record(now).is_none();
        if is_recorded {
            self.recorded.get_or_insert(TokenBucket(now)).take(RECORDED, now);
        }
        is_recorded
    }

    /// Time that an author has to wait before another document of theirs is applied; `None` if none.
    pub(crate) fn wait_to_apply(&self, author: &str, now: Instant) -> Option<Duration> {
        self.documents.wait(author, DOCUMENTS, now)
    }

    /// Counts a document that an author applied.
    pub(crate) fn count_document(&mut self, author: &str, now: Instant) {
        self.documents.take(author, DOCUMENTS, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_author_waits_after_twenty_requests_for_nothing_and_others_do_not() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for _ in 0..IDLE.at_once {
            assert_eq!(pace.wait("loop", now), None);
            assert!(pace.count_idle("loop", now));
        }
        let wait = pace.wait("loop", now).unwrap();
        assert!(wait <= IDLE.every, "{wait:?}");
        assert_eq!(pace.wait("alice", now), None);
        assert_eq!(pace.wait("loop", now + wait), None);
        assert_eq!(pace.wait_to_apply("loop", now), None, "documents are counted apart");
    }

    #[test]
    fn an_author_waits_after_twenty_documents() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for _ in 0..DOCUMENTS.at_once {
            assert_eq!(pace.wait_to_apply("alice", now), None);
            pace.count_document("alice", now);
        }
        let wait = pace.wait_to_apply("alice", now).unwrap();
        assert!(wait <= DOCUMENTS.every, "{wait:?}");
        assert_eq!(pace.wait_to_apply("bob", now), None);
        assert_eq!(pace.wait_to_apply("alice", now + wait), None);
    }

    #[test]
    fn many_names_fill_neither_the_log_nor_the_memory() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let recorded = (0..10_000).filter(|number| pace.count_idle(&format!("author {number}"), now));
        assert_eq!(recorded.count() as u32, RECORDED.at_once);
        assert!(pace.idle.0.len() <= AUTHORS_MAX);
        assert!(pace.wait_to_record(now).is_some());
        assert!(pace.count_idle("alice", now + RECORDED.every));
    }
}
