//! Reports the questions of each tick to control planes, for people: `meridian status` shows them. No decision depends on them.

use std::time::Duration;

use api::convert::NamesReport;
use tokio::{sync::mpsc, time::sleep};
use topology::NodeId;

use crate::{Metrics, texts};

/// Pause after the end of a tick, so that a timer that fires early does not count the rest of the tick as another one.
const SETTLE: Duration = Duration::from_millis(20);

/// Reports each tick when it is over, until the task is dropped. When the queue is full, the control planes are away and a report is
/// lost.
pub async fn keep_reporting(node: NodeId, metrics: Metrics, reports: mpsc::Sender<NamesReport>) {
    loop {
        let now = daemon::clock::now();
        let tick = now.tick();
        sleep(tick.end().since(now) + SETTLE).await;
        let report = NamesReport {
            node: node.clone(),
            tick,
            seen: metrics.seen.take(),
        };
        if let Err(error) = reports.try_send(report) {
            tracing::debug!(%error, "{}", texts::REPORT_DROPPED);
        }
    }
}
