//! The sentences about ids, versions and snapshots. Those about documents stand beside their rules in [`crate::document`], and a test
//! there reads them all; those about reason codes are in [`crate::reasons`].
//!
//! A sentence says what is wrong and, after a semicolon, what to write or what the node does.

pub(crate) fn not_an_id(text: &str, length_max: usize) -> String {
    format!(
        "\"{text}\" is not an id; write 1 to {length_max} of a-z, 0-9 and '-', with a letter first and no '-' at the end"
    )
}

pub(crate) fn not_a_version(text: &str, chars_max: usize) -> String {
    format!("{text:?} is not a version; write 1 to {chars_max} visible ASCII characters")
}

pub(crate) fn not_a_stack(text: &str) -> String {
    format!("{text:?} is not an address; write \"IP:PORT\", such as \"10.0.0.1:9000\"")
}

// Snapshots. The node that refuses one keeps the plan that it has, and says so. The problems of a plan stand beside the rules
// (`Snapshot::validate`).

pub(crate) fn snapshot_too_large(bytes: usize, bytes_max: usize) -> String {
    format!("the snapshot has {bytes} bytes, and the limit is {bytes_max}")
}

pub(crate) fn snapshot_unreadable(why: &str) -> String {
    format!("this version cannot read the snapshot: {why}")
}

pub(crate) fn snapshot_damaged() -> &'static str {
    "the snapshot is damaged: it does not match its checksum"
}

pub(crate) fn plan_cannot_be_applied(generation: u64, problems: &[String]) -> String {
    format!("plan {generation} cannot be applied: {}", problems.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_wrong_is_named_with_what_to_write() {
        for text in [not_an_id("Us-East", 63), not_a_version("2 4", 64), not_a_stack("here")] {
            assert!(text.contains("; write "), "{text}");
        }
    }

    #[test]
    fn a_refused_snapshot_is_named_with_its_fault() {
        for text in [
            snapshot_too_large(10, 5).as_str(),
            &snapshot_unreadable("no generation"),
            snapshot_damaged(),
            &plan_cannot_be_applied(4, &["the plan has no routes".to_owned()]),
        ] {
            assert!(text.contains("snapshot") || text.starts_with("plan 4"), "{text}");
            assert!(text.contains([':', ',']) && !text.ends_with(['.', ';', ':']), "{text}");
        }
    }
}
