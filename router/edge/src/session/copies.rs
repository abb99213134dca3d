//! A copy of each session whose device left, at another stack of its region: should its own stack be gone when the device
//! returns, through whichever edge, its alarms and timers are there.
//!
//! The edge cannot read the checkpoint, so it copies that of every session; the stack keeps only those with an alarm or a timer.
//! No copy leaves the region.

use std::time::Duration;

use topology::{Moment, RegionId};

use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::Semaphore, time::timeout};

use crate::{
    Edge,
    http1::{
        Response,
        head::{self, Bounds, Kind},
    },
    request_id::RequestId,
};

/// Copies under way at once. When an edge stops, thousands of sessions end together, and their devices come back at once: those
/// copies are not worth a rush on the stacks.
const AT_ONCE_MAX: usize = 64;
/// A session whose copy takes longer, its turn included, gets none.
const COPY_MAX: Duration = Duration::from_secs(2);

/// Limits the copies under way.
#[derive(Debug)]
pub struct Copies {
    turns: Semaphore,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(AT_ONCE_MAX),
        }
    }
}

/// A session whose device left.
pub(super) struct Left<'a> {
    pub(super) id: &'a RequestId,
    pub(super) session: &'a str,
    pub(super) region: &'a RegionId,
    pub(super) stack: std::net::SocketAddr,
    /// Its last checkpoint.
    pub(super) state: &'a [u8],
}

/// Sends the copy. A failure is logged and no more: the session's own stack has the session, and so has this edge.
pub(super) async fn copy(edge: &Edge, left: &Left<'_>, now: Moment) {
    let Left {
        id, region, session, ..
    } = left;
    let Some(table) = edge.table() else { return };
    let is_out = |stack| edge.fleet.is_out(region, stack, now);
    let Some(to) = routing::session::keeper_of_copy(&table, session, region, left.stack, is_out) else {
        return;
    };
    let sending = async {
        let _turn = edge.copies.turns.acquire().await;
        send(edge, to, left).await
    };
    let why = match timeout(COPY_MAX, sending).await {
        Ok(Ok(200..300)) => return,
        // A stack of an earlier release knows no copies.
        Ok(Ok(status)) => format!("answered {status}"),
        Ok(Err(why)) => why,
        Err(_) => format!("not done within {COPY_MAX:?}"),
    };
    tracing::info!(request_id = %id, %region, stack = %to, why, "no other stack has a copy of a session whose device left");
}

/// Returns the status of the answer.
async fn send(edge: &Edge, to: std::net::SocketAddr, left: &Left<'_>) -> Result<u16, String> {
    let timeouts = &edge.config.timeouts;
    let mut stream = TcpStream::connect(to)
        .await
        .map_err(|error| format!("connect: {error}"))?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {to}\r\nX-Request-Id: {}\r\nContent-Type: application/octet-stream\r\nContent-Length: \
         {}\r\nConnection: close\r\n\r\n",
        wire::COPY_PATH,
        left.id,
        left.state.len()
    );
    let request = [head.as_bytes(), left.state].concat();
    stream.write_all(&request).await.map_err(|error| error.to_string())?;
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
        .ok_or_else(|| "it does not speak HTTP".to_owned())
}
