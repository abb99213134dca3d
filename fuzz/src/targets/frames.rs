//! A stream of WebSocket frames, as the relay reads it.

use std::io::Cursor;

use bytes::BytesMut;
use edge::frames::{From, Scanner, Violation, frame_for_device, frame_for_region, payload_of};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;

/// Small enough that the fuzzer meets it.
const FRAME_BYTES_MAX: u64 = 4096;
/// The longest header, less the byte that would complete it.
const HELD_BYTES_MAX: usize = 13;

/// The first byte says who sends, the second in pieces of which size the rest comes.
pub(crate) fn scan(bytes: &[u8]) {
    let [sender, piece, stream @ ..] = bytes else { return };
    let from = if sender & 1 == 0 { From::Device } else { From::Region };
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

/// What is passed on of the stream, how it ended, and how many frames were whole.
fn pass<'b>(from: From, pieces: impl IntoIterator<Item = &'b [u8]>) -> (Vec<u8>, Result<(), Violation>, u64) {
    let mut scanner = Scanner::new(from, FRAME_BYTES_MAX);
    let mut out = BytesMut::new();
    let result = pieces
        .into_iter()
        .try_for_each(|piece| scanner.push(piece, &mut out, false));
    (out.to_vec(), result, scanner.frames())
}

/// How many frames tungstenite finds, each of which reads the same when we write it.
fn frames_by_another_reader(from: From, mut stream: &[u8]) -> u64 {
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
            let (first, payload) = (frame[0] & 0x0f, payload_of(frame));
            let ours = match from {
                From::Device => frame_for_region(first, &payload),
                From::Region => frame_for_device(first, &payload),
            };
            assert_eq!(ours.len(), frame.len());
            assert_eq!(payload_of(&ours), payload);
        }
        frames += 1;
        stream = rest;
    }
    frames
}
