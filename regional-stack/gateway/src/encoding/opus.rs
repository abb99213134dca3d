//! Opus in an Ogg file (RFC 7845), which can be sent while it is made.

use ogg::{PacketWriteEndInfo, PacketWriter};
use opusic_c::{Application, Bitrate, Channels, Encoder, SampleRate, Signal};

use super::EncodeError;

/// Samples of one packet at the rate of the files: 20 ms.
const PACKET_SAMPLES: usize = 480;
/// Ogg counts the samples of Opus at 48 kHz, whatever rate they came in.
const TICKS_PER_SAMPLE: u64 = 2;
/// Largest packet, as libopus advises.
const PACKET_BYTES_MAX: usize = 4_000;
/// Speech of one voice is clear from about 24 kbit/s on.
const BITS_PER_SECOND: u32 = 32_000;
/// The name of the only stream in a file.
const SERIAL: u32 = 1;

/// A file that is being written.
pub(crate) struct OggOpus {
    encoder: Encoder,
    writer: PacketWriter<'static, Vec<u8>>,
    /// Samples that fill no packet yet.
    waiting: Vec<f32>,
    /// Samples that the encoder adds before the first of ours, at its own rate.
    delay: usize,
    /// Samples of ours, and packets, so far.
    samples: u64,
    packets: u64,
}

impl OggOpus {
    pub(crate) fn begin() -> Result<Self, EncodeError> {
        let mut encoder = Encoder::new(Channels::Mono, SampleRate::Hz24000, Application::Audio).map_err(failed)?;
        encoder.set_bitrate(Bitrate::Value(BITS_PER_SECOND)).map_err(failed)?;
        encoder.set_signal(Signal::Voice).map_err(failed)?;
        let delay = encoder.get_look_ahead().map_err(failed)? as usize;
        let mut file = Self {
            encoder,
            writer: PacketWriter::new(Vec::new()),
            waiting: Vec::new(),
            delay,
            samples: 0,
            packets: 0,
        };
        let skipped = delay as u64 * TICKS_PER_SAMPLE;
        let head = head(u16::try_from(skipped).map_err(|error| EncodeError(error.to_string()))?);
        file.write(head, PacketWriteEndInfo::EndPage, 0)?;
        file.write(tags(), PacketWriteEndInfo::EndPage, 0)?;
        Ok(file)
    }

    /// Adds samples. Returns whole pages, so that a player gets all that it can play.
    pub(crate) fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, EncodeError> {
        self.samples += samples.len() as u64;
        self.waiting.extend_from_slice(samples);
        let whole = self.waiting.len() / PACKET_SAMPLES * PACKET_SAMPLES;
        let rest = self.waiting.split_off(whole);
        let whole = std::mem::replace(&mut self.waiting, rest);
        let mut packets = whole.chunks_exact(PACKET_SAMPLES).peekable();
        while let Some(packet) = packets.next() {
            let ends = match packets.peek() {
                Some(_) => PacketWriteEndInfo::NormalPacket,
                None => PacketWriteEndInfo::EndPage,
            };
            let position = (self.packets + 1) * PACKET_SAMPLES as u64 * TICKS_PER_SAMPLE;
            self.encode(packet, ends, position)?;
        }
        Ok(std::mem::take(self.writer.inner_mut()))
    }

    /// The last page.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, EncodeError> {
        // The last samples come out of the encoder behind its delay.
        let length = self.waiting.len() + self.delay;
        let mut last = std::mem::take(&mut self.waiting);
        last.resize(length.max(1).next_multiple_of(PACKET_SAMPLES), 0.0);
        // A position before the end of the last packet says how much of it counts.
        let end = (self.samples + self.delay as u64) * TICKS_PER_SAMPLE;
        let mut packets = last.chunks_exact(PACKET_SAMPLES).peekable();
        while let Some(packet) = packets.next() {
            let (ends, position) = match packets.peek() {
                Some(_) => (
                    PacketWriteEndInfo::NormalPacket,
                    (self.packets + 1) * PACKET_SAMPLES as u64 * TICKS_PER_SAMPLE,
                ),
                None => (PacketWriteEndInfo::EndStream, end),
            };
            self.encode(packet, ends, position)?;
        }
        Ok(self.writer.into_inner())
    }

    fn encode(&mut self, samples: &[f32], ends: PacketWriteEndInfo, position: u64) -> Result<(), EncodeError> {
        let mut packet = Vec::with_capacity(PACKET_BYTES_MAX);
        self.encoder.encode_float_to_vec(samples, &mut packet).map_err(failed)?;
        self.packets += 1;
        self.write(packet, ends, position)
    }

    fn write(&mut self, packet: Vec<u8>, ends: PacketWriteEndInfo, position: u64) -> Result<(), EncodeError> {
        let written = self.writer.write_packet(packet, SERIAL, ends, position);
        written.map_err(|error| EncodeError(format!("Ogg: {error}")))
    }
}

fn failed(code: opusic_c::ErrorCode) -> EncodeError {
    EncodeError(format!("Opus: {code:?}"))
}

/// The first packet: one channel, and the ticks to skip at the beginning.
fn head(skipped: u16) -> Vec<u8> {
    let mut head = b"OpusHead\x01\x01".to_vec();
    head.extend(skipped.to_le_bytes());
    head.extend(super::RATE.to_le_bytes());
    // No gain, and one stream of one channel.
    head.extend([0, 0, 0]);
    head
}

/// The second packet: the name of the writer, and no comments.
fn tags() -> Vec<u8> {
    const NAME: &[u8] = b"meridian";
    let mut tags = b"OpusTags".to_vec();
    tags.extend((NAME.len() as u32).to_le_bytes());
    tags.extend(NAME);
    tags.extend(0u32.to_le_bytes());
    tags
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use ogg::PacketReader;
    use opusic_c::Decoder;

    use super::*;

    fn tone(samples: usize) -> Vec<f32> {
        (0..samples).map(|at| 0.3 * (at as f32 * 0.1).sin()).collect()
    }

    /// Decodes a file as a player does: it skips the beginning, and stops at the last position.
    fn played(file: Vec<u8>) -> Vec<f32> {
        let mut reader = PacketReader::new(Cursor::new(file));
        let head = reader.read_packet_expected().unwrap();
        assert_eq!(&head.data[..9], b"OpusHead\x01");
        let skipped = usize::from(u16::from_le_bytes([head.data[10], head.data[11]])) / TICKS_PER_SAMPLE as usize;
        assert!(reader.read_packet_expected().unwrap().data.starts_with(b"OpusTags"));
        let mut decoder = Decoder::new(Channels::Mono, SampleRate::Hz24000).unwrap();
        let (mut sound, mut end) = (Vec::new(), 0);
        while let Some(packet) = reader.read_packet().unwrap() {
            let mut decoded = vec![0.0; PACKET_SAMPLES];
            let length = decoder
                .decode_float_to_slice(&packet.data, &mut decoded, false)
                .unwrap();
            sound.extend_from_slice(&decoded[..length]);
            end = packet.absgp_page() / TICKS_PER_SAMPLE;
        }
        sound.truncate(end as usize);
        sound.split_off(skipped)
    }

    #[test]
    fn as_many_samples_are_played_as_were_written_and_they_sound_alike() {
        for lengths in [vec![], vec![1], vec![480], vec![479, 2], vec![24_000, 7, 333, 12_000]] {
            let mut file = OggOpus::begin().unwrap();
            let all = tone(lengths.iter().sum());
            let (mut bytes, mut from) = (Vec::new(), 0);
            for length in lengths {
                bytes.extend(file.push(&all[from..from + length]).unwrap());
                from += length;
            }
            bytes.extend(file.finish().unwrap());
            let played = played(bytes);
            assert_eq!(played.len(), all.len());
            if all.len() > 24_000 {
                let power = |sound: &[f32]| sound.iter().map(|sample| sample * sample).sum::<f32>();
                let difference: Vec<f32> = played.iter().zip(&all).map(|(a, b)| a - b).collect();
                assert!(
                    power(&difference) < power(&all) / 20.0,
                    "{} of {}",
                    power(&difference),
                    power(&all)
                );
            }
        }
    }

    #[test]
    fn what_was_pushed_can_be_played_before_the_end() {
        let mut file = OggOpus::begin().unwrap();
        let begun = file.push(&tone(24_000)).unwrap();
        // A page for each header, and one with a second of sound.
        assert!(begun.windows(4).filter(|bytes| bytes == b"OggS").count() >= 3);
        let heard = played(begun).len();
        assert!(heard > 23_000, "{heard} samples");
    }
}
