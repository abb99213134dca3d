//! WebSocket for the load: frames that are made once and sent many times, and the ends of received frames. Written by hand, because a
//! library would make each frame anew and cost more than the proxies.

/// A piece of audio: 20 ms of 16 kHz PCM. The figures are for frames of this size.
pub(crate) const PAYLOAD_BYTES: usize = 640;
/// Longest frame header: two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;
/// A client masks its frames; any mask will do.
const MASK: [u8; 4] = [0x4d, 0x65, 0x72, 0x69];

/// Opcode of a Close frame (RFC 6455 §5.2).
pub(crate) const CLOSE: u8 = 8;

/// The request with which a client opens a session.
pub(crate) fn upgrade(host: &str) -> String {
    format!(
        "GET /v1/realtime HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A binary frame as a client sends it.
pub(crate) fn masked(payload: &[u8]) -> Vec<u8> {
    let mut frame = header(payload.len(), 0x80);
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A binary frame as a server sends it.
pub(crate) fn plain(payload: &[u8]) -> Vec<u8> {
    let mut frame = header(payload.len(), 0);
    frame.extend_from_slice(payload);
    frame
}

fn header(length: usize, mask_bit: u8) -> Vec<u8> {
    let mut header = vec![0x82];
    match u8::try_from(length) {
        Ok(short @ ..126) => header.push(mask_bit | short),
        _ => {
            header.push(mask_bit | 126);
            header.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    header
}

/// Follows the frames of one direction, without checks.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    header: [u8; HEADER_BYTES_MAX],
    have: usize,
    left: u64,
    opcode: u8,
}

impl Frames {
    /// Takes bytes, and calls `ended` with the opcode of every frame that ends in them.
    pub(crate) fn take(&mut self, mut bytes: &[u8], mut ended: impl FnMut(u8)) {
        while let Some(first) = bytes.first() {
            if self.left > 0 {
                let now = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                bytes = &bytes[now..];
                self.left -= now as u64;
                if self.left == 0 {
                    ended(self.opcode);
                }
                continue;
            }
            self.header[self.have] = *first;
            self.have += 1;
            bytes = &bytes[1..];
            if let Some(length) = self.length() {
                self.opcode = self.header[0] & 0x0f;
                (self.have, self.left) = (0, length);
                if length == 0 {
                    ended(self.opcode);
                }
            }
        }
    }

    /// Length of the payload, once the header is whole.
    fn length(&self) -> Option<u64> {
        let &[_, second, ..] = &self.header[..self.have] else {
            return None;
        };
        let length_bytes = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
        if self.have < 2 + length_bytes + mask_bytes {
            return None;
        }
        Some(match length_bytes {
            0 => u64::from(second & 0x7f),
            _ => (self.header[2..2 + length_bytes].iter()).fold(0, |length, byte| length << 8 | u64::from(*byte)),
        })
    }
}

/// The end of the head of an HTTP message in these bytes.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let bytes = [masked(&[1; PAYLOAD_BYTES]), plain(&[2; 5]), plain(&[]), vec![0x88, 0]].concat();
        for size in [1, 3, 100, bytes.len()] {
            let (mut frames, mut ended) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(size) {
                frames.take(piece, |opcode| ended.push(opcode));
            }
            assert_eq!(ended, [2, 2, 2, CLOSE], "in pieces of {size}");
        }
    }
}
