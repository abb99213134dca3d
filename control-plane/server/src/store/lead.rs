//! The right to write. At most one node has it, and its commits are fenced: those of a leader that was replaced without
//! noticing fail even if its clock is wrong.
//!
//! Why it is so: docs/decisions/24-one-transaction-a-decision.md.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::watch;
use topology::NodeId;

use super::{error::StoreError, transaction::Transaction};

/// A candidate for leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    /// URL for operators and edges while it leads.
    pub url: String,
    /// Time that its leadership outlives its last keep-alive. After a crash, successors wait this long.
    pub lease_ttl: Duration,
}

/// The leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderRecord {
    pub node: NodeId,
    /// URL for operators and edges.
    pub url: String,
    /// Number of this leadership; later ones have greater numbers.
    pub epoch: u64,
}

/// The validity of a leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Validity {
    /// Valid until it is revoked.
    Unlimited,
    /// Valid until this time, by the process's own clock.
    Until(Instant),
    /// Over. A lost leadership never comes back.
    Lost,
}

impl Validity {
    pub(super) fn holds(self) -> bool {
        match self {
            Self::Unlimited => true,
            Self::Until(end) => Instant::now() < end,
            Self::Lost => false,
        }
    }

    /// Moves the end further away, unless it has passed. Returns whether it was moved. Runs under the channel's lock,
    /// like [`Leadership::is_valid`], so that no reader sees a leadership end and then continue.
    pub(super) fn prolong(&mut self, end: Instant) -> bool {
        if !self.holds() {
            *self = Self::Lost;
            return false;
        }
        if let Self::Until(old) = self {
            *old = end.max(*old);
        }
        true
    }
}

/// Ends a leadership at its store.
#[async_trait]
pub(super) trait Term: Send + Sync {
    async fn resign(&self) -> Result<(), StoreError>;
}

/// A leadership. Share it in an `Arc`. If it is dropped without [`Leadership::resign`], successors wait for the end of its
/// lease.
pub struct Leadership {
    epoch: u64,
    fence: (String, Option<u64>),
    validity: Arc<watch::Sender<Validity>>,
    term: Box<dyn Term>,
}

impl Leadership {
    pub(super) fn new(
        epoch: u64,
        fence: (String, Option<u64>),
        validity: Arc<watch::Sender<Validity>>,
        term: impl Term + 'static,
    ) -> Self {
        let term = Box::new(term);
        Self {
            epoch,
            fence,
            validity,
            term,
        }
    }

    /// Number of this leadership; it grows with every leadership of the store.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The expectation that every commit of the leader must contain: this leadership is still the newest.
    pub fn fence(&self) -> (String, Option<u64>) {
        self.fence.clone()
    }

    /// Adds the fence to a transaction, as its first expectation, so that a conflict reports a new leader before
    /// anything else. Refuses once the leadership is over by the process's own clock, because the store may not know
    /// yet.
    pub fn fenced(&self, mut transaction: Transaction) -> Result<Transaction, StoreError> {
        let (key, expected) = self.fence();
        if !self.is_valid() {
            let found = None;
            return Err(StoreError::Conflict { key, found, expected });
        }
        transaction.expect.insert(0, (key, expected));
        Ok(transaction)
    }

    /// Whether the leadership is valid. Once false, it stays false.
    pub fn is_valid(&self) -> bool {
        self.validity.borrow().holds()
    }

    /// Time at which the leadership ends without another keep-alive; `None` if it has no such end, and a past time once
    /// it was lost.
    pub fn valid_until(&self) -> Option<Instant> {
        match *self.validity.borrow() {
            Validity::Unlimited => None,
            Validity::Until(end) => Some(end),
            Validity::Lost => Some(Instant::now()),
        }
    }

    /// Resolves once the leadership is no longer valid.
    pub async fn lost(&self) {
        let mut validity = self.validity.subscribe();
        loop {
            let now = *validity.borrow_and_update();
            // `changed` cannot fail: `self` holds the sender.
            match now {
                Validity::Lost => return,
                Validity::Unlimited => drop(validity.changed().await),
                Validity::Until(end) => {
                    tokio::select! {
                        _ = validity.changed() => {}
                        () = tokio::time::sleep_until(end.into()) => {}
                    }
                    if !self.is_valid() {
                        return;
                    }
                }
            }
        }
    }

    /// Ends the leadership at once, so that a successor need not wait. If the store does not hear of it, the lease runs
    /// out.
    pub async fn resign(&self) -> Result<(), StoreError> {
        self.validity.send_replace(Validity::Lost);
        self.term.resign().await
    }
}

impl std::fmt::Debug for Leadership {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Leadership")
            .field("epoch", &self.epoch)
            .field("fence", &self.fence)
            .field("validity", &*self.validity.borrow())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    #[async_trait]
    impl Term for Nothing {
        async fn resign(&self) -> Result<(), StoreError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_lead_ends_by_its_own_clock_and_never_comes_back() {
        let end = Instant::now() + Duration::from_secs(1);
        let validity = Arc::new(watch::Sender::new(Validity::Until(end)));
        let lead = Leadership::new(7, ("/leader".to_owned(), Some(7)), validity.clone(), Nothing);
        assert!(lead.is_valid());
        let mine = Transaction {
            expect: vec![("/plan".to_owned(), None)],
            ..Transaction::default()
        };
        let fenced = lead.fenced(mine).unwrap().expect;
        assert_eq!(fenced[0], lead.fence(), "a conflict names the leader first");
        assert_eq!(fenced[1..], [("/plan".to_owned(), None)]);
        let later = end + Duration::from_millis(30);
        assert!(validity.send_if_modified(|validity| validity.prolong(later)));
        lead.lost().await;
        assert!(Instant::now() >= later && !lead.is_valid());
        let refused = lead.fenced(Transaction::default()).unwrap_err();
        assert!(
            matches!(&refused, StoreError::Conflict { key, .. } if key == "/leader"),
            "a transaction after the end of the leadership is not sent: {refused}"
        );
        let much_later = later + Duration::from_secs(600);
        assert!(!validity.send_if_modified(|validity| validity.prolong(much_later)));
        assert!(!lead.is_valid() && lead.valid_until() <= Some(Instant::now()));
        lead.lost().await;
    }

    #[tokio::test]
    async fn a_lead_that_was_resigned_is_lost_at_once() {
        let validity = Arc::new(watch::Sender::new(Validity::Unlimited));
        let lead = Leadership::new(7, ("/epoch".to_owned(), Some(9)), validity, Nothing);
        assert_eq!((lead.is_valid(), lead.valid_until()), (true, None));
        let (resigned, ()) = tokio::join!(lead.resign(), lead.lost());
        resigned.unwrap();
        assert!(!lead.is_valid());
    }
}
