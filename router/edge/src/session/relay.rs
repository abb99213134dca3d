//! Relaying the frames of one live session, verbatim, until one side ends it.
//!
//! A quiet session holds no buffer: the edge reads into one buffer per thread, and keeps only the bytes that it cannot write at
//! once. That is at most one read in each direction, so a slow reader slows its writer down and no memory grows.
//!
//! One file, although it is long: one poll decides every way in which a session ends, by one order of precedence over timers,
//! buffers and the last bytes of both sides.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use auth::TenantUsage;
use bytes::BytesMut;
use futures_util::Stream;
use identity::Link;
use routing::{Decision, continuity::LeaveReason};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};

use crate::{
    config::Config,
    device::{Io, goodbye},
    fault::{Device, Event, Facts},
    request_id::RequestId,
    session::continuity::MovableState,
    session::direction::{Direction, DirectionEnd, Until},
    session::end::{End, Lost, Outcome, device_stop, region_stop},
    session::frames::{Sender, close_for_device, close_for_region, echo_for_device, frame_for_region},
    session::last_words::LastWords,
    session::registry::Leave,
};

/// For this long after a device was blocked, the end of its region may be a consequence: a stack gives up a session that takes
/// nothing after some ten seconds, and its Close frame may not get through.
const BLOCKED_LATELY: Duration = Duration::from_secs(15);
pub struct Relay<'a> {
    device: &'a mut dyn Io,
    region: Link,
    to_region: Direction,
    to_device: Direction,
    region_writable: bool,
    /// The region is lost. The edge reads from it only to find its Close frame, and passes no byte on.
    last_words: Option<LastWords>,
    /// The time of the first Close frame; the other side has `close` from then on.
    closing_since: Option<(Instant, End)>,
    /// The state that lets the session move when its region is lost.
    movable: Option<Box<MovableState>>,
    /// The plan's request to leave.
    asked: Option<LeaveReason>,
    /// The edge's request to leave, and the time until which the session may finish its turn.
    leaves: Option<(Leave, Instant)>,
    /// The counts of the device's tenant, and the bytes that were counted there.
    meter: Option<Box<(Arc<TenantUsage>, u64)>>,
    frame_bytes_max: u64,
    idle: Duration,
    close: Duration,
    /// Time for a session that must leave to finish its turn.
    turn: Duration,
}

impl<'a> Relay<'a> {
    /// A relay after both sides agreed on the upgrade.
    pub fn new(device: &'a mut dyn Io, region: Link, config: &Config) -> Self {
        let frame_bytes_max = config.limits.frame_bytes_max;
        let (of_region, of_device) = (config.pace_within(config.timeouts.idle.0), config.pace());
        Self {
            device,
            region,
            to_region: Direction::new(Sender::Device, frame_bytes_max, (of_region, of_device)),
            to_device: Direction::new(Sender::Region, frame_bytes_max, (of_device, of_region)),
            region_writable: true,
            last_words: None,
            closing_since: None,
            movable: None,
            asked: None,
            leaves: None,
            meter: None,
            frame_bytes_max,
            idle: config.timeouts.idle.0,
            close: config.timeouts.close.0,
            turn: config.drain.turn(config.timeouts.close.0),
        }
    }

    /// Counts the bytes of the device for its tenant.
    pub fn count_for(&mut self, tenant: Arc<TenantUsage>) {
        self.meter = Some(Box::new((tenant, 0)));
    }

    /// Counts new bytes for the tenant. Returns whether the tenant's devices used their bytes of the day.
    fn count_and_check_quota(&mut self) -> bool {
        let Some(meter) = &mut self.meter else { return false };
        let (tenant, counted) = &mut **meter;
        let now = daemon::clock::now();
        let new = self.to_region.bytes - *counted;
        if new > 0 {
            tenant.sent(new, now);
            *counted = self.to_region.bytes;
        }
        tenant.has_bytes(now).is_err()
    }

    /// Takes the bytes that each side sent behind its head. Call it before [`Relay::run`].
    pub fn take_early(&mut self, from_device: &[u8], from_region: &[u8]) -> Result<(), End> {
        let movable = self.movable.as_deref_mut();
        let taken = self.to_device.take(from_region, Until::End, movable);
        taken.map_err(region_stop)?;
        let movable = self.movable.as_deref_mut();
        let taken = self.to_region.take(from_device, Until::End, movable);
        taken.map_err(device_stop)
    }

    /// Relays until the session ends or leaves its stack, and returns the reason. The device does not know it yet: see
    /// [`Relay::part`]. A session that goes on at another stack runs again.
    ///
    /// `orders_to_leave` has an order when the edge wants the session gone, `asks_to_leave` resolves when the plan wants it elsewhere.
    pub async fn run(
        &mut self,
        mut orders_to_leave: Pin<&mut impl Stream<Item = Leave>>,
        mut asks_to_leave: Pin<&mut (dyn Future<Output = LeaveReason> + Send)>,
    ) -> End {
        let mut timer = pin!(sleep_until(Instant::now() + self.idle));
        poll_fn(|cx| self.poll(cx, orders_to_leave.as_mut(), asks_to_leave.as_mut(), timer.as_mut())).await
    }

    /// Keeps the state by which the session can go on in another region.
    pub fn keep(&mut self, movable: MovableState) {
        self.movable = Some(Box::new(movable));
    }

    /// Whether the session keeps the state by which it could go on in another region.
    pub fn keeps_state(&self) -> bool {
        self.movable.is_some()
    }

    /// The state that lets the session move, if it can.
    pub fn movable(&self) -> Option<&MovableState> {
        self.movable.as_deref().filter(|movable| movable.can_move())
    }

    /// The facts of an [`End::failure`]. `is_late` tells whether this edge was late itself, so that its deadlines prove nothing.
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

    /// Goes on with the session at another stack that accepted it. `notice` makes the message for the device, given whether the user
    /// has to repeat the last words.
    pub fn go_on(
        &mut self,
        region: Link,
        to: &Decision,
        why: LeaveReason,
        since: Instant,
        notice: impl FnOnce(bool) -> Option<BytesMut>,
    ) {
        let Some(movable) = &mut self.movable else { return };
        let Some((handover, pong)) = movable.hand_over(to, why, since, &self.to_region.out.scanner) else {
            return;
        };
        // The old stack must forget the session, because its memory is out of date from now on. A frozen stack reads this when it runs
        // again.
        if why.is_optional() || why == LeaveReason::Silent {
            self.close_region(wire::MOVED.into());
        }
        self.region = region;
        self.region_writable = true;
        self.last_words = None;
        self.closing_since = None;
        self.asked = None;
        self.to_region.out.pending = frame_for_region(OpCode::Data(Data::Binary), &handover.message);
        self.to_region.out.pending.extend_from_slice(&handover.replay);
        self.to_region.out.ready = self.to_region.out.pending.len();
        self.to_region.blocked_since = None;
        self.to_region.pace.forget();
        self.to_device.out.begin_anew(self.frame_bytes_max);
        self.to_device.active_at = Instant::now();
        self.restart_paces();
        self.to_device.out.say(&pong);
        if let Some(notice) = notice(handover.is_broken) {
            self.to_device.out.say(&notice);
        }
    }

    /// Goes on with the session at its stack, although the plan asked it to leave.
    pub fn stay(&mut self) {
        self.asked = None;
        self.to_region.blocked_since = self.to_region.blocked_since.map(|_| Instant::now());
        self.restart_paces();
    }

    /// Restarts both paces of the device. During the search for another region, which takes seconds, the edge read nothing from the
    /// device and wrote nothing to it.
    fn restart_paces(&mut self) {
        let now = Instant::now();
        self.to_region.active_at = now;
        self.to_region.frame_pace.forget();
        self.to_device.blocked_since = self.to_device.blocked_since.map(|_| now);
        self.to_device.pace.forget();
    }

    /// Tells both sides that the session is over. A device that the edge tells to reconnect may do so at once, so the caller first
    /// records everything that the next session needs of this one.
    pub async fn part(mut self, end: End, region_name: &str, id: &RequestId) -> Outcome {
        let code = self
            .to_region
            .out
            .scanner
            .close_code()
            .or(self.to_device.out.scanner.close_code());
        self.tell_region(&end);
        if self.movable.is_some() {
            // The device got whole messages only, so a Close frame can follow.
            self.to_device.out.begin_anew(self.frame_bytes_max);
        }
        let region_is_alive = !matches!(
            end,
            End::RegionLost(_) | End::RegionClosing | End::RegionDeclined(_) | End::Planned(_)
        );
        match &end {
            End::DeviceClosed => self.answer_close(id).await,
            End::RegionClosed => goodbye(self.device, self.close).await,
            _ => {
                if let Some((code, reason)) = end.close_reason(region_name) {
                    let close = close_for_device(code, &reason);
                    self.say_last(&close, region_is_alive, id).await;
                }
            }
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
        orders_to_leave: Pin<&mut impl Stream<Item = Leave>>,
        asks_to_leave: Pin<&mut (dyn Future<Output = LeaveReason> + Send)>,
        timer: Pin<&mut Sleep>,
    ) -> Poll<End> {
        // The region first: its last bytes, perhaps a Close frame, explain why writing to it fails.
        let movable = self.movable.as_deref_mut();
        let heard = if self.last_words.is_some() {
            Poll::Pending
        } else {
            self.to_device
                .poll(cx, &mut self.region, self.device, Until::End, movable)
        };
        match heard {
            Poll::Pending => {}
            Poll::Ready(DirectionEnd::Write(_)) => return Poll::Ready(self.closing_or(End::DeviceLost)),
            Poll::Ready(DirectionEnd::Stop(stop)) => return Poll::Ready(region_stop(stop)),
            Poll::Ready(DirectionEnd::Read(error)) => return Poll::Ready(self.closing_or(Lost::io(&error))),
            Poll::Ready(DirectionEnd::Eof | DirectionEnd::Boundary) => {
                return Poll::Ready(self.closing_or(Lost::ended()));
            }
        }
        if self.region_writable {
            let movable = self.movable.as_deref_mut();
            match self
                .to_region
                .poll(cx, self.device, &mut self.region, Until::End, movable)
            {
                Poll::Pending => {}
                Poll::Ready(DirectionEnd::Stop(stop)) => return Poll::Ready(device_stop(stop)),
                Poll::Ready(DirectionEnd::Write(error)) => {
                    // The last bytes of the region, perhaps a Close frame, explain more than the failed write, so the edge reads them
                    // next. If the region sends nothing, the timer below ends the wait.
                    self.region_writable = false;
                    self.closing_since
                        .get_or_insert_with(|| (Instant::now(), Lost::io(&error)));
                    // The read above may not have seen it yet.
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(DirectionEnd::Eof | DirectionEnd::Read(_) | DirectionEnd::Boundary) => {
                    return Poll::Ready(self.closing_or(End::DeviceLost));
                }
            }
        }
        let is_cut_off = !self.region_writable
            && self.movable().is_some()
            && self.to_device.is_blocked()
            && !self.to_device.out.scanner.closed();
        if (is_cut_off || self.last_words.is_some())
            && let Poll::Ready(end) = self.poll_last_words(cx)
        {
            return Poll::Ready(end);
        }
        self.note_closing();
        let both_closed = self.to_device.out.scanner.closed() && self.to_region.out.scanner.closed();
        if both_closed
            && self.to_device.out.pending.is_empty()
            && self.to_region.out.pending.is_empty()
            && let Some((_, end)) = self.closing_since.take()
        {
            return Poll::Ready(end);
        }
        if let Some(end) = self.poll_leaves(cx, orders_to_leave) {
            return Poll::Ready(end);
        }
        if let Some(why) = self.poll_asked(cx, asks_to_leave) {
            return Poll::Ready(End::Planned(why));
        }
        self.poll_timer(cx, timer)
    }

    /// Searches the last bytes of a lost region for its Close frame, while the device takes nothing. Once begun, this is the only reader:
    /// the scanner is ahead of the bytes that wait for the device, so it would misread the frames of any other read.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let last_words = self.last_words.get_or_insert_default();
        last_words.poll(cx, &mut self.region, &mut self.to_device.out.scanner)
    }

    /// The end of a session that leaves the edge now. A turn in progress may end first, within limits.
    fn poll_leaves(
        &mut self,
        cx: &mut Context<'_>,
        mut orders_to_leave: Pin<&mut impl Stream<Item = Leave>>,
    ) -> Option<End> {
        // One that makes room for others may take long over its turn; another order has a limit, and no further one follows.
        while self.leaves.is_none_or(|(leave, _)| leave == Leave::Overloaded) {
            let leave = match self.count_and_check_quota() {
                true => Leave::QuotaUsed,
                false => match orders_to_leave.as_mut().poll_next(cx) {
                    Poll::Ready(Some(leave)) => leave,
                    Poll::Ready(None) | Poll::Pending => break,
                },
            };
            self.leaves = Some((leave, Instant::now() + self.turn));
        }
        let (leave, by) = self.leaves.filter(|_| self.closing_since.is_none())?;
        let is_busy = self.movable.as_deref().is_some_and(MovableState::is_busy);
        match leave {
            Leave::Overloaded => (!is_busy).then_some(End::of(leave)),
            leave => (!is_busy || by <= Instant::now()).then(|| End::of(leave)),
        }
    }

    /// The reason for which the session leaves by plan now. One that can wait leaves between turns, so that the user notices nothing.
    fn poll_asked(
        &mut self,
        cx: &mut Context<'_>,
        asks_to_leave: Pin<&mut (dyn Future<Output = LeaveReason> + Send)>,
    ) -> Option<LeaveReason> {
        if self.asked.is_none()
            && let Poll::Ready(why) = asks_to_leave.poll(cx)
        {
            self.asked = Some(why);
        }
        let movable = self.movable().filter(|_| self.closing_since.is_none())?;
        self.asked
            .filter(|why| *why == LeaveReason::Evacuated || !movable.is_busy())
    }

    /// Pings the region when it has been silent. Returns whether the region lives.
    fn look_after_region(&mut self) -> bool {
        let Some(movable) = &mut self.movable else { return true };
        if Instant::now() < movable.look_at() {
            return true;
        }
        // While the device takes nothing, the edge reads nothing from the region.
        if self.to_device.is_blocked() {
            movable.look_later();
            return true;
        }
        // Unread bytes already ask the region for a sign of life. Inside a frame the edge can send no ping.
        let has_unread = self.to_region.is_blocked();
        if !has_unread && !self.to_region.out.scanner.at_boundary() {
            movable.look_later();
            return true;
        }
        let Some(ping) = movable.look() else { return false };
        if !has_unread {
            self.to_region.out.pending.extend_from_slice(&ping);
            self.to_region.out.ready = self.to_region.out.pending.len();
        }
        true
    }

    /// The time by which the device must finish a frame that it began, at its pace. Until then the edge can send nothing of its own to
    /// the region, neither a ping nor a Close. A region that does not read keeps the device from sending.
    fn frame_due_at(&self) -> Option<Instant> {
        let is_awaited = !self.to_region.out.scanner.at_boundary() && !self.to_region.is_blocked();
        is_awaited.then(|| self.to_region.active_at + self.to_region.frame_pace.remaining())
    }

    /// Records the time and the side of the first Close frame.
    fn note_closing(&mut self) {
        if self.closing_since.is_some() {
            return;
        }
        let end = if self.to_region.out.scanner.closed() {
            End::DeviceClosed
        } else if self.to_device.out.scanner.closed() {
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
                None => (self.to_region.out.ready, self.look_after_region()),
                Some(_) => (self.to_region.out.ready, true),
            };
            if !region_lives {
                return Poll::Ready(End::RegionSilent);
            }
            if self.to_region.out.ready > pings {
                // The ping waits to be written.
                cx.waker().wake_by_ref();
            }
            let looks_at = self.movable.as_ref().map(|movable| movable.look_at());
            // The first of these ends the session.
            let silences = [
                self.to_region.silent_at(self.idle),
                self.to_device.silent_at(self.idle),
                self.to_device.blocked_until(),
                self.to_region.blocked_until(),
                self.frame_due_at(),
            ];
            let silent_at = silences.into_iter().flatten().min();
            // A region that closed in order is done; its last bytes wait for the device like any others.
            let waits_for_device = self.to_device.out.scanner.closed() && !self.to_region.out.scanner.closed();
            let taken_by = self.to_device.blocked_until().filter(|_| waits_for_device);
            let deadline = match &self.closing_since {
                Some((since, _)) => taken_by.unwrap_or(*since + self.close),
                None => [looks_at, silent_at]
                    .into_iter()
                    .flatten()
                    .min()
                    .unwrap_or_else(|| Instant::now() + self.idle),
            };
            let leaves_by = match self.leaves {
                Some((leave, by)) if self.closing_since.is_none() && leave != Leave::Overloaded => Some((leave, by)),
                _ => None,
            };
            let deadline = leaves_by.map_or(deadline, |(_, by)| by.min(deadline));
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
                // When both sides are silent, neither failed: the device has nothing to say and sends no heartbeat.
                let now = Instant::now();
                let is_over = silences.map(|at| at.is_some_and(|at| at <= now));
                return Poll::Ready(match is_over {
                    [true, ..] => End::DeviceSilent,
                    [_, _, true, ..] => End::DeviceSlow,
                    [.., true] => End::DeviceTrickles,
                    _ => End::RegionSilent,
                });
            }
            if let Some((leave, by)) = leaves_by
                && by <= Instant::now()
            {
                return Poll::Ready(End::of(leave));
            }
            // The deadline was that of the next ping, which `look_after_region` sent.
            timer.as_mut().reset(deadline);
        }
    }

    /// The end of a connection. After a Close frame it ended in order, whatever error the socket has.
    fn closing_or(&mut self, otherwise: End) -> End {
        if self.to_region.out.scanner.closed() {
            End::DeviceClosed
        } else if self.to_device.out.scanner.closed() {
            End::RegionClosed
        } else {
            match self.closing_since.take() {
                Some((_, end)) => end,
                None => otherwise,
            }
        }
    }

    /// Answers the Close frame of a device (RFC 6455 §5.5.1), also when its region did not: without it client libraries report an
    /// abnormal end, and some connect again.
    async fn answer_close(&mut self, id: &RequestId) {
        if self.to_device.out.scanner.closed() {
            return goodbye(self.device, self.close).await;
        }
        let echo = echo_for_device(self.to_region.out.scanner.close_code());
        self.say_last(&echo, false, id).await;
    }

    /// Tells the region that the session is over, if the socket takes a frame at once. The region notices the end of the connection
    /// anyway; a Close frame only spares it a log line.
    fn tell_region(&mut self, end: &End) {
        if !matches!(end, End::RegionLost(_) | End::RegionSilent | End::RegionDeclined(_)) {
            self.close_region(CloseCode::Away);
        }
    }

    /// Sends Close to the region, if the bytes before it end with a whole frame.
    fn close_region(&mut self, code: CloseCode) {
        let to_region = &self.to_region;
        if !to_region.out.scanner.closed() && to_region.out.pending.is_empty() && to_region.out.scanner.at_boundary() {
            self.region.try_write(&close_for_region(code));
        }
    }

    /// Writes the last frame to the device, behind the last whole frame. While the region is alive, the edge first completes the frame
    /// that is passing. When the region died in the middle of a frame, the device could not recognise a Close frame, and the
    /// connection just ends.
    async fn say_last(&mut self, close: &[u8], region_is_alive: bool, id: &RequestId) {
        let (limit, keeps_state) = (self.to_device.close_limit(self.close), self.movable.is_some());
        // The bytes that wait for the device may end inside a frame whose rest was searched and dropped.
        let has_place = keeps_state || self.last_words.is_none();
        let to_device = &mut self.to_device;
        let (mut device, region) = (&mut *self.device, &mut self.region);
        let told = timeout(limit, async {
            if region_is_alive && !keeps_state && has_place {
                poll_fn(|cx| to_device.poll(cx, region, &mut device, Until::Boundary, None)).await;
            } else {
                (&mut device).write_all_buf(&mut to_device.out.pending).await?;
            }
            if has_place
                && to_device.out.pending.is_empty()
                && to_device.out.scanner.at_boundary()
                && !to_device.out.scanner.closed()
            {
                device.write_all(close).await?;
                device.flush().await?;
            }
            io::Result::Ok(())
        });
        match told.await {
            Ok(Ok(())) => goodbye(self.device, self.close).await,
            Ok(Err(error)) => tracing::debug!(request_id = %id, %error, "the device left before it got the reason"),
            Err(_) => tracing::debug!(request_id = %id, "the device did not read why its session ends"),
        }
    }
}
