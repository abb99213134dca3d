//! A bound for everything that a story waits for.

use std::time::Duration;

/// Longest wait of a story; a longer one means that it hangs.
pub const HANGS_AFTER: Duration = Duration::from_secs(20);

pub async fn hang_means_failure<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS_AFTER, future).await.expect("it hangs")
}
