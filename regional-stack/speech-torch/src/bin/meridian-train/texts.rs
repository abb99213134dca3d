//! The sentences of a training that cannot run, for the developer who started it.
//!
//! A sentence says what is wrong and, after a semicolon, what to do. The causes for which a recording is left out stand behind the line
//! that counts them; too many of them end the training with [`TOO_MANY_LEFT_OUT`].

use std::path::Path;

// The corpus.

pub(crate) fn no_table(path: &Path) -> String {
    format!(
        "cannot read {}; make the recordings with tools/synthesise-speech",
        path.display()
    )
}

pub(crate) fn not_three_columns(path: &Path, line: usize) -> String {
    format!(
        "{}:{line}: a line has three columns with tabs between them; make the recordings anew with tools/synthesise-speech",
        path.display()
    )
}

pub(crate) fn no_recordings(path: &Path) -> String {
    format!(
        "{} lists no recordings; make them with tools/synthesise-speech",
        path.display()
    )
}

pub(crate) fn no_language(file: &Path) -> String {
    format!(
        "{0} is missing; make it with tools/synthesise-speech language {0}",
        file.display()
    )
}

pub(crate) fn too_few_sentences(count: usize) -> String {
    format!("{count} sentences are too few to train on; make a corpus of thousands")
}

pub(crate) const TOO_MANY_LEFT_OUT: &str =
    "more than one in twenty recordings cannot be used; make the corpus again with tools/synthesise-speech";

// The causes for which a recording is left out.

pub(crate) fn left_out(count: usize, of: usize, first: &str) -> String {
    format!("left out {count} of {of} recordings, the first because: {first}")
}

pub(crate) fn cannot_read(file: &Path) -> String {
    format!("cannot read {}", file.display())
}

pub(crate) const NOT_A_TIMING: &str = "a timing is a phone, a colon and seconds";
pub(crate) const NO_PHONES: &str = "the sentence has no phones";

pub(crate) fn unknown_phone(name: &str) -> String {
    format!("phone {name} is unknown")
}

pub(crate) fn not_seconds(text: &str) -> String {
    format!("{text} is not a number of seconds")
}

pub(crate) fn recording_too_short(frames: u32) -> String {
    format!("timings end {frames} frames after the recording")
}

// Files of models and sound.

pub(crate) fn cannot_start_from(weights: &Path) -> String {
    format!(
        "cannot start from {}; name the folder of an earlier training with --start-from, or leave it out",
        weights.display()
    )
}

pub(crate) fn cannot_write(path: &Path) -> String {
    format!(
        "cannot write {}; check the space and the rights of the folder",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_to_do() {
        let path = Path::new("corpus/manifest.tsv");
        for text in [
            no_table(path),
            not_three_columns(path, 3),
            no_recordings(path),
            no_language(path),
            too_few_sentences(7),
            TOO_MANY_LEFT_OUT.to_owned(),
            cannot_start_from(path),
            cannot_write(path),
        ] {
            assert_eq!(text.split("; ").count(), 2, "not two parts: {text}");
            assert!(!text.ends_with(['.', ';', ':']), "{text}");
        }
    }

    #[test]
    fn every_cause_fits_behind_the_count_of_recordings() {
        for cause in [
            cannot_read(Path::new("a.wav")),
            NOT_A_TIMING.to_owned(),
            NO_PHONES.to_owned(),
            unknown_phone("zz"),
            not_seconds("x"),
            recording_too_short(9),
        ] {
            let text = left_out(1, 40, &cause);
            assert!(
                text.ends_with(&cause) && !text.contains("; ") && !text.ends_with('.'),
                "{text}"
            );
        }
    }
}
