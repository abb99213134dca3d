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
    fault::{Cause, Device, Event, Facts},
    frames::{
        From, Scanner, Violation, close_for_device, close_for_region, code, echo_for_device, frame_for_region, opcode,
    },
    kept::{Kept, Stop},
    sessions::Leave,
};

/// Longest after a device was blocked that the end of its region may still come of that: a stack gives up a session that takes
/// nothing after some ten seconds, and its Close frame may not get through.
const BLOCKED_LATELY: Duration = Duration::from_secs(15);
/// Shorter pauses of a device are those of any burst.
const BLOCKED_MIN: Duration = Duration::from_secs(1);
/// What is looked through for a Close frame of a region whose device takes nothing: more does not fit into a socket's buffer.
const LAST_WORDS_BYTES_MAX: usize = 16 << 20;

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
    /// The device takes nothing of what waits for it.
    DeviceSlow,
    /// The device sent what is not WebSocket, or too much of it.
    DeviceViolation(Violation),
    /// The region's connection broke, or the region sent what is not WebSocket.
    RegionLost(Lost),
    /// The region neither reads nor says anything, though it should.
    RegionSilent,
    /// The region said that it goes away.
    RegionClosing,
    /// The region does not go on with a session of another.
    RegionDeclined(String),
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
            Self::DeviceSlow => "device-slow",
            Self::DeviceViolation(_) => "device-violation",
            Self::RegionLost(_) => "region-lost",
            Self::RegionSilent => "region-silent",
            Self::RegionClosing => "region-closing",
            Self::RegionDeclined(_) => "region-declined",
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
            Self::RegionDeclined(_) => Some(Why::Declined),
            Self::Planned(why) => Some(*why),
            _ => None,
        }
    }

    /// What went wrong at the region, if something did: whose fault it is depends on the device too, see [`Relay::facts`].
    pub fn failure(&self) -> Option<(Event, &str)> {
        match self {
            Self::RegionLost(lost) => Some((lost.event, &lost.why)),
            Self::RegionSilent => Some((Event::TimedOut, "session silent")),
            Self::RegionDeclined(why) => Some((Event::Closed(code::CANNOT_RESUME), why)),
            _ => None,
        }
    }
}

/// How a region lost a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// What it did.
    pub event: Event,
    /// The same for people.
    pub why: String,
}

impl Lost {
    fn io(error: &io::Error) -> End {
        let (event, why) = (Event::Io(Cause::of(error)), format!("session lost: {error}"));
        End::RegionLost(Self { event, why })
    }

    fn ended() -> End {
        let why = "session lost: the connection ended without a Close frame".to_owned();
        let event = Event::Ended;
        End::RegionLost(Self { event, why })
    }

    fn broken(what: impl std::fmt::Display) -> End {
        let (event, why) = (Event::Nonsense, format!("session broken: {what}"));
        End::RegionLost(Self { event, why })
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
    /// The region is lost, and only its Close frame is looked for: nothing else is read or passed on any more.
    reads_last_words: bool,
    /// What was looked through for it.
    passed_over: usize,
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
    /// How long a device may take nothing.
    send: Duration,
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
    /// When something was read last, or could be read again.
    active_at: Instant,
    /// Since when the reader has taken nothing of what waits for it. Meanwhile nothing is read from the writer, so whatever the
    /// writer says or does not say counts for nothing.
    blocked_since: Option<Instant>,
    /// When the reader last took something after it had taken nothing for long.
    freed_at: Option<Instant>,
}

enum WayEnd {
    Eof,
    Read(io::Error),
    Write(io::Error),
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
            reads_last_words: false,
            passed_over: 0,
            closing_since: None,
            kept: None,
            asked: None,
            leaves: None,
            frame_bytes_max,
            idle: config.timeouts.idle.0,
            send: config.timeouts.send.0,
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

    /// The facts of an [`End::failure`]. `is_late`: whether this edge was too late itself to be a witness.
    pub fn facts(&self, event: Event, is_late: bool) -> Facts {
        let was_blocked = |freed_at: Instant| freed_at.elapsed() < BLOCKED_LATELY;
        let is_blocked = self.to_device.is_blocked() || self.to_device.freed_at.is_some_and(was_blocked);
        let device = if is_blocked { Device::Blocked } else { Device::Reads };
        Facts {
            event,
            device,
            edge_is_late: is_late,
        }
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
        self.reads_last_words = false;
        self.passed_over = 0;
        self.closing_since = None;
        self.asked = None;
        self.to_region.pending = frame_for_region(opcode::BINARY, &handover.word);
        self.to_region.pending.extend_from_slice(&handover.replay);
        self.to_region.ready = self.to_region.pending.len();
        self.to_region.blocked_since = None;
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
            End::RegionLost(_) | End::RegionSilent | End::RegionClosing | End::RegionDeclined(_) | End::Planned(_) => {
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
            End::DeviceSlow => {
                self.close_device(code::POLICY, "you take nothing of what is sent; read faster", true)
                    .await;
            }
            End::DeviceClosed => self.answer_close().await,
            End::RegionClosed => goodbye(self.device, self.close).await,
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
        let heard = if self.reads_last_words {
            Poll::Pending
        } else {
            self.to_device.poll(cx, &mut self.region, self.device, Until::End, kept)
        };
        match heard {
            Poll::Pending => {}
            Poll::Ready(WayEnd::Write(_)) => return Poll::Ready(self.closing_or(End::DeviceLost)),
            Poll::Ready(WayEnd::Stop(stop)) => return Poll::Ready(region_stop(stop)),
            Poll::Ready(WayEnd::Read(error)) => return Poll::Ready(self.closing_or(Lost::io(&error))),
            Poll::Ready(WayEnd::Eof | WayEnd::Boundary) => return Poll::Ready(self.closing_or(Lost::ended())),
        }
        if self.region_writable {
            let kept = self.kept.as_deref_mut();
            match self.to_region.poll(cx, self.device, &mut self.region, Until::End, kept) {
                Poll::Pending => {}
                Poll::Ready(WayEnd::Stop(stop)) => return Poll::Ready(device_stop(stop)),
                Poll::Ready(WayEnd::Write(error)) => {
                    // What the region said last, a Close frame perhaps, says more than that writing to it failed, and is
                    // read next. If it says nothing, the timer below ends the wait.
                    self.region_writable = false;
                    self.closing_since
                        .get_or_insert_with(|| (Instant::now(), Lost::io(&error)));
                    // The read above may not have seen it yet.
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(WayEnd::Eof | WayEnd::Read(_) | WayEnd::Boundary) => {
                    return Poll::Ready(self.closing_or(End::DeviceLost));
                }
            }
        }
        let is_cut_off = !self.region_writable
            && self.kept().is_some()
            && self.to_device.is_blocked()
            && !self.to_device.scanner.closed();
        if (is_cut_off || self.reads_last_words)
            && let Poll::Ready(end) = self.poll_last_words(cx)
        {
            return Poll::Ready(end);
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

    /// The region is gone and the device takes nothing: why it went is in the socket, behind what the device has yet to take.
    /// What is passed over on the way there is not lost: another region says again what the device did not get.
    ///
    /// Once begun it is the only reader: the scanner is ahead of what waits for the device, so anything read in the ordinary way
    /// after it would be taken for the rest of another frame.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.reads_last_words = true;
        let scanner = &mut self.to_device.scanner;
        let region = &mut self.region;
        let passed_over = &mut self.passed_over;
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
                *passed_over += buffer.filled().len();
                if let Err(violation) = scanner.push(buffer.filled(), &mut sink, false) {
                    return Poll::Ready(Err(Lost::broken(violation)));
                }
                if scanner.closed() {
                    return Poll::Ready(Ok(scanner.close_code()));
                }
                if *passed_over > LAST_WORDS_BYTES_MAX {
                    return Poll::Ready(Err(Lost::ended()));
                }
            }
        });
        Poll::Ready(match ready!(said_last) {
            Ok(Some(code::GOING_AWAY | code::SERVICE_RESTART)) => End::RegionClosing,
            // It gave the device up, as this edge is about to.
            Ok(Some(code::POLICY)) => End::DeviceSlow,
            Ok(code) => {
                let why = format!("session closed with code {code:?} while the device took nothing");
                let event = Event::Closed(code.unwrap_or(code::NO_STATUS));
                End::RegionLost(Lost { event, why })
            }
            Err(end) => end,
        })
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
        // While the device takes nothing, nothing is read from the region.
        if self.to_device.is_blocked() {
            kept.look_later();
            return true;
        }
        // A region that does not read what it was sent is asked by that, and inside a frame nothing else can be asked.
        let has_unread = self.to_region.is_blocked();
        if !has_unread && !self.to_region.scanner.at_boundary() {
            kept.look_later();
            return true;
        }
        let Some(ping) = kept.look() else { return false };
        if !has_unread {
            self.to_region.pending.extend_from_slice(&ping);
            self.to_region.ready = self.to_region.pending.len();
        }
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
            // Each of them ends the session; the first does.
            let silences = [
                self.to_region.silent_at(self.idle),
                self.to_device.silent_at(self.idle),
                self.to_device.blocked_until(self.send),
                self.to_region.blocked_until(self.idle),
            ];
            let silent_at = silences.into_iter().flatten().min();
            // A region that closes in order has done its part; what it said last waits for the device like anything else.
            let waits_for_device = self.to_device.scanner.closed() && !self.to_region.scanner.closed();
            let taken_by = self.to_device.blocked_until(self.send).filter(|_| waits_for_device);
            let deadline = match &self.closing_since {
                Some((since, _)) => taken_by.unwrap_or(*since + self.close),
                None => [looks_at, silent_at]
                    .into_iter()
                    .flatten()
                    .min()
                    .unwrap_or_else(|| Instant::now() + self.idle),
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
                let end = if taken_by.is_some() {
                    End::DeviceSlow
                } else {
                    end.clone()
                };
                if end.failure().is_some()
                    && self.to_device.is_blocked()
                    && let Poll::Ready(said) = self.poll_last_words(cx)
                {
                    return Poll::Ready(said);
                }
                return Poll::Ready(end);
            }
            if self.closing_since.is_none() && silent_at.is_some_and(|at| at <= Instant::now()) {
                // When both are silent nobody is at fault: the device has nothing to say and no heartbeat.
                let now = Instant::now();
                let is_over = silences.map(|at| at.is_some_and(|at| at <= now));
                return Poll::Ready(match is_over {
                    [true, ..] => End::DeviceSilent,
                    [_, _, true, _] => End::DeviceSlow,
                    _ => End::RegionSilent,
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

    /// A device that said Close gets one back (RFC 6455 §5.5.1), also when its region said none: without it client libraries
    /// report an abnormal end, and some connect again.
    async fn answer_close(&mut self) {
        if self.to_device.scanner.closed() {
            return goodbye(self.device, self.close).await;
        }
        let echo = echo_for_device(self.to_region.scanner.close_code());
        self.say_last(&echo, false).await;
    }

    /// Tells the region that the session is over, if a frame fits and the socket takes it at once: the region notices the
    /// end of the connection anyway, a Close frame only spares it a log line.
    fn tell_region(&mut self, end: &End) {
        let is_gone = matches!(end, End::RegionLost(_) | End::RegionSilent | End::RegionDeclined(_));
        let worth_it = !is_gone && !self.to_region.scanner.closed();
        if worth_it && self.to_region.pending.is_empty() && self.to_region.scanner.at_boundary() {
            let _ = self.region.try_write(&close_for_region(code::GOING_AWAY));
        }
    }

    /// Tells the device why the session ends, behind the last whole frame. When the region is alive the frame that is
    /// passing is completed first; when it died in the middle of a frame there is no place where a Close frame could be
    /// read as one, and the connection just ends.
    async fn close_device(&mut self, code: u16, reason: &str, region_is_alive: bool) {
        self.say_last(&close_for_device(code, reason), region_is_alive).await;
    }

    async fn say_last(&mut self, close: &[u8], region_is_alive: bool) {
        let (patience, is_kept) = (self.close, self.kept.is_some());
        // What waits for the device may end in the middle of a frame of which the rest was passed over.
        let has_place = is_kept || !self.reads_last_words;
        let to_device = &mut self.to_device;
        let (mut device, region) = (&mut *self.device, &mut self.region);
        let told = timeout(patience, async {
            if region_is_alive && !is_kept && has_place {
                poll_fn(|cx| to_device.poll(cx, region, &mut device, Until::Boundary, None)).await;
            } else {
                (&mut device).write_all_buf(&mut to_device.pending).await?;
            }
            if has_place
                && to_device.pending.is_empty()
                && to_device.scanner.at_boundary()
                && !to_device.scanner.closed()
            {
                device.write_all(close).await?;
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
            blocked_since: None,
            freed_at: None,
        }
    }

    /// Whether something waits that the reader does not take.
    fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// The reader takes nothing at the moment.
    fn note_blocked(&mut self) {
        self.blocked_since.get_or_insert_with(Instant::now);
    }

    /// The reader took something.
    fn note_taken(&mut self) {
        if let Some(since) = self.blocked_since.take() {
            self.active_at = Instant::now();
            if self.active_at.duration_since(since) >= BLOCKED_MIN {
                self.freed_at = Some(self.active_at);
            }
        }
    }

    /// When the writer has said nothing for too long; it has not while it was not heard.
    fn silent_at(&self, idle: Duration) -> Option<Instant> {
        let is_heard = self.blocked_since.is_none();
        is_heard.then(|| self.active_at + idle)
    }

    /// When the reader has taken nothing for too long.
    fn blocked_until(&self, patience: Duration) -> Option<Instant> {
        self.blocked_since.map(|since| since + patience)
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
                match Pin::new(&mut *to).poll_write(cx, &self.pending[..self.ready]) {
                    Poll::Pending => {
                        self.note_blocked();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(0)) => return Poll::Ready(WayEnd::Write(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => {
                        self.pending.advance(written);
                        self.ready -= written;
                        self.note_taken();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(WayEnd::Write(error)),
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
                match Pin::new(&mut *to).poll_flush(cx) {
                    Poll::Pending => {
                        self.note_blocked();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => {
                        self.unflushed = false;
                        self.note_taken();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(WayEnd::Write(error)),
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
        Stop::Violation(violation) => Lost::broken(violation),
        Stop::Confused(why) => Lost::broken(why),
        Stop::Closing => End::RegionClosing,
        Stop::Declined(why) => End::RegionDeclined(why),
    }
}

fn device_stop(stop: Stop) -> End {
    match stop {
        Stop::Violation(violation) => End::DeviceViolation(violation),
        // Only regions say words.
        other @ (Stop::Confused(_) | Stop::Closing | Stop::Declined(_)) => region_stop(other),
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
