//! The list of recordings of people, and what counts as the same words: for tests and benches.

/// One recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Name of the WAV file.
    pub file: String,
    /// `dev`: looked at while the recognizer was chosen. `kept`: not.
    pub part: String,
    /// `command`, `digits`, `reading` or `word`.
    pub kind: String,
    /// The words.
    pub transcript: String,
}

/// All recordings of `testdata/people.tsv`.
pub fn rows() -> Vec<Row> {
    let text = include_str!("../testdata/people.tsv");
    let lines = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    let row = |line: &str| {
        let columns: Vec<&str> = line.split('\t').collect();
        Row {
            file: columns[0].to_owned(),
            part: columns[1].to_owned(),
            kind: columns[2].to_owned(),
            transcript: columns[4].to_owned(),
        }
    };
    lines.map(row).collect()
}

/// Words as they are compared: two ways to write the same are no error.
pub fn comparable(text: &str) -> String {
    let words = text.split_whitespace().map(|word| match word {
        "i'm" => "i am",
        "that's" => "that is",
        "you're" => "you are",
        "we're" => "we are",
        word => word,
    });
    words.collect::<Vec<_>>().join(" ").replace('\'', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recording_is_listed_once_with_its_words() {
        let rows = rows();
        let mut files: Vec<&str> = rows.iter().map(|row| row.file.as_str()).collect();
        files.sort_unstable();
        files.dedup();
        assert_eq!(files.len(), rows.len());
        assert!(rows.len() >= 100);
        for row in &rows {
            assert!(matches!(row.part.as_str(), "dev" | "kept"), "{row:?}");
            assert!(
                matches!(row.kind.as_str(), "command" | "digits" | "reading" | "word"),
                "{row:?}"
            );
            assert!(row.file.ends_with(".wav") && !row.file.contains('/'), "{row:?}");
            assert_eq!(row.transcript, row.transcript.to_lowercase(), "{row:?}");
        }
    }
}
