//! Audit logs that somebody brings: a line for each entry, as `meridian audit replay` reads them.

use planning::audit::{self, Documents};

/// A log is refused or read. A chain that is accepted holds, and one with a changed entry does not.
pub(crate) fn read(bytes: &[u8]) {
    let lines: Vec<&[u8]> = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect();
    let Ok(entries) = audit::verify(lines.iter().copied(), None) else {
        return;
    };
    let head = lines
        .last()
        .map_or_else(|| audit::FIRST.to_owned(), |line| audit::hash(line));
    if entries.first().is_none_or(|first| first.number == 1) {
        assert!(
            audit::verify(lines.iter().copied(), Some(&head)).is_ok(),
            "the head is that of the last entry"
        );
    }
    assert!(audit::verify(lines.iter().copied(), Some("another")).is_err());
    if let [first, .., _] = &lines[..] {
        let changed = [first, b" ".as_slice()].concat();
        let rest = lines[1..].iter().copied();
        assert!(
            audit::verify(std::iter::once(&changed[..]).chain(rest), None).is_err(),
            "an entry was changed"
        );
    }
    let mut documents = Documents::default();
    for entry in entries {
        let _ = documents.insert(entry.input.topology.clone(), String::new());
        let _ = documents.snapshot(entry);
    }
}
