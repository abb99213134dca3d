//! Starts and supervises a whole deployment on one machine: six regional stacks, two edges, a name server and a control
//! plane (or three that share a three-member etcd). Each is a process of its own that can be killed, frozen and
//! restarted.
//!
//! No process outlives its world. Every process holds the reading end of a pipe from its supervisor and stops when the
//! pipe closes, so even `kill -9` of the supervisor leaves no process behind. Every world takes a random /24 of the
//! loopback network, so that any number of worlds share a machine, and processes keep their addresses when they
//! restart.

pub mod authority;
pub mod etcd;
pub mod layout;
pub mod process;
pub mod record;
pub mod settings;

mod members;
mod network;
mod ready;
mod start;
mod texts;

pub use etcd::{EtcdCluster, EtcdSettings};
pub use layout::Layout;
pub use process::{Death, ProcessError};
pub use record::{Record, find};
pub use settings::{Engine, Progress, Settings, StoreKind};
pub use start::{StartError, World};
