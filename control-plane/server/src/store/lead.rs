//! The right to write. At most one node has it, and what it writes is fenced: a leader that was replaced without noticing
//! gets nothing through, whatever its clock says.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::watch;
use topology::NodeId;

use super::{StoreError, Transaction};

/// Who wants to lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub node: NodeId,
    /// Where operators and edges reach it while it leads.
    pub url: String,
    /// How long its lead outlives its last sign of life: successors wait this long after a crash.
    pub lease_ttl: Duration,
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderRecord {
    /// Its name.
    pub node: NodeId,
    /// Where it is reached.
    pub url: String,
    /// Which lead this is; a later one has a greater number.
    pub epoch: u64,
}

/// Until when a lead may be acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// As long as nobody says otherwise.
    ForEver,
    /// By our own clock.
    Until(Instant),
    /// No more. A lead that was lost once never comes back.
    Lost,
}

impl Standing {
    pub(super) fn holds(self) -> bool {
        match self {
            Self::ForEver => true,
            Self::Until(end) => Instant::now() < end,
            Self::Lost => false,
        }
    }

    /// Moves the end further away, unless it was reached already; whether it was moved. Called under the channel's lock,
    /// as [`Lead::is_valid`] is: nobody sees a lead end and then go on.
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

/// How a store ends a lead.
#[async_trait]
pub(super) trait Term: Send + Sync {
    async fn resign(&self) -> Result<(), StoreError>;
}

/// A lead. Share it in an `Arc`; when it is dropped without [`Lead::resign`] the store waits for its lease to run out.
pub struct Lead {
    epoch: u64,
    fence: (String, Option<u64>),
    standing: Arc<watch::Sender<Standing>>,
    term: Box<dyn Term>,
}

impl Lead {
    pub(super) fn new(
        epoch: u64,
        fence: (String, Option<u64>),
        standing: Arc<watch::Sender<Standing>>,
        term: impl Term + 'static,
    ) -> Self {
        let term = Box::new(term);
        Self {
            epoch,
            fence,
            standing,
            term,
        }
    }

    /// Which lead this is. Grows with every lead of the store.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What every commit of the leader must expect besides its own: that this lead is still the newest.
    pub fn fence(&self) -> (String, Option<u64>) {
        self.fence.clone()
    }

    /// The transaction as a leader may commit it: first of all it expects that this lead is still the newest, so that a
    /// conflict says who leads before anything else. Refused once the lead is over by our own clock: the store may not
    /// know yet.
    pub fn fenced(&self, mut transaction: Transaction) -> Result<Transaction, StoreError> {
        let (key, expected) = self.fence();
        if !self.is_valid() {
            let found = None;
            return Err(StoreError::Conflict { key, found, expected });
        }
        transaction.expect.insert(0, (key, expected));
        Ok(transaction)
    }

    /// Whether the lead may be acted upon. Once it may not, it never may again.
    pub fn is_valid(&self) -> bool {
        self.standing.borrow().holds()
    }

    /// When the lead ends unless the store is heard before; `None` when it has no such end. In the past once it was lost.
    pub fn valid_until(&self) -> Option<Instant> {
        match *self.standing.borrow() {
            Standing::ForEver => None,
            Standing::Until(end) => Some(end),
            Standing::Lost => Some(Instant::now()),
        }
    }

    /// Resolves as soon as the lead is no longer valid.
    pub async fn lost(&self) {
        let mut standing = self.standing.subscribe();
        loop {
            let now = *standing.borrow_and_update();
            // The sender is ours: the channel cannot be closed.
            match now {
                Standing::Lost => return,
                Standing::ForEver => drop(standing.changed().await),
                Standing::Until(end) => {
                    tokio::select! {
                        _ = standing.changed() => {}
                        () = tokio::time::sleep_until(end.into()) => {}
                    }
                    if !self.is_valid() {
                        return;
                    }
                }
            }
        }
    }

    /// Ends the lead at once, so that a successor need not wait. If the store does not hear of it, the lease runs out.
    pub async fn resign(&self) -> Result<(), StoreError> {
        self.standing.send_replace(Standing::Lost);
        self.term.resign().await
    }
}

impl std::fmt::Debug for Lead {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Lead")
            .field("epoch", &self.epoch)
            .field("fence", &self.fence)
            .field("standing", &*self.standing.borrow())
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
        let end = Instant::now() + Duration::from_millis(30);
        let standing = Arc::new(watch::Sender::new(Standing::Until(end)));
        let lead = Lead::new(7, ("/leader".to_owned(), Some(7)), standing.clone(), Nothing);
        assert!(lead.is_valid());
        let mine = Transaction {
            expect: vec![("/plan".to_owned(), None)],
            ..Transaction::default()
        };
        let fenced = lead.fenced(mine).unwrap().expect;
        assert_eq!(fenced[0], lead.fence(), "who leads is what a conflict says first");
        assert_eq!(fenced[1..], [("/plan".to_owned(), None)]);
        let later = end + Duration::from_millis(30);
        assert!(standing.send_if_modified(|standing| standing.prolong(later)));
        lead.lost().await;
        assert!(Instant::now() >= later && !lead.is_valid());
        let refused = lead.fenced(Transaction::default()).unwrap_err();
        assert!(
            matches!(&refused, StoreError::Conflict { key, .. } if key == "/leader"),
            "what is decided after the lead's end is not even sent: {refused}"
        );
        let much_later = later + Duration::from_secs(600);
        assert!(!standing.send_if_modified(|standing| standing.prolong(much_later)));
        assert!(!lead.is_valid() && lead.valid_until() <= Some(Instant::now()));
        lead.lost().await;
    }

    #[tokio::test]
    async fn a_lead_that_was_resigned_is_lost_at_once() {
        let standing = Arc::new(watch::Sender::new(Standing::ForEver));
        let lead = Lead::new(7, ("/epoch".to_owned(), Some(9)), standing, Nothing);
        assert_eq!((lead.is_valid(), lead.valid_until()), (true, None));
        let (resigned, ()) = tokio::join!(lead.resign(), lead.lost());
        resigned.unwrap();
        assert!(!lead.is_valid());
    }
}
