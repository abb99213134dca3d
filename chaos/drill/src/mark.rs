//! The marks on the time line of a drill.

use serde::Serialize;
use topology::Moment;

/// An event of the drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// Time of the event.
    pub at_ms: Moment,
    /// The event in words.
    pub text: String,
}
