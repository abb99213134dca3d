//! Relaying the frames of one live session, verbatim, until one side ends it.
//!
//! A session that is quiet holds no buffer: bytes are read into one buffer per thread and only what cannot be written at
//! once is kept. There is at most one read's worth in each direction, so a slow reader slows its writer down and nothing
//! grows.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use routing::{Decision, continuity::Why};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until, timeout},
};

use crate::{
    config::Config,
    frames::{From, Scanner, Violation, close_for_device, close_for_region, code, frame_for_region, opcode},
    kept::{Kept, Stop},
    sessions::Leave,
};

/// One read. Voice frames are a few kilobytes; larger reads would only hold more back for a slow peer.
const READ_BYTES: usize = 16 << 10;

thread_local! {
    /// Never held across an await, so one per thread is enough for any number of sessions.
    static READ_BUFFER: RefCell<Box<[u8; READ_BYTES]>> = RefCell::new(Box::new([0; READ_BYTES]));
}

/// A device's connection: plain TCP, or what pingora hands back after an HTTP request on the same connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + ?Sized> Io for T {}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The device closed it.
    DeviceClosed,
    /// The region closed it.
    RegionClosed,
    /// The device's connection broke.
    DeviceLost,
    /// The device sent nothing, not even a heartbeat.
    DeviceSilent,
    /// The device sent what is not WebSocket, or too much of it.
    DeviceViolation(Violation),
    /// The region's connection broke, or the region sent what is not WebSocket.
    RegionLost(String),
    /// The region sent nothing while the device did.
    RegionSilent,
    /// The region said that it goes away.
    RegionClosing,
    /// The plan wants the session elsewhere.
    Planned(Why),
    /// The edge stops.
    EdgeDraining,
    /// The edge has not enough memory.
    EdgeOverloaded,
}

impl End {
    /// The end's name in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::DeviceClosed => "device-closed",
            Self::RegionClosed => "region-closed",
            Self::DeviceLost => "device-lost",
            Self::DeviceSilent => "device-silent",
            Self::DeviceViolation(_) => "device-violation",
            Self::RegionLost(_) => "region-lost",
            Self::RegionSilent => "region-silent",
            Self::RegionClosing => "region-closing",
            Self::Planned(_) => "planned",
            Self::EdgeDraining => "edge-draining",
            Self::EdgeOverloaded => "edge-overloaded",
        }
    }

    /// Why the session may go on in another region, if it may.
    pub fn why_to_move(&self) -> Option<Why> {
        match self {
            Self::RegionLost(_) => Some(Why::Lost),
            Self::RegionSilent => Some(Why::Silent),
            Self::RegionClosing => Some(Why::Closing),
            Self::Planned(why) => Some(*why),
            _ => None,
        }
    }

    /// What the region did wrong, if it was the region.
    pub fn fault_of_region(&self) -> Option<&str> {
        match self {
            Self::RegionLost(why) => Some(why),
            Self::RegionSilent => Some("session silent"),
            _ => None,
        }
    }
}

/// What a session came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// The code in the first Close frame of either side.
    pub code: Option<u16>,
    /// Bytes the device sent.
    pub from_device: u64,
    /// Bytes the region sent.
    pub from_region: u64,
}

/// A live session.
pub struct Relay<'a> {
    device: &'a mut dyn Io,
    region: TcpStream,
    to_region: Way,
    to_device: Way,
    region_writable: bool,
    /// When the first Close frame passed; the other side has until `close` later.
    closing_since: Option<(Instant, End)>,
    /// What lets the session go on when its region is lost.
    kept: Option<Box<Kept>>,
    /// What the plan wants of it.
    asked: Option<Why>,
    /// What the edge wants of it, and until when it may finish its turn.
    leaves: Option<(Leave, Instant)>,
    frame_bytes_max: u64,
    idle: Duration,
    close: Duration,
    /// How long a session that shall leave may finish its turn.
    turn: Duration,
}

/// One direction.
pub struct Way {
    from: From,
    pub(crate) scanner: Scanner,
    /// Taken and not written. Of these bytes only the first `ready` may be written; the others are of a message that is not
    /// whole, whose last frame begins `frame` bytes into it.
    pub(crate) pending: BytesMut,
    pub(crate) ready: usize,
    pub(crate) frame: usize,
    /// Written, but still in a buffer of TLS or of what pingora hands back: the socket took no more.
    unflushed: bool,
    bytes: u64,
    active_at: Instant,
}

enum WayEnd {
    Eof,
    Read(io::Error),
    Write,
    Stop(Stop),
    Boundary,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    End,
    Boundary,
}

impl<'a> Relay<'a> {
    /// Both sides have agreed on the upgrade. `early_*` is what each sent behind its head.
    pub fn new(device: &'a mut dyn Io, region: TcpStream, config: &Config) -> Self {
        let frame_bytes_max = config.limits.frame_bytes_max;
        Self {
            device,
            region,
            to_region: Way::new(From::Device, frame_bytes_max),
            to_device: Way::new(From::Region, frame_bytes_max),
            region_writable: true,
            closing_since: None,
            kept: None,
            asked: None,
            leaves: None,
            frame_bytes_max,
            idle: config.timeouts.idle.0,
            close: config.timeouts.close.0,
            turn: config.drain.turn(config.timeouts.close.0),
        }
    }

    /// Relays until the end and says why it came. `early_*` is what each side sent right behind its head; `turn_to_leave`
    /// resolves when the edge wants the session gone. The device does not know yet: see [`Relay::part`].
    ///
    /// `asks_to_leave` resolves when the plan wants the session elsewhere. A session that went on in another region runs again.
    pub async fn run(
        &mut self,
        early_from_device: BytesMut,
        early_from_region: BytesMut,
        mut turn_to_leave: Pin<&mut impl Future<Output = Leave>>,
        mut asks_to_leave: Pin<&mut (dyn Future<Output = Why> + Send)>,
    ) -> End {
        let kept = self.kept.as_deref_mut();
        if let Err(stop) = self.to_device.take(&early_from_region, Until::End, kept) {
            return region_stop(stop);
        }
        let kept = self.kept.as_deref_mut();
        if let Err(stop) = self.to_region.take(&early_from_device, Until::End, kept) {
            return device_stop(stop);
        }
        drop((early_from_device, early_from_region));
        let mut timer = pin!(sleep_until(Instant::now() + self.idle));
        poll_fn(|cx| self.poll(cx, turn_to_leave.as_mut(), asks_to_leave.as_mut(), timer.as_mut())).await
    }

    /// From here on the session can go on in another region.
    pub fn keep(&mut self, kept: Kept) {
        self.kept = Some(Box::new(kept));
    }

    /// Whether the session could ever go on in another region.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// What lets the session go on, if it can.
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_deref().filter(|kept| kept.can_move())
    }

    /// Goes on with the session at another stack, which has agreed to it. `notice` is what the device is told, given
    /// whether it has to repeat what it said.
    pub fn go_on(
        &mut self,
        region: TcpStream,
        to: &Decision,
        why: Why,
        since: Instant,
        notice: impl FnOnce(bool) -> Option<BytesMut>,
    ) {
        let Some(kept) = &mut self.kept else { return };
        let Some((handover, pong)) = kept.hand_over(to, why, since, &self.to_region.scanner) else {
            return;
        };
        if why.is_optional() {
            self.tell_region(&End::Planned(why));
        }
        self.region = region;
        self.region_writable = true;
        self.closing_since = None;
        self.asked = None;
        self.to_region.pending = frame_for_region(opcode::BINARY, &handover.word);
        self.to_region.pending.extend_from_slice(&handover.replay);
        self.to_region.ready = self.to_region.pending.len();
        self.to_device.begin_anew(self.frame_bytes_max);
        self.to_device.active_at = Instant::now();
        self.to_device.say(&pong);
        if let Some(notice) = notice(handover.is_broken) {
            self.to_device.say(&notice);
        }
    }

    /// The session stays where it is, though the plan asked it to leave.
    pub fn stay(&mut self) {
        self.asked = None;
    }

    /// Tells each side that the session is over. A device that is told to reconnect may do so at once, so whatever its
    /// next session should know of this one's end must be noted before.
    pub async fn part(mut self, end: End, region_name: &str) -> Outcome {
        let code = self
            .to_region
            .scanner
            .close_code()
            .or(self.to_device.scanner.close_code());
        self.tell_region(&end);
        if self.kept.is_some() {
            // The device got whole messages only, so there is a place for a Close frame.
            self.to_device.begin_anew(self.frame_bytes_max);
        }
        match &end {
            End::RegionLost(_) | End::RegionSilent | End::RegionClosing | End::Planned(_) => {
                let reason = format!("region {region_name} lost; reconnect");
                self.close_device(code::SERVICE_RESTART, &reason, end == End::RegionSilent)
                    .await;
            }
            End::EdgeDraining => {
                self.close_device(code::SERVICE_RESTART, "edge draining; reconnect", true)
                    .await;
            }
            End::EdgeOverloaded => {
                self.close_device(code::TRY_AGAIN_LATER, "edge overloaded; reconnect", true)
                    .await;
            }
            End::DeviceViolation(violation @ Violation::TooLarge(_)) => {
                self.close_device(code::TOO_BIG, &violation.to_string(), true).await;
            }
            End::DeviceViolation(violation) => {
                self.close_device(code::PROTOCOL_ERROR, &violation.to_string(), true)
                    .await;
            }
            End::DeviceSilent => self.close_device(code::GOING_AWAY, "session idle", true).await,
            End::DeviceClosed | End::RegionClosed => goodbye(self.device, self.close).await,
            End::DeviceLost => {}
        }
        Outcome {
            end,
            code,
            from_device: self.to_region.bytes,
            from_region: self.to_device.bytes,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        turn_to_leave: Pin<&mut impl Future<Output = Leave>>,
        asks_to_leave: Pin<&mut (dyn Future<Output = Why> + Send)>,
        timer: Pin<&mut Sleep>,
    ) -> Poll<End> {
        // The region first: what it said last, a Close frame perhaps, explains why writing to it fails.
        let kept = self.kept.as_deref_mut();
        match self.to_device.poll(cx, &mut self.region, self.device, Until::End, kept) {
            Poll::Pending => {}
            Poll::Ready(WayEnd::Write) => return Poll::Ready(self.closing_or(End::DeviceLost)),
            // Its Close frame may be what stops it here: the device never gets that one.
            Poll::Ready(WayEnd::Stop(_)) if self.to_region.scanner.closed() => return Poll::Ready(End::DeviceClosed),
            Poll::Ready(WayEnd::Stop(stop)) => return Poll::Ready(region_stop(stop)),
            Poll::Ready(WayEnd::Read(error)) => {
                return Poll::Ready(self.closing_or(End::RegionLost(format!("session lost: {error}"))));
            }
            Poll::Ready(WayEnd::Eof | WayEnd::Boundary) => {
                let why = "session lost: the connection ended without a Close frame".to_owned();
                return Poll::Ready(self.closing_or(End::RegionLost(why)));
            }
        }
        if self.region_writable {
            let kept = self.kept.as_deref_mut();
            match self.to_region.poll(cx, self.device, &mut self.region, Until::End, kept) {
                Poll::Pending => {}
                Poll::Ready(WayEnd::Stop(stop)) => return Poll::Ready(device_stop(stop)),
                Poll::Ready(WayEnd::Write) if self.kept().is_some() => {
                    // What it may still have said it will have said in vain: another one says it again.
                    let why = "session lost: the region stopped reading".to_owned();
                    return Poll::Ready(self.closing_or(End::RegionLost(why)));
                }
                Poll::Ready(WayEnd::Write) => {
                    // Reading from the region says more than that writing to it failed, and at once; if it does not,
                    // the timer below ends the wait.
                    self.region_writable = false;
                    self.closing_since.get_or_insert_with(|| {
                        let why = "session lost: the region stopped reading".to_owned();
                        (Instant::now(), End::RegionLost(why))
                    });
                }
                Poll::Ready(WayEnd::Eof | WayEnd::Read(_) | WayEnd::Boundary) => {
                    return Poll::Ready(self.closing_or(End::DeviceLost));
                }
            }
        }
        self.note_closing();
        let both_closed = self.to_device.scanner.closed() && self.to_region.scanner.closed();
        if both_closed
            && self.to_device.pending.is_empty()
            && self.to_region.pending.is_empty()
            && let Some((_, end)) = self.closing_since.take()
        {
            return Poll::Ready(end);
        }
        if let Some(end) = self.poll_leaves(cx, turn_to_leave) {
            return Poll::Ready(end);
        }
        if let Some(why) = self.poll_asked(cx, asks_to_leave) {
            return Poll::Ready(End::Planned(why));
        }
        self.poll_timer(cx, timer)
    }

    /// Whether the session leaves the edge, and now: what is being said may be said to its end, within limits.
    fn poll_leaves(
        &mut self,
        cx: &mut Context<'_>,
        turn_to_leave: Pin<&mut impl Future<Output = Leave>>,
    ) -> Option<End> {
        if self.leaves.is_none()
            && let Poll::Ready(leave) = turn_to_leave.poll(cx)
        {
            self.leaves = Some((leave, Instant::now() + self.turn));
        }
        let (leave, by) = self.leaves.filter(|_| self.closing_since.is_none())?;
        let is_busy = self.kept.as_deref().is_some_and(Kept::is_busy);
        match leave {
            Leave::Draining => (!is_busy || by <= Instant::now()).then_some(End::EdgeDraining),
            Leave::Overloaded => (!is_busy).then_some(End::EdgeOverloaded),
        }
    }

    /// Whether the session leaves by plan, and now: if it can wait, it leaves between turns, and nobody notices.
    fn poll_asked(
        &mut self,
        cx: &mut Context<'_>,
        asks_to_leave: Pin<&mut (dyn Future<Output = Why> + Send)>,
    ) -> Option<Why> {
        if self.asked.is_none()
            && let Poll::Ready(why) = asks_to_leave.poll(cx)
        {
            self.asked = Some(why);
        }
        let kept = self.kept().filter(|_| self.closing_since.is_none())?;
        self.asked.filter(|why| *why == Why::Evacuated || !kept.is_busy())
    }

    /// Looks whether the region lives; whether it does.
    fn look_after_region(&mut self) -> bool {
        let Some(kept) = &mut self.kept else { return true };
        if Instant::now() < kept.look_at() {
            return true;
        }
        // While the device takes nothing, nothing is read from the region; and inside a frame nothing can be asked.
        if self.to_device.ready > 0 || !self.to_region.scanner.at_boundary() {
            kept.look_later();
            return true;
        }
        let Some(ping) = kept.look() else { return false };
        self.to_region.pending.extend_from_slice(&ping);
        self.to_region.ready = self.to_region.pending.len();
        true
    }

    /// Remembers when the first Close frame passed, and whose it was.
    fn note_closing(&mut self) {
        if self.closing_since.is_some() {
            return;
        }
        let end = if self.to_region.scanner.closed() {
            End::DeviceClosed
        } else if self.to_device.scanner.closed() {
            End::RegionClosed
        } else {
            return;
        };
        self.closing_since = Some((Instant::now(), end));
    }

    /// Ends the session when its deadline has passed. Deadlines only move later while bytes flow, so the timer is set
    /// anew when it fires and not with every byte.
    fn poll_timer(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<End> {
        loop {
            let (pings, region_lives) = match self.closing_since {
                None => (self.to_region.ready, self.look_after_region()),
                Some(_) => (self.to_region.ready, true),
            };
            if !region_lives {
                return Poll::Ready(End::RegionSilent);
            }
            if self.to_region.ready > pings {
                // The ping waits to be written.
                cx.waker().wake_by_ref();
            }
            let looks_at = self.kept.as_ref().map(|kept| kept.look_at());
            let idle_at = self.to_region.active_at.min(self.to_device.active_at) + self.idle;
            let deadline = match &self.closing_since {
                Some((since, _)) => *since + self.close,
                None => looks_at.map_or(idle_at, |looks_at| looks_at.min(idle_at)),
            };
            let leaves_by = match self.leaves {
                Some((Leave::Draining, by)) if self.closing_since.is_none() => Some(by),
                _ => None,
            };
            let deadline = leaves_by.map_or(deadline, |by| by.min(deadline));
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if let Some((_, end)) = &self.closing_since
                && deadline <= Instant::now()
            {
                return Poll::Ready(end.clone());
            }
            if self.closing_since.is_none() && idle_at <= Instant::now() {
                // When both are silent nobody is at fault: the device has nothing to say and no heartbeat.
                let device_silent = self.to_region.active_at + self.idle <= Instant::now();
                return Poll::Ready(if device_silent {
                    End::DeviceSilent
                } else {
                    End::RegionSilent
                });
            }
            if let Some(by) = leaves_by
                && by <= Instant::now()
            {
                return Poll::Ready(End::EdgeDraining);
            }
            // A deadline that has passed was the region's, which is looked after above.
            timer.as_mut().reset(deadline);
        }
    }

    /// A connection that ends after a Close frame ended well, whatever the socket says.
    fn closing_or(&mut self, otherwise: End) -> End {
        if self.to_region.scanner.closed() {
            End::DeviceClosed
        } else if self.to_device.scanner.closed() {
            End::RegionClosed
        } else {
            match self.closing_since.take() {
                Some((_, end)) => end,
                None => otherwise,
            }
        }
    }

    /// Tells the region that the session is over, if a frame fits and the socket takes it at once: the region notices the
    /// end of the connection anyway, a Close frame only spares it a log line.
    fn tell_region(&mut self, end: &End) {
        let worth_it = !matches!(end, End::RegionLost(_) | End::RegionSilent) && !self.to_region.scanner.closed();
        if worth_it && self.to_region.pending.is_empty() && self.to_region.scanner.at_boundary() {
            let _ = self.region.try_write(&close_for_region(code::GOING_AWAY));
        }
    }

    /// Tells the device why the session ends, behind the last whole frame. When the region is alive the frame that is
    /// passing is completed first; when it died in the middle of a frame there is no place where a Close frame could be
    /// read as one, and the connection just ends.
    async fn close_device(&mut self, code: u16, reason: &str, region_is_alive: bool) {
        let (patience, is_kept) = (self.close, self.kept.is_some());
        let to_device = &mut self.to_device;
        let (mut device, region) = (&mut *self.device, &mut self.region);
        let told = timeout(patience, async {
            if region_is_alive && !is_kept {
                poll_fn(|cx| to_device.poll(cx, region, &mut device, Until::Boundary, None)).await;
            } else {
                (&mut device).write_all_buf(&mut to_device.pending).await?;
            }
            if to_device.pending.is_empty() && to_device.scanner.at_boundary() && !to_device.scanner.closed() {
                device.write_all(&close_for_device(code, reason)).await?;
                device.flush().await?;
            }
            io::Result::Ok(())
        });
        match told.await {
            Ok(Ok(())) => goodbye(self.device, self.close).await,
            Ok(Err(error)) => tracing::debug!(%error, "the device left before it was told why"),
            Err(_) => tracing::debug!("the device did not take in why its session ends"),
        }
    }
}

impl Way {
    fn new(from: From, frame_bytes_max: u64) -> Self {
        Self {
            from,
            scanner: Scanner::new(from, frame_bytes_max),
            pending: BytesMut::new(),
            ready: 0,
            frame: 0,
            // The answer to the upgrade may still be on its way.
            unflushed: true,
            bytes: 0,
            active_at: Instant::now(),
        }
    }

    fn take(&mut self, bytes: &[u8], until: Until, kept: Option<&mut Kept>) -> Result<(), Stop> {
        self.bytes += bytes.len() as u64;
        let taken = match (kept, self.from) {
            (Some(kept), From::Region) => return kept.take_from_region(bytes, self),
            (Some(kept), From::Device) => kept.take_from_device(bytes, &mut self.scanner, &mut self.pending),
            (None, _) => {
                let pushed = self.scanner.push(bytes, &mut self.pending, until == Until::Boundary);
                pushed.map_err(Stop::Violation)
            }
        };
        self.ready = self.pending.len();
        taken
    }

    /// Moves bytes until one socket is not ready, or this direction ends.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        until: Until,
        mut kept: Option<&mut Kept>,
    ) -> Poll<WayEnd>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        loop {
            while self.ready > 0 {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[..self.ready])) {
                    Ok(0) => return Poll::Ready(WayEnd::Write),
                    Ok(written) => {
                        self.pending.advance(written);
                        self.ready -= written;
                    }
                    Err(_) => return Poll::Ready(WayEnd::Write),
                }
                if kept.is_none() {
                    self.active_at = Instant::now();
                }
                if self.ready == 0 {
                    if self.pending.is_empty() {
                        // Gives the memory back: a session is silent most of the time.
                        self.pending = BytesMut::new();
                    }
                    self.unflushed = true;
                }
            }
            // Plain TCP has nothing to flush. What does not leave now holds back what would follow it.
            if self.unflushed {
                match ready!(Pin::new(&mut *to).poll_flush(cx)) {
                    Ok(()) => self.unflushed = false,
                    Err(_) => return Poll::Ready(WayEnd::Write),
                }
            }
            if until == Until::Boundary && self.scanner.at_boundary() {
                return Poll::Ready(WayEnd::Boundary);
            }
            let read = READ_BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(&mut buffer[..]);
                ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer))?;
                let bytes = buffer.filled();
                Poll::Ready(io::Result::Ok((
                    bytes.len(),
                    self.take(bytes, until, kept.as_deref_mut()),
                )))
            });
            match ready!(read) {
                Ok((0, _)) => return Poll::Ready(WayEnd::Eof),
                Ok((_, Ok(()))) => self.active_at = Instant::now(),
                Ok((_, Err(stop))) => return Poll::Ready(WayEnd::Stop(stop)),
                Err(error) => return Poll::Ready(WayEnd::Read(error)),
            }
        }
    }
}

fn region_stop(stop: Stop) -> End {
    match stop {
        Stop::Violation(violation) => End::RegionLost(format!("session broken: {violation}")),
        Stop::Confused(why) => End::RegionLost(format!("session broken: {why}")),
        Stop::Closing => End::RegionClosing,
    }
}

fn device_stop(stop: Stop) -> End {
    match stop {
        Stop::Violation(violation) => End::DeviceViolation(violation),
        // Only regions say words.
        other @ (Stop::Confused(_) | Stop::Closing) => region_stop(other),
    }
}

/// Ends a connection so that what was written last arrives: closing a socket with unread bytes makes the kernel send a
/// reset, which may overtake them. So the peer is told that nothing more comes, and its last words are read and dropped.
pub async fn goodbye(io: &mut dyn Io, patience: Duration) {
    /// More than this is not last words.
    const LAST_WORDS_BYTES_MAX: u64 = 1 << 20;
    let drained = timeout(patience, async {
        io.shutdown().await?;
        let mut rest = io.take(LAST_WORDS_BYTES_MAX);
        // On the heap while it lasts: it would be a part of every session that may end one day.
        let mut sink = vec![0; 1024];
        while rest.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    });
    // The peer may be gone already, or not care; either way it is over.
    let _ = drained.await;
}
