//! The one clock: the only place that looks at the wall.

use std::time::{SystemTime, UNIX_EPOCH};

use topology::Moment;

/// What time it is.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Moment {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
