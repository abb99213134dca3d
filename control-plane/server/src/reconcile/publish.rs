//! Publication: the plan to nodes, and the state of this replica to its other readers.

use std::sync::Arc;

use planning::Input;
use tokio::sync::watch;
use topology::{PlanNumber, Snapshot, snapshot::SNAPSHOT_SCHEMA};

use crate::{metrics::Metrics, nodes::Nodes, texts::log, view::View};

/// Publishes the plan in force and the view. Readers subscribe, and always get the newest.
pub(super) struct Publisher {
    nodes: Nodes,
    metrics: Metrics,
    pub(super) snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    pub(super) views: watch::Sender<Arc<View>>,
}

impl Publisher {
    pub(super) fn new(nodes: Nodes, metrics: Metrics, first: View) -> Self {
        Self {
            nodes,
            metrics,
            snapshots: watch::Sender::new(None),
            views: watch::Sender::new(Arc::new(first)),
        }
    }

    /// Publishes the plan in force to the nodes that follow this replica; never an older plan or an invalid one. Returns its number if
    /// it is news.
    pub(super) fn publish_snapshot(&self, input: &Input) -> Option<PlanNumber> {
        let Input {
            topology,
            policy,
            current,
            ..
        } = input;
        let snapshot = Snapshot {
            schema: SNAPSHOT_SCHEMA,
            plan: current.clone()?,
            topology: topology.clone(),
            dns_ttl_s: policy.dns.ttl_s(),
            probe: policy.probe.clone(),
        };
        if let Err(error) = snapshot.validate() {
            tracing::error!(%error, "{}", log::PLAN_INVALID);
            return None;
        }
        let number = snapshot.plan.number();
        let is_news = self.snapshots.send_if_modified(|published| {
            let newer = published
                .as_ref()
                .is_none_or(|published| published.plan.number() < snapshot.plan.number());
            if newer {
                *published = Some(Arc::new(snapshot));
            }
            newer
        });
        if !is_news {
            return None;
        }
        self.nodes.published(number);
        Some(number)
    }

    pub(super) fn publish_view(&self, view: View) {
        let generation = view.input.current.as_ref().map_or(0, |plan| plan.generation);
        self.metrics
            .plan_generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.views.send_replace(Arc::new(view));
    }
}
