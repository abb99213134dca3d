//! Lengths of time on the command line.

use std::time::Duration;

/// Parses a duration as documents have it, but not zero.
pub(crate) fn parse_length(text: &str) -> Result<Duration, String> {
    match text.parse::<topology::document::Span>()?.0 {
        Duration::ZERO => Err("0 is out of range; write a duration greater than zero, such as \"30m\"".to_owned()),
        length => Ok(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_or_explained() {
        assert_eq!(parse_length("30m"), Ok(Duration::from_secs(1_800)));
        for wrong in [
            "",
            "m",
            "30",
            "-1h",
            "0s",
            "30µ",
            "99999999999999999999d",
            "9999999999999999999d",
        ] {
            assert!(parse_length(wrong).unwrap_err().contains("; write "), "{wrong}");
        }
    }
}
