//! FLAC: every bit of the samples, in half of the bytes.

use flacenc::{bitsink::ByteSink, component::BitRepr as _, error::Verify as _, source::MemSource};
use speech::pcm;

use super::{EncodeError, RATE};

pub(super) fn encode(samples: &[f32]) -> Result<Vec<u8>, EncodeError> {
    let failed = |error: &dyn std::fmt::Debug| EncodeError(format!("FLAC: {error:?}"));
    let bytes = pcm::to_s16le(samples);
    let samples: Vec<i32> = bytes
        .chunks_exact(2)
        .map(|pair| i32::from(i16::from_le_bytes([pair[0], pair[1]])))
        .collect();
    let config = flacenc::config::Encoder::default()
        .into_verified()
        .map_err(|(_, error)| failed(&error))?;
    let source = MemSource::from_samples(&samples, 1, 16, RATE as usize);
    let stream =
        flacenc::encode_with_fixed_block_size(&config, source, config.block_size).map_err(|error| failed(&error))?;
    let mut sink = ByteSink::new();
    stream.write(&mut sink).map_err(|error| failed(&error))?;
    Ok(sink.into_inner())
}
