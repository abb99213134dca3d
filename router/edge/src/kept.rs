//! What a live session keeps so that it can go on in another region: the thin side of [`routing::continuity`], which sees
//! the frames pass.
//!
//! The device gets whole messages only, so that a region may die in the middle of one, and none of the private words.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use routing::{
    Decision,
    continuity::{Continuity, Handover, Why},
};
use tokio::time::{Duration, Instant};
use topology::{
    RegionId,
    words::{self, Word},
};

use crate::{
    Edge,
    frames::{From, Scanner, Violation, code, frame_for_device, frame_for_region, opcode, payload_of},
    relay::Way,
    seen::Heard,
};

/// A session that hears nothing of a stack that others hear is given up after so many times its silence.
const SLOW_FACTOR: u32 = 5;
/// What is held back of one message of a region. The largest event is a piece of audio of some 20 kB.
const HELD_BYTES_MAX: usize = 4 << 20;

/// What one session keeps.
pub struct Kept {
    edge: Arc<Edge>,
    /// Where it is, and on which version: what its turns are counted for.
    region: RegionId,
    stack: SocketAddr,
    version: Box<str>,
    continuity: Continuity,
    /// When the region was last heard, and when it was asked for a sign of life since.
    heard_at: Instant,
    pinged_at: Option<Instant>,
    /// When any session last heard the stack.
    stack_heard: Arc<Heard>,
    /// What this edge's own pings carry, so that their answers can be told from those to the device's: a number that no device
    /// can know.
    nonce: [u8; 8],
    /// When the device last said something.
    said_at: Instant,
    /// A ping of the device that the region did not answer yet: it must not be lost with the region, or the device, which
    /// waits for the answer, would give the session up.
    ping: BytesMut,
    /// What came so far of a control frame of the device that is under way.
    control: BytesMut,
    /// The device said Close: whatever the region answers to that is for the device.
    device_closed: bool,
    /// The message under way from the device continues one of which the new region never got the beginning.
    skips_message: bool,
    /// The same for a control frame. The new region gets it whole once it is.
    skips_control: bool,
    /// The session left its region, and the next has not said yet that it goes on.
    resuming: Option<(Why, Instant)>,
}

/// Why a direction ends in what it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It is not WebSocket.
    Violation(Violation),
    /// The region says that it goes away.
    Closing,
    /// The region says what makes no sense.
    Confused(String),
    /// The region does not go on with a session of another: it has another key, or is of another version.
    Declined(String),
}

impl std::convert::From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl Kept {
    /// A session begins, at a stack that hands out checkpoints.
    pub fn new(edge: &Arc<Edge>, decision: &Decision) -> Self {
        let now = Instant::now();
        Self {
            edge: edge.clone(),
            region: decision.region.clone(),
            stack: decision.stack,
            version: decision.version.clone(),
            continuity: Continuity::new(edge.config.continuity.replay_bytes_max, edge.budget.clone()),
            heard_at: now,
            stack_heard: edge.seen.heard(decision.stack),
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
                self.continuity.said(piece, ends);
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
                    opcode::PING => self.ping = control,
                    opcode::CLOSE => self.device_closed = true,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Takes bytes of the region: whole messages are passed on, words are taken out.
    pub fn take_from_region(&mut self, mut bytes: &[u8], way: &mut Way) -> Result<(), Stop> {
        self.heard_at = Instant::now();
        self.stack_heard.now();
        self.pinged_at = None;
        while !bytes.is_empty() {
            let step = way.scanner.step(bytes, &mut way.pending)?;
            bytes = &bytes[step.used..];
            if step.ended {
                self.take_frame(way)?;
            } else if way.held() > HELD_BYTES_MAX {
                return Err(Violation::TooLarge(way.held() as u64).into());
            }
        }
        Ok(())
    }

    fn take_frame(&mut self, way: &mut Way) -> Result<(), Stop> {
        let frame = way.last_frame();
        match way.scanner.opcode() {
            opcode::CLOSE => match way.scanner.close_code() {
                // The device has said Close, and this is the answer, whatever it says (RFC 6455 §5.5.1).
                _ if self.device_closed => way.release(),
                // It sends its sessions away, so they go; anything else is between it and the device.
                Some(code::GOING_AWAY | code::SERVICE_RESTART) if self.can_move() => {
                    way.drop_frame();
                    return Err(Stop::Closing);
                }
                Some(code @ 4000..) => {
                    let payload = payload_of(frame);
                    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                    let answer = format!("it answered {code} \"{reason}\"");
                    way.drop_frame();
                    if code == code::CANNOT_RESUME && self.resuming.is_some() {
                        self.continuity.declined();
                        return Err(Stop::Declined(answer));
                    }
                    return Err(Stop::Confused(answer));
                }
                _ => way.release(),
            },
            opcode::PONG if payload_of(frame) == self.nonce => way.drop_frame(),
            opcode::PONG => {
                self.ping = BytesMut::new();
                way.control_ends();
            }
            opcode::PING => way.control_ends(),
            first if way.scanner.in_message() => {
                if first == opcode::BINARY && words::is_word(&payload_of(frame)) {
                    return Err(Stop::Confused("a word came in fragments".to_owned()));
                }
                way.fragment_ends();
            }
            opcode::BINARY if words::is_word(&payload_of(frame)) => {
                let word = payload_of(frame);
                self.take_word(&word).map_err(Stop::Confused)?;
                way.drop_frame();
            }
            _ => {
                if way.is_text() {
                    let delivered = self.continuity.delivered();
                    delivered.map_err(|error| Stop::Confused(error.to_string()))?;
                }
                way.release();
            }
        }
        Ok(())
    }

    fn take_word(&mut self, word: &[u8]) -> Result<(), String> {
        match Word::parse(word) {
            Ok(Word::Checkpoint(checkpoint)) => {
                let taken = self.continuity.checkpoint(&checkpoint);
                taken.map_err(|error| error.to_string())?;
                if let Some((why, since)) = self.resuming.take() {
                    self.edge.metrics.resumed(why.as_str(), since.elapsed());
                }
                Ok(())
            }
            Ok(Word::Load(load)) => {
                self.edge.seen.loaded(self.stack, load, daemon::clock::now());
                Ok(())
            }
            Ok(Word::Turn(turn)) => {
                self.edge.seen.traffic.turn(&self.region, &self.version, &turn);
                Ok(())
            }
            Ok(Word::Trouble(trouble)) => {
                self.edge.seen.traffic.trouble(&self.version, trouble);
                Ok(())
            }
            Ok(Word::Resume(_)) => Err("a region asked to resume".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The session leaves for another stack at `since`: what that is sent first, and what the device is sent in place of the old
    /// one. `scanner` follows the device.
    pub fn hand_over(
        &mut self,
        to: &Decision,
        why: Why,
        since: Instant,
        scanner: &Scanner,
    ) -> Option<(Handover, BytesMut)> {
        let handover = self.continuity.hand_over()?;
        self.region = to.region.clone();
        self.stack = to.stack;
        self.version = to.version.clone();
        self.stack_heard = self.edge.seen.heard(to.stack);
        self.edge.metrics.handed_over(handover.replay.len(), handover.is_broken);
        self.skips_message = handover.skips_rest;
        self.skips_control = !scanner.at_boundary() && !scanner.is_data();
        self.heard_at = Instant::now();
        self.pinged_at = None;
        // Of several moves without a word in between the first is what the device waits for.
        self.resuming.get_or_insert((why, since));
        let ping = std::mem::take(&mut self.ping);
        let pong = if ping.is_empty() {
            BytesMut::new()
        } else {
            frame_for_device(opcode::PONG, &payload_of(&ping))
        };
        Some((handover, pong))
    }

    /// When to look whether the region still lives.
    pub fn look_at(&self) -> Instant {
        self.pinged_at.unwrap_or(self.heard_at) + self.silence_max() / 2
    }

    /// It is time to look: `None` when the region is silent, else what to ask it.
    pub fn look(&mut self) -> Option<BytesMut> {
        if self.pinged_at.is_some() && !self.is_only_slow() {
            return None;
        }
        self.pinged_at = Some(Instant::now());
        Some(frame_for_region(opcode::PING, &self.nonce))
    }

    /// The region cannot be asked, or not be heard, and that is not its fault.
    pub fn look_later(&mut self) {
        self.heard_at = Instant::now();
        self.pinged_at = None;
    }

    /// Whether the stack lives, as other sessions hear it: then it is slow to answer this one, as it is when hundreds come to
    /// it at once from a region that died. Moving on would only bring them to the next. An edge that is late itself cannot tell.
    fn is_only_slow(&self) -> bool {
        let silence_max = self.silence_max();
        let is_excused = self.stack_heard.elapsed() < silence_max || self.edge.lag.is_late_for(silence_max);
        is_excused && self.heard_at.elapsed() < silence_max * SLOW_FACTOR
    }

    fn silence_max(&self) -> Duration {
        let policy = &self.edge.config.continuity;
        if self.continuity.is_owed() {
            policy.silence_busy.0
        } else if self.said_at.elapsed() < policy.silence_idle.0 {
            policy.silence_active.0
        } else {
            policy.silence_idle.0
        }
    }
}

impl Way {
    /// Bytes of a message that is not whole yet.
    fn held(&self) -> usize {
        self.pending.len().saturating_sub(self.ready)
    }

    fn last_frame(&self) -> &[u8] {
        self.pending.get(self.ready + self.frame..).unwrap_or_default()
    }

    fn drop_frame(&mut self) {
        self.pending.truncate(self.ready + self.frame);
    }

    /// What is held is whole.
    fn release(&mut self) {
        self.ready = self.pending.len();
        self.frame = 0;
    }

    /// A control frame may come between the fragments of a message, and then stays between them.
    fn control_ends(&mut self) {
        if self.frame == 0 {
            self.release();
        } else {
            self.fragment_ends();
        }
    }

    fn fragment_ends(&mut self) {
        self.frame = self.held();
    }

    /// Whether the message that is held is text. Its first frame says so, and nothing is held before that.
    fn is_text(&self) -> bool {
        self.pending
            .get(self.ready)
            .is_some_and(|first| first & 0x0f == opcode::TEXT)
    }

    /// The region is lost, and with it the message under way.
    pub fn begin_anew(&mut self, frame_bytes_max: u64) {
        self.pending.truncate(self.ready);
        self.frame = 0;
        self.scanner = Scanner::new(From::Region, frame_bytes_max);
    }

    /// Puts a frame of our own behind the last whole message.
    pub fn say(&mut self, frame: &[u8]) {
        debug_assert_eq!(self.held(), 0, "nothing is held when a session begins in a region");
        self.pending.extend_from_slice(frame);
        self.release();
    }
}
