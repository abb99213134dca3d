//! The recorded calls: sound, words and the expected intent.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use client::Utterance;

use crate::texts;

/// Folder of the recordings in the source tree.
const FOLDER: &str = "regional-stack/speech/testdata/calls";

/// One recorded sentence.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Name of its file.
    pub file: String,
    /// The words spoken in it.
    pub words: String,
    /// The intent that a stack should find.
    pub intent: String,
    /// The recorded speech, ready to be sent.
    pub utterance: Utterance,
}

/// The folder of the recordings, beside or above the running program.
pub fn default_folder() -> PathBuf {
    world::settings::find_upwards(&world::settings::default_binaries_dir(), FOLDER)
        .unwrap_or_else(|| PathBuf::from(FOLDER))
}

/// Reads calls.tsv (file, words, intent) in a folder, and the WAV files that it names.
pub fn load(folder: &Path) -> anyhow::Result<Vec<Recording>> {
    let list = folder.join("calls.tsv");
    let text = std::fs::read_to_string(&list).with_context(|| texts::cannot_read_list(&list))?;
    let mut recordings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let at = || format!("{}:{}", list.display(), index + 1);
        let [file, words, intent] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!(texts::not_three_columns(&at()));
        };
        let sound = std::fs::read(folder.join(file)).with_context(|| texts::cannot_read_recording(&at(), file))?;
        let utterance = Utterance::from_wav(&sound).with_context(|| texts::bad_recording(&at(), file))?;
        recordings.push(Recording {
            file: file.to_owned(),
            words: words.to_owned(),
            intent: intent.to_owned(),
            utterance,
        });
    }
    if recordings.is_empty() {
        bail!(texts::no_recordings(&list));
    }
    Ok(recordings)
}

/// Writes a reply to a WAV file.
pub fn write_reply(path: &Path, samples: &[i16]) -> anyhow::Result<()> {
    let samples: Vec<f32> = samples.iter().map(|sample| f32::from(*sample) / 32_768.0).collect();
    std::fs::write(path, speech::wav::encode(&samples, client::RATE)).with_context(|| texts::cannot_write(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_recordings_are_read() {
        let recordings = load(&default_folder()).unwrap();
        assert!(recordings.len() >= 10);
        assert!(recordings.iter().all(|recording| !recording.intent.is_empty()));
    }

    #[test]
    fn a_broken_list_names_its_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("calls.tsv"), "a.wav\thello\n").unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("calls.tsv:1: not three columns"), "{error}");
    }

    #[test]
    fn a_reply_is_written_as_a_wav_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reply.wav");
        write_reply(&path, &[0, 16_384, -32_768, 7]).unwrap();
        assert!(Utterance::from_wav(&std::fs::read(&path).unwrap()).is_ok());
    }
}
