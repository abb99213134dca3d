//! G.711, the coding of telephones: 8 bits of a logarithmic scale for each sample. Hand-written: hound does not know it, and each function is a few
//! lines of the standard.

/// Converts G.711 A-law to 16 bits.
pub fn a_law(code: u8) -> i16 {
    let code = code ^ 0x55;
    let (segment, step) = (code >> 4 & 7, i16::from(code & 0x0f));
    let size = match segment {
        0 => (step << 4) + 8,
        segment => ((step << 4) + 0x108) << (segment - 1),
    };
    if code & 0x80 == 0 { -size } else { size }
}

/// Converts G.711 mu-law to 16 bits.
pub fn mu_law(code: u8) -> i16 {
    const BIAS: i16 = 0x84;
    let code = !code;
    let size = (((i16::from(code & 0x0f) << 3) + BIAS) << (code >> 4 & 7)) - BIAS;
    if code & 0x80 == 0 { size } else { -size }
}

/// Converts 16 bits to G.711 mu-law.
pub fn to_mu_law(sample: i16) -> u8 {
    const BIAS: u16 = 0x84;
    /// The largest sample that has a code.
    const MOST: u16 = 32_635;
    let size = sample.unsigned_abs().min(MOST) + BIAS;
    // The bias makes bit 7 the lowest that can be the highest.
    let segment = 8 - size.leading_zeros() as u16;
    let step = size >> (segment + 3) & 0x0f;
    let sign = if sample < 0 { 0x80 } else { 0 };
    !(sign | (segment << 4 | step) as u8)
}

/// Converts 16 bits to G.711 A-law.
pub fn to_a_law(sample: i16) -> u8 {
    // The steps of negative samples end at -1 and not at 0.
    let size = (if sample < 0 { !sample } else { sample } as u16) >> 4;
    let (segment, step) = match size {
        0..=0x0f => (0, size),
        _ => {
            let segment = 16 - size.leading_zeros() as u16 - 4;
            debug_assert!(segment <= 7, "a sample has 12 bits here");
            (segment, size >> (segment - 1) & 0x0f)
        }
    };
    let sign = if sample < 0 { 0 } else { 0x80 };
    (sign | (segment << 4 | step) as u8) ^ 0x55
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half of the step in which a code stands, by its segment.
    fn half_step(code: u8, is_mu: bool) -> i32 {
        match (is_mu, i32::from(if is_mu { !code } else { code ^ 0x55 } >> 4 & 7)) {
            (true, segment) => 4 << segment,
            (false, segment) => 8 << (segment - 1).max(0),
        }
    }

    #[test]
    fn every_sample_gets_the_code_of_its_step() {
        type Law = (fn(u8) -> i16, fn(i16) -> u8);
        let laws: [(bool, Law); 2] = [(true, (mu_law, to_mu_law)), (false, (a_law, to_a_law))];
        for (is_mu, (decode, encode)) in laws {
            let most = (0..=255).map(|code| i32::from(decode(code))).max().unwrap();
            for sample in i16::MIN..=i16::MAX {
                let code = encode(sample);
                let error = (i32::from(decode(code)) - i32::from(sample)).abs();
                let is_beyond = i32::from(sample).abs() > most;
                assert!(
                    is_beyond || error <= half_step(code, is_mu),
                    "mu {is_mu}, {sample}: off by {error}"
                );
            }
        }
    }

    #[test]
    fn every_code_survives_the_round_trip() {
        for code in 0..=255u8 {
            assert_eq!(a_law(to_a_law(a_law(code))), a_law(code), "A-law {code}");
            assert_eq!(mu_law(to_mu_law(mu_law(code))), mu_law(code), "mu-law {code}");
        }
    }
}
