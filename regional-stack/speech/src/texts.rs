//! The sentences about audio and text that an engine or a decoder refuses: callers read them. Each says what is wrong and, after a
//! semicolon, what to send or do.

use std::fmt::Display;

pub(crate) fn too_long_to_hear(seconds: f32, limit_s: f32) -> String {
    format!("utterance of {seconds:.1} s is longer than the {limit_s:.0} s limit; speak in shorter pieces")
}

pub(crate) fn too_much_to_say(chars: usize, chars_max: usize) -> String {
    format!("text of {chars} characters is longer than the {chars_max} character limit; send it in parts")
}

/// The error of the engine's library follows.
pub(crate) fn engine_failed(why: &str) -> String {
    format!("speech engine failed: {why}")
}

pub(crate) fn out_of_gpu_memory(why: &str) -> String {
    format!("speech engine ran out of GPU memory: {why}")
}

pub(crate) const NO_BYTES: &str = "the audio is empty; send a WAV file";

pub(crate) fn not_wav(why: &str) -> String {
    format!("not a WAV file: {why}; send RIFF/WAVE with PCM, float, A-law or mu-law samples")
}

pub(crate) fn unsupported_wav(why: &str) -> String {
    format!("unsupported WAV file: {why}; send PCM, float, A-law or mu-law samples, mono or stereo, 8000 to 48000 Hz")
}

pub(crate) const CUT_SHORT: &str = "the WAV file is cut short before its samples; send the whole file";
pub(crate) const NO_SAMPLES: &str = "the WAV file holds no samples; record something first";

pub(crate) fn audio_too_long(seconds: f32, limit_s: f32) -> String {
    format!("audio of {seconds:.1} s is longer than the {limit_s:.0} s limit; send it in shorter pieces")
}

pub(crate) fn bad_rates(from: u32, to: u32) -> String {
    format!("cannot resample from {from} Hz to {to} Hz; use rates between 4000 and 192000 Hz")
}

pub(crate) fn bad_statistics(line: impl Display) -> String {
    format!(
        "line {line} of the word statistics is not two words and a count; make them again with tools/synthesise-speech language"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_to_do() {
        for text in [
            &*too_long_to_hear(70.0, 60.0),
            &too_much_to_say(5000, 4096),
            NO_BYTES,
            &not_wav("no header"),
            &unsupported_wav("24 channels"),
            CUT_SHORT,
            NO_SAMPLES,
            &audio_too_long(700.0, 600.0),
            &bad_rates(1, 16_000),
            &bad_statistics(3),
        ] {
            assert!(text.contains("; ") && !text.ends_with(['.', ';', ':']), "{text}");
        }
        for text in [engine_failed("no kernel"), out_of_gpu_memory("2 GiB")] {
            assert!(text.starts_with("speech engine "), "{text}");
        }
    }
}
