//! Whether the prober itself was late.

use std::{fmt, sync::Arc, time::Duration};

/// Tells whether the prober was so late recently that a missed deadline is no evidence. By default it was never late.
#[derive(Clone)]
pub struct Lateness(Arc<dyn Fn(Duration) -> bool + Send + Sync>);

impl Lateness {
    /// Takes the function that measures the lateness.
    pub fn new(is_late_for: impl Fn(Duration) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_late_for))
    }

    /// Whether a missed deadline of this length is no evidence.
    pub fn is_late_for(&self, wait: Duration) -> bool {
        (self.0)(wait)
    }
}

impl Default for Lateness {
    fn default() -> Self {
        Self::new(|_| false)
    }
}

impl fmt::Debug for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lateness").finish_non_exhaustive()
    }
}
