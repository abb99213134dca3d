//! WebSocket frames (RFC 6455 §5), as far as a relay must know them: the boundaries between them.
//!
//! The relay passes payloads on unchanged, and reads none of them except the code of a Close frame.
//!
//! tungstenite names the codes and writes the headers of the edge's own frames. The scanner reads headers itself: it
//! refuses a frame as soon as a byte shows that it is wrong, and its bytes may come one by one. `FrameHeader::parse`
//! would read each header several times, which triples the time of a frame.

use std::io::Cursor;

use bytes::{BufMut as _, BytesMut};
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

/// Longest frame header: two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;
/// Longest payload of a control frame (§5.5).
const CONTROL_BYTES_MAX: u64 = 125;
/// Longest reason of a Close frame: a control frame less the code.
const REASON_BYTES_MAX: usize = 123;

/// A stack cannot go on with a session of another region (docs/continuity.md).
pub const CANNOT_RESUME: CloseCode = CloseCode::Library(4001);

/// The sender of frames: devices mask theirs, regions do not (§5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Device,
    Region,
}

/// The fault of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A reserved bit is set though no extension was negotiated.
    #[error("a reserved bit is set")]
    ReservedBit,
    #[error("opcode {0} is reserved")]
    Opcode(u8),
    /// A device must mask its frames, and a region must not.
    #[error("the masking is wrong")]
    Masking,
    /// Control frames are short and whole, and a Close carries nothing or a code.
    #[error("a control frame is too long or fragmented")]
    Control,
    /// A frame continues a message that had not begun, or begins one before the last one ended.
    #[error("fragments are out of order")]
    Fragments,
    /// The length does not have its shortest form.
    #[error("the length is not in its shortest form")]
    Length,
    #[error("a frame of {0} bytes is too large")]
    TooLarge(u64),
}

/// Follows the frames of one direction.
#[derive(Debug)]
pub struct Scanner {
    sender: Sender,
    frame_bytes_max: u64,
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    /// Payload bytes of the current frame still to come.
    left: u64,
    opcode: OpCode,
    in_message: bool,
    close: Close,
    frames: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub used: usize,
    /// Whether the last of them is the last of a frame.
    pub ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Close {
    NotSeen,
    Passing { seen: u8, code: u16, mask: [u8; 4] },
    Seen(Option<u16>),
}

impl Scanner {
    /// Begins at a frame boundary.
    pub fn new(sender: Sender, frame_bytes_max: u64) -> Self {
        Self {
            sender,
            frame_bytes_max,
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            left: 0,
            opcode: OpCode::Data(Data::Continue),
            in_message: false,
            close: Close::NotSeen,
            frames: 0,
        }
    }

    /// Takes bytes and appends those that may be passed on. It holds a header back until it is complete and valid, so that the
    /// appended bytes end inside a payload or at a boundary. With `until_boundary` it stops at the first boundary and ignores the
    /// rest.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut BytesMut, until_boundary: bool) -> Result<(), Violation> {
        while !(bytes.is_empty() || until_boundary && self.at_boundary()) {
            bytes = &bytes[self.step(bytes, out)?.used..];
        }
        Ok(())
    }

    /// The same, up to the end of the first frame.
    pub fn step(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<Step, Violation> {
        let mut rest = bytes;
        let mut ended = false;
        while !rest.is_empty() && !ended {
            if self.left > 0 {
                let now = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                let (payload, after) = rest.split_at(now);
                self.look_for_code(payload);
                out.extend_from_slice(payload);
                self.left -= now as u64;
                rest = after;
                ended = self.left == 0;
                continue;
            }
            self.header[usize::from(self.header_len)] = rest[0];
            self.header_len += 1;
            rest = &rest[1..];
            if let Some(header) = self.header()? {
                out.extend_from_slice(&self.header[..usize::from(self.header_len)]);
                self.frame_begins(&header);
                ended = self.left == 0;
            }
        }
        if ended {
            self.frame_ends();
        }
        let used = bytes.len() - rest.len();
        Ok(Step { used, ended })
    }

    /// The opcode of the frame that passed last or is passing.
    pub fn opcode(&self) -> OpCode {
        self.opcode
    }

    /// Whether that frame is part of a message and not a control frame.
    pub fn is_data(&self) -> bool {
        matches!(self.opcode, OpCode::Data(_))
    }

    /// Whether a message has begun and its last frame has not.
    pub fn in_message(&self) -> bool {
        self.in_message
    }

    /// Whether the bytes passed on so far end with a whole frame, so that the edge may add one.
    pub fn at_boundary(&self) -> bool {
        self.left == 0
    }

    /// Whether a Close frame has passed.
    pub fn closed(&self) -> bool {
        matches!(self.close, Close::Seen(_))
    }

    /// The code of the Close frame that has passed; `None` as well when it had none.
    pub fn close_code(&self) -> Option<CloseCode> {
        match self.close {
            Close::Seen(code) => code.map(CloseCode::from),
            Close::NotSeen | Close::Passing { .. } => None,
        }
    }

    /// Whole frames that have passed.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Checks the bytes of a header so far; returns a complete one.
    fn header(&self) -> Result<Option<Header>, Violation> {
        let bytes = &self.header[..usize::from(self.header_len)];
        let &[first, second, ..] = bytes else {
            return Ok(None);
        };
        let (fin, opcode) = (first & 0x80 != 0, OpCode::from(first & 0x0f));
        let (masked, short) = (second & 0x80 != 0, second & 0x7f);
        if first & 0x70 != 0 {
            return Err(Violation::ReservedBit);
        }
        match opcode {
            OpCode::Data(Data::Continue) if !self.in_message => return Err(Violation::Fragments),
            OpCode::Data(Data::Text | Data::Binary) if self.in_message => return Err(Violation::Fragments),
            OpCode::Data(Data::Reserved(opcode)) | OpCode::Control(Control::Reserved(opcode)) => {
                return Err(Violation::Opcode(opcode));
            }
            OpCode::Control(_) if !fin || u64::from(short) > CONTROL_BYTES_MAX => return Err(Violation::Control),
            OpCode::Control(Control::Close) if short == 1 => return Err(Violation::Control),
            OpCode::Data(_) | OpCode::Control(_) => {}
        }
        if masked != (self.sender == Sender::Device) {
            return Err(Violation::Masking);
        }
        let (length_bytes, shortest) = match short {
            126 => (2, 126),
            127 => (8, 1 << 16),
            _ => (0, 0),
        };
        let mask_bytes = if masked { 4 } else { 0 };
        if bytes.len() < 2 + length_bytes {
            return Ok(None);
        }
        let length = match length_bytes {
            0 => u64::from(short),
            _ => bytes[2..2 + length_bytes]
                .iter()
                .fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        if length < shortest {
            return Err(Violation::Length);
        }
        if length > self.frame_bytes_max {
            return Err(Violation::TooLarge(length));
        }
        if bytes.len() < 2 + length_bytes + mask_bytes {
            return Ok(None);
        }
        let mut mask = [0; 4];
        mask[..mask_bytes].copy_from_slice(&bytes[2 + length_bytes..]);
        Ok(Some(Header {
            fin,
            opcode,
            length,
            mask,
        }))
    }

    fn frame_begins(&mut self, header: &Header) {
        self.header_len = 0;
        self.left = header.length;
        self.opcode = header.opcode;
        match header.opcode {
            OpCode::Data(_) => self.in_message = !header.fin,
            OpCode::Control(Control::Close) if self.close == Close::NotSeen => {
                let mask = header.mask;
                self.close = Close::Passing { seen: 0, code: 0, mask };
            }
            OpCode::Control(_) => {}
        }
    }

    fn frame_ends(&mut self) {
        self.frames += 1;
        if let Close::Passing { seen, code, .. } = self.close {
            self.close = Close::Seen((seen == 2).then_some(code));
        }
    }

    fn look_for_code(&mut self, payload: &[u8]) {
        if let Close::Passing { seen, code, mask } = &mut self.close {
            for byte in payload {
                if *seen == 2 {
                    break;
                }
                *code = *code << 8 | u16::from(byte ^ mask[usize::from(*seen)]);
                *seen += 1;
            }
        }
    }
}

struct Header {
    fin: bool,
    opcode: OpCode,
    length: u64,
    mask: [u8; 4],
}

/// A Close frame to a device. Reasons longer than a control frame holds are cut.
pub fn close_for_device(code: CloseCode, reason: &str) -> BytesMut {
    let payload = [&u16::from(code).to_be_bytes(), cut(reason).as_bytes()].concat();
    frame_for_device(OpCode::Control(Control::Close), &payload)
}

/// The Close frame that answers one with this code (§5.5.1). It does not repeat a code that no endpoint may send (§7.4).
pub fn echo_for_device(code: Option<CloseCode>) -> BytesMut {
    /// Registered as "bad gateway" (IANA), which tungstenite does not know.
    const BAD_GATEWAY: CloseCode = CloseCode::Bad(1014);
    match code {
        Some(code) if code.is_allowed() || code == BAD_GATEWAY => close_for_device(code, ""),
        Some(_) | None => frame_for_device(OpCode::Control(Control::Close), &[]),
    }
}

/// Masks keep hostile scripts from writing chosen bytes to the wire (§10.3). The edge is not a script, so its mask is constant.
const MASK: [u8; 4] = [0x4d, 0x65, 0x72, 0x69];

/// A Close frame to a region.
pub fn close_for_region(code: CloseCode) -> BytesMut {
    frame_for_region(OpCode::Control(Control::Close), &u16::from(code).to_be_bytes())
}

/// A whole frame to a device.
pub fn frame_for_device(opcode: OpCode, payload: &[u8]) -> BytesMut {
    let mut frame = header_for(opcode, payload.len(), None);
    frame.extend_from_slice(payload);
    frame
}

/// A whole frame to a region.
pub fn frame_for_region(opcode: OpCode, payload: &[u8]) -> BytesMut {
    let mut frame = header_for(opcode, payload.len(), Some(MASK));
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The header of a whole frame, with room for its payload.
fn header_for(opcode: OpCode, length: usize, mask: Option<[u8; 4]>) -> BytesMut {
    let mut frame = BytesMut::with_capacity(HEADER_BYTES_MAX + length).writer();
    let header = FrameHeader {
        opcode,
        mask,
        ..FrameHeader::default()
    };
    header
        .format(length as u64, &mut frame)
        .expect("a buffer takes every byte");
    frame.into_inner()
}

/// The payload of a whole frame, without its mask.
pub fn payload_of(frame: &[u8]) -> Vec<u8> {
    let mut cursor = Cursor::new(frame);
    let Ok(Some((header, _))) = FrameHeader::parse(&mut cursor) else {
        return Vec::new();
    };
    let payload = frame.get(cursor.position() as usize..).unwrap_or_default();
    match header.mask {
        Some(mask) => (payload.iter().zip(mask.iter().cycle()))
            .map(|(byte, mask)| byte ^ mask)
            .collect(),
        None => payload.to_vec(),
    }
}

fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        let mask_bit = if masked { 0x80 } else { 0 };
        match payload.len() {
            length @ 0..126 => bytes.push(mask_bit | u8::try_from(length).unwrap()),
            length @ 126..65536 => {
                bytes.push(mask_bit | 126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                bytes.push(mask_bit | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        if masked {
            bytes.extend(mask);
            bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        } else {
            bytes.extend(payload);
        }
        bytes
    }

    /// Passes bytes in pieces of every size, and expects them to come out the same.
    fn check_passes(sender: Sender, bytes: &[u8], frames: u64) -> Scanner {
        let mut last = None;
        for size in [1, 2, 3, 7, 64, bytes.len().max(1)] {
            let mut scanner = Scanner::new(sender, 1 << 20);
            let mut out = BytesMut::new();
            for piece in bytes.chunks(size) {
                scanner.push(piece, &mut out, false).unwrap();
            }
            assert_eq!(out, bytes, "in pieces of {size}");
            assert_eq!(scanner.frames(), frames);
            assert!(scanner.at_boundary());
            last = Some(scanner);
        }
        last.unwrap()
    }

    #[test]
    fn frames_of_all_lengths_pass_verbatim_however_they_are_cut() {
        for masked in [false, true] {
            let from = if masked { Sender::Device } else { Sender::Region };
            let lengths = [0, 1, 125, 126, 127, 65_535, 65_536, 70_000];
            let bytes: Vec<u8> = lengths
                .iter()
                .flat_map(|length| frame(0x82, masked, &vec![7; *length]))
                .collect();
            check_passes(from, &bytes, 8);
            let fragments = [
                frame(0x01, masked, b"a"),
                frame(0x89, masked, b"ping"),
                frame(0x00, masked, b""),
                frame(0x80, masked, b"c"),
            ];
            check_passes(from, &fragments.concat(), 4);
        }
    }

    #[test]
    fn the_code_of_a_close_is_read_through_the_mask() {
        let close = frame(0x88, true, &[0x03, 0xe8, b'o', b'k']);
        let scanner = check_passes(Sender::Device, &close, 1);
        assert_eq!(scanner.close_code(), Some(CloseCode::Normal));
        let scanner = check_passes(Sender::Region, &frame(0x88, false, b""), 1);
        assert!(scanner.closed());
        assert_eq!(scanner.close_code(), None);
    }

    #[test]
    fn what_breaks_the_protocol_is_held_back() {
        let too_large = frame(0x82, true, &vec![0; (1 << 20) + 1]);
        for (from, bytes, violation) in [
            (Sender::Device, frame(0xc1, true, b"x"), Violation::ReservedBit),
            (Sender::Device, frame(0x83, true, b"x"), Violation::Opcode(3)),
            (Sender::Device, frame(0x81, false, b"x"), Violation::Masking),
            (Sender::Region, frame(0x81, true, b"x"), Violation::Masking),
            (Sender::Device, frame(0x09, true, b"x"), Violation::Control),
            (Sender::Device, frame(0x88, true, b"x"), Violation::Control),
            (Sender::Device, frame(0x89, true, &[0; 126]), Violation::Control),
            (Sender::Device, frame(0x80, true, b"x"), Violation::Fragments),
            (Sender::Region, vec![0x82, 126, 0, 5], Violation::Length),
            (
                Sender::Region,
                vec![0x82, 127, 0, 0, 0, 0, 0, 0, 255, 255],
                Violation::Length,
            ),
            (Sender::Device, too_large, Violation::TooLarge((1 << 20) + 1)),
        ] {
            let before = frame(0x82, from == Sender::Device, b"before");
            let mut scanner = Scanner::new(from, 1 << 20);
            let mut out = BytesMut::new();
            let all = [before.clone(), bytes].concat();
            let result = all.chunks(3).try_for_each(|piece| scanner.push(piece, &mut out, false));
            assert_eq!(result, Err(violation));
            assert_eq!(out, before, "{violation}: only what came before may pass");
            assert!(scanner.at_boundary());
        }
    }

    #[test]
    fn it_stops_at_a_boundary_when_asked() {
        let (one, two) = (frame(0x82, false, b"one"), frame(0x82, false, b"two"));
        let mut scanner = Scanner::new(Sender::Region, 1 << 20);
        let mut out = BytesMut::new();
        scanner.push(&one[..3], &mut out, false).unwrap();
        assert!(!scanner.at_boundary());
        scanner.push(&[&one[3..], &two].concat(), &mut out, true).unwrap();
        assert_eq!(out, one);
        assert!(scanner.at_boundary());
    }

    #[test]
    fn our_own_frames_are_in_order_and_read_back() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![7; length];
            let device = frame_for_device(OpCode::Data(Data::Text), &payload);
            check_passes(Sender::Region, &device, 1);
            assert_eq!(payload_of(&device), payload);
            let region = frame_for_region(OpCode::Data(Data::Binary), &payload);
            check_passes(Sender::Device, &region, 1);
            assert_eq!(payload_of(&region), payload);
        }
    }

    #[test]
    fn our_own_close_frames_are_in_order() {
        let device = close_for_device(CloseCode::Restart, &"ü".repeat(100));
        let scanner = check_passes(Sender::Region, &device, 1);
        assert_eq!(scanner.close_code(), Some(CloseCode::Restart));
        let region = close_for_region(CloseCode::Away);
        let scanner = check_passes(Sender::Device, &region, 1);
        assert_eq!(scanner.close_code(), Some(CloseCode::Away));
    }

    #[test]
    fn a_close_is_answered_with_its_code_if_that_may_be_sent() {
        for code in [1000, 1003, 1007, 1013, 1014, 3000, 4999] {
            let echo = echo_for_device(Some(code.into()));
            let scanner = check_passes(Sender::Region, &echo, 1);
            assert_eq!(scanner.close_code().map(u16::from), Some(code));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
            let echo = echo_for_device(Some(code.into()));
            let scanner = check_passes(Sender::Region, &echo, 1);
            assert_eq!(scanner.close_code(), None, "{code}");
        }
    }
}
