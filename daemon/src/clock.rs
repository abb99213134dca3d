//! The one clock of Meridian. No other code reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use topology::Moment;

/// The current time. Before 1970 it is the epoch.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Moment {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
