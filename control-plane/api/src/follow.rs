//! Following plans: connect, apply what is newer, acknowledge, and start again elsewhere when the stream ends.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use topology::{NodeId, PlanNumber, Snapshot};

use crate::{
    LastGood,
    convert::BadMessage,
    v1::{self, plans_client::PlansClient, watch_request::Message},
};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection is probed this often, so that a dead control plane is noticed while no plan changes.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Waits between attempts: doubling between these, and spread by the node's name so that a fleet does not return as one.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LAST: Duration = Duration::from_secs(5);

/// Follows the plans of a control plane on behalf of a node.
pub struct Follower {
    /// Control planes, `http://address:port`, tried in turn.
    pub endpoints: Vec<String>,
    /// Who asks.
    pub node: NodeId,
    /// What it is.
    pub kind: v1::NodeKind,
    /// Where the last good plan is kept.
    pub last_good: LastGood,
}

/// Why a snapshot was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not strictly newer than what is applied. Normal after a reconnect, an alarm when it keeps coming.
    #[error("plan {offered} is not newer than {have}")]
    NotNewer {
        /// The number that came.
        offered: PlanNumber,
        /// The number that is applied.
        have: PlanNumber,
    },
    /// Unreadable, damaged, empty or contradictory.
    #[error(transparent)]
    Invalid(#[from] topology::SnapshotError),
}

/// Decides whether an update is applied over `have`: whole, valid, and strictly newer (invariants 1 and 2).
pub fn accept(update: &v1::SnapshotUpdate, have: PlanNumber) -> Result<Snapshot, Rejected> {
    let snapshot = Snapshot::decode(&update.document, &update.checksum)?;
    let offered = snapshot.plan.number();
    if offered <= have {
        return Err(Rejected::NotNewer { offered, have });
    }
    Ok(snapshot)
}

impl Follower {
    /// Follows until `stop`. `current` is given the last good plan from disk first, then every newer one; nothing ever
    /// empties it, so its readers keep serving when the control plane is gone.
    pub async fn run(self, current: watch::Sender<Option<Arc<Snapshot>>>, stop: impl Future<Output = ()>) {
        if let Some(snapshot) = self.last_good.load() {
            tracing::info!(plan = %snapshot.plan.number(), "starting from the last good plan on disk");
            current.send_replace(Some(Arc::new(snapshot)));
        }
        tokio::select! {
            () = stop => {}
            () = self.follow_forever(&current) => {}
        }
    }

    async fn follow_forever(&self, current: &watch::Sender<Option<Arc<Snapshot>>>) {
        let spread = self.node.as_str().bytes().map(u64::from).sum::<u64>() % 100;
        let mut backoff = BACKOFF_FIRST;
        for endpoint in self.endpoints.iter().cycle() {
            let mut connected = false;
            if let Err(error) = self.follow(endpoint, current, &mut connected).await {
                tracing::warn!(%endpoint, %error, "cannot follow plans; serving the last good one");
            }
            if connected {
                // A stream always ends in some way; only addresses that do not answer are asked less and less.
                backoff = BACKOFF_FIRST;
            }
            tokio::time::sleep(backoff + backoff.mul_f64(0.005 * spread as f64)).await;
            backoff = (backoff * 2).min(BACKOFF_LAST);
        }
        // Without endpoints there is nothing to follow: the plan on disk is all there is.
        std::future::pending::<()>().await;
    }

    /// One connection, until it ends; sets `connected` once the control plane answered.
    async fn follow(
        &self,
        endpoint: &str,
        current: &watch::Sender<Option<Arc<Snapshot>>>,
        connected: &mut bool,
    ) -> Result<(), tonic::Status> {
        let channel = channel(endpoint)?
            .connect()
            .await
            .map_err(|error| unavailable(endpoint, &error))?;
        let mut client =
            PlansClient::new(channel).max_decoding_message_size(2 * topology::snapshot::SNAPSHOT_BYTES_MAX);
        // Answers are tiny and one per plan; eight outstanding mean that the control plane is not reading.
        let (answers, requests) = mpsc::channel(8);
        let have = number_of(current);
        let hello = v1::Hello {
            node: self.node.to_string(),
            kind: self.kind.into(),
            have: Some(have.into()),
        };
        send(&answers, Message::Hello(hello)).await?;
        let mut updates = client.watch(ReceiverStream::new(requests)).await?.into_inner();
        tracing::info!(%endpoint, "following plans");
        *connected = true;
        while let Some(update) = updates.message().await? {
            let number = update.number;
            let answer = match accept(&update, number_of(current)) {
                Ok(snapshot) => {
                    if let Err(error) = self.last_good.save(&snapshot) {
                        // The plan is good; only a restart without control plane would suffer.
                        tracing::error!(path = %self.last_good.path().display(), %error, "the last good plan cannot be kept");
                    }
                    tracing::info!(plan = %snapshot.plan.number(), "plan applied");
                    let number = Some(snapshot.plan.number().into());
                    current.send_replace(Some(Arc::new(snapshot)));
                    Message::Ack(v1::Ack { number })
                }
                Err(rejected) => {
                    tracing::warn!(%rejected, "plan refused");
                    Message::Nack(v1::Nack {
                        number,
                        reason: rejected.to_string(),
                    })
                }
            };
            send(&answers, answer).await?;
        }
        Ok(())
    }
}

/// The settings of every connection to a control plane.
pub fn channel(endpoint: &str) -> Result<tonic::transport::Endpoint, tonic::Status> {
    let endpoint = tonic::transport::Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| tonic::Status::from(BadMessage::new("endpoint", format!("{endpoint:.100}: {error}"))))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

pub(crate) fn unavailable(endpoint: &str, error: &dyn std::error::Error) -> tonic::Status {
    let cause = std::iter::successors(error.source(), |error| error.source())
        .last()
        .map(ToString::to_string);
    tonic::Status::unavailable(format!("{endpoint}: {}", cause.unwrap_or_else(|| error.to_string())))
}

fn number_of(current: &watch::Sender<Option<Arc<Snapshot>>>) -> PlanNumber {
    current
        .borrow()
        .as_ref()
        .map(|snapshot| snapshot.plan.number())
        .unwrap_or_default()
}

async fn send(answers: &mpsc::Sender<v1::WatchRequest>, message: Message) -> Result<(), tonic::Status> {
    let request = v1::WatchRequest { message: Some(message) };
    answers
        .send(request)
        .await
        .map_err(|_| tonic::Status::unavailable("the control plane stopped listening"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::fixtures::three_primaries;

    #[test]
    fn only_strictly_newer_and_valid_plans_are_accepted() {
        let mut snapshot = three_primaries();
        (snapshot.plan.generation, snapshot.plan.epoch) = (7, 3);
        let update = v1::SnapshotUpdate::from(&snapshot);
        let have = |generation, epoch| PlanNumber { generation, epoch };
        assert!(accept(&update, have(0, 0)).is_ok());
        assert!(accept(&update, have(6, 9)).is_ok());
        assert!(accept(&update, have(7, 2)).is_ok());
        for newer_or_same in [have(7, 3), have(7, 4), have(8, 0)] {
            assert!(
                matches!(accept(&update, newer_or_same), Err(Rejected::NotNewer { .. })),
                "{newer_or_same}"
            );
        }
        snapshot.plan.routes.clear();
        assert!(matches!(
            accept(&(&snapshot).into(), have(0, 0)),
            Err(Rejected::Invalid(_))
        ));
    }
}
