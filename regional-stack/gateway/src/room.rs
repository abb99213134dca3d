//! Room for long WebSocket messages, which all sessions of a stack share, and the time that a message may take to arrive.
//!
//! The protocol layer shows a message only when it is whole, so this module counts bytes where they leave the socket: the bytes since
//! the last whole message are the most that the unfinished one can hold. A session that finds no room reads no more of it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use identity::Link;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
};

/// The unit of the room: a second of audio. A message up to this size takes no room.
pub(crate) const UNIT_BYTES: usize = 64 << 10;

/// Room for so many bytes.
pub(crate) fn of_bytes(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(bytes / UNIT_BYTES))
}

/// The room that one message takes, until it is dropped.
pub(crate) type Share = OwnedSemaphorePermit;

/// The bytes of one socket since the last whole message.
#[derive(Debug)]
pub(crate) struct Meter {
    room: Arc<Semaphore>,
    coming: Mutex<Coming>,
    refused: AtomicBool,
    told: Notify,
}

#[derive(Debug, Default)]
struct Coming {
    /// HTTP has bounds of its own.
    is_session: bool,
    bytes: usize,
    /// The arrival of the first and of the last of these bytes.
    time: Option<(Instant, Instant)>,
    share: Option<Share>,
}

impl Coming {
    fn set(&mut self, bytes: usize) {
        self.bytes = bytes;
        if bytes == 0 {
            self.time = None;
        }
    }
}

impl Meter {
    pub(crate) fn new(room: Arc<Semaphore>) -> Self {
        Self {
            room,
            coming: Mutex::default(),
            refused: AtomicBool::new(false),
            told: Notify::new(),
        }
    }

    /// Begins to count: a session has the socket from here on.
    pub(crate) fn begin(&self) {
        self.lock().is_session = true;
    }

    /// Ends the count of a message that is whole, and returns the room that it takes.
    pub(crate) fn take_share(&self) -> Option<Share> {
        let mut coming = self.lock();
        coming.set(0);
        coming.share.take()
    }

    /// Takes bytes out of the count that were no part of a message.
    pub(crate) fn forget(&self, bytes: usize) {
        let mut coming = self.lock();
        let rest = coming.bytes.saturating_sub(bytes);
        coming.set(rest);
    }

    /// Whether an unfinished message takes too long: longer than `limit`, and a second more for each [`UNIT_BYTES`] that came. A message
    /// at the speed of speech has all its time, and a message of a few bytes now and then has not. The beginning of a message that came
    /// in one piece with the end of another counts from its next byte on.
    pub(crate) fn is_overdue(&self, now: Instant, limit: Duration) -> bool {
        let coming = self.lock();
        let earned = Duration::from_secs((coming.bytes / UNIT_BYTES) as u64);
        let taken = coming.time.map(|(first, _)| now.saturating_duration_since(first));
        taken.is_some_and(|taken| taken > limit + earned)
    }

    /// The arrival of the last bytes of an unfinished message: a client that sends one has no other way to show that it lives.
    pub(crate) fn last_came(&self) -> Option<Instant> {
        self.lock().time.map(|(_, last)| last)
    }

    /// Waits until a message finds no room. Safe to drop and call again.
    pub(crate) async fn refused(&self) {
        while !self.is_refused() {
            self.told.notified().await;
        }
    }

    fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Counts bytes, and returns whether there is room for them.
    fn count(&self, bytes: usize, now: Instant) -> bool {
        let mut coming = self.lock();
        if !coming.is_session || bytes == 0 {
            return true;
        }
        coming.bytes = coming.bytes.saturating_add(bytes);
        coming.time = Some((coming.time.map_or(now, |(first, _)| first), now));
        let needs = coming.bytes.saturating_sub(UNIT_BYTES).div_ceil(UNIT_BYTES);
        let has = coming.share.as_ref().map_or(0, Share::num_permits);
        if needs <= has {
            return true;
        }
        let more = u32::try_from(needs - has).unwrap_or(u32::MAX);
        match (Arc::clone(&self.room).try_acquire_many_owned(more), &mut coming.share) {
            (Ok(more), Some(share)) => share.merge(more),
            (Ok(more), share) => *share = Some(more),
            (Err(_), _) => {
                self.refused.store(true, Ordering::Relaxed);
                self.told.notify_one();
                return false;
            }
        }
        true
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Coming> {
        self.coming.lock()
    }
}

/// A socket whose bytes are counted. Without room it drops the bytes that come: a socket closed on unread data would be reset, and the
/// client would not get the reason.
pub(crate) struct Metered {
    pub(crate) socket: Link,
    pub(crate) meter: Arc<Meter>,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.meter.is_refused() {
            let before = into.filled().len();
            ready!(Pin::new(&mut this.socket).poll_read(context, into))?;
            if this.meter.count(into.filled().len() - before, Instant::now()) {
                return Poll::Ready(Ok(()));
            }
            into.set_filled(before);
        }
        loop {
            let mut unread = [0; 4096];
            let mut unread = ReadBuf::new(&mut unread);
            ready!(Pin::new(&mut this.socket).poll_read(context, &mut unread))?;
            if unread.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn sessions_share_room_and_what_is_done_with_gives_it_back() {
        let (room, now) = (of_bytes(4 * UNIT_BYTES), Instant::now());
        let [one, two] = [(); 2].map(|()| Meter::new(Arc::clone(&room)));
        assert!(one.count(100 * UNIT_BYTES, now), "no session yet");
        one.begin();
        two.begin();
        assert!(one.count(UNIT_BYTES, now) && two.count(UNIT_BYTES, now));
        assert_eq!(room.available_permits(), 4, "that much is free");
        assert!(one.count(3 * UNIT_BYTES, now));
        assert_eq!(room.available_permits(), 1);
        let share = one.take_share();
        assert!(two.count(1, now) && !two.count(UNIT_BYTES, now) && two.is_refused());
        drop(share);
        assert_eq!(room.available_permits(), 3);
        // Pings between two messages are no message.
        for _ in 0..1_000 {
            assert!(one.count(131, now));
            one.forget(131);
        }
        assert_eq!(room.available_permits(), 3);
    }

    #[test]
    fn a_message_has_its_time_and_more_for_what_came_of_it() {
        let meter = Meter::new(of_bytes(1_000 * UNIT_BYTES));
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        // HTTP has its own deadline for bytes before the session.
        assert!(meter.count(1, at(0)));
        assert!(!meter.is_overdue(at(1_000), LIMIT));
        meter.begin();

        // A byte now and then does not extend the deadline.
        for seconds in (100..=160).step_by(20) {
            assert!(meter.count(1, at(seconds)));
            assert!(!meter.is_overdue(at(seconds), LIMIT), "{seconds}");
        }
        assert!(meter.is_overdue(at(161), LIMIT));
        assert_eq!(meter.last_came(), Some(at(160)));
        // The end of the message ends it, and silence between messages is no unfinished message.
        meter.take_share();
        assert!(!meter.is_overdue(at(10_000), LIMIT));
        assert_eq!(meter.last_came(), None);

        // At the speed of speech, for five minutes.
        for seconds in 0..300 {
            assert!(meter.count(UNIT_BYTES, at(20_000 + seconds)));
            assert!(!meter.is_overdue(at(20_000 + seconds), LIMIT), "{seconds}");
        }
        assert!(!meter.is_overdue(at(20_360), LIMIT));
        assert!(meter.is_overdue(at(20_361), LIMIT));
        meter.take_share();

        // A control frame between messages begins no message, and one within a message does not end it.
        for seconds in 0..100 {
            assert!(meter.count(6, at(30_000 + seconds)));
            meter.forget(6);
        }
        assert!(!meter.is_overdue(at(40_000), LIMIT));
        assert!(meter.count(100, at(40_000)) && meter.count(6, at(40_050)));
        meter.forget(6);
        assert!(meter.is_overdue(at(40_061), LIMIT));
    }
}
