//! The store of intents, plans and audit entries, and the election of its writer. One trait, so that the embedded file
//! and an etcd cluster behave alike; one contract suite defines "alike" (tests/server/store_contract.rs).

mod backoff;
mod contract;
mod embedded;
mod error;
pub mod etcd;
mod lead;
mod limits;
pub mod mirror;
mod transaction;
mod watch;

pub use contract::{Health, Store};
pub use embedded::Embedded;
pub use error::{Outcome, StoreError};
pub use etcd::Etcd;
pub use lead::{Candidate, LeaderRecord, Leadership};
pub use limits::{OPERATIONS_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};
pub use mirror::Mirror;
pub use transaction::{Entry, Listing, Transaction};
pub use watch::{Batch, Change, Changes, WatchEnd};
