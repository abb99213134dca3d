//! Rehearsed failovers: callers who talk throughout, faults, observations, and the report.

pub mod calls;
pub mod demo;
pub mod fleet;
pub mod mark;
pub mod narrate;
pub mod new_sessions;
pub mod observe;
pub mod query;
pub mod recordings;
pub mod report;
pub mod resolve;

mod texts;
mod timeline;

pub use demo::demo;
pub use narrate::Narrator;
pub use recordings::Recording;
pub use report::Report;
pub use resolve::Resolver;
