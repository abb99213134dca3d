//! One direction of a session: its bytes from the writer to the reader, and the pace of both.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use routing::pace::Pace;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::session::{
    continuity::MovableState,
    end::Stop,
    frames::{Scanner, Sender},
    outgoing::Outgoing,
};

/// A shorter pause of a device is normal: every burst has some.
const BLOCKED_MIN: Duration = Duration::from_secs(1);
/// Least time for a blocked reader to take its Close frame: after a radio gap, TCP itself waits for seconds before it sends
/// again.
const CLOSE_OF_BLOCKED_MIN: Duration = Duration::from_secs(5);
/// One read. Voice frames have a few kilobytes; larger reads would only store more bytes for a slow peer.
const READ_BYTES: usize = 16 << 10;

thread_local! {
    /// No code holds it across an await, so one per thread is enough for any number of sessions.
    pub(super) static READ_BUFFER: RefCell<Box<[u8; READ_BYTES]>> = RefCell::new(Box::new([0; READ_BYTES]));
}

pub struct Direction {
    sender: Sender,
    pub(super) out: Outgoing,
    /// Written bytes are still in a buffer of TLS or of pingora, because the socket took no more.
    pub(super) unflushed: bool,
    pub(super) bytes: u64,
    /// The time of the last read, or the time at which reading became possible again.
    pub(super) active_at: Instant,
    /// The time since which the reader has taken none of the bytes that wait for it. Meanwhile the edge reads nothing from the writer,
    /// so the writer's silence does not count.
    pub(super) blocked_since: Option<Instant>,
    /// The reader's pace while bytes wait for it: a byte now and then does not keep a session.
    pub(super) pace: Pace,
    /// The writer's pace with a frame that it began.
    pub(super) frame_pace: Pace,
    /// Time at which the reader last took bytes after a long pause.
    pub(super) freed_at: Option<Instant>,
}

pub(super) enum DirectionEnd {
    Eof,
    Read(io::Error),
    Write(io::Error),
    Stop(Stop),
    Boundary,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    End,
    Boundary,
}

impl Direction {
    pub(super) fn new(sender: Sender, frame_bytes_max: u64, (pace, frame_pace): (Pace, Pace)) -> Self {
        Self {
            sender,
            out: Outgoing::new(Scanner::new(sender, frame_bytes_max)),
            // The answer to the upgrade may still be on its way.
            unflushed: true,
            bytes: 0,
            active_at: Instant::now(),
            blocked_since: None,
            pace,
            frame_pace,
            freed_at: None,
        }
    }

    /// Whether bytes wait that the reader does not take.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// The time in which the reader must take its Close frame, which waits behind the bytes that it did not take.
    pub(super) fn close_limit(&self, close: Duration) -> Duration {
        match self.is_blocked() {
            true => close.max(CLOSE_OF_BLOCKED_MIN),
            false => close,
        }
    }

    /// Records that the reader takes no bytes now.
    pub(super) fn note_blocked(&mut self) {
        self.blocked_since.get_or_insert_with(Instant::now);
    }

    /// Records that the reader took bytes.
    pub(super) fn note_taken(&mut self, bytes: usize) {
        if let Some(since) = self.blocked_since.take() {
            self.active_at = Instant::now();
            let waited = self.active_at.duration_since(since);
            self.pace.waited(waited, bytes);
            if waited >= BLOCKED_MIN {
                self.freed_at = Some(self.active_at);
            }
        } else if self.pace.is_behind() {
            self.pace.waited(Duration::ZERO, bytes);
        }
    }

    /// Records that the writer sent bytes. They were awaited if they continue a frame.
    pub(super) fn note_sent(&mut self, bytes: usize, is_awaited: bool) {
        let now = Instant::now();
        if is_awaited || self.frame_pace.is_behind() {
            let waited = now.duration_since(self.active_at);
            self.frame_pace
                .waited(if is_awaited { waited } else { Duration::ZERO }, bytes);
        }
        self.active_at = now;
    }

    /// The time at which the writer's silence is too long; none while the edge does not read from it.
    pub(super) fn silent_at(&self, idle: Duration) -> Option<Instant> {
        let is_heard = self.blocked_since.is_none();
        is_heard.then(|| self.active_at + idle)
    }

    /// The time at which the reader has been too slow for too long.
    pub(super) fn blocked_until(&self) -> Option<Instant> {
        self.blocked_since.map(|since| since + self.pace.remaining())
    }

    pub(super) fn take(&mut self, bytes: &[u8], until: Until, movable: Option<&mut MovableState>) -> Result<(), Stop> {
        self.bytes += bytes.len() as u64;
        let taken = match (movable, self.sender) {
            (Some(movable), Sender::Region) => return movable.take_from_region(bytes, &mut self.out),
            (Some(movable), Sender::Device) => {
                movable.take_from_device(bytes, &mut self.out.scanner, &mut self.out.pending)
            }
            (None, _) => {
                let pushed = self
                    .out
                    .scanner
                    .push(bytes, &mut self.out.pending, until == Until::Boundary);
                pushed.map_err(Stop::Violation)
            }
        };
        self.out.ready = self.out.pending.len();
        taken
    }

    /// Moves bytes until one socket is not ready, or this direction ends.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        until: Until,
        mut movable: Option<&mut MovableState>,
    ) -> Poll<DirectionEnd>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        loop {
            while self.out.ready > 0 {
                match Pin::new(&mut *to).poll_write(cx, &self.out.pending[..self.out.ready]) {
                    Poll::Pending => {
                        self.note_blocked();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(0)) => return Poll::Ready(DirectionEnd::Write(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => {
                        self.out.pending.advance(written);
                        self.out.ready -= written;
                        self.note_taken(written);
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(DirectionEnd::Write(error)),
                }
                if self.out.ready == 0 {
                    if self.out.pending.is_empty() {
                        // Gives the memory back: a session is silent most of the time.
                        self.out.pending = BytesMut::new();
                    }
                    self.unflushed = true;
                }
            }
            // Plain TCP has nothing to flush. Bytes that do not leave now hold back those that follow.
            if self.unflushed {
                match Pin::new(&mut *to).poll_flush(cx) {
                    Poll::Pending => {
                        self.note_blocked();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => {
                        self.unflushed = false;
                        // The number of bytes that left the buffer is unknown; it is more than none.
                        self.note_taken(0);
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(DirectionEnd::Write(error)),
                }
            }
            if until == Until::Boundary && self.out.scanner.at_boundary() {
                return Poll::Ready(DirectionEnd::Boundary);
            }
            let is_awaited = !self.out.scanner.at_boundary();
            let read = READ_BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(&mut buffer[..]);
                ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer))?;
                let bytes = buffer.filled();
                Poll::Ready(io::Result::Ok((
                    bytes.len(),
                    self.take(bytes, until, movable.as_deref_mut()),
                )))
            });
            match ready!(read) {
                Ok((0, _)) => return Poll::Ready(DirectionEnd::Eof),
                Ok((count, Ok(()))) => self.note_sent(count, is_awaited),
                Ok((_, Err(stop))) => return Poll::Ready(DirectionEnd::Stop(stop)),
                Err(error) => return Poll::Ready(DirectionEnd::Read(error)),
            }
        }
    }
}
