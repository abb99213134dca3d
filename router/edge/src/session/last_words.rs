//! The last words of a region that is lost while its device takes nothing: the reason stands in the region's socket, behind the bytes
//! that the device has yet to take. Those bytes are not lost, because another region sends again what the device did not get.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::{
    fault::Event,
    session::{
        direction::READ_BUFFER,
        end::{End, Lost},
        frames::Scanner,
    },
};

/// Most bytes that the edge searches for the Close frame. A socket's buffer rarely holds more, and the session cannot go on before
/// the search ends.
const BYTES_MAX: usize = 16 << 20;

/// The search for the Close frame of a lost region.
#[derive(Debug, Default)]
pub(super) struct LastWords {
    /// The bytes that were searched.
    searched: usize,
}

impl LastWords {
    /// Reads until the Close frame, the end of the connection, or the bound. `scanner` is at the first byte that was not read yet.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        region: &mut (impl AsyncRead + Unpin),
        scanner: &mut Scanner,
    ) -> Poll<End> {
        let said_last = READ_BUFFER.with_borrow_mut(|buffer| {
            let mut sink = BytesMut::new();
            loop {
                let mut buffer = ReadBuf::new(&mut buffer[..]);
                match ready!(Pin::new(&mut *region).poll_read(cx, &mut buffer)) {
                    Ok(()) if !buffer.filled().is_empty() => {}
                    Ok(()) => return Poll::Ready(Err(Lost::ended())),
                    Err(error) => return Poll::Ready(Err(Lost::io(&error))),
                }
                sink.clear();
                self.searched += buffer.filled().len();
                if let Err(violation) = scanner.push(buffer.filled(), &mut sink, false) {
                    return Poll::Ready(Err(Lost::broken(violation)));
                }
                if scanner.closed() {
                    return Poll::Ready(Ok(scanner.close_code()));
                }
                if self.searched > BYTES_MAX {
                    return Poll::Ready(Err(Lost::ended()));
                }
            }
        });
        Poll::Ready(match ready!(said_last) {
            Ok(Some(CloseCode::Away | CloseCode::Restart)) => End::RegionClosing,
            // The region gave the device up, as this edge would soon.
            Ok(Some(CloseCode::Policy)) => End::DeviceSlow,
            Ok(code) => {
                let code = code.unwrap_or(CloseCode::Status);
                let why = format!("session closed with code {code} while the device took nothing");
                let event = Event::Closed(code);
                End::RegionLost(Lost { event, why })
            }
            Err(end) => end,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io, iter};

    use tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;
    use crate::session::frames::{Sender, close_for_device, frame_for_device};

    /// The bytes that wait in the socket of a region.
    struct Waiting(Box<dyn Iterator<Item = Vec<u8>> + Send>);

    impl AsyncRead for Waiting {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            buffer.put_slice(&self.0.next().unwrap_or_default());
            Poll::Ready(Ok(()))
        }
    }

    /// A region that is never done must not hold the thread of all other sessions.
    #[tokio::test]
    async fn the_close_of_a_region_is_searched_up_to_a_bound() {
        let event = frame_for_device(OpCode::Data(Data::Text), &[b'x'; 8_000]).to_vec();
        let last = close_for_device(CloseCode::Restart, "bye").to_vec();
        for (bytes, expected) in [
            (0, End::RegionClosing),
            (BYTES_MAX - 2 * event.len(), End::RegionClosing),
            (BYTES_MAX + 2 * event.len(), Lost::ended()),
        ] {
            let events = iter::repeat_n(event.clone(), bytes / event.len());
            let mut region = Waiting(Box::new(events.chain(iter::once(last.clone()))));
            let mut scanner = Scanner::new(Sender::Region, u64::MAX);
            let mut last_words = LastWords::default();
            let end = poll_fn(|cx| last_words.poll(cx, &mut region, &mut scanner)).await;
            assert_eq!(end, expected, "behind {bytes} bytes");
        }
    }
}
