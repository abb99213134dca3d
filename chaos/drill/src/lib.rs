//! Rehearsed failovers: callers who talk all the while, faults, what was seen of them, and the report.

pub mod bench;
pub mod calls;
pub mod demo;
pub mod fleet;
pub mod narrate;
pub mod observe;
pub mod recordings;
pub mod report;
pub mod resolve;

mod timeline;

pub use demo::demo;
pub use narrate::Narrator;
pub use recordings::Recording;
pub use report::Report;
pub use resolve::Resolver;
