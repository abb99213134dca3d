//! The parts that every Meridian process shares: command line, configuration, logs, metrics, health, announced addresses,
//! listening sockets, named tasks, shutdown, the one clock, and the lateness of the process. It decides nothing about regions,
//! plans or sessions.
//!
//! A process reads as a story:
//!
//! ```no_run
//! # #[derive(serde::Deserialize)] struct Config { admin_listen: std::net::SocketAddr }
//! # use daemon::config::{Problems, Rules};
//! # impl Rules for Config { fn problems(&self) -> Problems { Problems::default() } }
//! # fn main() -> std::process::ExitCode {
//! daemon::main("meridian-example", "Says that it works.", |process, config: Config| async move {
//!     let mut tasks = daemon::Tasks::new();
//!     let registry = prometheus_client::registry::Registry::default();
//!     let ready = daemon::admin::Readiness::default();
//!     let admin = daemon::admin::serve(&mut tasks, config.admin_listen, registry, ready.clone()).await?;
//!     ready.set("example", true);
//!     process.announce(&[("admin", admin)])?;
//!     tasks.run(std::time::Duration::from_secs(10)).await
//! })
//! # }
//! ```

pub mod admin;
pub mod announce;
pub mod clock;
pub mod config;
mod labels;
pub mod lag;
pub mod listen;
pub mod process;
pub mod sealed;
pub mod secrets;
pub mod tasks;
pub mod telemetry;
mod texts;

pub use announce::Announcement;
pub use listen::listen;
pub use process::{Process, main, main_with};
pub use tasks::Tasks;
