//! Turns text into speech with espeak-ng, a program apart from the product's own synthesizer.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context as _, bail};
use client::Utterance;

use crate::texts;

/// Longest text: about a minute of speech, the longest turn that a region takes.
const TEXT_CHARS_MAX: usize = 600;

/// Speaks a text with espeak-ng.
pub(crate) fn say(text: &str) -> anyhow::Result<Utterance> {
    if text.trim().is_empty() {
        return Err(texts::no_words());
    }
    let length = text.chars().count();
    if length > TEXT_CHARS_MAX {
        return Err(texts::text_too_long(length, TEXT_CHARS_MAX));
    }
    // The text goes through standard input: an argument that begins with '-' would be an option.
    let spawned = std::process::Command::new("espeak-ng")
        .args(["-v", "en-gb", "-s", "150", "--stdin", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut espeak = match spawned {
        Ok(espeak) => espeak,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(texts::no_espeak());
        }
        Err(error) => return Err(error).context("cannot start espeak-ng"),
    };
    {
        let mut words = espeak.stdin.take().context("espeak-ng has no standard input")?;
        words.write_all(text.as_bytes()).context("cannot write to espeak-ng")?;
    }
    let spoken = espeak
        .wait_with_output()
        .context("cannot read the output of espeak-ng")?;
    if !spoken.status.success() {
        bail!("espeak-ng failed: {}", String::from_utf8_lossy(&spoken.stderr).trim());
    }
    Utterance::from_wav(&spoken.stdout).context("cannot use the sound of espeak-ng")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_too_much_cannot_be_said() {
        assert!(say("  ").unwrap_err().to_string().contains("the text has no words"));
        assert!(
            say(&"a".repeat(601))
                .unwrap_err()
                .to_string()
                .contains("has 601 characters; write at most 600")
        );
    }
}
