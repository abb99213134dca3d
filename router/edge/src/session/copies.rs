//! Copies of each session whose device left: one at another stack of its region, and one in the next region that would take the device.
//! If its own stack or its whole region is gone when the device returns, through any edge, the copy has its alarms and timers.
//!
//! The edge cannot read a checkpoint, so it copies the checkpoint of every session; stacks keep only those with an alarm or a timer.

use std::time::Duration;

use routing::session::{Whereabouts, keepers_of_copies};
use topology::{Moment, RegionId};

use futures_util::future::join_all;
use identity::Speaks;
use tokio::{io::AsyncWriteExt as _, time::timeout};

use crate::{
    Edge,
    http1::{
        Response,
        head::{self, Bounds, Kind},
    },
    request_id::RequestId,
    session::copy_turns::AT_ONCE_MAX,
};

/// The edge gives a copy up that takes longer, and also the wait for a turn.
const COPY_MAX: Duration = Duration::from_secs(2);

/// A session whose device left.
pub(super) struct DepartedSession<'a> {
    pub(super) id: &'a RequestId,
    pub(super) session: &'a str,
    pub(super) at: Whereabouts<'a>,
    /// Its last checkpoint.
    pub(super) state: &'a [u8],
}

/// Sends the copies. It only logs a failure: the session's own stack has the session, and so has this edge.
pub(super) async fn copy(edge: &Edge, left: &DepartedSession<'_>, now: Moment) {
    let Some(table) = edge.table() else { return };
    let is_out = |region: &RegionId, stack| edge.fleet.is_out(region, stack, now);
    let keepers = keepers_of_copies(&table, left.session, left.at, is_out);
    let Ok(_turn) = timeout(COPY_MAX, edge.copy_turns.next()).await else {
        tracing::info!(request_id = %left.id, "no copy of a session whose device left: {AT_ONCE_MAX} others were under way for {COPY_MAX:?}");
        return;
    };
    join_all(keepers.into_iter().map(async |(region, stack)| {
        let why = match timeout(COPY_MAX, send(edge, (region, stack), left)).await {
            Ok(Ok(200..300)) => return,
            // A stack of an earlier release knows no copies.
            Ok(Ok(status)) => format!("answered {status}"),
            Ok(Err(why)) => why,
            Err(_) => format!("not done within {COPY_MAX:?}"),
        };
        tracing::info!(request_id = %left.id, %region, %stack, why, "this stack has no copy of a session whose device left");
    }))
    .await;
}

/// Returns the status of the answer.
async fn send(
    edge: &Edge,
    (region, to): (&RegionId, std::net::SocketAddr),
    left: &DepartedSession<'_>,
) -> Result<u16, String> {
    let timeouts = &edge.config.timeouts;
    let dialled = edge.dial(region, to, Speaks::Http1).await;
    let mut stream = dialled.map_err(|error| format!("connect: {error}"))?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {to}\r\nX-Request-Id: {}\r\nContent-Type: application/octet-stream\r\nContent-Length: \
         {}\r\nConnection: close\r\n\r\n",
        wire::COPY_PATH,
        left.id,
        left.state.len()
    );
    let request = [head.as_bytes(), left.state].concat();
    stream.write_all(&request).await.map_err(|error| error.to_string())?;
    stream.flush().await.map_err(|error| error.to_string())?;
    let bounds = Bounds {
        first: timeouts.upgrade.0,
        rest: timeouts.upgrade.0,
        bytes_max: edge.config.limits.header_bytes_max,
    };
    let read = head::read(&mut stream, Kind::Response, bounds)
        .await
        .map_err(|error| error.to_string())?;
    let answer = Response::parse(&read.bytes[..read.len], false).map_err(|error| error.to_string())?;
    answer
        .map(|answer| answer.status)
        .ok_or_else(|| "the answer is not HTTP".to_owned())
}
