//! From a socket that listens to a request that was read: workers, TLS, admission, and the handover to a successor.

pub mod admission;
pub mod connection;
pub mod handover;
pub mod listener;
pub mod memory;
pub mod tls;
pub mod transport;
pub mod workers;
