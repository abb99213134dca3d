//! The state by which a live session can go on in another region: the thin side of [`routing::continuity`], which follows the
//! frames.
//!
//! The device gets whole messages only, so that a region may die in the middle of one, and no message between stack and edge.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::BytesMut;
use routing::{
    Decision,
    continuity::{Continuity, Handover, LeaveReason},
};
use tokio::time::{Duration, Instant};
use topology::RegionId;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::{
    Edge,
    session::end::Stop,
    session::frames::{CANNOT_RESUME, Scanner, Violation, frame_for_device, frame_for_region, payload_of},
    session::outgoing::Outgoing,
    stacks::fleet_view::LastHeard,
};

/// The edge gives a stack up for one session after this many times the allowed silence, although other sessions hear the stack.
const SLOW_FACTOR: u32 = 5;
/// Most bytes of one message of a region that the edge holds back. The largest event is a piece of audio of some 20 kB.
const HELD_BYTES_MAX: usize = 4 << 20;

pub struct MovableState {
    edge: Arc<Edge>,
    /// The region, stack and version for which the turns of the session count.
    region: RegionId,
    stack: SocketAddr,
    version: Box<str>,
    continuity: Continuity,
    /// The last time at which the region sent a byte, and the time of the edge's ping since.
    heard_at: Instant,
    pinged_at: Option<Instant>,
    /// The last time at which the stack sent a byte to any session.
    stack_heard: Arc<LastHeard>,
    /// The payload of this edge's own pings: a number that no device can know, so that their pongs differ from those to the device's
    /// pings.
    nonce: [u8; 8],
    /// The last time at which the device sent a part of a message.
    said_at: Instant,
    /// A ping of the device that the region has not answered yet. If it were lost with the region, the device would wait for its
    /// pong and give the session up.
    ping: BytesMut,
    /// The part of a control frame of the device that has come so far.
    control: BytesMut,
    /// The device sent Close, so the region's Close is the answer to the device.
    device_closed: bool,
    /// The device's unfinished message began at the old region, so its rest must not go to the new one.
    skips_message: bool,
    /// The same for a control frame. The new region gets it when it is whole.
    skips_control: bool,
    /// The reason and the time of a move that the next region has not confirmed yet.
    resuming: Option<(LeaveReason, Instant)>,
}

impl MovableState {
    /// The state of a new session of `client` at a stack that hands out checkpoints.
    pub fn new(edge: &Arc<Edge>, decision: &Decision, client: IpAddr) -> Self {
        let now = Instant::now();
        Self {
            edge: edge.clone(),
            region: decision.region.clone(),
            stack: decision.stack,
            version: decision.version.clone(),
            continuity: Continuity::new(edge.config.continuity.replay_bytes_max, edge.budget.share(client)),
            heard_at: now,
            stack_heard: edge.fleet.heard(decision.stack),
            pinged_at: None,
            nonce: rand::random(),
            said_at: now,
            ping: BytesMut::new(),
            control: BytesMut::new(),
            device_closed: false,
            skips_message: false,
            skips_control: false,
            resuming: None,
        }
    }

    /// See [`Continuity::can_move`].
    pub fn can_move(&self) -> bool {
        self.continuity.can_move()
    }

    /// Whether a turn is in progress.
    pub fn is_busy(&self) -> bool {
        self.continuity.is_busy()
    }

    /// See [`Continuity::state`].
    pub fn state(&self) -> Option<&[u8]> {
        self.continuity.state()
    }

    /// Takes bytes of the device and passes them on.
    pub fn take_from_device(
        &mut self,
        mut bytes: &[u8],
        scanner: &mut Scanner,
        out: &mut BytesMut,
    ) -> Result<(), Stop> {
        while !bytes.is_empty() {
            let before = out.len();
            let step = scanner.step(bytes, out)?;
            bytes = &bytes[step.used..];
            let piece = &out[before..];
            if piece.is_empty() {
                continue;
            }
            if scanner.is_data() {
                let ends = step.ended && !scanner.in_message();
                self.continuity.append(piece, ends);
                self.said_at = Instant::now();
                if self.skips_message {
                    out.truncate(before);
                    self.skips_message = !ends;
                }
                continue;
            }
            self.control.extend_from_slice(piece);
            if self.skips_control {
                out.truncate(before);
            }
            if step.ended {
                let control = std::mem::take(&mut self.control);
                if std::mem::take(&mut self.skips_control) {
                    out.extend_from_slice(&control);
                }
                match scanner.opcode() {
                    OpCode::Control(Control::Ping) => self.ping = control,
                    OpCode::Control(Control::Close) => self.device_closed = true,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Takes bytes of the region: passes whole messages on and takes the messages between stack and edge out.
    pub fn take_from_region(&mut self, mut bytes: &[u8], out: &mut Outgoing) -> Result<(), Stop> {
        self.heard_at = Instant::now();
        self.stack_heard.now();
        self.pinged_at = None;
        while !bytes.is_empty() {
            let step = out.scanner.step(bytes, &mut out.pending)?;
            bytes = &bytes[step.used..];
            if step.ended {
                self.take_frame(out)?;
            } else if out.held() > HELD_BYTES_MAX {
                return Err(Violation::TooLarge(out.held() as u64).into());
            }
        }
        Ok(())
    }

    fn take_frame(&mut self, out: &mut Outgoing) -> Result<(), Stop> {
        let frame = out.last_frame();
        match out.scanner.opcode() {
            OpCode::Control(Control::Close) => match out.scanner.close_code() {
                // The device has sent Close, and this frame is the answer, with any code (RFC 6455 §5.5.1).
                _ if self.device_closed => out.release(),
                // The region stops, so its sessions move. Any other code concerns only the region and the device.
                Some(CloseCode::Away | CloseCode::Restart) if self.can_move() => {
                    out.drop_frame();
                    return Err(Stop::Closing);
                }
                Some(code) if u16::from(code) >= 4000 => {
                    let payload = payload_of(frame);
                    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                    let answer = format!("it answered {code} \"{reason}\"");
                    out.drop_frame();
                    if code == CANNOT_RESUME && self.resuming.is_some() {
                        self.continuity.declined();
                        return Err(Stop::Declined(answer));
                    }
                    return Err(Stop::RegionError(answer));
                }
                _ => out.release(),
            },
            OpCode::Control(Control::Pong) if payload_of(frame) == self.nonce => out.drop_frame(),
            OpCode::Control(Control::Pong) => {
                self.ping = BytesMut::new();
                out.control_ends();
            }
            OpCode::Control(Control::Ping) => out.control_ends(),
            first if out.scanner.in_message() => {
                if first == OpCode::Data(Data::Binary) && wire::is_message(&payload_of(frame)) {
                    return Err(Stop::RegionError(
                        "a message between stack and edge came in fragments".to_owned(),
                    ));
                }
                out.fragment_ends();
            }
            OpCode::Data(Data::Binary) if wire::is_message(&payload_of(frame)) => {
                let message = payload_of(frame);
                self.take_message(&message).map_err(Stop::RegionError)?;
                out.drop_frame();
            }
            _ => {
                if out.is_text() {
                    let delivered = self.continuity.delivered();
                    delivered.map_err(|error| Stop::RegionError(error.to_string()))?;
                }
                out.release();
            }
        }
        Ok(())
    }

    fn take_message(&mut self, message: &[u8]) -> Result<(), String> {
        match wire::Message::parse(message) {
            Ok(wire::Message::Checkpoint(checkpoint)) => {
                let taken = self.continuity.checkpoint(&checkpoint);
                taken.map_err(|error| error.to_string())?;
                if let Some((why, since)) = self.resuming.take() {
                    self.edge.metrics.resumed(why.as_str(), since.elapsed());
                }
                Ok(())
            }
            Ok(wire::Message::Load(load)) => {
                self.edge.fleet.loaded(self.stack, load, daemon::clock::now());
                Ok(())
            }
            Ok(wire::Message::Turn(turn)) => {
                self.edge.turn_ended(&self.region, self.stack, &self.version, &turn);
                Ok(())
            }
            Ok(wire::Message::Trouble(trouble)) => {
                self.edge.fleet.traffic.trouble(&self.version, trouble);
                Ok(())
            }
            Ok(wire::Message::Resume(_)) => Err("a region asked to resume".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Prepares the move to another stack, which began at `since`. Returns the first bytes for the new stack, and the pong that the
    /// device waits for. `scanner` follows the device.
    pub fn hand_over(
        &mut self,
        to: &Decision,
        why: LeaveReason,
        since: Instant,
        scanner: &Scanner,
    ) -> Option<(Handover, BytesMut)> {
        let handover = self.continuity.hand_over()?;
        self.region = to.region.clone();
        self.stack = to.stack;
        self.version = to.version.clone();
        self.stack_heard = self.edge.fleet.heard(to.stack);
        self.edge.metrics.handed_over(handover.replay.len(), handover.is_broken);
        self.skips_message = handover.skips_rest;
        self.skips_control = !scanner.at_boundary() && !scanner.is_data();
        self.heard_at = Instant::now();
        self.pinged_at = None;
        // If the session moves twice before a checkpoint, the device has waited since the first move.
        self.resuming.get_or_insert((why, since));
        let ping = std::mem::take(&mut self.ping);
        let pong = if ping.is_empty() {
            BytesMut::new()
        } else {
            frame_for_device(OpCode::Control(Control::Pong), &payload_of(&ping))
        };
        Some((handover, pong))
    }

    /// The time of the next check whether the region lives.
    pub fn look_at(&self) -> Instant {
        self.pinged_at.unwrap_or(self.heard_at) + self.silence_max() / 2
    }

    /// Checks whether the region lives; call it at [`MovableState::look_at`]. Returns a ping for the region, or `None` when the region
    /// has been silent for too long.
    pub fn look(&mut self) -> Option<BytesMut> {
        if self.pinged_at.is_some() && !self.is_only_slow() {
            return None;
        }
        self.pinged_at = Some(Instant::now());
        Some(frame_for_region(OpCode::Control(Control::Ping), &self.nonce))
    }

    /// Restarts the silence: the edge could not ask or hear the region, and that is not the region's fault.
    pub fn look_later(&mut self) {
        self.heard_at = Instant::now();
        self.pinged_at = None;
    }

    /// Whether other sessions hear the stack, so that it is only slow to answer this one, as when hundreds of sessions of a dead region
    /// come at once. Moving again would only bring them to the next stack. An edge that is late itself cannot judge.
    fn is_only_slow(&self) -> bool {
        let silence_max = self.silence_max();
        let is_excused = self.stack_heard.elapsed() < silence_max || self.edge.lag.is_late_for(silence_max);
        is_excused && self.heard_at.elapsed() < silence_max * SLOW_FACTOR
    }

    fn silence_max(&self) -> Duration {
        let policy = &self.edge.config.continuity;
        if self.continuity.awaits_region() {
            policy.silence_busy.0
        } else if self.said_at.elapsed() < policy.silence_idle.0 {
            policy.silence_active.0
        } else {
            policy.silence_idle.0
        }
    }
}
