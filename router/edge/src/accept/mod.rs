//! From a socket that listens to a request that was read: workers, TLS, admission, and the handover to a successor.

pub mod access;
pub mod admission;
pub mod auth_config;
pub mod connection;
pub mod documents;
pub mod handover;
mod issuer_url;
pub mod listener;
pub mod memory;
pub mod tls;
pub mod transport;
pub mod workers;
