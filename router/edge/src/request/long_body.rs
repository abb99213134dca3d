//! Passing a body on that is too long to hold, as the device sends it.

use bytes::{Buf as _, Bytes, BytesMut};
use identity::Link;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep},
};

use crate::{
    Edge,
    answer::Answer,
    fault::Cause,
    http1::Response,
    request::ctx::Ctx,
    request::exchange::{self, At, Failure, head_of_answer},
    request::limits::BodyMemory,
    request::requester::{Requester, Unread},
};

/// The result of sending a long body.
pub(crate) enum Sent {
    Answered(Response, BytesMut),
    /// The device sent too much, too slowly, or a malformed body.
    Refused(&'static str, Answer),
    Failed(Failure),
}

/// Sends the held beginning of a body and then each further part, until the region answers.
pub(crate) async fn send<R: Requester>(
    edge: &Edge,
    device: &mut R,
    ctx: &mut Ctx,
    region: &mut Link,
    (mut pending, memory): (Bytes, BodyMemory),
    (is_chunked, to_head): (bool, bool),
) -> Result<Sent, R::Gone> {
    let mut memory = Some(memory);
    let limits = &edge.config.limits;
    let answer_limit = edge.config.timeouts.answer.0;
    let (mut from, mut to) = tokio::io::split(region);
    let mut read = BytesMut::new();
    let mut pace = edge.config.pace();
    let mut is_sent = false;
    // TLS may hold back the end of the bytes that it took, while the socket is full.
    let mut is_flushed = true;
    loop {
        read.reserve(exchange::FIRST_READ_BYTES);
        if pending.is_empty()
            && let Some(memory) = memory.take()
        {
            // The held part is written, so its memory is free.
            pending = Bytes::new();
            drop(memory);
        }
        if pending.is_empty() && !is_sent && device.is_body_done() {
            is_sent = true;
            pending = end_of_body(is_chunked);
        }
        let began = Instant::now();
        let waits_for_device = pending.is_empty() && !is_sent;
        let limit = if waits_for_device {
            pace.remaining()
        } else {
            answer_limit
        };
        let mut is_over = false;
        let mut failed = None;
        tokio::select! {
            biased;
            count = from.read_buf(&mut read) => match count {
                Ok(count) => is_over = count == 0,
                Err(error) => failed = Some(Failure::io(At::Sent, &error)),
            },
            // A region that takes no more bytes may have sent the reason, or will.
            count = async {
                match pending.is_empty() {
                    true => to.flush().await.map(|()| None),
                    false => to.write(&pending).await.map(Some),
                }
            }, if !pending.is_empty() || !is_flushed => match count {
                Ok(None) => is_flushed = true,
                Ok(Some(count)) => {
                    pending.advance(count);
                    is_flushed = false;
                }
                Err(error) if Cause::of(&error) == Cause::Local => {
                    failed = Some(Failure::io(At::Sent, &error));
                }
                Err(_) => {
                    pending = Bytes::new();
                    is_sent = true;
                    is_flushed = true;
                }
            },
            // Behind the body only the end of the device's connection can come.
            part = async {
                match is_sent {
                    true => Err(Unread::Gone(device.leaves().await)),
                    false => device.read_body().await,
                }
            }, if pending.is_empty() => match part {
                Ok(Some(part)) => {
                    pace.waited(began.elapsed(), part.len());
                    ctx.took(part.len());
                    if ctx.body_bytes > limits.body_bytes_max {
                        let answer = Answer::body_too_large(limits.body_bytes_max);
                        return Ok(Sent::Refused("body-too-large", answer));
                    }
                    let mut framed = BytesMut::new();
                    frame(&mut framed, &part, is_chunked);
                    pending = framed.freeze();
                }
                Ok(None) => {
                    is_sent = true;
                    pending = end_of_body(is_chunked);
                }
                Err(Unread::Malformed) => return Ok(Sent::Refused("malformed", Answer::malformed_body())),
                Err(Unread::Gone(gone)) => return Err(gone),
            },
            () = sleep(limit) => {
                if waits_for_device {
                    return Ok(Sent::Refused("body-too-slow", Answer::body_too_slow()));
                }
                failed = Some(Failure::timed_out(edge, At::Sent, limit));
            }
        }
        if let Some(failure) = failed {
            return Ok(Sent::Failed(failure));
        }
        match head_of_answer(&mut read, to_head, limits.header_bytes_max) {
            Ok(Some(mut response)) => {
                // The region would read the unsent rest of the body as the next request.
                response.keeps &= is_sent && pending.is_empty();
                return Ok(Sent::Answered(response, read));
            }
            Ok(None) if is_over => return Ok(Sent::Failed(Failure::ended())),
            Ok(None) => {}
            Err(failure) => return Ok(Sent::Failed(failure)),
        }
    }
}

/// The bytes behind the last part of a body.
fn end_of_body(is_chunked: bool) -> Bytes {
    Bytes::from_static(if is_chunked { b"0\r\n\r\n" } else { b"" })
}

/// Adds a part of a body.
pub(crate) fn frame(bytes: &mut BytesMut, part: &[u8], is_chunked: bool) {
    if !is_chunked {
        bytes.extend_from_slice(part);
    } else if !part.is_empty() {
        bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
}
