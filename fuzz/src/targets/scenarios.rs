//! Scenario files for `meridian simulate`.

use simulator::Scenario;

/// A scenario is read, or refused with a line and the repair.
pub(crate) fn read(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(bad) = Scenario::parse(text) {
        assert!(
            bad.line <= text.lines().count().max(1),
            "line {} of {}",
            bad.line,
            text.lines().count()
        );
        assert!(!bad.problem.is_empty());
    }
}
