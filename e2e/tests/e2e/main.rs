//! Whole deployments of real processes, one after another, and stories of a few processes beside them.
//!
//! Needs the other programs: `cargo build --workspace --bins` (`make test` does it).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod lost_edge;
mod one_world;
mod rollout;
mod secrets;
mod three_replicas;

use std::time::Duration;

use api::v1::StatusReply;
use e2e::Stage;

/// Longer than an election, and than a machine is busy: only a hang reaches it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// The state of a world, asked for until there is an answer: the client gives up after three seconds, which a busy machine may
/// need.
async fn status(stage: &Stage) -> StatusReply {
    let operator = stage.world.operator();
    let answered = async {
        loop {
            match operator.status().await {
                Ok(status) => return status,
                Err(error) => println!("  asked again: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(ANSWERED_WITHIN, answered)
        .await
        .expect("a control plane answers")
}
