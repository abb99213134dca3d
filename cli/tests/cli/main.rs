//! The command as people use it, and what the pages and the manifests promise.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod audit;
mod blame_table;
mod cert;
mod command;
mod docs;
mod fences;
mod files;
mod supply_chain;
mod texts;
mod up;
