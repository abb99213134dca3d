//! Watches a control plane during a drill, and records the time of every change.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use api::{Operator, v1::StatusReply};
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};
use topology::Moment;

use crate::texts;

/// Pause between two questions. Short against everything that is measured with it; answers cost the control plane a
/// hundredth of a core.
const PERIOD: Duration = Duration::from_millis(50);

/// Asks a control plane for its status, again and again.
#[derive(Debug)]
pub struct Observer {
    latest: watch::Receiver<Option<StatusReply>>,
    changes: Arc<Mutex<Vec<Change>>>,
    task: JoinHandle<()>,
}

/// A change of a region's health or state.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Time of noticing it, at most one period late.
    pub at_ms: Moment,
    /// The region whose health or state changed.
    pub region: String,
    /// Health and state before.
    pub from: (String, String),
    /// Health and state after.
    pub to: (String, String),
}

impl Observer {
    /// Starts to ask.
    pub fn start(operator: Operator) -> Self {
        let (sender, latest) = watch::channel(None);
        let changes = Arc::<Mutex<Vec<Change>>>::default();
        let into = Arc::clone(&changes);
        let task = tokio::spawn(async move {
            let mut before: Option<StatusReply> = None;
            while !sender.is_closed() {
                // A moment without an answer is fine here: the drill's own waits have deadlines.
                if let Ok(status) = operator.status().await {
                    let now = daemon::clock::now();
                    if let Some(before) = &before {
                        let mut changes = into.lock();
                        changes.extend(changes_between(before, &status, now));
                    }
                    before = Some(status.clone());
                    sender.send_replace(Some(status));
                }
                tokio::time::sleep(PERIOD).await;
            }
        });
        Self { latest, changes, task }
    }

    /// Waits until the status meets `condition`. After `limit`, the error names the condition by `what`.
    pub async fn until(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&StatusReply) -> bool,
    ) -> anyhow::Result<StatusReply> {
        let mut latest = self.latest.clone();
        let satisfied = latest.wait_for(|status| status.as_ref().is_some_and(&mut condition));
        match tokio::time::timeout(limit, satisfied).await {
            Ok(Ok(status)) => Ok(status.clone().unwrap_or_default()),
            Ok(Err(_)) => bail!(texts::observer_ended(what)),
            Err(_) => bail!(texts::did_not_happen(what, limit, &self.summary())),
        }
    }

    /// The newest status.
    pub fn latest(&self) -> Option<StatusReply> {
        self.latest.borrow().clone()
    }

    /// Receives every status from now on, or at least the newest.
    pub fn follow(&self) -> watch::Receiver<Option<StatusReply>> {
        self.latest.clone()
    }

    /// All changes so far, oldest first.
    pub fn changes(&self) -> Vec<Change> {
        self.changes.lock().clone()
    }

    /// Time at which a region was first seen with this health, not before `since`.
    pub fn first_health(&self, region: &str, health: &str, since: Moment) -> Option<Moment> {
        let changes = self.changes();
        let mut matching = changes
            .iter()
            .filter(|change| change.region == region && change.to.0 == health && change.at_ms >= since);
        matching.next().map(|change| change.at_ms)
    }

    fn summary(&self) -> String {
        let Some(status) = self.latest() else {
            return "the control plane never answered".to_owned();
        };
        let regions: Vec<String> = (status.regions.iter())
            .map(|region| format!("{} {} {}", region.region, region.health, region.state))
            .collect();
        let waiting: Vec<&str> = status.waiting.iter().map(|reason| reason.text.as_str()).collect();
        let number = status.number.unwrap_or_default().generation;
        let waiting = if waiting.is_empty() {
            String::new()
        } else {
            format!("; waiting: {}", waiting.join("; "))
        };
        format!("plan {number}; {}{waiting}", regions.join(", "))
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn changes_between(before: &StatusReply, after: &StatusReply, now: Moment) -> Vec<Change> {
    let mut changes = Vec::new();
    for region in &after.regions {
        let Some(old) = before.regions.iter().find(|old| old.region == region.region) else {
            continue;
        };
        if (&old.health, &old.state) != (&region.health, &region.state) {
            changes.push(Change {
                at_ms: now,
                region: region.region.clone(),
                from: (old.health.clone(), old.state.clone()),
                to: (region.health.clone(), region.state.clone()),
            });
        }
    }
    changes
}

/// Time of the last acknowledgement, if every node has this plan or a newer one; else `None`.
pub fn published(status: &StatusReply, generation: u64) -> Option<Moment> {
    let have = |node: &api::v1::NodeStatus| node.acknowledged.unwrap_or_default().generation >= generation;
    let all = !status.nodes.is_empty() && status.nodes.iter().all(have);
    all.then(|| {
        let times = status.nodes.iter().map(|node| node.acknowledged_at_ms);
        Moment(times.max().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use api::v1;

    use super::*;

    fn status(health: &str, acknowledged: &[u64]) -> StatusReply {
        StatusReply {
            regions: vec![v1::RegionStatus {
                region: "us-east".into(),
                health: health.into(),
                state: "serving".into(),
                ..Default::default()
            }],
            nodes: (acknowledged.iter().enumerate())
                .map(|(index, generation)| v1::NodeStatus {
                    node: format!("node-{index}"),
                    acknowledged: Some(v1::PlanNumber {
                        generation: *generation,
                        epoch: 1,
                    }),
                    acknowledged_at_ms: 100 + index as u64,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn only_changes_are_kept() {
        let (well, down) = (status("healthy", &[]), status("down", &[]));
        assert_eq!(changes_between(&well, &well, Moment(1)), []);
        let changes = changes_between(&well, &down, Moment(2));
        assert_eq!(changes[0].to, ("down".to_owned(), "serving".to_owned()));
    }

    #[test]
    fn a_plan_is_published_when_the_last_node_has_it() {
        assert_eq!(published(&status("healthy", &[3, 2]), 3), None);
        assert_eq!(published(&status("healthy", &[3, 4]), 3), Some(Moment(101)));
        assert_eq!(published(&status("healthy", &[]), 0), None);
    }
}
