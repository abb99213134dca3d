//! A stream of WebSocket frames through the relay's scanner.

use std::io::Cursor;

use bytes::BytesMut;
use edge::session::frames::{Scanner, Sender, Violation, frame_for_device, frame_for_region, payload_of};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;

/// Small, so that the fuzzer reaches the limit.
const FRAME_BYTES_MAX: u64 = 4096;
/// The longest header, 14 bytes, less the byte that would complete it.
const HELD_BYTES_MAX: usize = 13;

/// Reads the stream whole and in pieces. The first byte chooses the sender, the second the size of the pieces.
pub(crate) fn scan(bytes: &[u8]) {
    let [sender, piece, stream @ ..] = bytes else { return };
    let from = if sender & 1 == 0 {
        Sender::Device
    } else {
        Sender::Region
    };
    let whole = pass(from, [stream]);
    let pieces = pass(from, stream.chunks(usize::from(*piece).max(1)));
    assert_eq!(whole, pieces, "how bytes come in makes no difference");

    let (passed, result, frames) = whole;
    assert!(stream.starts_with(&passed), "what is passed on is what came");
    if result.is_ok() {
        assert!(
            stream.len() - passed.len() <= HELD_BYTES_MAX,
            "only a header is held back"
        );
    }
    let again = pass(from, [&passed[..]]);
    assert_eq!(
        again,
        (passed.clone(), Ok(()), frames),
        "what was passed on is in order"
    );
    assert_eq!(frames_by_another_reader(from, &passed), frames);
}

/// The bytes that the scanner passes on, its result, and the number of complete frames.
fn pass<'b>(sender: Sender, pieces: impl IntoIterator<Item = &'b [u8]>) -> (Vec<u8>, Result<(), Violation>, u64) {
    let mut scanner = Scanner::new(sender, FRAME_BYTES_MAX);
    let mut out = BytesMut::new();
    let result = pieces
        .into_iter()
        .try_for_each(|piece| scanner.push(piece, &mut out, false));
    (out.to_vec(), result, scanner.frames())
}

/// The number of frames that tungstenite finds. Each must be the same after our writer has written it again.
fn frames_by_another_reader(sender: Sender, mut stream: &[u8]) -> u64 {
    let mut frames = 0;
    while !stream.is_empty() {
        let mut cursor = Cursor::new(stream);
        let (header, length) = FrameHeader::parse(&mut cursor)
            .expect("tungstenite reads what we passed on")
            .expect("headers are passed on whole");
        let header_bytes = usize::try_from(cursor.position()).expect("it is inside the stream");
        let frame_bytes = header_bytes + usize::try_from(length).expect("a frame is at most 4,096 bytes long");
        let Some((frame, rest)) = stream.split_at_checked(frame_bytes) else {
            break;
        };
        if header.is_final {
            let payload = payload_of(frame);
            let ours = match sender {
                Sender::Device => frame_for_region(header.opcode, &payload),
                Sender::Region => frame_for_device(header.opcode, &payload),
            };
            assert_eq!(ours.len(), frame.len());
            assert_eq!(payload_of(&ours), payload);
        }
        frames += 1;
        stream = rest;
    }
    frames
}
