//! The connection of a device, and its end, by which the device can read the last answer.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use crate::{Edge, answer::Answer, stamp::Stamp, texts};

/// A device's connection: plain TCP, TLS, or the stream that pingora hands back after an HTTP request.
pub trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + ?Sized> Io for T {}

/// The answer for a device that comes while the edge stops.
pub fn draining() -> Answer {
    Answer::unavailable("edge_draining", texts::DRAINING, 1)
}

/// Answers with an error and ends the connection.
pub async fn decline(edge: &Edge, device: &mut dyn Io, stamp: &Stamp, answer: &Answer) {
    say_last(edge, device, &answer.bytes(stamp, &edge.config.cors)).await;
}

/// Writes these bytes and ends the connection.
pub async fn say_last(edge: &Edge, device: &mut dyn Io, bytes: &[u8]) {
    let limit = edge.config.timeouts.close.0;
    if let Ok(Ok(())) = timeout(limit, device.write_all(bytes)).await {
        goodbye(device, limit).await;
    }
}

/// Most bytes that the edge reads and drops while a connection ends.
pub const LAST_WORDS_BYTES_MAX: u64 = 1 << 20;

/// Ends a connection so that the last bytes written arrive: closing a socket with unread bytes makes the kernel send a
/// reset, which may overtake them. So the edge shuts its side down first, and reads and drops the last words of the peer.
pub async fn goodbye(io: &mut dyn Io, limit: Duration) {
    goodbye_to_sender(io, limit, LAST_WORDS_BYTES_MAX).await;
}

/// The same for a device that still sends up to `bytes_max` bytes: many clients read no answer before they sent their whole request.
pub async fn goodbye_to_sender(io: &mut dyn Io, limit: Duration, bytes_max: u64) {
    let drained = timeout(limit, async {
        io.shutdown().await?;
        let mut rest = io.take(bytes_max);
        // On the heap: in the future it would be a part of every live session.
        let mut sink = vec![0; 1024];
        while rest.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    });
    // An error means that the peer left or does not read; the connection ends in any case.
    let _ = drained.await;
}
