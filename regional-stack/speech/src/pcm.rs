//! 16-bit little-endian audio without a header, the format of the Realtime protocol.

/// Reads whole samples. Ignores a trailing odd byte, so the caller must keep it until its other half arrives.
pub fn from_s16le(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(2)
        .map(|pair| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32_768.0)
        .collect()
}

/// Writes samples, clipped to [-1, 1]. A value that is not a number becomes silence.
pub fn to_s16le(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|&s| to_i16(s).to_le_bytes()).collect()
}

pub(crate) fn to_i16(sample: f32) -> i16 {
    // `as` saturates and maps NaN to 0, which is the intended clipping.
    (sample * 32_767.0).round() as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_round_trip_to_one_step() {
        let bytes: Vec<u8> = [0i16, 1, -1, 12_345, -12_345, 32_767, -32_767]
            .iter()
            .flat_map(|s| s.to_le_bytes())
            .collect();
        let back = to_s16le(&from_s16le(&bytes));
        for (a, b) in bytes.chunks(2).zip(back.chunks(2)) {
            let (a, b) = (i16::from_le_bytes([a[0], a[1]]), i16::from_le_bytes([b[0], b[1]]));
            assert!((i32::from(a) - i32::from(b)).abs() <= 1, "{a} became {b}");
        }
    }

    #[test]
    fn odd_bytes_and_wild_samples_do_no_harm() {
        assert_eq!(from_s16le(&[1]), Vec::<f32>::new());
        assert_eq!(from_s16le(&[0, 0, 9]).len(), 1);
        assert_eq!(to_s16le(&[2.0, -2.0, f32::NAN]), [0xff, 0x7f, 0x00, 0x80, 0, 0]);
    }
}
