//! Memory of this process: admission refuses devices while it is short, and some sessions leave.

use std::time::Duration;

use routing::admit::Pressure;

use crate::{Edge, texts};

/// Time between two readings of the memory. It cannot run out in between: a connection costs kilobytes, and the memory of sessions
/// has a limit of its own.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Time between two groups of quiet sessions that the edge tells to leave while memory is short.
const SHED_EVERY: Duration = Duration::from_secs(1);

/// Watches the memory of this process and never ends. Without a limit it does nothing.
pub async fn watch_memory(edge: &Edge) {
    let max = edge.config.limits.memory_max;
    if max == 0 {
        return std::future::pending().await;
    }
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut shed_at = tokio::time::Instant::now();
    loop {
        look.tick().await;
        let used = match resident_bytes().await {
            Ok(used) => used,
            Err(error) => {
                tracing::warn!(%error, "{}", texts::MEMORY_UNSEEN);
                return std::future::pending().await;
            }
        };
        let pressure = Pressure::of(used, max);
        let before = edge.admission.pressure.send_replace(pressure);
        if pressure != before {
            tracing::warn!(used, max, pressure = pressure.as_str(), "{}", texts::MEMORY_PRESSURE);
        }
        if pressure == Pressure::Shed && shed_at <= tokio::time::Instant::now() {
            edge.sessions.shed();
            shed_at = tokio::time::Instant::now() + SHED_EVERY;
        }
    }
}

/// Memory of this process that is in use: the second field of proc(5) `statm`, in pages.
async fn resident_bytes() -> std::io::Result<u64> {
    let statm = tokio::fs::read_to_string("/proc/self/statm").await?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| std::io::Error::other("/proc/self/statm is not of the known form"))?;
    Ok(pages * rustix::param::page_size() as u64)
}
