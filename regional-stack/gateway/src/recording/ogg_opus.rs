//! Recordings in Opus (RFC 7845), as browsers and telephones make them, and as a stack writes them itself.

use std::io::Cursor;

use ogg::PacketReader;
use opusic_c::{Channels, Decoder, SampleRate};
use speech::SAMPLE_RATE;

use crate::texts;

/// The first bytes of every Ogg file.
pub(super) const OGG: &[u8] = b"OggS";
/// Ogg counts the samples of Opus at 48 kHz.
const TICKS_PER_SAMPLE: i64 = 48_000 / SAMPLE_RATE as i64;
/// Most samples of one packet: 120 ms.
const PACKET_SAMPLES_MAX: usize = SAMPLE_RATE as usize * 120 / 1000;

/// The fault of an Ogg file.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub(crate) enum OpusError {
    #[error("{}", texts::OGG_WITHOUT_OPUS)]
    NotOpus,
    #[error("{}", texts::OPUS_DAMAGED)]
    Damaged,
    #[error("{}", texts::OPUS_EMPTY)]
    Empty,
    #[error("{}", texts::opus_too_long(*limit_s))]
    TooLong { limit_s: f32 },
}

/// Decodes the first stream of an Ogg file to mono samples at [`SAMPLE_RATE`]: one or two channels, up to `seconds_max`.
pub(super) fn decode(file: &[u8], seconds_max: f32) -> Result<Vec<f32>, OpusError> {
    let mut packets = PacketReader::new(Cursor::new(file));
    let head = packets
        .read_packet()
        .map_err(|_| OpusError::Damaged)?
        .ok_or(OpusError::Damaged)?;
    let stream = head.stream_serial();
    let skipped = skipped(&head.data).ok_or(OpusError::NotOpus)?;
    // libopus mixes two channels into one by itself.
    let mut decoder = Decoder::new(Channels::Mono, SampleRate::Hz16000).map_err(|_| OpusError::Damaged)?;
    let most = (seconds_max * SAMPLE_RATE as f32) as usize + skipped;
    let (mut samples, mut has_tags) = (Vec::new(), false);
    // The position of the first sample: not zero in a recording of a stream that already ran.
    let mut origin = None;
    while let Some(packet) = packets.read_packet().map_err(|_| OpusError::Damaged)? {
        if packet.stream_serial() != stream {
            continue;
        }
        if !has_tags {
            has_tags = packet.data.starts_with(b"OpusTags");
            match has_tags {
                true => continue,
                false => return Err(OpusError::Damaged),
            }
        }
        let mut decoded = [0.0; PACKET_SAMPLES_MAX];
        let length = decoder
            .decode_float_to_slice(&packet.data, &mut decoded, false)
            .map_err(|_| OpusError::Damaged)?;
        samples.extend_from_slice(&decoded[..length.min(PACKET_SAMPLES_MAX)]);
        if samples.len() > most {
            return Err(OpusError::TooLong { limit_s: seconds_max });
        }
        if !packet.last_in_page() {
            continue;
        }
        // Each page says where it ends. A page that was lost shows in the next one; the last page may end within its last packet.
        let position = i64::try_from(packet.absgp_page()).map_err(|_| OpusError::Damaged)? / TICKS_PER_SAMPLE;
        let heard = samples.len() as i64;
        if packet.last_in_stream() {
            let end = position - origin.unwrap_or(0);
            if !(0..=heard).contains(&end) {
                return Err(OpusError::Damaged);
            }
            samples.truncate(end as usize);
            break;
        }
        if position != *origin.get_or_insert(position - heard) + heard {
            return Err(OpusError::Damaged);
        }
    }
    samples.drain(..skipped.min(samples.len()));
    if samples.is_empty() {
        return Err(OpusError::Empty);
    }
    for sample in &mut samples {
        *sample = if sample.is_finite() {
            sample.clamp(-1.0, 1.0)
        } else {
            0.0
        };
    }
    Ok(samples)
}

/// The samples to skip at the beginning, by the first packet; `None` if it is none of Opus with one or two channels.
fn skipped(head: &[u8]) -> Option<usize> {
    let [
        b'O',
        b'p',
        b'u',
        b's',
        b'H',
        b'e',
        b'a',
        b'd',
        version,
        channels,
        low,
        high,
        ..,
    ] = *head
    else {
        return None;
    };
    // The family of mappings stands behind the rate and the gain; family 0 has one stream.
    let is_plain = head.len() >= 19 && head[18] == 0 && (1..=2).contains(&channels) && version < 16;
    let ticks = i64::from(u16::from_le_bytes([low, high]));
    is_plain.then_some((ticks / TICKS_PER_SAMPLE) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::{Encoder, Format, RATE};

    /// A second of a tone, as a stack writes it.
    fn tone() -> Vec<u8> {
        let samples: Vec<f32> = (0..RATE).map(|at| 0.3 * (at as f32 * 0.1).sin()).collect();
        let mut encoder = Encoder::new(Format::Opus).unwrap();
        let mut file = encoder.push(&samples).unwrap();
        file.extend(encoder.finish().unwrap());
        file
    }

    #[test]
    fn what_a_stack_writes_it_reads() {
        let samples = decode(&tone(), 5.0).unwrap();
        assert_eq!(samples.len(), SAMPLE_RATE as usize);
        let power: f32 = samples.iter().map(|sample| sample * sample).sum::<f32>() / samples.len() as f32;
        assert!((0.03..0.06).contains(&power), "{power}");
    }

    #[test]
    fn a_long_or_damaged_file_is_refused_and_never_believed() {
        let file = tone();
        assert_eq!(decode(&file, 0.5), Err(OpusError::TooLong { limit_s: 0.5 }));
        assert_eq!(decode(b"OggS", 5.0), Err(OpusError::Damaged));
        for at in (0..file.len()).step_by(7) {
            let mut damaged = file.clone();
            damaged[at] ^= 0x40;
            // Every page has a checksum. One whose first bytes changed is none, and its sound is missing.
            let heard = decode(&damaged, 5.0).map_or(0, |samples| samples.len());
            assert!(heard < SAMPLE_RATE as usize, "byte {at}");
            let _ = decode(&file[..at], 5.0);
        }
    }
}
