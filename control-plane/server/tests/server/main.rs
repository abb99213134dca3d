//! Stories of control planes, most of them real processes, on real stores.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod clocks;
mod common;
mod control_plane;
mod deciding;
mod etcd_faults;
mod etcd_support;
mod etcd_tls;
mod identity;
mod joining;
mod logins;
mod replicas;
mod store_contract;
mod store_crash;
mod without_store;
